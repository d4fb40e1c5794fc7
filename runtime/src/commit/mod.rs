//! The commit engine: what each request does to the process.
//!
//! Runs on the worker only. Each operation first makes everything that can fail (new books, tables,
//! mappings), then commits with stores that cannot.

pub(crate) mod bytes;
mod direct;
mod drain;
mod drop;
mod moving;
mod prepare;
pub(crate) mod slots;
mod world;

use crate::block::BLOCK;
use crate::books::Books;
use crate::host;
use crate::record::DIRECTORY;
use crate::reply::Reply;
use crate::sys::fd::{self, Fd, MemfdUse};
use crate::sys::{EBUSY, EINVAL, thread};
use alloc_crate::vec::Vec;
use core::ffi::CStr;
use core::sync::atomic::Ordering;
use suture_abi::channel::{error, op};

/// The engine's state besides the books: what belongs to the connected client, and to the transition that
/// is going on.
#[derive(Debug, Default)]
pub struct Engine {
    code_file: Option<Fd>,
    moving: moving::Moving,
    /// A command is connected.
    attended: bool,
}

impl Engine {
    /// Does one request.
    pub fn answer(&mut self, op: u32, args: [u64; 4], payload: &[u8]) -> Reply {
        let [first, second, third, fourth] = args;
        self.attended = true;
        let done = match op {
            op::HELLO => {
                let block = BLOCK.as_ptr().expose_provenance() as u64;
                Ok(Reply::done(BLOCK.generation().load(Ordering::Relaxed), block))
            }
            op::CODE_FILE => self.make_code_file(payload),
            op::PREPARE => {
                let file = self.code_file.take();
                prepare::prepare(payload, file.as_ref())
            }
            op::SYNC => barrier().map(|()| Reply::default()),
            op::ENABLE => patch_id(first).and_then(|id| self.enable(id, second)),
            op::DISABLE => patch_id(first).and_then(|id| self.disable(id, second)),
            op::ADVANCE => self.go_on(first, second),
            op::MOVE => self.move_threads(first, second, payload),
            op::TASKS => self.take_reading(first, payload),
            op::REVERSE => patch_id(first).and_then(|id| self.reverse(id)),
            op::HOST => host_op(first, payload),
            op::FORCE => patch_id(first).and_then(|id| self.force(id)),
            op::ABORT => {
                self.code_file = None;
                patch_id(first).and_then(drop::abort)
            }
            op::RETIRE => drop::retire(payload),
            op::DRAINED => drain::drained(first, payload),
            op::DIRECT => direct::mark(),
            op::STUBS => direct::unmark(payload),
            op::STORE => bytes::store_request(first, second, third, fourth),
            op::BYE => {
                self.client_gone();
                Ok(Reply::done(u64::from(self.is_busy()), 0))
            }
            _ => Err(Reply::refused(error::UNKNOWN_OP)),
        };
        done.unwrap_or_else(|refusal| refusal)
    }

    /// The client is gone, or never was: what it had prepared is taken back. A transition goes on.
    pub fn client_gone(&mut self) {
        self.code_file = None;
        self.attended = false;
        drop::roll_back();
    }

    fn make_code_file(&mut self, payload: &[u8]) -> Result<Reply, Reply> {
        let refused = Reply::refused(error::DESCRIPTOR);
        let name = CStr::from_bytes_until_nul(payload).map_err(|_| refused.because(EINVAL))?;
        // At most one is open.
        self.code_file = None;
        let file = fd::memfd_create(name, MemfdUse::Code).map_err(|errno| refused.because(errno))?;
        let number = u64::from(file.number());
        self.code_file = Some(file);
        Ok(Reply::done(number, 0))
    }
}

/// What a worker does first when the last one did not leave in order: it died, or this process was
/// forked while its parent's was at work. Slots may disagree with the books; the books are right.
pub fn recover() -> Result<(), Reply> {
    slots::rederive()?;
    crate::unwind::ranges::rescue()?;
    host::recover();
    drop::roll_back();
    Ok(())
}

/// Gets ready for a host, or calls it off.
fn host_op(mode: u64, payload: &[u8]) -> Result<Reply, Reply> {
    if mode == 0 {
        host::call_off();
        return Ok(Reply::default());
    }
    let malformed = Reply::refused(error::MALFORMED).with(payload.len() as u64, 0, 0);
    let (words, rest) = payload.as_chunks::<8>();
    let addresses: [[u8; 8]; 5] = words.try_into().map_err(|_| malformed)?;
    if !rest.is_empty() {
        return Err(malformed);
    }
    let refused = |errno| Reply::refused(error::HOST).because(errno);
    host::expect(mode as u32, addresses.map(u64::from_le_bytes)).map_err(refused)?;
    Ok(Reply::default())
}

fn patch_id(arg: u64) -> Result<u32, Reply> {
    u32::try_from(arg).map_err(|_| Reply::refused(error::NO_ENTRY).with(arg, 0, 0))
}

fn barrier() -> Result<(), Reply> {
    thread::sync_core().map_err(|errno| Reply::refused(error::BARRIER).because(errno))
}

/// True while new patches are refused.
fn hooking_off() -> Result<(), Reply> {
    match BLOCK.hooking_off().load(Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err(Reply::refused(error::STATE).because(EBUSY)),
    }
}

/// Makes sure that the steps of a transition will find memory: once begun it can only be retried, not
/// refused. The arena keeps what it was given. `books` = bytes of the books.
fn reserve(books: usize) -> Result<(), Reply> {
    /// Books that exist at a time, with room for the lists they are made from.
    const COPIES: usize = 8;
    /// Whatever is not as long as the books.
    const REST: usize = 32 << 10;
    let none = Reply::refused(error::NO_MEMORY);
    let mut room: Vec<u8> = Vec::new();
    let len = books.saturating_mul(COPIES).saturating_add(REST);
    room.try_reserve_exact(len).map_err(|_| none)?;
    let records = DIRECTORY.prepare_stand_in().and_then(|()| DIRECTORY.ensure(thread::getpid()).map(drop));
    records.map_err(|errno| none.because(errno))
}

/// The books of this operation.
#[allow(unsafe_code)]
fn books<'b>() -> &'b Books {
    static NONE: Books = Books::EMPTY;
    // SAFETY: this module runs on the worker only; no operation uses the reference after it showed the
    // next books.
    unsafe { crate::publish::current() }.unwrap_or(&NONE)
}

/// Shows the next books.
#[allow(unsafe_code)]
fn show(ready: crate::publish::Ready) {
    // SAFETY: this module runs on the worker only; the callers do not use the old books afterwards.
    unsafe { ready.show() }
}
