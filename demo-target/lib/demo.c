/* libsuture-demo.so: the library of the demo service. The greeting is misspelt on purpose; the
 * sample patch samples/demo-fix.c corrects it in the running service. */
#include <stdio.h>

int greet(const char *name, char *out, size_t len);

/* Clients may send anything: what a terminal could take for a command is made visible. */
__attribute__((noinline)) static int make_printable(char *text)
{
    int changed = 0;
    for (; *text; ++text) {
        if ((unsigned char)*text < ' ') {
            *text = '?';
            ++changed;
        }
    }
    return changed;
}

int greet(const char *name, char *out, size_t len)
{
    int written = snprintf(out, len, "helo, %s", name);
    make_printable(out);
    return written;
}
