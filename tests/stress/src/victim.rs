//! Emission of victims: a head from the catalogue and a body that hashes what it was entered with.

use dynasm::dynasm;
use dynasmrt::DynasmApi;

use crate::call::{NEW, OLD, OldView};
use crate::op::{Assembler, LEA_DISTANCE, Op};
use crate::shape::{Case, Class, Pad};

/// A function made for the harness, with what a planner would have found out about it.
#[derive(Clone, Debug)]
pub struct Victim {
    /// Address of the entry.
    pub entry: u64,
    /// Code from the entry on.
    pub code: Vec<u8>,
    /// Address of the instruction the arming store replaces.
    pub site: u64,
    /// Address after the displaced instructions.
    pub displaced_end: u64,
    /// Bytes of code from the site on that nothing else enters: instruction and padding.
    pub window: u64,
    /// Prologue steps a stub has to take back, in program order.
    pub before: Vec<Op>,
    /// Address of verified padding, or 0.
    pub pad: u64,
    /// What the old code's result shows of the displaced instruction.
    pub view: OldView,
}

/// Emits the victim of `case` with its site at `page + case.offset`.
pub fn emit(case: &Case, page: u64) -> Victim {
    emit_with(case, page, &[])
}

/// As [`emit`], for a victim that does not read r10 and r11 as they came: its hash has 0 instead.
pub fn emit_rested(case: &Case, page: u64) -> Victim {
    emit_with(case, page, &[Op::XorR10, Op::XorR11])
}

fn emit_with(case: &Case, page: u64, last: &[Op]) -> Victim {
    let shape = &case.shape;
    let site = page + case.offset;
    let before: usize = shape.before.iter().map(|op| op.length()).sum();
    let entry = site - before as u64;
    let mut a = Assembler::new(entry as usize);
    let ops: Vec<Op> = [shape.before, &[shape.site], shape.after, last].concat();
    for op in &ops {
        op.emit(&mut a);
    }
    if shape.site != Op::Ret {
        emit_body(&mut a, &ops);
    }
    let code = a.finalize().expect("no labels are left open");
    // Two NOPs are displaced by class P, one instruction by every other.
    let displaced = shape.site.length() as u64 + u64::from(shape.class == Class::P);
    let padded = matches!(shape.site, Op::Ret | Op::JmpShort);
    Victim {
        entry,
        code,
        site,
        displaced_end: site + displaced,
        window: if padded { 5 } else { displaced },
        before: shape.before.to_vec(),
        pad: match (shape.class, shape.pad) {
            // `EB F8` at the entry, `EB F5` behind endbr64: six or five NOPs before the entry.
            (Class::P, _) if before == 0 => entry - 6,
            (Class::P, _) => entry - 5,
            (_, Pad::None) => 0,
            (_, Pad::Near) => entry - 8,
            (_, Pad::Far) => site + 2 - 128,
        },
        view: view(&ops, site),
    }
}

/// What the hash of the old code sees instead of the caller's registers.
fn view(ops: &[Op], site: u64) -> OldView {
    let mut view = OldView::default();
    for op in ops {
        match *op {
            Op::XorR10 => view.r10 = Some(0),
            Op::XorR11 => view.r11 = Some(0),
            Op::MovR11d(n) => view.r11 = Some(u64::from(n as u32)),
            Op::MovabsR11(n) => view.r11 = Some(n as u64),
            Op::LeaR11 => view.r11 = Some(site + 7 + LEA_DISTANCE as u64),
            Op::AddAl(n) => view.al_add = n as u8,
            Op::Ret => view.only_ret = true,
            _ => {}
        }
    }
    view
}

/// `rax` = hash of the registers; uses r11 and leaves the arguments alone.
fn emit_hash(a: &mut Assembler, depth: i32) {
    dynasm!(a ; .arch x64
        ; xor rax, rdi
        ; rol rax, 7 ; add rax, rsi
        ; rol rax, 7 ; add rax, rdx
        ; rol rax, 7 ; add rax, rcx
        ; rol rax, 7 ; add rax, r8
        ; rol rax, 7 ; add rax, r9
        ; rol rax, 7 ; add rax, r10
        ; rol rax, 7 ; add rax, r11
        ; movq r11, xmm0
        ; rol rax, 7 ; add rax, r11
        ; lea r11, [rsp + depth]
        ; rol rax, 7 ; add rax, r11
    );
}

/// The old body: red zone, hash, frame pointer, changed callee-saved registers, epilogue.
#[expect(clippy::useless_conversion, reason = "the assembler's macro converts register numbers")]
pub fn emit_body(a: &mut Assembler, ops: &[Op]) {
    let depth: i32 = ops.iter().map(|op| op.depth()).sum();
    dynasm!(a ; .arch x64 ; mov [rsp - 0x20], rdi);
    if ops.contains(&Op::SpillR11) {
        // Read back, so that a lost store is seen.
        dynasm!(a ; .arch x64 ; mov r11, [rsp - 8]);
    }
    if let Some(Op::StoreImm(n)) = ops.iter().find(|op| matches!(op, Op::StoreImm(_))) {
        let n = *n;
        // Adds the difference between what was stored and what should have been: nothing.
        dynasm!(a ; .arch x64 ; sub DWORD [rsp - 16], n ; add eax, [rsp - 16]);
    }
    emit_hash(a, depth);
    dynasm!(a ; .arch x64 ; mov r11, [rsp - 0x20] ; sub r11, rdi ; add rax, r11);
    if let Some(at) = ops.iter().position(|op| *op == Op::MovRbpRsp) {
        let below: i32 = ops[at..].iter().map(|op| op.depth()).sum();
        dynasm!(a ; .arch x64 ; lea r11, [rbp - below] ; sub r11, rsp ; add rax, r11);
    }
    for op in ops {
        if let Op::Push(register) = *op {
            dynasm!(a ; .arch x64 ; lea Rq(register), [rax + rdi]);
        }
    }
    dynasm!(a ; .arch x64 ; mov r11, QWORD OLD as i64 ; add rax, r11);
    for op in ops.iter().rev() {
        op.emit_undo(a);
    }
    dynasm!(a ; .arch x64 ; ret);
}

/// Emits the new function: same hash, another constant, and it destroys everything the calling
/// convention lets it destroy, the red zone included.
pub fn emit_new(a: &mut Assembler) {
    emit_hash(a, 0);
    dynasm!(a ; .arch x64 ; mov r11, QWORD NEW as i64 ; add rax, r11);
    emit_clobber(a);
    dynasm!(a ; .arch x64 ; ret);
}

/// Destroys every caller-saved register but rax, the flags and the red zone.
pub fn emit_clobber(a: &mut Assembler) {
    dynasm!(a ; .arch x64
        ; mov r11, QWORD 0x5a5a_a5a5_5a5a_a5a5_u64 as i64
        ; mov rcx, r11 ; mov rdx, r11 ; mov rsi, r11 ; mov rdi, r11
        ; mov r8, r11 ; mov r9, r11 ; mov r10, r11
        ; movq xmm0, r11 ; movq xmm1, r11 ; movq xmm2, r11 ; movq xmm3, r11
        ; movq xmm4, r11 ; movq xmm5, r11 ; movq xmm6, r11 ; movq xmm7, r11
        ; movq xmm8, r11 ; movq xmm15, r11
    );
    for offset in (8..=128).step_by(8) {
        let offset: i32 = -offset;
        dynasm!(a ; .arch x64 ; mov [rsp + offset], r11);
    }
    dynasm!(a ; .arch x64 ; stc);
}
