/* states.c - a program whose patches have callbacks. They may use what is here: `level`, `note`.
 *
 *     alpha N, beta N ->  NAME N = R    alpha(N) and beta(N): N + 10, N + 20
 *     enter           ->  inside        a second thread is inside blocker()
 *     leave           ->  left V        it came out; V is what blocker() returned: 1 unpatched
 *     level           ->  level L       what stands in `level`, 4 at first
 *     level L         ->  level L       now it is that
 *     notes           ->  notes ...     what callbacks have noted since the last time
 *
 * Usage: states [single]     with `single` there is no second thread, and no `enter` */
#include "line.h"
#include <pthread.h>

#define PATCHABLE __attribute__((noinline, noclone, noipa))

volatile long level = 4;
static int orders[2];
static volatile long ten = 10;
static char notes[512];

PATCHABLE long alpha(long n)
{
    return n + ten;
}

PATCHABLE long beta(long n)
{
    return n + 2 * ten;
}

PATCHABLE void wait_for_order(void)
{
    char order;
    while (read(orders[0], &order, 1) < 0)
        ;
}

/* What every version of blocker() does. */
PATCHABLE void stand(void)
{
    answer("inside");
    wait_for_order();
}

PATCHABLE long blocker(void)
{
    stand();
    return ten / 10;
}

/* What a callback does first: leaves its name, its patch and state, and which alpha it sees. */
PATCHABLE void note(const char *what, const char *patch, unsigned long state)
{
    size_t used = strlen(notes);
    snprintf(notes + used, sizeof notes - used, " %s(%s,%lu):%ld", what, patch, state, alpha(1));
}

static void *second(void *unused)
{
    (void)unused;
    for (;;) {
        wait_for_order();
        answer("left %ld", blocker());
    }
    return 0;
}

static void order(void)
{
    if (write(orders[1], "o", 1) != 1)
        _exit(1);
}

int main(int argc, char **argv)
{
    char line[128];
    long n;
    pthread_t thread;
    if (pipe(orders) != 0)
        return 1;
    if (!(argc > 1 && !strcmp(argv[1], "single")) && pthread_create(&thread, 0, second, 0) != 0)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "alpha %ld", &n) == 1)
            answer("alpha %ld = %ld", n, alpha(n));
        else if (sscanf(line, "beta %ld", &n) == 1)
            answer("beta %ld = %ld", n, beta(n));
        else if (!strcmp(line, "enter") || !strcmp(line, "leave"))
            order();
        else if (sscanf(line, "level %ld", &n) == 1)
            answer("level %ld", level = n);
        else if (!strcmp(line, "level"))
            answer("level %ld", level);
        else if (!strcmp(line, "notes")) {
            answer("notes%s", notes);
            notes[0] = 0;
        }
        else
            answer_common(line);
    }
    return 0;
}
