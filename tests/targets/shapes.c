/* shapes.c - stops in stacks of many shapes.
 *
 *     do SHAPE    ->  inside            it waits for the next line there
 *     (a line)    ->  SHAPE = R         it came back; R is what the function returned, or 0
 *
 * Every function to be patched returns n + g() + g(), with g() called before and after the wait: n + 2 old,
 * n + 200 new, n + 101 mixed.
 *
 * Usage: shapes */
#include "line.h"
#include <alloca.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#define APART __attribute__((noinline, noclone, noipa))

static char line[128];
static jmp_buf out;
static volatile long five = 5;

APART long g(void)
{
    return 1;
}

APART void stop_here(void)
{
    answer("inside");
    if (!read_line(line, sizeof line))
        exit(0);
}

APART static void nothing(void) {}

APART long f(long n, void (*inside)(void))
{
    long a = g();
    inside();
    return n + a + g();
}

/* The wait is in a part that the compiler moves away. */
__attribute__((cold, noinline)) static void hardly_ever(void)
{
    stop_here();
}

APART long split(long n, void (*inside)(void))
{
    long a = g();
    if (__builtin_expect(inside == stop_here, 0)) {
        hardly_ever();
        a += g() + 1000;
        hardly_ever();
        return n + a - 1000;
    }
    inside();
    return n + a + g();
}

static long left_with;

__attribute__((noreturn, noinline, noclone)) static void leave_by_jump(void)
{
    stop_here();
    left_with += g();
    longjmp(out, 1);
}

/* Its last instruction is a call. */
APART long last(long n, void (*inside)(void))
{
    left_with = n + g();
    if (inside != stop_here)
        inside();
    leave_by_jump();
}

APART static long deep(long depth)
{
    if (depth == 0) {
        stop_here();
        return 0;
    }
    return deep(depth - 1) + 1;
}

static void deep_down(void)
{
    if (deep(5000) != 5000)
        abort();
}

APART static void moving_stack(void)
{
    volatile char *room = alloca(100 * (size_t)five);
    room[0] = 1;
    stop_here();
    room[1] = room[0];
}

static void on_signal(int number)
{
    (void)number;
    stop_here();
}

/* Room for a handler's stack in a frame above the one that is interrupted. */
static char *own_room;

static void signalled(int flags)
{
    static char stack[1 << 16];
    stack_t other = {.ss_sp = own_room ? own_room : stack, .ss_size = sizeof stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = flags};
    sigaltstack(&other, 0);
    sigaction(SIGUSR1, &action, 0);
    raise(SIGUSR1);
}

APART static void signal_here(void)
{
    signalled(0);
}

APART static void signal_elsewhere(void)
{
    signalled(SA_ONSTACK);
}

static void jump_out(void)
{
    longjmp(out, 1);
}

/* Calls its argument, with frame and without a word about it. */
void bare(void (*inside)(void));
__asm__(".text\n.globl bare\n.type bare, @function\nbare:\n"
        "push %rbx\nsub $64, %rsp\ncall *%rdi\nadd $64, %rsp\npop %rbx\nret\n.size bare, . - bare\n");

static void in_bare(void)
{
    bare(stop_here);
}

/* The same, made at run time. */
static void in_made(void)
{
    static const unsigned char code[] = {0x53, 0x48, 0x83, 0xec, 0x40, 0xff, 0xd7, 0x48, 0x83, 0xc4, 0x40, 0x5b, 0xc3};
    void *place = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(place, code, sizeof code);
    mprotect(place, 4096, PROT_READ | PROT_EXEC);
    ((void (*)(void (*)(void)))place)(stop_here);
    munmap(place, 4096);
}

/* Old return addresses of f lie in its frame, which is not written to. */
APART static void in_ruins(void)
{
    volatile char room[8192];
    stop_here();
    room[0] = 0;
}

static void clean_up(void *unused)
{
    (void)unused;
    stop_here();
}

static void be_cancelled(void)
{
    for (;;)
        pause();
}

/* The handler is below f: it runs before f is left. */
static void be_cancelled_inside(void)
{
    pthread_cleanup_push(clean_up, 0);
    be_cancelled();
    pthread_cleanup_pop(0);
}

static void *cancelled_inside(void *unused)
{
    f(five, be_cancelled_inside);
    return unused;
}

static void *cancelled_outside(void *unused)
{
    pthread_cleanup_push(clean_up, 0);
    f(five, be_cancelled);
    pthread_cleanup_pop(0);
    return unused;
}

static void cancel(void *(*body)(void *))
{
    pthread_t thread;
    if (pthread_create(&thread, 0, body, 0) || pthread_cancel(thread) || pthread_join(thread, 0))
        abort();
}

static long run(const char *shape)
{
    if (!strcmp(shape, "plain"))
        return f(five, stop_here);
    if (!strcmp(shape, "deep"))
        return f(five, deep_down);
    if (!strcmp(shape, "alloca"))
        return f(five, moving_stack);
    if (!strcmp(shape, "signal"))
        return f(five, signal_here);
    if (!strcmp(shape, "altstack"))
        return f(five, signal_elsewhere);
    if (!strcmp(shape, "altstack-above")) {
        char room[1 << 16];
        own_room = room;
        long result = f(five, signal_elsewhere);
        own_room = 0;
        return result;
    }
    if (!strcmp(shape, "signal-only"))
        return signal_here(), 0;
    if (!strcmp(shape, "altstack-only"))
        return signal_elsewhere(), 0;
    if (!strcmp(shape, "split"))
        return split(five, stop_here);
    if (!strcmp(shape, "last"))
        return setjmp(out) ? left_with : last(five, stop_here);
    if (!strcmp(shape, "bare"))
        return f(five, in_bare);
    if (!strcmp(shape, "bare-only"))
        return in_bare(), 0;
    if (!strcmp(shape, "made"))
        return f(five, in_made);
    if (!strcmp(shape, "made-only"))
        return in_made(), 0;
    /* No sum: it never came back. */
    if (!strcmp(shape, "cancelled"))
        return cancel(cancelled_inside), 7;
    if (!strcmp(shape, "cancel-passed"))
        return cancel(cancelled_outside), 0;
    if (!strcmp(shape, "ruins")) {
        f(five, nothing);
        in_ruins();
        return 0;
    }
    if (!strcmp(shape, "jumped")) {
        if (!setjmp(out))
            f(five, jump_out);
        in_ruins();
        return 0;
    }
    return -1;
}

int main(void)
{
    char shape[64];
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "do %63s", shape) == 1) {
            long result = run(shape);
            answer("%s = %ld", shape, result);
        } else {
            answer_common(line);
        }
    }
    return 0;
}
