/* spin.c - threads that never block and hardly ever enter the kernel.
 *
 * With N > 0 threads the commands are read by the main thread, which blocks. With 0 there is only
 * the main thread; it spins too and looks for input, without waiting, every 2^20 rounds.
 *
 *     turns       ->  turns T old O new W     rounds so far, and what value(1) returned in them:
 *                                             2 (old), 101 (new, as the tests' patch has it);
 *                                             anything else ends the program with status 3
 *
 * Usage: spin [THREADS] */
#include "line.h"
#include <poll.h>
#include <pthread.h>

static long turns, olds, news;

static void spin(long count)
{
    for (long i = 0; i < count; ++i) {
        long got = value(1);
        if (got == 2)
            __atomic_fetch_add(&olds, 1, __ATOMIC_RELAXED);
        else if (got == 101)
            __atomic_fetch_add(&news, 1, __ATOMIC_RELAXED);
        else
            _exit(3);
        __atomic_fetch_add(&turns, 1, __ATOMIC_RELAXED);
    }
}

static void *spinner(void *unused)
{
    (void)unused;
    for (;;)
        spin(1 << 20);
    return 0;
}

static void command(const char *line)
{
    if (!strcmp(line, "turns"))
        answer("turns %ld old %ld new %ld", __atomic_load_n(&turns, __ATOMIC_RELAXED),
               __atomic_load_n(&olds, __ATOMIC_RELAXED), __atomic_load_n(&news, __ATOMIC_RELAXED));
    else
        answer_common(line);
}

/* Spins until there is input. */
static void spin_until_input(void)
{
    struct pollfd input = {0, POLLIN, 0};
    do
        spin(1 << 20);
    while (poll(&input, 1, 0) == 0);
}

int main(int argc, char **argv)
{
    char line[128];
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    for (int i = 0; i < threads; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, spinner, 0) != 0)
            return 1;
    }
    answer("ready");
    for (;;) {
        if (!threads)
            spin_until_input();
        if (!read_line(line, sizeof line))
            return 0;
        command(line);
    }
}
