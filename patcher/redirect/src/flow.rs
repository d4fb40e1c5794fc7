//! Data flow over plain machine code: what is read before it is written, and what is left alone.
//!
//! Code is decoded block by block from where control goes, so nothing has to be known about function
//! boundaries, and a jump into another part or another function is followed like any other.

mod callee;
mod live;

use crate::analysis::ObjectAnalysis;
use crate::cursor::Cursor;
use crate::effects::{Effects, RegSet};
use crate::imports;
use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind, Register};
use rustc_hash::FxHashMap;
use std::collections::HashSet;
use suture_elf::Vaddr;

/// Depth of calls followed to see what a callee reads or leaves alone.
const DEPTH: usize = 12;

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

/// The flow of an object for when there is a question: an analysis often knows the answers.
pub(crate) struct LazyFlow<'a> {
    object: &'a ObjectAnalysis,
    flow: Option<Flow<'a>>,
}

impl<'a> LazyFlow<'a> {
    pub fn new(object: &'a ObjectAnalysis) -> Self {
        Self { object, flow: None }
    }

    pub fn get(&mut self) -> &mut Flow<'a> {
        self.flow.get_or_insert_with(|| Flow::new(self.object))
    }
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

/// Where control goes behind an instruction.
enum Next {
    /// To the next one.
    Behind,
    /// To the target of a jump.
    At(Vaddr),
    /// Nowhere that matters.
    End,
}

impl Next {
    fn behind(insn: &Instruction) -> Self {
        if insn.code() == Code::Hlt { Self::End } else { Self::Behind }
    }
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
}
