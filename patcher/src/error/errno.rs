//! Errors as the kernel's livepatch would number them.

use super::Error;

impl Error {
    /// Name of the errno the kernel's livepatch would give, for `--json`.
    #[must_use]
    pub fn errno(&self) -> &'static str {
        match self {
            Self::NoProcess { .. }
            | Self::NoProcessNamed { .. }
            | Self::Vanished { .. }
            | Self::Executed { .. } => "ESRCH",
            Self::KernelThread { .. } | Self::Narrow { .. } => "ENOEXEC",
            Self::NotPermitted { .. } => "EPERM",
            Self::Traced { .. }
            | Self::Stopped { .. }
            | Self::Frozen { .. }
            | Self::VforkChild { .. }
            | Self::Busy { .. }
            | Self::HookingOff { .. }
            | Self::HookingInUse { .. }
            | Self::AtCallbacks { .. }
            | Self::Foreign { .. }
            | Self::Redirect { foreign: true, .. }
            | Self::MovingTarget { .. } => "EBUSY",
            Self::NotPrepared { .. } | Self::NotReady { .. } | Self::AbiMismatch { .. } => "ENODEV",
            Self::NoThread { .. } | Self::NoHost { .. } => "EAGAIN",
            Self::NoChannel { .. } | Self::NotPlaced { .. } => "ENOMEM",
            Self::NotEnabled { .. } | Self::NotConcerned { .. } | Self::NoAttribute { .. } => "ENOENT",
            Self::AttributeAccess { .. } => "EACCES",
            Self::FromCallback { .. } => "EDEADLK",
            Self::Patch { errno, .. } => errno,
            Self::Redirect { .. } | Self::Elf(_) | Self::AlreadyEnabled { .. } => "EINVAL",
            Self::Failed { errno, .. } | Self::CallbackFailed { errno, .. } => errno_name(*errno),
            Self::Reversed { .. } => "ECANCELED",
            Self::TimedOut { .. } => "ETIMEDOUT",
            Self::NotInTransition { .. }
            | Self::Blocked { .. }
            | Self::Incompatible { .. }
            | Self::AttributeValue { .. }
            | Self::Unchanged { .. } => "EINVAL",
            Self::InTransition { .. } => "EBUSY",
            Self::Interrupted { .. } => "EINTR",
            Self::Unreachable { .. } | Self::NoAnswer { .. } => "ETIMEDOUT",
            Self::ShadowStack { .. } => "ENOSYS",
            Self::Seccomp { .. } | Self::SeccompUnreadable { .. } => "EPERM",
            Self::Worker { .. } | Self::Unreadable { .. } | Self::Store { .. } | Self::Io { .. } => "EIO",
        }
    }
}

/// Name of an errno, as the control interface spells it.
#[must_use]
pub fn errno_name(errno: i32) -> &'static str {
    u64::try_from(errno).ok().and_then(suture_abi::errno::name).unwrap_or("EOTHER")
}
