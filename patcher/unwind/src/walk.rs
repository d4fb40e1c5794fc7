//! One frame after the other, or a reason why not.

use crate::cfi::{Cfa, Row, Rule};
use crate::error::Unreliable;
use crate::expression::{self, NoValue};
use crate::module::Module;
use crate::registers::{Register, Registers};
use crate::step::{Step, Steps};
use std::ops::Range;
use suture_elf::{Addr, Memory};

/// How a frame was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FrameKind {
    /// The innermost frame: `pc` is the next instruction.
    Innermost,
    /// A caller: `pc` is the return address, the call lies before it.
    Caller,
    /// Interrupted by a signal: `pc` is the next instruction.
    Interrupted,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Exact program counter or return address.
    pub pc: u64,
    /// Canonical frame address: `rsp` before the call was made.
    pub cfa: u64,
    /// How to read `pc`.
    pub kind: FrameKind,
    /// The frame is a signal trampoline.
    pub trampoline: bool,
    /// Index of the module `pc` lies in.
    pub module: usize,
    /// The CFA comes from a stack height that was computed from the code.
    pub by_height: bool,
}

/// What stands below the outermost frame: which kind of stack this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bottom {
    /// The entry of the program (or of the loader): the stack of the main thread.
    ProcessStart,
    /// The start of a thread in the C library's `clone` or `clone3`: when its function returns, the
    /// thread ends.
    ThreadStart,
    /// A context made by `makecontext`. The thread runs on the stack of a coroutine, and what is
    /// live on its own stack this walk did not see.
    Context,
    /// The return address is undefined, but nothing is known of that place.
    Unknown {
        /// Program counter of the outermost frame.
        pc: u64,
    },
}

/// A stack, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// Frames, the innermost first.
    pub frames: Vec<Frame>,
    /// What they stand on.
    pub bottom: Bottom,
}

/// Walks stacks of one process, and remembers what it learnt about its code.
///
/// Made for one set of loaded objects: when the process loads or unloads one, make a new one.
///
/// # Examples
/// ```no_run
/// # use suture_unwind::{Module, Registers, StackCopy, Unwinder};
/// # fn example(modules: &[Module], arenas: Vec<std::ops::Range<u64>>, process: &dyn suture_elf::Memory) {
/// let mut unwinder = Unwinder::new(modules, arenas);
/// // From a line of /proc/PID/task/TID/syscall, with the stack copied meanwhile.
/// let (sp, pc, stack) = (0x7ffd_1000, 0x7f12_3456, [0u8; 4096]);
/// let memory = StackCopy::new(sp, &stack).or(process);
/// match unwinder.walk(Registers::from_pc_sp(pc, sp), &memory) {
///     Ok(walk) => println!("{} frames, down to {:?}", walk.frames.len(), walk.bottom),
///     Err(why) => println!("not reliable: {why}"),
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Unwinder<M> {
    steps: Steps<M>,
    limit: usize,
}

impl<M: AsRef<[Module]>> Unwinder<M> {
    /// An unwinder over these objects, its own (`Vec`, `Arc<[_]>`) or somebody else's. `arenas` are the addresses of the runtime's own code without
    /// call frame information: a walk that gets there ends as [`Unreliable::InRuntimeArena`].
    #[must_use]
    pub fn new(modules: M, arenas: Vec<Range<u64>>) -> Self {
        Self { steps: Steps::new(modules, arenas), limit: 100_000 }
    }

    /// Refuses stacks of more frames than that (100 000 unless changed: more than fit into 8 MiB
    /// without looking for it).
    #[must_use]
    pub fn limit(mut self, frames: usize) -> Self {
        self.limit = frames;
        self
    }

    /// The objects.
    #[must_use]
    pub fn modules(&self) -> &[Module] {
        self.steps.modules()
    }

    /// Whether a call stands in front of an address: whether it can be a return address at all.
    #[must_use]
    pub fn follows_call(&self, addr: u64) -> bool {
        self.steps.follows_call(addr)
    }

    /// Walks to the proven end of the stack.
    ///
    /// # Errors
    /// What stopped the walk; the frames up to there are lost on purpose, since half a walk decides
    /// nothing.
    pub fn walk(&mut self, start: Registers, memory: &dyn Memory) -> Result<Walk, Unreliable> {
        let mut frames: Vec<Frame> = Vec::new();
        let mut registers = start;
        let mut kind = FrameKind::Innermost;
        loop {
            let unknown = Unreliable::UnknownRegister { pc: 0, register: Register::RA };
            let pc = registers.pc().ok_or(unknown)?;
            if frames.len() == self.limit {
                return Err(Unreliable::TooDeep { limit: self.limit });
            }
            let step = self.steps.at(pc, kind)?;
            let frame = |cfa, by_height| {
                let trampoline = step.row.trampoline;
                Frame { pc, cfa, kind, trampoline, module: step.module, by_height }
            };
            if step.context {
                // What it stands on is the context's own business; here this stack ends.
                frames.push(frame(registers.sp().unwrap_or(0), false));
                return self.end(frames, Bottom::Context);
            }
            let (cfa, by_height) = self.cfa(&step, &registers, memory)?;
            frames.push(frame(cfa, by_height));
            let Some(caller) = caller(&step, &registers, memory, cfa)? else {
                let bottom = self.steps.bottom(&step);
                return self.end(frames, bottom);
            };
            // A signal may run on another stack, so only ordinary calls must ascend. A wrong frame
            // pointer, taken from a register that held something else, is also noticed here.
            let trampoline = step.row.trampoline;
            if !trampoline && registers.sp().is_none_or(|sp| cfa <= sp) {
                return Err(Unreliable::NotAscending { pc });
            }
            kind = if trampoline { FrameKind::Interrupted } else { FrameKind::Caller };
            registers = caller;
        }
    }

    fn end(&self, frames: Vec<Frame>, bottom: Bottom) -> Result<Walk, Unreliable> {
        self.steps.check_main(&frames, bottom)?;
        Ok(Walk { frames, bottom })
    }

    /// The CFA, and whether it had to be computed from the code.
    fn cfa(
        &mut self,
        step: &Step,
        registers: &Registers,
        memory: &dyn Memory,
    ) -> Result<(u64, bool), Unreliable> {
        let unknown = match &step.row.cfa {
            Cfa::Register(register, offset) => match registers.get(*register) {
                Some(value) => return Ok((value.wrapping_add_signed(*offset), false)),
                None => *register,
            },
            Cfa::Expression(e) => match expression::evaluate(e, None, registers, memory) {
                Ok(cfa) => return Ok((cfa, false)),
                Err(NoValue::Unknown(register)) => register,
                Err(other) => return Err(no_value(other, step.pc)),
            },
        };
        let sp = registers.sp().ok_or(Unreliable::UnknownRegister { pc: step.pc, register: unknown })?;
        match self.steps.height(step) {
            Ok(height) => Ok((sp.wrapping_add_signed(height), true)),
            Err(why) => Err(Unreliable::NoHeight { pc: step.pc, register: unknown, why }),
        }
    }
}

fn no_value(why: NoValue, pc: u64) -> Unreliable {
    match why {
        NoValue::Unknown(register) => Unreliable::UnknownRegister { pc, register },
        NoValue::Unreadable(addr) => Unreliable::Memory { addr },
        NoValue::Bad => Unreliable::BadRule { pc },
    }
}

/// Registers of the caller; `None` at the end of the stack (return address undefined).
fn caller(
    step: &Step,
    registers: &Registers,
    memory: &dyn Memory,
    cfa: u64,
) -> Result<Option<Registers>, Unreliable> {
    let pc = step.pc;
    let row: &Row = &step.row;
    match row.rule(Register::RA) {
        Some(Rule::Undefined) => return Ok(None),
        // A row that does not say where the return address is proves nothing.
        None => return Err(Unreliable::BadRule { pc }),
        _ => {}
    }
    let mut result = Registers::default().with(Register::RSP, cfa);
    for register in Register::PRESERVED {
        result.set(register, registers.get(register));
    }
    let read = |addr: u64| memory.read_u64(Addr(addr)).map_err(|_| Unreliable::Memory { addr });
    for (column, rule) in &row.rules {
        let value = match rule {
            Rule::Undefined => Ok(None),
            Rule::Same => Ok(registers.get(*column)),
            Rule::At(offset) => read(cfa.wrapping_add_signed(*offset)).map(Some),
            Rule::Is(offset) => Ok(Some(cfa.wrapping_add_signed(*offset))),
            Rule::Register(other) => Ok(registers.get(*other)),
            Rule::AtExpression(e) => match expression::evaluate(e, Some(cfa), registers, memory) {
                Ok(addr) => read(addr).map(Some),
                Err(NoValue::Unknown(_)) => Ok(None),
                Err(other) => Err(no_value(other, pc)),
            },
            Rule::IsExpression(e) => match expression::evaluate(e, Some(cfa), registers, memory) {
                Ok(value) => Ok(Some(value)),
                Err(NoValue::Unknown(_)) => Ok(None),
                Err(other) => Err(no_value(other, pc)),
            },
            Rule::Unknown => Err(Unreliable::BadRule { pc }),
        }?;
        if *column == Register::RA && value.is_none() {
            let register = if let Rule::Register(other) = rule { *other } else { Register::RA };
            return Err(Unreliable::UnknownRegister { pc, register });
        }
        result.set(*column, value);
    }
    Ok(Some(result))
}
