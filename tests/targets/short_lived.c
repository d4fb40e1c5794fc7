/*
 * Purpose: threads that live for a moment and call `work` all the time, in a program that looks as if it made
 *          coroutines: it imports makecontext, and never calls it.
 * Usage:   short_lived; prints "ready", runs until its input ends.
 */
#include <pthread.h>
#include <stdio.h>
#include <ucontext.h>
#include <unistd.h>

void (*volatile never_called)(ucontext_t *, void (*)(void), int, ...) = makecontext;

__attribute__((noipa)) long work(long n)
{
    return n + 1;
}

static void *live(void *arg)
{
    long sum = 0;
    for (int i = 0; i < 200000; i++)
        sum = work(sum);
    return arg;
}

static void *breed(void *arg)
{
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, live, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return arg;
}

int main(void)
{
    pthread_t thread;
    char byte;
    pthread_create(&thread, NULL, breed, NULL);
    pthread_create(&thread, NULL, breed, NULL);
    puts("ready");
    fflush(stdout);
    while (read(0, &byte, 1) == 1)
        ;
    return 0;
}
