/* orders.h - threads that take orders one at a time, wherever they stand.
 *
 * A target includes this, defines carry_out() for orders of its own, and calls take_orders() from main.
 * Every target of this kind knows
 *
 *     NAME ORDER [ARG]   ->  NAME ORDER RESULT     the thread NAME does it, there where it stands:
 *
 *         value          ->  NAME value 2         what value(1) returned
 *         leave                                   goes back to where the thread began to wait for orders;
 *                                                 what called obey() there says what comes next
 *         new CHILD      ->  NAME new TID         made a thread, which waits outside of everything
 *         spin CHILD     ->  NAME spin TID        the same; it runs until somebody is told to let it go
 *         release        ->  NAME release 0       lets threads that spin go on to wait for orders
 *         fork CHILD     ->  NAME fork PID        forked; the child's thread stands where its parent does
 *         exit           ->  NAME exit 0          pthread_exit, there where it stands
 *         early          ->  NAME early N         waits for orders that were cut short, all threads together
 *
 * The first thread is called main. */
#ifndef ORDERS_H
#define ORDERS_H

#include "line.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#define PATCHABLE __attribute__((noinline, noclone, noipa))

enum { MOST = 64, ORDER = 64 };

/* A thread and the pipe it gets its orders from. */
struct soul {
    char name[16];
    int orders[2];
    /* It is to spin before it waits for orders. */
    int spins;
    int tid;
};

static struct soul souls[MOST];
static int count;
static long early;
static int released;
static __thread struct soul *self;

static struct soul *named(const char *name)
{
    for (int i = 0; i < __atomic_load_n(&count, __ATOMIC_ACQUIRE); i++)
        if (!strcmp(souls[i].name, name))
            return &souls[i];
    return 0;
}

static struct soul *born(const char *name, int spins)
{
    struct soul *it = &souls[count];
    if (count == MOST || strlen(name) >= sizeof it->name || pipe(it->orders) != 0)
        exit(2);
    strcpy(it->name, name);
    it->spins = spins;
    __atomic_store_n(&count, count + 1, __ATOMIC_RELEASE);
    return it;
}

/* Does an order of the target's own and answers it; 0 if it knows none like that. */
static int carry_out(const char *order);

static void *live(void *soul);

/* Makes the thread of a soul and waits until it has its number. */
static long give_life(struct soul *soul)
{
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    if (pthread_create(&thread, &detached, live, soul) != 0)
        return -1;
    while (!__atomic_load_n(&soul->tid, __ATOMIC_ACQUIRE))
        sched_yield();
    return soul->tid;
}

/* Forked: nobody but this thread is left, under another name. */
static void reborn(struct soul *soul)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    self = soul;
}

/* Waits for the next order. */
static void next_order(char order[ORDER])
{
    ssize_t n;
    while ((n = read(self->orders[0], order, ORDER)) < 0 && errno == EINTR)
        __atomic_fetch_add(&early, 1, __ATOMIC_RELAXED);
    if (n != ORDER)
        exit(4);
}

/* Does what the thread is told to, until it is told to leave. */
__attribute__((noinline, noclone)) void obey(void)
{
    char order[ORDER], arg[16];
    long n;
    for (;;) {
        next_order(order);
        if (!strcmp(order, "leave"))
            return;
        else if (!strcmp(order, "value"))
            answer("%s value %ld", self->name, value(1));
        else if (!strcmp(order, "early"))
            answer("%s early %ld", self->name, __atomic_load_n(&early, __ATOMIC_RELAXED));
        else if (sscanf(order, "new %15s", arg) == 1 || sscanf(order, "spin %15s", arg) == 1) {
            n = give_life(born(arg, order[0] == 's'));
            answer("%.15s %.*s %ld", self->name, (int)strcspn(order, " "), order, n);
        } else if (!strcmp(order, "release")) {
            __atomic_store_n(&released, 1, __ATOMIC_RELEASE);
            answer("%s release 0", self->name);
        } else if (sscanf(order, "fork %15s", arg) == 1) {
            struct soul *soul = born(arg, 0);
            n = fork();
            if (n == 0)
                reborn(soul);
            else
                answer("%s fork %ld", self->name, n);
        } else if (!strcmp(order, "exit")) {
            answer("%s exit 0", self->name);
            pthread_exit(0);
        } else if (!carry_out(order))
            answer("%s unknown %s", self->name, order);
    }
}

static void *live(void *soul)
{
    self = soul;
    prctl(PR_SET_NAME, self->name);
    /* Nothing so far could block. */
    __atomic_store_n(&self->tid, (int)syscall(SYS_gettid), __ATOMIC_RELEASE);
    while (self->spins && !__atomic_load_n(&released, __ATOMIC_ACQUIRE))
        ;
    obey();
    return 0;
}

static void *command(void *unused)
{
    char line[128], name[16], order[ORDER];
    (void)unused;
    prctl(PR_SET_NAME, "commands");
    while (read_line(line, sizeof line)) {
        memset(order, 0, sizeof order);
        if (sscanf(line, "%15s %63[^\n]", name, order) != 2 || !named(name))
            answer_common(line);
        else if (write(named(name)->orders[1], order, ORDER) != ORDER)
            exit(3);
    }
    exit(0);
}

/* The whole of a target's main. */
static int take_orders(void)
{
    pthread_t thread;
    self = born("main", 0);
    if (pthread_create(&thread, 0, command, 0))
        return 1;
    answer("ready");
    for (;;)
        obey();
}

#endif
