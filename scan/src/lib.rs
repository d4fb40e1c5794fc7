//! Looking at a thread from beside it: the words of its stack, and what `/proc` says of it.
//!
//! The worker inside the target and the command outside look at threads in the same way, with this
//! code. So it has the rules of the runtime: `no_std`, no allocation, no panic, bounded loops, no
//! system call. Bytes come from the caller.
//!
//! The pieces are used in this order:
//!
//! ```
//! use suture_scan::{proc, End, Hit, Interval, Ranges, Scanner, StackEnd, Step};
//!
//! // What is looked for. Closed intervals, sorted; see `Interval` for which bounds belong to what.
//! let table = [Interval { first: 0x40_1001, last: 0x40_1080 }];
//! let ranges = Ranges::new(&table).unwrap();
//!
//! // The run count first, then the registers, then the stack, then the run count again.
//! let before = proc::run_count(b"129384 2938 17\n").unwrap();
//! let line = proc::Syscall::parse(b"0 0x3 0x7f00 0x40 0x0 0x0 0x0 0x7f10 0x7f8812\n").unwrap();
//! let proc::Syscall::Blocked { sp, pc, .. } = line else { panic!("not blocked") };
//! assert_eq!(ranges.find(pc), None);
//!
//! // A main thread whose stack ends at the address the loader published.
//! let mut hits = [Hit::default(); 8];
//! let mut scanner = Scanner::new(&ranges, &mut hits, sp, End::Address(0x7f28));
//! assert_eq!(scanner.feed(&[0, 0x40_1052, 1]), Step::Ended);
//! let outcome = scanner.finish();
//! assert_eq!(outcome.end, StackEnd::Proven(0x7f28));
//! assert_eq!((outcome.hits, hits[0]), (1, Hit { at: 0x7f18, range: 0 }));
//!
//! let after = proc::run_count(b"129384 2938 17\n").unwrap();
//! assert_eq!(before, after, "it never ran meanwhile");
//! ```
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod proc;
mod ranges;
mod stack;

pub use ranges::{Disorder, Interval, Ranges};
pub use stack::{End, Hit, Outcome, Scanner, StackEnd, Step};
