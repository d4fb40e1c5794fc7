/* waits.c - the only thread waits once, in one kind of call, and tells how that ended.
 *
 *     wait KIND MS    ->  waiting          the wait begins right after
 *                     ->  KIND result R errno E took T     T in microseconds
 *
 * Kinds with a time-out of MS: nanosleep, clock_nanosleep (absolute), poll, select, epoll_wait, futex,
 * futex_absolute, sem_timedwait, recv and accept (SO_RCVTIMEO), send and connect (SO_SNDTIMEO), sigtimedwait,
 * semtimedop, epoll_pwait2, within (recv, called by the function held). Kinds that wait for what a child sends
 * when it gets a line: msgrcv, read; recv_sent and recv_signal, with a time-out of MS as well.
 *
 * Usage: waits */
#include "line.h"
#include <limits.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
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
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static int ends[2], sockets[2], listener, epoll_fd, queue, semaphores;
static struct sockaddr_in full;

static struct timespec span(long millis)
{
    struct timespec time = {millis / 1000, millis % 1000 * 1000000};
    return time;
}

static struct timespec until(clockid_t clock, long millis)
{
    struct timespec now;
    clock_gettime(clock, &now);
    now.tv_sec += millis / 1000;
    now.tv_nsec += millis % 1000 * 1000000;
    if (now.tv_nsec >= 1000000000) {
        now.tv_nsec -= 1000000000;
        ++now.tv_sec;
    }
    return now;
}

/* A child that answers the next line of input with what the kind waits for. */
static pid_t sender(void (*send)(void))
{
    pid_t child = fork();
    if (child == 0) {
        char line[16];
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (read_line(line, sizeof line))
            send();
        _exit(0);
    }
    return child;
}

static void send_message(void)
{
    struct { long type; } message = {1};
    msgsnd(queue, &message, 0, 0);
}

static void send_byte(void)
{
    if (write(ends[1], "x", 1) != 1)
        _exit(1);
}

static void send_to_socket(void)
{
    if (write(sockets[1], "x", 1) != 1)
        _exit(1);
}

static void send_signal(void)
{
    kill(getppid(), SIGUSR2);
}

static void nothing(int signal)
{
    (void)signal;
}

/* Sets the time-out of a socket. */
static int timed(int socket, int option, long millis)
{
    struct timeval limit = {millis / 1000, millis % 1000 * 1000};
    if (setsockopt(socket, SOL_SOCKET, option, &limit, sizeof limit))
        _exit(8);
    return socket;
}

/* A listener that takes no more connections: their first packet is dropped. */
static int full_listener(struct sockaddr_in *at)
{
    socklen_t length = sizeof *at;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(at, 0, sizeof *at);
    at->sin_family = AF_INET;
    at->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)at, sizeof *at) || listen(listener, 0) ||
        getsockname(listener, (struct sockaddr *)at, &length) ||
        connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)at, sizeof *at))
        _exit(8);
    return listener;
}

static long begin(const char *kind, long millis);

/* Stays in a call that waits. */
__attribute__((noinline, noclone, noipa)) long held(long millis)
{
    volatile long result = begin("recv", millis);
    return result;
}

static long begin(const char *kind, long millis)
{
    struct timespec time = span(millis);
    struct pollfd input = {ends[0], POLLIN, 0};
    struct epoll_event event;
    struct sembuf down = {0, -1, 0};
    struct { long type; } message;
    static unsigned word;
    sigset_t set;
    char c;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    if (!strcmp(kind, "nanosleep"))
        return nanosleep(&time, 0);
    if (!strcmp(kind, "clock_nanosleep")) {
        time = until(CLOCK_MONOTONIC, millis);
        errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, 0);
        return errno ? -1 : 0;
    }
    if (!strcmp(kind, "poll"))
        return poll(&input, 1, (int)millis);
    if (!strcmp(kind, "select")) {
        struct timeval limit = {millis / 1000, millis % 1000 * 1000};
        fd_set inputs;
        FD_ZERO(&inputs);
        FD_SET(ends[0], &inputs);
        return select(ends[0] + 1, &inputs, 0, 0, &limit);
    }
    if (!strcmp(kind, "epoll_wait"))
        return epoll_wait(epoll_fd, &event, 1, (int)millis);
    if (!strcmp(kind, "epoll_pwait2"))
        return epoll_pwait2(epoll_fd, &event, 1, &time, 0);
    if (!strcmp(kind, "futex"))
        return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, 0, 0);
    if (!strcmp(kind, "futex_absolute")) {
        time = until(CLOCK_MONOTONIC, millis);
        return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, 0, &time, 0, FUTEX_BITSET_MATCH_ANY);
    }
    if (!strcmp(kind, "sem_timedwait")) {
        static sem_t never;
        sem_init(&never, 0, 0);
        time = until(CLOCK_REALTIME, millis);
        return sem_timedwait(&never, &time);
    }
    if (!strncmp(kind, "recv", 4))
        return recv(timed(sockets[0], SO_RCVTIMEO, millis), &c, 1, 0);
    if (!strcmp(kind, "within"))
        return held(millis);
    if (!strcmp(kind, "send")) {
        while (send(sockets[0], kind, sizeof kind, MSG_DONTWAIT) > 0)
            ;
        return send(timed(sockets[0], SO_SNDTIMEO, millis), &c, 1, 0);
    }
    if (!strcmp(kind, "accept"))
        return accept(timed(listener, SO_RCVTIMEO, millis), 0, 0);
    if (!strcmp(kind, "connect")) {
        int one = timed(socket(AF_INET, SOCK_STREAM, 0), SO_SNDTIMEO, millis);
        return connect(one, (struct sockaddr *)&full, sizeof full);
    }
    if (!strcmp(kind, "sigtimedwait"))
        return sigtimedwait(&set, 0, &time);
    if (!strcmp(kind, "semtimedop"))
        return semtimedop(semaphores, &down, 1, &time);
    if (!strcmp(kind, "msgrcv"))
        return msgrcv(queue, &message, 0, 0, 0);
    if (!strcmp(kind, "read"))
        return read(ends[0], &c, 1);
    _exit(9);
}

static void wait_once(const char *kind, long millis)
{
    struct timespec start, end;
    pid_t child = 0;
    if (!strcmp(kind, "connect"))
        full_listener(&full);
    if (!strcmp(kind, "recv_sent"))
        child = sender(send_to_socket);
    if (!strcmp(kind, "recv_signal"))
        child = sender(send_signal);
    if (!strcmp(kind, "msgrcv"))
        child = sender(send_message);
    if (!strcmp(kind, "read"))
        child = sender(send_byte);
    answer("waiting");
    clock_gettime(CLOCK_MONOTONIC, &start);
    errno = 0;
    long result = begin(kind, millis);
    int error = result < 0 ? errno : 0;
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (child)
        waitpid(child, 0, 0);
    answer("%s result %ld errno %d took %ld", kind, result, error,
           (end.tv_sec - start.tv_sec) * 1000000 + (end.tv_nsec - start.tv_nsec) / 1000);
}

int main(void)
{
    char line[128], kind[32];
    long millis;
    struct epoll_event input = {EPOLLIN, {0}};
    struct sigaction handler = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigset_t set;
    /* Queues and semaphores of its own go with it, however it ends. */
    if (unshare(CLONE_NEWIPC) || pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || (epoll_fd = epoll_create1(0)) < 0 ||
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, ends[0], &input) ||
        (listener = socket(AF_INET, SOCK_STREAM, 0)) < 0 || listen(listener, 1) ||
        sigaction(SIGUSR2, &handler, 0) || (queue = msgget(IPC_PRIVATE, 0600)) < 0 || (semaphores = semget(IPC_PRIVATE, 1, 0600)) < 0)
        return 1;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "wait %31s %ld", kind, &millis) == 2)
            wait_once(kind, millis);
        else
            answer_common(line);
    }
    return 0;
}
