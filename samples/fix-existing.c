/*
 * Purpose: a fix of code that has run already. Shelves of the warehouse are made with a feature they
 *          must not have; a new function only helps the ones that are made from now on. Those that are
 *          there are corrected by a callback, under the program's own lock, and given back what they
 *          had before the patch goes. Patches demo-target/targets/warehouse.c.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/fix-existing.c -o fix-existing.so
 *          suture apply fix-existing.so --name warehouse
 *          suture shadow --name warehouse                        # one line per shelf that was corrected
 *          suture disable no-overdraw --name warehouse
 */
#include <pthread.h>
#include <suture.h>

#define NO_OVERDRAW 0x6f646e

/* As the program's source has it. */
struct shelf {
    struct shelf *next;
    long id;
    volatile long stock;
    unsigned features;
};
enum { OVERDRAW = 1 };

SUTURE_EXTERN struct shelf *shelves;
SUTURE_EXTERN pthread_mutex_t shelves_lock;
SUTURE_OLD(unsigned, old_features, (long id));

static unsigned new_features(long id)
{
    return old_features(id) & ~(unsigned)OVERDRAW;
}

/* No shelf is made with the feature any more: all threads run the new function. That there is a shadow
 * variable says that the shelf had it. */
static void correct(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    pthread_mutex_lock(&shelves_lock);
    for (struct shelf *shelf = shelves; shelf; shelf = shelf->next)
        if ((shelf->features & OVERDRAW) && suture_shadow_get_or_alloc(shelf, state->id, 1, 0, 0))
            shelf->features &= ~(unsigned)OVERDRAW;
    pthread_mutex_unlock(&shelves_lock);
}

/* Only those; the ones that were made meanwhile never had it. */
static void give_back(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    pthread_mutex_lock(&shelves_lock);
    for (struct shelf *shelf = shelves; shelf; shelf = shelf->next)
        if (suture_shadow_get(shelf, state->id))
            shelf->features |= OVERDRAW;
    pthread_mutex_unlock(&shelves_lock);
}

/* A shelf that goes takes its variable with it, or the next one at its address would have it. */
SUTURE_OLD(void, old_shut, (struct shelf *shelf));

static void new_shut(struct shelf *shelf)
{
    suture_shadow_free(shelf, NO_OVERDRAW, 0);
    old_shut(shelf);
}

SUTURE_PATCH("no-overdraw",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC_OLD("shelf_features", new_features, old_features),
        SUTURE_FUNC_OLD("shelf_shut", new_shut, old_shut)),
    SUTURE_STATE(NO_OVERDRAW, SUTURE_IS_SHADOW, 0, correct, give_back, 0, 0));
