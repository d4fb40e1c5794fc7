/*
 * Purpose: replaces a function that has no symbol. Debian's memcached (1.6.18-1+deb12u1) exports none;
 *          the function that sends one line to a client, `out_string` in its source, is named by the
 *          build-id, its offset and its first bytes. The new one rewrites the answer to `version`.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/memcached-version.c -o memcached.so
 *          suture apply memcached.so --name memcached
 *          printf 'version\r\nquit\r\n' | nc localhost 11211
 *          For another build: `readelf -n` says the build-id, a disassembler where the function is.
 */
#include <string.h>
#include <suture.h>

struct conn; /* memcached's own, never looked into */
SUTURE_OLD(void, old_out_string, (struct conn *c, const char *line));

static void new_out_string(struct conn *c, const char *line)
{
    old_out_string(c, strncmp(line, "VERSION ", 8) ? line : "VERSION patched");
}

SUTURE_PATCH("memcached-version",
    SUTURE_OBJECT_ID(SUTURE_MAIN, "cb4951e778913a1598cb9fa92e8c377dfc545320",
        SUTURE_FUNC_OFFSET_OLD(0xccc0, "41544989fc554889", new_out_string, old_out_string)));
