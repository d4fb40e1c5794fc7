/* mayflies.c - threads that live for about a millisecond, several at a time, all the time.
 *
 *     lived       ->  lived N          threads that have come and gone
 *
 * Usage: mayflies */
#include "timed.h"
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

static atomic_long lived;

static void *live(void *unused)
{
    struct timespec millisecond = {0, 1000000};
    (void)unused;
    nanosleep(&millisecond, 0);
    long got = value(1);
    if (got != 2 && got != 101)
        _exit(3);
    atomic_fetch_add(&lived, 1);
    return 0;
}

static void *breed(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_t four[4];
        for (int i = 0; i < 4; ++i)
            if (pthread_create(&four[i], 0, live, 0) != 0)
                _exit(4);
        for (int i = 0; i < 4; ++i)
            pthread_join(four[i], 0);
    }
    return 0;
}

int main(void)
{
    char line[128];
    pthread_t thread;
    if (pthread_create(&thread, 0, breed, 0) != 0)
        return 1;
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "lived"))
            answer("lived %ld", atomic_load(&lived));
        else
            answer_common(line);
    }
    return 0;
}
