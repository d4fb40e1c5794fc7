//! Memory that was copied before.

use suture_elf::{Addr, Memory, MemoryError};

/// A copied stack, and what to ask for everything else (an alternate stack, the vdso).
///
/// A walk reads a few words per frame; from a copy each costs a few nanoseconds, from the process a
/// system call.
#[derive(Clone, Copy)]
pub struct StackCopy<'a> {
    start: u64,
    bytes: &'a [u8],
    rest: Option<&'a dyn Memory>,
}

impl std::fmt::Debug for StackCopy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StackCopy").field("start", &self.start).field("len", &self.bytes.len()).finish()
    }
}

impl<'a> StackCopy<'a> {
    /// A copy of the bytes from `start` on.
    #[must_use]
    pub fn new(start: u64, bytes: &'a [u8]) -> Self {
        Self { start, bytes, rest: None }
    }

    /// Lets other addresses be read elsewhere. What is read there is not of the same moment: only for
    /// a thread that cannot run meanwhile.
    #[must_use]
    pub fn or(mut self, rest: &'a dyn Memory) -> Self {
        self.rest = Some(rest);
        self
    }
}

impl Memory for StackCopy<'_> {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let from = addr.0.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        let bytes = from.and_then(|from| self.bytes.get(from..from.checked_add(buf.len())?));
        match (bytes, self.rest) {
            (Some(bytes), _) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            (None, Some(rest)) => rest.read(addr, buf),
            (None, None) => Err(MemoryError { addr, len: buf.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_copied_is_read_and_nothing_else() {
        let bytes: Vec<u8> = (0..32).collect();
        let copy = StackCopy::new(0x1000, &bytes);
        assert_eq!(copy.read_u64(Addr(0x1008)).unwrap(), 0x0f0e_0d0c_0b0a_0908);
        assert!(copy.read_u64(Addr(0x1018)).is_ok());
        for at in [0xff8, 0x1019, 0x1020, u64::MAX - 3] {
            assert!(copy.read_u64(Addr(at)).is_err(), "{at:#x}");
        }
        let other = StackCopy::new(0x5000, &bytes);
        assert!(copy.or(&other).read_u64(Addr(0x5000)).is_ok());
    }
}
