/* points.c - a thread stands at a point where nobody may call into libc, and stays there until told.
 *
 *     enter       ->  at TID N         the thread with that id stands there
 *     leave       ->  left R           it went on; R is 0 if everything it did was right
 *
 * Points:
 *     handler     in poll, in a signal handler on top of malloc, whose lock it holds
 *     iterate     in a callback of dl_iterate_phdr, which holds the loader's lock
 *     atfork      in a handler of fork that runs before it, with libc's locks about to be taken
 *     futex       waiting for a lock of its own, as a language runtime or an allocator waits
 *
 * Usage: points POINT */
#include "timed.h"
#include <link.h>
#include <linux/futex.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>

static int go[2], there[2];
static volatile int wrong;
static pthread_t thread;
static int lock;
static int *arena_lock;

static int tid(void)
{
    return (int)syscall(SYS_gettid);
}

static void stand_here(void)
{
    int me = tid();
    char c;
    struct pollfd until = {go[0], POLLIN, 0};
    if (write(there[1], &me, sizeof me) != sizeof me || poll(&until, 1, -1) != 1 || read(go[0], &c, 1) != 1)
        wrong = 1;
}

static volatile int stood;

static void on_signal(int signal)
{
    int saved = errno;
    (void)signal;
    /* Only this thread uses the arena: whoever holds its lock is below us on this stack. */
    if (!stood && __atomic_load_n(arena_lock, __ATOMIC_RELAXED) != 0) {
        stood = 1;
        stand_here();
    }
    errno = saved;
}

/* The lock is the first word of an arena, and the first word of a heap that is not the main one points to
 * its arena. */
static void find_arena(void)
{
    void *block = malloc(3000);
    uintptr_t heap = (uintptr_t)block & ~(uintptr_t)(64 * 1024 * 1024 - 1);
    arena_lock = *(int **)heap;
    free(block);
}

static void *use_malloc(void *unused)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    (void)unused;
    find_arena();
    sigaction(SIGUSR1, &action, 0);
    for (long round = 0; stood < 2; ++round) {
        unsigned char *blocks[8];
        for (int i = 0; i < 8; ++i) {
            blocks[i] = malloc(2000 + 600 * (size_t)i);
            memset(blocks[i], i, 2000);
        }
        for (int i = 0; i < 8; ++i) {
            if (blocks[i][1999] != i)
                wrong = 1;
            free(blocks[i]);
        }
        if (stood == 1)
            stood = 2;
    }
    return 0;
}

static int at_object(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)info, (void)size, (void)unused;
    stand_here();
    return 1;
}

static int no_object(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)info, (void)size, (void)unused;
    return 0;
}

static void *iterate(void *unused)
{
    (void)unused;
    if (dl_iterate_phdr(at_object, 0) != 1)
        wrong = 1;
    return 0;
}

static void *fork_one(void *unused)
{
    (void)unused;
    pid_t child = fork();
    if (child == 0)
        _exit(value(1) > 1 ? 0 : 1);
    int status = -1;
    syscall(SYS_wait4, child, &status, 0, 0);
    if (child < 0 || status != 0)
        wrong = 1;
    return 0;
}

static void *take_lock(void *unused)
{
    int me = tid();
    (void)unused;
    if (write(there[1], &me, sizeof me) != sizeof me)
        wrong = 1;
    while (__atomic_exchange_n(&lock, 2, __ATOMIC_ACQUIRE) != 0)
        if (syscall(SYS_futex, &lock, FUTEX_WAIT_PRIVATE, 2, 0, 0, 0) != 0 && errno != EAGAIN)
            wrong = 1;
    return 0;
}

static int await_there(void)
{
    int who = -1;
    if (read(there[0], &who, sizeof who) != sizeof who)
        _exit(1);
    return who;
}

static int enter(const char *point)
{
    if (!strcmp(point, "handler")) {
        struct pollfd stands = {there[0], POLLIN, 0};
        pthread_create(&thread, 0, use_malloc, 0);
        while (!arena_lock || poll(&stands, 1, 0) == 0) {
            struct timespec pause = {0, 50000};
            pthread_kill(thread, arena_lock ? SIGUSR1 : 0);
            nanosleep(&pause, 0);
        }
    }
    else if (!strcmp(point, "iterate"))
        pthread_create(&thread, 0, iterate, 0);
    else if (!strcmp(point, "atfork")) {
        pthread_atfork(stand_here, 0, 0);
        pthread_create(&thread, 0, fork_one, 0);
    }
    else if (!strcmp(point, "futex")) {
        lock = 1;
        pthread_create(&thread, 0, take_lock, 0);
    }
    else
        _exit(9);
    return await_there();
}

static int leave(const char *point)
{
    if (!strcmp(point, "futex")) {
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
        syscall(SYS_futex, &lock, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0);
    }
    else if (write(go[1], "", 1) != 1)
        _exit(1);
    pthread_join(thread, 0);
    /* Nothing may have been left locked. */
    free(malloc(100000));
    dl_iterate_phdr(no_object, 0);
    return wrong;
}

int main(int argc, char **argv)
{
    char line[128];
    if (argc != 2 || pipe(go) != 0 || pipe(there) != 0)
        return 1;
    signal(SIGUSR1, SIG_IGN);
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "enter"))
            answer("at tid %d", enter(argv[1]));
        else if (!strcmp(line, "leave"))
            answer("left %d", leave(argv[1]));
        else
            answer_common(line);
    }
    return 0;
}
