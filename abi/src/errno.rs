//! Names of errnos.

/// In order of their numbers, from 1; Linux leaves out two.
const NAMES: &str = "\
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT \
    ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG \
    ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP \
    - ENOMSG EIDRM ECHRNG EL2NSYNC EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL \
    ENOANO EBADRQC EBADSLT - EBFONT ENOSTR ENODATA ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV \
    ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ EBADFD EREMCHG ELIBACC ELIBBAD \
    ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE \
    EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP EPFNOSUPPORT EAFNOSUPPORT \
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN \
    ENOTCONN ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY \
    EINPROGRESS ESTALE EUCLEAN ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE \
    ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL \
    EHWPOISON";

/// Name of an errno, as C has it; `None` for what is none.
#[must_use]
pub fn name(errno: u64) -> Option<&'static str> {
    let at = usize::try_from(errno).ok()?.checked_sub(1)?;
    // Of bytes: a search for characters has code that panics, which the runtime must not have.
    let name = NAMES.as_bytes().split(|byte| *byte == b' ').nth(at)?;
    core::str::from_utf8(name).ok().filter(|name| *name != "-")
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn names_stand_at_their_numbers() {
        let known = [
            (1, "EPERM"),
            (11, "EAGAIN"),
            (22, "EINVAL"),
            (35, "EDEADLK"),
            (40, "ELOOP"),
            (42, "ENOMSG"),
            (57, "EBADSLT"),
            (59, "EBFONT"),
            (95, "EOPNOTSUPP"),
            (110, "ETIMEDOUT"),
            (133, "EHWPOISON"),
        ];
        for (errno, expected) in known {
            assert_eq!(name(errno), Some(expected));
        }
        for none in [0, 41, 58, 134, u64::MAX] {
            assert_eq!(name(none), None, "{none}");
        }
    }
}
