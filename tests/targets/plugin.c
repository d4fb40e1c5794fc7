/* plugin.c - a library for plugins.c. */
#define PRIVATE __attribute__((used, noinline, noclone, noipa)) static

static long at_birth;
/* What patches reach into. */
__attribute__((used)) static long hits;
__attribute__((used)) static __thread long per_thread = 3;
long exported = 5;

PRIVATE long twice(long n)
{
    return n + n;
}

__attribute__((noinline, noclone, noipa)) long helper(long n)
{
    return n + 3;
}

static void *chosen(void)
{
    return (void *)twice;
}
long indirect(long n) __attribute__((ifunc("chosen")));

__attribute__((noinline, noclone, noipa)) long answer(long n)
{
    return n + 1;
}

__attribute__((constructor)) static void born(void)
{
    at_birth = answer(1);
}

long birth(long unused)
{
    (void)unused;
    return at_birth;
}
