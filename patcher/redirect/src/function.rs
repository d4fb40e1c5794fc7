//! One function: where it ends, what it consists of, where its jumps go.

use crate::Refusal;
use crate::analysis::ObjectAnalysis;
use crate::nature;
use crate::tables::{self, Tables};
use iced_x86::{Code, FlowControl, Instruction};
use suture_elf::{Frame, SymbolKind, Vaddr};

/// A decoded function.
#[derive(Clone, Debug)]
pub struct Function {
    pub(crate) entry: Vaddr,
    pub(crate) end: Vaddr,
    pub(crate) name: String,
    pub(crate) code: Vec<Instruction>,
    pub(crate) landing_pads: Vec<Vaddr>,
    pub(crate) tables: Tables,
}

impl Function {
    /// Decodes the function at `entry`, unless its nature forbids to replace it.
    ///
    /// # Errors
    /// When it is no function, one of unknown size, or one that cannot be replaced.
    pub fn new(object: &ObjectAnalysis, entry: Vaddr) -> Result<Self, Refusal> {
        if object.code_from(entry).is_none() {
            return Err(Refusal::NotCode(entry));
        }
        let frame = object.frames().at(entry);
        nature::check(object, entry, frame.as_ref())?;
        let end = end(object, entry, frame.as_ref()).ok_or(Refusal::NoSize)?;
        let range = entry..end;
        let code = object.decode(&range);
        let pads = frame.as_ref().map(|f| object.frames().landing_pads(f));
        // An exception table that cannot be read may send exceptions anywhere in the function.
        let landing_pads = match pads {
            Some(None) => code.iter().map(|i| Vaddr(i.ip())).collect(),
            Some(Some(pads)) => pads,
            None => Vec::new(),
        };
        let tables = tables::resolve(object, &code, &range);
        Ok(Self { entry, end, name: object.name_of(entry), code, landing_pads, tables })
    }

    /// Address of the entry.
    #[must_use]
    pub fn entry(&self) -> Vaddr {
        self.entry
    }

    /// Size in bytes, from the entry; parts elsewhere not counted.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end.0 - self.entry.0
    }

    /// Demangled name of the first symbol at the entry, or a description.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The entry, or what follows its `endbr64`: the first place a redirect may stand at.
    pub(crate) fn first(&self) -> Option<usize> {
        let landing = self.code.first()?.code() == Code::Endbr64;
        (usize::from(landing) < self.code.len()).then_some(usize::from(landing))
    }

    /// Whether the bytes after it cannot be reached by falling through.
    pub(crate) fn ends_for_good(&self) -> bool {
        let whole = self.code.last().is_some_and(|i| i.next_ip() == self.end.0);
        whole && self.code.last().is_some_and(is_terminal)
    }
}

/// Whether nothing falls through the instruction.
pub(crate) fn is_terminal(insn: &Instruction) -> bool {
    let flow = insn.flow_control();
    matches!(flow, FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch)
        || flow == FlowControl::Exception
        || matches!(insn.code(), Code::Hlt | Code::Int3)
}

/// Where the function at `entry` ends.
pub(crate) fn end(object: &ObjectAnalysis, entry: Vaddr, frame: Option<&Frame>) -> Option<Vaddr> {
    let sized = object.symbols_at(entry).filter(|s| s.kind == SymbolKind::Func && s.size > 0);
    let symbol = sized.map(|s| entry + s.size).max();
    match frame {
        // A frame that starts here is what the compiler says; a larger symbol is hand-written code
        // with several frames.
        Some(frame) if frame.start == entry => Some(symbol.unwrap_or(frame.end).max(frame.end)),
        _ => symbol,
    }
}
