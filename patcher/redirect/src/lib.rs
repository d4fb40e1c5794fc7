//! The redirect planner: from functions to single stores.
//!
//! A function is redirected by *one* store that leaves every instruction boundary as it was, so no
//! thread has to be stopped and none can be caught between two instructions of a half-written jump.
//! Everything else (stubs, copies, punned pages) is new memory that is complete before the store.
//!
//! ```text
//! entry: jmp → stub: undo of the prologue; jmp [rip+slot] → slot: dispatcher, new function or copy
//! ```
//!
//! The planner is pure: it reads files and a snapshot of a process, makes no system call, and
//! returns data ([`RedirectPlan`]) that the command ships and the worker commits. All or nothing.
//!
//! # Rules of a site
//!
//! Site `v` in function `F`; the window is `[v, v+5)` for J, the instruction for A and S.
//!
//! 1. *Bytes*: those from the entry to the end of the window are the file's.
//! 2. *Path*: from the entry to `v` only `push r64`, `mov rbp,rsp` behind `push rbp`, and
//!    `sub rsp,imm`, which the stub undoes.
//! 3. *Arrivals*: behind a prologue nothing of the whole object continues at `v` or between the entry
//!    and `v`: no branch, symbol, landing pad, jump-table entry, code pointer. Windows of A, S and P
//!    have no arrivals inside either; those of J may, since their bytes stay.
//! 4. *Registers*: the entry takes nothing in the flags or r11, and no caller keeps a value in a
//!    register across the call that the old code happens to leave alone, unless the new code leaves it
//!    alone too.
//! 5. *Instruction*: no call, system call or interrupt is displaced; the copy reaches its operands.
//! 6. *Store*: one byte (J) or one aligned word (A, S, P); sites are disjoint.
//! 7. *Target*: the page a pun leads to is free and reserved for nothing, and reaches a slot.
//! 8. *Life*: what is armed never changes; the runtime keeps and verifies it.
#![deny(unsafe_code)]

mod analysis;
mod arena;
mod callers;
mod census;
mod check;
mod cursor;
mod dispatcher;
mod effects;
mod error;
mod flow;
mod function;
mod held;
mod imports;
mod kept;
mod nature;
mod options;
mod padding;
mod pages;
mod parts;
mod plan;
mod pointers;
mod process;
mod recipe;
mod refs;
mod relocate;
mod stub;
mod sweep;
mod tables;
mod warm;
mod window;

pub use analysis::ObjectAnalysis;
pub use census::{Census, census};
pub use dispatcher::dispatcher;
pub use error::{PlanError, Refusal, Source, TargetFault};
pub use function::Function;
pub use kept::Kept;
pub use options::{Class, Classes, Options};
pub use parts::{FunctionCode, code_ranges, split_parts};
pub use plan::{LoadedObject, PlannedSite, RedirectPlan, Replacement, Request, plan_sites};
pub use process::{ExistingSite, ProcessView, check_bytes};
pub use recipe::{RecipePlan, RecipeSite, plan_recipe};
pub use warm::warm_up;
pub use window::Undo;
