/* deaf.c - a program whose only thread is, until it is told to come out, where it can be taken for nothing else.
 *
 *     out         ->  out           it is in main() from now on
 *
 * Usage: deaf handler|sort       in a signal handler; in a function that qsort() calls */
#include "line.h"
#include <signal.h>
#include <stdlib.h>

static int asked;

static void serve(void)
{
    char line[128];
    if (asked++)
        return;
    answer("ready");
    while (read_line(line, sizeof line) && strcmp(line, "out"))
        answer_common(line);
}

static void on_signal(int signal)
{
    (void)signal;
    serve();
}

static int compare(const void *a, const void *b)
{
    serve();
    return *(const int *)a - *(const int *)b;
}

int main(int argc, char **argv)
{
    char line[128];
    int numbers[2] = {2, 1};
    if (argc != 2)
        return 1;
    if (!strcmp(argv[1], "handler")) {
        signal(SIGUSR1, on_signal);
        raise(SIGUSR1);
    } else
        qsort(numbers, 2, sizeof *numbers, compare);
    answer("out");
    while (read_line(line, sizeof line))
        answer_common(line);
    return 0;
}
