/* vforks.c - a process whose main thread waits for a child that it made by vfork and that stays.
 *
 *     vfork       ->  child PID        it stays until the next line, then executes /bin/true
 *     (a line)    ->  status S         its end
 *     storm N     ->  storm N bad B    N children made by vfork one after another, each executes /bin/true;
 *                                      B ended in another way
 *
 * Usage: vforks [THREADS]     further threads, which wait */
#include "line.h"
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static char *const arguments[] = {"true", 0};
static char *const environment[] = {0};

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

static int status_of(pid_t child)
{
    int status = -1;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        interrupted = interrupted + 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Only what may be done on a borrowed stack. */
static pid_t stay(void)
{
    pid_t child = vfork();
    if (child == 0) {
        char c = 0;
        answer("child %d", (int)syscall(SYS_getpid));
        while (c != '\n')
            if (read(0, &c, 1) != 1)
                _exit(7);
        execve("/bin/true", arguments, environment);
        _exit(8);
    }
    return child;
}

static pid_t pass_by(void)
{
    pid_t child = vfork();
    if (child == 0) {
        execve("/bin/true", arguments, environment);
        _exit(8);
    }
    return child;
}

int main(int argc, char **argv)
{
    char line[128];
    int count;
    for (int i = argc > 1 ? atoi(argv[1]) : 0; i > 0; --i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, wait_for_ever, 0) != 0)
            return 1;
    }
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "vfork"))
            answer("status %d", status_of(stay()));
        else if (sscanf(line, "storm %d", &count) == 1) {
            int bad = 0;
            for (int i = 0; i < count; ++i)
                bad += status_of(pass_by()) != 0;
            answer("storm %d bad %d", count, bad);
        }
        else
            answer_common(line);
    }
    return 0;
}
