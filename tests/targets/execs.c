/* execs.c - a program that executes itself again and again, at the same addresses each time, and looks
 * whether anybody writes to its stack. It ends with its standard input: status 0, or 3 when a word of its
 * stack changed.
 *
 * Usage: execs PAUSE [THREADS]     microseconds from one exec to the next; threads that wait meanwhile */
#include "line.h"
#include <poll.h>
#include <pthread.h>
#include <sys/personality.h>
#include <time.h>

enum { WORDS = 4096 };

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

static void start_threads(int count)
{
    while (count-- > 0) {
        pthread_t thread;
        if (pthread_create(&thread, 0, wait_for_ever, 0) != 0)
            _exit(9);
    }
}

/* Waits in a frame of its own above a large part of the stack that it looks at afterwards. */
static __attribute__((noinline)) int ends_within(long micros)
{
    struct pollfd input = {0, POLLIN, 0};
    struct timespec limit = {micros / 1000000, micros % 1000000 * 1000};
    return ppoll(&input, 1, &limit, 0) != 0;
}

static __attribute__((noinline)) int watched(long micros)
{
    volatile unsigned long words[WORDS];
    for (int i = 0; i < WORDS; ++i)
        words[i] = 0x5a5a5a5a5a5a5a5aUL ^ (unsigned long)i;
    int ends = ends_within(micros);
    for (int i = 0; i < WORDS; ++i)
        if (words[i] != (0x5a5a5a5a5a5a5a5aUL ^ (unsigned long)i))
            _exit(3);
    return ends;
}

int main(int argc, char **argv)
{
    int first = personality(0xffffffff) == 0;
    if (first)
        personality(ADDR_NO_RANDOMIZE);
    else if (getenv("READY") == 0) {
        setenv("READY", "1", 1);
        answer("ready");
    }
    start_threads(argc > 2 ? atoi(argv[2]) : 0);
    if (!first && watched(argc > 1 ? atol(argv[1]) : 0))
        return 0;
    execv("/proc/self/exe", argv);
    return 9;
}
