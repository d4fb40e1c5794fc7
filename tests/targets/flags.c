/* flags.c - a thread that computes with a flag set that would be the end of code that does not expect it.
 *
 *     stepping    the trap flag: a SIGTRAP after each instruction, which the program handles
 *     aligned     the alignment check: a SIGBUS at each word that is not aligned
 *     backwards   the direction flag
 *
 *     rounds      ->  rounds N wrong W traps T
 *
 * Usage: flags FLAG */
#include "timed.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

static atomic_long rounds, traps, wrong;

static void on_trap(int signal)
{
    (void)signal;
    atomic_fetch_add(&traps, 1);
}

/* Sums up with the flags set, in registers only, so that no other code runs with them. */
static long sum(unsigned long flags)
{
    long result;
    __asm__ volatile("pushfq\n"
                     "pop %%rdx\n"
                     "mov %%rdx, %%rcx\n"
                     "or %1, %%rcx\n"
                     "push %%rcx\n"
                     "popfq\n"
                     "xor %%eax, %%eax\n"
                     "mov $2000, %%ecx\n"
                     "1: add %%rcx, %%rax\n"
                     "dec %%ecx\n"
                     "jnz 1b\n"
                     "push %%rdx\n"
                     "popfq\n"
                     : "=&a"(result)
                     : "r"(flags)
                     : "rcx", "rdx", "cc", "memory");
    return result;
}

static void *compute(void *flags)
{
    for (;;) {
        if (sum((unsigned long)flags) != 2001000)
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&rounds, 1);
    }
    return 0;
}

int main(int argc, char **argv)
{
    char line[128];
    pthread_t thread;
    const char *flag = argc > 1 ? argv[1] : "";
    unsigned long flags = !strcmp(flag, "stepping") ? 0x100 : !strcmp(flag, "aligned") ? 0x40000 : 0x400;
    signal(SIGTRAP, on_trap);
    if (pthread_create(&thread, 0, compute, (void *)flags) != 0)
        return 1;
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "rounds"))
            answer("rounds %ld wrong %ld traps %ld", atomic_load(&rounds), atomic_load(&wrong), atomic_load(&traps));
        else
            answer_common(line);
    }
    return 0;
}
