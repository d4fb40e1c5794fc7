/* sequence.c - threads that count, each on the counter of the processor it runs on, in restartable sequences
 * (rseq): without a lock or an atomic operation. A thread that is interrupted inside a sequence has to start
 * it again, or counts are lost.
 *
 *     counts      ->  counts DONE SUM      sequences finished by all threads, and the sum of all counters: the
 *                                          same when nothing was lost (all threads wait meanwhile)
 *
 * Usage: sequence [THREADS] */
#include "timed.h"
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/rseq.h>

enum { PROCESSORS = 256, MOST = 64 };

static struct { volatile long count; char pad[56]; } counters[PROCESSORS];
static struct { volatile long done; char pad[56]; } threads[MOST];
static volatile int stop;
static pthread_barrier_t halted, going;

/* One more on this processor's counter; 1 if the sequence was aborted. A long way from the load to the store
 * makes it likely that an interruption falls in between. */
static int add_one(struct rseq *area)
{
    unsigned processor = area->cpu_id_start;
    volatile long *counter = &counters[processor % PROCESSORS].count;
    __asm__ volatile goto(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        ".quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "lea 3b(%%rip), %%rax\n"
        "mov %%rax, %[cs]\n"
        "1:\n"
        "cmp %[processor], %[now]\n"
        "jne 4f\n"
        "mov (%[counter]), %%rax\n"
        "mov $200, %%ecx\n"
        "5: dec %%ecx\n"
        "jnz 5b\n"
        "inc %%rax\n"
        "mov %%rax, (%[counter])\n"
        "2:\n"
        ".pushsection __rseq_failure, \"ax\"\n"
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "4: jmp %l[aborted]\n"
        ".popsection\n"
        :
        : [cs] "m"(area->rseq_cs), [now] "m"(area->cpu_id), [processor] "r"(processor), [counter] "r"(counter)
        : "rax", "rcx", "memory", "cc"
        : aborted);
    return 0;
aborted:
    return 1;
}

static void *count(void *index)
{
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    for (;;) {
        if (!add_one(area))
            threads[(size_t)index].done = threads[(size_t)index].done + 1;
        if (stop) {
            pthread_barrier_wait(&halted);
            pthread_barrier_wait(&going);
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    char line[128];
    size_t number = argc > 1 ? strtoul(argv[1], 0, 10) : 4;
    if (number > MOST || __rseq_size == 0)
        return 1;
    pthread_barrier_init(&halted, 0, (unsigned)number + 1);
    pthread_barrier_init(&going, 0, (unsigned)number + 1);
    for (size_t i = 0; i < number; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, count, (void *)i) != 0)
            return 1;
    }
    answer("ready");
    while (read_line_timed(line, sizeof line)) {
        if (!strcmp(line, "counts")) {
            long done = 0, sum = 0;
            stop = 1;
            pthread_barrier_wait(&halted);
            for (size_t i = 0; i < number; ++i)
                done += threads[i].done;
            for (int i = 0; i < PROCESSORS; ++i)
                sum += counters[i].count;
            stop = 0;
            pthread_barrier_wait(&going);
            answer("counts %ld %ld", done, sum);
        }
        else
            answer_common(line);
    }
    return 0;
}
