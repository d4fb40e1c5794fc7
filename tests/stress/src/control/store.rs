//! Controls that break the arming store.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{Setting, options, world_of};
use crate::board::Board;
use crate::engine::{Options, run, run_with_handlers};
use crate::error::Result;
use crate::memory::jump;
use crate::op::Op;
use crate::shape::{Case, Class, Pad, Shape, named};
use crate::signals::{install, instruction_pointer, record_faults, set_instruction_pointer};
use crate::store::Protocol;

/// `push rbp; mov rbp,rsp; push rbx` covered by a five-byte jump.
///
/// The site is planned as class J, whose entry, stub and copy are the same; only the store becomes
/// the copy of a whole jump to a stub nearby.
pub fn naive_copy(board: &'static Board, setting: Setting) -> Result<()> {
    let shape = Shape {
        name: "three instructions",
        class: Class::J,
        before: &[],
        site: Op::Push(5),
        after: &[Op::MovRbpRsp, Op::Push(3), Op::SubImm8(8)],
        pad: Pad::None,
    };
    let mut world = world_of(Case { shape, offset: 0x800 })?;
    let planned = &mut world.targets[0].planned.site;
    if !setting.mended {
        // SAFETY: the site is eight-byte aligned text of this world.
        let old = unsafe { AtomicU64::from_ptr(planned.site as *mut u64) }.load(Relaxed);
        let mut new = old.to_le_bytes();
        new[..5].copy_from_slice(&jump(planned.site, planned.stub)?);
        planned.store_len = 8;
        planned.old_word = old;
        planned.new_word = u64::from_le_bytes(new);
    }
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::ByteByByte))
}

/// Class S with the displacement stored before the opcode.
pub fn split_store(board: &'static Board, setting: Setting) -> Result<()> {
    let world = world_of(Case { shape: named(Class::S, "push r12"), offset: 0x802 })?;
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::SecondByteFirst))
}

/// The slot of a straight jump changes, and calls still take the jump.
pub fn slot_first(board: &'static Board, setting: Setting) -> Result<()> {
    let world = world_of(Case { shape: named(Class::S, "push r12"), offset: 0x802 })?.made_straight()?;
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::SlotFirst))
}

/// Padding at the sixth byte of a word: its displacement begins with the last. Mended, one that lies in one word.
pub fn two_halves(board: &'static Board, setting: Setting) -> Result<()> {
    let offset = if setting.mended { 0x802 } else { 0x806 };
    let world = world_of(Case { shape: named(Class::S, "push r12"), offset })?.made_straight()?;
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::Halves))
}

/// Site and stub the trap handler knows.
static TRAP: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// The breakpoint protocol, with one caller that blocks all signals. Mended, no caller does.
pub fn int3_mask(board: &'static Board, setting: Setting) -> Result<()> {
    let world = world_of(Case { shape: named(Class::A, "mov r11d"), offset: 0x801 })?;
    TRAP[0].store(world.targets[0].site().site, Relaxed);
    TRAP[1].store(world.targets[0].site().stub, Relaxed);
    record_faults(board)?;
    // On the thread's own stack: traps nest with the timer's handler, which the small one may not hold.
    install(libc::SIGTRAP, on_trap, false)?;
    let broken = options(setting, Protocol::Int3);
    let options = Options { mask: !setting.mended, protocol: Protocol::Int3, ..broken };
    run_with_handlers(Box::leak(Box::new(world)), board, options)
}

/// Finishes the trap as if the jump stood there already.
extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if instruction_pointer(context) == TRAP[0].load(Relaxed) + 1 {
        set_instruction_pointer(context, TRAP[1].load(Relaxed));
    }
}
