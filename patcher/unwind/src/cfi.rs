//! Rows of call frame information, in a form that outlives the lookup.

use crate::module::{Found, Reader};
use crate::registers::Register;
use gimli::{CfaRule, RegisterRule, UnwindContext, UnwindTableRow};
use std::ops::Range;
use suture_elf::Vaddr;

/// How the canonical frame address is computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cfa {
    /// A register and an offset.
    Register(Register, i64),
    /// A DWARF expression.
    Expression(Box<[u8]>),
}

/// How a register of the caller is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It is lost. For the return address: there is no caller.
    Undefined,
    Same,
    /// In memory, from the CFA.
    At(i64),
    /// The CFA and an offset itself.
    Is(i64),
    /// In another register.
    Register(Register),
    /// In memory, where the expression says.
    AtExpression(Box<[u8]>),
    /// What the expression says.
    IsExpression(Box<[u8]>),
    /// Something that has no meaning on this machine.
    Unknown,
}

/// What one row says.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub cfa: Cfa,
    pub rules: Vec<(Register, Rule)>,
    /// The frame is that of a signal trampoline.
    pub trampoline: bool,
    /// Addresses of the whole FDE.
    pub frame: Range<Vaddr>,
}

impl Row {
    /// The row for an address; `None` when the information is damaged.
    pub fn at(found: &Found<'_>, at: Vaddr) -> Option<Self> {
        let mut context = UnwindContext::new();
        let row = found.fde.unwind_info_for_address(&found.section, &found.bases, &mut context, at.0).ok()?;
        let rules = row.registers().filter(|(column, _)| usize::from(column.0) < Register::COUNT);
        let rules = rules.map(|(column, rule)| Some((Register(column.0), rule_of(rule, found)?)));
        Some(Self {
            cfa: cfa_of(row, found)?,
            rules: rules.collect::<Option<_>>()?,
            trampoline: found.fde.is_signal_trampoline(),
            frame: frame_of(found),
        })
    }

    /// The rule for a register, if the row has one.
    pub fn rule(&self, register: Register) -> Option<&Rule> {
        self.rules.iter().find(|r| r.0 == register).map(|r| &r.1)
    }
}

/// Where the CFA is in one stretch of code.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub end: Vaddr,
    /// Register and offset; `None` for an expression.
    pub cfa: Option<(Register, i64)>,
    /// Bytes of arguments on the stack that are gone when an exception continues here.
    pub arguments: u64,
}

/// The CFA over a whole FDE.
#[derive(Debug)]
pub(crate) struct Stretches {
    pub frame: Range<Vaddr>,
    /// Ascending; each begins where the one before it ends, the first at the start of the frame.
    list: Vec<Stretch>,
}

impl Stretches {
    /// Reads all rows; damaged ones end the list.
    pub fn of(found: &Found<'_>) -> Self {
        let mut list = Vec::new();
        let mut context = UnwindContext::new();
        if let Ok(mut table) = found.fde.rows(&found.section, &found.bases, &mut context) {
            while let Ok(Some(row)) = table.next_row() {
                let cfa = match row.cfa() {
                    CfaRule::RegisterAndOffset { register, offset } => Some((Register(register.0), *offset)),
                    CfaRule::Expression(_) => None,
                };
                list.push(Stretch { end: Vaddr(row.end_address()), cfa, arguments: row.saved_args_size() });
            }
        }
        Self { frame: frame_of(found), list }
    }

    /// What holds at an address of the frame.
    pub fn at(&self, at: Vaddr) -> Option<&Stretch> {
        if !self.frame.contains(&at) {
            return None;
        }
        self.list.get(self.list.partition_point(|s| s.end <= at))
    }
}

fn frame_of(found: &Found<'_>) -> Range<Vaddr> {
    Vaddr(found.fde.initial_address())..Vaddr(found.fde.end_address())
}

fn cfa_of(row: &UnwindTableRow<usize>, found: &Found<'_>) -> Option<Cfa> {
    match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => Some(Cfa::Register(Register(register.0), *offset)),
        CfaRule::Expression(e) => Some(Cfa::Expression(bytes_of(e, found)?)),
    }
}

fn rule_of(rule: &RegisterRule<usize>, found: &Found<'_>) -> Option<Rule> {
    Some(match rule {
        RegisterRule::Undefined => Rule::Undefined,
        RegisterRule::SameValue => Rule::Same,
        RegisterRule::Offset(offset) => Rule::At(*offset),
        RegisterRule::ValOffset(offset) => Rule::Is(*offset),
        RegisterRule::Register(other) => Rule::Register(Register(other.0)),
        RegisterRule::Expression(e) => Rule::AtExpression(bytes_of(e, found)?),
        RegisterRule::ValExpression(e) => Rule::IsExpression(bytes_of(e, found)?),
        _ => Rule::Unknown,
    })
}

fn bytes_of(expression: &gimli::UnwindExpression<usize>, found: &Found<'_>) -> Option<Box<[u8]>> {
    let expression: gimli::Expression<Reader<'_>> = expression.get(&found.section).ok()?;
    Some(expression.0.slice().into())
}
