/* crowd.h - any number of threads that wait for ever, each in one of 14 ways that a signal or a clumsy stop
 * would end or begin anew. */
#ifndef CROWD_H
#define CROWD_H

#include "line.h"
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>

enum { WAYS = 14 };

static const char *const way_names[WAYS] = {"read",     "poll",      "ppoll",           "select", "epoll_wait",
                                            "recv",     "accept",    "clock_nanosleep", "futex",  "sem_wait",
                                            "sigwait",  "msgrcv",    "semop",           "pwait2"};

static int quiet_pipe[2], quiet_sockets[2], listener, quiet_epoll, quiet_queue, quiet_semaphore;
static sem_t quiet_sem;
static long *ended;

/* One wait that never ends. */
static void wait_in(int way)
{
    struct pollfd input = {quiet_pipe[0], POLLIN, 0};
    struct timespec hour = {3600, 0};
    struct sembuf down = {0, -1, 0};
    struct epoll_event event;
    struct { long type; } message;
    static unsigned word;
    fd_set inputs;
    sigset_t set;
    char c;
    switch (way) {
    case 0: (void)!read(quiet_pipe[0], &c, 1); return;
    case 1: poll(&input, 1, -1); return;
    case 2: ppoll(&input, 1, &hour, 0); return;
    case 3:
        FD_ZERO(&inputs);
        FD_SET(quiet_pipe[0], &inputs);
        select(quiet_pipe[0] + 1, &inputs, 0, 0, 0);
        return;
    case 4: epoll_wait(quiet_epoll, &event, 1, -1); return;
    case 5: recv(quiet_sockets[0], &c, 1, 0); return;
    case 6: accept(listener, 0, 0); return;
    case 7: clock_nanosleep(CLOCK_MONOTONIC, 0, &hour, 0); return;
    case 8: syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &hour, 0, 0); return;
    case 9: sem_wait(&quiet_sem); return;
    case 10:
        sigemptyset(&set);
        sigaddset(&set, SIGUSR2);
        sigwaitinfo(&set, 0);
        return;
    case 11: msgrcv(quiet_queue, &message, 0, 0, 0); return;
    case 12: semop(quiet_semaphore, &down, 1); return;
    case 13: epoll_pwait2(quiet_epoll, &event, 1, &hour, 0); return;
    }
    abort();
}

static void *stand(void *way)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    prctl(PR_SET_NAME, way_names[(size_t)way]);
    for (;;) {
        wait_in((int)(size_t)way);
        __atomic_fetch_add(ended, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

static void prepare_waits(void)
{
    struct epoll_event nothing = {EPOLLIN, {0}};
    struct sockaddr_un nameless = {AF_UNIX, ""};
    /* Queues and semaphores of its own go with it, however it ends. */
    if (unshare(CLONE_NEWIPC) || pipe(quiet_pipe) || socketpair(AF_UNIX, SOCK_STREAM, 0, quiet_sockets) ||
        (listener = socket(AF_UNIX, SOCK_STREAM, 0)) < 0 ||
        bind(listener, (struct sockaddr *)&nameless, sizeof(sa_family_t)) || listen(listener, 1) ||
        (quiet_epoll = epoll_create1(0)) < 0 || epoll_ctl(quiet_epoll, EPOLL_CTL_ADD, quiet_pipe[0], &nothing) ||
        (quiet_queue = msgget(IPC_PRIVATE, 0600)) < 0 || (quiet_semaphore = semget(IPC_PRIVATE, 1, 0600)) < 0 ||
        sem_init(&quiet_sem, 0, 0))
        exit(12);
}

/* Makes the threads; waits that end are counted in `count`. */
static void gather(long threads, long *count)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 128 << 10);
    if (!ended)
        prepare_waits();
    ended = count;
    for (long i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &small, stand, (void *)(size_t)(i % WAYS)))
            exit(13);
    }
}

#endif
