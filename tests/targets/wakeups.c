/* wakeups.c - a thread sleeps in epoll_pwait, the only place where SIGUSR1 is open to it; another one sends that
 * signal again and again, and each time waits for epoll_pwait to have ended with EINTR. A wake-up that is lost
 * shows at once: the handler ran, and the thread still sleeps.
 *
 * With `plain` it sleeps in epoll_wait instead, with the signal open all the time: a signal that comes right before
 * the call is lost then, as programs of that kind know.
 *
 *     sent        ->  sent N lost L spurious S      signals so far; those after which the sleeper did not come
 *                                                   back; ends of its sleep without a signal
 *
 * Usage: wakeups [plain] */
#include "timed.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

static int plain;
static atomic_long sent, handled, seen, lost, spurious;

static void on_signal(int signal)
{
    (void)signal;
    atomic_fetch_add(&handled, 1);
}

static void *sleeper(void *unused)
{
    int epoll_fd = epoll_create1(0);
    struct epoll_event event;
    sigset_t open;
    long known = 0;
    (void)unused;
    pthread_sigmask(SIG_SETMASK, 0, &open);
    sigdelset(&open, SIGUSR1);
    if (plain)
        pthread_sigmask(SIG_SETMASK, &open, 0);
    for (;;) {
        int result = plain ? epoll_wait(epoll_fd, &event, 1, -1) : epoll_pwait(epoll_fd, &event, 1, -1, &open);
        if (result < 0 && errno == EINTR && atomic_load(&handled) > known) {
            known = atomic_load(&handled);
            atomic_fetch_add(&seen, 1);
        }
        else
            atomic_fetch_add(&spurious, 1);
    }
    return 0;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Never asleep, so that it is the sleeper that is borrowed. */
static void *sender(void *thread)
{
    unsigned random = 1;
    for (;;) {
        long before = atomic_load(&seen);
        double start = now(), pause;
        pthread_kill(*(pthread_t *)thread, SIGUSR1);
        atomic_fetch_add(&sent, 1);
        while (atomic_load(&seen) == before && now() - start < (plain ? 0.1 : 2))
            ;
        if (atomic_load(&seen) == before)
            atomic_fetch_add(&lost, 1);
        random = random * 1664525 + 1013904223;
        pause = (100 + random % 100) / 1e6;
        for (start = now(); now() - start < pause;)
            ;
    }
    return 0;
}

int main(int argc, char **argv)
{
    char line[128];
    pthread_t threads[2];
    sigset_t set;
    struct sigaction action = {.sa_handler = on_signal};
    plain = argc > 1 && !strcmp(argv[1], "plain");
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    sigaction(SIGUSR1, &action, 0);
    if (pthread_create(&threads[0], 0, sleeper, 0) != 0 || pthread_create(&threads[1], 0, sender, &threads[0]) != 0)
        return 1;
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "sent"))
            answer("sent %ld lost %ld spurious %ld", atomic_load(&sent), atomic_load(&lost), atomic_load(&spurious));
        else
            answer_common(line);
    }
    return 0;
}
