/* plugin.c - a library for plugins.c. */
static long at_birth;

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
