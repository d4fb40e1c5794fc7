/*
 * Purpose: a fix that is no function: raises the number of files a process may have open to what it
 *          is allowed, for as long as the patch is in. Shows a state with callbacks: one that may
 *          refuse, one that acts when the patch is in, one that undoes it before the patch goes.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/state-limit.c -o state-limit.so
 *          suture apply state-limit.so --pid 4711
 *          suture get raise-limit --pid 4711        # what it holds, and how its callbacks ended
 *          suture disable raise-limit --pid 4711
 */
#include <errno.h>
#include <sys/resource.h>
#include <suture.h>

/* The number by which other patches know the side effect: one that takes this patch's place and has
 * it, too, keeps the limit raised; one that lacks it has the callbacks below undo it. */
#define RAISED_LIMIT 4711

/* What was before lies in a shadow variable, where whoever takes over finds it. */
static struct rlimit *before(struct suture_state *state)
{
    return suture_shadow_get(0, state->id);
}

/* No thread can run new code yet; whatever is not 0 refuses the patch, with this errno. */
static int can_be_raised(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    struct rlimit *limit = suture_shadow_alloc(0, state->id, sizeof *limit, 0, 0);
    if (limit == 0)
        return -EEXIST;
    if (getrlimit(RLIMIT_NOFILE, limit) != 0)
        return -errno;
    return limit->rlim_cur < limit->rlim_max ? 0 : -EPERM;
}

/* Every thread runs new code. Also called when a disable was turned round. */
static void raise_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    struct rlimit raised = *before(state);
    raised.rlim_cur = raised.rlim_max;
    setrlimit(RLIMIT_NOFILE, &raised);
}

/* Every thread still runs new code. Undone by the callback above when it is turned round. */
static void lower_it(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    setrlimit(RLIMIT_NOFILE, before(state));
}

SUTURE_PATCH("raise-limit",
    SUTURE_STATE(RAISED_LIMIT, SUTURE_IS_SHADOW, can_be_raised, raise_it, lower_it, 0, 0));
