//! Threads of servers: the raw scan finds everything that is live, its ends are proven, and how often it
//! finds what is not live any more.

#[path = "../../unwind/tests/common/mod.rs"]
mod common;

use common::servers::{self, Server};
use common::{Stopped, blocked, maps, modules, threads};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use suture_elf::{Base, Frames, ObjectFile};
use suture_scan::proc::{Stat, Syscall};
use suture_scan::{Hit, Ranges, Scanner, StackEnd, Step};
use suture_stack::ends::{Ends, read_stack};
use suture_stack::{Kind, Searched, SearchedBuilder, Verdict, examine};
use suture_unwind::{FrameKind, Module, Registers, StackCopy, Unwinder, Walk};

/// A process: all of its functions, by unwind range, as if all were searched.
struct Process {
    pid: i32,
    modules: Vec<Module>,
    searched: Searched,
    ends: Ends,
}

impl Process {
    fn new(pid: i32) -> Self {
        let maps = maps(pid);
        let mut files: Vec<(Base, ObjectFile)> = Vec::new();
        for region in maps.regions.iter().filter(|r| r.offset == 0) {
            let Some(path) = region.path.as_deref().filter(|p| p.starts_with('/')) else { continue };
            let Ok(file) = ObjectFile::open(Path::new(path)) else { continue };
            let lowest = file.segments().iter().map(|s| s.addr.0 & !0xfff).min().unwrap();
            files.push((Base(region.start - lowest), file));
        }
        let mut builder = SearchedBuilder::new();
        let mut number = 0;
        for (base, file) in &files {
            let frames = Frames::new(file);
            for frame in (0..frames.len()).filter_map(|i| frames.get(i)) {
                number += 1;
                builder.add(number, Kind::New, (*base + frame.start).0..(*base + frame.end).0);
            }
        }
        let ends = Ends::find(files.iter().map(|(base, file)| (*base, file)), &common::Remote(pid));
        Self { pid, modules: modules(pid), searched: builder.build(), ends }
    }

    /// Functions that a walk has on the stack.
    fn live(&self, walk: &Walk) -> BTreeSet<u32> {
        let of = |f: &suture_unwind::Frame| match f.kind {
            FrameKind::Caller => self.searched.return_address(f.pc),
            _ => self.searched.pc(f.pc),
        };
        walk.frames.iter().filter_map(of).map(|m| m.function).collect()
    }
}

#[derive(Debug, Default)]
struct Count {
    threads: usize,
    proven: usize,
    hit: usize,
    live: usize,
    words: usize,
}

fn look(process: &Process, tid: i32, unwinder: &mut Unwinder<&[Module]>, count: &mut Count) {
    let pid = process.pid;
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let Some(stat) = read("stat").and_then(|s| Stat::parse(&s)) else { return };
    let shares = read("syscall").and_then(|s| Syscall::parse(&s)).is_some_and(|s| s.shares_itself());
    if stat.is_kernel_made() || stat.is_dead() || stat.state == b'D' || shares {
        return;
    }
    let Some(at) = blocked(pid, tid) else { return };
    let Some(stopped) = Stopped::stop(tid) else { return };
    if (stopped.raw.rsp, stopped.raw.rip) != (at.sp, at.pc) {
        return;
    }
    let memory = common::Remote(pid);
    let end = process.ends.of_thread(pid as u32, tid as u32);
    let stack = read_stack(&memory, at.sp, end, 16 << 20);
    let ranges = Ranges::new(process.searched.table()).unwrap();
    let mut hits = vec![Hit::default(); 100_000];
    let mut scanner = Scanner::new(&ranges, &mut hits, at.sp, end);
    let words: Vec<u64> = stack.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
    let ended = scanner.feed(&words) == Step::Ended;
    let outcome = scanner.finish();
    assert_eq!(outcome.seen as usize, outcome.hits, "room for all hits");
    let mut hit: BTreeSet<u32> = hits[..outcome.hits]
        .iter()
        .flat_map(|h| process.searched.owners(h.range))
        .map(|m| m.function)
        .collect();
    hit.extend(process.searched.pc(at.pc).map(|m| m.function));

    let copy = StackCopy::new(at.sp, &stack).or(&memory);
    let walk = unwinder.walk(Registers::from_pc_sp(at.pc, at.sp), &copy).unwrap_or_else(|e| panic!("{e}"));
    let live = process.live(&walk);
    // The scan is a filter: what is live it finds, always.
    let missed: Vec<&u32> = live.difference(&hit).collect();
    assert!(missed.is_empty(), "process {pid}, thread {tid}: {missed:?}");
    // And both agree on where the stack ends: no frame lies above it.
    if let StackEnd::Proven(end) = outcome.end {
        assert!(ended && walk.frames.iter().all(|f| f.cfa <= end), "{walk:x?} above {end:#x}");
    }
    for function in hit.difference(&live).take(3) {
        let mut builder = SearchedBuilder::new();
        let range = process.searched.table();
        let index =
            (0..range.len()).find(|&i| process.searched.owners(i as u32).any(|m| m.function == *function));
        let interval = range[index.unwrap()];
        builder.add(1, Kind::Original, interval.first..interval.last);
        // What only the scan sees, the walk clears.
        assert!(matches!(examine(Ok(&walk), &builder.build()), Verdict::Clear(_)));
    }
    count.threads += 1;
    count.proven += usize::from(matches!(outcome.end, StackEnd::Proven(_)));
    count.hit += hit.len();
    count.live += live.len();
    count.words += words.len();
}

fn run(start: fn(bool) -> Option<Server>, looks: usize) {
    for load in [false, true] {
        let Some(server) = start(load) else { return };
        let mut count = Count::default();
        let end = Instant::now() + Duration::from_secs(60);
        while count.threads < looks && Instant::now() < end {
            for pid in server.pids() {
                let process = Process::new(pid);
                let mut unwinder = Unwinder::new(process.modules.as_slice(), Vec::new());
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
            per(count.words),
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
