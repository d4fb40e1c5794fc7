//! What the user can do about an error.

use super::Error;
use std::io;
use suture_elf::ElfError;

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoProcess { .. } | Self::NoProcessNamed { .. } => {
                "list processes with: suture status --all".into()
            }
            Self::NotPermitted { .. } => "run the command as root, or as the process's user".into(),
            Self::Traced { by, .. } => format!("detach {by} and try again"),
            Self::Stopped { .. } => "continue it (kill -CONT) and try again".into(),
            Self::InTransition { pid, name } => {
                format!(
                    "wait: suture wait {name} --pid {pid}; or take it back: suture reverse {name} --pid {pid}"
                )
            }
            Self::FromCallback { .. } => "callbacks may look (status, get), but not change patches".into(),
            Self::AtCallbacks { pid, name } => {
                format!(
                    "see which: suture get {name}/last_callback --pid {pid}; wait: suture wait {name} --pid {pid}"
                )
            }
            Self::NoAttribute { pid, patch, .. } => format!("list them with: suture get {patch} --pid {pid}"),
            Self::HookingInUse { pid, .. } => {
                format!("disable the patches first: suture disable NAME --pid {pid}")
            }
            Self::Blocked { name, state, .. } => {
                format!(
                    "apply a replacing patch that has state {state} itself and lets it go, instead of disabling {name}"
                )
            }
            Self::Incompatible { state, .. } => {
                format!("give the patch state {state}, so that it takes it over")
            }
            Self::TimedOut { .. } => {
                "try again when the thread is elsewhere, or give it more --timeout".into()
            }
            Self::NoHost { .. } => {
                "try again when a thread waits for something from outside (epoll, poll, accept, a condition)"
                    .into()
            }
            Self::Frozen { .. } => "thaw the control group and try again".into(),
            Self::VforkChild { parent, .. } => {
                format!("patch process {parent}, or wait until the child has executed its own program")
            }
            Self::NotPrepared { pid } => {
                format!(
                    "there is no patch in it, then; an apply puts the runtime in by itself, and so does: suture inject --pid {pid}"
                )
            }
            Self::NotReady { .. } | Self::Busy { .. } | Self::MovingTarget { .. } | Self::Executed { .. } => {
                "try again in a moment".into()
            }
            Self::AbiMismatch { .. } => "use the suture command that came with that runtime".into(),
            Self::Seccomp { call, .. } => {
                format!("allow {call} in the service's filter, or restart it without one")
            }
            Self::SeccompUnreadable { .. } => {
                "run the command as an administrator who is under no filter".into()
            }
            Self::HookingOff { pid } => format!("switch it on with: suture set hooking 1 --pid {pid}"),
            Self::NoThread { errno, .. } if *errno == libc::EAGAIN => {
                "raise the process's RLIMIT_NPROC (prlimit --nproc) or the pids limit of its cgroup".into()
            }
            Self::NoChannel { pid, errno } | Self::NotPlaced { pid, errno, .. } => match *errno {
                libc::EMFILE => "raise the process's RLIMIT_NOFILE (prlimit --nofile)".into(),
                libc::ENOMEM => {
                    "raise the process's RLIMIT_AS (prlimit --as) or the memory limit of its cgroup".into()
                }
                libc::EAGAIN => "raise the process's RLIMIT_MEMLOCK (prlimit --memlock)".into(),
                _ => format!("see what happened there with: suture log --pid {pid}"),
            },
            Self::AlreadyEnabled { pid, name } => {
                format!("disable it first with: suture disable {name} --pid {pid}")
            }
            Self::NotEnabled { pid, .. } => format!("see what is enabled with: suture status --pid {pid}"),
            Self::Store { .. } => {
                "the kernel forbids stores into code (boot with proc_mem.force_override=ptrace \
                                   or always), and the program forbids them to itself"
                    .into()
            }
            Self::Foreign { .. } | Self::Redirect { foreign: true, .. } => {
                "remove the breakpoint, probe or other hook that stands there and try again".into()
            }
            Self::Patch { hint, .. } | Self::Redirect { hint, .. } => return hint.clone(),
            Self::Elf(error) => elf_hint(error)?.into(),
            Self::Vanished { .. } => "find its successor with: suture status --all".into(),
            Self::KernelThread { .. } => "patch the kernel with its own livepatch".into(),
            Self::Narrow { .. } => "run a 64-bit build of the program".into(),
            Self::ShadowStack { .. } => {
                "start the program without shadow stacks: GLIBC_TUNABLES=glibc.cpu.x86_shstk=off".into()
            }
            Self::Unreachable { .. } => "try again when the process has less to do".into(),
            Self::NoAnswer { pid, .. } => {
                format!(
                    "see with suture status --pid {pid} what was done, and try again; is the machine overloaded?"
                )
            }
            Self::NotConcerned { .. } => {
                "name the process that runs the program; suture info PATCH.so shows the objects".into()
            }
            Self::CallbackFailed { .. } => "ask the author of the patch what that callback wants".into(),
            Self::AttributeAccess { pid, .. } => {
                format!("see what can be set with: suture get PATCH --pid {pid}")
            }
            Self::Reversed { pid, .. } => format!("see when with: suture log --pid {pid}"),
            Self::NotInTransition { pid, .. } => {
                format!("see what is going on with: suture status --pid {pid}")
            }
            Self::Failed { pid, .. }
            | Self::NoThread { pid, .. }
            | Self::Worker { pid, .. }
            | Self::Unreadable { pid, .. } => {
                format!("see what happened there with: suture log --pid {pid}")
            }
            Self::AttributeValue { .. } | Self::Unchanged { .. } => return None,
            Self::Interrupted { .. } | Self::Io { .. } => return None,
        })
    }
}

fn elf_hint(error: &ElfError) -> Option<&'static str> {
    Some(match error {
        ElfError::NotElf { .. } => {
            "a patch is a shared object: cc -O2 -fPIC -shared -nostartfiles fix.c -o fix.so"
        }
        ElfError::Foreign { .. } => "build it on, or for, x86-64: x86_64-linux-gnu-gcc",
        ElfError::Malformed { .. } => "was it copied completely? Build it again",
        ElfError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => "is its name correct?",
        ElfError::Io { source, .. } if source.kind() == io::ErrorKind::IsADirectory => {
            "name the shared object in it"
        }
        ElfError::Io { .. } => return None,
    })
}
