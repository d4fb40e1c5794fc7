/* timers.c - a program that is interrupted all the time, and notices each signal that is lost.
 *
 *     setitimer       SIGALRM for the process, every MICROS
 *     timer_create    a real-time signal for one thread, every MICROS; expirations that were not delivered one by
 *                     one are counted as overruns
 *     sigqueue        real-time signals with numbers, queued for one thread every MICROS or so
 *
 *     signals     ->  signals HANDLED due D wrong W     handlers that ran, and overruns; what is due by the clock
 *                                                       (or was queued); numbers out of order
 *
 * Usage: timers KIND MICROS */
#include "timed.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

static atomic_long handled, queued, wrong, rounds;
static timer_t timer;
static pthread_t worker;
static long micros;
static int kind;
static struct timespec began;

static void on_timer(int signal, siginfo_t *info, void *context)
{
    int saved = errno;
    (void)signal, (void)context;
    /* Of this signal; timer_getoverrun gives that of the last one, which another thread may have taken. */
    atomic_fetch_add(&handled, 1 + (kind == 't' ? info->si_overrun : 0));
    errno = saved;
}

static void on_number(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    if (info->si_value.sival_int != (int)atomic_fetch_add(&handled, 1))
        atomic_fetch_add(&wrong, 1);
}

/* Sleeps in several ways, and computes in between. */
static void *work(void *unused)
{
    (void)unused;
    for (;;) {
        struct timespec while_ = {0, 300000};
        struct pollfd *none = 0;
        nanosleep(&while_, 0);
        syscall(SYS_poll, none, 0, 1);
        for (long i = 0; i < 20000; ++i) {
            long now = value(i);
            if (now != i + 1 && now != i + 100)
                _exit(3);
        }
        atomic_fetch_add(&rounds, 1);
    }
    return 0;
}

static void *queue_numbers(void *unused)
{
    sigset_t all;
    (void)unused;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    for (;;) {
        struct timespec pause = {0, micros * 1000};
        union sigval number = {.sival_int = (int)atomic_load(&queued)};
        if (pthread_sigqueue(worker, SIGRTMIN, number) == 0)
            atomic_fetch_add(&queued, 1);
        nanosleep(&pause, 0);
    }
    return 0;
}

static int catch(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART};
    return sigaction(signal, &action, 0);
}

static int start(void)
{
    pthread_t other;
    if (pthread_create(&worker, 0, work, 0) != 0)
        return 1;
    clock_gettime(CLOCK_MONOTONIC, &began);
    if (kind == 's') {
        struct itimerval every = {{0, micros}, {0, micros}};
        return catch(SIGALRM, on_timer) || setitimer(ITIMER_REAL, &every, 0);
    }
    if (kind == 't') {
        struct itimerspec every = {{0, micros * 1000}, {0, micros * 1000}};
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
        return catch(SIGRTMIN, on_timer) || timer_create(CLOCK_MONOTONIC, &event, &timer) ||
               timer_settime(timer, 0, &every, 0);
    }
    return catch(SIGRTMIN, on_number) || pthread_create(&other, 0, queue_numbers, 0) != 0;
}

static long due(void)
{
    struct timespec now;
    if (kind == 'q')
        return atomic_load(&queued);
    clock_gettime(CLOCK_MONOTONIC, &now);
    return ((now.tv_sec - began.tv_sec) * 1000000 + (now.tv_nsec - began.tv_nsec) / 1000) / micros;
}

int main(int argc, char **argv)
{
    char line[128];
    if (argc != 3)
        return 1;
    kind = !strcmp(argv[1], "sigqueue") ? 'q' : argv[1][0];
    micros = atol(argv[2]);
    if (start() != 0)
        return 1;
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "signals")) {
            long by_now = due();
            answer("signals %ld due %ld wrong %ld", atomic_load(&handled), by_now, atomic_load(&wrong));
        }
        else
            answer_common(line);
    }
    return 0;
}
