/*
 * One thread that never sleeps and remembers for how long it was once not running; all others wait
 * in a semaphore, or with a second argument, busy, spin as well. Usage: spinner THREADS [busy], with a shared page as standard input (see struct page).
 *
 * The spinning thread is the main thread, so that THREADS = 1 is a single-threaded program.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <x86intrin.h>

/* Written by the harness: epoch. Everything else is written here. */
struct page {
    volatile uint64_t epoch;          /* a change ends one measurement and begins the next */
    volatile uint64_t seen;           /* the epoch being measured */
    volatile uint64_t longest;        /* longest gap of the epoch that ended, in ticks */
    volatile uint64_t value;          /* what the function to be patched answers */
    volatile uint64_t ticks_per_ms;
};

extern long subject_0(long);

static sem_t never, started;

static void *wait_for_ever(void *unused)
{
    sem_post(&started);
    for (;;)
        sem_wait(&never);
    return unused;
}

static void *spin(void *unused)
{
    long value = 0;
    sem_post(&started);
    for (;;)
        value = subject_0(value);
    return unused;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t calibrate(void)
{
    uint64_t ns = now_ns(), ticks = __rdtsc(), later;
    while ((later = now_ns()) < ns + 5000000)
        ;
    return (__rdtsc() - ticks) * 1000000 / (later - ns);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    struct page *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, 0);
    pthread_attr_t small;
    uint64_t last, longest = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (page == MAP_FAILED)
        return 1;
    sem_init(&never, 0, 0);
    sem_init(&started, 0, 0);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 * 1024);
    for (int i = 1; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, argc > 2 ? spin : wait_for_ever, NULL))
            return 1;
    }
    for (int i = 1; i < threads; i++)
        while (sem_wait(&started))
            ;
    /* What the scheduler makes of two busy processes is not what is measured here. Without the right
     * to it the gaps only get noisier. */
    (void)setpriority(PRIO_PROCESS, 0, -20);
    page->ticks_per_ms = calibrate();
    page->value = subject_0(0);
    puts("ready");
    fflush(stdout);

    last = __rdtsc();
    for (;;) {
        uint64_t value = subject_0(0), epoch = page->epoch, now = __rdtsc();

        if (now - last > longest)
            longest = now - last;
        last = now;
        if (value != page->value)
            page->value = value;
        if (epoch != page->seen) {
            page->longest = longest;
            longest = 0;
            page->seen = epoch;
            last = __rdtsc();
        }
    }
}
