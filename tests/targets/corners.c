/* corners.c - threads that take orders (see orders.h), blocked in functions that are being patched in ways
 * that are hard to see from outside.
 *
 *     f              ->  NAME f 1             what f() returned: 1 old, 2 patched
 *     in WHERE       ->  NAME in 0            is inside one of the functions below now
 *     leave          ->  NAME out R           out of it; R: 10 * what f() was before + what it was after
 *
 *         block        waits for orders
 *         vfork        its vforked child waits for orders, on this very stack
 *         spawn        its spawned child waits for somebody to open the file FIFO (order `open`)
 *         fault        waits in a page fault (order `resolve`)
 *         cold         waits for orders in a part of the function that the compiler moved away
 *         motion       waits to be woken (order `wake`), twice, and moves on its stack in between
 *
 *     split HOW      ->  NAME split 0         waits for orders below a page of its own stack that is no more
 *                                             like its neighbours: HOW = dump, fork, lock or hole
 *     trail          ->  NAME trail 0         waits for orders on a stack full of return addresses into f()'s
 *                                             neighbour trail(), which it has left
 *     leave          ->  NAME out 0           out of these
 *
 *     once           ->  NAME once R          what pair() returned: 11 old, 1022 patched, 12, 21 or 22 mixed
 *     loop           ->  NAME loop 0          calls pair() for ever
 *     aside          ->  NAME aside 0         handles SIGUSR1 on another stack from now on
 *     mixed          ->  NAME mixed N         runs of pair() of looping threads that mixed old and new
 *     runs           ->  NAME runs N          how many there were
 *     open, resolve  ->  NAME open 0          see above
 *     hide           ->  NAME hide 0          the page of the stack where `in motion` waits is away now
 *     serve          ->  NAME serve 0         somebody has read there: first it was woken, then it was read
 *     wake           ->  NAME wake 0          see above
 *     drop           ->  NAME drop 0          the process is nobody's from now on
 *     cage           ->  NAME cage 0          this thread may not read memory by system calls any more, or it
 *                                             kills the process
 *
 * On SIGUSR1 a thread says `NAME caught 0` and waits for orders; told to leave it says `NAME back 0`.
 *
 * Usage: corners [FIFO] */
#include "orders.h"
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGE = 4096 };

static const char *fifo;
static int faults = -1;
static char *far_page;
static int wakes[2];
/* Where the return address into in_motion() lies during its first wait. */
static volatile long *slot;
static char hidden[PAGE];
static long runs, mixed;

PATCHABLE long f(void)
{
    return 1;
}

PATCHABLE long g(void)
{
    return 1;
}

/* Some room before the first call: an entry that is a call cannot be moved. */
PATCHABLE long pair(void)
{
    volatile long weight = 10;
    long first = f();
    return weight * first + g();
}

PATCHABLE long in_block(void)
{
    long first = f();
    answer("%s in 0", self->name);
    obey();
    return 10 * first + f();
}

/* Its parent's frame stays as it is: the child comes back to nobody. */
static void be_child(void)
{
    answer("%s in 0", self->name);
    obey();
    _exit(0);
}

PATCHABLE long in_vfork(void)
{
    long first = f();
    pid_t child = vfork();
    if (child == 0)
        be_child();
    waitpid(child, 0, 0);
    return 10 * first + f();
}

PATCHABLE long in_spawn(void)
{
    char *arguments[] = {"true", 0}, *environment[] = {0};
    posix_spawn_file_actions_t actions;
    pid_t child;
    long first = f();
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 9, fifo, O_RDONLY, 0);
    answer("%s in 0", self->name);
    if (posix_spawn(&child, "/bin/true", &actions, 0, arguments, environment) != 0)
        exit(5);
    waitpid(child, 0, 0);
    posix_spawn_file_actions_destroy(&actions);
    return 10 * first + f();
}

PATCHABLE long in_fault(void)
{
    long first = f();
    answer("%s in 0", self->name);
    first += *(volatile char *)far_page;
    return 10 * first + f();
}

__attribute__((cold, noinline, noclone)) void obey_in_the_cold(void)
{
    answer("%s in 0", self->name);
    obey();
}

/* What is done in the case that the compiler thinks rare lies in in_cold.cold. */
PATCHABLE long in_cold(long rare)
{
    long first = f();
    if (__builtin_expect(rare, 0)) {
        obey_in_the_cold();
        first = 10 * first;
        first += f();
    }
    return first;
}

__asm__(".pushsection .text\n"
        ".type wait_for_byte, @function\n"
        "wait_for_byte:\n"
        ".cfi_startproc\n"
        "xor %eax, %eax\n" /* read */
        "syscall\n"
        "ret\n"
        ".cfi_endproc\n"
        ".size wait_for_byte, . - wait_for_byte\n"
        ".popsection");

/* At the second wait nothing at or above the place of the first one tells that this function is active. */
PATCHABLE long in_motion(void)
{
    static char byte;
    volatile long weight = 10; /* as in pair() */
    long first = f();
    answer("%s in 0", self->name);
    __asm__ volatile("lea -8(%%rsp), %%rax\n"
                     "mov %%rax, %0\n"
                     "call wait_for_byte\n"
                     "push $0\n"
                     ".cfi_adjust_cfa_offset 8\n"
                     "call wait_for_byte\n"
                     "pop %%rax\n"
                     ".cfi_adjust_cfa_offset -8\n"
                     : "=m"(slot)
                     : "D"(wakes[0]), "S"(&byte), "d"(1L)
                     : "rax", "rcx", "r11", "memory");
    return weight * first + f();
}

static int split_page(char *page, const char *how)
{
    if (!strcmp(how, "dump"))
        return madvise(page, PAGE, MADV_DONTDUMP);
    if (!strcmp(how, "fork"))
        return madvise(page, PAGE, MADV_DONTFORK);
    if (!strcmp(how, "lock"))
        return mlock(page, PAGE);
    return mprotect(page, PAGE, PROT_NONE);
}

static void unsplit_page(char *page)
{
    if (madvise(page, PAGE, MADV_DODUMP) || madvise(page, PAGE, MADV_DOFORK) || munlock(page, PAGE) ||
        mprotect(page, PAGE, PROT_READ | PROT_WRITE))
        exit(6);
}

PATCHABLE void split(const char *how)
{
    volatile char room[3 * PAGE];
    char *page = (char *)(((size_t)room + PAGE - 1) & -(size_t)PAGE) + PAGE * 0;
    if (split_page(page, how) != 0)
        exit(6);
    answer("%s split 0", self->name);
    obey();
    unsplit_page(page);
}

/* Leaves its return addresses all over the stack. */
PATCHABLE long trail(long depth)
{
    volatile long here = depth;
    if (depth > 0)
        here += trail(depth - 1);
    return here;
}

/* Waits in the middle of what trail() has left. */
PATCHABLE void rest(void)
{
    volatile char room[2048];
    __asm__ volatile("" : : "r"(room));
    answer("%s trail 0", self->name);
    obey();
    __asm__ volatile("" : : "r"(room));
}

static void loop(void)
{
    answer("%s loop 0", self->name);
    for (;;) {
        long got = pair();
        if (got != 11 && got != 1022)
            __atomic_fetch_add(&mixed, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&runs, 1, __ATOMIC_RELAXED);
    }
}

static void on_signal(int number)
{
    (void)number;
    answer("%s caught 0", self->name);
    obey();
    answer("%s back 0", self->name);
}

static void aside(void)
{
    stack_t stack = {.ss_sp = malloc(65536), .ss_size = 65536};
    if (!stack.ss_sp || sigaltstack(&stack, 0))
        exit(7);
}

/* Whoever touches the page while it is away waits from now on. */
static void take_faults(char *page)
{
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {{(size_t)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    far_page = page;
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &range))
        exit(8);
}

static void prepare_faults(void)
{
    char *page = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        exit(8);
    take_faults(page);
}

static void hide(void)
{
    char *page = (char *)((size_t)slot & -(size_t)PAGE);
    memcpy(hidden, page, PAGE);
    take_faults(page);
    if (madvise(page, PAGE, MADV_DONTNEED))
        exit(12);
}

static void wake(void)
{
    if (write(wakes[1], "", 1) != 1)
        exit(13);
}

/* Puts the page back, has the thread in in_motion() go on to its second wait, and only then lets those read
 * who have come for the page. */
static void serve(void)
{
    struct uffd_msg event;
    struct uffdio_range range = {(size_t)far_page, PAGE};
    struct uffdio_copy copy = {range.start, (size_t)hidden, PAGE, .mode = UFFDIO_COPY_MODE_DONTWAKE};
    if (read(faults, &event, sizeof event) != sizeof event || ioctl(faults, UFFDIO_COPY, &copy))
        exit(14);
    wake();
    while (*slot)
        sched_yield();
    if (ioctl(faults, UFFDIO_WAKE, &range) || close(faults))
        exit(14);
}

static void resolve(void)
{
    struct uffdio_zeropage page = {.range = {(size_t)far_page, PAGE}};
    if (ioctl(faults, UFFDIO_ZEROPAGE, &page))
        exit(9);
}

static void drop(void)
{
    if (setgroups(0, 0) || setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
        exit(10);
}

static void cage(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
        exit(11);
}

static long go_in(const char *where)
{
    if (!strcmp(where, "block"))
        return in_block();
    if (!strcmp(where, "vfork"))
        return in_vfork();
    if (!strcmp(where, "spawn"))
        return in_spawn();
    if (!strcmp(where, "fault")) {
        prepare_faults();
        return in_fault();
    }
    if (!strcmp(where, "motion"))
        return in_motion();
    return in_cold(1);
}

static int carry_out(const char *order)
{
    char arg[16];
    if (!strcmp(order, "f"))
        answer("%s f %ld", self->name, f());
    else if (sscanf(order, "in %15s", arg) == 1)
        answer("%s out %ld", self->name, go_in(arg));
    else if (sscanf(order, "split %15s", arg) == 1) {
        split(arg);
        answer("%s out 0", self->name);
    } else if (!strcmp(order, "trail")) {
        trail(50);
        rest();
        answer("%s out 0", self->name);
    } else if (!strcmp(order, "once"))
        answer("%s once %ld", self->name, pair());
    else if (!strcmp(order, "loop"))
        loop();
    else if (!strcmp(order, "mixed"))
        answer("%s mixed %ld", self->name, __atomic_load_n(&mixed, __ATOMIC_RELAXED));
    else if (!strcmp(order, "runs"))
        answer("%s runs %ld", self->name, __atomic_load_n(&runs, __ATOMIC_RELAXED));
    else {
        if (!strcmp(order, "aside"))
            aside();
        else if (!strcmp(order, "open"))
            close(open(fifo, O_WRONLY | O_CLOEXEC));
        else if (!strcmp(order, "resolve"))
            resolve();
        else if (!strcmp(order, "hide"))
            hide();
        else if (!strcmp(order, "serve"))
            serve();
        else if (!strcmp(order, "wake"))
            wake();
        else if (!strcmp(order, "drop"))
            drop();
        else if (!strcmp(order, "cage"))
            cage();
        else
            return 0;
        answer("%s %s 0", self->name, order);
    }
    return 1;
}

int main(int argc, char **argv)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    fifo = argc > 1 ? argv[1] : "";
    if (sigaction(SIGUSR1, &action, 0) || (argc > 1 && mkfifo(fifo, 0600) != 0) || pipe(wakes))
        return 1;
    return take_orders();
}
