/* cage.c - a program in surroundings that make it hard to enter. It puts itself there, word by word, and
 * then answers like every target.
 *
 *     user              gives up root for www-data (33)
 *     nodump            is not dumpable
 *     chroot=DIR        is confined to DIR, without /proc
 *     mounts            has a mount namespace of its own, with an empty /proc
 *     userns            has a user namespace of its own
 *     pidns             is the first process of a pid namespace of its own (the child of the one started)
 *     noexec-memfd      as pidns, and the kernel makes no memfd there that can be executed
 *     mdwe              may map nothing executable that it could write
 *     mlock             locks all memory it has and gets
 *     thread            has a second thread, which waits
 *     deny=NR:ERRNO     a filter answers that system call with an errno
 *     kill=NR           a filter kills the process at that system call
 *     service           a filter that only lets through what servers use, and kills otherwise
 *     strict            may only read, write and exit
 *     rtsignals         has handlers for all real-time signals, which count
 *     altstack          handles SIGUSR1 on an alternate stack, which waits there
 *     uring             has threads of the kernel for asynchronous I/O
 *
 *     masks       ->  masks N          signals handled so far
 *
 * Usage: cage WORD... */
#include "line.h"
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static volatile long handled;

static void must(int done, const char *what)
{
    if (!done) {
        perror(what);
        _exit(9);
    }
}

static void count(int signal)
{
    (void)signal;
    __atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static void install(struct sock_filter *code, size_t length)
{
    struct sock_fprog program = {(unsigned short)length, code};
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
    must(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0, "seccomp");
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ANSWER(action) BPF_STMT(BPF_RET | BPF_K, action)
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), ANSWER(SECCOMP_RET_ALLOW)

static void filter_one(unsigned nr, unsigned action)
{
    struct sock_filter code[] = {
        LOAD(nr),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
        ANSWER(action),
        ANSWER(SECCOMP_RET_ALLOW),
    };
    install(code, sizeof code / sizeof code[0]);
}

/* What a server that talks on standard input needs, and what systemd's @system-service has besides that
 * somebody who comes in may need. */
static void filter_service(void)
{
    struct sock_filter code[] = {
        LOAD(arch), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0), ANSWER(SECCOMP_RET_KILL_PROCESS),
        LOAD(nr),
        ALLOW(SYS_read), ALLOW(SYS_write), ALLOW(SYS_close), ALLOW(SYS_fstat), ALLOW(SYS_mmap),
        ALLOW(SYS_mprotect), ALLOW(SYS_munmap), ALLOW(SYS_brk), ALLOW(SYS_rt_sigaction),
        ALLOW(SYS_rt_sigprocmask), ALLOW(SYS_rt_sigpending), ALLOW(SYS_rt_sigreturn), ALLOW(SYS_nanosleep),
        ALLOW(SYS_clock_nanosleep), ALLOW(SYS_clone), ALLOW(SYS_clone3), ALLOW(SYS_exit), ALLOW(SYS_exit_group),
        ALLOW(SYS_fcntl), ALLOW(SYS_flock), ALLOW(SYS_gettid), ALLOW(SYS_getpid), ALLOW(SYS_futex),
        ALLOW(SYS_restart_syscall), ALLOW(SYS_clock_gettime), ALLOW(SYS_memfd_create), ALLOW(SYS_membarrier),
        ALLOW(SYS_close_range), ALLOW(SYS_poll), ALLOW(SYS_epoll_wait), ALLOW(SYS_rseq),
        ALLOW(SYS_set_robust_list), ALLOW(SYS_madvise), ALLOW(SYS_pause), ALLOW(SYS_tgkill),
        ANSWER(SECCOMP_RET_KILL_PROCESS),
    };
    install(code, sizeof code / sizeof code[0]);
}

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

static void start_thread(void)
{
    pthread_t thread;
    must(pthread_create(&thread, 0, wait_for_ever, 0) == 0, "pthread_create");
}

/* Goes on as the first process of a new pid namespace; the one outside waits for its end. */
static void into_pid_namespace(void)
{
    must(unshare(CLONE_NEWPID) == 0, "unshare");
    pid_t child = fork();
    must(child >= 0, "fork");
    if (child > 0) {
        int status;
        close(0);
        must(waitpid(child, &status, 0) == child, "waitpid");
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 9);
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void forbid_executable_memfds(void)
{
    /* The setting belongs to the pid namespace of who writes it. */
    int file = open("/proc/sys/vm/memfd_noexec", O_WRONLY);
    must(file >= 0 && write(file, "2\n", 2) == 2, "memfd_noexec");
    close(file);
}

static void on_alternate_stack(void)
{
    static char room[65536];
    stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_ONSTACK};
    must(sigaltstack(&stack, 0) == 0 && sigaction(SIGUSR1, &action, 0) == 0, "sigaltstack");
}

static void handle_all_real_time_signals(void)
{
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    for (int signal = SIGRTMIN; signal <= SIGRTMAX; ++signal)
        must(sigaction(signal, &action, 0) == 0, "sigaction");
    /* glibc keeps the first two for itself, but the kernel does not know that. */
    struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } raw;
    for (int signal = 32; signal < 34; ++signal) {
        must(syscall(SYS_rt_sigaction, SIGRTMIN, 0, &raw, 8) == 0, "rt_sigaction");
        must(syscall(SYS_rt_sigaction, signal, &raw, 0, 8) == 0, "rt_sigaction");
    }
    struct sigaction trap = {.sa_handler = count};
    must(sigaction(SIGTRAP, &trap, 0) == 0, "sigaction");
}

/* A ring with a polling thread of the kernel, and a read that never ends in a worker of the kernel. */
static void start_uring(void)
{
    struct io_uring_params params = {.flags = IORING_SETUP_SQPOLL, .sq_thread_idle = 1000000};
    int ring = (int)syscall(SYS_io_uring_setup, 8, &params);
    must(ring >= 0, "io_uring_setup");
    char *rings = mmap(0, params.sq_off.array + params.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                       MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries = mmap(0, params.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE,
                                        MAP_SHARED, ring, IORING_OFF_SQES);
    must(rings != MAP_FAILED && entries != MAP_FAILED, "mmap");
    static int ends[2];
    static char byte;
    must(pipe(ends) == 0, "pipe");
    memset(&entries[0], 0, sizeof entries[0]);
    entries[0].opcode = IORING_OP_READ;
    entries[0].flags = IOSQE_ASYNC;
    entries[0].fd = ends[0];
    entries[0].addr = (unsigned long)&byte;
    entries[0].len = 1;
    ((unsigned *)(rings + params.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    unsigned *head = (unsigned *)(rings + params.sq_off.head);
    must(syscall(SYS_io_uring_enter, ring, 0, 0, IORING_ENTER_SQ_WAKEUP, 0, 0) >= 0, "io_uring_enter");
    while (__atomic_load_n(head, __ATOMIC_ACQUIRE) != 1)
        sched_yield();
}

static void confine(const char *word)
{
    unsigned nr, code;
    if (!strcmp(word, "user"))
        must(setgid(33) == 0 && setuid(33) == 0, "setuid");
    else if (!strcmp(word, "nodump"))
        must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0, "dumpable");
    else if (!strncmp(word, "chroot=", 7))
        must(chroot(word + 7) == 0 && chdir("/") == 0, "chroot");
    else if (!strcmp(word, "mounts"))
        must(unshare(CLONE_NEWNS) == 0 && mount("none", "/", 0, MS_REC | MS_PRIVATE, 0) == 0 &&
                 mount("none", "/proc", "tmpfs", 0, 0) == 0, "mounts");
    else if (!strcmp(word, "userns"))
        must(unshare(CLONE_NEWUSER) == 0, "userns");
    else if (!strcmp(word, "pidns"))
        into_pid_namespace();
    else if (!strcmp(word, "noexec-memfd")) {
        into_pid_namespace();
        forbid_executable_memfds();
    }
    else if (!strcmp(word, "mdwe"))
        must(prctl(65 /* PR_SET_MDWE */, 1, 0, 0, 0) == 0, "mdwe");
    else if (!strcmp(word, "mlock"))
        must(mlockall(MCL_CURRENT | MCL_FUTURE) == 0, "mlockall");
    else if (!strcmp(word, "thread"))
        start_thread();
    else if (sscanf(word, "deny=%u:%u", &nr, &code) == 2)
        filter_one(nr, SECCOMP_RET_ERRNO | code);
    else if (sscanf(word, "kill=%u", &nr) == 1)
        filter_one(nr, SECCOMP_RET_KILL_PROCESS);
    else if (!strcmp(word, "service"))
        filter_service();
    else if (!strcmp(word, "strict"))
        must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT, 0, 0, 0) == 0, "strict");
    else if (!strcmp(word, "rtsignals"))
        handle_all_real_time_signals();
    else if (!strcmp(word, "altstack"))
        on_alternate_stack();
    else if (!strcmp(word, "uring"))
        start_uring();
    else
        must(0, word);
}

int main(int argc, char **argv)
{
    char line[128];
    for (int i = 1; i < argc; ++i)
        confine(argv[i]);
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "handled"))
            answer("handled %ld", handled);
        else
            answer_common(line);
    }
    /* exit_group, whatever filters think of the rest of libc's exit. */
    _exit(0);
}
