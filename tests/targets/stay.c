/* stay.c - calls `value` once and stays inside what it calls, until told otherwise: for a look at
 * its stack.
 *
 *     enter N     ->  inside            value(N) was called and waits in hold()
 *     leave       ->  call N = R        it returned
 *
 * Usage: stay */
#include "line.h"

static char line[128];

__attribute__((noinline, noclone, noipa)) long hold(long n)
{
    answer("inside");
    if (!read_line(line, sizeof line))
        exit(0);
    return n;
}

__attribute__((noinline, noclone, noipa)) long outermost(long n)
{
    long result = value(n);
    answer("call %ld = %ld", n, result);
    return result;
}

int main(void)
{
    long n;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "enter %ld", &n) == 1)
            outermost(n);
        else
            answer_common(line);
    }
    return 0;
}
