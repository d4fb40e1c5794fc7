//! The machine's hold on the process.
//!
//! # Safety
//!
//! Memory that goes with a patch is freed only when the books and every thread have left it.
#![allow(unsafe_code)]

use super::bytes::{self, Live};
use super::moving::Pace;
use super::{Engine, barrier, books, slots};
use crate::birth;
use crate::block::BLOCK;
use crate::books::{Books, BooksError, Job, JobKind, Kept};
use crate::events::{self, About};
use crate::host::{self, Progress, Work};
use crate::list;
use crate::record::DIRECTORY;
use crate::shadow;
use crate::sys::{EBUSY, ECANCELED, EFAULT, thread};
use crate::transition::machine::{NoStart, Ran, World};
use crate::transition::own;
use crate::transition::settle::Settling;
use alloc_crate::vec::Vec;
use core::sync::atomic::Ordering;
use suture_abi::batch::HOOK_NONE;
use suture_abi::block::{
    PATCH_FORCED, PATCH_OWN_STACKS, PATCHING, PHASE_RUNNING, TRANSITION_FORCED, TransitionRow,
};
use suture_abi::event::word;
use suture_table::remove::Afterwards;

impl World for Engine {
    type Ready = slots::Ready;

    fn books(&self) -> &Books {
        books()
    }

    fn now(&self) -> u64 {
        thread::realtime()
    }

    fn ready(&mut self, next: Books) -> Result<slots::Ready, BooksError> {
        let target = |books: &Books| books.transition.first().map(|t| (t.phase == PHASE_RUNNING, t.target));
        match (target(books()), target(&next)) {
            (Some((true, before)), Some((true, after))) if before != after => slots::ready_to_turn(next),
            _ => Ok(slots::ready(next)?),
        }
    }

    fn ready_to_start(&mut self, next: Books) -> Result<slots::Ready, NoStart> {
        let Some(t) = next.transition.first().copied() else { return Err(NoStart::NoMemory) };
        for func in next.funcs.iter().filter(|f| t.begun == PATCHING && f.patch == t.patch) {
            let armed = next.site(func.site).map(|site| bytes::demand(site, Live::Armed));
            if func.plan.hook == HOOK_NONE && !matches!(armed, Some(Ok(()))) {
                return Err(NoStart::Refused(EBUSY.0));
            }
        }
        DIRECTORY.prepare_stand_in().map_err(|_| NoStart::NoMemory)?;
        slots::ready_to_start(next).map_err(|_| NoStart::NoMemory)
    }

    fn commit(&mut self, ready: slots::Ready) {
        let before = books().transition.first().copied();
        let after = ready.books().transition.first().copied();
        let moves = |t: &Option<TransitionRow>| t.as_ref().is_some_and(|t| t.phase == PHASE_RUNNING);
        if let Some(t) = after.filter(|_| moves(&after)) {
            let turned = before.is_none_or(|b| b.target != t.target);
            if turned || !moves(&before) {
                // Births are told before the first dispatcher can be reached.
                self.moving.settling = Some(Settling::new(&t));
                self.moving.settled = false;
                let length =
                    u64::from(BLOCK.tick_ms().load(Ordering::Relaxed).max(1)).saturating_mul(1_000_000);
                let tick = thread::monotonic().saturating_add(length);
                self.moving.pace = Pace::from(tick);
                BLOCK.attempts().store(0, Ordering::Relaxed);
                BLOCK.forget_moved();
            }
        }
        let own_stacks = after.is_some_and(|t| has_own_stacks(ready.books(), &t));
        if ready.commit(!own_stacks) {
            // It has worked at the beginning of the operation, and a kernel does not unlearn it.
            let _ = barrier();
        }
        if moves(&after) {
            // The threads it has frames of are to be looked at.
            host::dismiss(false);
        }
        if moves(&before) && !moves(&after) {
            birth::end();
            own::show(0);
            self.moving.settling = None;
        }
    }

    fn finish(&mut self, ready: slots::Ready) {
        let old = books();
        let mut gone: Vec<(u64, u64)> = Vec::new();
        for row in old.patches.iter().filter(|p| ready.books().patch(p.id).is_none()) {
            // Without room in the list a description is not freed, which harms nobody.
            let _ = list::push(&mut gone, (row.description, row.description_len));
        }
        let spent: Vec<Kept> = list::copy(&old.kept, 0).unwrap_or_default();
        self.commit(ready);
        for (addr, len) in gone {
            // SAFETY: kept when the patch was prepared; its row is gone.
            unsafe { list::free_bytes(addr, len) };
        }
        host::dismiss(true);
        // SAFETY: the books forget it only when every thread was seen outside of the dispatchers
        // since.
        unsafe { slots::free_spent(&spent, &books().kept) };
    }

    fn settle(&mut self) -> bool {
        let Some(t) = books().transition.first().copied() else { return false };
        // What cannot be seen from in here is left to the command.
        self.pass(&t).unwrap_or(false)
    }

    fn run(&mut self, job: Job) -> Ran {
        let Some(work) = work(books(), job) else { return Ran::Done(ECANCELED.0) };
        if job.kind == JobKind::FreeShadow {
            let (_, patch, id) = work.about;
            if !host::was_given(&work) && !shadow::job::has_variables(id) {
                // Nobody is needed for it.
                return Ran::Done(0);
            }
            let name = books().patch(patch).map_or([0; 56], |p| p.name);
            shadow::job::prepare(patch, &name, afterwards(id));
        }
        match host::run(work) {
            Progress::Returned(result) if job.kind == JobKind::PrePatch => Ran::Done(errno_of(result)),
            Progress::Returned(_) => Ran::Done(0),
            Progress::Crashed(signal) => {
                let (_, patch, state) = work.about;
                self.log(word::CALLBACK_CRASHED, patch, state, u64::from(signal));
                if job.kind == JobKind::FreeShadow {
                    shadow::job::give_up(state, BLOCK.host().tid.load(Ordering::Relaxed));
                }
                Ran::Done(EFAULT.0)
            }
            Progress::Running => Ran::Running,
            Progress::NoHost => Ran::NoHost,
        }
    }

    fn free_shadow(&mut self, id: u64) {
        shadow::job::free_plainly(id, afterwards(id));
    }

    fn log(&mut self, word: u32, patch: u32, subject: u64, value: u64) {
        let name = books().patch(patch).map_or([0; 56], |p| p.name);
        events::write(word, About { patch, name: &name, subject, value });
    }

    fn ended(&mut self, transition: u32, how: u32) {
        BLOCK.set_ended(transition, how);
    }
}

/// True if the patch of a transition came to a program that may have stacks nobody knows: looks from in here
/// prove nothing.
pub fn has_own_stacks(books: &Books, t: &TransitionRow) -> bool {
    books.patch(t.patch).is_some_and(|p| p.flags & PATCH_OWN_STACKS != 0)
}

/// What becomes of the memory of a state's variables: a thread that was forced over may still use them.
fn afterwards(id: u64) -> Afterwards {
    let books = books();
    let transition = books.transition.iter().any(|t| t.flags & TRANSITION_FORCED != 0);
    let holds = |patch: u32| books.states.iter().any(|s| s.patch == patch && s.plan.id == id);
    let patch = books.patches.iter().any(|p| p.flags & PATCH_FORCED != 0 && holds(p.id));
    if transition || patch { Afterwards::Leak } else { Afterwards::Reclaim }
}

/// A job as the host gets it.
fn work(books: &Books, job: Job) -> Option<Work> {
    let t = books.transition.first()?;
    let state = books.states.get(job.state)?;
    // Distinct for every job of the process's life: transitions are numbered, and a phase is never entered
    // again.
    let place = u64::from(t.phase).wrapping_shl(24) | u64::from(t.callbacks_done);
    let code = job.code(books);
    let (code, args) = match job.kind {
        JobKind::FreeShadow => (shadow::job::code(), [state.plan.id, code]),
        _ => (code, [state.plan.patch, state.plan.state]),
    };
    Some(Work {
        serial: u64::from(t.id).wrapping_shl(32) | place,
        code,
        args,
        about: (job.kind.word(), state.patch, state.plan.id),
    })
}

/// What `pre_patch` returned, as a positive errno: 0 or −errno, other numbers are taken for one.
fn errno_of(result: u64) -> u32 {
    (result as i32).unsigned_abs()
}
