/*
 * Purpose: a C++ patch. The new function throws an exception of the standard library that the
 *          program catches, and one of the program's own functions throws through it: unwinding
 *          passes the patch's frames and runs their destructors. Patches demo-target/targets/cxx.cpp.
 * Usage:   c++ -O2 -fPIC -shared -nostartfiles -I include samples/cxx-throw.cpp -o cxx-throw.so
 *          suture apply cxx-throw.so --pid N
 */
#include <stdexcept>
#include <string>
#include <suture.h>

SUTURE_EXTERN int inner(int depth);   /* of the program: throws when depth is 0 */
SUTURE_EXTERN int guards_left;        /* of the program: guards alive */

namespace {

struct Guard {
    Guard() { ++guards_left; }
    ~Guard() { --guards_left; }
};

int patched_middle(int depth)
{
    Guard guard;
    if (depth < 0)
        throw std::out_of_range("patched: depth " + std::to_string(depth));
    return inner(depth) + 1000;
}

} // namespace

SUTURE_PATCH("cxx-throw",
    SUTURE_OBJECT(SUTURE_MAIN,
        SUTURE_FUNC("middle", patched_middle)));
