/* thrown.cpp - stops while an exception is in flight. Protocol and sums as in shapes.c.
 *
 *     do caught      f holds the handler; the wait is in a destructor on the way to it
 *     do passed      f was left by the exception; the wait is in the handler
 *
 * Usage: thrown */
#include "line.h"

#define APART __attribute__((noinline, noclone, noipa))

static char line[128];
static volatile long five = 5;

static void wait_here()
{
    answer("inside");
    if (!read_line(line, sizeof line))
        exit(0);
}

extern "C" APART long g(void)
{
    return 1;
}

struct Waits {
    ~Waits() { wait_here(); }
};

APART static void throws()
{
    throw 7;
}

APART static void throws_past_a_destructor()
{
    Waits waits;
    throws();
}

extern "C" APART long f(long n, void (*inside)(void))
{
    long a = g();
    try {
        inside();
    } catch (int) {
    }
    return n + a + g();
}

extern "C" APART long leaks(long n, void (*inside)(void))
{
    long a = g();
    inside();
    return n + a + g();
}

int main()
{
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "do caught")) {
            long result = f(five, throws_past_a_destructor);
            answer("caught = %ld", result);
        } else if (!strcmp(line, "do passed")) {
            try {
                leaks(five, throws);
            } catch (int) {
                wait_here();
            }
            answer("passed = 0");
        } else {
            answer_common(line);
        }
    }
    return 0;
}
