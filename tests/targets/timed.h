/* timed.h - reading commands in a way that makes nobody want to borrow the thread: it waits in
 * epoll_wait with a time-out, which a stop would start again. So a test can tell which other thread will
 * be borrowed. */
#ifndef TIMED_H
#define TIMED_H

#include "line.h"
#include <sys/epoll.h>

static int timed_fd;

/* Before main, so that it belongs to what the program has from the beginning. */
__attribute__((constructor)) static void open_timed(void)
{
    struct epoll_event input = {EPOLLIN, {0}};
    timed_fd = epoll_create1(EPOLL_CLOEXEC);
    if (timed_fd < 0 || epoll_ctl(timed_fd, EPOLL_CTL_ADD, 0, &input) != 0)
        _exit(9);
}

/* As read_line of line.h. */
static int read_line_timed(char *line, size_t len)
{
    struct epoll_event input;
    for (;;) {
        int ready = epoll_wait(timed_fd, &input, 1, 3600 * 1000);
        if (ready < 0)
            interrupted = interrupted + 1;
        if (ready > 0)
            return read_line(line, len);
    }
}

#endif
