/* line.h - the line protocol the demo targets share.
 *
 * A target prints `ready` when it is set up, reads one command per line from standard input and
 * answers each with exactly one line. End of input or `quit` ends it with status 0. Tests wait for
 * lines and never for time. Every target knows
 *
 *     call N      ->  call N = R     R is what value(N) returned: N + 1 unpatched
 *
 * and says at its top what else it knows. `value` is the function to be patched. */
#ifndef LINE_H
#define LINE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The function to be patched: an ordinary one, but never inlined or folded into its callers. */
long value(long n);

static volatile long value_step = 1;

__attribute__((noinline, noclone, noipa)) long value(long n)
{
    return n + value_step;
}

#ifdef __cplusplus
}
#endif

/* Calls of the commands' read that a signal cut short: none is ever sent by a target. */
static volatile long interrupted;

/* Reads one line of at most `len - 1` characters without its end; 0 at end of input. Uses no
 * stdio, so that a target may do with stdio what it likes. */
static inline int read_line(char *line, size_t len)
{
    size_t used = 0;
    for (;;) {
        char c;
        ssize_t n = read(0, &c, 1);
        if (n < 0 && errno == EINTR) {
            interrupted = interrupted + 1;
            continue;
        }
        if (n <= 0)
            return 0;
        if (c == '\n')
            break;
        if (used + 1 < len)
            line[used++] = c;
    }
    line[used] = 0;
    return strcmp(line, "quit") != 0;
}

/* Answers with one line. */
__attribute__((format(printf, 1, 2))) static inline void answer(const char *format, ...)
{
    char text[512];
    __builtin_va_list args;
    __builtin_va_start(args, format);
    int n = vsnprintf(text, sizeof text - 1, format, args);
    __builtin_va_end(args);
    if (n < 0 || n > (int)sizeof text - 2)
        n = (int)sizeof text - 2;
    text[n] = '\n';
    if (write(1, text, (size_t)n + 1) != n + 1)
        _exit(1);
}

/* Answers `call N`, and anything unknown with `unknown`. */
static inline void answer_common(const char *line)
{
    long n;
    if (sscanf(line, "call %ld", &n) == 1)
        answer("call %ld = %ld", n, value(n));
    else
        answer("unknown %s", line);
}

#endif
