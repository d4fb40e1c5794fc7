//! What has to be known of a place in the code to step over its frame; looked up once for each place.

use crate::cfi::{Cfa, Row, Rule};
use crate::error::Unreliable;
use crate::facts;
use crate::height::{Heights, NoHeight, Place};
use crate::module::Module;
use crate::registers::Register;
use crate::walk::{Bottom, Frame, FrameKind};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use suture_elf::{Addr, AddressSet, Vaddr};

/// How to leave a frame.
#[derive(Debug)]
pub(crate) struct Step {
    pub pc: u64,
    pub module: usize,
    pub row: Row,
    /// It is where functions of `makecontext` return to.
    pub context: bool,
    place: Place,
    /// `main` without call frame information: the addresses it may occupy.
    bare_main: Option<Range<Vaddr>>,
    height: OnceLock<Result<i64, NoHeight>>,
}

/// Steps of one process.
#[derive(Debug)]
pub(crate) struct Steps<M> {
    modules: M,
    /// Address ranges of the modules, ascending.
    ranges: Vec<(Range<u64>, usize)>,
    /// Code of the runtime without call frame information: stubs, dispatchers, copies. Whoever stands there has
    /// not decided yet which code it runs, or is about to return into old code.
    arenas: AddressSet,
    /// By program counter, and whether it is exact.
    known: HashMap<(u64, bool), Result<Arc<Step>, Unreliable>>,
    heights: HashMap<usize, Heights>,
}

impl<M: AsRef<[Module]>> Steps<M> {
    pub fn new(modules: M, arenas: Vec<Range<u64>>) -> Self {
        let mut ranges: Vec<_> = modules.as_ref().iter().enumerate().map(|(i, m)| (m.range(), i)).collect();
        ranges.sort_unstable_by_key(|(range, _)| range.start);
        Self {
            modules,
            ranges,
            arenas: AddressSet::new(arenas),
            known: HashMap::new(),
            heights: HashMap::new(),
        }
    }

    pub fn modules(&self) -> &[Module] {
        self.modules.as_ref()
    }

    /// The step for a program counter.
    pub fn at(&mut self, pc: u64, kind: FrameKind) -> Result<Arc<Step>, Unreliable> {
        let exact = kind != FrameKind::Caller;
        if let Some(known) = self.known.get(&(pc, exact)) {
            return known.clone();
        }
        let step = self.look_up(pc, exact).map(Arc::new);
        self.known.insert((pc, exact), step.clone());
        step
    }

    fn look_up(&self, pc: u64, exact: bool) -> Result<Step, Unreliable> {
        // A return address may lie one past the function whose last instruction is the call.
        let lookup = if exact { pc } else { pc.wrapping_sub(1) };
        if self.arenas.contains(lookup) {
            return Err(Unreliable::InRuntimeArena { pc });
        }
        let index = self.module_at(lookup).ok_or(Unreliable::NoModule { pc })?;
        let module = &self.modules.as_ref()[index];
        let (at, here) = (Addr(lookup) - module.base, Addr(pc) - module.base);
        let place = if exact { Place::Before(here) } else { Place::Call(here) };
        let step = |row, context, bare_main| Step {
            pc,
            module: index,
            row,
            context,
            place,
            bare_main,
            height: OnceLock::new(),
        };
        // In front of the code that contexts return to is no call: it is put on their stacks by hand.
        if let Some(start) = &module.facts().start_context
            && (start.contains(&here) && (exact || here == start.start) || start.contains(&at))
        {
            return Ok(step(bare_row(start.clone()), true, None));
        }
        let Some(found) = module.fde(at) else {
            let main = self.bare_main(module, at);
            let checked = main.filter(|_| exact || facts::follows_call(module, here));
            return match checked {
                Some(main) => Ok(step(bare_row(main.clone()), false, Some(main))),
                None => Err(self.no_cfi(module, lookup, pc)),
            };
        };
        let row = Row::at(&found, at).ok_or(Unreliable::BadRule { pc })?;
        // The kernel, not a call, puts the address of a trampoline on the stack.
        if !exact && !row.trampoline && !facts::follows_call(module, here) {
            return Err(Unreliable::NotACall { pc });
        }
        Ok(step(row, false, None))
    }

    /// Whether a call stands in front of an address.
    pub fn follows_call(&self, addr: u64) -> bool {
        let module = self.module_at(addr.wrapping_sub(1)).and_then(|index| self.modules().get(index));
        module.is_some_and(|module| facts::follows_call(module, Addr(addr) - module.base))
    }

    fn module_at(&self, addr: u64) -> Option<usize> {
        let after = self.ranges.partition_point(|(range, _)| range.start <= addr);
        self.ranges[..after].last().filter(|(range, _)| range.contains(&addr)).map(|(_, index)| *index)
    }

    fn no_cfi(&self, module: &Module, lookup: u64, pc: u64) -> Unreliable {
        Unreliable::NoCfi { module: module.name.clone(), symbol: module.symbol_at(lookup), pc }
    }

    /// The addresses that an executable's `main` without call frame information may occupy, if `at`
    /// is among them: rustc makes such a `main` for programs that abort on panic.
    fn bare_main(&self, module: &Module, at: Vaddr) -> Option<Range<Vaddr>> {
        let main = module.facts().main?;
        let code = main + module.code_from(main)?.len() as u64;
        let bounds = main..module.next_fde(main).map_or(code, |next| next.min(code));
        (bounds.contains(&at) && module.fde(main).is_none()).then_some(bounds)
    }

    /// The height of the stack at a step's place.
    pub fn height(&mut self, step: &Step) -> Result<i64, NoHeight> {
        *step.height.get_or_init(|| {
            let (module, heights) =
                (&self.modules.as_ref()[step.module], self.heights.entry(step.module).or_default());
            match &step.bare_main {
                Some(bounds) => heights.without_cfi(module, bounds, step.place),
                None => heights.at(module, &step.row.frame, step.place),
            }
        })
    }

    /// What an undefined return address means here.
    pub fn bottom(&self, step: &Step) -> Bottom {
        let module = &self.modules.as_ref()[step.module];
        if module.facts().entry.is_some_and(|entry| step.row.frame.contains(&entry)) {
            return Bottom::ProcessStart;
        }
        match step.place {
            Place::Call(at) if facts::exits_thread(module, at) => Bottom::ThreadStart,
            _ => Bottom::Unknown { pc: step.pc },
        }
    }

    /// A `main` whose frame was only computed is believed if the walk from there leads through the C
    /// library's two functions (one before glibc 2.34) to the start of the same executable.
    pub fn check_main(&self, frames: &[Frame], bottom: Bottom) -> Result<(), Unreliable> {
        let is_bare = |f: &Frame| {
            let known = self.known.get(&(f.pc, f.kind != FrameKind::Caller));
            matches!(known, Some(Ok(step)) if step.bare_main.is_some())
        };
        let Some(at) = frames.iter().position(is_bare) else { return Ok(()) };
        let main = frames[at];
        let proven = match &frames[at + 1..] {
            [between @ .., start] => {
                let library = |f: &&Frame| f.module != main.module && f.module == between[0].module;
                matches!(between.len(), 1 | 2)
                    && between.iter().all(|f| library(&f))
                    && start.module == main.module
                    && bottom == Bottom::ProcessStart
            }
            [] => false,
        };
        if proven { Ok(()) } else { Err(self.no_cfi(&self.modules.as_ref()[main.module], main.pc, main.pc)) }
    }
}

/// A frame of which nothing is described: the return address lies below the CFA, the CFA is to be
/// computed from the code, no register is known any more.
fn bare_row(frame: Range<Vaddr>) -> Row {
    let lost = Register::PRESERVED.iter().map(|r| (*r, Rule::Undefined));
    let rules = lost.chain([(Register::RA, Rule::At(-8))]).collect();
    // A column that no frame ever knows.
    Row { cfa: Cfa::Register(Register(u16::MAX), 0), rules, trampoline: false, frame }
}
