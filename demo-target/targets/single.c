/* single.c - one thread, always at work between commands: writes characters with fputc, the libc
 * function that is fast only while the process has never had a second thread.
 *
 *     fputc N     ->  fputc N ns T     average nanoseconds (tenths) of N calls of fputc
 *     written     ->  written N        characters written since the start
 *
 * Usage: single */
#include "line.h"
#include <poll.h>
#include <time.h>

static FILE *sink;
static long written;

static void put(long count)
{
    for (long i = 0; i < count; ++i)
        if (fputc((int)value(i) & 127, sink) == EOF)
            exit(1);
    written += count;
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(void)
{
    char line[128];
    struct pollfd input = {0, POLLIN, 0};
    sink = fopen("/dev/null", "w");
    if (!sink)
        return 1;
    answer("ready");
    for (;;) {
        long n;
        while (poll(&input, 1, 0) == 0)
            put(1000);
        if (!read_line(line, sizeof line))
            return 0;
        if (sscanf(line, "fputc %ld", &n) == 1) {
            double start = seconds();
            put(n);
            answer("fputc %ld ns %.1f", n, (seconds() - start) * 1e9 / (double)n);
        } else if (!strcmp(line, "written")) {
            answer("written %ld", written);
        } else {
            answer_common(line);
        }
    }
}
