//! Every way a command can fail: what was refused, why, and what to do.
//!
//! The message says the first two, [`Error::hint`] the third, [`Error::exit_code`] is the contract
//! with scripts.

mod errno;
mod hint;
mod source;

pub use errno::errno_name;

use crate::transition::Blocker;
use std::io;
use suture_elf::ElfError;
use thiserror::Error;

/// Exit status: all done.
pub const EXIT_DONE: u8 = 0;
/// Exit status: refused or failed; the target is unchanged.
pub const EXIT_REFUSED: u8 = 1;
/// Exit status: the command line is wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit status: started, but not finished in time.
pub const EXIT_UNFINISHED: u8 = 3;
/// Exit status: several processes, and some of them failed.
pub const EXIT_PARTLY: u8 = 4;

/// A failed command on one process or one file.
#[derive(Debug, Error)]
pub enum Error {
    /// No such process.
    #[error("no process has the id {pid}")]
    NoProcess {
        /// Process id.
        pid: i32,
    },
    /// No process of that name.
    #[error("no process is named {name}")]
    NoProcessNamed {
        /// Name as given.
        name: String,
    },
    /// It ended, or another program took its place, in the middle.
    #[error("process {pid} ended")]
    Vanished {
        /// Process id.
        pid: i32,
    },
    /// It executed another program in the middle.
    #[error("process {pid} executed another program meanwhile")]
    Executed {
        /// Process id.
        pid: i32,
    },
    /// A thread of the kernel.
    #[error("process {pid} is a thread of the kernel, which has no program")]
    KernelThread {
        /// Process id.
        pid: i32,
    },
    /// A 32-bit program.
    #[error("process {pid} runs a 32-bit program; only programs for x86-64 can be patched")]
    Narrow {
        /// Process id.
        pid: i32,
    },
    /// A child that borrows its parent's memory.
    #[error("process {pid} was made by vfork and lives in the memory of its parent, process {parent}")]
    VforkChild {
        /// Process id.
        pid: i32,
        /// The parent's.
        parent: i32,
    },
    /// The kernel does not let us.
    #[error("not permitted to patch process {pid} (user {owner}): {why}")]
    NotPermitted {
        /// Process id.
        pid: i32,
        /// Its user, if known.
        owner: String,
        /// The rule that forbids it.
        why: String,
    },
    /// Another tracer is attached.
    #[error("process {pid} is being traced by {by} (process {tracer})")]
    Traced {
        /// Process id.
        pid: i32,
        /// The tracer's process id.
        tracer: i32,
        /// Its name.
        by: String,
    },
    /// It is stopped by job control.
    #[error("process {pid} is stopped (by SIGSTOP or one of its kin)")]
    Stopped {
        /// Process id.
        pid: i32,
    },
    /// Its control group is frozen.
    #[error("process {pid} is frozen with its control group {cgroup}")]
    Frozen {
        /// Process id.
        pid: i32,
        /// Name in the hierarchy.
        cgroup: String,
    },
    /// No runtime.
    #[error("process {pid} runs without the runtime")]
    NotPrepared {
        /// Process id.
        pid: i32,
    },
    /// The constructor did not run yet.
    #[error("process {pid} is still starting: its runtime is not ready")]
    NotReady {
        /// Process id.
        pid: i32,
    },
    /// Another version of the contract.
    #[error("process {pid} has a runtime of ABI {theirs}, this command speaks ABI {ours}")]
    AbiMismatch {
        /// Process id.
        pid: i32,
        /// The runtime's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// Another command is at work.
    #[error("another suture command is at work in process {pid}")]
    Busy {
        /// Process id.
        pid: i32,
    },
    /// `suture set hooking 0`.
    #[error("patching is switched off in process {pid}")]
    HookingOff {
        /// Process id.
        pid: i32,
    },
    /// Shadow stacks forbid the doorbell's return.
    #[error("process {pid} uses a shadow stack, which the entry into it does not support yet")]
    ShadowStack {
        /// Process id.
        pid: i32,
    },
    /// The program's own filter is in the way.
    #[error("the seccomp filter of process {pid} does not allow {call}")]
    Seccomp {
        /// Process id.
        pid: i32,
        /// System call.
        call: String,
    },
    /// Its filters cannot be seen.
    #[error("cannot read the seccomp filters of process {pid}: {source}")]
    SeccompUnreadable {
        /// Process id.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// No thread could be used.
    #[error("no thread of process {pid} could be borrowed in {tries} tries ({why})")]
    Unreachable {
        /// Process id.
        pid: i32,
        /// Threads that were stopped and let go unused.
        tries: u32,
        /// What its threads were doing instead.
        why: String,
    },
    /// No thread to run callbacks on.
    #[error("no thread of process {pid} can run the patch's callbacks ({why})")]
    NoHost {
        /// Process id.
        pid: i32,
        /// What the threads were doing instead, or what failed.
        why: String,
    },
    /// The kernel makes no thread there.
    #[error("no thread can be made in process {pid}: {}{}", io::Error::from_raw_os_error(*errno), full(*pid))]
    NoThread {
        /// Process id.
        pid: i32,
        /// errno of clone.
        errno: i32,
    },
    /// The clone could not place the runtime.
    #[error("the runtime cannot be placed in process {pid}: {step}: {}", io::Error::from_raw_os_error(*errno))]
    NotPlaced {
        /// Process id.
        pid: i32,
        /// The call that failed.
        step: &'static str,
        /// Its errno.
        errno: i32,
    },
    /// The worker could not make its channel.
    #[error("process {pid} has no {} for the worker's channel: {}", lacking(*errno), io::Error::from_raw_os_error(*errno))]
    NoChannel {
        /// Process id.
        pid: i32,
        /// errno of memfd_create or mmap.
        errno: i32,
    },
    /// The worker is silent.
    #[error("the worker in process {pid} did not answer {what}")]
    NoAnswer {
        /// Process id.
        pid: i32,
        /// To what.
        what: &'static str,
    },
    /// The worker said no.
    #[error("process {pid}: {step} was refused: {what}")]
    Worker {
        /// Process id.
        pid: i32,
        /// Which step.
        step: &'static str,
        /// Its reason.
        what: String,
    },
    /// Something in the target does not make sense.
    #[error("cannot make sense of process {pid}: {what}")]
    Unreadable {
        /// Process id.
        pid: i32,
        /// What.
        what: String,
    },
    /// The patch file or an object of the target.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The patch cannot be linked into the process, or is malformed.
    #[error("{what}")]
    Patch {
        /// What and why.
        what: String,
        /// errno the control API gives for it.
        errno: &'static str,
        /// What to do.
        hint: Option<String>,
    },
    /// A function cannot be redirected.
    #[error("{what}")]
    Redirect {
        /// What and why, one line per function.
        what: String,
        /// Bytes of one of them are somebody else's.
        foreign: bool,
        /// What to do about the first.
        hint: Option<String>,
    },
    /// It has nothing that the patch changes.
    #[error("process {pid} maps none of the patch's objects")]
    NotConcerned {
        /// Process id.
        pid: i32,
    },
    /// The patch is there already.
    #[error("patch {name} is already enabled in process {pid}")]
    AlreadyEnabled {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
    },
    /// The patch is not there.
    #[error("patch {name} is not enabled in process {pid}")]
    NotEnabled {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
    },
    /// Bytes at a site are somebody else's.
    #[error("{function}: the bytes at {addr:#x} are not the file's: {found} instead of {expected} ({whose})")]
    Foreign {
        /// Function.
        function: String,
        /// Address.
        addr: u64,
        /// Live bytes.
        found: String,
        /// The file's bytes.
        expected: String,
        /// Who it may be.
        whose: String,
    },
    /// Code could not be written.
    #[error("cannot write code of process {pid} at {addr:#x}: {source}")]
    Store {
        /// Process id.
        pid: i32,
        /// Address.
        addr: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Ctrl-C before the point of no return.
    #[error("interrupted; process {pid} is unchanged")]
    Interrupted {
        /// Process id.
        pid: i32,
    },
    /// The last check before the start said no.
    #[error("patch {name} failed to enable in process {pid}: {}", io::Error::from_raw_os_error(*errno))]
    Failed {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// What the check said.
        errno: i32,
    },
    /// `pre_patch` said no.
    #[error("patch {name} failed to enable in process {pid}: {why}")]
    CallbackFailed {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// What the callback returned.
        errno: i32,
        /// Which callback, and what became of it.
        why: String,
    },
    /// Somebody turned it round meanwhile.
    #[error("the transition of patch {name} in process {pid} was reversed")]
    Reversed {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// Entries that got the file's bytes back.
        restored: usize,
        /// Entries that keep somebody else's.
        left: usize,
    },
    /// It was turned round because the time was over.
    #[error("patch {name} was taken back in process {pid}: {}", held_by(blockers))]
    TimedOut {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// Threads that held it up.
        blockers: Vec<Blocker>,
    },
    /// One transition at a time.
    #[error("patch {name} is in transition in process {pid}")]
    InTransition {
        /// Process id.
        pid: i32,
        /// Name of the patch in transition.
        name: String,
    },
    /// A state of the patch forbids that it goes.
    #[error("patch {name} does not support disable: its state {state} has block_disable (process {pid})")]
    Blocked {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// The state.
        state: u64,
    },
    /// The patch would take the place of one whose state cannot be given up.
    #[error(
        "patch {name} is not compatible with the already installed patch {holder} in process {pid}: it lacks state {state}, which has block_disable"
    )]
    Incompatible {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
        /// The installed patch.
        holder: String,
        /// The state.
        state: u64,
    },
    /// The transition is at callbacks, where it cannot be changed.
    #[error("the transition of patch {name} in process {pid} is at its callbacks and cannot be changed now")]
    AtCallbacks {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
    },
    /// No transition of that patch.
    #[error("patch {name} is not in transition in process {pid}")]
    NotInTransition {
        /// Process id.
        pid: i32,
        /// Patch name.
        name: String,
    },
    /// A callback has started the command on its own process.
    #[error(
        "{callback} of a patch in process {pid} has started this command, which would wait for it to end"
    )]
    FromCallback {
        /// Process id.
        pid: i32,
        /// Which callback.
        callback: &'static str,
    },
    /// The control tree has no such path.
    #[error("patch {patch} in process {pid} has no attribute {path}")]
    NoAttribute {
        /// Process id.
        pid: i32,
        /// The path.
        path: String,
        /// The patch it begins with.
        patch: String,
    },
    /// An attribute is not for that.
    #[error("{path} can only be {can} (process {pid})")]
    AttributeAccess {
        /// Process id.
        pid: i32,
        /// The path.
        path: String,
        /// `read` or `written`.
        can: &'static str,
    },
    /// A value that is none.
    #[error("{path} cannot be set to {value:?} in process {pid}: give {wanted}")]
    AttributeValue {
        /// Process id.
        pid: i32,
        /// The path.
        path: String,
        /// What was given.
        value: String,
        /// What is taken.
        wanted: String,
    },
    /// It has that value already.
    #[error("{path} is {value} already in process {pid}")]
    Unchanged {
        /// Process id.
        pid: i32,
        /// The path.
        path: String,
        /// The value.
        value: u8,
    },
    /// Hooking cannot be switched off under patches.
    #[error("hooking cannot be switched off in process {pid}: {} need it", patches.join(", "))]
    HookingInUse {
        /// Process id.
        pid: i32,
        /// Names of the patches.
        patches: Vec<String>,
    },
    /// The process changed under every plan.
    #[error("process {pid} changed its memory map under {tries} plans in a row")]
    MovingTarget {
        /// Process id.
        pid: i32,
        /// Plans made.
        tries: u32,
    },
    /// Our own side.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Exit status of a command that failed with this on its only process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        EXIT_REFUSED
    }
}

/// Who held a transition up, in one line.
fn held_by(blockers: &[Blocker]) -> String {
    match blockers {
        [] => "not all threads could be moved in time".into(),
        [one] => format!("thread {} ({}) could not be moved: {}", one.tid, one.name, one.why),
        [first, rest @ ..] => format!(
            "thread {} ({}) could not be moved: {} (and {} more)",
            first.tid,
            first.name,
            first.why,
            rest.len()
        ),
    }
}

/// The control group that lets a process make no thread, if it is that.
fn full(pid: i32) -> String {
    match crate::sys::cgroup::full(pid) {
        Some((name, max)) => {
            format!(" (the limit of its control group {name} is reached: pids.max is {max})")
        }
        None => String::new(),
    }
}

fn lacking(errno: i32) -> &'static str {
    if errno == libc::ENOMEM { "memory" } else { "descriptor" }
}
