//! The command is killed at random instants of a transition: it always can be completed, or turned round, by
//! the next command, and no thread is left behind on the wrong side, or stopped.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use suture_tests::command::{Outcome, start, suture};
use suture_tests::random::Random;
use suture_tests::stall::{self, Stall};
use suture_tests::{Lab, poll, repeat, report, snapshot, sys};

const PLAIN: [&str; 3] = ["main", "W1", "W2"];

/// A process, a patch for it, and how its transitions went on after a kill.
struct Chaos {
    stall: Stall,
    patch: PathBuf,
    random: Random,
    /// How long a command takes.
    span: Duration,
    killed: usize,
    completed: usize,
    reversed: usize,
    over: usize,
}

impl Chaos {
    fn new(lab: &Lab) -> Self {
        let mut stall = Stall::start(lab);
        stall.create_all(&["T1", "W1", "W2"]);
        // One that runs all the time: only a stop moves it, and commands die in the middle of that, too.
        stall.create_spinning("main", "spins");
        let patch = stall::patch(lab, "A", &["blocker", "f", "g"]);
        let random = Random::new(u64::from(std::process::id()) << 8 | 1);
        let span = Duration::from_millis(50);
        Self { stall, patch, random, span, killed: 0, completed: 0, reversed: 0, over: 0 }
    }

    /// Once nobody is at work any more: what a dead command has asked for may be carried out after its death,
    /// and what it had prepared is in the books until the worker notices.
    fn enabled(&self) -> bool {
        report::patched_at_last(self.stall.pid(), "A")
    }

    fn args(&self, command: &str, timeout: &str) -> Vec<String> {
        let what = if command == "apply" { self.patch.to_string_lossy() } else { "A".into() };
        let pid = self.stall.pid().to_string();
        [command, &what, "--pid", &pid, "--timeout", timeout].map(str::to_owned).into()
    }

    /// To its end, or to the end of its patience.
    fn run(&self, command: &str) -> Outcome {
        suture(&self.args(command, "20"))
    }

    /// Starts a command and kills it at some instant of its life.
    fn kill(&mut self, command: &str) {
        let (longest, begun) = (self.span.as_micros() as u64 * 3 / 2, Instant::now());
        let moment = Duration::from_micros(self.random.below(longest));
        let running = start(&self.args(command, "0.1"), None);
        while begun.elapsed() < moment {
            std::thread::park_timeout(moment - begun.elapsed());
        }
        sys::kill_if_there(running.pid());
        let outcome = running.finish();
        match outcome.code() {
            -1 => self.killed += 1,
            // It was over, with whatever came of it.
            code => assert!([0, 1, 3].contains(&code), "{}{}", outcome.stdout, outcome.stderr),
        }
    }

    /// One kill, or some, and the way out.
    fn round(&mut self, number: usize) {
        let held = self.random.below(2) == 0;
        if held {
            self.stall.order("T1", "enter");
        }
        let begun = if self.enabled() { "unpatching" } else { "patching" };
        self.kill(if begun == "patching" { "apply" } else { "disable" });
        for _ in 0..self.random.below(3) {
            let next = if self.random.below(2) == 0 { "reverse" } else { "wait" };
            self.kill(next);
        }
        let held = self.way_out(begun, held, number);
        if held {
            self.stall.order("T1", "leave");
        }
        self.is_whole(number);
    }

    /// The transition that goes on, if any. A worker may still be at what a dead command asked of it.
    fn transition(&self) -> serde_json::Value {
        poll::until("the state of the process", || {
            let outcome = suture(&["status", "--json", "--pid", &self.stall.pid().to_string()]);
            (outcome.code() == 0).then(|| report::details(&outcome.json())["transition"].clone())
        })
    }

    /// Kills a command that follows a transition which has begun and cannot end; and the way out.
    fn inside(&mut self, number: usize) {
        self.stall.order("T1", "enter");
        let begun = if self.enabled() { "unpatching" } else { "patching" };
        let command = if begun == "patching" { "apply" } else { "disable" };
        let running = start(&self.args(command, "20"), None);
        poll::until_true("the transition to begin", || self.transition()["phase"] == "running");
        let moment = Duration::from_micros(self.random.below(self.span.as_micros() as u64));
        std::thread::sleep(moment);
        sys::kill_if_there(running.pid());
        let outcome = running.finish();
        assert_eq!(outcome.code(), -1, "round {number}: {}{}", outcome.stdout, outcome.stderr);
        self.killed += 1;
        if self.random.below(3) == 0 {
            self.kill("wait");
        }
        if self.way_out(begun, true, number) {
            self.stall.order("T1", "leave");
        }
        self.is_whole(number);
    }

    /// Completes what is left or turns it round; whether T1 is still in its function.
    fn way_out(&mut self, begun: &str, held: bool, number: usize) -> bool {
        let pid = self.stall.pid();
        let left = self.transition();
        if left.is_null() {
            self.over += 1;
            return held;
        }
        let back = left["direction"] != begun;
        let complete = self.random.below(2) == 0;
        let released = held && complete != back;
        if released {
            // To where it is held up by whoever is in the function.
            self.stall.order("T1", "leave");
        }
        let done = self.run(if complete { "wait" } else { "reverse" });
        // It may be over by now, if nobody holds it up.
        assert!([0, 1].contains(&done.code()), "round {number}: {left:#}\n{}{}", done.stdout, done.stderr);
        let still = report::transition(pid);
        assert!(still.is_null(), "round {number}: {still:#}");
        if complete {
            self.completed += 1;
        } else {
            self.reversed += 1;
        }
        held && !released
    }

    /// Everybody is on the side that the books say, and nobody is stopped or held.
    fn is_whole(&mut self, number: usize) {
        let wanted = if self.enabled() { 2 } else { 1 };
        for name in PLAIN.iter().chain(&["T1"]) {
            let got = (self.stall.order(name, "f"), self.stall.order(name, "g"));
            assert_eq!(got, (wanted, wanted), "round {number}: {name}");
        }
        let pid = self.stall.pid();
        for tid in snapshot::threads(pid).keys() {
            let status = Path::new("/proc").join(format!("{pid}/task/{tid}/status"));
            let status = std::fs::read_to_string(status).unwrap_or_default();
            assert!(
                !status.contains("\nState:\tT") && !status.contains("\nState:\tt"),
                "round {number}: {status}"
            );
            assert!(status.is_empty() || status.contains("TracerPid:\t0\n"), "round {number}: {status}");
        }
    }
}

#[test]
fn a_command_killed_at_random_instants_of_a_transition() {
    let lab = Lab::new();
    let mut chaos = Chaos::new(&lab);
    // How long a whole one takes here and now.
    let started = Instant::now();
    chaos.run("apply").expect(0);
    chaos.run("disable").expect(0);
    chaos.span = (started.elapsed() / 2).max(Duration::from_millis(5));
    let mut number = 0;
    while chaos.killed < repeat(30, 300) {
        chaos.round(number);
        number += 1;
        assert!(number < repeat(300, 3000), "only {} kills in {number} rounds", chaos.killed);
    }
    let Chaos { killed, completed, reversed, over, span, .. } = chaos;
    println!(
        "{killed} commands killed within {span:?}: {completed} transitions completed, {reversed} turned round, {over} were over or never began"
    );
    assert!(killed > 0 && completed + reversed > 0, "no kill met a transition");
}

#[test]
fn a_command_killed_inside_a_transition() {
    let lab = Lab::new();
    let mut chaos = Chaos::new(&lab);
    let rounds = repeat(8, 300);
    for number in 0..rounds {
        chaos.inside(number);
    }
    let Chaos { completed, reversed, over, .. } = chaos;
    println!("{rounds} commands killed inside a transition: {completed} completed, {reversed} turned round");
    assert_eq!((completed + reversed, over), (rounds, 0), "a transition ended that was held up");
}
