/* memory.c - one thread that counts what malloc and fputc cost it, and says whether libc still takes
 * the process for single-threaded.
 *
 *     single      ->  single S threads T      __libc_single_threaded, and the kernel's count
 *     malloc N    ->  malloc N ns T           average nanoseconds (tenths) of N malloc and free
 *     fputc N     ->  fputc N ns T            of N fputc
 *
 * Usage: memory */
#include "line.h"
#include <sys/single_threaded.h>
#include <time.h>

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int threads(void)
{
    char text[256];
    int count = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(text, sizeof text, status))
        if (sscanf(text, "Threads: %d", &count) == 1)
            break;
    if (status)
        fclose(status);
    return count;
}

int main(void)
{
    char line[128];
    long n;
    FILE *sink = fopen("/dev/null", "w");
    if (!sink)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "single")) {
            answer("single %d threads %d", __libc_single_threaded, threads());
        } else if (sscanf(line, "malloc %ld", &n) == 1) {
            double start = seconds();
            for (long i = 0; i < n; ++i) {
                void *volatile block = malloc((size_t)(16 + (i & 255)));
                free(block);
            }
            answer("malloc %ld ns %.1f", n, (seconds() - start) * 1e9 / (double)n);
        } else if (sscanf(line, "fputc %ld", &n) == 1) {
            double start = seconds();
            for (long i = 0; i < n; ++i)
                if (fputc('x', sink) == EOF)
                    return 1;
            answer("fputc %ld ns %.1f", n, (seconds() - start) * 1e9 / (double)n);
        } else {
            answer_common(line);
        }
    }
    return 0;
}
