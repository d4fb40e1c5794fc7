/* several-twin.c - the second function named `twin`, of several.c. */
static volatile long two = 2;

static __attribute__((noinline, noclone, noipa)) long twin(long n)
{
    return n + two;
}

long other_twin(long n)
{
    return twin(n);
}
