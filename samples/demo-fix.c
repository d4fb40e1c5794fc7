/*
 * Purpose: repairs the demo service: its prices forget the tax, its library misspells the greeting.
 *          Shows two objects in one patch, a function that still uses the old one, and a message
 *          written with the program's own libc.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/demo-fix.c -o demo-fix.so
 *          suture apply demo-fix.so --name suture-demo-ser
 *          (`cargo xtask demo` does all of it)
 */
#include <stdint.h>
#include <stdio.h>
#include <suture.h>

SUTURE_OLD(uint64_t, old_price, (uint64_t item));

static uint64_t price_with_tax(uint64_t item)
{
    return old_price(item) * 119 / 100;
}

static int spelled_greeting(const char *name, char *out, size_t len)
{
    return snprintf(out, len, "hello, %s", name);
}

SUTURE_PATCH("demo-fix",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC_OLD("price", price_with_tax, old_price)),
    SUTURE_OBJECT("libsuture-demo.so",
        SUTURE_FUNC("greet", spelled_greeting)));
