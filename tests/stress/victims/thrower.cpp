// An exception that crosses a call: found by unwinders through the call's return address.
#include <cstdint>

extern "C" __attribute__((noinline, noipa)) int stress_thrower(int x) {
    if (x & 1) {
        throw x;
    }
    return x;
}

// Its call is what the control displaces: push rbx; mov ebx, edi; call.
extern "C" __attribute__((noinline, noipa, aligned(16))) int stress_caller(int x) {
    return stress_thrower(x) + x;
}

extern "C" std::uint64_t stress_guard(std::uint64_t x) {
    try {
        return static_cast<std::uint32_t>(stress_caller(static_cast<int>(x & 0xffff)));
    } catch (int caught) {
        return static_cast<std::uint32_t>(caught) + 7;
    }
}
