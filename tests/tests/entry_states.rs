//! Processes that do not run, run without their main thread, or become another program in the middle.

use std::fs;
use std::path::{Path, PathBuf};
use suture_tests::command::{Outcome, apply, disable, start, suture};
use suture_tests::sys::{self, Tracer};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, poll, repeat, report, snapshot};

fn unprepared() -> Options {
    Options { preload: false, ..Options::default() }
}

/// Every way in is refused with all of `words`, at once, and the process is untouched.
fn is_refused(target: &Target, patch: &Path, words: &[&str]) {
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    let before = Snapshot::of(target.pid());
    for command in [["check"].as_slice(), &["inject"], &["apply", &file]] {
        suture(&[command, &["--pid", &pid]].concat()).expect_refused_with_hint(words);
        Snapshot::of(target.pid()).assert_untouched(&before);
    }
}

/// It is entered, patched and brought back.
fn is_entered(target: &mut Target, patch: &Path) {
    let applied = apply(patch, target.pid());
    assert!(target.alive(), "{}: {}", target.fate(), applied.stderr);
    applied.expect(0);
    assert_eq!(target.call(1), 101);
    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
}

#[test]
fn a_stopped_process_is_reported() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for options in [unprepared(), Options::default()] {
        let mut target = lab.start_with("threads.c", &["3", "1"], options);
        let before = Snapshot::of(target.pid());
        sys::kill(target.pid(), libc::SIGSTOP);
        let is_stopped = || snapshot::states(target.pid()).iter().all(|s| *s == 'T');
        poll::until_true("the target to stop", is_stopped);
        is_refused(&target, &patch, &["stopped", "-CONT"]);
        assert!(is_stopped(), "it must stay stopped");
        sys::kill(target.pid(), libc::SIGCONT);
        poll::until_true("the target to go on", || !is_stopped());
        is_entered(&mut target, &patch);
        Snapshot::of(target.pid()).assert_same_program(&before);
    }
}

/// A control group in a hierarchy with a freezer; removed when dropped.
struct Freezer {
    folder: PathBuf,
    /// Control file, and what freezes and thaws.
    file: &'static str,
    words: [&'static str; 2],
}

impl Freezer {
    /// All kinds of freezers that this machine has mounted.
    fn all(name: &str) -> Vec<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let make = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            let folder = Path::new(words[1]).join(format!("suture-test-{name}-{}", std::process::id()));
            let (file, words) = match words[2] {
                "cgroup2" => ("cgroup.freeze", ["1", "0"]),
                "cgroup" if words[3].split(',').any(|o| o == "freezer") => {
                    ("freezer.state", ["FROZEN", "THAWED"])
                }
                _ => return None,
            };
            fs::create_dir(&folder).ok()?;
            Some(Self { folder, file, words })
        };
        let found: Vec<Self> = mounts.lines().filter_map(make).collect();
        assert!(!found.is_empty(), "no freezer: mount one, for instance: mount -t cgroup2 none /mnt");
        found
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.folder.join(file);
        fs::write(&path, text).unwrap_or_else(|e| panic!("cannot write {text} to {}: {e}", path.display()));
    }

    fn freeze(&self) {
        self.write(self.file, self.words[0]);
        poll::until_true("the group to be frozen", || {
            let read = |file: &str| fs::read_to_string(self.folder.join(file)).unwrap_or_default();
            read("cgroup.events").contains("frozen 1") || read("freezer.state").trim() == "FROZEN"
        });
    }

    fn thaw(&self) {
        self.write(self.file, self.words[1]);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.folder.join(self.file), self.words[1]);
        // The target is gone by now; if not, the folder stays for the administrator to see.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn a_frozen_process_is_reported() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    for freezer in Freezer::all("state") {
        let mut target = lab.start_with("threads.c", &["3", "1"], unprepared());
        freezer.write("cgroup.procs", &target.pid_text());
        freezer.freeze();
        is_refused(&target, &patch, &["frozen", "suture-test-state", "thaw"]);
        freezer.thaw();
        is_entered(&mut target, &patch);
        drop(target);
    }
}

/// Stops a process in the middle of an apply, by what `stop` does; the command must end, and the process
/// must be whole when it goes on.
fn in_the_middle(stop: impl Fn(&Target), go_on: impl Fn(&Target), words: &str) {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy().into_owned();
    let program = lab.compile_target("threads.c", &[]);
    let mut refused = 0;
    for round in 0..repeat(20, 200) {
        let mut target = Target::start(&program, &["3", "1"], unprepared());
        let running = start(&["apply", &file, "--pid", &target.pid_text()], None);
        // Moments spread over the time that the first apply takes.
        let begun = std::time::Instant::now();
        let moment = std::time::Duration::from_micros(1500 * (round as u64 % 20));
        while begun.elapsed() < moment {
            std::hint::spin_loop();
        }
        stop(&target);
        let done: Outcome = running.finish();
        go_on(&target);
        if done.code() != 0 {
            done.expect_refused(&[words]);
            refused += 1;
        }
        // What the command left behind is gone, or finished, or taken over.
        assert!(target.alive(), "round {round}: {}", target.fate());
        let patched = report::patched_at_last(target.pid(), "fix");
        assert_eq!(target.call(1), if patched { 101 } else { 2 }, "round {round}");
        if patched {
            disable("fix", target.pid()).expect(0);
        }
        is_entered(&mut target, &patch);
        assert!(target.alive(), "round {round}");
    }
    println!("{refused} applies were refused in the middle");
    assert!(refused > 0, "no apply was met in the middle");
}

#[test]
fn a_process_stopped_in_the_middle() {
    in_the_middle(
        |target| sys::kill(target.pid(), libc::SIGSTOP),
        |target| sys::kill(target.pid(), libc::SIGCONT),
        "stopped",
    );
}

#[test]
fn a_process_frozen_in_the_middle() {
    let freezers = Freezer::all("middle");
    let freezer = &freezers[0];
    in_the_middle(
        |target| {
            freezer.write("cgroup.procs", &target.pid_text());
            freezer.freeze();
        },
        |_| freezer.thaw(),
        "frozen",
    );
}

#[test]
fn a_process_without_its_main_thread() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("mainexit.c", &[], unprepared());
    let before = snapshot::threads(target.pid());
    let check = suture(&["check", "--json", "--pid", &target.pid_text()]);
    assert_eq!(report::details(&check.expect(0).json())["way"], "injectable");
    for _ in 0..5 {
        is_entered(&mut target, &patch);
    }
    assert_eq!(snapshot::threads(target.pid()), before);
}

#[test]
fn a_tracer_on_some_threads_only() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("threads.c", &["3", "0"], unprepared());
    let tids: Vec<i32> = snapshot::threads(target.pid()).into_keys().collect();
    {
        // All but the main thread.
        let _tracers: Vec<Tracer> = tids[1..].iter().map(|tid| Tracer::seize(*tid)).collect();
        is_entered(&mut target, &patch);
    }
    {
        // All but one that is not the main thread: refused at once, by name, since nobody looks for more.
        let _tracers: Vec<Tracer> = tids[..3].iter().map(|tid| Tracer::seize(*tid)).collect();
        let refused = apply(&patch, target.pid());
        refused.expect_refused_with_hint(&["traced", "detach"]);
    }
    is_entered(&mut target, &patch);
}

#[test]
fn a_program_that_executes_others_all_the_time() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let file = patch.to_string_lossy().into_owned();
    let program = lab.compile_target("execs.c", &[]);
    // Without address randomisation every address of one program is good in the next: what is written to a
    // process by its number lands in a living program.
    let mut applied = 0;
    for pause in ["0", "3000", "30000"] {
        let target = Target::start(&program, &[pause, "2"], unprepared());
        for round in 0..repeat(60, 600) {
            let done = suture(&["apply", &file, "--pid", &target.pid_text()]);
            applied += usize::from(done.code() == 0);
            assert!(matches!(done.code(), 0 | 1), "round {round}: {}", done.stderr);
            assert!(!done.stderr.contains("panicked"), "round {round}: {}", done.stderr);
            assert!(target.alive(), "round {round}: killed: {}", done.stderr);
        }
        // It ends by itself, with 0 unless a word of its stack was written by somebody else.
        assert!(target.finish().success());
    }
    println!("{applied} applies came through between two execs");
}
