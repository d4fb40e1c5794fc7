//! What one process under stress is made of: a text, its arenas and the planned sites.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};

use suture_abi::batch::Site;

use crate::call::{OldView, Rng, Verdict, checked_call};
use crate::error::{Error, Result};
use crate::memory::{ARENA_LEN, Arena, PAGE, Punned, fill, map_at};
use crate::op::Assembler;
use crate::shape::{Case, Class};
use crate::site::{Found, Planned, Wide, finalize, plan};
use crate::straight::Straight;
use crate::victim::{Victim, emit, emit_new};

/// Start of the text. Half of the address space away from everything the kernel places, so that
/// every displacement a victim's bytes dictate leads to free pages.
pub const TEXT: u64 = 0x2000_0000_0000;
/// Two pages per victim: some cross into the second.
const STRIDE: u64 = 2 * PAGE;

/// How a victim is called and judged.
#[derive(Clone, Copy, Debug)]
pub enum Callee {
    /// A victim of the catalogue: every register is checked.
    Registers {
        /// Its entry.
        entry: u64,
        /// How its old code sees the registers.
        view: OldView,
    },
    /// A compiled function of one argument.
    Compiled {
        /// The function called.
        call: extern "C" fn(u64) -> u64,
        /// What it must return, whichever side runs.
        expect: fn(u64) -> u64,
    },
}

impl Callee {
    /// Whether a verdict says which side ran.
    pub fn tells_sides(&self) -> bool {
        matches!(self, Self::Registers { .. })
    }

    /// Calls once and judges.
    pub fn call(&self, rng: &mut Rng) -> Verdict {
        match *self {
            // SAFETY: `entry` is a victim of this harness, placed by `World`.
            Self::Registers { entry, view } => unsafe { checked_call(entry, view, rng) },
            Self::Compiled { call, expect } => {
                let x = rng.draw();
                let (got, old) = (call(x), expect(x));
                if got == old { Verdict::Old } else { Verdict::Wrong { got, old, new: old, registers: 0 } }
            }
        }
    }
}

/// A site and the function behind it.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the reports call it.
    pub name: String,
    /// How it is called.
    pub callee: Callee,
    /// The planned site.
    pub planned: Planned,
    /// The values its slot takes: copy, new function, dispatcher.
    pub routes: Vec<u64>,
    /// Address of the dispatcher's side, where there is a dispatcher.
    pub side: Option<u64>,
    /// The new function.
    pub new: u64,
    /// The displacement that is to lead to it and back, in runs about that.
    pub straight: Option<Straight>,
}

impl Target {
    /// A target whose slot takes the copy, `new` and the dispatcher.
    pub fn new(name: String, callee: Callee, planned: Planned, new: u64) -> Self {
        let routes = vec![planned.site.copy, new, planned.dispatcher];
        let side = Some(planned.slot.side());
        Self { name, callee, planned, routes, side, new, straight: None }
    }

    /// The same, whose jump leads to `new` and back all the time.
    pub fn made_straight(mut self) -> Result<Self> {
        self.straight = Some(Straight::of(self.site(), self.new)?);
        Ok(self)
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.planned.site
    }

    /// Stores a word of the slot's page, as one aligned store.
    pub fn set_word(&self, addr: u64, value: u64) {
        // SAFETY: slots are aligned words in an arena's data pages, which are never unmapped.
        unsafe { AtomicU64::from_ptr(addr as *mut u64) }.store(value, Ordering::Release);
    }
}

/// How the text is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// Anonymous, writable and executable: direct stores and pwrite.
    Writable,
    /// Private pages of a file, not writable: pwrite breaks copy-on-write under execution.
    FileBacked,
}

/// All targets of a run.
#[derive(Debug, Default)]
pub struct World {
    /// The targets, in the order of the scoreboard.
    pub targets: Vec<Target>,
    /// Virtual and physical punned pages.
    pub punned: (usize, usize),
    /// Whether direct stores are possible.
    pub writable: bool,
    /// Whether pages of the text can be made untouched again.
    pub file_backed: bool,
}

impl World {
    /// Emits, plans and maps the victims of `cases`.
    pub fn of_cases(cases: &[Case], text: Text) -> Result<Self> {
        let victims: Vec<Victim> =
            cases.iter().enumerate().map(|(i, case)| emit(case, TEXT + i as u64 * STRIDE)).collect();
        Self::of_victims(cases, &victims, text)
    }

    /// Plans and maps victims that were made by hand, too.
    pub fn of_victims(cases: &[Case], victims: &[Victim], text: Text) -> Result<Self> {
        let len = victims.len() as u64 * STRIDE;
        let mut image = vec![0xcc_u8; len as usize];
        for victim in victims {
            let at = (victim.entry - TEXT) as usize;
            image[at..at + victim.code.len()].copy_from_slice(&victim.code);
        }
        let mut below = Arena::at(TEXT - ARENA_LEN - 0x1_0000)?;
        let mut above = Arena::at(TEXT + len + 0x1_0000)?;
        let new = [push_new(&mut below), push_new(&mut above)];
        let mut punned = Punned::default();
        let mut world = Self::default();
        for (case, victim) in cases.iter().zip(victims) {
            let class = case.shape.class;
            let up = match class {
                Class::J => punned_upwards(victim),
                Class::W => Wide::of(&found(victim)).is_upwards(&found(victim)),
                _ => true,
            };
            let (arena, new) = if up { (&mut above, new[1]) } else { (&mut below, new[0]) };
            let mut found = found(victim);
            found.word = word_at(&image, victim.site);
            let planned = plan(class, &found, new, arena, &mut punned)?;
            let callee = Callee::Registers { entry: victim.entry, view: victim.view };
            world.targets.push(Target::new(case.to_string(), callee, planned, new));
        }
        for target in &world.targets {
            // The pad gets its jump before any site leads there.
            let site = target.site();
            let at = site.pad_addr.wrapping_sub(TEXT) as usize;
            let pad = &site.pad_new[..site.pad_len.into()];
            if !pad.is_empty() {
                image[at..at + pad.len()].copy_from_slice(pad);
            }
        }
        below.seal()?;
        above.seal()?;
        world.punned = punned.seal()?;
        world.map_text(&image, text)?;
        for target in &world.targets {
            target.set_word(target.planned.slot.addr, target.site().copy);
        }
        Ok(world)
    }

    /// The same targets, with jumps that go straight and back.
    pub fn made_straight(mut self) -> Result<Self> {
        self.targets = self.targets.into_iter().map(Target::made_straight).collect::<Result<_>>()?;
        Ok(self)
    }

    fn map_text(&mut self, image: &[u8], text: Text) -> Result<()> {
        self.writable = text == Text::Writable;
        self.file_backed = text == Text::FileBacked;
        if self.writable {
            map_at(TEXT, image.len(), libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC, None)?;
            // SAFETY: just mapped, and nobody calls a victim yet.
            unsafe { fill(TEXT, image) };
            return Ok(());
        }
        let system = |what| move |source| Error::System { what, source };
        let mut file: File = tempfile::tempfile().map_err(system("create a file for the text"))?;
        file.write_all(image).map_err(system("write the text's file"))?;
        map_at(TEXT, image.len(), libc::PROT_READ | libc::PROT_EXEC, Some((file.as_raw_fd(), 0)))
    }
}

/// What the planner is told of a victim, without the word around the site.
pub fn found(victim: &Victim) -> Found<'_> {
    Found {
        entry: victim.entry,
        code: &victim.code,
        site: victim.site,
        displaced_end: victim.displaced_end,
        window: victim.window,
        before: &victim.before,
        pad: victim.pad,
        word: 0,
    }
}

/// The aligned word around `addr` in an image of the text.
fn word_at(image: &[u8], addr: u64) -> u64 {
    let at = ((addr & !7) - TEXT) as usize;
    u64::from_le_bytes(image[at..at + 8].try_into().expect("eight bytes were asked for"))
}

/// Whether the bytes behind the site's first lead upwards.
fn punned_upwards(victim: &Victim) -> bool {
    let at = (victim.site - victim.entry) as usize;
    victim.code[at + 4] < 0x80
}

/// Puts a copy of the new function into an arena.
pub fn push_new(arena: &mut Arena) -> u64 {
    let at = arena.next_code();
    let mut a = Assembler::new(at as usize);
    emit_new(&mut a);
    arena.push_code(&finalize(a));
    at
}
