/*
 * Purpose: data beside things that a patch cannot change. Counts how often each item of the demo
 *          service is priced, in a shadow variable per item; a state of the same id takes the
 *          variables away with the last patch that has it.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/shadow-count.c -o shadow-count.so
 *          suture apply shadow-count.so --name suture-demo-ser
 *          suture shadow --pid PID        # one line per item
 *          suture disable shadow-count --name suture-demo-ser
 */
#include <stdatomic.h>
#include <suture.h>

/* Known to every patch that shares the counts. */
#define COUNTS 0x636f756e74

struct count {
    atomic_long priced;
};

SUTURE_OLD(unsigned long, old_price, (unsigned long item));

static unsigned long counted_price(unsigned long item)
{
    /* What a variable belongs to is usually an object's address; here the item's number. */
    struct count *count = suture_shadow_get_or_alloc((void *)item, COUNTS, sizeof *count, 0, 0);
    if (count)
        atomic_fetch_add(&count->priced, 1);
    return old_price(item);
}

SUTURE_PATCH("shadow-count",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC_OLD("price", counted_price, old_price)),
    SUTURE_STATE(COUNTS, SUTURE_IS_SHADOW, 0, 0, 0, 0, 0));
