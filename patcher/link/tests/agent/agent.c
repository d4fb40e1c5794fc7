/*
 * The process that the linker's tests link patches into. It carries out a plan by itself, in the
 * simplest way: map, fill, protect, call. Commands come on stdin, answers go to stderr; stdout is
 * the program's own.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct mapping { uint64_t addr, len, offset; uint32_t kind, prot, final_prot, role; };
struct fixup { uint64_t place; uint32_t kind, object; uint64_t addend; };
struct plan {
    uint64_t mappings, fixups, objects, blob;
    uint64_t start, end, eh_frame_hdr, entry, argument;
};

/* The structure of <dlfcn.h>, which older headers lack. */
struct found_object {
    unsigned long long flags;
    void *start, *end, *link_map, *eh_frame;
    unsigned long long reserved[7];
};

static struct plan plan;
static int (*next_find_object)(void *, struct found_object *);

/* Exported: libgcc's unwinder calls this one, before the loader's. */
int find_object(void *pc, struct found_object *result) __asm__("_dl_find_object");
int find_object(void *pc, struct found_object *result)
{
    uint64_t at = (uint64_t)pc;
    if (plan.eh_frame_hdr && at >= plan.start && at < plan.end) {
        memset(result, 0, sizeof *result);
        result->start = (void *)plan.start;
        result->end = (void *)plan.end;
        result->eh_frame = (void *)plan.eh_frame_hdr;
        return 0;
    }
    if (!next_find_object)
        *(void **)&next_find_object = dlsym(RTLD_NEXT, "_dl_find_object");
    return next_find_object ? next_find_object(pc, result) : -1;
}

/* What a TLS descriptor calls: its argument is the offset itself. */
__asm__(".text\n.local agent_tlsdesc\n.type agent_tlsdesc,@function\n"
        "agent_tlsdesc: mov 8(%rax),%rax\n ret\n");
extern char agent_tlsdesc[];

__attribute__((weak)) void host_start(void) {}
__attribute__((weak)) long host_call(long (*run)(long), long argument) { return run(argument); }

static void fail(const char *what, long detail)
{
    fprintf(stderr, "failed %s %#lx\n", what, detail);
    _exit(1);
}

static void take(void *to, size_t len)
{
    if (len && fread(to, len, 1, stdin) != 1)
        fail("input", (long)len);
}

static void fill(const struct fixup *fixup, const uint64_t *bases)
{
    uint64_t *place = (uint64_t *)fixup->place;
    switch (fixup->kind) {
    case 0: *place = bases[fixup->object] + fixup->addend; break;
    case 1: *place = ((uint64_t (*)(void))(bases[fixup->object] + fixup->addend))(); break;
    case 2: *place = fixup->addend; break;
    case 3: *place = (uint64_t)agent_tlsdesc; break;
    default: fail("kind", fixup->kind);
    }
}

static void commit(void)
{
    take(&plan, sizeof plan);
    struct mapping *mappings = calloc(plan.mappings + 1, sizeof *mappings);
    struct fixup *fixups = calloc(plan.fixups + 1, sizeof *fixups);
    uint64_t *bases = calloc(plan.objects + 1, sizeof *bases);
    char *blob = malloc(plan.blob + 1);
    take(mappings, plan.mappings * sizeof *mappings);
    take(fixups, plan.fixups * sizeof *fixups);
    take(bases, plan.objects * sizeof *bases);
    take(blob, plan.blob);
    int fd = memfd_create("patch", MFD_CLOEXEC);
    if (fd < 0 || write(fd, blob, plan.blob) != (ssize_t)plan.blob)
        fail("memfd", fd);
    for (size_t i = 0; i < plan.mappings; i++) {
        struct mapping *m = &mappings[i];
        int flags = MAP_PRIVATE | MAP_FIXED_NOREPLACE | (m->kind ? 0 : MAP_ANONYMOUS);
        void *at = mmap((void *)m->addr, m->len, (int)m->prot, flags, m->kind ? fd : -1, (off_t)m->offset);
        if (at != (void *)m->addr)
            fail("mmap", (long)m->addr);
    }
    close(fd);
    for (size_t i = 0; i < plan.fixups; i++)
        fill(&fixups[i], bases);
    for (size_t i = 0; i < plan.mappings; i++)
        if (mappings[i].prot != mappings[i].final_prot &&
            mprotect((void *)mappings[i].addr, mappings[i].len, (int)mappings[i].final_prot))
            fail("mprotect", (long)mappings[i].addr);
    free(mappings);
    free(fixups);
    free(bases);
    free(blob);
}

int main(void)
{
    host_start();
    /* The heap lies near the program, where the plan looks for free room: it has to be there before. */
    void *volatile first = malloc(1);
    (void)first;
    fprintf(stderr, "ready\n");
    commit();
    long result = host_call((long (*)(long))plan.entry, (long)plan.argument);
    fflush(stdout);
    fprintf(stderr, "result %ld\n", result);
    return 0;
}
