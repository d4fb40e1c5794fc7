/* Looks at the tables of patch.c, fills its slots as the command would, and calls its functions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <suture.h>

#ifdef __cplusplus
extern "C" {
#endif
extern __attribute__((visibility("default"))) struct suture_patch suture_patch;
__attribute__((visibility("default"))) int counter = 5;
#ifdef __cplusplus
}
#endif

/* Declared between SUTURE_EXTERN_BEGIN and _END there: C++ linkage in C++. */
__attribute__((visibility("default"))) int helper(int n);
int helper(int n)
{
    return n * 10;
}

static void require(int holds, const char *what)
{
    if (!holds) {
        fprintf(stderr, "not so: %s\n", what);
        exit(1);
    }
}
#define REQUIRE(condition) require(condition, #condition)

static long price(long item)
{
    return item;
}

static int one(int n)
{
    return n;
}

static int hit_count;

int main(void)
{
    const struct suture_patch *p = &suture_patch;
    const struct suture_object *o = p->objects;
    const struct suture_state *s = p->states;
    const struct suture_reference *r = p->references;
    REQUIRE(p->abi == SUTURE_ABI && p->size == sizeof(struct suture_patch));
    REQUIRE(!strcmp(p->name, "every-macro"));
    REQUIRE(p->flags == (SUTURE_REPLACE | SUTURE_NEEDS_LOADER));

    REQUIRE(!o[0].name && !o[0].build_id && o[0].funcs);
    REQUIRE(!strcmp(o[0].funcs[0].old_name, "price") && o[0].funcs[0].new_func && !o[0].funcs[0].sympos);
    REQUIRE(!strcmp(o[0].funcs[1].old_name, "preserving") && !o[0].funcs[2].old_name);
    REQUIRE(!strcmp(o[1].name, "libone.so.1") && !strcmp(o[1].build_id, "00ff"));
    REQUIRE(o[1].funcs[0].sympos == 2 && o[1].funcs[1].sympos == 3 && !o[1].funcs[1].offset);
    REQUIRE(o[1].funcs[0].new_func == o[0].funcs[1].new_func);
    REQUIRE(!o[1].funcs[2].old_name && o[1].funcs[2].offset == 0x15b20);
    REQUIRE(!strcmp(o[1].funcs[2].expected, "4154498d") && o[1].funcs[2].new_func);
    REQUIRE(o[1].funcs[3].offset == 0x15b40 && !o[1].funcs[4].new_func && !o[1].funcs[4].expected);
    REQUIRE(!o[2].name && !o[2].funcs);

    REQUIRE(s[0].id == 10 && s[0].flags == (SUTURE_IS_SHADOW | SUTURE_BLOCK_DISABLE) && !s[0].reserved);
    REQUIRE(s[0].callbacks.pre_patch && s[0].callbacks.post_patch && !s[0].callbacks.pre_unpatch);
    REQUIRE(!s[0].callbacks.post_unpatch && s[0].callbacks.shadow_dtor);
    REQUIRE(s[1].id == 11 && !s[1].flags && s[1].callbacks.post_unpatch && s[2].id == 0);

    REQUIRE(r[0].kind == SUTURE_REF_OLD_FUNC && !r[0].object && !strcmp(r[0].symbol, "price"));
    REQUIRE(r[1].kind == SUTURE_REF_OLD_FUNC && !strcmp(r[1].object, "libone.so.1"));
    REQUIRE(!strcmp(r[1].symbol, "second") && r[1].sympos == 3);
    REQUIRE(r[2].kind == SUTURE_REF_OLD_FUNC && !r[2].symbol && r[2].offset == 0x15b40);
    REQUIRE(r[3].kind == SUTURE_REF_SYMBOL && !strcmp(r[3].symbol, "hits") && r[3].sympos == 4);
    REQUIRE(r[4].kind == SUTURE_REF_OFFSET && !r[4].object && !r[4].symbol && r[4].offset == 0x1234);
    REQUIRE(!strcmp(r[4].expected, "f30f1efa") && !r[5].slot);

    *r[0].slot = __extension__(void *)price;
    *r[1].slot = __extension__(void *)one;
    *r[2].slot = __extension__(void *)one;
    *r[3].slot = &hit_count;
    *r[4].slot = __extension__(void *)one;
    REQUIRE((__extension__(long (*)(long))o[0].funcs[0].new_func)(1000) == 1000 + 50 + 1);
    REQUIRE((__extension__(int (*)(int))o[1].funcs[1].new_func)(7) == 8);
    REQUIRE(hit_count == 1);
    return 0;
}
