/* threads.c - many threads: some blocked in the kernel for good, some calling `value` all the time.
 *
 * The blocked ones take turns through twelve kinds of waiting (table `kinds` below). None is ever
 * woken: a wait that returns was cut short by somebody, and is counted.
 *
 *     early       ->  early N [KIND...]       waits that returned, and of which kinds
 *     calls       ->  calls N old O new W     calls of value(1) by the working threads; 2 is old,
 *                                             101 is new, anything else ends the program, status 3
 *     poll MS     ->  poll MS took T          the main thread waits in poll for that time
 *
 * Usage: threads [BLOCKED [WORKING]]     12 and 2 by default */
#include "line.h"
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>

static int pipe_ends[2], sockets[2], epoll_fd, listener;
static long calls, olds, news;
static const struct timespec day = {86400, 0};

static void wait_read(void)
{
    char c;
    if (read(pipe_ends[0], &c, 1) < 0)
        return;
}

static void wait_recv(void)
{
    char c;
    if (recv(sockets[0], &c, 1, 0) < 0)
        return;
}

static void wait_poll(void)
{
    struct pollfd input = {pipe_ends[0], POLLIN, 0};
    poll(&input, 1, -1);
}

static void wait_ppoll(void)
{
    struct pollfd input = {pipe_ends[0], POLLIN, 0};
    ppoll(&input, 1, &day, 0);
}

static void wait_select(void)
{
    fd_set inputs;
    FD_ZERO(&inputs);
    FD_SET(pipe_ends[0], &inputs);
    select(pipe_ends[0] + 1, &inputs, 0, 0, 0);
}

static void wait_epoll(void)
{
    struct epoll_event event;
    epoll_wait(epoll_fd, &event, 1, -1);
}

static void wait_nanosleep(void)
{
    nanosleep(&day, 0);
}

static void wait_clock(void)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += day.tv_sec;
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
}

static void wait_semaphore(void)
{
    sem_t never;
    sem_init(&never, 0, 0);
    sem_wait(&never);
}

static void wait_accept(void)
{
    accept(listener, 0, 0);
}

static void wait_sigwaitinfo(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigwaitinfo(&set, 0);
}

static void wait_pause(void)
{
    pause();
}

static struct {
    const char *name;
    void (*wait)(void);
    long early;
} kinds[] = {
    {"read", wait_read, 0},           {"recv", wait_recv, 0},
    {"poll", wait_poll, 0},           {"ppoll", wait_ppoll, 0},
    {"select", wait_select, 0},       {"epoll_wait", wait_epoll, 0},
    {"nanosleep", wait_nanosleep, 0}, {"clock_nanosleep", wait_clock, 0},
    {"sem_wait", wait_semaphore, 0},  {"accept", wait_accept, 0},
    {"sigwaitinfo", wait_sigwaitinfo, 0}, {"pause", wait_pause, 0},
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static void *block(void *index)
{
    for (;;) {
        kinds[(size_t)index].wait();
        __atomic_fetch_add(&kinds[(size_t)index].early, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

static void *work(void *unused)
{
    (void)unused;
    for (;;) {
        long got = value(1);
        if (got != 2 && got != 101)
            _exit(3);
        __atomic_fetch_add(got == 2 ? &olds : &news, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

static void start(void *(*run)(void *), size_t count)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, PTHREAD_STACK_MIN + 65536);
    for (size_t i = 0; i < count; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, &small, run, (void *)(i % KINDS)) != 0)
            exit(1);
    }
}

static void answer_early(void)
{
    char names[256] = "";
    long sum = 0;
    for (size_t i = 0; i < KINDS; ++i) {
        long early = __atomic_load_n(&kinds[i].early, __ATOMIC_RELAXED);
        sum += early;
        if (early)
            strcat(strcat(names, " "), kinds[i].name);
    }
    answer("early %ld%s", sum + interrupted, names);
}

static void answer_poll(int wanted)
{
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    int result = poll(0, 0, wanted);
    clock_gettime(CLOCK_MONOTONIC, &end);
    long took = (end.tv_sec - start.tv_sec) * 1000 + (end.tv_nsec - start.tv_nsec) / 1000000;
    if (result != 0)
        interrupted = interrupted + 1;
    answer("poll %d took %ld", wanted, took);
}

int main(int argc, char **argv)
{
    char line[128];
    int wanted;
    struct epoll_event nothing = {EPOLLIN, {0}};
    struct sockaddr any = {.sa_family = AF_UNIX}; /* the kernel chooses an abstract name */
    sigset_t usr1;
    if (pipe(pipe_ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || (epoll_fd = epoll_create1(0)) < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, pipe_ends[0], &nothing) ||
        (listener = socket(AF_UNIX, SOCK_STREAM, 0)) < 0 || bind(listener, &any, sizeof any.sa_family) ||
        listen(listener, 1))
        return 1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, 0);
    start(block, argc > 1 ? strtoul(argv[1], 0, 10) : KINDS);
    start(work, argc > 2 ? strtoul(argv[2], 0, 10) : 2);
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "early"))
            answer_early();
        else if (!strcmp(line, "calls"))
            answer("calls %ld old %ld new %ld", __atomic_load_n(&calls, __ATOMIC_RELAXED),
                   __atomic_load_n(&olds, __ATOMIC_RELAXED), __atomic_load_n(&news, __ATOMIC_RELAXED));
        else if (sscanf(line, "poll %d", &wanted) == 1)
            answer_poll(wanted);
        else
            answer_common(line);
    }
    return 0;
}
