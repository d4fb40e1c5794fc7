/* A caller that keeps a value in a register its callee is known not to touch. */
#include <stdint.h>

static __attribute__((noinline, noclone, aligned(16))) uint64_t stress_step(uint64_t x)
{
    return x * 3 + 1;
}

uint64_t stress_guard(uint64_t x)
{
    uint64_t kept = (x ^ (x >> 7)) * 5;
    return stress_step(x) + kept;
}
