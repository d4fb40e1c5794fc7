//! Time-outs of sockets of another process.
//!
//! # Safety
//! A descriptor that is closed before anything else happens, and one option read into a struct of ours.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Which of a socket's time-outs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `SO_RCVTIMEO`: reading and accepting.
    Receive,
    /// `SO_SNDTIMEO`: writing and connecting.
    Send,
}

fn opened(result: i64) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The time-out of a socket of another process. The socket has one more holder for some microseconds.
///
/// # Errors
/// `ENOTSOCK`, `EBADF`, `ENOSYS` before Linux 5.6, or `EPERM` without ptrace rights.
pub fn timeout(pid: i32, fd: i32, side: Side) -> io::Result<Duration> {
    // SAFETY: numbers only; both descriptors are ours until dropped.
    let process = opened(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    let socket = opened(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    let option = match side {
        Side::Receive => libc::SO_RCVTIMEO,
        Side::Send => libc::SO_SNDTIMEO,
    };
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut length = size_of::<libc::timeval>() as libc::socklen_t;
    let value = (&raw mut time).cast();
    // SAFETY: `time` takes the `length` bytes that are announced.
    let done =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, &raw mut length) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let micros = u32::try_from(time.tv_usec).unwrap_or(0);
    Ok(Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), micros.saturating_mul(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn each_side_has_its_own() {
        let (socket, _other) = UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        let of = |side| timeout(std::process::id().cast_signed(), socket.as_raw_fd(), side).unwrap();
        assert_eq!((of(Side::Receive), of(Side::Send)), (Duration::from_millis(1500), Duration::ZERO));
        let no_socket = std::fs::File::open("/dev/null").unwrap();
        let refused =
            timeout(std::process::id().cast_signed(), no_socket.as_raw_fd(), Side::Send).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTSOCK));
    }
}
