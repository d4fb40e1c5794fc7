//! Controls against what compilers make: functions built here by the system's gcc and g++.

use std::ffi::{CStr, CString};
use std::fs;
use std::process::Command;

use dynasm::dynasm;
use dynasmrt::DynasmApi;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use region::Protection;

use super::{Setting, options};
use crate::board::Board;
use crate::engine::{Options, run};
use crate::error::{Error, Result};
use crate::memory::{Arena, PAGE, Punned, fill, jump, protect};
use crate::op::{Assembler, Op};
use crate::shape::Class;
use crate::site::{Found, Planned, finalize, plan};
use crate::store::Protocol;
use crate::victim::emit_clobber;
use crate::world::{Callee, Target, World};

const THROWER: &str = include_str!("../../victims/thrower.cpp");
const IPA_RA: &str = include_str!("../../victims/ipa_ra.c");

/// How many bytes of a function are looked at.
const LOOK: usize = 64;

/// A library made from a source of this folder, loaded for good.
struct Library {
    name: &'static str,
    handle: *mut libc::c_void,
}

impl Library {
    fn build(compiler: &str, name: &'static str, source: &str, flags: &[&str]) -> Result<Self> {
        let fail = |reason: String| Error::Compiled { name, reason };
        let folder = tempfile::tempdir().map_err(|e| fail(e.to_string()))?;
        let (input, output) = (folder.path().join(name), folder.path().join("victim.so"));
        fs::write(&input, source).map_err(|e| fail(e.to_string()))?;
        let mut command = Command::new(compiler);
        command.args(["-O2", "-fPIC", "-shared"]).args(flags).arg("-o").arg(&output).arg(&input);
        let made = command.output().map_err(|e| fail(format!("cannot run {compiler}: {e}")))?;
        if !made.status.success() {
            return Err(fail(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let path = CString::new(output.as_os_str().as_encoded_bytes()).map_err(|e| fail(e.to_string()))?;
        // SAFETY: the path is NUL-terminated; the library's constructors are the compiler's own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        if handle.is_null() {
            return Err(fail("dlopen refused it".to_owned()));
        }
        Ok(Self { name, handle })
    }

    fn symbol(&self, symbol: &CStr) -> Result<u64> {
        // SAFETY: the handle is open for ever, the name is NUL-terminated.
        let at = unsafe { libc::dlsym(self.handle, symbol.as_ptr()) };
        if at.is_null() {
            return Err(self.fail(&format!("no symbol {symbol:?}")));
        }
        Ok(at.addr() as u64)
    }

    fn fail(&self, reason: &str) -> Error {
        Error::Compiled { name: self.name, reason: reason.to_owned() }
    }

    /// Address of the first direct call in the function at `entry`, and where it leads.
    fn first_call(&self, entry: u64) -> Result<(u64, u64)> {
        Decoder::with_ip(64, code_at(entry), entry, DecoderOptions::NONE)
            .iter()
            .take_while(|i| i.mnemonic() != Mnemonic::Ret)
            .find(|i| i.is_call_near())
            .map(|i| (i.ip(), i.near_branch_target()))
            .ok_or_else(|| self.fail("the compiler made no direct call"))
    }
}

/// The bytes of a function of a loaded library.
fn code_at(entry: u64) -> &'static [u8] {
    // SAFETY: callers pass entries in a library that stays loaded; behind its text lie its headers
    // of unwinding, so that the bytes looked at are mapped.
    unsafe { std::slice::from_raw_parts(entry as *const u8, LOOK) }
}

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
