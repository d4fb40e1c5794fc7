/* brood.c - a process that forks children that stay, while its other threads, if it has any, allocate all the time.
 *
 *     fork N          ->  forked N          N more, a part of a millisecond apart
 *     ask N           ->  asked A of C      how many of the C children answer with value(1) = N;
 *                         asked A of C not PID      one that does not
 *     pids            ->  pids PID...       all of them
 *
 * Usage: brood [THREADS]      2 unless given */
#include "line.h"
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

enum { MOST = 128 };

static struct { pid_t pid; int to, from; } children[MOST];
static int count;

static void *allocate(void *unused)
{
    (void)unused;
    for (size_t size = 24;; size = size * 5 % 70001 + 24) {
        void *volatile block = malloc(size);
        free(block);
    }
    return 0;
}

static void stay(int questions, int answers)
{
    long n;
    while (read(questions, &n, sizeof n) == sizeof n) {
        n = value(n);
        if (write(answers, &n, sizeof n) != sizeof n)
            break;
    }
    _exit(0);
}

static void fork_one(void)
{
    int to[2], from[2];
    if (count == MOST || pipe(to) != 0 || pipe(from) != 0)
        _exit(1);
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(to[1]);
        for (int i = 0; i < count; ++i)
            close(children[i].to);
        stay(to[0], from[1]);
    }
    close(to[0]);
    close(from[1]);
    children[count].pid = child;
    children[count].to = to[1];
    children[count++].from = from[0];
}

/* How many give the right answer, and one that does not. */
static int answering(long wanted, pid_t *other)
{
    int right = 0;
    *other = 0;
    for (int i = 0; i < count; ++i) {
        long n = 1;
        if (write(children[i].to, &n, sizeof n) == sizeof n &&
            read(children[i].from, &n, sizeof n) == sizeof n && n == wanted)
            ++right;
        else
            *other = children[i].pid;
    }
    return right;
}

int main(int argc, char **argv)
{
    char line[128], pids[1024];
    long n;
    pthread_t thread;
    for (int i = argc > 1 ? atoi(argv[1]) : 2; i > 0; --i)
        if (pthread_create(&thread, 0, allocate, 0) != 0)
            return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "fork %ld", &n) == 1) {
            for (long i = 0; i < n; ++i) {
                struct timespec pause = {0, 300000};
                nanosleep(&pause, 0);
                fork_one();
            }
            answer("forked %ld", n);
        }
        else if (sscanf(line, "ask %ld", &n) == 1) {
            pid_t other;
            int right = answering(n, &other);
            if (other == 0)
                answer("asked %d of %d", right, count);
            else
                answer("asked %d of %d not %d", right, count, other);
        }
        else if (!strcmp(line, "pids")) {
            size_t used = 0;
            pids[0] = 0;
            for (int i = 0; i < count && used < sizeof pids - 16; ++i)
                used += (size_t)sprintf(pids + used, " %d", children[i].pid);
            /* Longer than what `answer` takes. */
            if (write(1, "pids", 4) != 4 || write(1, pids, used) != (ssize_t)used || write(1, "\n", 1) != 1)
                return 1;
        }
        else
            answer_common(line);
    }
    return 0;
}
