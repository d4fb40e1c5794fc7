/* stall.c - threads that take orders (see orders.h), blocked outside of everything or deep inside functions
 * that are being patched.
 *
 *     f, g           ->  NAME f 1             what f() or g() returned: 1 old, 2 patched
 *     pair           ->  NAME pair 11         f and g, called by pair()
 *     enter          ->  NAME enter 0         is inside blocker() now
 *     deep N         ->  NAME deep N          is inside blocker() and N calls below it
 *     tail           ->  NAME tail 0          is inside edge(), whose last instruction is the call
 *     leave          ->  NAME leave V         out of the innermost of these; V: the version that it was
 *     crowd N        ->  NAME crowd N         N more threads wait for ever, each in one of 14 ways (crowd.h);
 *                                             `early` counts waits that ended
 *
 * Usage: stall */
#include "crowd.h"
#include "orders.h"

PATCHABLE long f(void)
{
    return 1;
}

PATCHABLE long g(void)
{
    return 1;
}

PATCHABLE long pair(void)
{
    long first = f();
    return 10 * first + g();
}

PATCHABLE long blocker(void)
{
    obey();
    return 1;
}

/* `depth` frames, each with something in it, the orders at the bottom. */
PATCHABLE long dig(long depth)
{
    volatile long here[2] = {depth, 0};
    if (depth <= 0)
        obey();
    else
        here[1] = dig(depth - 1);
    return here[0] + here[1];
}

PATCHABLE long deep(long depth)
{
    dig(depth);
    return 1;
}

/* A function that ends with a call: the return address of that call is the address after the function. What
 * it calls comes back to edge's caller by itself, as a function that never returns would. */
__asm__(".text\n"
        ".balign 16\n"
        ".globl edge\n"
        ".type edge, @function\n"
        "edge:\n"
        ".cfi_startproc\n"
        "    nopw 0(%rax, %rax)\n"
        "    mov $1, %eax\n"
        "    sub $8, %rsp\n"
        ".cfi_adjust_cfa_offset 8\n"
        "    call over_the_edge\n"
        ".cfi_endproc\n"
        ".size edge, . - edge\n"
        "    .skip 16, 0xcc\n"
        ".balign 16\n"
        ".type over_the_edge, @function\n"
        "over_the_edge:\n"
        ".cfi_startproc\n"
        "    sub $8, %rsp\n"
        ".cfi_adjust_cfa_offset 8\n"
        "    call obey\n"
        "    add $24, %rsp\n"
        ".cfi_adjust_cfa_offset -24\n"
        "    mov $1, %eax\n"
        "    ret\n"
        ".cfi_endproc\n"
        ".size over_the_edge, . - over_the_edge\n");
long edge(void);

static int carry_out(const char *order)
{
    long n;
    if (!strcmp(order, "f"))
        answer("%s f %ld", self->name, f());
    else if (!strcmp(order, "g"))
        answer("%s g %ld", self->name, g());
    else if (!strcmp(order, "pair"))
        answer("%s pair %ld", self->name, pair());
    else if (!strcmp(order, "enter")) {
        answer("%s enter 0", self->name);
        n = blocker();
        answer("%s leave %ld", self->name, n);
    } else if (sscanf(order, "deep %ld", &n) == 1) {
        answer("%s deep %ld", self->name, n);
        n = deep(n);
        answer("%s leave %ld", self->name, n);
    } else if (!strcmp(order, "tail")) {
        answer("%s tail 0", self->name);
        n = edge();
        answer("%s leave %ld", self->name, n);
    } else if (sscanf(order, "crowd %ld", &n) == 1) {
        gather(n, &early);
        answer("%s crowd %ld", self->name, n);
    } else
        return 0;
    return 1;
}

int main(void)
{
    return take_orders();
}
