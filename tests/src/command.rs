//! Running `suture`, and judging what it says.

use crate::dist::dist;
use crate::sys::{self, Forbidden};
use crate::target::{before_exec, prepare};
use serde_json::Value;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

/// No run of the command takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A run of the command that has ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The arguments, for messages.
    pub args: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A run of the command.
#[derive(Debug)]
pub struct Running {
    args: String,
    child: Child,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

/// Runs `suture` to its end.
///
/// # Panics
/// When it does not end.
pub fn suture<S: AsRef<str>>(args: &[S]) -> Outcome {
    start(args, None).finish()
}

/// Runs `suture` as another user, without any capability.
///
/// # Panics
/// When it does not end.
pub fn suture_as<S: AsRef<str>>(user: u32, args: &[S]) -> Outcome {
    start(args, Some(user)).finish()
}

/// Runs `suture` with some ways of writing into code closed to it.
///
/// # Panics
/// When it does not end.
pub fn suture_without<S: AsRef<str>>(what: Forbidden, args: &[S]) -> Outcome {
    spawn(args, None, |command| before_exec(command, move || sys::forbid(what))).finish()
}

/// Starts `suture`.
///
/// # Panics
/// When it cannot be started.
pub fn start<S: AsRef<str>>(args: &[S], user: Option<u32>) -> Running {
    spawn(args, user, |_| {})
}

/// Runs `suture` with another standard output.
///
/// # Panics
/// When it does not end.
pub fn suture_into<S: AsRef<str>>(output: Stdio, args: &[S]) -> Outcome {
    spawn(args, None, |command| _ = command.stdout(output)).finish()
}

fn spawn<S: AsRef<str>>(args: &[S], user: Option<u32>, more: impl FnOnce(&mut Command)) -> Running {
    let mut command = Command::new(&dist().suture);
    command.args(args.iter().map(AsRef::as_ref));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    prepare(&mut command, Vec::new());
    more(&mut command);
    let mut child = command.spawn().expect("starting suture");
    let args = args.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(" ");
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    Running { args, child, stdout, stderr }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe leaves what was read so far, which the test then judges.
        let _ = pipe.map(|mut p| p.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in a minute.
    pub fn finish(mut self) -> Outcome {
        let in_time = sys::ends_within(self.pid(), LIMIT);
        if !in_time {
            let _ = self.child.kill();
        }
        let status = self.child.wait().expect("a child");
        let stdout = self.stdout.join().expect("a reader that does not panic");
        let stderr = self.stderr.join().expect("a reader that does not panic");
        assert!(in_time, "suture {} hangs; it said:\n{stdout}{stderr}", self.args);
        Outcome { args: self.args, status, stdout, stderr }
    }
}

impl Outcome {
    /// Exit status, −1 if a signal ended it.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Fails unless the command ended with this status.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(
            self.status.code(),
            Some(code),
            "suture {}: {} (signal {:?}), said:\n{}{}",
            self.args,
            self.status,
            self.status.signal(),
            self.stdout,
            self.stderr
        );
        self
    }

    /// Fails unless the command was refused with status 1 and exactly one message, which has all of
    /// `words` in it (the hint included).
    ///
    /// # Panics
    /// When it was not.
    #[track_caller]
    pub fn expect_refused(&self, words: &[&str]) -> &Self {
        self.expect(1);
        let said = &self.stderr;
        let messages = said.lines().filter(|l| l.starts_with("suture: ")).count();
        assert_eq!(messages, 1, "suture {}: not one message but:\n{said}", self.args);
        assert!(!said.contains("panicked"), "suture {}: panicked:\n{said}", self.args);
        for word in words {
            assert!(said.contains(word), "suture {}: nothing about {word:?} in:\n{said}", self.args);
        }
        self
    }

    /// As [`Outcome::expect_refused`]; also asks for a hint, on a line of its own.
    ///
    /// # Panics
    /// When there is none.
    #[track_caller]
    pub fn expect_refused_with_hint(&self, words: &[&str]) -> &Self {
        self.expect_refused(words);
        let hint = self.stderr.lines().any(|l| l.trim_start().starts_with("try: "));
        assert!(hint, "suture {}: does not say what to do:\n{}", self.args, self.stderr);
        self
    }

    /// errno and message with which `suture --json` was refused.
    ///
    /// # Panics
    /// When it was not.
    #[must_use]
    #[track_caller]
    pub fn refusal(&self) -> (String, String) {
        let document = self.expect(1).json();
        let error = &document["results"][0]["error"];
        let error = if error.is_null() { &document["error"] } else { error };
        let field = |name: &str| error[name].as_str().unwrap_or_else(|| panic!("{document:#}")).to_owned();
        (field("errno"), field("message"))
    }

    /// The JSON document on standard output.
    ///
    /// # Panics
    /// When there is not exactly one.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| {
            panic!("suture {}: no JSON document ({e}):\n{}{}", self.args, self.stdout, self.stderr)
        })
    }
}

/// `suture apply PATCH --pid PID`.
///
/// # Panics
/// When it does not end.
pub fn apply(patch: &Path, pid: i32) -> Outcome {
    suture(&["apply", &patch.to_string_lossy(), "--pid", &pid.to_string()])
}

/// `suture disable NAME --pid PID`.
///
/// # Panics
/// When it does not end.
pub fn disable(name: &str, pid: i32) -> Outcome {
    suture(&["disable", name, "--pid", &pid.to_string()])
}

/// `suture COMMAND WHAT --pid PID`, and more.
///
/// # Panics
/// When it does not end.
pub fn on(command: &str, what: &str, pid: i32, more: &[&str]) -> Outcome {
    suture(&[&[command, what, "--pid", &pid.to_string()], more].concat())
}

/// The same for a JSON document: `suture ARGS --json --pid PID`.
///
/// # Panics
/// When it does not end.
pub fn run(args: &[&str], pid: i32) -> Outcome {
    suture(&[args, &["--json", "--pid", &pid.to_string()]].concat())
}

/// What `suture get PATH --pid PID` says, which must succeed.
///
/// # Panics
/// When it does not.
#[must_use]
#[track_caller]
pub fn get(path: &str, pid: i32) -> String {
    let outcome = on("get", path, pid, &[]);
    outcome.expect(0);
    outcome.stdout.trim_end().to_owned()
}

/// `suture set PATH VALUE --pid PID`, which must succeed.
///
/// # Panics
/// When it does not.
#[track_caller]
pub fn set(path: &str, value: &str, pid: i32) {
    run(&["set", path, value], pid).expect(0);
}
