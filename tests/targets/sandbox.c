/* sandbox.c - a program of which only some threads are under system call filters: four that may do next to
 * nothing, and sleep, and one that may do everything, and is never asleep for long.
 *
 * Usage: sandbox */
#include "line.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static pthread_barrier_t started;

static void *locked_up(void *unused)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pause, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    (void)unused;
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(9);
    pthread_barrier_wait(&started);
    for (;;)
        pause();
    return 0;
}

int main(void)
{
    char line[128];
    pthread_barrier_init(&started, 0, 5);
    for (int i = 0; i < 4; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, locked_up, 0) != 0)
            return 1;
    }
    pthread_barrier_wait(&started);
    answer("ready");
    while (read_line(line, sizeof line))
        answer_common(line);
    _exit(0);
}
