/* shadow.c - objects of a fixed layout that a patch counts things for.
 *
 * The functions that are patched know nothing of counts:
 *
 *     long touch(struct object *o)   ->  0        patched: counts, gives the count
 *     long look(struct object *o)    ->  -1       patched: the count, 0 if there is none
 *     long drop(struct object *o)    ->  -1       patched: frees the count, gives 0
 *     long drop_all(void)            ->  -1       patched: frees all counts, gives how many destructors ran
 *
 *     touch N, look N, drop N, drop_all  ->  the same and the result, for object N
 *     storm T K    ->  storm TOUCHES wrong W      T threads touch K objects each, in two rounds, while a
 *                      signal handler touches and looks every millisecond in whatever thread it comes to
 *     sum          ->  sum S                      of look() over all objects
 *     forks T K    ->  forks K wrong W            K children made while T threads touch; each touches, looks at
 *                      and drops objects by itself
 *
 *     enter        ->  inside                     a second thread is inside drop_all()
 *     leave        ->  left                       it came out; what it calls there returns when `released` is 1
 *
 * Usage: shadow [waiter]     with `waiter` a second thread waits from the beginning */
#include "line.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/wait.h>

struct object {
    long content[4];
};

enum { OBJECTS = 20000, OWN = 100 };

volatile int inside, released;

static struct object objects[OBJECTS + OWN];
static atomic_long touches, wrong;
static atomic_int stop;
static volatile long keep;

#define PATCHED __attribute__((noinline, noclone, noipa))
PATCHED long touch(struct object *o) { return keep + (o->content[0] & 0); }
PATCHED long look(struct object *o) { return keep - 1 + (o->content[1] & 0); }
PATCHED long drop(struct object *o) { return keep - 1 + (o->content[2] & 0); }
PATCHED long drop_all(void) { return keep - 1; }

static void touch_one(struct object *o)
{
    if (touch(o) <= 0)
        wrong++;
    else
        touches++;
}

static void on_timer(int unused)
{
    static atomic_uint n;
    int saved = errno;
    (void)unused;
    for (int i = 0; i < 20; i++) {
        struct object *o = &objects[(n++ * 7919u) % OBJECTS];
        touch_one(o);
        if (look(o) < 1)
            wrong++;
    }
    errno = saved;
}

static void *storm(void *arg)
{
    struct object *first = arg;
    long count = first->content[3];
    for (int round = 0; round < 2; round++)
        for (long i = 0; i < count; i++) {
            struct object *o = &objects[(first - objects + i) % OBJECTS];
            touch_one(o);
            if (look(o) < 1)
                wrong++;
        }
    return 0;
}

static void *touch_on(void *arg)
{
    unsigned at = (unsigned)(long)arg;
    while (!stop)
        touch_one(&objects[(at += 7919) % OBJECTS]);
    return 0;
}

static void start(pthread_t *threads, long count, void *(*run)(void *), int step)
{
    for (long i = 0; i < count; i++) {
        void *arg = step ? (void *)&objects[i * step % OBJECTS] : (void *)i;
        if (pthread_create(&threads[i], 0, run, arg) != 0)
            exit(1);
    }
}

static void join(pthread_t *threads, long count)
{
    for (long i = 0; i < count; i++)
        pthread_join(threads[i], 0);
}

static void run_storm(long count, long each)
{
    pthread_t threads[64];
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_timer;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, 0);
    for (long i = 0; i < count; i++)
        objects[i * 37 % OBJECTS].content[3] = each;
    setitimer(ITIMER_REAL, &often, 0);
    start(threads, count, storm, 37);
    join(threads, count);
    setitimer(ITIMER_REAL, &never, 0);
}

/* Objects of its own behind the others: what threads that are not there were doing to the others is unknown. */
__attribute__((noinline)) static int in_child(void)
{
    alarm(20);
    for (int i = 0; i < OWN; i++) {
        struct object *o = &objects[OBJECTS + i];
        if (look(o) != 0 || touch(o) != 1 || touch(o) != 2 || look(o) != 2 || drop(o) != 0 || look(o) != 0)
            return 1;
    }
    for (int i = 0; i < OBJECTS; i += 97)
        if (touch(&objects[i]) < 1 || look(&objects[i]) < 1)
            return 2;
    return 0;
}

__attribute__((noinline)) static void run_forks(long count, long children)
{
    pthread_t threads[64];
    stop = 0;
    start(threads, count, touch_on, 0);
    for (long i = 0; i < children; i++) {
        int status = -1;
        pid_t child = fork();
        if (child == 0)
            _exit(in_child());
        if (waitpid(child, &status, 0) != child || status != 0)
            wrong++;
    }
    stop = 1;
    join(threads, count);
}

static void *wait_for_ever(void *unused)
{
    (void)unused;
    for (;;)
        pause();
    return 0;
}

static void *enter(void *unused)
{
    (void)unused;
    drop_all();
    return 0;
}

int main(int argc, char **argv)
{
    char line[128];
    long n, m;
    pthread_t thread;
    if (argc > 1 && !strcmp(argv[1], "waiter"))
        start(&thread, 1, wait_for_ever, 0);
    answer("ready");
    while (read_line(line, sizeof line)) {
        wrong = 0;
        if (sscanf(line, "touch %ld", &n) == 1)
            answer("touch %ld", touch(&objects[n % OBJECTS]));
        else if (sscanf(line, "look %ld", &n) == 1)
            answer("look %ld", look(&objects[n % OBJECTS]));
        else if (!strcmp(line, "enter")) {
            inside = released = 0;
            start(&thread, 1, enter, 0);
            while (!inside)
                usleep(1000);
            answer("inside");
        } else if (!strcmp(line, "leave")) {
            released = 1;
            pthread_join(thread, 0);
            answer("left");
        } else if (!strcmp(line, "drop_all"))
            answer("drop_all %ld", drop_all());
        else if (sscanf(line, "drop %ld", &n) == 1)
            answer("drop %ld", drop(&objects[n % OBJECTS]));
        else if (sscanf(line, "storm %ld %ld", &n, &m) == 2) {
            touches = 0;
            run_storm(n % 64, m % OBJECTS);
            answer("storm %ld wrong %ld", (long)touches, (long)wrong);
        } else if (sscanf(line, "forks %ld %ld", &n, &m) == 2) {
            run_forks(n % 64, m);
            answer("forks %ld wrong %ld", m, (long)wrong);
        } else if (!strcmp(line, "sum")) {
            long sum = 0;
            for (int i = 0; i < OBJECTS; i++)
                sum += look(&objects[i]);
            answer("sum %ld", sum);
        } else
            answer_common(line);
    }
    return 0;
}
