//! Processes that cannot be patched, and commands that make no sense: one message each, and the
//! process as it was.

use std::process::{Command, Stdio};
use suture_tests::command::{apply, disable, suture, suture_as};
use suture_tests::poll::until_true;
use suture_tests::sys::{self, Tracer};
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Snapshot, Target, need};

/// A process id that no process has: that of a child which was reaped.
fn gone() -> i32 {
    let mut child = Command::new("true").spawn().expect("running true");
    child.wait().expect("a child");
    child.id().cast_signed()
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    suture::<&str>(&[]).expect(2);
    suture(&["frobnicate"]).expect(2);
    suture(&["apply", "x.so"]).expect(2);
    suture(&["apply", "x.so", "--pid", "0"]).expect(2);
    suture(&["apply", "x.so", "--pid", "-1"]).expect(2);
    suture(&["apply", "x.so", "--pid", "one"]).expect(2);
    suture(&["apply", "x.so", "--pid", "1", "--all"]).expect(2);
    suture(&["apply", "x.so", "--pid", "1", "--classes", "Q"]).expect(2);
    suture(&["--help"]).expect(0);
    suture(&["--version"]).expect(0);
}

#[test]
fn no_such_process() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let pid = gone();
    apply(&patch, pid).expect_refused_with_hint(&[&pid.to_string()]);
    disable("fix", pid).expect_refused_with_hint(&[&pid.to_string()]);
    suture(&["status", "--pid", &pid.to_string()]).expect_refused_with_hint(&[&pid.to_string()]);
    let name = ["apply", &patch.to_string_lossy(), "--name", "no-such-name"];
    suture(&name).expect_refused(&["no-such-name"]);
}

#[test]
fn a_zombie_is_no_process() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut child = Command::new("true").spawn().expect("running true");
    let pid = child.id().cast_signed();
    assert!(sys::ends_within(pid, suture_tests::poll::PATIENCE));
    apply(&patch, pid).expect_refused(&[&pid.to_string(), "ended"]);
    child.wait().expect("a child");
}

#[test]
fn a_process_without_the_runtime_has_nothing_to_show_or_disable() {
    let lab = Lab::new();
    let mut target = lab.start_with("spin.c", &["1"], Options { preload: false, ..Options::default() });
    let before = Snapshot::of(target.pid());
    let pid = target.pid_text();
    disable("fix", target.pid()).expect_refused_with_hint(&[&pid, "without the runtime"]);
    suture(&["status", "--pid", &pid]).expect_refused_with_hint(&[&pid, "without the runtime"]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.call(1), 2);
}

#[test]
fn a_kernel_thread() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    // kthreadd.
    apply(&patch, 2).expect_refused(&["2"]);
}

#[test]
fn somebody_elses_process() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_several();
    let before = Snapshot::of(target.pid());
    let pid = target.pid_text();
    let args = ["apply", &patch.to_string_lossy(), "--pid", &pid];
    suture_as(NOBODY, &args).expect_refused_with_hint(&[&pid, "not permitted", "another user"]);
    suture_as(NOBODY, &["disable", "fix", "--pid", &pid]).expect_refused(&[&pid, "not permitted"]);
    suture_as(NOBODY, &["status", "--pid", &pid]).expect_refused(&[&pid, "not permitted"]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.call(1), 2);
}

#[test]
fn an_own_process_needs_no_root() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_with("spin.c", &["1"], Options { user: Some(NOBODY), ..Options::default() });
    let args = ["apply", &patch.to_string_lossy(), "--pid", &target.pid_text()];
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if matches!(scope.trim(), "1" | "2" | "3") {
        // Yama is on: siblings may not be traced, and the message says who forbids it.
        suture_as(NOBODY, &args).expect_refused_with_hint(&["not permitted", "yama"]);
        return;
    }
    suture_as(NOBODY, &args).expect(0);
    assert_eq!(target.call(1), 101);
    suture_as(NOBODY, &["disable", "fix", "--pid", &target.pid_text()]).expect(0);
    assert_eq!(target.call(1), 2);
}

#[test]
fn a_process_under_another_tracer() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_several();
    {
        let _tracer = Tracer::seize(target.pid());
        let before = Snapshot::of(target.pid());
        apply(&patch, target.pid()).expect_refused_with_hint(&[&target.pid_text(), "traced", "detach"]);
        Snapshot::of(target.pid()).assert_untouched(&before);
    }
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn a_process_under_gdb() {
    need("gdb", "gdb");
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_several();
    // gdb waits on its standard input for what to do next.
    let mut gdb = Command::new("gdb");
    gdb.args([
        "-nx",
        "-q",
        "-iex",
        "set debuginfod enabled off",
        "-ex",
        "set confirm off",
        "-p",
        &target.pid_text(),
    ]);
    gdb.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    suture_tests::target::prepare(&mut gdb, Vec::new());
    let mut gdb = gdb.spawn().expect("starting gdb");
    let tracer = || suture_tests::snapshot::status_number(target.pid(), "TracerPid");
    until_true("gdb to attach", || tracer() == u64::from(gdb.id()));
    apply(&patch, target.pid()).expect_refused_with_hint(&["traced", "gdb"]);
    drop(gdb.stdin.take());
    gdb.wait().expect("gdb's end");
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn a_stopped_process() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let mut target = lab.start_several();
    let before = Snapshot::of(target.pid());
    sys::kill(target.pid(), libc::SIGSTOP);
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", target.pid())).unwrap_or_default();
    until_true("the target to stop", || state().contains(") T "));
    apply(&patch, target.pid()).expect_refused_with_hint(&[&target.pid_text(), "stopped", "-CONT"]);
    assert!(state().contains(") T "), "it must stay stopped");
    suture(&["status", "--pid", &target.pid_text()]).expect(0);
    sys::kill(target.pid(), libc::SIGCONT);
    until_true("the target to go on", || !state().contains(") T "));
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.call(1), 2);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn a_patch_that_is_not_there_cannot_be_disabled() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let before = Snapshot::of(target.pid());
    disable("nothing", target.pid()).expect_refused_with_hint(&["nothing", "not enabled"]);
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.call(1), 2);
}

#[test]
fn refusals_are_json_when_asked_for() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let pid = gone().to_string();
    let refused = suture(&["apply", &patch.to_string_lossy(), "--pid", &pid, "--json"]);
    let document = refused.expect(1).json();
    let error = &document["results"][0]["error"];
    assert_eq!((&document["schema"], &error["errno"]), (&1.into(), &"ESRCH".into()), "{document:#}");
    assert!(error["hint"].is_string() && error["message"].is_string(), "{document:#}");
}

#[test]
fn a_program_that_just_executed_another_is_not_mixed_up() {
    let lab = Lab::new();
    let patch = lab.value_patch("fix", 100);
    let program = lab.compile_target("spin.c", &[]);
    // The same process id: first a shell without the runtime's business, then the target.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo here; read line; exec \"$0\" 1", &program.to_string_lossy()]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = Target::spawn(command, &program, Options::default());
    assert_eq!(target.line(), "here");
    apply(&patch, target.pid()).expect_refused(&["value"]);
    target.tell("go");
    assert_eq!(target.line(), "ready");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
}

#[test]
fn what_the_runtime_redirects_for_itself_is_not_replaced() {
    let lab = Lab::new();
    let fix = lab.value_patch("fix", 100);
    let mut target = lab.start_several();
    let pid = target.pid();
    let before = Snapshot::of(pid);
    let refused = |function: &str| {
        let text = format!(
            "#include <suture.h>\n\
             static int patched(void) {{ return -1; }}\n\
             SUTURE_PATCH(\"own\", SUTURE_OBJECT(\"libc.so.6\", SUTURE_FUNC(\"{function}\", patched)));\n"
        );
        let patch = lab.patch("own", &text);
        apply(&patch, pid).expect_refused_with_hint(&[function, "the runtime redirects it"]);
        let json = suture(&["apply", &patch.to_string_lossy(), "--json", "--pid", &pid.to_string()]);
        assert_eq!(json.expect(1).json()["results"][0]["error"]["errno"], "EBUSY", "{}", json.stdout);
    };
    // Before it does so, and while it does.
    ["pthread_create", "_Fork"].iter().for_each(|f| refused(f));
    Snapshot::of(pid).assert_untouched(&before);
    apply(&fix, pid).expect(0);
    ["pthread_create", "_Fork"].iter().for_each(|f| refused(f));
    assert_eq!(target.call(1), 101);
}
