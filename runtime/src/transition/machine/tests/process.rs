//! A process made of values: what the machine drives.
//!
//! Threads have a record's side and a stack of return addresses; slots and choices are what the books say; a
//! look compares stacks with [`searched`]. Callbacks are run by a host that may be away or slow, and memory
//! can be short.

use super::{CALLBACKS, Code, EBUSY, EINVAL, ENOENT, FUNCS, Host, Patch, State};
use crate::batch::View;
use crate::batch::tests::Maker;
use crate::books::{Batch, Books, BooksError, Dropped, Fate, Job, JobKind, Stacks, choice, slot_value};
use crate::transition::machine::{self, NoStart, Ran, Waits, World};
use crate::transition::searched::{Late, searched};
use std::collections::{BTreeMap, BTreeSet};
use suture_abi::batch::{self, BATCH_REPLACE, FUNC_NOP, Func, RANGE_NEW, RANGE_OLD, Range, Site};
use suture_abi::block::{
    ENDED_REVERSED, IMAGE_LEFT, IMAGE_PINNED, PATCH_FORCED, PATCH_PREPARED, PATCHING, PHASE_RUNNING,
    TransitionRow,
};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};
use suture_abi::dispatch::Choice;
use suture_abi::event::word;
use suture_scan::Ranges;

/// The runtime's own code on the way into a function.
const PATH: (u64, u64) = (0x100, 0x200);
/// Where all dispatchers are, in an arena of the sample batch.
const DISPATCHER: u64 = 0x12000;
const CODE_LEN: u64 = 0x100;

fn old_code(func: usize) -> u64 {
    0x40_0000 + func as u64 * 0x1000
}

fn copy_of(func: usize) -> u64 {
    0x50_0000 + func as u64 * 0x1000
}

fn image_of(name: char) -> u64 {
    0x1000_0000 + (name as u64) * 0x10_0000
}

fn new_code(name: char, func: usize) -> u64 {
    image_of(name) + func as u64 * 0x200
}

/// A return address in the code.
fn return_address(code: Code) -> u64 {
    match code {
        Code::Old(func) => old_code(func) + CODE_LEN,
        Code::New(name, func) => new_code(name, func) + 0x10,
        Code::Part(name) => image_of(name) + 0xf00,
    }
}

/// What is at an address that a slot or a choice holds.
fn code_at(addr: u64, func: usize) -> Code {
    if addr == copy_of(func) {
        return Code::Old(func);
    }
    let name = char::from_u32(((addr - 0x1000_0000) / 0x10_0000) as u32).unwrap();
    assert_eq!(addr, new_code(name, func), "a slot leads into another function");
    Code::New(name, func)
}

#[derive(Clone, Debug, Default)]
pub struct Thread {
    pub side: u32,
    pub frames: Vec<Code>,
    pub runs: bool,
}

#[derive(Debug)]
pub struct Process {
    books: Books,
    names: BTreeMap<u32, char>,
    patches: BTreeMap<char, Patch>,
    choices: BTreeMap<usize, Choice>,
    pub threads: BTreeMap<u32, Thread>,
    pub events: Vec<String>,
    pub host: Host,
    /// Which callback was begun last, and what it has returned.
    job: Option<((u32, u32, u32), Option<u32>)>,
    pub start_errno: Option<u32>,
    /// After so many changes of the books there is no memory for so many.
    pub starving: (u32, u32),
}

/// Books to come, and the choices that come with them.
#[derive(Debug)]
pub struct Ready(Books, Option<BTreeMap<usize, Choice>>);

fn handler(hook: u32) -> u64 {
    panic!("hook {hook}: there are none here")
}

fn errno_of(error: BooksError) -> u32 {
    match error {
        BooksError::InTransition(_) => EBUSY,
        BooksError::NoEntry(_) => ENOENT,
        BooksError::Blocked(..) | BooksError::State(_) => EINVAL,
        other => panic!("{other:?}"),
    }
}

impl Process {
    pub fn new(threads: u32) -> Self {
        Process {
            books: Books::EMPTY,
            names: BTreeMap::new(),
            patches: BTreeMap::new(),
            choices: BTreeMap::new(),
            threads: (1..=threads).map(|tid| (tid, Thread::default())).collect(),
            events: Vec::new(),
            host: Host::Quick,
            job: None,
            start_errno: None,
            starving: (0, 0),
        }
    }

    // ---- what can be seen ----

    pub fn listed(&self) -> Vec<(char, bool, bool)> {
        let moving = self.books.transition.first().map_or(0, |t| t.patch);
        let listed = self.books.patches.iter().filter(|p| p.state != PATCH_PREPARED || p.id == moving);
        listed.map(|p| (self.names[&p.id], self.books.is_enabled(p), p.flags & PATCH_FORCED != 0)).collect()
    }

    pub fn holders(&self) -> Vec<(char, u64)> {
        let prepared = self.books.prepared().map_or(0, |b| b.0);
        let of = self.books.states.iter().filter(|s| s.patch != prepared);
        of.map(|s| (self.names[&s.patch], s.plan.id)).collect()
    }

    pub fn transition(&self) -> Option<(char, bool)> {
        self.books.transition.first().map(|t| (self.names[&t.patch], t.target == PATCHING))
    }

    pub fn left(&self) -> BTreeSet<(char, bool)> {
        let left = self.books.images.iter().filter(|i| i.flags & IMAGE_LEFT != 0);
        left.map(|i| (self.names[&i.patch], i.flags & IMAGE_PINNED != 0)).collect()
    }

    fn running(&self) -> Option<TransitionRow> {
        self.books.transition.first().copied().filter(|t| t.phase == PHASE_RUNNING)
    }

    /// Whether the threads are on the side of the patch, while they move.
    pub fn sides(&self) -> Option<Vec<bool>> {
        let t = self.running()?;
        Some(self.threads.values().map(|thread| (thread.side == t.id) == (t.begun == PATCHING)).collect())
    }

    pub fn effect(&self, tid: u32, func: usize) -> Code {
        let entry = old_code(func);
        let Some(index) = self.books.sites.iter().position(|s| s.plan.entry == entry) else {
            return Code::Old(func);
        };
        let stacks = Stacks::of(&self.books).unwrap();
        let slot = slot_value(index, &self.books, &stacks, handler).unwrap();
        if slot != DISPATCHER {
            return code_at(slot, func);
        }
        let choice = self.choices[&index];
        let to = if self.threads[&tid].side == choice.id { choice.switched } else { choice.unswitched };
        code_at(to, func)
    }

    pub fn has_prepared(&self) -> bool {
        self.books.prepared().is_some()
    }

    fn id_of(&self, name: char) -> u32 {
        self.names.iter().find(|(_, n)| **n == name).map_or(0, |(id, _)| *id)
    }

    fn state_of(&self, job: Job) -> (char, State) {
        let row = self.books.states[job.state];
        let name = self.names[&row.patch];
        (name, *self.patches[&name].states.iter().find(|s| s.id == row.plan.id).unwrap())
    }

    // ---- operations ----

    /// As the command prepares a batch: what a patch that replaces all does not have it gets as nops.
    pub fn prepare(&mut self, patch: &Patch) {
        let mut maker = Maker::sample();
        let sample = maker.sites[0];
        let mut nops = BTreeSet::new();
        if patch.replace {
            maker.header.flags |= BATCH_REPLACE;
            let of = |site: u32| (self.books.site(site).unwrap().plan.entry - old_code(0)) / 0x1000;
            nops.extend(self.books.funcs.iter().map(|f| of(f.site) as usize));
            nops.retain(|f| !patch.funcs.contains(f));
        }
        let image = image_of(patch.name);
        maker.mappings[0].addr = image;
        maker.images[0].start = image;
        maker.images[0].end = image + 0x1000;
        maker.images[0].text_start = image;
        maker.images[0].text_end = image + 0x1000;
        maker.fixups.clear();
        (maker.sites, maker.funcs, maker.ranges) = (Vec::new(), Vec::new(), Vec::new());
        let real = patch.funcs.iter().map(|f| (*f, false));
        for (func, nop) in real.chain(nops.into_iter().map(|f| (f, true))) {
            let entry = old_code(func);
            let id = self.books.sites.iter().find(|s| s.plan.entry == entry).map_or(0, |s| s.id);
            let slot = 0x11000 + func as u64 * 16;
            let copy = copy_of(func);
            maker.sites.push(Site { id, entry, copy, copy_len: 16, slot, choice: slot + 8, ..sample });
            let at = maker.funcs.len() as u32;
            let (new_func, flags) = if nop { (0, FUNC_NOP) } else { (new_code(patch.name, func), 0) };
            maker.funcs.push(Func { site: at, new_func, flags, ..Func::default() });
            let range = |kind, start| Range { func: at, kind, start, end: start + CODE_LEN };
            maker.ranges.push(range(RANGE_OLD, entry));
            if !nop {
                maker.ranges.push(range(RANGE_NEW, new_func));
            }
        }
        maker.states = patch.states.iter().map(plan_of).collect();
        let bytes = maker.bytes();
        let view = View::parse(&bytes).unwrap();
        self.books = self.books.with_batch(&view, 0, &[], 0).unwrap();
        self.names.insert(self.books.last_patch, patch.name);
        self.patches.insert(patch.name, patch.clone());
    }

    pub fn abort(&mut self) {
        if let Some(batch) = self.books.prepared() {
            let what = Dropped { arenas: false, image: true };
            self.books = self.books.without_prepared(batch, what, |_| Fate::Retired).unwrap();
        }
    }

    /// Does an operation again until there is memory for it.
    fn fed(&mut self, mut op: impl FnMut(&mut Self) -> Result<(), BooksError>) -> u32 {
        loop {
            match op(self) {
                Ok(()) => return 0,
                Err(BooksError::NoMemory) => {}
                Err(error) => return errno_of(error),
            }
        }
    }

    pub fn enable(&mut self) -> u32 {
        let Some(Batch(id)) = self.books.prepared() else { return ENOENT };
        self.fed(|p| {
            let next = p.books.with_patching(Batch(id), 0)?;
            machine::begin(p, next)
        })
    }

    pub fn write_enabled(&mut self, name: char, value: bool) -> u32 {
        let id = self.id_of(name);
        let own = self.books.transition.first().is_some_and(|t| t.patch == id);
        let Some(patch) = self.books.patch(id).filter(|p| own || p.state != PATCH_PREPARED) else {
            return ENOENT;
        };
        if self.books.is_enabled(patch) == value {
            return EINVAL;
        }
        match (own, value) {
            (true, _) => self.reverse(name),
            (false, true) => EINVAL,
            (false, false) => self.fed(|p| {
                let next = p.books.with_unpatching(id, 0)?;
                machine::begin(p, next)
            }),
        }
    }

    pub fn reverse(&mut self, name: char) -> u32 {
        let id = self.id_of(name);
        if self.books.transition.first().is_none_or(|t| t.patch != id) {
            return EINVAL;
        }
        self.fed(|p| match machine::reverse(p, id) {
            // Its callbacks run: as the kernel, which holds its lock all the while.
            Err(BooksError::State(_)) => Err(BooksError::InTransition(id)),
            other => other,
        })
    }

    pub fn force(&mut self, name: char) -> u32 {
        let id = self.id_of(name);
        if self.books.transition.first().is_none_or(|t| t.patch != id) {
            return EINVAL;
        }
        self.fed(|p| {
            let ready = p.ready(p.books.with_forced()?)?;
            p.commit(ready);
            let t = p.running().unwrap();
            let mut count = 0;
            for thread in p.threads.values_mut().filter(|thread| (thread.side == t.id) != t.to_switched()) {
                thread.side = if t.to_switched() { t.id } else { 0 };
                count += 1;
            }
            p.log(word::FORCED, t.patch, 0, count);
            Ok(())
        })
    }

    /// The callback that is running returns.
    pub fn callback_returns(&mut self) {
        if let Some((key, None)) = self.job {
            let at = crate::books::jobs(&self.books).unwrap()[key.2 as usize];
            self.job = Some((key, Some(self.result_of(at))));
        }
    }

    fn result_of(&self, job: Job) -> u32 {
        if job.kind == JobKind::PrePatch { self.state_of(job).1.fails } else { 0 }
    }

    pub fn advance(&mut self) -> &'static str {
        loop {
            return match machine::advance(self) {
                Waits::Nothing => "nothing",
                Waits::Threads => "threads",
                Waits::Host => "host",
                Waits::Callback => "callback",
                Waits::Memory => continue,
            };
        }
    }

    // ---- threads ----

    pub fn look(&mut self, tid: u32) {
        let Some(t) = self.running() else { return };
        let table = searched(&self.books, &t, PATH, &Late::default()).unwrap();
        let ranges = Ranges::new(&table).unwrap();
        let thread = self.threads.get_mut(&tid).unwrap();
        let clear = thread.frames.iter().all(|code| ranges.find(return_address(*code)).is_none());
        if clear && !thread.runs {
            thread.side = if t.to_switched() { t.id } else { 0 };
        }
    }
}

/// Addresses of callbacks only have to be there.
fn plan_of(state: &State) -> batch::State {
    let at = |which: usize| if state.has[which] { 0x7000 + which as u64 } else { 0 };
    let flag = |is: bool, flag: u32| if is { flag } else { 0 };
    batch::State {
        id: state.id,
        flags: flag(state.is_shadow, STATE_IS_SHADOW) | flag(state.block_disable, STATE_BLOCK_DISABLE),
        pre_patch: at(0),
        post_patch: at(1),
        pre_unpatch: at(2),
        post_unpatch: at(3),
        shadow_dtor: if state.has_dtor { 0x7010 } else { 0 },
        ..batch::State::default()
    }
}

impl World for Process {
    type Ready = Ready;

    fn books(&self) -> &Books {
        &self.books
    }

    fn now(&self) -> u64 {
        0
    }

    fn ready(&mut self, next: Books) -> Result<Ready, BooksError> {
        match &mut self.starving {
            (0, 0) => {}
            (0, times) => {
                *times -= 1;
                return Err(BooksError::NoMemory);
            }
            (after, _) => *after -= 1,
        }
        Ok(Ready(next, None))
    }

    fn ready_to_start(&mut self, next: Books) -> Result<Ready, NoStart> {
        if next.transition[0].begun == PATCHING
            && let Some(errno) = self.start_errno
        {
            return Err(NoStart::Refused(errno));
        }
        let stacks = Stacks::of(&next).unwrap();
        let choices = (0..next.sites.len())
            .filter_map(|index| Some((index, choice(index, &next, &stacks, handler)?)))
            .collect();
        Ok(Ready(next, Some(choices)))
    }

    fn commit(&mut self, ready: Ready) {
        self.books = ready.0;
        if let Some(choices) = ready.1 {
            self.choices = choices;
        }
    }

    fn finish(&mut self, ready: Ready) {
        self.commit(ready);
    }

    fn settle(&mut self) -> bool {
        let t = self.running().unwrap();
        let tids: Vec<u32> = self.threads.keys().copied().collect();
        tids.into_iter().for_each(|tid| self.look(tid));
        self.threads.values().all(|thread| (thread.side == t.id) == t.to_switched())
    }

    fn run(&mut self, job: Job) -> Ran {
        let t = self.books.transition[0];
        // As the engine numbers jobs.
        let key = (t.id, t.phase, t.callbacks_done);
        if self.job.is_none_or(|(last, _)| last != key) {
            if self.host == Host::Away {
                return Ran::NoHost;
            }
            let (name, state) = self.state_of(job);
            let what = match job.kind {
                JobKind::PrePatch => CALLBACKS[0],
                JobKind::PostPatch => CALLBACKS[1],
                JobKind::PreUnpatch => CALLBACKS[2],
                JobKind::PostUnpatch => CALLBACKS[3],
                JobKind::FreeShadow => "dtor",
            };
            self.events.push(format!("> {what}({name},{})", state.id));
            let result = (self.host == Host::Quick).then(|| self.result_of(job));
            self.job = Some((key, result));
        }
        match self.job {
            Some((_, Some(result))) => Ran::Done(result),
            _ => Ran::Running,
        }
    }

    fn free_shadow(&mut self, id: u64) {
        self.events.push(format!("freed({id})"));
    }

    fn log(&mut self, event: u32, patch: u32, subject: u64, value: u64) {
        let patch = self.names[&patch];
        let of_patch = |what: &str| format!("{what} {patch}");
        let of_state = |which: usize| match value {
            0 => format!("{}({patch},{subject})", CALLBACKS[which]),
            errno => format!("{}({patch},{subject})=-{errno}", CALLBACKS[which]),
        };
        self.events.push(match event {
            word::ENABLE => of_patch("enable"),
            word::INIT_PATCH => of_patch("init+"),
            word::INIT_UNPATCH => of_patch("init-"),
            word::START_PATCH => of_patch("start+"),
            word::START_UNPATCH => of_patch("start-"),
            word::COMPLETING_PATCH => of_patch("completing+"),
            word::COMPLETING_UNPATCH => of_patch("completing-"),
            word::DONE_PATCH => of_patch("done+"),
            word::DONE_UNPATCH => of_patch("done-"),
            word::REVERSE_TO_PATCH => of_patch("rev+"),
            word::REVERSE_TO_UNPATCH => of_patch("rev-"),
            word::FAIL => of_patch("fail"),
            word::CANCEL => of_patch("cancel"),
            word::GONE => of_patch("gone"),
            word::FORCED => format!("forced {patch} {value}"),
            word::PRE_PATCH => of_state(0),
            word::POST_PATCH => of_state(1),
            word::PRE_UNPATCH => of_state(2),
            word::POST_UNPATCH => of_state(3),
            other => panic!("event {other}"),
        });
    }

    fn ended(&mut self, _: u32, how: u32) {
        self.start_errno = None;
        self.events.push(match how {
            0 => "ended: as begun".into(),
            ENDED_REVERSED => "ended: reversed".into(),
            errno => format!("ended: errno {errno}"),
        });
    }
}

const _: () = assert!(FUNCS * 16 <= 0x1000 && FUNCS <= 16);
