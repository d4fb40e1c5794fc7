//! Threads of distribution servers, idle and busy: walked with two registers as with all.

mod common;

use common::servers::{self, Server};
use common::{Stopped, blocked, modules, threads};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use suture_elf::{Addr, Memory};
use suture_scan::proc::{Stat, Syscall};
use suture_unwind::{Module, Registers, StackCopy, Unwinder, Walk};

/// What came of one server's threads.
#[derive(Debug, Default)]
struct Count {
    /// Threads found in a system call.
    blocked: usize,
    /// Of those, walked with all registers.
    full: usize,
    /// Walked with two, to the same frames.
    bare: usize,
    /// Frames of those, and of them with a computed height.
    frames: usize,
    heights: usize,
    /// Threads stopped elsewhere, walked with all registers, and with two.
    running: usize,
    running_full: usize,
    running_bare: usize,
    /// Why walks were refused.
    refused: BTreeMap<String, usize>,
}

impl Count {
    fn refuse(&mut self, how: &str, why: &suture_unwind::Unreliable, modules: &[Module]) {
        let text = why.to_string();
        // Without addresses, with names.
        let at = text.split("0x").nth(1).and_then(|h| {
            let digits: String = h.chars().take_while(char::is_ascii_hexdigit).collect();
            u64::from_str_radix(&digits, 16).ok()
        });
        let place = at.and_then(|at| {
            let module = modules.iter().find(|m| m.range().contains(&at))?;
            let file = module.name.rsplit('/').next()?;
            Some(format!("{file}+{:#x} {}", at - module.base.0, module.symbol_at(at).unwrap_or_default()))
        });
        let words: Vec<&str> = text.split_whitespace().filter(|w| !w.starts_with("0x")).collect();
        *self
            .refused
            .entry(format!("{how}: {} [{}]", words.join(" "), place.unwrap_or_default()))
            .or_default() += 1;
    }
}

fn key(walk: &Walk) -> Vec<(u64, u64, suture_unwind::FrameKind)> {
    walk.frames.iter().map(|f| (f.pc, f.cfa, f.kind)).collect()
}

fn look(pid: i32, tid: i32, unwinder: &mut Unwinder<&[Module]>, count: &mut Count) {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/task/{tid}/{name}")).ok();
    let Some(stat) = read("stat").and_then(|s| Stat::parse(&s)) else { return };
    // What a tracer must not touch: threads of the kernel, and those that would not stop.
    let shares = read("syscall").and_then(|s| Syscall::parse(&s)).is_some_and(|s| s.shares_itself());
    if stat.is_kernel_made() || stat.is_dead() || stat.state == b'D' || shares {
        return;
    }
    let before = blocked(pid, tid);
    let Some(stopped) = Stopped::stop(tid) else { return };
    let (sp, pc) = (stopped.raw.rsp, stopped.raw.rip);
    let memory = common::Remote(pid);
    let stack = (1..=4).rev().find_map(|n| memory.read_vec(Addr(sp), n << 14).ok()).unwrap_or_default();
    let copy = StackCopy::new(sp, &stack).or(&memory);
    let was_blocked = before.is_some_and(|b| (b.sp, b.pc) == (sp, pc));
    let full = unwinder.walk(stopped.registers, &copy);
    let bare = unwinder.walk(Registers::from_pc_sp(pc, sp), &copy);
    if let (Ok(full), Ok(bare)) = (&full, &bare) {
        assert_eq!(key(full), key(bare), "process {pid}, thread {tid}");
        assert_eq!(full.bottom, bare.bottom);
    }
    let how = if was_blocked { "blocked" } else { "elsewhere" };
    let modules = unwinder.modules();
    match (&full, &bare) {
        (Err(why), _) => count.refuse(&format!("{how}, all registers"), why, modules),
        (_, Err(why)) => count.refuse(&format!("{how}, two"), why, modules),
        _ => {}
    }
    if was_blocked {
        count.blocked += 1;
        count.full += usize::from(full.is_ok());
        count.bare += usize::from(full.is_ok() && bare.is_ok());
        if let Ok(bare) = bare {
            count.frames += bare.frames.len();
            count.heights += bare.frames.iter().filter(|f| f.by_height).count();
        }
    } else {
        count.running += 1;
        count.running_full += usize::from(full.is_ok());
        count.running_bare += usize::from(full.is_ok() && bare.is_ok());
    }
}

/// Blocked threads that a run must have looked at to say anything.
const FEWEST: usize = 11;

/// Looks at all threads again and again: at so many, of which some are blocked.
fn sample(server: &Server, looks: usize, patience: Duration) -> Count {
    let mut count = Count::default();
    let end = Instant::now() + patience;
    let enough = |count: &Count| count.blocked + count.running >= looks && count.blocked >= FEWEST;
    while !enough(&count) && Instant::now() < end {
        for pid in server.pids() {
            let modules = modules(pid);
            let mut unwinder = Unwinder::new(modules.as_slice(), Vec::new());
            for _ in 0..4 {
                threads(pid).into_iter().for_each(|tid| look(pid, tid, &mut unwinder, &mut count));
            }
        }
    }
    count
}

fn run(start: fn(bool) -> Option<Server>, looks: usize) {
    for load in [false, true] {
        let Some(server) = start(load) else { return };
        let count = sample(&server, if load { looks } else { looks / 8 }, Duration::from_secs(60));
        println!(
            "{} {}: {} blocked threads, {} walked with all registers, {} with two; {} frames, {} by height; \
             elsewhere {}, {} with all, {} with two",
            server.name,
            if load { "busy" } else { "idle" },
            count.blocked,
            count.full,
            count.bare,
            count.frames,
            count.heights,
            count.running,
            count.running_full,
            count.running_bare,
        );
        count.refused.iter().for_each(|(why, n)| println!("    {n} × {why}"));
        assert!(count.blocked >= FEWEST, "{count:?}");
        assert_eq!(count.bare, count.full, "what all registers can, two can: {count:#?}");
        assert_eq!(count.full, count.blocked, "{count:#?}");
    }
}

/// Threads looked at; `SUTURE_LOOKS` makes it more.
fn looks() -> usize {
    std::env::var("SUTURE_LOOKS").ok().and_then(|n| n.parse().ok()).unwrap_or(160)
}

#[test]
fn redis() {
    run(servers::redis, looks());
}

#[test]
fn nginx() {
    run(servers::nginx, looks());
}

#[test]
fn postgres() {
    run(servers::postgres, looks());
}

#[test]
fn gdb() {
    run(servers::gdb, looks());
}

#[test]
fn python() {
    run(servers::python, looks());
}

#[test]
fn mariadb() {
    run(servers::mariadb, 4 * looks());
}
