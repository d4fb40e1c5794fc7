//! The command's system calls. Nothing outside this folder calls the kernel in unsafe ways.

pub mod cgroup;
pub mod futex;
pub mod heap;
pub mod kcmp;
pub mod limits;
pub mod memory;
pub mod output;
pub mod proc;
pub mod processor;
pub mod ptrace;
pub mod seal;
pub mod socket;
pub mod time;
pub mod urgent;
pub mod user;
