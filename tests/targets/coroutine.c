/* coroutine.c - one coroutine made by makecontext, whose stack is an array in main's frame or on the heap.
 *
 *     suspend N   ->  suspended         the coroutine called slow(N) and is suspended inside it
 *     resume      ->  slow N = R        it was resumed, and slow returned
 *     inside N    ->  inside            main called slow(N), which switched to the coroutine; that waits
 *                                       for the next line on its own stack
 *     leave       ->  slow N = R        it switched back, and slow returned
 *     idle        ->  idle              the coroutine is suspended in nothing of interest
 *     roam        ->  roaming           main switched to the coroutine, which waits for the next line
 *     back        ->  back              it switched back
 *     wipe        ->  wiped             nothing is left on the coroutine's stack
 *
 * slow(N) returns N + stride() + stride(), unpatched N + 2: with old and new code mixed, N + 101.
 *
 * Usage: coroutine own|heap [registered] */
#include "line.h"
#include <ucontext.h>
#define SUTURE_NOT_A_PATCH
#include <suture.h>

static ucontext_t home, away;
static char line[128];
static int waits;

__attribute__((noinline, noclone, noipa)) long stride(void)
{
    return 1;
}

__attribute__((noinline, noclone, noipa)) long slow(long n)
{
    long first = stride();
    /* From main into the coroutine, or from the coroutine back to main. */
    if (waits)
        swapcontext(&home, &away);
    else
        swapcontext(&away, &home);
    return n + first + stride();
}

static void in_slow(int n)
{
    answer("slow %d = %ld", n, slow(n));
    swapcontext(&away, &home);
}

static void in_idle(void)
{
    swapcontext(&away, &home);
}

static void in_roam(void)
{
    answer("roaming");
    if (!read_line(line, sizeof line))
        exit(0);
    swapcontext(&away, &home);
}

/* The frames of main that called slow() lie below this stack, if that is in main's frame. */
static void in_wait(void)
{
    answer("inside");
    if (!read_line(line, sizeof line))
        exit(0);
    swapcontext(&away, &home);
}

static void make(char *stack, size_t size, void (*body)(void), int n)
{
    getcontext(&away);
    away.uc_stack.ss_sp = stack;
    away.uc_stack.ss_size = size;
    makecontext(&away, body, 1, n);
}

int main(int argc, char **argv)
{
    _Alignas(16) char own[1 << 16];
    char *stack = argc > 1 && argv[1][0] == 'h' ? malloc(sizeof own) : own;
    long n;
    if (argc > 2) {
        void *const *saved = (void *const *)&away.uc_mcontext.gregs[REG_RSP];
        void *const *resumer = (void *const *)&home.uc_mcontext.gregs[REG_RSP];
        if (!suture_stack_register || suture_stack_register(stack, stack + sizeof own, saved, resumer) <= 0)
            abort();
    }
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "suspend %ld", &n) == 1) {
            waits = 0;
            make(stack, sizeof own, (void (*)(void))in_slow, (int)n);
            swapcontext(&home, &away);
            answer("suspended");
        } else if (strcmp(line, "resume") == 0) {
            swapcontext(&home, &away);
        } else if (sscanf(line, "inside %ld", &n) == 1) {
            waits = 1;
            make(stack, sizeof own, in_wait, 0);
            answer("slow %ld = %ld", n, slow(n));
        } else if (strcmp(line, "idle") == 0) {
            make(stack, sizeof own, in_idle, 0);
            swapcontext(&home, &away);
            answer("idle");
        } else if (strcmp(line, "roam") == 0) {
            make(stack, sizeof own, in_roam, 0);
            swapcontext(&home, &away);
            answer("back");
        } else if (strcmp(line, "wipe") == 0) {
            memset(stack, 0, sizeof own);
            answer("wiped");
        } else {
            answer_common(line);
        }
    }
    return 0;
}
