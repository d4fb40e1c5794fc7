//! Bringing every thread to the goal of a transition, and knowing when all are there.
//!
//! Runs on the worker.
//!
//! # When all are there
//!
//! One reading of the task directory is not a snapshot: threads that come and go can make it miss one that
//! stays. And threads made by a raw `clone` come into being without anybody knowing. So:
//!
//! 1. every thread that any reading of this transition has shown is *known* until it is proven gone, and
//!    all known threads are at the goal;
//! 2. *closing*: births go to the goal from now on, and so do threads whose first record is made now
//!    ([`crate::birth`]), the passes of every record are moved (a birth that had not seen the closing fails its
//!    swap, or made it before and is seen), and records that no known thread owns are noted, shared ones too;
//! 3. the next reading: whoever exists under the number of a noted record and is off the goal is known from now on,
//!    though no reading has shown it, and all of it begins again: the kernel leaves a thread out for each that ends
//!    while it lists them. Else the record's owner is dead or not born, and if it has not changed since 2 it is put
//!    to the goal, so that whoever takes the number starts there;
//! 4. the passes of every thread that became known later were moved after 2, too, and no chunk of records has come;
//! 5. two readings in a row, begun after all that, show nobody off the goal. Who is new in them was born
//!    since 2, and his passes are moved, too, before his side is read.
//!
//! Then nobody can be off the goal any more: the known are there and do not move themselves while it closes,
//! the newborn start there.

use super::look::{Lookout, Verdict};
use super::own;
use crate::birth;
use crate::block::BLOCK;
use crate::held::{self, Why};
use crate::host;
use crate::list::{self, NoMemory};
use crate::record::{DIRECTORY, fence, move_to, set_side};
use crate::sys::{ENOMEM, Errno, thread};
use alloc_crate::vec::Vec;
use core::sync::atomic::Ordering;
use suture_abi::block::TransitionRow;
use suture_abi::channel::Move;
use suture_abi::dispatch::{RECORDS_PER_CHUNK, Record, passes, side};
use suture_scan::Ranges;

impl From<NoMemory> for Errno {
    fn from(_: NoMemory) -> Self {
        ENOMEM
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    tid: u32,
    /// Its passes were moved after closing began.
    fenced: bool,
    /// Shown by the reading that is going on.
    shown: bool,
    /// Shown by an earlier one, too.
    before: bool,
}

/// Records off the goal that no known thread owns: place and word.
#[derive(Debug, Default)]
struct Noted {
    /// By thread id.
    own: Vec<(u32, u64)>,
    /// By position among the shared ones.
    shared: Vec<(u32, u64)>,
}

/// How far the closing is.
#[derive(Debug)]
enum Closing {
    /// Threads are off the goal.
    Open,
    /// Births go to the goal; records of unknown threads that are off it, as they were.
    Begun(Noted),
    /// So many readings in a row showed nobody off the goal.
    Agreed(u32),
}

/// The threads of a transition in one direction.
#[derive(Debug)]
pub struct Settling {
    /// Number of this process.
    pid: u32,
    transition: u32,
    to_switched: bool,
    known: Vec<Known>,
    closing: Closing,
    /// Chunks of records that were there when they were noted: more of them hold records that were not.
    chunks: usize,
}

impl Settling {
    /// Begins. To be made anew when the transition is turned round.
    pub fn new(t: &TransitionRow) -> Self {
        let (transition, to_switched) = (t.id, t.to_switched());
        birth::open(transition);
        held::forget_all();
        let pid = thread::getpid();
        Settling { pid, transition, to_switched, known: Vec::new(), closing: Closing::Open, chunks: 0 }
    }

    /// True if it is about this transition in this direction.
    pub fn is_of(&self, t: &TransitionRow) -> bool {
        (self.transition, self.to_switched) == (t.id, t.to_switched())
    }

    /// The side of a thread that is at the goal.
    fn goal(&self) -> u32 {
        if self.to_switched { self.transition } else { 0 }
    }

    fn is_there(&self, word: u64) -> bool {
        (side(word) == self.transition) == self.to_switched
    }

    /// Known threads that are off the goal.
    pub fn pending(&self) -> impl Iterator<Item = u32> + '_ {
        let off = |tid: u32| match DIRECTORY.find(tid) {
            Some(record) => !self.is_there(record.load(Ordering::Acquire)),
            None => true,
        };
        self.known.iter().map(|k| k.tid).filter(move |tid| off(*tid))
    }

    /// Makes room for the next reading.
    fn begin_reading(&mut self) {
        for known in &mut self.known {
            (known.before, known.shown) = (known.before | known.shown, false);
        }
    }

    /// Notes a thread of a reading.
    fn show(&mut self, tid: u32) -> Result<(), Errno> {
        DIRECTORY.ensure(tid)?;
        if matches!(self.closing, Closing::Open) {
            // The numbers of threads to come, and of those that came just now and no reading has shown: only a
            // thread with a record is looked for.
            _ = DIRECTORY.ensure(tid.saturating_add(RECORDS_PER_CHUNK));
        }
        match self.known.binary_search_by_key(&tid, |k| k.tid) {
            Ok(at) => {
                if let Some(known) = self.known.get_mut(at) {
                    known.shown = true;
                }
            }
            Err(at) => {
                list::insert(&mut self.known, at, Known { tid, fenced: false, shown: true, before: false })?
            }
        }
        Ok(())
    }

    /// Forgets threads that are gone.
    fn drop_dead(&mut self) {
        let pid = self.pid;
        self.known.retain(|k| {
            let lives = k.shown || thread::exists(pid, k.tid);
            if let Some(record) = DIRECTORY.find_record(k.tid).filter(|_| !lives) {
                held::forget(record);
                // Whoever gets the number is asked about anew.
                record.may_look.store(0, Ordering::Relaxed);
            }
            lives
        });
    }

    /// Takes one whole reading in and goes on closing; true when all are there for good.
    pub fn reading(&mut self, tids: impl Iterator<Item = u32>) -> Result<bool, Errno> {
        self.begin_reading();
        for tid in tids {
            self.show(tid)?;
        }
        self.drop_dead();
        self.move_host();
        if !matches!(self.closing, Closing::Open) {
            self.fence_all();
        }
        if self.pending().next().is_some() {
            self.hurry();
            if !matches!(self.closing, Closing::Open) {
                self.reopen();
            }
            return Ok(false);
        }
        match core::mem::replace(&mut self.closing, Closing::Open) {
            Closing::Open => self.begin_closing()?,
            _ if DIRECTORY.chunks().count() != self.chunks => self.reopen(),
            Closing::Begun(noted) => match self.settle_unknown(&noted)? {
                true => self.closing = Closing::Agreed(0),
                false => self.reopen(),
            },
            Closing::Agreed(count) => {
                let count = count.saturating_add(1);
                self.closing = Closing::Agreed(count);
                return Ok(count >= 2);
            }
        }
        Ok(false)
    }

    /// All known threads are at the goal: births go there from now on.
    fn begin_closing(&mut self) -> Result<(), NoMemory> {
        birth::close(self.transition, self.to_switched);
        self.fence_everybody();
        let transition = self.transition;
        let noted = self.note().inspect_err(|_| birth::open(transition))?;
        self.closing = Closing::Begun(noted);
        Ok(())
    }

    /// A thread made for callbacks that waits for work is inside the runtime, in no function of a patch, and
    /// goes nowhere without the worker.
    fn move_host(&self) {
        if let Some(record) = host::idle_tid().and_then(|tid| DIRECTORY.find(tid)) {
            move_to(record, record.load(Ordering::Acquire), self.goal());
        }
    }

    /// Has threads that are off the goal look at themselves at their next pass. Not those that have just come up: a
    /// newborn enters its first function on the side it was born on.
    fn hurry(&self) {
        let known = |tid: u32| {
            self.known.binary_search_by_key(&tid, |k| k.tid).ok().and_then(|at| self.known.get(at))
        };
        let before = |tid: &u32| known(*tid).is_some_and(|k| k.before);
        for tid in self.pending().filter(before) {
            if let Some(record) = DIRECTORY.find_record(tid) {
                let now = passes(record.word.load(Ordering::Relaxed));
                record.look_at.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Moves the passes of every known thread for which that was not done yet.
    fn fence_all(&mut self) {
        for known in self.known.iter_mut().filter(|k| !k.fenced) {
            if let Some(record) = DIRECTORY.find(known.tid) {
                fence(record);
                known.fenced = true;
            }
        }
    }

    fn reopen(&mut self) {
        self.closing = Closing::Open;
        self.known.iter_mut().for_each(|k| k.fenced = false);
        birth::open(self.transition);
    }

    /// Moves the passes of every record, whoever owns it: a birth may be under way that no reading has shown. A
    /// word of 0 is off the goal while threads are being switched, and noted as it is.
    fn fence_everybody(&self) {
        for (_, records) in DIRECTORY.chunks() {
            let used = |record: &&Record| !self.to_switched || record.word.load(Ordering::SeqCst) != 0;
            records.iter().filter(used).for_each(|record| fence(&record.word));
        }
    }

    /// Records off the goal of threads that nobody knows.
    fn note(&mut self) -> Result<Noted, NoMemory> {
        let mut noted = Noted::default();
        self.chunks = 0;
        for (first, records) in DIRECTORY.chunks() {
            self.chunks = self.chunks.saturating_add(1);
            for (tid, record) in (first..).zip(records) {
                let word = record.word.load(Ordering::Acquire);
                if !self.is_there(word) && !self.knows(tid) {
                    list::push(&mut noted.own, (tid, word))?;
                }
            }
        }
        for (at, record) in (0..).zip(DIRECTORY.shared()) {
            let word = record.load(Ordering::Acquire);
            if !self.is_there(word) {
                list::push(&mut noted.shared, (at, word))?;
            }
        }
        Ok(noted)
    }

    /// Puts noted records to the goal whose owner does not exist: it is dead or unborn. Owners that exist are
    /// known from now on. False if there is one, or if a record has changed to the wrong side.
    fn settle_unknown(&mut self, noted: &Noted) -> Result<bool, Errno> {
        let worker = thread::gettid();
        let mut all = true;
        for &(tid, word) in &noted.own {
            if self.knows(tid) {
                continue;
            }
            let Some(record) = DIRECTORY.find(tid) else { continue };
            if tid != worker && thread::exists(self.pid, tid) {
                // A newborn under a dead one's number puts itself to the goal.
                if !self.is_there(record.load(Ordering::SeqCst)) {
                    self.show(tid)?;
                    all = false;
                }
            } else if !move_to(record, word, self.goal()) {
                all &= self.is_there(record.load(Ordering::SeqCst));
            }
        }
        let mut left = noted.shared.iter().copied().peekable();
        for (at, record) in (0u32..).zip(DIRECTORY.shared()) {
            if let Some((_, word)) = left.next_if(|(noted, _)| *noted == at)
                && !move_to(record, word, self.goal())
            {
                all &= self.is_there(record.load(Ordering::SeqCst));
            }
        }
        Ok(all)
    }

    fn knows(&self, tid: u32) -> bool {
        self.known.binary_search_by_key(&tid, |k| k.tid).is_ok()
    }

    /// Reads the task directory, looks at every thread that is off the goal and moves those that are clear.
    /// True when all are there for good.
    pub fn pass(&mut self, lookout: &Lookout, ranges: &Ranges<'_>) -> Result<bool, Errno> {
        // All there after the first reading: three more close it. The others are for those that move themselves.
        for _ in 0..6 {
            let mut tids = Vec::new();
            lookout.read(|tid| Ok(list::push(&mut tids, tid)?))?;
            if self.reading(tids.into_iter())? {
                return Ok(true);
            }
            let mut pending = Vec::new();
            for tid in self.pending() {
                list::push(&mut pending, tid)?;
            }
            let mut left = false;
            for tid in pending {
                left |= !self.try_move(lookout, ranges, tid)?;
            }
            if left {
                return Ok(false);
            }
            // No reading is needed to begin with the end: it might have shown nobody else.
            if matches!(self.closing, Closing::Open) && self.pending().next().is_none() {
                self.begin_closing()?;
            }
        }
        Ok(false)
    }

    /// Looks at one thread; true if it is at the goal or does not matter.
    fn try_move(&mut self, lookout: &Lookout, ranges: &Ranges<'_>, tid: u32) -> Result<bool, Errno> {
        let why = match lookout.look(tid, ranges)? {
            Verdict::Clear(seen) => {
                let moved = self.move_one(Move { tid, reserved: 0, seen });
                BLOCK.moved().by_worker.fetch_add(u64::from(moved), Ordering::Relaxed);
                return Ok(moved);
            }
            // The next reading does not show it.
            Verdict::Gone => return Ok(true),
            Verdict::Running => Why::Running,
            Verdict::Unclear(0) => Why::Unclear,
            Verdict::Unclear(at) => Why::On(at),
        };
        if let Some(record) = DIRECTORY.find_record(tid) {
            held::note(record, why, || lookout.name(tid));
        }
        // One that runs may be there by the next reading.
        Ok(self.let_look(lookout, tid) && why == Why::Running)
    }

    /// Notes that the threads which are off the goal are left to the command.
    pub fn leave_to_command(&self) {
        self.pending().filter_map(|tid| DIRECTORY.find_record(tid)).for_each(held::note_unseen);
    }

    /// Lets a thread look at itself unless it is under filters; true if that is new.
    fn let_look(&self, lookout: &Lookout, tid: u32) -> bool {
        let Some(record) = DIRECTORY.find_record(tid) else { return false };
        let new = !own::may_look(record, self.transition) && lookout.is_unfiltered(tid);
        if new {
            record.may_look.store(self.transition, Ordering::Relaxed);
        }
        new
    }

    /// Moves a thread that was found clear, if it passed no dispatcher since.
    pub fn move_one(&self, found: Move) -> bool {
        DIRECTORY.find(found.tid).is_some_and(|record| move_to(record, found.seen, self.goal()))
    }

    /// Puts every known thread at the goal without a look; gives how many were not there.
    pub fn force(&mut self) -> usize {
        let mut moved = 0usize;
        for known in &self.known {
            if let Some(record) = DIRECTORY.find(known.tid)
                && !self.is_there(record.load(Ordering::Acquire))
            {
                set_side(record, self.goal());
                moved = moved.saturating_add(1);
            }
        }
        moved
    }
}
