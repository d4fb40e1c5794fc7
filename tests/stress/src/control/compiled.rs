//! Controls against what compilers make: functions built here by the system's gcc and g++.

use dynasm::dynasm;
use dynasmrt::DynasmApi;
use iced_x86::{Decoder, DecoderOptions};
use region::Protection;

use super::{Setting, options};
use crate::board::Board;
use crate::engine::{Options, run};
use crate::error::Result;
use crate::library::{Library, code_at};
use crate::memory::{Arena, PAGE, Punned, fill, jump, protect};
use crate::op::{Assembler, Op};
use crate::shape::Class;
use crate::site::{Found, Planned, finalize, plan};
use crate::store::Protocol;
use crate::victim::emit_clobber;
use crate::world::{Callee, Target, World};

const THROWER: &str = include_str!("../../victims/thrower.cpp");
const IPA_RA: &str = include_str!("../../victims/ipa_ra.c");

/// Plans one site in a library and makes its text writable.
fn world(
    class: Class,
    found: &Found,
    callee: Callee,
    arena: &mut Arena,
    new: u64,
) -> Result<(World, Planned)> {
    // SAFETY: the word lies around a site in a mapped text.
    let word = unsafe { ((found.site & !7) as *const u64).read() };
    let mut punned = Punned::default();
    let planned = plan(class, &Found { word, ..found.clone() }, new, arena, &mut punned)?;
    arena.seal()?;
    punned.seal()?;
    protect(found.entry & !(PAGE - 1), 2 * PAGE as usize, Protection::READ_WRITE_EXECUTE)?;
    if found.pad != 0 {
        // SAFETY: just made writable; nothing executes the padding.
        unsafe { fill(found.pad, &jump(found.pad, planned.site.stub)?) };
    }
    let target = Target::new("compiled".to_owned(), callee, planned.clone(), new);
    target.set_word(planned.slot.addr, planned.site.copy);
    Ok((World { targets: vec![target], writable: true, ..World::default() }, planned))
}

/// `push rbx; mov ebx,edi; call`: the call is displaced. Mended, the site is a patchable entry.
pub fn displaced_call(board: &'static Board, setting: Setting) -> Result<()> {
    let flags: &[&str] = if setting.mended { &["-fpatchable-function-entry=8,6"] } else { &[] };
    let library = Library::build("g++", "thrower.cpp", THROWER, flags)?;
    let entry = library.symbol(c"stress_caller")?;
    let (call, _) = library.first_call(entry)?;
    let found = Found {
        entry,
        code: code_at(entry),
        site: if setting.mended { entry } else { call },
        displaced_end: if setting.mended { entry + 2 } else { call + 5 },
        window: if setting.mended { 2 } else { 5 },
        before: if setting.mended { &[] } else { &[Op::Push(3)] },
        pad: if setting.mended { entry - 6 } else { 0 },
        word: 0,
    };
    let guard = library.symbol(c"stress_guard")?;
    // SAFETY: the source declares the symbol with this type.
    let guard = unsafe { std::mem::transmute::<u64, extern "C" fn(u64) -> u64>(guard) };
    let expect = |x: u64| {
        let x = x & 0xffff;
        if x & 1 == 1 { x + 7 } else { 2 * x }
    };
    let class = if setting.mended { Class::P } else { Class::A };
    let mut arena = Arena::near(entry)?;
    let new = arena.next_code();
    let (mut world, planned) =
        world(class, &found, Callee::Compiled { call: guard, expect }, &mut arena, new)?;
    // Only the copy is of interest: the old code, reached through the site.
    world.targets[0].routes = vec![planned.site.copy];
    // An exception must not be thrown by a handler in the middle of throwing another.
    let options = Options { signals: false, forks: false, ..options(setting, Protocol::OneStore) };
    run(Box::leak(Box::new(world)), board, options)
}

/// A caller that keeps its argument in rdi across the call. Mended, the new function keeps
/// every register, and so does the dispatcher.
pub fn ipa_ra(board: &'static Board, setting: Setting) -> Result<()> {
    let library = Library::build("gcc", "ipa_ra.c", IPA_RA, &[])?;
    let guard = library.symbol(c"stress_guard")?;
    let (_, entry) = library.first_call(guard)?;
    let code = code_at(entry);
    let first = Decoder::with_ip(64, code, entry, DecoderOptions::NONE).decode();
    let length = first.len() as u64;
    let mut arena = Arena::near(entry)?;
    let new = push_same_result(&mut arena, !setting.mended);
    let found = Found {
        entry,
        code,
        site: entry,
        displaced_end: entry + length,
        window: length,
        before: &[],
        pad: 0,
        word: 0,
    };
    // SAFETY: the source declares the symbol with this type.
    let call = unsafe { std::mem::transmute::<u64, extern "C" fn(u64) -> u64>(guard) };
    let expect = |x: u64| {
        let kept = (x ^ (x >> 7)).wrapping_mul(5);
        x.wrapping_mul(3).wrapping_add(1).wrapping_add(kept)
    };
    let callee = Callee::Compiled { call, expect };
    let (world, _) = world(Class::A, &found, callee, &mut arena, new)?;
    run(Box::leak(Box::new(world)), board, options(setting, Protocol::OneStore))
}

/// A new function with the old one's result. It destroys what the calling convention lets it
/// destroy, or keeps every register, as the attribute `no_caller_saved_registers` makes a compiler
/// do.
fn push_same_result(arena: &mut Arena, clobber: bool) -> u64 {
    let at = arena.next_code();
    let mut a = Assembler::new(at as usize);
    dynasm!(a ; .arch x64 ; lea rax, [rdi + rdi * 2 + 1]);
    if clobber {
        emit_clobber(&mut a);
    }
    dynasm!(a ; .arch x64 ; ret);
    arena.push_code(&finalize(a));
    at
}
