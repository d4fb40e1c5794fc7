//! Data flow over plain machine code: what is read before it is written, and what is left alone.
//!
//! Code is decoded block by block from where control goes, so nothing has to be known about function
//! boundaries, and a jump into another part or another function is followed like any other.

use crate::analysis::ObjectAnalysis;
use crate::cursor::Cursor;
use crate::effects::{Effects, RegSet};
use crate::imports;
use crate::refs::direct_branch;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::HashSet;
use suture_elf::Vaddr;

/// Instructions looked at for one question. What is not decided by then counts as read.
const LIMIT: usize = 2_000;
/// Instructions looked at to see what a function changes.
const EXPLORE_LIMIT: usize = 20_000;
/// Depth of calls followed to see what a callee reads or leaves alone.
const DEPTH: usize = 12;

/// Registers the ABI passes integer arguments in, in order.
const ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];

/// Registers the kernel takes arguments of system calls in.
const SYSCALL_ARGUMENTS: [Register; 6] =
    [Register::RDI, Register::RSI, Register::RDX, Register::R10, Register::R8, Register::R9];

/// Answers questions about one object; remembers what callees do.
pub(crate) struct Flow<'a> {
    pub(crate) object: &'a ObjectAnalysis,
    cursor: Cursor<'a>,
    pub(crate) effects: Effects,
    callees: FxHashMap<Vaddr, Callee>,
    /// What whole unwind ranges change, by their start.
    frames: FxHashMap<Vaddr, RegSet>,
    /// Which functions have variable arguments.
    variadic: FxHashMap<Vaddr, bool>,
    /// Slots of imported functions that do not return.
    endless: HashSet<Vaddr>,
    /// The object asks for thread-local variables by descriptor.
    descriptors: bool,
}

/// What a call of a function does to registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callee {
    /// Registers it may change; everything a caller may not rely on when it calls unknown code.
    pub clobbers: RegSet,
    /// It can return.
    pub returns: bool,
}

/// Registers that a called function may change.
pub(crate) fn caller_saved() -> RegSet {
    let general = RegSet::all(&[
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
    ]);
    general | RegSet::VECTORS | RegSet::MASKS | RegSet::FLAGS
}

impl<'a> Flow<'a> {
    pub fn new(object: &'a ObjectAnalysis) -> Self {
        let endless = imports::slots(object.file());
        Self {
            object,
            cursor: Cursor::new(object),
            effects: Effects::default(),
            callees: FxHashMap::default(),
            frames: FxHashMap::default(),
            variadic: FxHashMap::default(),
            endless,
            descriptors: imports::has_tls_descriptors(object.file()),
        }
    }

    /// Registers of `query` that code from `at` on reads before it writes them. A push of one of `fillers`
    /// reads nothing.
    pub fn read(&mut self, at: Vaddr, query: RegSet, fillers: RegSet) -> RegSet {
        self.live_within(at, query, DEPTH / 4, Some(fillers))
    }

    /// As [`Flow::read`], and what unknown functions and the kernel seem to be given as arguments.
    pub fn live(&mut self, at: Vaddr, query: RegSet) -> RegSet {
        self.live_within(at, query, DEPTH / 4, None)
    }

    fn live_within(&mut self, start: Vaddr, query: RegSet, depth: usize, strict: Option<RegSet>) -> RegSet {
        let in_front_of = |recent, arguments| {
            if strict.is_none() { in_front_of(recent, arguments) } else { RegSet::EMPTY }
        };
        let mut live = RegSet::EMPTY;
        let mut seen: FxHashMap<Vaddr, RegSet> = FxHashMap::default();
        let mut work = vec![(start, query)];
        let mut budget = LIMIT;
        while let Some((mut at, mut open)) = work.pop() {
            // Written since the last branch or call.
            let mut recent = RegSet::EMPTY;
            loop {
                let before = seen.entry(at).or_default();
                open -= *before;
                open -= live;
                *before |= open;
                if open.is_empty() {
                    break;
                }
                if budget == 0 {
                    return live | open;
                }
                budget -= 1;
                let Some(insn) = self.cursor.instruction(at) else { break };
                let effect = self.effects.of(&insn);
                let filler = if insn.mnemonic() == Mnemonic::Push { strict } else { None };
                live |= open & (effect.reads - filler.unwrap_or_default());
                let branch = direct_branch(&insn);
                match insn.flow_control() {
                    FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                        let target = branch.map(|b| b.target);
                        live |= open
                            & match self.known_callee(target.filter(|_| depth > 0)) {
                                Some(callee) => self.live_within(callee, open, depth - 1, strict),
                                None => in_front_of(recent, &ARGUMENTS),
                            };
                        let callee = target.map(|t| self.callee_of_call(t));
                        if callee.is_some_and(|c| !c.returns) {
                            break;
                        }
                        open -= callee.map_or(caller_saved(), |c| c.clobbers);
                        if self.leaves_frame(&insn) {
                            break;
                        }
                    }
                    FlowControl::IndirectCall if self.keeps_registers(&insn) => {
                        open -= RegSet::of(Register::RAX);
                    }
                    FlowControl::IndirectCall => {
                        live |= open & in_front_of(recent, &ARGUMENTS);
                        open -= caller_saved();
                        if self.import_ends(&insn) || self.leaves_frame(&insn) {
                            break;
                        }
                    }
                    FlowControl::Call => {
                        live |= open & in_front_of(recent, &SYSCALL_ARGUMENTS);
                        open -= effect.kills;
                    }
                    FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => break,
                    FlowControl::IndirectBranch if self.import_ends(&insn) => break,
                    FlowControl::IndirectBranch => {
                        // A table's targets are blocks of the same function; a tail call is a call.
                        live |= open & in_front_of(recent, &ARGUMENTS);
                        break;
                    }
                    FlowControl::UnconditionalBranch => {
                        let Some(branch) = branch else { break };
                        if self.is_variadic_entry(branch.target) {
                            live |= open & in_front_of(recent, &ARGUMENTS);
                            break;
                        }
                        at = branch.target;
                        recent = RegSet::EMPTY;
                        continue;
                    }
                    FlowControl::ConditionalBranch | FlowControl::XbeginXabortXend => {
                        open -= effect.kills;
                        work.extend(
                            branch.filter(|b| !self.is_variadic_entry(b.target)).map(|b| (b.target, open)),
                        );
                    }
                    FlowControl::Next => open -= effect.kills,
                }
                recent = if insn.flow_control() == FlowControl::Next {
                    recent | effect.writes
                } else {
                    RegSet::EMPTY
                };
                if insn.code() == Code::Hlt {
                    break;
                }
                at = Vaddr(insn.next_ip());
            }
        }
        live
    }

    /// The callee, where its code says which arguments it takes. Elsewhere what the instructions in front
    /// of the call write has to tell.
    fn known_callee(&mut self, target: Option<Vaddr>) -> Option<Vaddr> {
        target.filter(|t| !self.leaves_object(*t) && !self.variadic(*t))
    }

    /// Whether the code is a stub that jumps through a pointer at once.
    fn leaves_object(&mut self, target: Vaddr) -> bool {
        self.stub_jump(target).is_some()
    }

    fn stub_jump(&mut self, target: Vaddr) -> Option<Instruction> {
        let first = self.cursor.instruction(target)?;
        let insn = match first.code() {
            Code::Endbr64 => self.cursor.instruction(Vaddr(first.next_ip()))?,
            _ => first,
        };
        (insn.flow_control() == FlowControl::IndirectBranch).then_some(insn)
    }

    /// Whether it asks for a thread-local variable by descriptor: then rax and flags change, nothing else.
    pub fn keeps_registers(&self, call: &Instruction) -> bool {
        self.descriptors
            && call.op0_kind() == OpKind::Memory
            && call.memory_base() == Register::RAX
            && call.memory_index() == Register::None
            && call.memory_displacement64() == 0
    }

    /// Whether it calls or jumps to an import that does not return.
    fn import_ends(&self, insn: &Instruction) -> bool {
        insn.is_ip_rel_memory_operand() && self.endless.contains(&Vaddr(insn.ip_rel_memory_address()))
    }

    /// Whether what stands behind a call is outside the unwind range of the call: then it does not
    /// return there.
    fn leaves_frame(&self, call: &Instruction) -> bool {
        let frame = self.object.frames().at(Vaddr(call.ip()));
        frame.is_some_and(|f| !f.contains(Vaddr(call.next_ip())))
    }

    /// Whether a branch there is a tail call of a function with variable arguments.
    fn is_variadic_entry(&mut self, target: Vaddr) -> bool {
        self.object.frames().next_start(Vaddr(target.0 - 1)) == Some(target) && self.variadic(target)
    }

    /// Whether the function has variable arguments: it then stores all registers that could hold
    /// arguments, not only those that do. Either `al` is asked whether vector registers do, or r8 and
    /// r9 go to neighbouring words of the frame.
    fn variadic(&mut self, target: Vaddr) -> bool {
        if let Some(known) = self.variadic.get(&target) {
            return *known;
        }
        let variadic = self.stores_all_arguments(target);
        self.variadic.insert(target, variadic);
        variadic
    }

    fn stores_all_arguments(&self, target: Vaddr) -> bool {
        let code = self.object.decode(&(target..target + 192));
        let stores = |i: &Instruction, register: Register| {
            let stores = i.code() == Code::Mov_rm64_r64 && i.op0_kind() == OpKind::Memory;
            (stores && i.op1_register() == register).then(|| (i.memory_base(), i.memory_displacement64()))
        };
        let stored = |register| code.iter().take(32).find_map(|i| stores(i, register));
        if let (Some((base, at)), Some((other, next))) = (stored(Register::R8), stored(Register::R9))
            && base == other
            && next == at.wrapping_add(8)
            && [Register::RSP, Register::RBP].contains(&base)
        {
            return true;
        }
        let tests = |i: &Instruction| {
            i.mnemonic() == Mnemonic::Test
                && i.op0_register() == Register::AL
                && i.op1_register() == Register::AL
        };
        let Some(at) = code.iter().take(32).position(tests) else { return false };
        let saves = |i: &Instruction| {
            matches!(
                i.mnemonic(),
                Mnemonic::Movaps | Mnemonic::Movups | Mnemonic::Vmovaps | Mnemonic::Vmovups
            ) && i.op1_register() == Register::XMM0
        };
        code[at..].iter().take(16).any(saves)
    }

    /// What a call of the function at `entry`, met on the way, does.
    pub fn callee_of_call(&mut self, entry: Vaddr) -> Callee {
        self.callee(entry, DEPTH / 2)
    }

    /// What a call of the function at `entry` does.
    pub fn callee(&mut self, entry: Vaddr, depth: usize) -> Callee {
        if let Some(known) = self.callees.get(&entry) {
            return *known;
        }
        // While it is being looked at (recursion), and beyond the depth: as if it left everything
        // alone, which only makes more callers be looked at.
        let nothing = Callee { clobbers: RegSet::EMPTY, returns: true };
        if depth == 0 {
            return nothing;
        }
        self.callees.insert(entry, nothing);
        let callee = self.explore(entry, depth);
        self.callees.insert(entry, callee);
        callee
    }

    /// Registers that the code of a whole unwind range leaves alone, of those in `kept`. Fast: code
    /// that calls something unknown leaves nothing alone, as far as its callers know.
    pub fn left_alone(&mut self, start: Vaddr, kept: RegSet) -> RegSet {
        if let Some(clobbers) = self.frames.get(&start) {
            return kept - *clobbers;
        }
        let clobbers = self.frame_clobbers(start);
        self.frames.insert(start, clobbers);
        kept - clobbers
    }

    fn frame_clobbers(&mut self, start: Vaddr) -> RegSet {
        let Some(frame) = self.object.frames().at(start) else { return RegSet::EMPTY };
        let unknown = |flow: &mut Self, insn: &Instruction| match insn.flow_control() {
            FlowControl::IndirectCall => !flow.keeps_registers(insn),
            FlowControl::Call => direct_branch(insn).is_some_and(|b| flow.leaves_object(b.target)),
            _ => false,
        };
        let code = self.object.decode(&(frame.start..frame.end));
        if code.iter().any(|insn| unknown(self, insn)) {
            return caller_saved();
        }
        self.callee(start, DEPTH).clobbers
    }

    fn explore(&mut self, entry: Vaddr, depth: usize) -> Callee {
        let everything = Callee { clobbers: caller_saved(), returns: true };
        let mut writes = RegSet::EMPTY;
        let (mut pushed, mut popped) = (RegSet::EMPTY, RegSet::EMPTY);
        let mut returns = false;
        let mut seen = FxHashSet::default();
        let mut work = vec![entry];
        while let Some(mut at) = work.pop() {
            while seen.insert(at) {
                if seen.len() > EXPLORE_LIMIT {
                    // As if the rest left everything alone: more callers are looked at.
                    return Callee { clobbers: writes & caller_saved(), returns: true };
                }
                let Some(insn) = self.cursor.instruction(at) else { break };
                let branch = direct_branch(&insn);
                let set = RegSet::of(saved_register(&insn));
                match insn.mnemonic() {
                    Mnemonic::Push => pushed |= set,
                    Mnemonic::Pop => popped |= set,
                    _ => writes |= self.effects.of(&insn).writes,
                }
                match insn.flow_control() {
                    FlowControl::Call if insn.mnemonic() == Mnemonic::Call => {
                        let callee = branch.map_or(everything, |b| self.callee(b.target, depth - 1));
                        writes |= callee.clobbers;
                        if !callee.returns || self.leaves_frame(&insn) {
                            break;
                        }
                    }
                    FlowControl::IndirectCall if self.keeps_registers(&insn) => {
                        writes |= RegSet::of(Register::RAX);
                    }
                    FlowControl::IndirectCall => {
                        writes |= caller_saved();
                        if self.import_ends(&insn) || self.leaves_frame(&insn) {
                            break;
                        }
                    }
                    FlowControl::IndirectBranch => {
                        writes |= caller_saved();
                        returns |= !self.import_ends(&insn);
                        break;
                    }
                    FlowControl::Return => {
                        returns = true;
                        break;
                    }
                    FlowControl::Exception | FlowControl::Interrupt => break,
                    FlowControl::UnconditionalBranch => {
                        let Some(branch) = branch else { break };
                        at = branch.target;
                        continue;
                    }
                    _ => work.extend(branch.map(|b| b.target)),
                }
                if insn.code() == Code::Hlt {
                    break;
                }
                at = Vaddr(insn.next_ip());
            }
            if returns && writes & caller_saved() == caller_saved() {
                return everything;
            }
        }
        // A register that is saved and restored is left alone.
        let clobbers = (writes - (pushed & popped)) | (popped - pushed);
        Callee { clobbers: clobbers & caller_saved(), returns }
    }
}

fn saved_register(insn: &Instruction) -> Register {
    if insn.op_count() == 1 { insn.op0_register() } else { Register::None }
}

/// The argument register that must have been set earlier, when the instructions in front of a call
/// wrote the arguments before it and the one behind it: arguments are passed in order.
fn in_front_of(recent: RegSet, arguments: &[Register; 6]) -> RegSet {
    let written = |r: &Register| recent.intersects(RegSet::of(*r));
    let Some(hole) = arguments.iter().position(|r| !written(r)) else { return RegSet::EMPTY };
    let behind = arguments.get(hole + 1).is_some_and(written);
    if behind { RegSet::of(arguments[hole]) } else { RegSet::EMPTY }
}
