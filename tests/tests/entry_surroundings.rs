//! Processes in surroundings that make them hard to enter, each built for real. Either everything works, and
//! the process does not notice, or everything is refused with the reason, and the process is untouched.

use std::path::PathBuf;
use std::process::Command;
use suture_tests::command::{Outcome, apply, disable, suture, suture_as};
use suture_tests::sys::{self, SoftLimit};
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Snapshot, Target, lab, need, poll, report};

/// A target that was confined, and a patch for it.
struct Caged {
    target: Target,
    pid: i32,
    patch: PathBuf,
}

impl Caged {
    /// Starts `cage` with these words, unprepared.
    fn new(lab: &Lab, words: &[&str]) -> Self {
        Self::with(lab, words, Vec::new())
    }

    fn with(lab: &Lab, words: &[&str], limits: Vec<(u32, sys::Limit)>) -> Self {
        let program = lab.compile_target("cage.c", &[]);
        let options = Options { preload: false, limits, ..Options::default() };
        let target = Target::start(&program, words, options);
        let pid = if words.iter().any(|w| ["pidns", "noexec-memfd"].contains(w)) {
            target.children()[0]
        } else {
            target.pid()
        };
        Self { target, pid, patch: lab.value_patch("fix", 100) }
    }

    /// A program of another kind, already running.
    fn of(target: Target, lab: &Lab) -> Self {
        Self { pid: target.pid(), target, patch: lab.value_patch("fix", 100) }
    }

    fn suture(&self, command: &[&str]) -> Outcome {
        suture(&[command, &["--pid", &self.pid.to_string()]].concat())
    }

    /// It can be entered, patched, brought back and patched again, and notices nothing.
    #[track_caller]
    fn is_entered(&mut self) {
        let before = Snapshot::of(self.pid);
        let check = report::details(&self.suture(&["check", "--json"]).expect(0).json());
        assert_eq!(check["way"], "injectable", "{check:#}");
        Snapshot::of(self.pid).assert_untouched(&before);
        let injected = report::details(&self.suture(&["inject", "--json"]).expect(0).json());
        assert_eq!((&injected["injected"], &injected["stops"]), (&true.into(), &1.into()), "{injected:#}");
        Snapshot::of(self.pid).assert_same_program(&before);
        for _ in 0..2 {
            apply(&self.patch, self.pid).expect(0);
            assert_eq!(self.target.call(1), 101);
            disable("fix", self.pid).expect(0);
            assert_eq!(self.target.call(1), 2);
        }
        let check = report::details(&self.suture(&["check", "--json"]).expect(0).json());
        assert_eq!(check["way"], "injected", "{check:#}");
        Snapshot::of(self.pid).assert_same_program(&before);
    }

    /// Every way in is refused with all of `words`, before anything was touched.
    #[track_caller]
    fn is_refused(&mut self, words: &[&str]) {
        let before = Snapshot::of(self.pid);
        let file = self.patch.to_string_lossy().into_owned();
        for command in [["check"].as_slice(), &["inject"], &["apply", &file]] {
            self.suture(command).expect_refused(words);
            Snapshot::of(self.pid).assert_untouched(&before);
        }
        assert_eq!(self.target.call(1), 2);
    }
}

#[test]
fn another_user_that_is_not_dumpable() {
    let lab = Lab::new();
    Caged::new(&lab, &["user", "nodump"]).is_entered();
    Caged::new(&lab, &["thread", "user"]).is_entered();
}

#[test]
fn a_chroot_without_proc() {
    let lab = Lab::new();
    let empty = lab.path("empty");
    std::fs::create_dir(&empty).expect("a directory");
    let chroot = format!("chroot={}", empty.display());
    Caged::new(&lab, &[&chroot]).is_entered();
    Caged::new(&lab, &[&chroot, "user", "nodump"]).is_entered();
}

#[test]
fn namespaces_of_its_own() {
    let lab = Lab::new();
    for words in [["mounts"].as_slice(), &["userns"], &["pidns"], &["mounts", "pidns", "thread"]] {
        Caged::new(&lab, words).is_entered();
    }
}

#[test]
fn no_memfd_may_be_executable() {
    let lab = Lab::new();
    Caged::new(&lab, &["noexec-memfd", "thread"]).is_entered();
}

#[test]
fn nothing_writable_may_become_executable() {
    let lab = Lab::new();
    Caged::new(&lab, &["mdwe", "thread"]).is_entered();
}

#[test]
fn filters_that_let_the_runtime_work() {
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["thread", "service"]);
    caged.is_entered();
    // Several, and those that deny what nobody needs.
    let ptrace = format!("kill={}", libc::SYS_ptrace);
    let open = format!("deny={}:{}", libc::SYS_open, libc::EPERM);
    let mut caged = Caged::new(&lab, &[&ptrace, &open, "service"]);
    caged.is_entered();
    let check = report::details(&caged.suture(&["check", "--json"]).expect(0).json());
    assert_eq!(check["filtered"], true);
}

#[test]
fn a_filter_that_refuses_a_call_is_named() {
    let lab = Lab::new();
    for (nr, name) in [
        (libc::SYS_memfd_create, "memfd_create"),
        (libc::SYS_clone, "clone"),
        (libc::SYS_mmap, "mmap"),
        (libc::SYS_membarrier, "membarrier"),
        (libc::SYS_close_range, "close_range"),
        (libc::SYS_rt_sigpending, "rt_sigpending"),
        (libc::SYS_flock, "flock"),
        (libc::SYS_fstat, "fstat"),
    ] {
        for action in [format!("kill={nr}"), format!("deny={nr}:{}", libc::EPERM)] {
            Caged::new(&lab, &["thread", &action]).is_refused(&["seccomp", name]);
        }
    }
}

#[test]
fn strict_mode_lets_nobody_in() {
    let lab = Lab::new();
    Caged::new(&lab, &["strict"]).is_refused(&["seccomp", "strict"]);
}

#[test]
fn only_some_threads_are_filtered() {
    let lab = Lab::new();
    // The filter came after the thread, but is on it as well; a thread that made its own peace is asked
    // instead of one that would be killed.
    let mut target = lab.start_with("sandbox.c", &[], Options { preload: false, ..Options::default() });
    let patch = lab.value_patch("fix", 100);
    for _ in 0..10 {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
    }
}

#[test]
fn no_descriptor_is_left() {
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["thread"]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", caged.pid)).expect("descriptors").count() as u64;
    let limit = SoftLimit::lower(caged.pid, libc::RLIMIT_NOFILE, open);
    caged.is_entered();
    limit.lift();
    let mut caged = Caged::new(&lab, &["thread"]);
    let limit = SoftLimit::lower(caged.pid, libc::RLIMIT_NOFILE, 0);
    caged.is_refused(&["descriptor", "Too many open files", "RLIMIT_NOFILE"]);
    limit.lift();
    caged.is_entered();
}

#[test]
fn no_file_may_grow() {
    let lab = Lab::new();
    Caged::with(&lab, &["thread"], vec![(libc::RLIMIT_FSIZE, (0, 0))]).is_entered();
}

#[test]
fn no_thread_may_be_made() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let start = |limit: sys::Limit| {
        let limits = vec![(libc::RLIMIT_NPROC, limit)];
        lab.start_with(
            "memory.c",
            &[],
            Options { preload: false, user: Some(NOBODY), limits, ..Options::default() },
        )
    };
    // A user may lift the soft limit of an own process; it is back before the command has ended.
    let mut target = start((0, 4096));
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    let before = Snapshot::of(target.pid());
    for command in
        [["check"].as_slice(), &["inject"], &["apply", &file], &["disable", "fix"], &["apply", &file]]
    {
        suture_as(NOBODY, &[command, &["--pid", &pid]].concat()).expect(0);
        Snapshot::of(target.pid()).assert_same_program(&before);
    }
    assert_eq!((target.call(1), sys::limit(target.pid(), libc::RLIMIT_NPROC)), (101, (0, 4096)));
    // The hard one takes a capability that containers do not have.
    let target = start((0, 0));
    let mut caged = Caged::of(target, &lab);
    if sys::may_raise_limits() {
        caged.is_entered();
        assert_eq!(sys::limit(caged.pid, libc::RLIMIT_NPROC), (0, 0));
    } else {
        let before = Snapshot::of(caged.pid);
        for command in [["check"].as_slice(), &["inject"]] {
            caged.suture(command).expect_refused_with_hint(&["no thread can be made", "RLIMIT_NPROC"]);
            Snapshot::of(caged.pid).assert_untouched(&before);
        }
        apply(&caged.patch, caged.pid).expect_refused_with_hint(&["no thread can be made", "RLIMIT_NPROC"]);
        Snapshot::of(caged.pid).assert_same_program(&before);
    }
}

#[test]
fn all_memory_is_locked() {
    let lab = Lab::new();
    Caged::new(&lab, &["thread", "mlock"]).is_entered();
    // The rest of what may be locked is less than the runtime: refused when it does not fit.
    // (The limit does not hold for who may lock memory, so another user's process it is.)
    let locks = Options { preload: false, user: Some(NOBODY), ..Options::default() };
    let target = Target::start(&lab.compile_target("cage.c", &[]), &["mlock"], locks);
    let mut caged = Caged::of(target, &lab);
    let before = Snapshot::of(caged.pid);
    let locked = suture_tests::snapshot::status_number(caged.pid, "VmLck") << 10;
    let (_, hard) = sys::limit(caged.pid, libc::RLIMIT_MEMLOCK);
    sys::limit_as(NOBODY, caged.pid, &format!("--memlock={}:{hard}", locked + 8192));
    caged.suture(&["inject"]).expect_refused_with_hint(&["mmap", "MEMLOCK"]);
    sys::limit_as(NOBODY, caged.pid, &format!("--memlock={hard}:{hard}"));
    Snapshot::of(caged.pid).assert_same_program(&before);
    caged.is_entered();
}

#[test]
fn no_address_space_is_left() {
    let lab = Lab::new();
    for spare in [0, 32 << 10, 100 << 10] {
        let mut caged = Caged::new(&lab, &["thread"]);
        let used = suture_tests::snapshot::status_number(caged.pid, "VmSize") << 10;
        let limit = SoftLimit::lower(caged.pid, libc::RLIMIT_AS, used + spare);
        let before = Snapshot::of(caged.pid);
        let refused = caged.suture(&["inject"]);
        refused.expect_refused_with_hint(&["mmap", "Cannot allocate memory", "RLIMIT_AS"]);
        Snapshot::of(caged.pid).assert_same_program(&before);
        limit.lift();
        caged.is_entered();
    }
}

#[test]
fn programs_that_use_every_signal() {
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["rtsignals", "thread"]);
    caged.is_entered();
    assert_eq!(caged.target.ask("handled"), "handled 0", "no signal was sent");
    for signal in 34..=64 {
        sys::kill(caged.pid, signal);
    }
    poll::until_true("31 signals", || caged.target.ask("handled") == "handled 31");
}

#[test]
fn programs_with_an_alternate_stack() {
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["altstack"]);
    caged.is_entered();
    sys::kill(caged.pid, libc::SIGUSR1);
    poll::until_true("the handler", || caged.target.ask("handled") == "handled 1");
}

#[test]
fn threads_that_the_kernel_made_are_left_alone() {
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["uring"]);
    let names: Vec<String> = Snapshot::of(caged.pid).threads.values().map(|(name, _)| name.clone()).collect();
    let made = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
    assert!(made("iou-sqp") && made("iou-wrk"), "{names:?}");
    caged.is_entered();
}

#[test]
fn static_programs_are_refused() {
    let lab = Lab::new();
    let program = lab.compile_target("spin.c", &["-static"]);
    let target = Target::start(&program, &["1"], Options { preload: false, ..Options::default() });
    Caged::of(target, &lab).is_refused(&["statically linked"]);
}

#[test]
fn programs_of_another_c_library() {
    need("musl-gcc", "musl-tools");
    let lab = Lab::new();
    let program = lab.compile_with("musl-gcc", "spin.c", &[]);
    let target = Target::start(&program, &["1"], Options { preload: false, ..Options::default() });
    Caged::of(target, &lab).is_entered();
    let program = lab.compile_with("musl-gcc", "spin.c", &["-static"]);
    let target = Target::start(&program, &["1"], Options { preload: false, ..Options::default() });
    Caged::of(target, &lab).is_refused(&["statically linked"]);
}

#[test]
fn programs_of_32_bits_are_refused() {
    let lab = Lab::new();
    // Without any library, so that the compiler alone is enough to build it.
    let source = lab.write("narrow.c", NARROW);
    let program = lab.path("narrow");
    lab::compile(&source, &program, &["-m32", "-O2", "-static", "-nostdlib", "-fno-pic", "-no-pie"]);
    let target = Target::start(&program, &[], Options { preload: false, ..Options::default() });
    Caged::of(target, &lab).is_refused(&["32-bit"]);
}

/// Answers `call 1` with 2, whatever it is asked, and ends with its input.
const NARROW: &str = "\
    static long call(long nr, long a, const void *b, long c)\n\
    { long r; __asm__ volatile(\"int $0x80\" : \"=a\"(r) : \"a\"(nr), \"b\"(a), \"c\"(b), \"d\"(c) : \"memory\"); return r; }\n\
    static void say(const char *text, long length) { call(4, 1, text, length); }\n\
    void _start(void)\n\
    { static char line[64]; say(\"ready\\n\", 6);\n\
      while (call(3, 0, line, sizeof line) > 0) say(\"call 1 = 2\\n\", 11);\n\
      call(1, 0, 0, 0); }\n";

#[test]
fn set_user_id_programs_are_roots_to_enter() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let program = lab.compile_target("spin.c", &[]);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).expect("chmod");
    let options = Options { preload: false, user: Some(NOBODY), ..Options::default() };
    let mut target = Target::start(&program, &["1"], options);
    let patch = lab.value_patch("fix", 100);
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    let before = Snapshot::of(target.pid());
    for command in [["check"].as_slice(), &["inject"], &["apply", &file]] {
        let args = [command, &["--pid", &pid]].concat();
        suture_as(NOBODY, &args).expect_refused_with_hint(&["not permitted", "set-user-ID", "root"]);
    }
    Snapshot::of(target.pid()).assert_untouched(&before);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn strace_is_named_as_the_tracer() {
    need("strace", "strace");
    let lab = Lab::new();
    let mut caged = Caged::new(&lab, &["thread"]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-e", "trace=none", "-o", "/dev/null", "-p", &caged.pid.to_string()]);
    suture_tests::target::prepare(&mut strace, Vec::new());
    let mut strace = strace.spawn().expect("starting strace");
    let tracer = || suture_tests::snapshot::status_number(caged.pid, "TracerPid");
    poll::until_true("strace to attach", || tracer() == u64::from(strace.id()));
    caged.is_refused(&["traced", "strace"]);
    strace.kill().expect("killing strace");
    strace.wait().expect("strace's end");
    caged.is_entered();
}
