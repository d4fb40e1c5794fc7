//! A running target: asked in lines, answered in lines, never waited for by time.

use crate::code;
use crate::lab::runtime;
use crate::poll::{self, PATIENCE};
use crate::{snapshot, sys};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};

/// How a target is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Preload the runtime.
    pub preload: bool,
    /// Run as this user and group.
    pub user: Option<u32>,
    /// Limits set before the program starts, as (resource, limit).
    pub limits: Vec<(u32, sys::Limit)>,
    /// May not make its memory writable and executable.
    pub mdwe: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { preload: true, user: None, limits: Vec::new(), mdwe: false }
    }
}

/// User and group `nobody`/`nogroup` of Debian.
pub const NOBODY: u32 = 65534;

/// A running target, killed when dropped.
#[derive(Debug)]
pub struct Target {
    child: Child,
    program: PathBuf,
    questions: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Target {
    /// Starts a program and waits for its `ready`.
    ///
    /// # Panics
    /// When it does not come.
    pub fn start(program: &Path, args: &[&str], options: Options) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let target = Self::spawn(command, program, options);
        assert_eq!(target.line(), "ready", "first line of {}", program.display());
        // libc makes threads with everything blocked, its own two signals too, and lets them unblock
        // themselves: not before that is over do snapshots show what the program asked for.
        // (Those that the kernel makes for io_uring stay that way.)
        let starting = |(name, mask): &(String, String)| {
            mask.ends_with("bfeff") && mask.starts_with("ffffffff") && !name.starts_with("iou-")
        };
        poll::until_true("all threads to have started", || {
            !snapshot::threads(target.pid()).values().any(starting)
        });
        target
    }

    /// Starts a command line with piped standard input and output; waits for nothing.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(mut command: Command, program: &Path, options: Options) -> Self {
        if options.preload {
            command.env("LD_PRELOAD", runtime());
        }
        if let Some(user) = options.user {
            command.uid(user).gid(user);
        }
        prepare(&mut command, options.limits);
        if options.mdwe {
            before_exec(&mut command, sys::refuse_exec_gain);
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()));
        let questions = child.stdin.take();
        let (send, answers) = channel();
        let lines = BufReader::new(child.stdout.take().expect("standard output was asked for"));
        // Ends with the pipe, that is with the target.
        std::thread::spawn(move || {
            lines
                .lines()
                .map_while(Result::ok)
                .take_while(|line| send.send(line.clone()).is_ok())
                .for_each(drop);
        });
        let program = program.canonicalize().unwrap_or_else(|_| program.to_owned());
        Self { child, program, questions, answers }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Process id, as an argument.
    #[must_use]
    pub fn pid_text(&self) -> String {
        self.pid().to_string()
    }

    /// Process ids of its children, whichever of its threads made them.
    #[must_use]
    pub fn children(&self) -> Vec<i32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten();
        let lists =
            threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("children")).ok());
        lists
            .flat_map(|list| {
                list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
            })
            .collect()
    }

    /// The program's file.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Asks without waiting for the answer.
    ///
    /// # Panics
    /// When the target does not listen any more.
    pub fn tell(&mut self, question: &str) {
        let questions = self.questions.as_mut().expect("the target still listens");
        writeln!(questions, "{question}").unwrap_or_else(|e| panic!("target is gone at {question:?}: {e}"));
    }

    /// The next line.
    ///
    /// # Panics
    /// When the target ended or does not answer.
    #[must_use]
    pub fn line(&self) -> String {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("process {} does not answer", self.pid()),
            Err(RecvTimeoutError::Disconnected) => panic!("process {} ended: {}", self.pid(), self.fate()),
        }
    }

    /// The next line, if it has come already.
    ///
    /// # Panics
    /// When the target ended.
    #[must_use]
    pub fn line_now(&self) -> Option<String> {
        match self.answers.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("process {} ended: {}", self.pid(), self.fate()),
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Panics
    /// As [`Target::line`].
    pub fn ask(&mut self, question: &str) -> String {
        self.tell(question);
        self.line()
    }

    /// What `value(n)` returns in the target.
    ///
    /// # Panics
    /// As [`Target::line`], and when the answer is no number.
    pub fn call(&mut self, n: i64) -> i64 {
        let answer = self.ask(&format!("call {n}"));
        let result = answer.strip_prefix(&format!("call {n} = ")).and_then(|r| r.parse().ok());
        result.unwrap_or_else(|| panic!("odd answer {answer:?}"))
    }

    /// The number behind a word of an answer: `number("calls 3 old 1", "old")` is 1.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn number(answer: &str, word: &str) -> i64 {
        let mut words = answer.split(' ').skip_while(|w| *w != word);
        let number = words.nth(1).and_then(|n| n.parse().ok());
        number.unwrap_or_else(|| panic!("no number for {word:?} in {answer:?}"))
    }

    /// Whether it lives: any thread of it, the first one may have left.
    #[must_use]
    pub fn alive(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let lives = |stat: String| stat.rsplit(") ").next().is_some_and(|s| !s.starts_with(['Z', 'X']));
        tasks.into_iter().any(|task| std::fs::read_to_string(task.path().join("stat")).is_ok_and(lives))
    }

    /// Live bytes at the entry of a function of the program.
    ///
    /// # Panics
    /// When there is no such function.
    #[must_use]
    pub fn entry(&self, function: &str) -> Vec<u8> {
        code::live_entry(self.pid(), &self.program, function)
    }

    /// The same bytes in the file.
    ///
    /// # Panics
    /// When there is no such function.
    #[must_use]
    pub fn file_entry(&self, function: &str) -> Vec<u8> {
        code::file_entry(&self.program, function)
    }

    /// Lets it end by itself (end of its input) and gives its status.
    ///
    /// # Panics
    /// When it does not end.
    pub fn finish(mut self) -> ExitStatus {
        drop(self.questions.take());
        assert!(sys::ends_within(self.pid(), PATIENCE), "process {} does not end", self.pid());
        self.child.wait().expect("a child")
    }

    /// How it ended.
    #[must_use]
    pub fn fate(&self) -> String {
        // Unreaped: the status is in the last field of its stat line.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        let code = stat.split_ascii_whitespace().last().and_then(|c| c.parse().ok());
        code.map_or_else(|| "status unknown".into(), |c| ExitStatus::from_raw(c).to_string())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ties a child to its test and sets limits.
#[allow(unsafe_code)]
pub fn prepare(command: &mut Command, limits: Vec<(u32, sys::Limit)>) {
    // SAFETY: between fork and exec only prctl and prlimit are called, on memory that was made
    // before; both are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            sys::die_with_parent()?;
            limits.iter().try_for_each(|&(resource, limit)| sys::set_limit(0, resource, limit))
        });
    }
}

/// Does one thing in a child before it executes its program.
#[allow(unsafe_code)]
pub(crate) fn before_exec(
    command: &mut Command,
    act: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: callers hand over functions of `sys` that make one system call with plain numbers or with
    // memory of their own stack frame.
    unsafe { command.pre_exec(act) };
}
