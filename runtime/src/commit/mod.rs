//! The commit engine: what each request does to the process.
//!
//! Runs on the worker only. Each operation first makes everything that can fail (new books, tables,
//! mappings), then commits with stores that cannot.

mod bytes;
mod drop;
mod enable;
mod prepare;

use crate::block::BLOCK;
use crate::books::Books;
use crate::reply::Reply;
use crate::sys::fd::{self, Fd, MemfdUse};
use crate::sys::{EBUSY, EINVAL, thread};
use core::ffi::CStr;
use core::sync::atomic::Ordering;
use suture_abi::channel::{error, op};

/// The engine's state besides the books: what belongs to the connected client.
#[derive(Debug, Default)]
pub struct Engine {
    code_file: Option<Fd>,
}

impl Engine {
    /// Does one request.
    pub fn answer(&mut self, op: u32, args: [u64; 4], payload: &[u8]) -> Reply {
        let [first, second, third, fourth] = args;
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
            op::ENABLE => patch_id(first).and_then(enable::enable),
            op::DISABLE => patch_id(first).and_then(enable::disable),
            op::ABORT => {
                self.code_file = None;
                patch_id(first).and_then(drop::abort)
            }
            op::RETIRE => drop::retire(payload),
            op::STORE => bytes::store_request(first, second, third, fourth),
            op::BYE => Ok(Reply::default()),
            _ => Err(Reply::refused(error::UNKNOWN_OP)),
        };
        done.unwrap_or_else(|refusal| refusal)
    }

    /// The client is gone, or never was: what it had begun is taken back.
    pub fn finish(&mut self) {
        self.code_file = None;
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
    enable::rederive_slots()?;
    drop::roll_back();
    Ok(())
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
