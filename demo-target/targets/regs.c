/* regs.c - threads that notice when anything of theirs is changed behind their back.
 *
 * Each thread loads known contents into every register it owns (the general ones, the flags, x87
 * with its control word, mxcsr, all vector and mask registers the processor has), the 128 bytes
 * below its stack pointer and errno, then passes time inside one stretch of assembly and compares.
 * Even threads pass it spinning, odd ones blocked in poll with a timeout, where rcx and r11 belong
 * to the kernel and the result must be 0.
 *
 *     rounds N    ->  rounds N                       when N more rounds are done
 *     report      ->  report rounds R wrong W [WHAT]     WHAT: the first difference seen
 *
 * Usage: regs [THREADS]     4 by default */
#include "line.h"
#include <cpuid.h>
#include <pthread.h>
#include <stdint.h>
#include <x86intrin.h>

/* x87, SSE, AVX and the three parts of AVX-512: what a program may fill as it likes. */
#define VECTOR_STATES 0xe7u
#define AREA 4096
#define FLAGS_SEEN 0xcd5u /* carry, parity, adjust, zero, sign, direction, overflow */

enum { GENERAL = 13 };

/* Offsets are used by the assembly below. */
struct frame {
    uint64_t general[13];   /*   0: rax rbx rcx rdx rsi rdi r8-r14; rcx waits in r15 */
    uint64_t unused;
    uint64_t flags;         /* 112 */
    uint64_t rounds;        /* 120: of the spin; 0 = wait in poll */
    uint64_t seen[13];      /* 128 */
    uint64_t unused_too;
    uint64_t seen_flags;    /* 240 */
    uint64_t red_zone[16];  /* 248: what the red zone held afterwards */
    uint64_t red_value;     /* 376 */
    uint64_t timeout;       /* 384 */
};

static long wrong;  /* written by all threads, with atomics */
static long rounds; /* under round_lock */
static pthread_mutex_t round_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t round_done = PTHREAD_COND_INITIALIZER;
static char first_wrong[128];
static pthread_mutex_t first_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t states;

static void report_wrong(const char *what, int index, uint64_t wanted, uint64_t seen)
{
    __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&first_lock);
    if (!first_wrong[0])
        snprintf(first_wrong, sizeof first_wrong, " %s %d wanted %llx seen %llx", what, index,
                 (unsigned long long)wanted, (unsigned long long)seen);
    pthread_mutex_unlock(&first_lock);
}

/* Runs one round: everything is loaded, held and stored between the first and the last line. */
void hold(struct frame *frame, void *load, void *store, uint64_t states);
__asm__(
    ".text\n.type hold, @function\nhold:\n.cfi_startproc\n"
    "  push %rbp\n  push %rbx\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n"
    "  mov %rdi, %rbp\n"
    "  push %rdx\n  push %rcx\n"
    "  mov %ecx, %eax\n  mov %rcx, %rdx\n  shr $32, %rdx\n  xrstor64 (%rsi)\n"
    /* The red zone, from -8 to -128. */
    "  mov 376(%rbp), %rax\n"
    "  mov $-128, %rcx\n"
    "1: mov %rax, (%rsp,%rcx)\n  add $8, %rcx\n  jnz 1b\n"
    "  mov 120(%rbp), %r15\n"
    "  mov 0(%rbp), %rax\n  mov 8(%rbp), %rbx\n  mov 24(%rbp), %rdx\n"
    "  mov 32(%rbp), %rsi\n  mov 40(%rbp), %rdi\n  mov 48(%rbp), %r8\n  mov 56(%rbp), %r9\n"
    "  mov 64(%rbp), %r10\n  mov 72(%rbp), %r11\n  mov 80(%rbp), %r12\n  mov 88(%rbp), %r13\n"
    "  mov 96(%rbp), %r14\n"
    /* The flags without touching the red zone: the stack pointer goes into the frame for a moment. */
    "  mov %rsp, %rcx\n  lea 112(%rbp), %rsp\n  popf\n  mov %rcx, %rsp\n  mov 16(%rbp), %rcx\n"
    "  xchg %rcx, %r15\n"
    "  jrcxz 3f\n"
    /* lea and jrcxz leave the flags alone. */
    "2: lea -1(%rcx), %rcx\n  jrcxz 4f\n  jmp 2b\n"
    /* poll(0, 0, timeout): rcx and r11 are lost, rax is the result, rdi, rsi and rdx the arguments. */
    "3: mov 384(%rbp), %rdx\n  mov $0, %edi\n  mov $0, %esi\n  mov $7, %eax\n  syscall\n"
    "4: mov %r15, %rcx\n"
    "  mov %rax, 128(%rbp)\n  mov %rbx, 136(%rbp)\n  mov %rcx, 144(%rbp)\n  mov %rdx, 152(%rbp)\n"
    "  mov %rsi, 160(%rbp)\n  mov %rdi, 168(%rbp)\n  mov %r8, 176(%rbp)\n  mov %r9, 184(%rbp)\n"
    "  mov %r10, 192(%rbp)\n  mov %r11, 200(%rbp)\n  mov %r12, 208(%rbp)\n  mov %r13, 216(%rbp)\n"
    "  mov %r14, 224(%rbp)\n"
    "  mov %rsp, %rcx\n  lea 248(%rbp), %rsp\n  pushf\n  mov %rcx, %rsp\n"
    "  cld\n"
    "  mov $-128, %rcx\n"
    "5: mov (%rsp,%rcx), %rax\n  mov %rax, 376(%rbp,%rcx)\n  add $8, %rcx\n  jnz 5b\n"
    "  pop %rcx\n  pop %rsi\n"
    "  mov %ecx, %eax\n  mov %rcx, %rdx\n  shr $32, %rdx\n  xsave64 (%rsi)\n"
    "  fninit\n  push $0x1f80\n  ldmxcsr (%rsp)\n  pop %rax\n"
    "  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbx\n  pop %rbp\n  ret\n"
    ".cfi_endproc\n.size hold, .-hold\n");

_Static_assert(__builtin_offsetof(struct frame, flags) == 112, "assembly");
_Static_assert(__builtin_offsetof(struct frame, rounds) == 120, "assembly");
_Static_assert(__builtin_offsetof(struct frame, seen) == 128, "assembly");
_Static_assert(__builtin_offsetof(struct frame, seen_flags) == 240, "assembly");
_Static_assert(__builtin_offsetof(struct frame, red_zone) == 248, "assembly");
_Static_assert(__builtin_offsetof(struct frame, red_value) == 376, "assembly");
_Static_assert(__builtin_offsetof(struct frame, timeout) == 384, "assembly");

static uint64_t next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Offset and size of a state's part of the area. */
static void part(unsigned state, unsigned *offset, unsigned *size)
{
    unsigned eax, ebx, ecx, edx;
    if (state < 2) {
        *offset = state ? 160 : 32;
        *size = state ? 256 : 128;
        return;
    }
    __cpuid_count(0xd, state, eax, ebx, ecx, edx);
    *offset = ebx;
    *size = eax;
}

static void fill(unsigned char *area, uint64_t *random)
{
    memset(area, 0, AREA);
    for (unsigned state = 0; state < 8; ++state) {
        unsigned offset, size;
        if (!(states >> state & 1))
            continue;
        part(state, &offset, &size);
        for (unsigned i = 0; i < size; i += 8) {
            uint64_t value = next(random);
            memcpy(area + offset + i, &value, 8);
        }
    }
    /* Each x87 register is 10 bytes of 16. */
    for (unsigned i = 0; i < 8; ++i)
        memset(area + 32 + i * 16 + 10, 0, 6);
    *(uint16_t *)area = (uint16_t)(0x37f | (next(random) & 0xc00));        /* control word: rounding */
    area[4] = 0xff;                                                        /* all x87 registers in use */
    *(uint32_t *)(area + 24) = (uint32_t)(0x1f80 | (next(random) & 0x6000)); /* mxcsr: rounding */
    *(uint64_t *)(area + 512) = states;
}

static void compare(const unsigned char *loaded, const unsigned char *stored)
{
    if (memcmp(loaded, stored, 2) || loaded[4] != stored[4])
        report_wrong("x87 control", 0, *(const uint16_t *)loaded, *(const uint16_t *)stored);
    if (memcmp(loaded + 24, stored + 24, 4))
        report_wrong("mxcsr", 0, *(const uint32_t *)(loaded + 24), *(const uint32_t *)(stored + 24));
    for (unsigned state = 0; state < 8; ++state) {
        unsigned offset, size;
        if (!(states >> state & 1))
            continue;
        part(state, &offset, &size);
        for (unsigned i = 0; i < size; i += 8)
            if (memcmp(loaded + offset + i, stored + offset + i, 8))
                report_wrong("vector state", (int)(state * 1000 + i), *(const uint64_t *)(loaded + offset + i),
                             *(const uint64_t *)(stored + offset + i));
    }
}

static void hold_once(struct frame *frame, unsigned char *load, unsigned char *store, uint64_t *random, int blocks)
{
    int kept_errno = (int)(next(random) & 0xffff);
    fill(load, random);
    memset(store, 0, AREA);
    for (int i = 0; i < GENERAL; ++i)
        frame->general[i] = next(random);
    frame->flags = (next(random) & FLAGS_SEEN) | 0x202;
    frame->rounds = blocks ? 0 : 1000000;
    frame->red_value = next(random);
    frame->timeout = 3;
    errno = kept_errno;
    uint64_t flags = frame->flags, red_value = frame->red_value;
    hold(frame, load, store, states);
    if (errno != kept_errno)
        report_wrong("errno", 0, (uint64_t)kept_errno, (uint64_t)errno);
    if (blocks) {
        /* The call's result and arguments, and r11, which the kernel destroys. */
        frame->general[0] = 0;
        frame->general[3] = frame->timeout;
        frame->general[4] = frame->general[5] = 0;
        frame->general[9] = frame->seen[9];
    }
    for (int i = 0; i < GENERAL; ++i)
        if (frame->seen[i] != frame->general[i])
            report_wrong("general", i, frame->general[i], frame->seen[i]);
    if ((frame->seen_flags ^ flags) & FLAGS_SEEN)
        report_wrong("flags", 0, flags & FLAGS_SEEN, frame->seen_flags & FLAGS_SEEN);
    for (int i = 0; i < 16; ++i)
        if (frame->red_zone[i] != red_value)
            report_wrong("red zone", i, red_value, frame->red_zone[i]);
    compare(load, store);
    pthread_mutex_lock(&round_lock);
    ++rounds;
    pthread_cond_broadcast(&round_done);
    pthread_mutex_unlock(&round_lock);
}

/* Waits for that many more rounds. */
static long wait_rounds(long more)
{
    pthread_mutex_lock(&round_lock);
    long wanted = rounds + more, seen;
    while ((seen = rounds) < wanted)
        pthread_cond_wait(&round_done, &round_lock);
    pthread_mutex_unlock(&round_lock);
    return seen;
}

static void *run(void *index)
{
    uint64_t random = 0x9e3779b97f4a7c15u * ((uintptr_t)index + 1);
    struct frame frame;
    unsigned char *areas = aligned_alloc(64, 2 * AREA);
    if (!areas)
        exit(1);
    for (;;)
        hold_once(&frame, areas, areas + AREA, &random, (int)((uintptr_t)index & 1));
    return 0;
}

/* The processor's states that are switched on and fit the area. */
static uint64_t usable_states(void)
{
    unsigned eax, edx;
    __asm__("xgetbv" : "=a"(eax), "=d"(edx) : "c"(0));
    return eax & VECTOR_STATES;
}

int main(int argc, char **argv)
{
    char line[128];
    long more;
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    states = usable_states();
    for (int i = 0; i < threads; ++i) {
        pthread_t thread;
        if (pthread_create(&thread, 0, run, (void *)(uintptr_t)i) != 0)
            return 1;
    }
    answer("ready");
    while (read_line(line, sizeof line)) {
        if (!strcmp(line, "report")) {
            answer("report rounds %ld wrong %ld%s", wait_rounds(0),
                   __atomic_load_n(&wrong, __ATOMIC_RELAXED), first_wrong);
        } else if (sscanf(line, "rounds %ld", &more) == 1) {
            wait_rounds(more);
            answer("rounds %ld", more);
        } else {
            answer_common(line);
        }
    }
    return 0;
}
