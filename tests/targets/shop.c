/* shop.c - what most samples are for: a function `price` of the main executable.
 *
 *     price N     ->  price N = R        price(N) is 90 * N
 *
 * Usage: shop */
#include "line.h"

static volatile long factor = 90;

__attribute__((noinline, noclone, noipa)) long price(long item)
{
    return item * factor;
}

int main(void)
{
    char line[128];
    long n;
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (sscanf(line, "price %ld", &n) == 1)
            answer("price %ld = %ld", n, price(n));
        else
            answer_common(line);
    }
    return 0;
}
