//! Registers that a new function leaves as they were: what callers that rely on the old one need.
//!
//! The stack is followed slot by slot, so that saving and restoring is recognised however a compiler does
//! it. Whatever is not understood (an indirect jump, an aligned frame, code of another object) counts as
//! changing everything: here the mistake must be on the other side than in [`crate::flow`].

use crate::analysis::ObjectAnalysis;
use crate::cursor::Cursor;
use crate::effects::{Effects, RegSet};
use crate::flow::caller_saved;
use crate::refs::direct_branch;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashMap;
use suture_elf::Vaddr;

/// Registers a function leaves alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept(pub(crate) RegSet);

/// Instructions looked at, callees included.
const LIMIT: usize = 20_000;
/// Calls followed.
const DEPTH: usize = 8;
/// Largest frame, in words.
const MAX_FRAME: usize = 4096;

impl Kept {
    /// Every register that a call may destroy.
    pub(crate) fn all() -> Self {
        Self(caller_saved())
    }
}

impl ObjectAnalysis {
    /// Caller-saved registers that the function at `entry` leaves as they were whenever it returns.
    #[must_use]
    pub fn kept_by(&self, entry: Vaddr) -> Kept {
        let mut looking = Looking {
            object: self,
            cursor: Cursor::new(self),
            effects: Effects::default(),
            known: FxHashMap::default(),
            left: LIMIT,
        };
        Kept(caller_saved() - looking.changes(entry, DEPTH))
    }
}

/// What is known at one instruction.
#[derive(Clone, Debug, PartialEq)]
struct State {
    changed: RegSet,
    /// From the return address on: the register whose value at the entry the word holds.
    stack: Vec<Option<Register>>,
    /// Length of the stack where `rbp` points.
    frame: Option<usize>,
}

/// Something that is not understood.
struct Lost;

struct Looking<'a> {
    object: &'a ObjectAnalysis,
    cursor: Cursor<'a>,
    effects: Effects,
    known: FxHashMap<Vaddr, RegSet>,
    left: usize,
}

impl Looking<'_> {
    fn changes(&mut self, entry: Vaddr, depth: usize) -> RegSet {
        if let Some(known) = self.known.get(&entry) {
            return *known;
        }
        // While it is being looked at, and where it is not understood.
        self.known.insert(entry, caller_saved());
        if depth == 0 {
            return caller_saved();
        }
        let changes = self.walk(entry, depth).unwrap_or(caller_saved());
        self.known.insert(entry, changes);
        changes
    }

    /// Follows every path to its end, until nothing new is learnt about any instruction.
    fn walk(&mut self, entry: Vaddr, depth: usize) -> Result<RegSet, Lost> {
        let own = self.object.frames().starting_at(entry).ok_or(Lost)?;
        // Where an exception goes on nobody has saved what the code in front of the call had.
        if self.object.frames().landing_pads(&own).is_none_or(|pads| !pads.is_empty()) {
            return Err(Lost);
        }
        let mut states: FxHashMap<Vaddr, State> = FxHashMap::default();
        let first = State { changed: RegSet::EMPTY, stack: Vec::new(), frame: None };
        let mut work = vec![(entry, first)];
        let mut all = RegSet::EMPTY;
        while let Some((at, state)) = work.pop() {
            let Some(mut state) = merge(&mut states, at, state)? else { continue };
            self.left = self.left.checked_sub(1).ok_or(Lost)?;
            let insn = self.cursor.instruction(at).ok_or(Lost)?;
            let branch = direct_branch(&insn);
            match insn.flow_control() {
                FlowControl::Return if state.stack.is_empty() => {
                    all |= state.changed;
                    continue;
                }
                FlowControl::Exception => continue,
                FlowControl::Interrupt if insn.mnemonic() == Mnemonic::Int3 => continue,
                FlowControl::Return
                | FlowControl::IndirectBranch
                | FlowControl::Interrupt
                | FlowControl::XbeginXabortXend => return Err(Lost),
                FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                    let target = branch.ok_or(Lost)?.target;
                    state.changed |= self.changes(target, depth - 1);
                }
                FlowControl::Call => state.changed |= self.effects.of(&insn).writes,
                FlowControl::IndirectCall => state.changed |= caller_saved(),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                    let target = branch.ok_or(Lost)?.target;
                    let inside = own.contains(target);
                    // To another part of it, or a tail call: where does it go on?
                    if !inside && !state.stack.is_empty() {
                        return Err(Lost);
                    }
                    if inside {
                        work.push((target, state.clone()));
                    } else {
                        all |= state.changed | self.changes(target, depth - 1);
                    }
                    if insn.flow_control() == FlowControl::UnconditionalBranch {
                        continue;
                    }
                }
                FlowControl::Next => self.step(&insn, &mut state)?,
            }
            let next = Vaddr(insn.next_ip());
            match (own.contains(next), insn.mnemonic()) {
                (true, _) => work.push((next, state)),
                // A call that does not return.
                (false, Mnemonic::Call) => {}
                (false, _) => return Err(Lost),
            }
        }
        Ok(all)
    }

    /// What an ordinary instruction does to registers and stack.
    fn step(&mut self, insn: &Instruction, state: &mut State) -> Result<(), Lost> {
        let frame = state.frame;
        match insn.code() {
            Code::Push_r64 => {
                let register = insn.op0_register();
                state.push(Some(register).filter(|r| !state.changed.intersects(RegSet::of(*r))))?;
                return Ok(());
            }
            Code::Pop_r64 => {
                let saved = state.stack.pop().ok_or(Lost)?;
                state.load(insn.op0_register(), saved);
                return Ok(());
            }
            Code::Leaveq => {
                state.stack.truncate(frame.ok_or(Lost)?);
                let saved = state.stack.pop().ok_or(Lost)?;
                state.load(Register::RBP, saved);
                return Ok(());
            }
            Code::Mov_r64_rm64 | Code::Mov_rm64_r64 => {
                let (to, from) = (insn.op0_register(), insn.op1_register());
                let slot = state.slot_of(insn);
                match (insn.op0_kind(), insn.op1_kind()) {
                    (OpKind::Register, OpKind::Register) if (to, from) == (Register::RBP, Register::RSP) => {
                        state.frame = Some(state.stack.len());
                        state.changed |= RegSet::of(Register::RBP);
                        return Ok(());
                    }
                    (OpKind::Register, OpKind::Register) if to == Register::RSP => {
                        let frame = frame.filter(|_| from == Register::RBP).ok_or(Lost)?;
                        state.stack.truncate(frame);
                        return Ok(());
                    }
                    (OpKind::Memory, OpKind::Register) if slot.is_some() => {
                        let unchanged = !state.changed.intersects(RegSet::of(from));
                        let place = slot.and_then(|i| state.stack.get_mut(i)).ok_or(Lost)?;
                        *place = Some(from).filter(|_| unchanged);
                        return Ok(());
                    }
                    (OpKind::Register, OpKind::Memory) if slot.is_some() => {
                        let saved = slot.and_then(|i| state.stack.get(i)).copied().ok_or(Lost)?;
                        state.load(to, saved);
                        return Ok(());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        if insn.stack_pointer_increment() != 0 {
            // Pushes of constants and flags, and their pops.
            let words = insn.stack_pointer_increment() / 8;
            state.grow(i64::from(-words))?;
        }
        let effect = self.effects.of(insn);
        state.changed |= effect.writes - RegSet::of(Register::RSP);
        if effect.writes.intersects(RegSet::of(Register::RSP)) && insn.stack_pointer_increment() == 0 {
            state.grow(stack_growth(insn, state)?)?;
        }
        if effect.writes.intersects(RegSet::of(Register::RBP)) {
            state.frame = None;
        }
        if self.effects.writes_memory(insn) {
            state.overwrite(insn);
        }
        Ok(())
    }
}

/// Words by which an instruction with `rsp` as its result makes the stack grow.
fn stack_growth(insn: &Instruction, state: &State) -> Result<i64, Lost> {
    let words = |bytes: i64| if bytes % 8 == 0 { Ok(bytes / 8) } else { Err(Lost) };
    match insn.mnemonic() {
        Mnemonic::Sub if insn.op1_kind() != OpKind::Register && insn.op1_kind() != OpKind::Memory => {
            words(insn.immediate(1).cast_signed())
        }
        Mnemonic::Add if insn.op1_kind() != OpKind::Register && insn.op1_kind() != OpKind::Memory => {
            words(-insn.immediate(1).cast_signed())
        }
        Mnemonic::Lea if insn.memory_index() == Register::None => {
            let displacement = insn.memory_displacement64().cast_signed();
            match (insn.memory_base(), state.frame) {
                (Register::RSP, _) => words(-displacement),
                (Register::RBP, Some(frame)) => {
                    Ok(frame as i64 + words(-displacement)? - state.stack.len() as i64)
                }
                _ => Err(Lost),
            }
        }
        _ => Err(Lost),
    }
}

impl State {
    fn push(&mut self, word: Option<Register>) -> Result<(), Lost> {
        self.stack.push(word);
        if self.stack.len() > MAX_FRAME { Err(Lost) } else { Ok(()) }
    }

    /// Makes the stack grow by that many words nobody knows.
    fn grow(&mut self, words: i64) -> Result<(), Lost> {
        let length = usize::try_from(self.stack.len() as i64 + words).map_err(|_| Lost)?;
        if length > MAX_FRAME {
            return Err(Lost);
        }
        self.stack.resize(length, None);
        Ok(())
    }

    /// A register gets a word of the stack.
    fn load(&mut self, register: Register, saved: Option<Register>) {
        if register == Register::RBP {
            self.frame = None;
        }
        if saved == Some(register) {
            self.changed -= RegSet::of(register);
        } else {
            self.changed |= RegSet::of(register);
        }
    }

    /// The word of the stack that the memory operand is, if it is exactly one.
    fn slot_of(&self, insn: &Instruction) -> Option<usize> {
        let whole = insn.memory_index() == Register::None && insn.memory_size().size() == 8;
        let (first, aligned) = self.place(insn)?;
        (whole && aligned).then_some(first)
    }

    /// Index of the word that a stack operand begins in, and whether it begins where the word does.
    fn place(&self, insn: &Instruction) -> Option<(usize, bool)> {
        let below = match insn.memory_base() {
            Register::RSP => self.stack.len(),
            Register::RBP => self.frame?,
            _ => return None,
        };
        let displacement = insn.memory_displacement64().cast_signed();
        let word = below as i64 - 1 - displacement.div_euclid(8);
        let index = usize::try_from(word).ok().filter(|i| *i < self.stack.len())?;
        Some((index, displacement % 8 == 0))
    }

    /// Forgets words of the stack that the instruction writes to.
    fn overwrite(&mut self, insn: &Instruction) {
        let below = match insn.memory_base() {
            Register::RSP => self.stack.len(),
            Register::RBP => match self.frame {
                Some(frame) => frame,
                // A pointer like any other.
                None => return,
            },
            _ => return,
        };
        if insn.memory_index() != Register::None {
            self.stack.fill(None);
            return;
        }
        let first = insn.memory_displacement64().cast_signed();
        let last = first.saturating_add(insn.memory_size().size().max(1) as i64 - 1);
        // Upwards in memory is downwards in the list.
        let word = |byte: i64| below as i64 - 1 - byte.div_euclid(8);
        for (index, place) in (0i64..).zip(&mut self.stack) {
            if (word(last)..=word(first)).contains(&index) {
                *place = None;
            }
        }
    }
}

/// Adds what is known at an address; `None` when that is nothing new.
fn merge(states: &mut FxHashMap<Vaddr, State>, at: Vaddr, new: State) -> Result<Option<State>, Lost> {
    let Some(old) = states.get_mut(&at) else {
        states.insert(at, new.clone());
        return Ok(Some(new));
    };
    if old.stack.len() != new.stack.len() {
        return Err(Lost);
    }
    let mut merged = State {
        changed: old.changed | new.changed,
        stack: old.stack.clone(),
        frame: old.frame.filter(|_| old.frame == new.frame),
    };
    for (word, other) in merged.stack.iter_mut().zip(&new.stack) {
        *word = word.filter(|_| *word == *other);
    }
    if merged == *old {
        return Ok(None);
    }
    *old = merged.clone();
    Ok(Some(merged))
}
