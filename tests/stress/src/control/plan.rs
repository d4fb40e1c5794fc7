//! Controls that break a rule of the planner.

use dynasm::dynasm;
use dynasmrt::{DynasmApi, DynasmLabelApi};

use super::{Setting, options, world_of};
use crate::board::Board;
use crate::call::OldView;
use crate::engine::run;
use crate::error::Result;
use crate::memory::fill;
use crate::op::{Assembler, Op};
use crate::shape::{Case, Class, Pad, Shape, named};
use crate::site::finalize;
use crate::store::Protocol;
use crate::victim::{Victim, emit_body};
use crate::world::{Callee, TEXT, Text, World};

/// Class P whose words still hold the untouched padding: the arming store takes back the jump that
/// was written there.
pub fn stale_word(board: &'static Board, setting: Setting) -> Result<()> {
    let mut world = world_of(Case { shape: named(Class::P, "pad"), offset: 0x805 })?;
    let site = &mut world.targets[0].planned.site;
    if !setting.mended {
        for at in site.pad_addr.max(site.store_addr)..site.pad_addr + 5 {
            let mask = 0xff_u64 << (8 * (at - site.store_addr));
            let padding = 0xcccc_cccc_cccc_cccc & mask;
            site.old_word = site.old_word & !mask | padding;
            site.new_word = site.new_word & !mask | padding;
        }
    }
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::OneStore))
}

/// Class P whose pad lies in the site's word and is written by the arming store, too: disarmed, the
/// pad is NOPs again, and a thread among them meets the middle of the jump when it comes back.
///
/// The callers start at the pad, as a thread does that has just taken the short jump.
pub fn pad_in_word(board: &'static Board, setting: Setting) -> Result<()> {
    let mut world = world_of(Case { shape: named(Class::P, "pad"), offset: 0x806 })?;
    let target = &mut world.targets[0];
    let site = &mut target.planned.site;
    if !setting.mended {
        let pad = [0x90; 6];
        // SAFETY: padding in this world's writable text, and nobody calls a victim yet.
        unsafe { fill(site.pad_addr, &pad) };
        let mut old = site.old_word.to_le_bytes();
        old[..6].copy_from_slice(&pad);
        site.old_word = u64::from_le_bytes(old);
    }
    if let Callee::Registers { entry, .. } = &mut target.callee {
        *entry = site.pad_addr;
    }
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::OneStore))
}

/// What the loop loads into r11 in each round.
const ROUND: i32 = 0x0123_4567;

/// A loop whose head is the first instruction behind `push rbp; mov rbp,rsp`. Mended, the site is
/// the entry.
pub fn loop_head(board: &'static Board, setting: Setting) -> Result<()> {
    let entry = TEXT + 0x7f4;
    let mut a = Assembler::new(entry as usize);
    let prologue = [Op::Push(5), Op::MovRbpRsp];
    prologue.iter().for_each(|op| op.emit(&mut a));
    dynasm!(a ; .arch x64 ; mov QWORD [rsp - 0x28], DWORD 12);
    let head = entry + a.offset().0 as u64;
    dynasm!(a ; .arch x64 ; again:);
    Op::MovR11d(ROUND).emit(&mut a);
    dynasm!(a ; .arch x64 ; sub QWORD [rsp - 0x28], BYTE 1 ; jnz <again);
    emit_body(&mut a, &[prologue[0], prologue[1], Op::MovR11d(ROUND)]);
    let (class, site, before, displaced): (_, _, &'static [Op], _) = if setting.mended {
        (Class::J, entry, &[], 1)
    } else {
        (Class::A, head, &[Op::Push(5), Op::MovRbpRsp], 6)
    };
    let victim = Victim {
        entry,
        code: finalize(a),
        site,
        displaced_end: site + displaced,
        window: displaced,
        before: before.to_vec(),
        pad: 0,
        view: OldView { r11: Some(ROUND as u64), ..OldView::default() },
    };
    let shape =
        Shape { name: "loop head", class, before, site: Op::MovR11d(ROUND), after: &[], pad: Pad::None };
    let case = Case { shape, offset: site % 4096 };
    let world = World::of_victims(&[case], &[victim], Text::Writable)?;
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::OneStore))
}
