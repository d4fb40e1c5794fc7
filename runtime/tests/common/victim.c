/* A multi-threaded program that notices every trace a doorbell could leave in it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

volatile uint64_t eintr;    /* calls that ended with EINTR */
volatile uint64_t wrong;    /* registers, results or times that were not as they should be */
volatile uint64_t rounds;   /* rounds of the register check */
volatile uint64_t timeouts; /* polls that ran out in time */
volatile uint64_t handled;  /* signals handled */
volatile uint64_t value;    /* last result of subject() */
volatile uint64_t found;    /* last answer of _dl_find_object for probe */
volatile uint64_t probe;
volatile uint64_t forked;   /* pid of the child, once asked for */
volatile uint64_t fork_now;

/* One instruction of five bytes in one aligned word, then its neighbours. */
__asm__(".text\n.balign 16\n.globl subject\n.type subject,@function\nsubject:\n"
        "mov $1, %eax\nret\n.byte 0x90,0x90\n.size subject, . - subject\n");
extern int subject(void);

/* All registers, carry flag and red zone must survive; 0 = they did. */
__asm__(".text\n.balign 16\ncheck_registers:\n"
        "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov $0x1111111111,%rbx\nmov $0x2222222222,%rbp\nmov $0x3333333333,%r12\nmov $0x4444444444,%r13\n"
        "mov $0x5555555555,%r14\nmov $0x6666666666,%r15\nmov $0x7777777777,%rcx\nmov $0x8888888888,%rdx\n"
        "mov $0x9999999999,%rsi\nmov $0xaaaaaaaaaa,%rdi\nmov $0xbbbbbbbbbb,%r8\nmov $0xcccccccccc,%r9\n"
        "mov $0xdddddddddd,%r10\nmov $0xeeeeeeeeee,%r11\nmov $0xffffffffff,%rax\n"
        "movq %rax,%xmm0\nmovq %r10,%xmm7\nmovq %rbx,%xmm15\n"
        "movq $20000,-8(%rsp)\nmovq %rax,-120(%rsp)\nmovq %rax,-128(%rsp)\nstc\n"
        "1: decq -8(%rsp)\njnz 1b\njnc 9f\n"
        "cmp %rax,-120(%rsp)\njne 9f\ncmp %rax,-128(%rsp)\njne 9f\n"
        "push %rax\nmovq %xmm0,%rax\ncmp %rax,(%rsp)\njne 8f\nmovq %xmm7,%rax\ncmp %rax,%r10\njne 8f\n"
        "movq %xmm15,%rax\ncmp %rax,%rbx\njne 8f\npop %rax\n"
        "push %rax\nmov $0x1111111111,%rax\ncmp %rax,%rbx\njne 8f\nmov $0x2222222222,%rax\ncmp %rax,%rbp\njne 8f\n"
        "mov $0x3333333333,%rax\ncmp %rax,%r12\njne 8f\nmov $0x4444444444,%rax\ncmp %rax,%r13\njne 8f\n"
        "mov $0x5555555555,%rax\ncmp %rax,%r14\njne 8f\nmov $0x6666666666,%rax\ncmp %rax,%r15\njne 8f\n"
        "mov $0x7777777777,%rax\ncmp %rax,%rcx\njne 8f\nmov $0x8888888888,%rax\ncmp %rax,%rdx\njne 8f\n"
        "mov $0x9999999999,%rax\ncmp %rax,%rsi\njne 8f\nmov $0xaaaaaaaaaa,%rax\ncmp %rax,%rdi\njne 8f\n"
        "mov $0xbbbbbbbbbb,%rax\ncmp %rax,%r8\njne 8f\nmov $0xcccccccccc,%rax\ncmp %rax,%r9\njne 8f\n"
        "mov $0xdddddddddd,%rax\ncmp %rax,%r10\njne 8f\nmov $0xeeeeeeeeee,%rax\ncmp %rax,%r11\njne 8f\npop %rax\n"
        "mov $0xffffffffff,%rdx\ncmp %rax,%rdx\njne 9f\nxor %eax,%eax\njmp 7f\n"
        "8: pop %rax\n9: mov $1,%eax\n7: pop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");
extern int check_registers(void);

extern void *__libc_stack_end;

static int quiet[2], epoll;

/* The C library starts a thread with all signals blocked: masks are settled once it is in its body. */
static pthread_barrier_t started;

static void *in_registers(void *a) {
	for (;; rounds++)
		if (check_registers()) wrong++;
	return a;
}
static void *in_subject(void *a) {
	struct timespec nap = {0, 200000};
	struct dl_find_object result;
	for (;;) {
		value = subject();
		found = probe && !_dl_find_object((void *)probe, &result) ? (uintptr_t)result.dlfo_eh_frame : 0;
		if (_dl_find_object((void *)in_subject, &result)) wrong++;
		if (clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL)) eintr++;
	}
	return a;
}
static void *in_poll(void *a) {
	struct pollfd p = {quiet[0], POLLIN, 0};
	for (;;) if (poll(&p, 1, -1) < 0) eintr++;
	return a;
}
static void *in_epoll(void *a) {
	struct epoll_event event;
	for (;;) if (epoll_wait(epoll, &event, 1, -1) < 0) eintr++;
	return a;
}
static void *in_nanosleep(void *a) {
	struct timespec t = {3600, 0};
	for (;;) if (nanosleep(&t, NULL)) eintr++;
	return a;
}
static void *in_read(void *a) {
	char c;
	for (;;) if (read(quiet[0], &c, 1) < 0) eintr++;
	return a;
}
static void *in_cond(void *a) {
	pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
	pthread_cond_t c = PTHREAD_COND_INITIALIZER;
	pthread_mutex_lock(&m);
	for (;;) pthread_cond_wait(&c, &m);
	return a;
}
static void *in_timed_poll(void *a) {
	struct timespec t0, t1;
	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &t0);
		int r = poll(NULL, 0, 700);
		clock_gettime(CLOCK_MONOTONIC, &t1);
		double s = (t1.tv_sec - t0.tv_sec) + (t1.tv_nsec - t0.tv_nsec) / 1e9;
		if (r < 0) eintr++;
		if (s < 0.7 || s > 1.2) wrong++;
		timeouts++;
	}
	return a;
}

typedef void *(*body)(void *);
static void *start(void *a) {
	pthread_barrier_wait(&started);
	return (*(body *)a)(NULL);
}

static void on_signal(int s) { (void)s; handled++; }

int main(void) {
	static body bodies[] = {in_registers, in_subject, in_poll,  in_epoll,
	                        in_nanosleep, in_read,    in_cond, in_timed_poll};
	pthread_t t;
	struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	sigaction(SIGUSR1, &sa, NULL);
	sa.sa_flags = 0;
	sigaction(SIGUSR2, &sa, NULL);
	if (pipe(quiet)) return 1;
	epoll = epoll_create1(0);
	open("/dev/null", O_RDONLY);
	unsigned count = sizeof bodies / sizeof *bodies;
	pthread_barrier_init(&started, NULL, count + 1);
	for (unsigned i = 0; i < count; i++) pthread_create(&t, NULL, start, &bodies[i]);
	pthread_barrier_wait(&started);
	printf("block %p\neintr %p\nwrong %p\nrounds %p\ntimeouts %p\nhandled %p\nvalue %p\nfound %p\nprobe %p\n"
	       "forked %p\nfork_now %p\nsubject %p\nfind_object %p\nstack_end %p\nready 0x0\n",
	       dlsym(RTLD_DEFAULT, "suture_runtime"), (void *)&eintr, (void *)&wrong, (void *)&rounds,
	       (void *)&timeouts, (void *)&handled, (void *)&value, (void *)&found, (void *)&probe, (void *)&forked,
	       (void *)&fork_now, (void *)subject, dlsym(RTLD_DEFAULT, "_dl_find_object"), __libc_stack_end);
	fflush(stdout);
	for (;;) {
		struct timespec nap = {0, 200000};
		if (clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, NULL)) eintr++;
		if (fork_now) {
			fork_now = 0;
			pid_t child = fork();
			if (!child) {
				pthread_create(&t, NULL, in_subject, NULL);
				for (;;) pause();
			}
			forked = child;
		}
	}
}
