//! Whether code that is to be left is live on a thread's stack.
//!
//! A transition switches a thread when none of the *searched* code is live on its stack. This library
//! decides that from what somebody else has read: the thread's registers, a copy of its stack, the
//! process's objects. It touches no process. Every rule of the decision stands here, with its reason.
//!
//! | step | what | here |
//! |---|---|---|
//! | 1 | which code is searched | [`SearchedBuilder`], [`Searched`] |
//! | 2 | quick look at every word of the stack | [`Searched::scan`], [`ends`] |
//! | 3 | exact walk where step 2 found something or proved nothing | [`suture_unwind::Unwinder`] |
//! | 4 | the verdict | [`decide`], [`examine`] |
//! | 5 | once per transition: stacks that no thread stands on | [`hidden`], [`hints`] |
//!
//! # Example
//!
//! ```no_run
//! use suture_elf::{Addr, Base, Memory};
//! use suture_redirect::{FunctionCode, ObjectAnalysis};
//! use suture_scan::{End, proc::Syscall};
//! use suture_stack::{Kind, SearchedBuilder, Verdict, decide};
//! use suture_unwind::{Module, Registers, StackCopy, Unwinder};
//!
//! # fn example(object: &ObjectAnalysis, base: Base, entry: suture_elf::Vaddr, copy: std::ops::Range<u64>,
//! #     arenas: Vec<std::ops::Range<u64>>, modules: &[Module], process: &dyn Memory, line: &[u8],
//! #     stack_end: u64) -> Result<(), Box<dyn std::error::Error>> {
//! // The functions of the patch, by the caller's numbers.
//! let mut builder = SearchedBuilder::new();
//! builder.original(0, base, &FunctionCode::of(object, entry)?);
//! builder.add(0, Kind::Copy, copy);
//! arenas.iter().for_each(|arena| builder.runtime(arena.clone()));
//! builder.markers(modules);
//! let searched = builder.build();
//!
//! // One thread, between two equal run counts.
//! let Some(Syscall::Blocked { sp, pc, .. }) = Syscall::parse(line) else { return Ok(()) };
//! let stack = process.read_vec(Addr(sp), (stack_end - sp) as usize)?;
//! let scan = searched.scan(pc, sp, &stack, End::Address(stack_end));
//! // The walk is made only if the scan is not clean.
//! let mut unwinder = Unwinder::new(modules, arenas);
//! let memory = StackCopy::new(sp, &stack).or(process);
//! match decide(&scan, &searched, || unwinder.walk(Registers::from_pc_sp(pc, sp), &memory)) {
//!     Verdict::Clear(_) => println!("may be switched"),
//!     other => println!("{other}"),
//! }
//! # Ok(()) }
//! ```
#![deny(unsafe_code)]

pub mod ends;
pub mod hidden;
pub mod hints;
mod searched;
mod verdict;

pub use searched::{Kind, Match, RawScan, Searched, SearchedBuilder};
pub use verdict::{Verdict, decide, examine};
