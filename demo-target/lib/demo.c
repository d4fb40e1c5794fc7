/* libsuture-demo.so: the library of the demo service. The greeting is misspelt on purpose; the
 * sample patch samples/demo-fix.c corrects it in the running service. */
#include <stdio.h>

int greet(const char *name, char *out, size_t len);

int greet(const char *name, char *out, size_t len)
{
    return snprintf(out, len, "helo, %s", name);
}
