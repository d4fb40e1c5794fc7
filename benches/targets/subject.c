/*
 * A program that measures itself. One question per line on standard input, one number per line on
 * standard output: nanoseconds per operation, from one batch of about a millisecond.
 *
 *   malloc        one malloc(64) and its free
 *   fputc         one fputc to a buffered stream
 *   fork          one fork, exit of the child and wait
 *   plain N       one call among N functions that are never patched, in random order
 *   subject N     the same with the functions the patches replace (N = 1: a direct call)
 *   stay          not a time: makes a thread that stays in stay() for good
 *   sum N         not a time: the results of subjects 0 to N-1 added up, which shows who answers
 *
 * The functions are generated (COUNT of each kind) and compiled apart, so that nothing here is
 * compiled with knowledge of their bodies. The program is single-threaded on purpose (but for stay): that is where
 * a thread too many would show in fputc and malloc.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef long function(long);

extern function *const plain_table[COUNT];
extern function *const subject_table[COUNT];
extern function plain_0, subject_0;

/* At least 16 random orders of the largest set, so that no branch predictor learns the sequence. */
enum { ORDER = 32768 };
static uint16_t order[ORDER];
static volatile long sink;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static double time_malloc(void)
{
    enum { BATCH = 100000 };
    double start = now();
    for (int i = 0; i < BATCH; i++) {
        void *volatile block = malloc(64);
        free(block);
    }
    return (now() - start) / BATCH;
}

static double time_fputc(FILE *stream)
{
    enum { BATCH = 200000 };
    double start = now();
    for (int i = 0; i < BATCH; i++)
        fputc('x', stream);
    return (now() - start) / BATCH;
}

static double time_fork(void)
{
    enum { BATCH = 8 };
    double start = now();
    for (int i = 0; i < BATCH; i++) {
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child < 0 || waitpid(child, NULL, 0) != child)
            return -1;
    }
    return (now() - start) / BATCH;
}

/* Two loops of the same bytes at the same place in a cache line: only the function called differs. */
#define DIRECT(kind)                                                                               \
    static __attribute__((noinline, aligned(64))) double time_##kind(void)                         \
    {                                                                                              \
        enum { BATCH = 500000 };                                                                   \
        long x = 1;                                                                                \
        double start = now();                                                                      \
        for (int i = 0; i < BATCH; i++)                                                            \
            x = kind##_0(x);                                                                       \
        sink = x;                                                                                  \
        return (now() - start) / BATCH;                                                            \
    }
DIRECT(plain)
DIRECT(subject)

static volatile int stays;

/* Holds up the transition of whoever patches it. */
__attribute__((noinline, noclone)) long stay(long x)
{
    stays = 1;
    for (;;)
        x += pause();
    return x;
}

static void *stayer(void *unused)
{
    stay(0);
    return unused;
}

static double make_stayer(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, stayer, NULL))
        return -1;
    while (!stays)
        ;
    return 0;
}

static void make_order(unsigned count)
{
    static unsigned made;
    uint64_t state = 88172645463325252u;

    if (made == count)
        return;
    for (unsigned i = 0; i < ORDER; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order[i] = state % count;
    }
    made = count;
}

static double time_table(function *const *table, unsigned count)
{
    enum { PASSES = 4 };
    long x = 1;
    double start = 0;

    make_order(count);
    /* The first pass only warms the caches up after the wait for the question. */
    for (int pass = -1; pass < PASSES; pass++) {
        if (pass == 0)
            start = now();
        for (unsigned i = 0; i < ORDER; i++)
            x = table[order[i]](x);
    }
    sink = x;
    return (now() - start) / PASSES / ORDER;
}

int main(void)
{
    char line[64], word[16];
    FILE *null = fopen("/dev/null", "w");

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!null)
        return 1;
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        unsigned count = 1;
        double answer = -1;

        if (sscanf(line, "%15s %u", word, &count) < 1 || count < 1 || count > COUNT)
            return 1;
        if (!strcmp(word, "malloc")) {
            answer = time_malloc();
        } else if (!strcmp(word, "fputc")) {
            answer = time_fputc(null);
        } else if (!strcmp(word, "fork")) {
            answer = time_fork();
        } else if (!strcmp(word, "plain")) {
            answer = count == 1 ? time_plain() : time_table(plain_table, count);
        } else if (!strcmp(word, "subject")) {
            answer = count == 1 ? time_subject() : time_table(subject_table, count);
        } else if (!strcmp(word, "stay")) {
            answer = make_stayer();
        } else if (!strcmp(word, "sum")) {
            answer = 0;
            for (unsigned i = 0; i < count; i++)
                answer += subject_table[i](0);
        } else {
            return 1;
        }
        printf("%.4f\n", answer);
        fflush(stdout);
    }
    return 0;
}
