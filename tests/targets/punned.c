/* punned.c - three functions whose first bytes, taken as a displacement, lead to free addresses below the
 * program, wherever it lies: class J can always be had, and all others too.
 *
 *     call N      ->  call N = R        value(N)
 *     all N       ->  all A B C         alpha(N), beta(N), third(N): N + 10, N + 20, N + 30
 *
 * Each is `lea constant(%rdi),%rax; ret`. Bytes 1 to 4 of that are 8d 87 and the low half of the constant,
 * which puts the page 0.5 to 1.75 GiB below: no heap grows there.
 *
 * Usage: punned */
#include "line.h"

#define FUNCTION(name, constant)                                                                   \
    __attribute__((noinline, noclone, noipa, aligned(32))) long name(long n)                       \
    {                                                                                              \
        return n + constant;                                                                       \
    }
#define ALPHA 0x19101
#define BETA 0x2a202
#define GAMMA 0x3b303

FUNCTION(alpha, ALPHA)
FUNCTION(beta, BETA)
FUNCTION(third, GAMMA)

/* What a function answers: the constant is no news, unless it was replaced. */
static long plain(long n, long got, long constant, long instead)
{
    return got == n + constant ? n + instead : got;
}

int main(void)
{
    char line[128];
    long n;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "all %ld", &n) == 1)
            answer("all %ld %ld %ld", plain(n, alpha(n), ALPHA, 10), plain(n, beta(n), BETA, 20),
                   plain(n, third(n), GAMMA, 30));
        else
            answer_common(line);
    }
    return 0;
}
