/* forks.c - a process that forks: children that call and end, and one child that stays.
 *
 *     call N      ->  call N = R          value(N) in the parent
 *     child N     ->  child N = R         value(N) in a child made for this call, which then ends
 *     vchild N    ->  vchild N status S   a vforked child that executes /bin/sh -c "exit N"
 *     stay        ->  stay PID            a child that stays; its calls are asked for with
 *     stayed N    ->  stayed N = R        value(N) in that child
 *
 * A second thread waits for ever in the parent.
 *
 * Usage: forks */
#include "line.h"
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static int to_child[2], from_child[2];

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

static long in_child(long n)
{
    int ends[2];
    long result = -1;
    if (pipe(ends) != 0)
        exit(1);
    pid_t child = fork();
    if (child == 0) {
        result = value(n);
        _exit(write(ends[1], &result, sizeof result) != sizeof result);
    }
    close(ends[1]);
    if (read(ends[0], &result, sizeof result) != sizeof result)
        result = -1;
    close(ends[0]);
    waitpid(child, 0, 0);
    return result;
}

static int executed(long n)
{
    char text[32];
    char *arguments[] = {"sh", "-c", text, 0}, *environment[] = {0};
    pid_t child;
    int status = -1;
    snprintf(text, sizeof text, "exit %ld", n);
    if (posix_spawn(&child, "/bin/sh", 0, 0, arguments, environment) != 0)
        return -1;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static pid_t stay(void)
{
    long n;
    pid_t child;
    if (pipe(to_child) != 0 || pipe(from_child) != 0)
        exit(1);
    child = fork();
    if (child != 0)
        return child;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(to_child[1]);
    while (read(to_child[0], &n, sizeof n) == sizeof n) {
        n = value(n);
        if (write(from_child[1], &n, sizeof n) != sizeof n)
            break;
    }
    _exit(0);
}

static long stayed(long n)
{
    if (write(to_child[1], &n, sizeof n) != sizeof n || read(from_child[0], &n, sizeof n) != sizeof n)
        exit(1);
    return n;
}

int main(void)
{
    char line[128];
    long n;
    pthread_t thread;
    if (pthread_create(&thread, 0, wait_for_ever, 0) != 0)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "child %ld", &n) == 1)
            answer("child %ld = %ld", n, in_child(n));
        else if (sscanf(line, "vchild %ld", &n) == 1)
            answer("vchild %ld status %d", n, executed(n));
        else if (!strcmp(line, "stay"))
            answer("stay %d", stay());
        else if (sscanf(line, "stayed %ld", &n) == 1)
            answer("stayed %ld = %ld", n, stayed(n));
        else
            answer_common(line);
    }
    return 0;
}
