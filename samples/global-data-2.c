/*
 * Purpose: the next version of samples/global-data.c, which takes its place in one step and keeps what
 *          it did. Large baskets now get a rebate; the limit is a state that both versions have, so no
 *          callback runs and the limit never falls in between. From then on the callbacks here count:
 *          they find the limit of old in the shadow variable that the first version made.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/global-data-2.c -o global-data-2.so
 *          suture apply global-data-2.so --name warehouse       # with or without the first version
 *          suture disable basket-2 --name warehouse
 */
#include <errno.h>
#include <suture.h>

/* As in the first version: the number, and what the variable holds. */
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
    return items < 10 ? total : total * 9 / 10;
}

/* These two run only where the first version was not. */
static int remember(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    long *before = suture_shadow_alloc(0, state->id, sizeof *before, 0, 0);
    if (before == 0)
        return -ENOMEM;
    *before = basket_limit;
    return 0;
}

static void raise_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch, (void)state;
    basket_limit = 1000;
}

static void lower_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    long *before = suture_shadow_get(0, state->id);
    basket_limit = *before;
}

SUTURE_PATCH("basket-2",
    SUTURE_REPLACE_ALL,
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC("basket_total", basket_total)),
    SUTURE_STATE(BASKET_LIMIT, SUTURE_IS_SHADOW, remember, raise_it, lower_it, 0, 0));
