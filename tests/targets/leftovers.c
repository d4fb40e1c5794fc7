/* leftovers.c - a program that may keep what a patch gave it, or stay in code that is no replacement itself.
 *
 *     name        ->  name N            what name() returned
 *     keep        ->  kept N            it is kept
 *     show        ->  kept N            what was kept
 *     drop        ->  dropped
 *     enter       ->  inside            a thread called what work() returned and waits in pause_here()
 *     leave       ->  left R            it came back
 *     co          ->  suspended         a coroutine called it and is suspended in pause_here()
 *     resume      ->  left R            it came back
 *     wipe        ->  wiped             nothing is left on the coroutine's stack
 *     iterate     ->  iterating         a thread waits in a callback of dl_iterate_phdr, to be told to leave
 *     sit         ->  sitting           main called it, and waits where its frames were; any line ends that
 *     spin        ->  spinning          a thread runs from now on
 *
 * Usage: leftovers */
#include "line.h"
#include <link.h>
#include <pthread.h>
#include <ucontext.h>
#include <unistd.h>

typedef long op_t(void);

enum { NEVER, BLOCK, SUSPEND } pauses = NEVER;

static char line[128];
static const char *kept;
static int orders[2], doors[2];
static ucontext_t home, away;
static char *stack;
enum { STACK = 1 << 16 };

__attribute__((noinline, noclone, noipa)) const char *name(void)
{
    return "old";
}

__attribute__((noinline, noclone, noipa)) void pause_here(void)
{
    char byte;
    if (pauses == BLOCK) {
        answer("inside");
        if (read(doors[0], &byte, 1) != 1)
            exit(1);
    } else if (pauses == SUSPEND) {
        swapcontext(&away, &home);
    }
}

static long old_op(void)
{
    pause_here();
    return 1;
}

__attribute__((noinline, noclone, noipa)) op_t *work(void)
{
    return old_op;
}

__attribute__((noinline, noclone, noipa)) long run(void)
{
    return work()();
}

static void *thread(void *unused)
{
    char byte;
    while (read(orders[0], &byte, 1) == 1)
        answer("left %ld", run());
    return unused;
}

static void *spinner(void *unused)
{
    for (volatile unsigned long i = 0;; i++)
        ;
    return unused;
}

static int at_object(struct dl_phdr_info *object, size_t size, void *unused)
{
    char byte;
    (void)object, (void)size, (void)unused;
    answer("iterating");
    return read(doors[0], &byte, 1) == 1 ? 7 : 0;
}

static void *iterator(void *unused)
{
    answer("left %d", dl_iterate_phdr(at_object, 0));
    return unused;
}

static void in_coroutine(void)
{
    answer("left %ld", run());
    swapcontext(&away, &home);
}

/* Its frame covers those of the call before, and nothing of it is written. */
__attribute__((noinline, noclone, noipa)) void sit(void)
{
    volatile long room[512];
    __asm__ volatile("" : : "r"(room) : "memory");
    answer("sitting");
    if (!read_line(line, sizeof line))
        exit(0);
}

static void start(void *(*body)(void *))
{
    pthread_t id;
    if (pthread_create(&id, NULL, body, NULL) != 0)
        exit(1);
}

int main(void)
{
    stack = malloc(STACK);
    if (pipe(orders) != 0 || pipe(doors) != 0)
        return 1;
    start(thread);
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (strcmp(line, "name") == 0) {
            answer("name %s", name());
        } else if (strcmp(line, "keep") == 0) {
            kept = name();
            answer("kept %s", kept);
        } else if (strcmp(line, "show") == 0) {
            answer("kept %s", kept);
        } else if (strcmp(line, "drop") == 0) {
            kept = NULL;
            answer("dropped");
        } else if (strcmp(line, "enter") == 0) {
            pauses = BLOCK;
            if (write(orders[1], "", 1) != 1)
                return 1;
        } else if (strcmp(line, "leave") == 0) {
            if (write(doors[1], "", 1) != 1)
                return 1;
        } else if (strcmp(line, "co") == 0) {
            pauses = SUSPEND;
            getcontext(&away);
            away.uc_stack.ss_sp = stack;
            away.uc_stack.ss_size = STACK;
            makecontext(&away, in_coroutine, 0);
            swapcontext(&home, &away);
            answer("suspended");
        } else if (strcmp(line, "resume") == 0) {
            swapcontext(&home, &away);
        } else if (strcmp(line, "wipe") == 0) {
            memset(stack, 0, STACK);
            memset(&away, 0, sizeof away);
            answer("wiped");
        } else if (strcmp(line, "iterate") == 0) {
            start(iterator);
        } else if (strcmp(line, "sit") == 0) {
            pauses = NEVER;
            run();
            sit();
        } else if (strcmp(line, "spin") == 0) {
            start(spinner);
            answer("spinning");
        } else {
            answer_common(line);
        }
    }
    return 0;
}
