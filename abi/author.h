
/* ---- What a patch author uses ---------------------------------------------------------------
 *
 *     #include <suture.h>
 *
 *     static long fixed_price(long item) { return item * 100; }
 *
 *     SUTURE_PATCH("fix-price",
 *         SUTURE_OBJECT(SUTURE_MAIN,
 *             SUTURE_FUNC("price", fixed_price)));
 *
 *     cc -O2 -fPIC -shared -nostartfiles -I include fix.c -o fix.so
 *
 * The same source compiles as C (C99 on) and C++ (C++11 on).
 *
 * Include this header after all others: it turns the default visibility to hidden, so that the
 * patch's own names can never be captured by names of the program. What the patch uses from the
 * target (functions, variables, private ones too) is declared with SUTURE_EXTERN, whole headers of
 * the target between SUTURE_EXTERN_BEGIN and SUTURE_EXTERN_END. Whatever is forgotten fails at link
 * time ("hidden symbol ... isn't defined"), never at run time.
 */

/* A function or variable of the target, in C++ too one with C linkage: SUTURE_EXTERN int counter;
 * What only a library has that the program loads later is null until then, and again when it is unloaded: see
 * docs/libraries.md. */
#define SUTURE_EXTERN SUTURE_C_LINKAGE __attribute__((visibility("default")))

/* Around declarations or #include lines of the target's own headers (and around what has C++
 * linkage), each on its own line. */
#define SUTURE_EXTERN_BEGIN _Pragma("GCC visibility push(default)")
#define SUTURE_EXTERN_END _Pragma("GCC visibility pop")

/* For a new function whose callers may keep values in registers that a function call usually
 * destroys (gcc's -fipa-ra does that with callers in the same file): it keeps all of them. The
 * command says when it is needed. Such a function cannot compute in floating point. */
#define SUTURE_PRESERVE __attribute__((no_caller_saved_registers, target("general-regs-only")))

/* The main executable, where an object name is asked for. */
#define SUTURE_MAIN ((const char *)0)

/* Declares `name`, a function pointer through which the replaced function stays callable. It is
 * filled when the patch names it in SUTURE_FUNC_OLD:
 *
 *     SUTURE_OLD(long, old_price, (long item));
 */
#define SUTURE_OLD(ret, name, args) SUTURE_SLOT_DECL ret(*name) args SUTURE_SLOT_NAME(name)

/* Declares `name`, a pointer to something of type `type` in the target. It is filled when the patch
 * names it in SUTURE_SYMBOL or SUTURE_OFFSET:
 *
 *     SUTURE_POINTER(int, hits);                  ++*hits;
 *
 * It is null while its library is not loaded.
 */
#define SUTURE_POINTER(type, name) SUTURE_SLOT_DECL type *name SUTURE_SLOT_NAME(name)

/* The same for a function whose name alone is not enough to find it. */
#define SUTURE_FUNCTION(ret, name, args) SUTURE_OLD(ret, name, args)

/* The patch. Once per patch, after all functions; its items are those below, at most 24. */
#define SUTURE_PATCH(patch_name, ...)                                                              \
    SUTURE_EACH(SUTURE_PASS_DEFINE, ~, __VA_ARGS__)                                                \
    static const struct suture_object suture_objects[] = {                                         \
        SUTURE_EACH(SUTURE_PASS_OBJECT, ~, __VA_ARGS__){0, 0, 0}};                                 \
    static const struct suture_state suture_states[] = {                                           \
        SUTURE_EACH(SUTURE_PASS_STATE, ~, __VA_ARGS__){0, 0, 0, {0, 0, 0, 0, 0}}};                 \
    static const struct suture_reference suture_references[] = {                                   \
        SUTURE_EACH(SUTURE_PASS_REFERENCE, ~, __VA_ARGS__){0, 0, 0, 0, 0, 0, 0, 0}};               \
    SUTURE_C_LINKAGE_BEGIN                                                                         \
    extern __attribute__((visibility("default"))) struct suture_patch suture_patch;                \
    SUTURE_C_LINKAGE_END                                                                           \
    struct suture_patch suture_patch = {                                                           \
        SUTURE_ABI,                                                                                \
        (uint32_t)sizeof(struct suture_patch),                                                     \
        patch_name,                                                                                \
        0 SUTURE_EACH(SUTURE_PASS_FLAG, ~, __VA_ARGS__),                                           \
        suture_objects,                                                                            \
        suture_states,                                                                             \
        suture_references,                                                                         \
    }

/* Item: functions of one object, at most 24. `name` is the library's SONAME or file name, or
 * SUTURE_MAIN. SUTURE_OBJECT_ID also states the build-id (hexadecimal) the object must have. */
#define SUTURE_OBJECT(name, ...) (OBJECT, name, 0, __VA_ARGS__)
#define SUTURE_OBJECT_ID(name, build_id, ...) (OBJECT, name, build_id, __VA_ARGS__)

/* Inside an object: the function `old` is replaced by `func`. _AT picks one of several functions of
 * that name, counted from 1 in the order of the symbol table. _OLD keeps the old one callable
 * through a pointer declared with SUTURE_OLD. */
#define SUTURE_FUNC(old, func) (PLAIN, old, func, 0, 0, 0, ~)
#define SUTURE_FUNC_AT(old, sympos, func) (PLAIN, old, func, sympos, 0, 0, ~)
#define SUTURE_FUNC_OLD(old, func, slot) (KEPT, old, func, 0, 0, 0, slot)
#define SUTURE_FUNC_AT_OLD(old, sympos, func, slot) (KEPT, old, func, sympos, 0, 0, slot)

/* Inside a SUTURE_OBJECT_ID: a function without a symbol, as in stripped programs. `offset` is the
 * address of its entry as `objdump -d` prints it, `expected` its first bytes, four or more, in
 * hexadecimal:
 *
 *     SUTURE_FUNC_OFFSET(0x15b20, "4154498d", new_func)
 */
#define SUTURE_FUNC_OFFSET(offset, expected, func) (PLAIN, 0, func, 0, offset, expected, ~)
#define SUTURE_FUNC_OFFSET_OLD(offset, expected, func, slot) (KEPT, 0, func, 0, offset, expected, slot)

/* Item: fills the pointer `slot` with the address of a symbol of `object`. `sympos` as above, 0 =
 * the name must be unique. Only for what a plain SUTURE_EXTERN cannot say. */
#define SUTURE_SYMBOL(slot, object, symbol, sympos) (POINTER, slot, SUTURE_REF_SYMBOL, object, symbol, sympos, 0, 0)

/* Item: fills the pointer `slot` with the object's load address plus `offset`, after the bytes
 * `expected` (hexadecimal) were found there. For objects without symbols. */
#define SUTURE_OFFSET(slot, object, offset, expected) (POINTER, slot, SUTURE_REF_OFFSET, object, 0, 0, offset, expected)

/* Item: a state. `id` is a constant and not 0, `flags` is 0 or SUTURE_IS_SHADOW |
 * SUTURE_BLOCK_DISABLE; callbacks not needed are 0. */
#define SUTURE_STATE(id, flags, pre_patch, post_patch, pre_unpatch, post_unpatch, shadow_dtor)     \
    (STATE, id, flags, pre_patch, post_patch, pre_unpatch, post_unpatch, shadow_dtor)

/* Item: the patch takes the place of all patches enabled before. */
#define SUTURE_REPLACE_ALL (FLAG, SUTURE_REPLACE)

/* Item: the patch needs the program's own loader. */
#define SUTURE_WITH_LOADER (FLAG, SUTURE_NEEDS_LOADER)

/* ---- Shadow variables: data of the patch beside objects of the program ------------------------
 *
 * A variable belongs to an address, which is only a number here and may be NULL, and an id, which all
 * patches that share the variable know (the id of a state, so that it goes with the state). It begins
 * zeroed, at a multiple of 16, and has no limit in size or number but memory.
 *
 * All of these may be called by any thread and in signal handlers, also in one that interrupted another
 * of them. None takes a lock; `get` makes no system call either. A caller waits only while another
 * thread is in the constructor or destructor of the very same variable; a thread that is in one itself
 * is refused. Constructors and destructors must return: no exception, no longjmp.
 *
 * The map is protected, not the data: who uses a variable at the same time as others settles that with
 * them, and who frees one must know that nobody uses it any more, or readers use guards.
 */
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* Fills a new variable, which nobody sees yet; `arg` is the caller's. 0, or an errno: then there is no
 * variable. Runs once for every variable that becomes visible. */
typedef int (*suture_shadow_ctor)(void *obj, void *data, void *arg);
/* Called once for every variable that is freed, when nobody finds it any more. */
typedef void (*suture_shadow_dtor)(void *obj, void *data);

/* The variable, or NULL. */
void *suture_shadow_get(const void *obj, uint64_t id);
/* A new variable; NULL if there is one (which stays as it is), `ctor` fails, or there is no memory. Which
 * of them is in the process's log, once per id. `ctor` may be 0. */
void *suture_shadow_alloc(const void *obj, uint64_t id, size_t size, suture_shadow_ctor ctor, void *arg);
/* The variable there is (`size` and `ctor` do not matter then), else a new one. */
void *suture_shadow_get_or_alloc(const void *obj, uint64_t id, size_t size, suture_shadow_ctor ctor,
                                 void *arg);
/* Frees the variable, if there is one. `dtor` may be 0. */
void suture_shadow_free(const void *obj, uint64_t id, suture_shadow_dtor dtor);
/* Frees the variables of all objects with that id. */
void suture_shadow_free_all(uint64_t id, suture_shadow_dtor dtor);

/* A guard: what is found after `enter` stays readable until `leave` is given its result, whoever frees it
 * meanwhile (its destructor has run then). Cheap, and may be nested. */
uint32_t suture_shadow_enter(void);
void suture_shadow_leave(uint32_t guard);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

/* ---- Attributes: what a patch can ask about patches ------------------------------------------
 *
 * The tree that `suture get` lists (docs/states.md), as numbers or as the texts it shows. By any thread and in
 * signal handlers, in callbacks and in patched functions; no lock, no memory, nobody waits. In `pre_patch` of
 * patch P "P/enabled" is 0 and "P/transition" 1.
 */
#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The value of "hooking", "tick_ms", "PATCH/enabled", "PATCH/transition", "PATCH/replace",
 * "PATCH/stack_order", "PATCH/OBJECT/patched" (the executable is "main"), "PATCH/states/ID/holders" (how many),
 * ".../is_shadow", ".../block_disable", ".../callbacks" (1 = pre_patch, 2 = post_patch, 4 = pre_unpatch,
 * 8 = post_unpatch, 16 = shadow_dtor), "PATCH/pending" (how many threads). Else a negative errno: -ENOENT no such
 * path, -EISDIR it holds others (so "PATCH" is -EISDIR while the patch is listed), -EACCES it can only be written,
 * -EOPNOTSUPP it is a text ("PATCH/last_callback"), -EINVAL null, or longer than 255 bytes. */
int64_t suture_attribute_get(const char *path);

/* Any attribute as the text that `suture get` shows, into `buffer`, which has `size` bytes: as much of it as there is
 * room for, and a NUL. Gives the length of the whole text, which was cut if that is not below `size` (`buffer` may be
 * null if `size` is 0). Else the negative errno that suture_attribute_get gives, but for -EOPNOTSUPP, and `buffer`
 * holds nothing of use; -EINVAL also for a null buffer.
 * "PATCH/pending" has a line for each thread that was looked at and not moved: as the runtime sees it, by what lies on
 * the thread's stack, while `suture get` walks the stack again; functions of C++ and Rust are named as the linker
 * knows them. */
long suture_attribute_read(const char *path, char *buffer, size_t size);

/* Patches are changed by the command only. This says why a write is refused: what `suture set` would say of
 * path and value (-ENOENT, -EACCES, -EINVAL), else -EDEADLK in a callback, which would wait for itself, and -EPERM
 * elsewhere. 0: it would have changed nothing ("PATCH/force" "0"). */
int suture_attribute_set(const char *path, const char *value);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif

/* ---- How the macros above work: nothing to use below ----------------------------------------
 *
 * An item is a tuple whose first word is its tag. SUTURE_PATCH walks the items once per table and
 * calls SUTURE_<table>_<tag> for each. Slots are declared `extern` and defined by the item that
 * fills them, so a slot that no item fills is a link error. */

#ifdef __cplusplus
#define SUTURE_C_LINKAGE extern "C"
#define SUTURE_C_LINKAGE_BEGIN extern "C" {
#define SUTURE_C_LINKAGE_END }
#else
#define SUTURE_C_LINKAGE extern
#define SUTURE_C_LINKAGE_BEGIN
#define SUTURE_C_LINKAGE_END
#endif

#define SUTURE_SLOT_DECL extern __attribute__((visibility("hidden")))
#define SUTURE_SLOT_NAME(name) __asm__("suture_slot_" #name)
#define SUTURE_SLOT_DEFINE(name)                                                                   \
    SUTURE_C_LINKAGE_BEGIN                                                                         \
    extern __attribute__((visibility("hidden"))) void *suture_slot_##name;                         \
    SUTURE_C_LINKAGE_END                                                                           \
    void *suture_slot_##name;

#define SUTURE_PASS_DEFINE(n, c, item) SUTURE_PASS(SUTURE_DEFINE_, n, c, item)
#define SUTURE_PASS_OBJECT(n, c, item) SUTURE_PASS(SUTURE_OBJECT_, n, c, item)
#define SUTURE_PASS_STATE(n, c, item) SUTURE_PASS(SUTURE_STATE_, n, c, item)
#define SUTURE_PASS_REFERENCE(n, c, item) SUTURE_PASS(SUTURE_REFERENCE_, n, c, item)
#define SUTURE_PASS_FLAG(n, c, item) SUTURE_PASS(SUTURE_FLAG_, n, c, item)
#define SUTURE_PASS_FUNC(n, c, item) SUTURE_FPASS(SUTURE_FUNC_, n, c, item)
#define SUTURE_PASS_SLOT(n, c, item) SUTURE_FPASS(SUTURE_SLOT_, n, c, item)
#define SUTURE_PASS_OLD(n, c, item) SUTURE_FPASS(SUTURE_OLD_, n, c, item)

#define SUTURE_DEFINE_OBJECT(n, c, name, id, ...)                                                  \
    SUTURE_EACH_FUNC(SUTURE_PASS_SLOT, c, __VA_ARGS__)                                             \
    static const struct suture_func suture_funcs_##n[] = {                                         \
        SUTURE_EACH_FUNC(SUTURE_PASS_FUNC, c, __VA_ARGS__){0, 0, 0, 0, 0}};
#define SUTURE_DEFINE_POINTER(n, c, slot, ...) SUTURE_SLOT_DEFINE(slot)
#define SUTURE_DEFINE_STATE(n, c, ...)
#define SUTURE_DEFINE_FLAG(n, c, ...)

#define SUTURE_SLOT_PLAIN(n, c, old, func, sympos, offset, expected, slot)
#define SUTURE_SLOT_KEPT(n, c, old, func, sympos, offset, expected, slot) SUTURE_SLOT_DEFINE(slot)
#define SUTURE_FUNC_PLAIN(n, c, old, func, sympos, offset, expected, slot)                         \
    {old, __extension__(const void *)(func), sympos, offset, expected},
#define SUTURE_FUNC_KEPT SUTURE_FUNC_PLAIN

#define SUTURE_OBJECT_OBJECT(n, c, name, id, ...) {name, id, suture_funcs_##n},
#define SUTURE_OBJECT_POINTER(n, c, ...)
#define SUTURE_OBJECT_STATE(n, c, ...)
#define SUTURE_OBJECT_FLAG(n, c, ...)

#define SUTURE_STATE_OBJECT(n, c, ...)
#define SUTURE_STATE_POINTER(n, c, ...)
/* An id of 0 would end the table: the size of the array is then negative. */
#define SUTURE_STATE_STATE(n, c, id, flags, pre, post, unpre, unpost, dtor)                        \
    {(id) + 0 * sizeof(char[(id) ? 1 : -1]), flags, 0, {pre, post, unpre, unpost, dtor}},
#define SUTURE_STATE_FLAG(n, c, ...)

#define SUTURE_REFERENCE_OBJECT(n, c, name, id, ...) SUTURE_EACH_FUNC(SUTURE_PASS_OLD, name, __VA_ARGS__)
#define SUTURE_OLD_PLAIN(n, c, old, func, sympos, offset, expected, slot)
#define SUTURE_OLD_KEPT(n, c, old, func, sympos, offset, expected, slot)                           \
    {&suture_slot_##slot, SUTURE_REF_OLD_FUNC, 0, c, old, sympos, offset, 0},
#define SUTURE_REFERENCE_POINTER(n, c, slot, kind, object, symbol, sympos, offset, expected)       \
    {&suture_slot_##slot, kind, 0, object, symbol, sympos, offset, expected},
#define SUTURE_REFERENCE_STATE(n, c, ...)
#define SUTURE_REFERENCE_FLAG(n, c, ...)

#define SUTURE_FLAG_OBJECT(n, c, ...)
#define SUTURE_FLAG_POINTER(n, c, ...)
#define SUTURE_FLAG_STATE(n, c, ...)
#define SUTURE_FLAG_FLAG(n, c, flag) | flag

#define SUTURE_CAT(a, b) SUTURE_CAT_(a, b)
#define SUTURE_CAT_(a, b) a##b
#define SUTURE_CALL(macro, args) macro args
#define SUTURE_TAG(tag, ...) tag
#define SUTURE_REST(tag, ...) __VA_ARGS__
#define SUTURE_PASS(table, n, c, item)                                                             \
    SUTURE_CALL(SUTURE_CAT(table, SUTURE_TAG item), (n, c, SUTURE_REST item))

/* The same for the functions inside an object: a macro is not expanded inside itself. */
#define SUTURE_FCAT(a, b) SUTURE_FCAT_(a, b)
#define SUTURE_FCAT_(a, b) a##b
#define SUTURE_FCALL(macro, args) macro args
#define SUTURE_FPASS(table, n, c, item)                                                            \
    SUTURE_FCALL(SUTURE_FCAT(table, SUTURE_TAG item), (n, c, SUTURE_REST item))

#define SUTURE_COUNT(...)                                                                          \
    SUTURE_COUNT_(__VA_ARGS__, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8,   \
                  7, 6, 5, 4, 3, 2, 1, 0)
#define SUTURE_COUNT_(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t, u, v, w, x, N, ...) N

#define SUTURE_EACH(m, c, ...) SUTURE_CAT(SUTURE_E, SUTURE_COUNT(__VA_ARGS__))(m, c, __VA_ARGS__)
#define SUTURE_E1(m, c, x) m(1, c, x)
#define SUTURE_E2(m, c, x, ...) m(2, c, x) SUTURE_E1(m, c, __VA_ARGS__)
#define SUTURE_E3(m, c, x, ...) m(3, c, x) SUTURE_E2(m, c, __VA_ARGS__)
#define SUTURE_E4(m, c, x, ...) m(4, c, x) SUTURE_E3(m, c, __VA_ARGS__)
#define SUTURE_E5(m, c, x, ...) m(5, c, x) SUTURE_E4(m, c, __VA_ARGS__)
#define SUTURE_E6(m, c, x, ...) m(6, c, x) SUTURE_E5(m, c, __VA_ARGS__)
#define SUTURE_E7(m, c, x, ...) m(7, c, x) SUTURE_E6(m, c, __VA_ARGS__)
#define SUTURE_E8(m, c, x, ...) m(8, c, x) SUTURE_E7(m, c, __VA_ARGS__)
#define SUTURE_E9(m, c, x, ...) m(9, c, x) SUTURE_E8(m, c, __VA_ARGS__)
#define SUTURE_E10(m, c, x, ...) m(10, c, x) SUTURE_E9(m, c, __VA_ARGS__)
#define SUTURE_E11(m, c, x, ...) m(11, c, x) SUTURE_E10(m, c, __VA_ARGS__)
#define SUTURE_E12(m, c, x, ...) m(12, c, x) SUTURE_E11(m, c, __VA_ARGS__)
#define SUTURE_E13(m, c, x, ...) m(13, c, x) SUTURE_E12(m, c, __VA_ARGS__)
#define SUTURE_E14(m, c, x, ...) m(14, c, x) SUTURE_E13(m, c, __VA_ARGS__)
#define SUTURE_E15(m, c, x, ...) m(15, c, x) SUTURE_E14(m, c, __VA_ARGS__)
#define SUTURE_E16(m, c, x, ...) m(16, c, x) SUTURE_E15(m, c, __VA_ARGS__)
#define SUTURE_E17(m, c, x, ...) m(17, c, x) SUTURE_E16(m, c, __VA_ARGS__)
#define SUTURE_E18(m, c, x, ...) m(18, c, x) SUTURE_E17(m, c, __VA_ARGS__)
#define SUTURE_E19(m, c, x, ...) m(19, c, x) SUTURE_E18(m, c, __VA_ARGS__)
#define SUTURE_E20(m, c, x, ...) m(20, c, x) SUTURE_E19(m, c, __VA_ARGS__)
#define SUTURE_E21(m, c, x, ...) m(21, c, x) SUTURE_E20(m, c, __VA_ARGS__)
#define SUTURE_E22(m, c, x, ...) m(22, c, x) SUTURE_E21(m, c, __VA_ARGS__)
#define SUTURE_E23(m, c, x, ...) m(23, c, x) SUTURE_E22(m, c, __VA_ARGS__)
#define SUTURE_E24(m, c, x, ...) m(24, c, x) SUTURE_E23(m, c, __VA_ARGS__)

#define SUTURE_EACH_FUNC(m, c, ...) SUTURE_FCAT(SUTURE_F, SUTURE_COUNT(__VA_ARGS__))(m, c, __VA_ARGS__)
#define SUTURE_F1(m, c, x) m(1, c, x)
#define SUTURE_F2(m, c, x, ...) m(2, c, x) SUTURE_F1(m, c, __VA_ARGS__)
#define SUTURE_F3(m, c, x, ...) m(3, c, x) SUTURE_F2(m, c, __VA_ARGS__)
#define SUTURE_F4(m, c, x, ...) m(4, c, x) SUTURE_F3(m, c, __VA_ARGS__)
#define SUTURE_F5(m, c, x, ...) m(5, c, x) SUTURE_F4(m, c, __VA_ARGS__)
#define SUTURE_F6(m, c, x, ...) m(6, c, x) SUTURE_F5(m, c, __VA_ARGS__)
#define SUTURE_F7(m, c, x, ...) m(7, c, x) SUTURE_F6(m, c, __VA_ARGS__)
#define SUTURE_F8(m, c, x, ...) m(8, c, x) SUTURE_F7(m, c, __VA_ARGS__)
#define SUTURE_F9(m, c, x, ...) m(9, c, x) SUTURE_F8(m, c, __VA_ARGS__)
#define SUTURE_F10(m, c, x, ...) m(10, c, x) SUTURE_F9(m, c, __VA_ARGS__)
#define SUTURE_F11(m, c, x, ...) m(11, c, x) SUTURE_F10(m, c, __VA_ARGS__)
#define SUTURE_F12(m, c, x, ...) m(12, c, x) SUTURE_F11(m, c, __VA_ARGS__)
#define SUTURE_F13(m, c, x, ...) m(13, c, x) SUTURE_F12(m, c, __VA_ARGS__)
#define SUTURE_F14(m, c, x, ...) m(14, c, x) SUTURE_F13(m, c, __VA_ARGS__)
#define SUTURE_F15(m, c, x, ...) m(15, c, x) SUTURE_F14(m, c, __VA_ARGS__)
#define SUTURE_F16(m, c, x, ...) m(16, c, x) SUTURE_F15(m, c, __VA_ARGS__)
#define SUTURE_F17(m, c, x, ...) m(17, c, x) SUTURE_F16(m, c, __VA_ARGS__)
#define SUTURE_F18(m, c, x, ...) m(18, c, x) SUTURE_F17(m, c, __VA_ARGS__)
#define SUTURE_F19(m, c, x, ...) m(19, c, x) SUTURE_F18(m, c, __VA_ARGS__)
#define SUTURE_F20(m, c, x, ...) m(20, c, x) SUTURE_F19(m, c, __VA_ARGS__)
#define SUTURE_F21(m, c, x, ...) m(21, c, x) SUTURE_F20(m, c, __VA_ARGS__)
#define SUTURE_F22(m, c, x, ...) m(22, c, x) SUTURE_F21(m, c, __VA_ARGS__)
#define SUTURE_F23(m, c, x, ...) m(23, c, x) SUTURE_F22(m, c, __VA_ARGS__)
#define SUTURE_F24(m, c, x, ...) m(24, c, x) SUTURE_F23(m, c, __VA_ARGS__)

/* ---- What a library of coroutines uses ------------------------------------------------------
 *
 * Not for patches. A coroutine that is suspended inside an old function holds no thread up, since no
 * thread's registers lead to its stack; when it is resumed it would mix old and new code. So whoever
 * switches stacks says where they are:
 *
 *     #define SUTURE_NOT_A_PATCH
 *     #include <suture.h>
 *
 *     if (suture_stack_register)
 *         number = suture_stack_register(low, high, &saved_sp, &resumer_sp);
 *
 * The stack is [low, high) without its guard page, all addresses are multiples of 8. `saved_sp` points to the word that holds
 * the stack pointer while nothing runs on the stack (before anything ran there: no address inside);
 * more than 8 bytes below it is not looked at. `resumer_sp` points to the word that holds the stack pointer
 * of whoever resumed what runs on the stack: there the thread's own frames begin. Both words are read
 * at any time and must stay readable while the stack is registered. Either may be 0: then the whole
 * stack is searched for return addresses, old ones too, and a thread that runs on the stack is not
 * moved.
 *
 * To be called before anything runs on the stack, and unregistered when nothing ever will again. Both
 * are lock-free, need no thread-local storage and may be called in a signal handler. A coroutine must
 * be resumed by the thread that suspended it while a transition is going on: one that wanders is as
 * old or new as the thread it wandered to.
 *
 * Weak: both are null unless the runtime was loaded with the program (LD_PRELOAD, or linked). */
#ifdef __cplusplus
extern "C" {
#endif
/* A number above 0 for suture_stack_unregister, -EINVAL, or -ENOMEM beyond 65 536 stacks. */
__attribute__((weak)) int suture_stack_register(const void *low, const void *high, void *const *saved_sp,
                                                void *const *resumer_sp);
/* 0, or -ENOENT. */
__attribute__((weak)) int suture_stack_unregister(int number);
#ifdef __cplusplus
}
#endif

#ifndef SUTURE_NOT_A_PATCH
#pragma GCC visibility push(hidden)
#endif
