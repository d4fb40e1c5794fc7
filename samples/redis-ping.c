/*
 * Purpose: changes a command of a distribution's redis-server (7.0, stripped, no debug symbols):
 *          PING answers that it was patched. `addReplyStatus` is redis' own function, used by name.
 *          The optional argument of PING is ignored: reading it would need redis' private headers.
 * Usage:   cc -O2 -fPIC -shared -nostartfiles -I include samples/redis-ping.c -o redis-ping.so
 *          suture apply redis-ping.so --name redis-server
 *          redis-cli ping
 *          (`cargo xtask demo redis` does all of it)
 */
#include <suture.h>

struct client; /* redis' own, never looked into */
SUTURE_EXTERN void addReplyStatus(struct client *c, const char *status);

static void patched_ping(struct client *c)
{
    addReplyStatus(c, "PONG from the patch");
}

SUTURE_PATCH("redis-ping",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC("pingCommand", patched_ping)));
