//! Threads of servers: what is live on a stack is refused, what only looks like it is not, the ends of all stacks are
//! proven, and how often a scan finds what is not live any more.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;
mod looks;

use common::servers::{self, Server};
use common::{Blocked, Stopped, blocked, maps, threads};
use looks::Facts;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use suture_elf::{Addr, Base, Frames, Memory, ObjectFile};
use suture_scan::proc::{Stat, Syscall};
use suture_scan::{Interval, Ranges, StackEnd};
use suture_stack::{By, Refusal};
use suture_unwind::{FrameKind, Module, Registers, Unwinder, Walk};

/// A process, and all of its functions by unwind range.
struct Process {
    facts: Facts,
    functions: Vec<Interval>,
}

impl Process {
    fn new(pid: i32) -> Self {
        let mut functions = Vec::new();
        for region in maps(pid).regions.iter().filter(|r| r.offset == 0) {
            let Some(path) = region.path.as_deref().filter(|p| p.starts_with('/')) else { continue };
            let Ok(file) = ObjectFile::open(Path::new(path)) else { continue };
            let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min().unwrap();
            let base = Base(region.start - lowest);
            let frames = Frames::new(&file);
            let found = (0..frames.len()).filter_map(|i| frames.get(i));
            functions.extend(found.map(|f| Interval { first: (base + f.start).0, last: (base + f.end).0 }));
        }
        functions.sort_unstable();
        // Ranges that overlap are one function of several descriptions.
        functions.dedup_by(|next, before| {
            let same = next.first < before.last;
            before.last = before.last.max(if same { next.last } else { 0 });
            same
        });
        Self { facts: Facts::of(pid), functions }
    }

    /// The function an instruction lies in.
    fn function(&self, pc: u64) -> Option<Interval> {
        let at = self.functions.partition_point(|f| f.first <= pc).checked_sub(1)?;
        self.functions.get(at).copied().filter(|f| pc < f.last)
    }

    /// Functions that a walk has on the stack.
    fn live(&self, walk: &Walk) -> BTreeSet<Interval> {
        let of = |f: &suture_unwind::Frame| match f.kind {
            FrameKind::Caller => self.function(f.pc - 1),
            _ => self.function(f.pc),
        };
        walk.frames.iter().filter_map(of).collect()
    }

    /// Functions that a word of the stack may lead into.
    fn hit(&self, at: Blocked, end: u64) -> BTreeSet<Interval> {
        let words = std::iter::once(at.pc).chain((at.sp..end).step_by(4096).flat_map(|from| {
            let len = (end - from).min(4096) as usize;
            let bytes = self.facts.memory().read_vec(Addr(from), len).unwrap();
            bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect::<Vec<_>>()
        }));
        let ranges = Ranges::new(&self.functions).unwrap();
        words.filter_map(|word| ranges.find(word)).map(|index| self.functions[index as usize]).collect()
    }
}

#[derive(Debug, Default)]
struct Count {
    threads: usize,
    proven: usize,
    hit: usize,
    live: usize,
    words: u64,
}

/// A thread that stands still: off the processor, and held there.
fn held(pid: i32, tid: i32) -> Option<(Stopped, Blocked)> {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let stat = read("stat").and_then(|s| Stat::parse(&s))?;
    let shares = read("syscall").and_then(|s| Syscall::parse(&s)).is_some_and(|s| s.shares_itself());
    if stat.is_kernel_made() || stat.is_dead() || stat.state == b'D' || shares {
        return None;
    }
    let at = blocked(pid, tid)?;
    let stopped = Stopped::stop(tid)?;
    ((stopped.raw.rsp, stopped.raw.rip) == (at.sp, at.pc)).then_some((stopped, at))
}

fn look(process: &Process, tid: i32, unwinder: &mut Unwinder<&[Module]>, count: &mut Count) {
    let facts = &process.facts;
    let Some((_held, at)) = held(facts.pid, tid) else { return };
    let walk = unwinder.walk(Registers::from_pc_sp(at.pc, at.sp), &facts.memory());
    let walk = walk.unwrap_or_else(|e| panic!("{e}"));
    let live = process.live(&walk);
    count.threads += 1;
    count.live += live.len();
    let mut check = |function: &Interval| {
        facts.check_with(unwinder, tid, at, Ranges::new(std::slice::from_ref(function)).unwrap())
    };
    for function in &live {
        let verdict = check(function);
        let found = matches!(verdict, Err(Refusal::OnStack { pc, .. }) if function.first <= pc && pc <= function.last);
        assert!(found, "process {}, thread {tid}, {function:x?}: {verdict:?}", facts.pid);
    }
    let StackEnd::Proven(end) = facts.scan(tid, at.sp, &[]).outcome.end else { return };
    count.proven += 1;
    count.words += (end - at.sp) / 8;
    // The scan and the walk agree on where the stack ends: no frame lies above it.
    assert!(walk.frames.iter().all(|f| f.cfa <= end), "{walk:x?} above {end:#x}");
    let hit = process.hit(at, end);
    count.hit += hit.len();
    // What only the scan sees, the walk clears.
    for function in hit.difference(&live).take(3) {
        let verdict = check(function);
        assert!(matches!(verdict, Ok(By::Cfi | By::Height)), "{function:x?}: {verdict:?}");
    }
    // And what neither sees needs no walk.
    if let Some(function) = process.functions.iter().find(|f| !hit.contains(f) && !live.contains(f)) {
        assert_eq!(check(function), Ok(By::Scan), "{function:x?}");
    }
}

fn run(start: fn(bool) -> Option<Server>, looks: usize) {
    for load in [false, true] {
        let Some(server) = start(load) else { return };
        let mut count = Count::default();
        let end = Instant::now() + Duration::from_secs(60);
        while count.threads < looks && Instant::now() < end {
            for pid in server.pids() {
                let process = Process::new(pid);
                let mut unwinder = Unwinder::new(process.facts.modules.as_slice(), Vec::new());
                for _ in 0..4 {
                    threads(pid).into_iter().for_each(|tid| look(&process, tid, &mut unwinder, &mut count));
                }
            }
        }
        let per = |n: usize| n as f64 / count.threads as f64;
        println!(
            "{} {}: {} threads, the end proven in {}; per thread {:.0} words, {:.1} functions hit, {:.1} live",
            server.name,
            if load { "busy" } else { "idle" },
            count.threads,
            count.proven,
            count.words as f64 / count.threads as f64,
            per(count.hit),
            per(count.live),
        );
        assert!(count.threads > 3);
        assert_eq!(count.proven, count.threads, "{count:?}");
    }
}

#[test]
fn redis() {
    run(servers::redis, 40);
}

#[test]
fn nginx() {
    run(servers::nginx, 30);
}

#[test]
fn python() {
    run(servers::python, 60);
}

#[test]
fn mariadb() {
    run(servers::mariadb, 200);
}
