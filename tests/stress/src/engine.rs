//! The run inside the process under stress: callers, handlers and forked children on one side, one
//! writer on the other.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::call::{Rng, Verdict};
use crate::error::{Error, Result};
use crate::memory::PAGE;
use crate::signals::{Interrupter, block_all, install, record_faults};
use crate::store::{Means, Protocol, Writer};
use crate::straight::{self, Expected, Straight};
use crate::world::{Target, World};

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that call.
    pub threads: usize,
    /// How long to go on after each case had its first turn.
    pub time: Duration,
    /// Start of the random values.
    pub seed: u64,
    /// In which steps sites are stored.
    pub protocol: Protocol,
    /// Whether timers interrupt the callers and the handlers call, too.
    pub signals: bool,
    /// Whether callers fork, and the children call and store.
    pub forks: bool,
    /// Whether one caller blocks every signal.
    pub mask: bool,
    /// Whether the first wrong result ends the run.
    pub stop_on_wrong: bool,
}

/// Shared by all threads of the run, and by the handlers.
pub(crate) struct Shared {
    pub(crate) world: &'static World,
    pub(crate) board: &'static Board,
    pub(crate) writer: Writer,
    pub(crate) options: Options,
    /// Which side calls of each case must take.
    pub(crate) expected: Vec<Expected>,
    stop: AtomicBool,
    seeds: AtomicU64,
}

/// What the handler works on while a run goes on.
static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());

impl Shared {
    fn current(&self) -> usize {
        self.board.current.load(Relaxed) as usize
    }

    fn rng(&self) -> Rng {
        Rng::new(self.options.seed ^ self.seeds.fetch_add(0x51ed_2701, Relaxed))
    }

    /// Calls target `case` `times` times and books the verdicts.
    fn call(&self, case: usize, times: u32, rng: &mut Rng) {
        let callee = &self.world.targets[case].callee;
        let (mut old, mut new) = (0, 0);
        for _ in 0..times {
            match self.expected[case].during(|| callee.call(rng)) {
                Verdict::Old => old += 1,
                Verdict::New => new += 1,
                verdict @ Verdict::Wrong { .. } => self.board.book_wrong(case, verdict),
            }
        }
        self.board.scores[case].old.fetch_add(old, Relaxed);
        self.board.scores[case].new.fetch_add(new, Relaxed);
    }

    /// Stores the site of `target` and books the store.
    pub(crate) fn store(&self, case: usize, on: bool, means: Means) -> Result<()> {
        self.count(case, means);
        // SAFETY: `World` mapped text, stub and slot before the run; direct stores are only asked
        // for where its text is writable.
        unsafe { self.writer.set(self.world.targets[case].site(), on, means) }
    }

    /// Makes the jump of `case` lead elsewhere, and books the store.
    pub(crate) fn aim(&self, case: usize, straight: Straight, displacement: u32, means: Means) -> Result<()> {
        self.count(case, means);
        // SAFETY: as in `store`.
        unsafe { self.writer.aim(straight.place, displacement, means) }
    }

    fn count(&self, case: usize, means: Means) {
        let score = &self.board.scores[case];
        let counter = if means == Means::Direct { &score.direct } else { &score.pwrites };
        counter.fetch_add(1, Relaxed);
    }
}

/// Runs `world` under stress until the time is over.
pub fn run(world: &'static World, board: &'static Board, options: Options) -> Result<()> {
    record_faults(board)?;
    run_with_handlers(world, board, options)
}

/// As [`run`], for a control that has installed handlers of its own behind the recorder's.
pub fn run_with_handlers(world: &'static World, board: &'static Board, options: Options) -> Result<()> {
    let writer = Writer::new(options.protocol)?;
    let (stop, seeds) = (AtomicBool::new(false), AtomicU64::new(1));
    let expected = world.targets.iter().map(|_| Expected::default()).collect();
    let shared: &'static Shared =
        Box::leak(Box::new(Shared { world, board, writer, options, expected, stop, seeds }));
    for (to, pages) in board.punned.iter().zip([world.punned.0, world.punned.1]) {
        to.store(pages as u64, Relaxed);
    }
    check_baseline(shared)?;
    SHARED.store(std::ptr::from_ref(shared).cast_mut(), Relaxed);
    if options.signals {
        install(libc::SIGALRM, on_alarm, false)?;
    }
    let (done, finished) = channel();
    for index in 0..options.threads {
        let done = done.clone();
        thread::spawn(move || {
            caller(shared, index);
            // The receiver is gone once the writer has given up on a caller.
            done.send(()).unwrap_or_default();
        });
    }
    write_rounds(shared)?;
    shared.stop.store(true, Relaxed);
    if options.stop_on_wrong && board.wrong_total.load(Relaxed) != 0 {
        // Found what was looked for; a victim that went astray may never come back.
        return Ok(());
    }
    for _ in 0..options.threads {
        if finished.recv_timeout(PATIENCE * 2).is_err() {
            board.book_lost_call(shared.current());
        }
    }
    Ok(())
}

/// Unarmed, every victim gives the old result; called directly, the copy the old one and the new
/// function the new one. Otherwise the harness itself is wrong.
fn check_baseline(shared: &Shared) -> Result<()> {
    let mut rng = shared.rng();
    for (case, target) in shared.world.targets.iter().enumerate() {
        shared.board.current.store(case as u32, Relaxed);
        for _ in 0..16 {
            let verdict = target.callee.call(&mut rng);
            if verdict != Verdict::Old {
                shared.board.book_wrong(case, verdict);
                let verdict = format!("{verdict:x?}");
                return Err(Error::Baseline { name: target.name.clone(), verdict });
            }
        }
    }
    shared.board.baseline.store(1, Relaxed);
    Ok(())
}

extern "C" fn on_alarm(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: `run_with_handlers` stored a leaked value before it installed this handler.
    let shared = unsafe { &*SHARED.load(Relaxed) };
    let case = shared.current();
    shared.board.scores[case].signals.fetch_add(1, Relaxed);
    shared.call(case, 2, &mut shared.rng());
}

/// One calling thread: mostly the current case, now and then any other, and a fork.
fn caller(shared: &Shared, index: usize) {
    let options = &shared.options;
    let timer = options.signals.then(|| Interrupter::start(90_000 + 7_000 * index as i64));
    if matches!(timer, Some(Err(_))) {
        shared.board.book_lost_call(shared.current());
        return;
    }
    if options.mask && index == 0 {
        block_all();
    }
    let mut rng = shared.rng();
    let mut last_fork = Instant::now();
    let mut turn = index;
    while !shared.stop.load(Relaxed) {
        let case = shared.current();
        shared.call(case, 192, &mut rng);
        turn = (turn + 1) % 8;
        if turn == 0 {
            let other = rng.draw() as usize % shared.world.targets.len();
            shared.call(other, 32, &mut rng);
            if options.forks && last_fork.elapsed() > Duration::from_millis(30) {
                fork_and_call(shared, case);
                last_fork = Instant::now();
            }
        }
    }
}

/// Forks a child that calls and stores, and waits for it.
fn fork_and_call(shared: &Shared, case: usize) {
    // SAFETY: the child calls only victims, stores and _exit, none of which allocates or locks.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(shared, case);
    }
    if pid < 0 {
        return;
    }
    shared.board.scores[case].forks.fetch_add(1, Relaxed);
    let mut status = 0;
    // SAFETY: the status is a local; EINTR repeats the wait.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return;
        }
    }
    if status != 0 {
        shared.board.book_lost_call(case);
    }
}

fn child(shared: &Shared, case: usize) -> ! {
    // SAFETY: plain system call; the child must not outlive a supervisor's kill of its parent.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let mut rng = shared.rng();
    shared.call(case, 32, &mut rng);
    shared.expected.iter().for_each(Expected::forget);
    for turn in 0..16 {
        if shared.world.writable {
            // SAFETY: as in `Shared::store`; the memory is the child's own copy.
            let stored =
                unsafe { shared.writer.set(shared.world.targets[case].site(), turn % 2 == 0, Means::Direct) };
            if stored.is_err() {
                shared.board.book_lost_call(case);
            }
        }
        set_route(&shared.world.targets[case], &mut rng);
        shared.call(case, 8, &mut rng);
    }
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

/// Gives the slot or the dispatcher's side another value.
pub(crate) fn set_route(target: &Target, rng: &mut Rng) {
    let r = rng.draw() as usize;
    let route = target.routes[r % target.routes.len()];
    if let Some(side) = target.side {
        target.set_word(side, (r >> 8) as u64 & 1);
    }
    target.set_word(target.planned.slot.addr, route);
}

/// Gives each case turns, at least one, until the time is over.
fn write_rounds(shared: &Shared) -> Result<()> {
    let cases = shared.world.targets.len();
    let start = Instant::now();
    let share = shared.options.time / cases as u32;
    let turn = if share > Duration::from_millis(60) { share / 3 } else { share };
    let mut rng = shared.rng();
    let mut round = 0;
    while round == 0 || start.elapsed() < shared.options.time {
        for case in 0..cases {
            shared.board.current.store(case as u32, Relaxed);
            match shared.world.targets[case].straight {
                Some(_) => straight::turn(shared, case, turn, &mut rng)?,
                None => write_turn(shared, case, turn, &mut rng)?,
            }
            let wrong = shared.board.wrong_total.load(Relaxed) != 0;
            let over = round > 0 && start.elapsed() >= shared.options.time;
            if over || wrong && shared.options.stop_on_wrong {
                return Ok(());
            }
        }
        round += 1;
    }
    Ok(())
}

/// Longest wait for callers to come by in one turn, before the case is left as idle.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// One turn: stores and flips of one case, for at least `turn`, until the callers have seen both
/// sides.
fn write_turn(shared: &Shared, case: usize, turn: Duration, rng: &mut Rng) -> Result<()> {
    let target = &shared.world.targets[case];
    let score = &shared.board.scores[case];
    let begin = (score.old.load(Relaxed), score.new.load(Relaxed));
    let start = Instant::now();
    let mut armed = false;
    loop {
        for _ in 0..64 {
            let r = rng.draw();
            match r & 7 {
                0..4 if shared.world.writable => {
                    armed = !armed;
                    shared.store(case, armed, Means::Direct)?;
                }
                0..5 => {
                    if shared.world.file_backed && armed {
                        forget_page(target)?;
                        score.first.fetch_add(1, Relaxed);
                        armed = false;
                    }
                    armed = !armed;
                    shared.store(case, armed, Means::Pwrite)?;
                }
                _ => {
                    set_route(target, rng);
                    score.flips.fetch_add(1, Relaxed);
                }
            }
            for _ in 0..(r >> 8) & 63 {
                spin_loop();
            }
        }
        let wrong = shared.options.stop_on_wrong && shared.board.wrong_total.load(Relaxed) != 0;
        let seen_old = score.old.load(Relaxed) > begin.0;
        let seen_new = score.new.load(Relaxed) > begin.1 || !target.callee.tells_sides();
        let enough = start.elapsed() >= turn && seen_old && seen_new;
        if wrong || enough || start.elapsed() > turn + PATIENCE {
            return Ok(());
        }
    }
}

/// Drops this process's copy of the page around the site: the file's bytes show again, and the next
/// store is a first touch while threads execute the page.
fn forget_page(target: &Target) -> Result<()> {
    let page = target.site().store_addr & !(PAGE - 1);
    // SAFETY: the page is part of the world's private file mapping; losing its contents is what is
    // wanted, the site is unarmed again with the file's bytes.
    match unsafe { libc::madvise(page as *mut libc::c_void, PAGE as usize, libc::MADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err(Error::last("drop a page of the text")),
    }
}
