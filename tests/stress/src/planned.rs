//! The same victims in a real library, with sites made by the project's own planner.
//!
//! The catalogue's functions are assembled into a shared object with symbols and unwind tables and
//! loaded; the planner reads the file and this process's map, and its plan is carried out as the
//! worker would do it.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;

use region::Protection;
use suture_abi::batch::MAPPING_FILE;
use suture_elf::{Base, MapsSnapshot, ObjectFile, Vaddr};
use suture_redirect::{
    Classes, ExistingSite, LoadedObject, ObjectAnalysis, Options, ProcessView, RedirectPlan, Request,
    plan_sites,
};

use crate::error::{Error, Result};
use crate::library::Library;
use crate::memory::{Arena, PAGE, Slot, executable_memfd, fill, map_at, protect};
use crate::op::Op;
use crate::shape::{Case, Class, cases};
use crate::site::Planned;
use crate::victim::{Victim, emit_rested};
use crate::world::{Callee, Target, World, push_new};

/// Pages of the library's text a victim takes.
const STRIDE: u64 = 2 * PAGE;

/// The cases whose functions the planner may redirect. It refuses those that read r10 or r11 as they
/// came, and padding that a symbol counts as part of its function.
pub fn planned_cases() -> Vec<Case> {
    let taken = |case: &Case| match (case.shape.class, case.shape.site) {
        (_, Op::SpillR11) | (Class::A, Op::Ret | Op::JmpShort) => false,
        // Where five bytes lie in the word, the planner takes class A.
        (Class::W, site) => site.length() < 5 || !Class::A.accepts(case.offset),
        _ => pad_fits(case),
    };
    Class::ALL.into_iter().flat_map(cases).filter(taken).collect()
}

/// Whether the pad of a patchable entry lies outside the word around the site. It must not change
/// with the arming store: the control `pad-in-word` shows what happens to a thread in the pad.
fn pad_fits(case: &Case) -> bool {
    if case.shape.class != Class::P {
        return true;
    }
    let at = case.offset % 8;
    if case.shape.before.is_empty() { at < 2 } else { at < 5 }
}

/// Assembles, loads and plans `cases`.
pub fn world(cases: &[Case]) -> Result<World> {
    let victims: Vec<Victim> =
        cases.iter().enumerate().map(|(i, case)| emit_rested(case, STRIDE * (i as u64 + 1))).collect();
    let library = Library::build("gcc", "planned.s", &assembly(cases, &victims), &["-nostdlib"])?;
    let first = library.symbol(c"victim_0")?;
    let base = first - object_address(&library, first)?;
    let text = first & !(PAGE - 1);
    protect(text, cases.len() * STRIDE as usize, Protection::READ_WRITE_EXECUTE)?;

    let file = ObjectFile::open(&library.path()).map_err(|e| library.fail(&e.to_string()))?;
    let objects = [LoadedObject { analysis: ObjectAnalysis::new(&file), base: Base(base) }];
    let mut arena = Arena::near(text)?;
    let new = push_new(&mut arena);
    arena.seal()?;
    let mut world = World { writable: true, ..World::default() };
    let mut existing = Vec::new();
    for class in Class::ALL {
        let mine: Vec<usize> = (0..cases.len()).filter(|&i| cases[i].shape.class == class).collect();
        let mut requests = Vec::new();
        for &index in &mine {
            let name = format!("victim_{index}");
            let symbol = CString::new(name.as_str()).expect("names have no NUL");
            let entry = Vaddr(library.symbol(&symbol)? - base);
            requests.push(Request {
                object: 0,
                entry,
                name: format!("{name} ({})", cases[index]),
                replacement: None,
            });
        }
        let maps = fs::read_to_string("/proc/self/maps");
        let maps = maps.map_err(|source| Error::System { what: "read the own map", source })?;
        let maps = MapsSnapshot::parse(&maps).map_err(|e| library.fail(&e.to_string()))?;
        let process =
            ProcessView { maps: Some(&maps), existing: &existing, memory: None, ..ProcessView::default() };
        let classes = Classes::parse(&class.to_string()).expect("a class letter");
        let options = Options { classes, ..Options::default() };
        let plan =
            plan_sites(&objects, &requests, &process, &options).map_err(|e| library.fail(&e.to_string()))?;
        carry_out(&plan)?;
        for (&index, planned) in mine.iter().zip(&plan.sites) {
            existing.push(ExistingSite { id: existing.len() as u32 + 1, site: planned.site });
            let site = planned.site;
            let callee = Callee::Registers { entry: site.entry, view: victims[index].view };
            let name = format!("{} at +{}", cases[index], planned.offset);
            // The words of a dispatcher lie in the harness's own arena: the plan has none.
            let slot = Slot { addr: site.slot };
            let routes = vec![site.copy, new];
            world.targets.push(Target {
                name,
                callee,
                planned: Planned { site, slot, dispatcher: new },
                routes,
                side: None,
                new,
                straight: None,
            });
        }
    }
    for target in &world.targets {
        target.set_word(target.site().slot, target.site().copy);
    }
    Ok(world)
}

/// Assembler text of the library: each victim at its place, behind a small function whose end makes
/// the bytes before the victim verifiable padding.
fn assembly(cases: &[Case], victims: &[Victim]) -> String {
    let mut text = String::from(".text\n.p2align 12\nstart:\n.fill 8192, 1, 0xcc\n");
    for (i, (case, victim)) in cases.iter().zip(victims).enumerate() {
        let at = victim.entry - STRIDE;
        let pad = if case.shape.class == Class::P { victim.entry - victim.pad } else { 0 };
        let leaf = at - 24;
        let bytes: Vec<String> = victim.code.iter().map(u8::to_string).collect();
        let list = bytes.join(",");
        let size = victim.code.len();
        // The places are given as distances from the start, so that an overlap is an error.
        write!(
            text,
            ".org {}, 0xcc\n.type leaf_{i},@function\nleaf_{i}:\n.cfi_startproc\nret\n.cfi_endproc\n\
             .size leaf_{i}, 1\n.org {}, 0xcc\n.fill {pad}, 1, 0x90\n.globl victim_{i}\n\
             .type victim_{i},@function\nvictim_{i}:\n.cfi_startproc\n.byte {list}\n.cfi_endproc\n\
             .size victim_{i}, {size}\n",
            leaf + STRIDE,
            at + STRIDE - pad,
        )
        .expect("writing to a string");
    }
    let end = (cases.len() as u64 + 1) * STRIDE;
    writeln!(text, ".org {end}, 0xcc\n.section .note.GNU-stack,\"\",@progbits").expect("writing to a string");
    text
}

/// Address inside the file of what is loaded at `addr`.
fn object_address(library: &Library, addr: u64) -> Result<u64> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the address is only looked up, the place for the answer is a local.
    if unsafe { libc::dladdr(addr as *const libc::c_void, info.as_mut_ptr()) } == 0 {
        return Err(library.fail("the loader does not know its symbols"));
    }
    // SAFETY: dladdr succeeded and wrote it.
    let info = unsafe { info.assume_init() };
    Ok(addr - info.dli_fbase.addr() as u64)
}

/// Maps what the plan asks for and writes the jumps into the padding.
fn carry_out(plan: &RedirectPlan) -> Result<()> {
    let file = executable_memfd()?;
    let written = (&file).write_all(&plan.blob);
    written.map_err(|source| Error::System { what: "write a plan's code", source })?;
    for m in &plan.mappings {
        let from = (m.kind == MAPPING_FILE).then(|| (file.as_raw_fd(), m.offset));
        map_at(m.addr, m.len as usize, m.prot.cast_signed(), from)?;
    }
    for planned in &plan.sites {
        let site = &planned.site;
        // SAFETY: padding inside the library's text, which is writable by now and which nothing
        // executes before a site leads there.
        unsafe { fill(site.pad_addr, &site.pad_new[..site.pad_len.into()]) };
    }
    Ok(())
}
