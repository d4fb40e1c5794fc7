//! The command is killed at moments that are chosen: before and after each system call with which it changes
//! something. The process goes on, looks as before, and the next command works.

use std::collections::BTreeMap;
use std::time::Instant;
use suture_tests::command::{apply, disable, start, suture};
use suture_tests::killer::{self, Act, DETACH, FCNTL, INTERRUPT, Moment, PWRITE, SETREGS};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, code, poll, repeat, report, snapshot, sys};

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

/// Whether the command holds a thread whose call may show that: from the request to stop until the registers
/// were set for the first time.
fn shows(acts: &[Act], moment: Moment) -> bool {
    let (at, done) = match moment {
        Moment::Never => return false,
        Moment::Before(at) => (at, at),
        Moment::After(at) => (at, at + 1),
    };
    let last = acts[..done].iter().rposition(|act| *act == INTERRUPT);
    match last {
        Some(asked) => !acts[asked..done].contains(&SETREGS),
        // Killed in the very request.
        None => acts[at] == INTERRUPT,
    }
}

/// What came of the kills, by what the command was about to do or had done.
#[derive(Default)]
struct Tally {
    kills: usize,
    /// Kills in the microseconds in which a stop shows, and calls that ended with EINTR for it.
    shown: (usize, i64),
    by_act: BTreeMap<String, (usize, i64)>,
}

impl Tally {
    fn add(&mut self, acts: &[Act], moment: Moment, early: i64) {
        self.kills += 1;
        let name = match moment {
            Moment::Before(at) => format!("before {:?}", acts[at]),
            Moment::After(at) => format!("after {:?}", acts[at]),
            Moment::Never => return,
        };
        let row = self.by_act.entry(name.clone()).or_default();
        (row.0, row.1) = (row.0 + 1, row.1 + early);
        if shows(acts, moment) {
            (self.shown.0, self.shown.1) = (self.shown.0 + 1, self.shown.1 + early);
        } else {
            assert_eq!(early, 0, "{name} ({moment:?} of {acts:?}): a call ended with EINTR");
        }
    }

    fn print(&self, what: &str) {
        println!(
            "{what}: {} kills; {} in the microseconds around a stop, {} calls ended with EINTR there",
            self.kills, self.shown.0, self.shown.1
        );
        for (act, (kills, early)) in self.by_act.iter().filter(|(_, (_, early))| *early > 0) {
            println!("    {act}: {kills} kills, {early} EINTR");
        }
    }
}

/// Waits until all threads sleep in the calls of their loops.
fn all_sleep(pid: i32) {
    let asleep =
        |call: &Option<i64>| [Some(libc::SYS_epoll_wait), Some(libc::SYS_rt_sigtimedwait)].contains(call);
    poll::until_true("all to sleep", || snapshot::calls(pid).iter().all(asleep));
}

/// A target all of whose threads notice a clumsy stop.
struct Victim {
    target: Target,
    before: Snapshot,
    early: i64,
}

impl Victim {
    fn new(lab: &Lab, options: Options) -> Self {
        let mut target = Target::start(&lab.path("sleepers"), &["4"], options);
        // It opens what it needs with the first question, and a thread in sigwaitinfo shows another mask.
        target.ask("early");
        all_sleep(target.pid());
        let before = Snapshot::of(target.pid());
        Self { target, before, early: 0 }
    }

    /// Calls that ended since the last look.
    fn early(&mut self) -> i64 {
        // A thread whose call was ended may not have had a processor yet to say so.
        all_sleep(self.target.pid());
        let now = Target::number(&self.target.ask("early"), "early");
        now - std::mem::replace(&mut self.early, now)
    }

    /// It lives, and once nobody is at work in it any more it looks as before.
    fn is_whole(&mut self, moment: Moment) {
        assert!(self.target.alive(), "{moment:?}: it was killed");
        let pid = self.target.pid();
        let left = || (snapshot::threads(pid) == self.before.threads).then_some(());
        poll::until_or(left, || {
            panic!("{moment:?}: {:?} where {:?} was", snapshot::threads(pid), self.before.threads)
        });
        Snapshot::of(pid).assert_same_program(&self.before);
        let result = self.target.call(1);
        assert!(result == 2 || result == 101, "{moment:?}: {result}");
    }

    /// The next commands work, and leave nothing of the dead one.
    fn is_patched_next(&mut self, lab: &Lab) {
        let pid = self.target.pid();
        if report::patched_at_last(pid, "fix") {
            disable("fix", pid).expect(0);
        }
        apply(&lab.path("fix.so"), pid).expect(0);
        assert_eq!(self.target.call(1), 101);
        disable("fix", pid).expect(0);
        assert_eq!(self.target.call(1), 2);
        assert_eq!(self.target.entry("value"), self.target.file_entry("value"));
        assert_eq!(self.early(), 0, "a next command ended a call");
        Snapshot::of(pid).assert_same_program(&self.before);
    }
}

fn prepared_lab() -> Lab {
    let lab = Lab::new();
    lab.compile_target("sleepers.c", &[]);
    lab.value_patch("fix", 100);
    lab
}

/// Both moments of every act; of many acts, some, evenly spread.
fn moments(acts: &[Act], most: usize) -> Vec<Moment> {
    let all: Vec<Moment> = (0..acts.len()).flat_map(|at| [Moment::Before(at), Moment::After(at)]).collect();
    let step = all.len().div_ceil(most).max(1);
    // Another offset each time, so that runs add up.
    let offset = std::process::id() as usize % step;
    all.into_iter().skip(offset).step_by(step).collect()
}

#[test]
fn an_inject_killed_at_each_of_its_acts() {
    let lab = prepared_lab();
    let args = |pid: &str| ["inject".to_owned(), "--pid".to_owned(), pid.to_owned()];
    let run = |target: &Target, moment| {
        let args = args(&target.pid_text());
        killer::run(&args.each_ref().map(String::as_str), moment)
    };
    let acts = run(&Victim::new(&lab, unprepared()).target, Moment::Never).acts;
    let mut tally = Tally::default();
    for moment in (0..repeat(1, 3)).flat_map(|_| moments(&acts, repeat(25, usize::MAX))) {
        let mut victim = Victim::new(&lab, unprepared());
        let killed = run(&victim.target, moment);
        if !killed.was_killed() {
            continue;
        }
        victim.is_whole(moment);
        tally.add(&killed.acts, moment, victim.early());
        victim.is_patched_next(&lab);
    }
    tally.print("inject");
    assert!(tally.kills * 2 > repeat(25, acts.len()), "only {} kills", tally.kills);
}

/// Kills `command` at its acts; `again` brings the process back to where the command starts.
fn kill_a_prepared_one(command: &[&str], most: usize, again: impl Fn(&Lab, i32)) {
    let lab = prepared_lab();
    let mut victim = Victim::new(&lab, Options::default());
    let pid = victim.target.pid();
    let file = lab.path("fix.so").to_string_lossy().into_owned();
    let text = pid.to_string();
    let args: Vec<&str> = command.iter().map(|a| if *a == "FILE" { &file } else { *a }).collect();
    let args = [args.as_slice(), &["--pid", &text]].concat();
    apply(&lab.path("fix.so"), pid).expect(0);
    disable("fix", pid).expect(0);
    again(&lab, pid);
    let acts = killer::acts(&args);
    let mut tally = Tally::default();
    for moment in (0..repeat(1, 3)).flat_map(|_| moments(&acts, most)) {
        if report::patched_at_last(pid, "fix") {
            disable("fix", pid).expect(0);
        }
        again(&lab, pid);
        assert_eq!(victim.early(), 0);
        let killed = killer::run(&args, moment);
        if !killed.was_killed() {
            continue;
        }
        victim.is_whole(moment);
        tally.add(&killed.acts, moment, victim.early());
        victim.is_patched_next(&lab);
    }
    tally.print(command[0]);
    assert!(tally.kills * 2 > most.min(acts.len()), "only {} kills", tally.kills);
}

#[test]
fn an_apply_killed_at_each_of_its_acts() {
    kill_a_prepared_one(&["apply", "FILE"], repeat(25, usize::MAX), |_, _| ());
}

#[test]
fn a_disable_killed_at_each_of_its_acts() {
    kill_a_prepared_one(&["disable", "fix"], repeat(25, usize::MAX), |lab, pid| {
        apply(&lab.path("fix.so"), pid).expect(0);
    });
}

/// Kills `command` at instants that nobody chose, each time in a fresh process made ready by `ready`.
fn kill_at_random(what: &str, command: &[&str], options: &Options, ready: impl Fn(&Lab, i32)) {
    let lab = prepared_lab();
    let file = lab.path("fix.so").to_string_lossy().into_owned();
    let fresh = || {
        let victim = Victim::new(&lab, options.clone());
        ready(&lab, victim.target.pid());
        victim
    };
    let begin = |target: &Target| {
        let pid = target.pid_text();
        let args: Vec<&str> = command.iter().map(|a| if *a == "FILE" { &file } else { *a }).collect();
        start(&[args.as_slice(), &["--pid", &pid]].concat(), None)
    };
    let took = |_| {
        let victim = fresh();
        let begun = Instant::now();
        begin(&victim.target).finish().expect(0);
        begun.elapsed()
    };
    let length = (0..3).map(took).min().unwrap_or_default();
    let mut random = u64::from(std::process::id()) << 20 | 1;
    println!("seed {random}");
    let (mut kills, mut early, rounds) = (0, 0, repeat(25, 400));
    for round in 0..rounds {
        let mut victim = fresh();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = length.mul_f64((random >> 33) as f64 / f64::from(1u32 << 31));
        let (running, begun) = (begin(&victim.target), Instant::now());
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
        sys::kill(running.pid(), libc::SIGKILL);
        kills += usize::from(running.finish().status.code().is_none());
        victim.is_whole(Moment::Never);
        early += victim.early();
        victim.is_patched_next(&lab);
        assert!(victim.target.finish().success(), "round {round}");
    }
    println!("{what}: {kills} random kills of {rounds}, {early} calls ended with EINTR");
    // Twice some tens of microseconds of some milliseconds: a few of a hundred, and what chance makes of that.
    assert!(kills * 2 > rounds && early * 3 <= i64::try_from(kills).expect("few"), "{kills} kills, {early}");
}

#[test]
fn a_first_apply_killed_at_random() {
    kill_at_random("first apply", &["apply", "FILE"], &unprepared(), |_, _| ());
}

#[test]
fn a_disable_killed_at_random() {
    kill_at_random("disable", &["disable", "fix"], &Options::default(), |lab, pid| {
        apply(&lab.path("fix.so"), pid).expect(0);
    });
}

/// Copies of the boot code in the process: stretches of changed code that begin with its jump over the
/// time-outs.
fn copies(pid: i32) -> usize {
    code::changes(pid).iter().filter(|change| change.live == [0xeb, 70]).count()
}

/// Kills an inject at the `n`th act of a kind, and looks what the next one makes of it.
fn left_behind(lab: &Lab, act: Act, n: usize, after: bool) -> (Victim, serde_json::Value) {
    let mut victim = Victim::new(lab, unprepared());
    let pid = victim.target.pid_text();
    let args = ["inject", "--pid", &pid];
    let acts = killer::acts(&["inject", "--pid", &Victim::new(lab, unprepared()).target.pid_text()]);
    let at = acts.iter().enumerate().filter(|(_, a)| **a == act).nth(n).expect("such an act").0;
    let moment = if after { Moment::After(at) } else { Moment::Before(at) };
    assert!(killer::run(&args, moment).was_killed());
    let next = report::details(&suture(&["inject", "--json", "--pid", &pid]).expect(0).json());
    apply(&lab.path("fix.so"), victim.target.pid()).expect(0);
    assert_eq!(victim.target.call(1), 101);
    (victim, next)
}

#[test]
fn code_in_the_cave_is_used_again() {
    let lab = prepared_lab();
    // Written, and nobody sent there.
    for (act, after) in [(PWRITE, true), (INTERRUPT, false), (SETREGS, false)] {
        let (victim, next) = left_behind(&lab, act, 0, after);
        assert_eq!((&next["injected"], &next["stops"]), (&true.into(), &1.into()), "{next:#}");
        assert_eq!(copies(victim.target.pid()), 1, "{act:?}");
    }
}

#[test]
fn a_clone_that_waits_is_taken_over() {
    let lab = prepared_lab();
    // The clone was made, and waits for its contents; it got some; it got all but the seal.
    let mut taken_over = 0;
    for (act, n, after) in [(DETACH, 0, true), (PWRITE, 2, true), (FCNTL, 0, false)] {
        for _ in 0..3 {
            let (victim, next) = left_behind(&lab, act, n, after);
            assert_eq!(next["injected"], true, "{next:#}");
            // It waits for two seconds only, which is not long enough on every machine.
            taken_over += i32::from(next["stops"] == 0);
            assert_eq!(copies(victim.target.pid()), 1, "{act:?}");
        }
    }
    println!("{taken_over} of 9 clones were taken over");
    assert!(taken_over > 0);
}

#[test]
fn a_clone_that_was_filled_is_waited_for() {
    let lab = prepared_lab();
    for _ in 0..3 {
        let (victim, next) = left_behind(&lab, FCNTL, 0, true);
        assert_eq!(next["stops"], 0, "{next:#}");
        assert_eq!(copies(victim.target.pid()), 1);
    }
}

#[test]
fn an_image_that_was_never_initialised_is_ignored() {
    let lab = prepared_lab();
    let mut victim = Victim::new(&lab, unprepared());
    let pid = victim.target.pid();
    let inject =
        || report::details(&suture(&["inject", "--json", "--pid", &pid.to_string()]).expect(0).json());
    assert_eq!(inject()["injected"], true);
    // As a child that was forked right before the end has it: all there, but for the mark of completion.
    let maps = code::maps(pid);
    let is_image = |r: &&suture_elf::Region| {
        r.offset == 0 && r.path.as_deref().is_some_and(|p| p.contains("libsuture.so"))
    };
    let base = maps.regions.iter().find(is_image).expect("the image").start;
    let runtime = suture_elf::ObjectFile::open(&suture_tests::dist::dist().runtime).expect("the runtime");
    let block = runtime.symbols().named(suture_abi::BLOCK_SYMBOL).next().expect("its block").addr;
    code::write(pid, base + block.0, &[0; 8]);
    suture(&["status", "--pid", &pid.to_string()]).expect_refused(&["without the runtime"]);
    let again = inject();
    assert_eq!((&again["injected"], &again["stops"]), (&true.into(), &1.into()), "{again:#}");
    victim.is_patched_next(&lab);
}
