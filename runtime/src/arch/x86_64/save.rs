//! Saving what compiled code of the runtime may change, for callers that expect nothing to be changed.
//!
//! Compiled code uses the vector registers of the baseline and leaves the rest of wider ones alone. In the order
//! `save_general`, `save_vectors`, the call, `restore_vectors`, `restore_general`; in between `rbx` holds the stack
//! pointer of before, and the stack is aligned for the call.

/// Pushes ten words: the registers that a call may change, and `rbx`.
macro_rules! save_general {
    () => {
        "push rax\npush rcx\npush rdx\npush rsi\npush rdi\npush r8\npush r9\npush r10\npush r11\npush rbx"
    };
}

/// Takes back what `save_general` has pushed.
macro_rules! restore_general {
    () => {
        "pop rbx\npop r11\npop r10\npop r9\npop r8\npop rdi\npop rsi\npop rdx\npop rcx\npop rax"
    };
}

/// Aligns the stack and saves the vector registers on it.
macro_rules! save_vectors {
    () => {
        concat!(
            "mov rbx, rsp\nand rsp, -16\nsub rsp, 256\n",
            "movaps [rsp], xmm0\nmovaps [rsp + 16], xmm1\nmovaps [rsp + 32], xmm2\nmovaps [rsp + 48], xmm3\n",
            "movaps [rsp + 64], xmm4\nmovaps [rsp + 80], xmm5\nmovaps [rsp + 96], xmm6\n",
            "movaps [rsp + 112], xmm7\nmovaps [rsp + 128], xmm8\nmovaps [rsp + 144], xmm9\n",
            "movaps [rsp + 160], xmm10\nmovaps [rsp + 176], xmm11\nmovaps [rsp + 192], xmm12\n",
            "movaps [rsp + 208], xmm13\nmovaps [rsp + 224], xmm14\nmovaps [rsp + 240], xmm15",
        )
    };
}

/// Takes back what `save_vectors` has saved.
macro_rules! restore_vectors {
    () => {
        concat!(
            "movaps xmm0, [rsp]\nmovaps xmm1, [rsp + 16]\nmovaps xmm2, [rsp + 32]\nmovaps xmm3, [rsp + 48]\n",
            "movaps xmm4, [rsp + 64]\nmovaps xmm5, [rsp + 80]\nmovaps xmm6, [rsp + 96]\n",
            "movaps xmm7, [rsp + 112]\nmovaps xmm8, [rsp + 128]\nmovaps xmm9, [rsp + 144]\n",
            "movaps xmm10, [rsp + 160]\nmovaps xmm11, [rsp + 176]\nmovaps xmm12, [rsp + 192]\n",
            "movaps xmm13, [rsp + 208]\nmovaps xmm14, [rsp + 224]\nmovaps xmm15, [rsp + 240]\n",
            "mov rsp, rbx",
        )
    };
}

pub(super) use {restore_general, restore_vectors, save_general, save_vectors};
