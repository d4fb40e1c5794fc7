/*
 * Purpose: gives every object of the program a lock that its structure has no room for. Threads of the
 *          warehouse that take from one shelf at once take the same piece. A shelf gets its lock when it
 *          is made, and loses it when it goes; one from before the patch gets it with the first use.
 *          Patches demo-target/targets/warehouse.c; samples/rust-lock is the same in Rust.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/shadow-lock.c -o shadow-lock.so
 *          suture apply shadow-lock.so --name warehouse
 *          suture shadow --name warehouse                        # one line per shelf
 *          suture disable shelf-lock --name warehouse
 */
#include <pthread.h>
#include <suture.h>

#define SHELF_LOCK 0x6c6f636b

struct shelf; /* the program's, not looked into */
SUTURE_OLD(struct shelf *, old_open, (long id));
SUTURE_OLD(void, old_shut, (struct shelf *shelf));
SUTURE_OLD(long, old_take, (struct shelf *shelf, long n));

static int begin(void *shelf, void *lock, void *unused)
{
    (void)shelf, (void)unused;
    return pthread_mutex_init(lock, 0);
}

static void end(void *shelf, void *lock)
{
    (void)shelf;
    pthread_mutex_destroy(lock);
}

static struct shelf *new_open(long id)
{
    struct shelf *shelf = old_open(id);
    if (shelf && !suture_shadow_alloc(shelf, SHELF_LOCK, sizeof(pthread_mutex_t), begin, 0)) {
        old_shut(shelf);
        return 0;
    }
    return shelf;
}

static void new_shut(struct shelf *shelf)
{
    suture_shadow_free(shelf, SHELF_LOCK, end);
    old_shut(shelf);
}

/* While the transition runs, a thread in old code may take without the lock: as before, no worse. */
static long new_take(struct shelf *shelf, long n)
{
    pthread_mutex_t *lock = suture_shadow_get_or_alloc(shelf, SHELF_LOCK, sizeof *lock, begin, 0);
    if (lock)
        pthread_mutex_lock(lock);
    long left = old_take(shelf, n);
    if (lock)
        pthread_mutex_unlock(lock);
    return left;
}

SUTURE_PATCH("shelf-lock",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC_OLD("shelf_open", new_open, old_open),
        SUTURE_FUNC_OLD("shelf_shut", new_shut, old_shut),
        SUTURE_FUNC_OLD("shelf_take", new_take, old_take)),
    SUTURE_STATE(SHELF_LOCK, SUTURE_IS_SHADOW, 0, 0, 0, 0, end));
