//! Walks real stacks of programs that were not built for it.

mod common;

use common::{Target, walk_bare};
use std::path::Path;
use suture_unwind::{Bottom, FrameKind, Module, Unreliable, Unwinder};

#[test]
fn a_blocked_program_is_walked_to_its_start() {
    let sleeps = libc::SYS_clock_nanosleep as u64;
    for (number, program, args) in [(sleeps, "/bin/sleep", &["60"][..]), (0, "/bin/cat", &[])] {
        let target = Target::start(Path::new(program), args);
        let at = target.blocked(target.pid(), number);
        let modules = target.modules();
        let walk = walk_bare(&mut Unwinder::new(&modules, Vec::new()), at, &target.memory()).unwrap();
        assert_eq!(walk.bottom, Bottom::ProcessStart);
        let frames = walk.frames;
        assert!(frames.len() >= 4, "{program}: {frames:?}");
        assert_eq!(frames[0].kind, FrameKind::Innermost);
        assert!(frames[1..].iter().all(|f| f.kind == FrameKind::Caller));
        assert!(frames.windows(2).all(|w| w[0].cfa < w[1].cfa), "{program}: {frames:?}");
        // The last frame is _start, in the executable.
        let last = frames[frames.len() - 1].pc;
        let main = modules.iter().find(|m| m.range().contains(&last)).unwrap();
        assert!(main.name.ends_with(program.rsplit('/').next().unwrap()), "{program} ends in {}", main.name);
    }
}

#[test]
fn what_cannot_be_walked_is_refused_with_the_reason() {
    let target = Target::start(Path::new("/bin/cat"), &[]);
    let at = target.reading();
    let all = target.modules();
    let walk = |modules: &[Module], pc, sp| {
        let at = common::Blocked { pc, sp, ..at };
        walk_bare(&mut Unwinder::new(modules, Vec::new()), at, &target.memory()).unwrap_err()
    };
    assert_eq!(walk(&all, 16, at.sp), Unreliable::NoModule { pc: 16 });
    assert!(matches!(walk(&all, at.pc, 64), Unreliable::Memory { .. }));
    // Without the executable's tables the walk must not stop silently in the middle.
    let without: Vec<Module> = all.into_iter().filter(|m| !m.name.ends_with("cat")).collect();
    assert!(matches!(walk(&without, at.pc, at.sp), Unreliable::NoModule { .. }));
}
