/* sleepers.c - threads of which each sleeps in a call that a signal, or a clumsy stop, ends with EINTR: the
 * even ones in epoll_wait, the odd ones in sigwaitinfo.
 *
 *     early       ->  early N          sleeps that ended, which none ever should
 *
 * Usage: sleepers [THREADS] */
#include "timed.h"
#include <pthread.h>
#include <signal.h>

static long early;
static pthread_barrier_t set_up;

static void *sleeper(void *index)
{
    int epoll_fd = epoll_create1(0);
    struct epoll_event event;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_barrier_wait(&set_up);
    for (;;) {
        if ((size_t)index % 2)
            sigwaitinfo(&set, 0);
        else
            epoll_wait(epoll_fd, &event, 1, -1);
        __atomic_fetch_add(&early, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

int main(int argc, char **argv)
{
    char line[128];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    size_t threads = argc > 1 ? strtoul(argv[1], 0, 10) : 4;
    pthread_barrier_init(&set_up, 0, (unsigned)threads + 1);
    for (size_t i = 0; i < threads; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, sleeper, (void *)i) != 0)
            return 1;
    }
    pthread_barrier_wait(&set_up);
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "early"))
            answer("early %ld", __atomic_load_n(&early, __ATOMIC_RELAXED));
        else
            answer_common(line);
    }
    return 0;
}
