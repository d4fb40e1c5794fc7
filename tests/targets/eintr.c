/* eintr.c - a library to be preloaded that counts calls which can be interrupted, and those that were: words 0
 * and 1 of the file EINTR_COUNTS, which all processes of the program share. Behind them, for each of the last ones
 * that were: process id, and the name of the call, cut to eight characters. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LOGGED = 100 };

static _Atomic unsigned long none[2 + 2 * LOGGED], *counts = none;

__attribute__((constructor)) static void map_counts(void)
{
    const char *path = getenv("EINTR_COUNTS");
    int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page != MAP_FAILED)
        counts = page;
    close(file);
}

static long count(const char *name, long result, int interrupted)
{
    int saved = errno;
    atomic_fetch_add_explicit(&counts[0], 1, memory_order_relaxed);
    if (interrupted) {
        unsigned long at = 2 + 2 * (atomic_fetch_add_explicit(&counts[1], 1, memory_order_relaxed) % LOGGED), word;
        strncpy((char *)&word, name, sizeof word);
        counts[at] = (unsigned long)getpid();
        counts[at + 1] = word;
    }
    errno = saved;
    return result;
}

#define WRAP(type, name, parameters, arguments)                                     \
    type name parameters                                                            \
    {                                                                               \
        static type(*volatile real) parameters;                                     \
        if (!real)                                                                  \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                     \
        type result = real arguments;                                               \
        return (type)count(#name, (long)result, result == (type)-1 && errno == EINTR);     \
    }

WRAP(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size))
WRAP(ssize_t, write, (int fd, const void *from, size_t size), (fd, from, size))
WRAP(ssize_t, readv, (int fd, const struct iovec *to, int number), (fd, to, number))
WRAP(ssize_t, writev, (int fd, const struct iovec *from, int number), (fd, from, number))
WRAP(ssize_t, recv, (int fd, void *to, size_t size, int flags), (fd, to, size, flags))
WRAP(ssize_t, recvfrom, (int fd, void *to, size_t size, int flags, struct sockaddr *who, socklen_t *length),
     (fd, to, size, flags, who, length))
WRAP(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), (fd, message, flags))
WRAP(ssize_t, send, (int fd, const void *from, size_t size, int flags), (fd, from, size, flags))
WRAP(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
WRAP(int, accept, (int fd, struct sockaddr *who, socklen_t *length), (fd, who, length))
WRAP(int, accept4, (int fd, struct sockaddr *who, socklen_t *length, int flags), (fd, who, length, flags))
WRAP(int, connect, (int fd, const struct sockaddr *who, socklen_t length), (fd, who, length))
WRAP(int, poll, (struct pollfd *fds, nfds_t number, int millis), (fds, number, millis))
WRAP(int, ppoll, (struct pollfd *fds, nfds_t number, const struct timespec *time, const sigset_t *mask),
     (fds, number, time, mask))
WRAP(int, select, (int number, fd_set *in, fd_set *out, fd_set *other, struct timeval *time),
     (number, in, out, other, time))
WRAP(int, pselect, (int number, fd_set *in, fd_set *out, fd_set *other, const struct timespec *time, const sigset_t *mask),
     (number, in, out, other, time, mask))
WRAP(int, epoll_wait, (int fd, struct epoll_event *events, int number, int millis), (fd, events, number, millis))
WRAP(int, epoll_pwait, (int fd, struct epoll_event *events, int number, int millis, const sigset_t *mask),
     (fd, events, number, millis, mask))
WRAP(int, nanosleep, (const struct timespec *time, struct timespec *rest), (time, rest))
WRAP(int, usleep, (useconds_t micros), (micros))
WRAP(int, sem_wait, (sem_t *semaphore), (semaphore))
WRAP(int, sem_timedwait, (sem_t *semaphore, const struct timespec *time), (semaphore, time))
WRAP(int, semop, (int id, struct sembuf *what, size_t number), (id, what, number))
WRAP(int, semtimedop, (int id, struct sembuf *what, size_t number, const struct timespec *time), (id, what, number, time))
WRAP(ssize_t, msgrcv, (int id, void *to, size_t size, long type, int flags), (id, to, size, type, flags))
WRAP(int, sigtimedwait, (const sigset_t *set, siginfo_t *info, const struct timespec *time), (set, info, time))
WRAP(int, sigwaitinfo, (const sigset_t *set, siginfo_t *info), (set, info))
WRAP(pid_t, wait, (int *status), (status))
WRAP(pid_t, waitpid, (pid_t pid, int *status, int flags), (pid, status, flags))

/* These give their error as the result. */
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *time, struct timespec *rest)
{
    static int (*volatile real)(clockid_t, int, const struct timespec *, struct timespec *);
    if (!real)
        real = (int (*)(clockid_t, int, const struct timespec *, struct timespec *))dlsym(RTLD_NEXT, "clock_nanosleep");
    int result = real(clock, flags, time, rest);
    return (int)count("clock_nanosleep", result, result == EINTR);
}
