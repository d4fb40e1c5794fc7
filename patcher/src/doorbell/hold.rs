//! One stop of one thread, from the request to the moment it is let go.

use super::choose::Rank;
use super::filters::{Filters, Look};
use super::timeout::{Asleep, Rest};
use super::{Errand, ONE_THREAD, Place, frame};
use crate::sys::proc::{self, ThreadFacts};
use crate::sys::ptrace::{Registers, StopError, StoppedThread};
use crate::sys::time::Deadline;
use crate::sys::urgent::Urgent;
use crate::target::Target;
use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};
use suture_elf::{Addr, Memory};

/// What every thread gets to stop, however late it was asked.
const AT_LEAST: Duration = Duration::from_millis(50);

/// A thread and what it is to do.
pub struct Held<'t> {
    pub target: &'t Target,
    /// Nothing: only its filters are to be looked at.
    pub errand: Option<Errand>,
    pub place: &'t dyn Place,
    pub rank: Rank,
    pub thread: ThreadFacts,
}

/// How it went.
pub enum Done {
    /// The thread is on its way.
    Sent { held: Duration, away: Option<Duration>, frame: u64 },
    /// It was let go untouched, or has not stopped yet.
    Unfit(&'static str),
}

impl Held<'_> {
    /// Stops the thread and sends it on the errand.
    pub fn send(
        &self,
        filters: &mut Filters,
        asked: &mut HashMap<i32, StoppedThread>,
        deadline: Deadline,
    ) -> Result<Done, StopError> {
        if let Some(why) = filters.look_before(self.thread.tid) {
            return Ok(Done::Unfit(why));
        }
        let asleep = (self.rank >= Rank::Unknown).then(|| Asleep::look(self.target, &self.thread)).flatten();
        let mut read = None;
        let done = self.stop_and_send(asleep, filters, asked, deadline, &mut read);
        if let Some(read) = read {
            filters.judge(self.thread.tid, &read);
            if filters.refusal(self.thread.tid).is_none() {
                // The same thread once more, before it can get further filters.
                return self.stop_and_send(None, filters, asked, deadline, &mut None);
            }
        }
        done
    }

    fn stop_and_send(
        &self,
        asleep: Option<Asleep>,
        filters: &mut Filters,
        asked: &mut HashMap<i32, StoppedThread>,
        deadline: Deadline,
        read: &mut Option<Vec<crate::seccomp::Filter>>,
    ) -> Result<Done, StopError> {
        let os = StopError::Os;
        let tid = self.thread.tid;
        let urgent = Urgent::begin();
        let started = Instant::now();
        let mut held = match asked.remove(&tid) {
            Some(held) => held,
            None => StoppedThread::ask(tid)?,
        };
        // Asked at the last moment, too: what it does is wanted for the message.
        let patience = ONE_THREAD.min(deadline.left().max(AT_LEAST));
        if !held.await_stop(Deadline::after(patience))? {
            asked.insert(tid, held);
            return Ok(Done::Unfit("does not stop"));
        }
        let regs = hide(&held).map_err(os)?;
        let look = filters.look(&held).map_err(os)?;
        let free = matches!(look, Look::Free);
        match look {
            Look::Free | Look::Allowed => {}
            Look::Refused => return Ok(Done::Unfit("filtered")),
            Look::Judge(found) => {
                *read = Some(found);
                return Ok(Done::Unfit("filtered"));
            }
        }
        let Some(errand) = self.errand else {
            return Ok(Done::Sent { held: started.elapsed(), away: None, frame: 0 });
        };
        if let Some(why) = self.unfit(&held, &regs).map_err(os)? {
            return Ok(Done::Unfit(why));
        }
        let Some((at, mut frame)) = frame::plan(&regs, held.signal_mask().map_err(os)?) else {
            return Ok(Done::Unfit("at a place of its own"));
        };
        if let Some(rest) = asleep.and_then(|asleep| asleep.rest(self.target, tid, &regs))
            // Filters were asked about the errand's calls, not about this one.
            && (free || !matches!(rest, Rest::Wait { .. }))
        {
            self.shorten(errand, &mut frame, rest);
        }
        if let Some(limit) = errand.lift {
            (frame.lifted, [frame.limit_soft, frame.limit_hard]) = (1, limit.words());
        }
        // A stack that ends here cannot take the frame; another thread's will. Neither can that of another
        // program: a held thread is not in the middle of an exec, so either the memory that everything
        // was planned for is the one it runs in, or the write fails.
        if self.target.memory.write(at, &frame::bytes(&frame)).is_err() {
            return Ok(Done::Unfit("has no room on its stack"));
        }
        held.set_registers(&frame::sent(&regs, errand.entry, at)).map_err(os)?;
        held.set_signal_mask(u64::MAX).map_err(os)?;
        if let Some(limit) = errand.lift {
            // Where that is refused the clone fails and says so.
            let _ = limit.lift(self.target.pid());
        }
        held.release().map_err(os)?;
        let (held, released) = (started.elapsed(), Instant::now());
        drop(urgent);
        let away = frame::is_made_again(&regs).then(|| self.see_back(released, regs.rsp)).flatten();
        let away = away.map(|more| held + more);
        Ok(Done::Sent { held, away, frame: at.0 })
    }

    /// When the thread is seen asleep in its call again, for those who want to know: since it was let go.
    /// `None` when it is not seen soon, or so late after the look before that the time says nothing.
    fn see_back(&self, released: Instant, sp: u64) -> Option<Duration> {
        /// Longest look.
        const SOON: Duration = Duration::from_micros(150);
        /// From one look to the next, when nobody takes the processor away in between.
        const SHARP: Duration = Duration::from_micros(50);
        let mut before = released;
        while released.elapsed() < SOON {
            let back = proc::blocked(self.target.pid(), self.thread.tid).is_some_and(|call| call.sp == sp);
            if back {
                return (before.elapsed() < SHARP).then(|| released.elapsed());
            }
            before = Instant::now();
        }
        None
    }

    /// Why the thread cannot be sent from where it is.
    fn unfit(&self, held: &StoppedThread, regs: &Registers) -> io::Result<Option<&'static str>> {
        if held.has_shadow_stack() {
            return Ok(Some("has a shadow stack"));
        }
        if self.in_sequence(held, regs)? {
            return Ok(Some("in a restartable sequence"));
        }
        let mut instruction = [0; 2];
        let before = Addr(regs.rip.wrapping_sub(2));
        let is_syscall =
            || self.target.memory.read(before, &mut instruction).is_ok() && instruction == [0x0f, 0x05];
        // int 0x80 is two bytes long as well, but its numbers are others.
        if frame::is_made_again(regs) && !{ is_syscall }() {
            return Ok(Some("in a call of another kind"));
        }
        Ok(self.place.refusal(regs))
    }

    /// Whether the thread is inside a restartable sequence: the kernel would see the entry's address
    /// instead of one inside, and not abort what it has to abort.
    fn in_sequence(&self, held: &StoppedThread, regs: &Registers) -> io::Result<bool> {
        /// Offset of `rseq_cs` in `struct rseq`.
        const RSEQ_CS: u64 = 8;
        let Some(area) = held.rseq_area()? else { return Ok(false) };
        let memory = &self.target.memory;
        let sequence = memory.read_u64(Addr(area + RSEQ_CS)).unwrap_or(0);
        if sequence == 0 {
            return Ok(false);
        }
        // struct rseq_cs: version and flags, start, length, abort handler.
        let word = |at: u64| memory.read_u64(Addr(sequence.wrapping_add(at))).unwrap_or(0);
        Ok(regs.rip.wrapping_sub(word(8)) < word(16))
    }

    fn shorten(&self, errand: Errand, frame: &mut suture_abi::doorbell::Frame, rest: Rest) {
        // Any slot but the one of the last time, most likely.
        let n = u64::from(std::process::id());
        let slot = frame::timeout_slot(errand.entry, n);
        if let Rest::Timespec(_, [sec, nsec]) = rest {
            let bytes = [sec.to_le_bytes(), nsec.to_le_bytes()].concat();
            if self.target.memory.write_forced(slot, &bytes).is_err() {
                return;
            }
        }
        frame::shorten(frame, rest, slot);
    }
}

/// Makes sure that a stop is not seen; gives the registers as they are then.
pub fn hide(held: &StoppedThread) -> io::Result<Registers> {
    let regs = held.registers()?;
    let Some(hidden) = frame::hidden(&regs) else { return Ok(regs) };
    held.set_registers(&hidden)?;
    Ok(hidden)
}
