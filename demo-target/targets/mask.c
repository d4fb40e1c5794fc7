/* mask.c - every thread masks every signal it can.
 *
 *     mask        ->  mask HEX pending HEX early N     the main thread's mask and pending signals as
 *                                                      the kernel shows them; reads cut short so far
 *
 * Usage: mask [THREADS]     further threads, blocked in sigwaitinfo (which a wrong restart ends) */
#include "line.h"
#include <pthread.h>
#include <signal.h>

static void *waiter(void *unused)
{
    sigset_t none;
    (void)unused;
    sigemptyset(&none);
    sigaddset(&none, SIGUSR1);
    for (;;) {
        if (sigwaitinfo(&none, 0) < 0)
            __atomic_fetch_add(&interrupted, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

/* The value of a field of /proc/thread-self/status, in hexadecimal. */
static unsigned long long field(const char *name)
{
    char line[256];
    unsigned long long value = 0;
    FILE *status = fopen("/proc/thread-self/status", "r");
    if (!status)
        exit(1);
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, name, strlen(name)))
            value = strtoull(line + strlen(name), 0, 16);
    fclose(status);
    return value;
}

int main(int argc, char **argv)
{
    char line[128];
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, 0);
    for (int i = 0; i < threads; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, waiter, 0) != 0)
            return 1;
    }
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "mask"))
            answer("mask %llx pending %llx early %ld", field("SigBlk:"), field("SigPnd:") | field("ShdPnd:"),
                   __atomic_load_n(&interrupted, __ATOMIC_RELAXED));
        else
            answer_common(line);
    }
    return 0;
}
