/* mainexit.c - the main thread has left with pthread_exit: the process lives on in other threads,
 * and the thread whose number is the process id is a zombie.
 *
 *     threads     ->  threads N     threads that live (the zombie not counted)
 *
 * Usage: mainexit */
#include "line.h"
#include <dirent.h>
#include <pthread.h>

static pthread_t main_thread;

static void *blocked(void *unused)
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    (void)unused;
    pthread_mutex_lock(&mutex);
    for (;;)
        pthread_cond_wait(&never, &mutex);
    return 0;
}

/* Threads of the process that are not zombies, as the kernel shows them. */
static int living(void)
{
    int count = 0;
    struct dirent *entry;
    DIR *tasks = opendir("/proc/self/task");
    while (tasks && (entry = readdir(tasks))) {
        char path[300], text[512];
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", entry->d_name);
        FILE *stat = entry->d_name[0] == '.' ? 0 : fopen(path, "r");
        if (!stat)
            continue;
        if (fgets(text, sizeof text, stat)) {
            const char *name_end = strrchr(text, ')');
            count += name_end && name_end[2] != 'Z';
        }
        fclose(stat);
    }
    if (tasks)
        closedir(tasks);
    return count;
}

static void *commands(void *unused)
{
    char line[128];
    (void)unused;
    /* The kernel makes the main thread a zombie before join returns: its thread-id word is cleared
     * when it is gone. */
    if (pthread_join(main_thread, 0) != 0)
        exit(1);
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "threads"))
            answer("threads %d", living());
        else
            answer_common(line);
    }
    exit(0);
}

int main(void)
{
    pthread_t thread;
    main_thread = pthread_self();
    if (pthread_create(&thread, 0, blocked, 0) || pthread_create(&thread, 0, blocked, 0) ||
        pthread_create(&thread, 0, commands, 0))
        return 1;
    pthread_exit(0);
}
