/* warehouse.c - what the samples of states and shadow variables repair while it runs.
 *
 *     total N      ->  total N = R      basket_total(N): -1 if the basket is too large
 *     limit        ->  limit L          what stands in `basket_limit`, 4 at first
 *     open ID      ->  opened ID        a shelf with 100000 pieces
 *     take ID N    ->  take ID = R      shelf_take(): how many are left, or -1
 *     rush ID T N  ->  rush ID = R      T threads take one piece each, N times; R are left then
 *     shut ID      ->  shut ID
 *     enter        ->  inside           a second thread is inside basket_total()
 *     leave        ->  left R           it came out, and what the function returned
 *
 * Three bugs: baskets of five are refused, and could not simply be allowed; shelves are made so that
 * more can be taken than is there; two threads that take from one shelf at once take the same piece.
 *
 * Usage: warehouse */
#include "line.h"
#include <pthread.h>
#include <sched.h>

#define PATCHABLE __attribute__((noinline, noclone, noipa))
enum { BASKET = 4, OVERDRAW = 1, FRAGILE = 2 };

struct shelf {
    struct shelf *next;
    long id;
    volatile long stock;
    unsigned features;
};

volatile long basket_limit = BASKET;
struct shelf *shelves;
pthread_mutex_t shelves_lock = PTHREAD_MUTEX_INITIALIZER;

static int orders[2];
static __thread int stays;

static void wait_for_order(void)
{
    char order;
    while (read(orders[0], &order, 1) < 0)
        ;
}

PATCHABLE long unit_price(long item)
{
    if (stays) {
        answer("inside");
        wait_for_order();
    }
    return 10 + item;
}

/* Its array has room for the limit it was written for. */
PATCHABLE long basket_total(long items)
{
    volatile long prices[BASKET];
    long total = 0;
    if (items > basket_limit)
        return -1;
    for (long i = 0; i < items; i++)
        prices[i] = unit_price(i);
    for (long i = 0; i < items; i++)
        total += prices[i];
    return total;
}

/* What a shelf can do; asked once for each, when it is made. */
PATCHABLE unsigned shelf_features(long id)
{
    return OVERDRAW | (id % 2 ? FRAGILE : 0);
}

PATCHABLE struct shelf *shelf_open(long id)
{
    struct shelf *shelf = calloc(1, sizeof *shelf);
    if (!shelf)
        return 0;
    shelf->id = id;
    shelf->stock = 100000;
    shelf->features = shelf_features(id);
    return shelf;
}

PATCHABLE void shelf_shut(struct shelf *shelf)
{
    free(shelf);
}

PATCHABLE long shelf_take(struct shelf *shelf, long n)
{
    long there = shelf->stock;
    if (n > there && !(shelf->features & OVERDRAW))
        return -1;
    sched_yield();
    shelf->stock = there - n;
    return there - n;
}

static struct shelf **find(long id)
{
    struct shelf **at = &shelves;
    while (*at && (*at)->id != id)
        at = &(*at)->next;
    return at;
}

static long rush_times;

static void *rush(void *shelf)
{
    for (long i = 0; i < rush_times; i++)
        shelf_take(shelf, 1);
    return 0;
}

static void *second(void *unused)
{
    (void)unused;
    stays = 1;
    for (;;) {
        wait_for_order();
        answer("left %ld", basket_total(1));
    }
    return 0;
}

static void order(void)
{
    if (write(orders[1], "o", 1) != 1)
        _exit(1);
}

static void on_shelf(const char *line)
{
    long id, n, threads;
    struct shelf **at, *shelf;
    pthread_mutex_lock(&shelves_lock);
    if (sscanf(line, "open %ld", &id) == 1) {
        if ((shelf = shelf_open(id))) {
            shelf->next = shelves;
            shelves = shelf;
        }
        answer("opened %ld", id);
    } else if (sscanf(line, "take %ld %ld", &id, &n) == 2 && *(at = find(id))) {
        answer("take %ld = %ld", id, shelf_take(*at, n));
    } else if (sscanf(line, "rush %ld %ld %ld", &id, &threads, &n) == 3 && *(at = find(id)) && threads <= 16) {
        pthread_t all[16];
        rush_times = n;
        for (long i = 0; i < threads; i++)
            pthread_create(&all[i], 0, rush, *at);
        for (long i = 0; i < threads; i++)
            pthread_join(all[i], 0);
        answer("rush %ld = %ld", id, (*at)->stock);
    } else if (sscanf(line, "shut %ld", &id) == 1 && *(at = find(id))) {
        shelf = *at;
        *at = shelf->next;
        shelf_shut(shelf);
        answer("shut %ld", id);
    } else {
        answer_common(line);
    }
    pthread_mutex_unlock(&shelves_lock);
}

int main(void)
{
    char line[128];
    long n;
    pthread_t thread;
    if (pipe(orders) != 0 || pthread_create(&thread, 0, second, 0) != 0)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "total %ld", &n) == 1)
            answer("total %ld = %ld", n, basket_total(n));
        else if (!strcmp(line, "limit"))
            answer("limit %ld", basket_limit);
        else if (!strcmp(line, "enter") || !strcmp(line, "leave"))
            order();
        else
            on_shelf(line);
    }
    return 0;
}
