//! Bringing a thread of the program to the runtime as host for callbacks.
//!
//! Callbacks are program code: they may call the C library, so they need a thread that it knows, at a moment when that
//! thread holds none of its locks ([`point`]). In a program with several threads the thread that is
//! borrowed makes one for the host and is back in its call after that; in a program with one thread, and under a
//! seccomp filter that may not allow what a new thread does, it is the host itself until the callbacks of
//! this phase are done. `suture_abi::host` is the protocol; [`guard`] is with the host while a callback
//! runs.

pub mod callback;
pub mod guard;
pub mod point;

pub use callback::{Callback, at_work};

use crate::doorbell::{self, Errand};
use crate::error::Error;
use crate::session::Session;
use crate::sys::proc;
use crate::sys::time::Deadline;
use crate::target::{Target, books};
use crate::view::{self, Cache};
use point::Point;
use std::mem::offset_of;
use std::time::Duration;
use suture_abi::block::RuntimeBlock;
use suture_abi::channel::op;
use suture_abi::host::{ARRIVED, BORROWED, COMING, Host, OWN};
use suture_elf::{Addr, Memory};
use suture_link::ProcessView;

/// How long a thread at a suitable place is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a thread may need from where it was stopped to being the host.
const ARRIVAL: Duration = Duration::from_secs(5);

/// Offset of a field of the host in the block.
const fn field(offset: usize) -> usize {
    offset_of!(RuntimeBlock, host) + offset
}

/// Brings a host into the process. The caller is alone with it.
///
/// # Errors
/// [`Error::NoHost`] when no thread was at a suitable place in time, or none could be made; others when the process is
/// gone.
pub fn provide(session: &mut Session<'_>, cache: &Cache) -> Result<(), Error> {
    let (target, block) = (session.target, session.block);
    let worker = books::word(target, block, offset_of!(RuntimeBlock, worker))?;
    let view = view::process(target, view::maps(target)?, cache)?;
    let mode = mode(target, worker);
    let payload: Vec<u8> = functions(target, &view, mode)?.iter().flat_map(|at| at.to_le_bytes()).collect();
    session.expect("preparing a host", op::HOST, [u64::from(mode), 0, 0, 0], &payload)?;
    let entry = target.memory.read_u64(block + offset_of!(RuntimeBlock, host_entry) as u64);
    let entry = entry.map_err(|e| Error::from_memory(target, e))?;
    let point = Point::new(target, &view, worker);
    let errand = Errand { entry, lift: None };
    match doorbell::borrow_at(target, errand, &point, Deadline::after(PATIENCE)) {
        Ok(_) => await_arrival(target, block),
        Err(error) => {
            session.expect("calling the host off", op::HOST, [0; 4], &[])?;
            Err(match error {
                Error::Unreachable { pid, why, .. } => Error::NoHost { pid, why },
                other => other,
            })
        }
    }
}

/// What kind of host a process gets.
fn mode(target: &Target, worker: u32) -> u32 {
    let pid = target.pid();
    let of_program = |tid: &i32| {
        i64::from(*tid) != i64::from(worker)
            && proc::thread_facts(pid, *tid).is_some_and(|t| !t.kernel_made && !matches!(t.state, 'Z' | 'X'))
    };
    let threads = proc::threads(pid).unwrap_or_default().iter().filter(|tid| of_program(tid)).count();
    if threads > 1 && target.facts.seccomp == 0 { OWN } else { BORROWED }
}

/// The functions of `suture_abi::host::Functions`, as the program itself would find them.
fn functions(target: &Target, view: &ProcessView<'_>, mode: u32) -> Result<[u64; 5], Error> {
    const NAMES: [&str; 5] = [
        "__errno_location",
        "pthread_attr_init",
        "pthread_attr_setstack",
        "pthread_attr_setdetachstate",
        "pthread_create",
    ];
    let main = view.objects.iter().position(|o| o.main).unwrap_or(0);
    let scope = view.scope_of(main);
    let find = |name: &str| {
        let objects = scope.iter().map(|at| &view.objects[*at]).filter(|o| !o.runtime);
        objects.into_iter().find_map(|o| Some((o.base + o.defined(name)?).0))
    };
    let mut found = [0; 5];
    for (at, name) in NAMES.into_iter().enumerate().take(if mode == OWN { 5 } else { 1 }) {
        found[at] = find(name).ok_or_else(|| Error::NoHost {
            pid: target.pid(),
            why: format!("no object of the process defines {name}"),
        })?;
    }
    Ok(found)
}

/// Waits until the host waits for work.
fn await_arrival(target: &Target, block: Addr) -> Result<(), Error> {
    let pid = target.pid();
    let mut watch = crate::target::watch::Watch::new(target, Deadline::after(ARRIVAL));
    loop {
        let state = books::word(target, block, field(offset_of!(Host, state)))?;
        if !matches!(state, COMING | ARRIVED) {
            break;
        }
        if !watch.pause()? {
            return Err(Error::NoHost { pid, why: "the borrowed thread did not arrive".into() });
        }
    }
    match books::word(target, block, field(offset_of!(Host, errno)))? {
        0 => Ok(()),
        errno => Err(Error::NoHost {
            pid,
            why: format!(
                "no thread can be made in it: {}",
                std::io::Error::from_raw_os_error(errno.cast_signed())
            ),
        }),
    }
}
