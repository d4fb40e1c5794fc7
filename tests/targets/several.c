/* several.c - functions of several kinds, to be patched together or in vain. Link with
 * several-twin.c.
 *
 *     call N      ->  call N = R        value(N)
 *     all N       ->  all A B C         alpha(N), beta(N), gamma(N): N + 10, N + 20, N + 30
 *     twins N     ->  twins A B         the two functions named `twin`: N + 1, N + 2
 *     tiny        ->  tiny 1            calls tiny(), one byte with no room behind it
 *     pass N      ->  pass R            outer_of(N): twice alpha(N), through a caller of its own
 *
 * A second thread waits for ever; `threads` in a snapshot is 2.
 *
 * Usage: several */
#include "line.h"
#include <pthread.h>

#define PATCHABLE __attribute__((noinline, noclone, noipa))

long other_twin(long n);
void tiny(void);
int behind_tiny(void);

static volatile long ten = 10;

PATCHABLE long alpha(long n)
{
    return n + ten;
}

PATCHABLE long beta(long n)
{
    return n + 2 * ten;
}

PATCHABLE long gamma_(long n) __asm__("gamma");
PATCHABLE long gamma_(long n)
{
    return n + 3 * ten;
}

PATCHABLE long outer_of(long n)
{
    return 2 * alpha(n);
}

PATCHABLE static long twin(long n)
{
    return n + ten / 10;
}

/* The next function starts in the second byte: no jump has room here. */
__asm__(".text\n.balign 16\n"
        ".globl tiny\n.type tiny, @function\n"
        "tiny: .cfi_startproc\n ret\n.cfi_endproc\n.size tiny, . - tiny\n"
        ".globl behind_tiny\n.type behind_tiny, @function\n"
        "behind_tiny: .cfi_startproc\n mov $1, %eax\n ret\n.cfi_endproc\n.size behind_tiny, . - behind_tiny\n");

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

int main(void)
{
    char line[128];
    long n;
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_ever, 0) != 0)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "all %ld", &n) == 1)
            answer("all %ld %ld %ld", alpha(n), beta(n), gamma_(n));
        else if (sscanf(line, "twins %ld", &n) == 1)
            answer("twins %ld %ld", twin(n), other_twin(n));
        else if (!strcmp(line, "tiny")) {
            tiny();
            answer("tiny %d", behind_tiny());
        }
        else if (sscanf(line, "pass %ld", &n) == 1)
            answer("pass %ld", outer_of(n));
        else
            answer_common(line);
    }
    return 0;
}
