/*
 * Purpose: changes global data of the program when all of it can bear the change. Baskets of the
 *          warehouse are limited to four, and the function that adds them up has an array of four.
 *          The new function has none; the limit is raised when every thread runs it, and lowered
 *          again before the first thread goes back. A transition that is turned round changes nothing.
 *          Patches demo-target/targets/warehouse.c; samples/global-data-2.c takes over from it.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/global-data.c -o global-data.so
 *          suture apply global-data.so --name warehouse
 *          suture get basket/states/108/holders --name warehouse
 *          suture disable basket --name warehouse
 */
#include <errno.h>
#include <suture.h>

/* Known to every patch that changes the limit. */
#define BASKET_LIMIT 108

SUTURE_EXTERN volatile long basket_limit;
SUTURE_EXTERN long unit_price(long item);

static long basket_total(long items)
{
    long total = 0;
    if (items > basket_limit)
        return -1;
    for (long i = 0; i < items; i++)
        total += unit_price(i);
    return total;
}

/* What may fail comes first, while nothing has happened: all threads run old code. */
static int remember(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    long *before = suture_shadow_alloc(0, state->id, sizeof *before, 0, 0);
    if (before == 0)
        return -ENOMEM;
    *before = basket_limit;
    return 0;
}

/* All threads run new code. Called again when a disable is turned round, so it must bear that. */
static void raise_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch, (void)state;
    basket_limit = 1000;
}

/* All threads still run new code. The shadow variable is freed with the state, after this. */
static void lower_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    long *before = suture_shadow_get(0, state->id);
    basket_limit = *before;
}

SUTURE_PATCH("basket",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC("basket_total", basket_total)),
    SUTURE_STATE(BASKET_LIMIT, SUTURE_IS_SHADOW, remember, raise_it, lower_it, 0, 0));
