/*
 * Purpose: the smallest patch. Replaces one function of the main executable.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/minimal.c -o minimal.so
 *          suture apply minimal.so --pid N        (N: a process that has a function `price`)
 */
#include <suture.h>

static long fixed_price(long item)
{
    return item * 100;
}

SUTURE_PATCH("minimal",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC("price", fixed_price)));
