/* cxx.cpp - exceptions, cancellation and pthread_exit pass through functions with destructors.
 *
 * `outer` calls `middle` calls `inner`; each holds a guard whose destructor counts `guards_left`
 * down. Whatever way they are left, G must be 0.
 *
 *     call N      ->  call N = R guards G       what outer(N) returned: N + 111
 *                     call N caught WHAT guards G     it threw; `inner` throws std::runtime_error
 *                                               "depth 0" for 0
 *     cancel      ->  cancel CANCELED guards G  a thread blocked in `inner`, cancelled: 1 if join says so
 *     exit        ->  exit VALUE guards G       a thread that left through pthread_exit((void *)7)
 *
 * Negative N are for patches: samples/cxx-throw.cpp throws std::out_of_range from `middle` then.
 *
 * Usage: cxx */
#include "line.h"
#include <pthread.h>
#include <semaphore.h>
#include <stdexcept>
#include <string>

extern "C" {
extern int guards_left;
int guards_left;
int inner(int depth);
int middle(int depth);
int outer(int depth);
}

enum { BLOCK = 1000, LEAVE = 1001 };

namespace {

struct Guard {
    Guard() { ++guards_left; }
    ~Guard() { --guards_left; }
};

int never[2];
sem_t blocked;

} // namespace

__attribute__((noinline, noclone, noipa)) int inner(int depth)
{
    Guard guard;
    if (depth == 0)
        throw std::runtime_error("depth " + std::to_string(depth));
    if (depth == LEAVE)
        pthread_exit(reinterpret_cast<void *>(7));
    if (depth == BLOCK) {
        char c;
        sem_post(&blocked);
        if (read(never[0], &c, 1) != 0)
            return -1;
    }
    return depth + 1;
}

__attribute__((noinline, noclone, noipa)) int middle(int depth)
{
    Guard guard;
    return inner(depth) + 10;
}

__attribute__((noinline, noclone, noipa)) int outer(int depth)
{
    Guard guard;
    return middle(depth) + 100;
}

namespace {

void *run(void *depth)
{
    outer(*static_cast<int *>(depth));
    return nullptr;
}

void *run_thread(int depth)
{
    pthread_t thread;
    void *result = nullptr;
    if (pthread_create(&thread, nullptr, run, &depth) != 0)
        _exit(1);
    if (depth == BLOCK) {
        while (sem_wait(&blocked) != 0)
            interrupted = interrupted + 1;
        pthread_cancel(thread);
    }
    pthread_join(thread, &result);
    return result;
}

void call(int depth)
{
    try {
        int result = outer(depth);
        answer("call %d = %d guards %d", depth, result, guards_left);
    } catch (const std::exception &error) {
        answer("call %d caught %s guards %d", depth, error.what(), guards_left);
    }
}

} // namespace

int main()
{
    char line[128];
    int depth;
    if (pipe(never) != 0 || sem_init(&blocked, 0, 0) != 0)
        return 1;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "call %d", &depth) == 1)
            call(depth);
        else if (!strcmp(line, "cancel"))
            answer("cancel %d guards %d", run_thread(BLOCK) == PTHREAD_CANCELED, guards_left);
        else if (!strcmp(line, "exit"))
            answer("exit %ld guards %d", reinterpret_cast<long>(run_thread(LEAVE)), guards_left);
        else
            answer("unknown %s", line);
    }
    return 0;
}
