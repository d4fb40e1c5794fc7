/* Every macro of suture.h once; main.c looks at the tables that come of it. */
#include <stdio.h>
#include <suture.h>

SUTURE_EXTERN int counter;
SUTURE_EXTERN_BEGIN
int helper(int n);
SUTURE_EXTERN_END

SUTURE_OLD(long, old_price, (long item));
SUTURE_OLD(int, old_second, (int n));
SUTURE_OLD(int, old_nameless, (int n));
SUTURE_POINTER(int, hits);
SUTURE_FUNCTION(int, hidden_function, (int n));

static long new_price(long item)
{
    ++*hits;
    return old_price(item) + helper(counter) + hidden_function(1);
}

static int new_second(int n)
{
    return old_second(n) + 1;
}

static int new_nameless(int n)
{
    return old_nameless(n) + 2;
}

SUTURE_PRESERVE static int preserving(int n)
{
    return n + 2;
}

static int pre_patch(struct suture_patch *patch, struct suture_state *state)
{
    return printf("%s %d\n", patch->name, (int)state->id) < 0;
}

static void post_patch(struct suture_patch *patch, struct suture_state *state)
{
    (void)patch;
    (void)state;
}

static void destroy(void *object, void *data)
{
    (void)object;
    (void)data;
}

SUTURE_PATCH("every-macro",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC_OLD("price", new_price, old_price),
        SUTURE_FUNC("preserving", preserving)),
    SUTURE_OBJECT_ID("libone.so.1", "00ff",
        SUTURE_FUNC_AT("first", 2, preserving),
        SUTURE_FUNC_AT_OLD("second", 3, new_second, old_second),
        SUTURE_FUNC_OFFSET(0x15b20, "4154498d", preserving),
        SUTURE_FUNC_OFFSET_OLD(0x15b40, "4154498d", new_nameless, old_nameless)),
    SUTURE_SYMBOL(hits, "libone.so.1", "hits", 4),
    SUTURE_OFFSET(hidden_function, SUTURE_MAIN, 0x1234, "f30f1efa"),
    SUTURE_STATE(10, SUTURE_IS_SHADOW | SUTURE_BLOCK_DISABLE, pre_patch, post_patch, 0, 0, destroy),
    SUTURE_STATE(11, 0, 0, 0, 0, post_patch, 0),
    SUTURE_REPLACE_ALL,
    SUTURE_WITH_LOADER);
