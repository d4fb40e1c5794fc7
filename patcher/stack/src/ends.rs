//! Where the stacks of glibc's threads end.
//!
//! The end of a mapping is not the end of a stack: one page of it that was locked or kept from
//! `fork` splits it. What proves the end lies in the process: the loader publishes where the main
//! thread's stack begins, and above the frames of every other thread lies its control block.

use suture_elf::{Addr, Base, Memory, ObjectFile, Vaddr};
use suture_scan::{End, Ranges, Scanner, Step};

/// How the ends of one process's stacks are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// `__libc_stack_end`: where the main thread's stack begins.
    pub main: Option<u64>,
    /// Offset of a thread's number in its control block.
    pub tid_offset: Option<u32>,
}

impl Ends {
    /// Finds them among the loaded objects.
    ///
    /// # Examples
    /// ```no_run
    /// # fn example(view: &[(suture_elf::Base, suture_elf::ObjectFile)], memory: &dyn suture_elf::Memory) {
    /// let ends = suture_stack::ends::Ends::find(view.iter().map(|(base, file)| (*base, file)), memory);
    /// // 4711 is the thread's number as the process itself sees it: the last of `NSpid`.
    /// let end = ends.of_thread(4711, 4711);
    /// # }
    /// ```
    #[must_use]
    pub fn find<'a>(objects: impl IntoIterator<Item = (Base, &'a ObjectFile)>, memory: &dyn Memory) -> Self {
        let mut ends = Self::default();
        for (base, file) in objects {
            ends.main = ends.main.or_else(|| {
                let symbol = file.symbols().named("__libc_stack_end").find(|s| s.dynamic)?;
                memory.read_u64(base + symbol.addr).ok().filter(|end| *end != 0)
            });
            ends.tid_offset = ends.tid_offset.or_else(|| tid_offset(file));
        }
        ends
    }

    /// How the end of a thread's stack is recognised. Both numbers are those that the process itself
    /// sees.
    #[must_use]
    pub fn of_thread(&self, process: u32, thread: u32) -> End {
        match (thread == process, self.main, self.tid_offset) {
            (true, Some(main), _) => End::Address(main),
            (false, _, Some(tid_offset)) => End::ThreadBlock { tid: thread, tid_offset },
            _ => End::Unknown,
        }
    }
}

/// Reads libc's description of the field for debuggers: bits, count, offset.
fn tid_offset(file: &ObjectFile) -> Option<u32> {
    let symbol = file.symbols().named("_thread_db_pthread_tid").find(|s| s.dynamic)?;
    let word = |i: u64| {
        let bytes = file.bytes_at(Vaddr(symbol.addr.0.checked_add(4 * i)?), 4)?;
        bytes.first_chunk().copied().map(u32::from_le_bytes)
    };
    (word(0)? == 32 && word(1)? == 1).then(|| word(2))?
}

/// Reads a stack from its stack pointer to its end: pages one after the other, until the end is proven,
/// nothing is mapped any more, or `most` bytes were read.
///
/// What proves the end of a thread's stack is among the bytes, so that a scan of them ends proven too. For
/// use outside the target; inside, the worker feeds a scanner page by page.
#[must_use]
pub fn read_stack(memory: &dyn Memory, sp: u64, end: End, most: usize) -> Vec<u8> {
    const PIECE: u64 = 0x4000;
    const PAGE: u64 = 0x1000;
    let nothing = Ranges::default();
    let mut scanner = Scanner::new(&nothing, &mut [], sp, end);
    let mut bytes = Vec::new();
    let stop = match end {
        End::Address(end) => end,
        _ => u64::MAX,
    };
    let mut at = sp;
    while at < stop && bytes.len() < most {
        // To a boundary, so that a piece reaches over the end of a mapping only if that lies inside it.
        let to = |size: u64| (at | (size - 1)).saturating_add(1).min(stop);
        let read = |to: u64| memory.read_vec(Addr(at), (to - at) as usize);
        let Ok(piece) = read(to(PIECE)).or_else(|_| read(to(PAGE))) else { break };
        at += piece.len() as u64;
        let words: Vec<u64> = piece.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
        bytes.extend(piece);
        if scanner.feed(&words) == Step::Ended {
            break;
        }
    }
    bytes
}
