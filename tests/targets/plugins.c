/* plugins.c - a program that loads libraries and calls what is in them.
 *
 *     load N FILE    ->  load N 0            dlopen into place N, -1 if it failed
 *     space N FILE   ->  space N 0           the same into a namespace of its own
 *     unload N       ->  unload N 0
 *     drop N         ->  drop N 0            the same, and keeps its addresses in use
 *     ask N          ->  ask N 2             what answer(1) of the library returns
 *     birth N        ->  birth N 2           what it returned to the library's own constructor
 *     park           ->  park 0              a thread enters wait_here() and stays
 *     unpark         ->  unpark 2            it calls answer(1) of place 0 on its way out
 *     storm T FILES  ->  storm T             T threads load, ask and unload FILES0, FILES1 …
 *     calm           ->  calm loads L wrong W */
#define _GNU_SOURCE
#include "line.h"
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

enum { MOST = 8 };

static void *place[MOST];
static int gate[2];
static pthread_t parked, storm[MOST];
static char files[200];
static int blowing;
static long loads, wrong;

typedef long function(long);

static long call(void *library, const char *name, long n)
{
    function *it = library ? (function *)dlsym(library, name) : 0;
    return it ? it(n) : -1;
}

/* Patches replace it together with the library's function. */
__attribute__((noinline, noclone, noipa)) long wait_here(void)
{
    char c;
    if (read(gate[0], &c, 1) != 1)
        return -1;
    return call(place[0], "answer", 1);
}

static void *park(void *unused)
{
    (void)unused;
    return (void *)wait_here();
}

static void *blow(void *number)
{
    char file[220];
    struct timespec pause = {0, 4000000};
    snprintf(file, sizeof file, "%s%ld", files, (long)number);
    while (__atomic_load_n(&blowing, __ATOMIC_ACQUIRE)) {
        void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
        for (int i = 0; i < 3; i++) {
            long n = call(library, "answer", 1);
            if (n != 2 && n != 1001)
                __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
        }
        if (!library || dlclose(library) != 0)
            __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&loads, 1, __ATOMIC_RELAXED);
        nanosleep(&pause, 0);
    }
    return 0;
}

int main(void)
{
    char line[300], file[200];
    int n;
    if (pipe(gate) != 0)
        return 2;
    answer("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "load %d %199s", &n, file) == 2) {
            place[n] = dlopen(file, RTLD_NOW | RTLD_LOCAL);
            answer("load %d %d", n, place[n] ? 0 : -1);
        } else if (sscanf(line, "space %d %199s", &n, file) == 2) {
            place[n] = dlmopen(LM_ID_NEWLM, file, RTLD_NOW | RTLD_LOCAL);
            answer("space %d %d", n, place[n] ? 0 : -1);
        } else if (sscanf(line, "unload %d", &n) == 1) {
            int done = dlclose(place[n]);
            place[n] = 0;
            answer("unload %d %d", n, done);
        } else if (sscanf(line, "drop %d", &n) == 1) {
            void *base = (void *)((struct link_map *)place[n])->l_addr;
            int done = dlclose(place[n]);
            place[n] = 0;
            if (mmap(base, 0x1000, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != base)
                done = -1;
            answer("drop %d %d", n, done);
        } else if (sscanf(line, "ask %d", &n) == 1) {
            answer("ask %d %ld", n, call(place[n], "answer", 1));
        } else if (sscanf(line, "birth %d", &n) == 1) {
            answer("birth %d %ld", n, call(place[n], "birth", 0));
        } else if (!strncmp(line, "park", 4)) {
            answer("park %d", pthread_create(&parked, 0, park, 0));
        } else if (!strncmp(line, "unpark", 6)) {
            void *result;
            if (write(gate[1], "", 1) != 1 || pthread_join(parked, &result) != 0)
                return 3;
            answer("unpark %ld", (long)result);
        } else if (sscanf(line, "storm %d %199s", &n, files) == 2) {
            __atomic_store_n(&blowing, n, __ATOMIC_RELEASE);
            for (long i = 0; i < n; i++)
                if (pthread_create(&storm[i], 0, blow, (void *)i) != 0)
                    return 4;
            answer("storm %d", n);
        } else if (!strncmp(line, "calm", 4)) {
            n = __atomic_exchange_n(&blowing, 0, __ATOMIC_ACQ_REL);
            for (int i = 0; i < n; i++)
                pthread_join(storm[i], 0);
            answer("calm loads %ld wrong %ld", loads, wrong);
        } else {
            return 1;
        }
    }
    return 0;
}
