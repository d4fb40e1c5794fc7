/* keeps.c - a caller that keeps a value in a register across a call, because it knows that the function
 * it calls does not touch that register (gcc's -fipa-ra, part of -O2).
 *
 *     call N      ->  call N = R        known(N) + 3 * N; known(N) is N + 1
 *
 * Usage: keeps */
#include "line.h"

static __attribute__((noinline, noclone, aligned(32))) long known(long n)
{
    return n + 1;
}

static __attribute__((noinline, noclone)) long keeping(long n)
{
    long kept = 3 * n;
    return known(n) + kept;
}

int main(void)
{
    char line[128];
    long n;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "call %ld", &n) == 1)
            answer("call %ld = %ld", n, keeping(n));
        else
            answer_common(line);
    }
    return 0;
}
