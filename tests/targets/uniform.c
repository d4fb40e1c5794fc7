/* uniform.c - threads that would notice if one of them mixed old and new code.
 *
 * outer() calls pair() twice, pair() calls f() and g(). Each function says which version it is (1 old,
 * 2 patched), so a run of outer() is uniform only if all seven answers agree. In between threads spin,
 * give up the processor and sleep, so that they are met everywhere.
 *
 *     report      ->  report runs N old A new B mixed M least L changes C births T
 *                     L and C: the fewest and most changes of version that one of the threads that loop saw;
 *                     T: threads created
 *
 * Usage: uniform [THREADS [CHURN]]    THREADS loop for ever; CHURN = 1: another thread creates short-lived
 *                                     ones all the time, which run outer() a few times and exit */
#include "line.h"
#include <pthread.h>
#include <sched.h>
#include <time.h>

#define PATCHABLE __attribute__((noinline, noclone, noipa))

enum { MOST = 256 };

static long runs, olds, news, mixed, births, threads;
static long changes[MOST];

static inline unsigned next(unsigned *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

/* Some time, spent in one of several ways. */
void linger(unsigned *seed)
{
    unsigned way = next(seed) % 64;
    if (way == 0) {
        struct timespec nap = {0, next(seed) % 50000};
        nanosleep(&nap, 0);
    } else if (way == 1) {
        sched_yield();
    } else {
        for (volatile unsigned i = next(seed) % 200; i > 0; i--)
            ;
    }
}

PATCHABLE long f(unsigned *seed)
{
    linger(seed);
    return 1;
}

PATCHABLE long g(unsigned *seed)
{
    linger(seed);
    return 1;
}

PATCHABLE long pair(unsigned *seed)
{
    long first = f(seed);
    linger(seed);
    return 100 + 10 * first + g(seed);
}

PATCHABLE long outer(unsigned *seed)
{
    long first = pair(seed);
    linger(seed);
    return 1000000 + 1000 * first + pair(seed);
}

/* One run: its version, 0 if it was mixed. */
static long run(unsigned *seed)
{
    long got = outer(seed);
    long version = got == 1111111 ? 1 : got == 2222222 ? 2 : 0;
    __atomic_fetch_add(version == 1 ? &olds : version == 2 ? &news : &mixed, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(&runs, 1, __ATOMIC_RELAXED);
    return version;
}

static void *loop(void *start)
{
    unsigned seed = (unsigned)(size_t)start * 2654435761u | 1;
    long last = 0, *seen = &changes[(size_t)start - 1];
    for (;;) {
        long version = run(&seed);
        if (last != 0 && version != last)
            __atomic_fetch_add(seen, 1, __ATOMIC_RELAXED);
        last = version;
    }
    return 0;
}

static void *short_life(void *start)
{
    unsigned seed = (unsigned)(size_t)start * 2654435761u | 1;
    for (int i = 0; i < 3; i++)
        run(&seed);
    return 0;
}

static void *churn(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_t threads[8];
        int made = 0;
        for (; made < 8; made++)
            if (pthread_create(&threads[made], 0, short_life, (void *)(births + made + 1)))
                break;
        __atomic_fetch_add(&births, made, __ATOMIC_RELAXED);
        while (made > 0)
            pthread_join(threads[--made], 0);
    }
    return 0;
}

static void report(void)
{
    long least = threads ? changes[0] : 0, most = 0;
    for (long i = 0; i < threads; i++) {
        long seen = __atomic_load_n(&changes[i], __ATOMIC_RELAXED);
        least = seen < least ? seen : least;
        most = seen > most ? seen : most;
    }
    answer("report runs %ld old %ld new %ld mixed %ld least %ld changes %ld births %ld", runs, olds, news, mixed, least,
           most, births);
}

int main(int argc, char **argv)
{
    char line[128];
    pthread_t thread;
    threads = argc > 1 ? atol(argv[1]) : 4;
    if (threads > MOST)
        return 2;
    for (long i = 0; i < threads; i++)
        if (pthread_create(&thread, 0, loop, (void *)(i + 1)))
            return 1;
    if (argc > 2 && atol(argv[2]) && pthread_create(&thread, 0, churn, 0))
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "report"))
            report();
        else
            answer_common(line);
    }
    return 0;
}
