//! Programs that fork at chosen instants of the runtime's work: a child is whole and can be patched and unpatched
//! again and again, whatever its parent's worker was at.

use std::mem::offset_of;
use std::path::Path;
use std::time::Duration;
use suture_abi::channel::{Header, op};
use suture_tests::command::{Running, apply, disable, start, suture};
use suture_tests::random::Random;
use suture_tests::snapshot::tasks;
use suture_tests::stepper::Stepper;
use suture_tests::{Lab, Target, code, poll, repeat, report, sys};

/// Children of one program.
const BROOD: usize = 40;

/// Instructions from one child to the next while a worker leaves.
const STRIDE: usize = 13;

/// The worker of a command, held at some instant.
struct Held {
    worker: Stepper,
    pid: i32,
    running: Running,
}

impl Held {
    /// Starts a command and catches its worker; `None` if the command is over before.
    fn catch(pid: i32, args: &[&str]) -> Option<Self> {
        let before: Vec<i32> = tasks(pid).collect();
        let running = start(&[args, &["--pid", &pid.to_string()]].concat(), None);
        while !sys::ends_within(running.pid(), Duration::ZERO) {
            let new = tasks(pid).find(|tid| !before.contains(tid));
            if let Some(worker) = new.and_then(Stepper::catch) {
                return Some(Self { worker, pid, running });
            }
        }
        running.finish().expect(0);
        None
    }

    /// Whether it is about to wake its command with the answer to the last request: it has only to leave.
    fn says_goodbye(&self) -> bool {
        const WAKE: u64 = 1;
        let regs = self.worker.registers();
        if (regs.orig_rax, regs.rsi) != (libc::SYS_futex as u64, WAKE) {
            return false;
        }
        let header = regs.rdi - offset_of!(Header, reply) as u64;
        code::read(self.pid, header + offset_of!(Header, op) as u64, 4) == op::BYE.to_le_bytes()
    }

    /// Lets it work up to its goodbye. `here` is told of system calls, less and less often, and some instructions
    /// after each.
    fn work(&mut self, random: &mut Random, mut here: impl FnMut()) {
        let (mut calls, mut next) = (0, 0);
        loop {
            assert!(self.worker.run_to_call(), "the worker left without a word");
            if self.says_goodbye() {
                return;
            }
            calls += 1;
            if calls >= next {
                next += 1 + calls / 8;
                self.step(random.below(300));
                here();
            }
        }
    }

    /// Lets it do so many instructions, or those before its next system call if they are fewer.
    fn step(&mut self, instructions: u64) {
        let is_call = |worker: &Stepper| code::read(self.pid, worker.registers().rip, 2) == [0x0f, 0x05];
        for _ in 0..instructions {
            if is_call(&self.worker) {
                return;
            }
            assert!(self.worker.step(), "the worker left without a word");
        }
    }

    /// Lets it leave. `here` is told of every [`STRIDE`]th instruction.
    fn leave(&mut self, random: &mut Random, mut here: impl FnMut()) {
        let mut left = random.below(STRIDE as u64) as usize;
        while self.worker.step() {
            left += 1;
            if left.is_multiple_of(STRIDE) {
                here();
            }
        }
    }
}

/// Every child can be patched and unpatched, however it came into being.
fn judge(target: &mut Target, patch: &Path) -> usize {
    let pids = target.ask("pids");
    let pids: Vec<&str> = pids.split(' ').skip(1).collect();
    let all = pids.len();
    for pid in &pids {
        let pid = pid.parse().expect("a pid");
        if report::patched_at_last(pid, "fix") {
            disable("fix", pid).expect(0);
        }
    }
    assert_eq!(target.ask("ask 2"), format!("asked {all} of {all}"));
    for _ in 0..3 {
        suture(&[&["apply", &patch.to_string_lossy(), "--pid"][..], &pids].concat()).expect(0);
        assert_eq!(target.ask("ask 101"), format!("asked {all} of {all}"));
        suture(&[&["disable", "fix", "--pid"][..], &pids].concat()).expect(0);
        assert_eq!(target.ask("ask 2"), format!("asked {all} of {all}"));
    }
    all
}

#[test]
fn children_forked_while_a_worker_is_at_work() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy();
    let mut random = Random::new(u64::from(std::process::id()) << 8 | 1);
    for round in 0..repeat(2, 40) {
        // With no other threads: one that the command holds while it waits for the worker might have a lock that
        // fork waits for.
        let mut target = lab.start("brood.c", &["0"]);
        let pid = target.pid();
        apply(&patch, pid).expect(0);
        let both: [&[&str]; 2] = [&["disable", "fix"], &["apply", &file]];
        let mut commands = both.into_iter().cycle().skip(round % 2);
        if round % 2 == 1 {
            disable("fix", pid).expect(0);
        }
        // A command whose worker is not caught is undone by the next.
        let (name, mut held) = poll::until("a worker to be caught", || {
            let args = commands.next()?;
            Held::catch(pid, args).map(|held| (args[0], held))
        });
        let mut children = 0;
        let mut fork = |most: usize| {
            if children < most {
                assert_eq!(target.ask("fork 1"), "forked 1");
                children += 1;
            }
        };
        held.work(&mut random, || fork(BROOD / 2));
        held.leave(&mut random, || fork(BROOD));
        held.running.finish().expect(0);
        let lived = judge(&mut target, &patch);
        println!("round {round}, suture {name}: {lived} children");
        assert!(lived > BROOD / 3, "only {lived} children");
    }
}
