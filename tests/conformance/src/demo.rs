//! The program of a row, running.

use crate::fixture::Fixture;
use std::collections::HashMap;
use suture_tests::target::Options;
use suture_tests::{Target, code, poll};

/// One callback, as the program saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `pre_patch`, …, `dtor`.
    pub kind: String,
    /// Name of the patch.
    pub patch: String,
    /// State.
    pub state: u64,
    /// What a destructor found in its variable.
    pub content: String,
}

/// The running program. Its answers are awaited with the patience of [`poll::PATIENCE`]; one that does not come
/// is a panic, which the runner takes for the row's failure.
#[derive(Debug)]
pub struct Demo {
    target: Target,
    tids: HashMap<String, i32>,
}

impl Demo {
    /// Starts it, with the runtime preloaded or not.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(fixture: &Fixture, preload: bool) -> Self {
        let folder = fixture.libraries().display().to_string();
        let options = Options { preload, ..Options::default() };
        let target = Target::start(&fixture.program, &[&folder], options);
        let tids = HashMap::from([("M".to_owned(), target.pid())]);
        Self { target, tids }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.target.pid()
    }

    /// Thread id of a named thread, or process id of a named child.
    #[must_use]
    pub fn id(&self, name: &str) -> i32 {
        self.tids.get(name).copied().unwrap_or(0)
    }

    /// Asks, and gives what comes after `prefix`.
    ///
    /// # Errors
    /// When the answer begins with something else.
    pub fn ask(&mut self, question: &str, prefix: &str) -> Result<String, String> {
        let answer = self.target.ask(question);
        let rest = answer.strip_prefix(prefix).map(str::to_owned);
        rest.ok_or_else(|| format!("asked {question:?}, the program answers {answer:?}"))
    }

    /// Makes a thread by another one, in a function if one is named.
    ///
    /// # Errors
    /// When that fails.
    pub fn spawn(&mut self, by: &str, child: &str, function: Option<&str>) -> Result<(), String> {
        let question = format!("{by} spawn {child} {}", function.unwrap_or("-"));
        let tid = self.ask(&question, &format!("{child} started "))?;
        self.tids.insert(child.to_owned(), number(&tid)?);
        match function {
            None => Ok(()),
            Some(function) => match self.target.line() {
                inside if inside == format!("{child} inside {function}") => Ok(()),
                other => Err(format!("thread {child} is not in {function}: {other:?}")),
            },
        }
    }

    /// Forks by a thread.
    ///
    /// # Errors
    /// When that fails.
    pub fn fork(&mut self, by: &str, child: &str) -> Result<i32, String> {
        let pid = self.ask(&format!("{by} fork {child}"), &format!("{child} forked "))?;
        let pid = number(&pid)?;
        self.tids.insert(child.to_owned(), pid);
        Ok(pid)
    }

    /// Waits until a thread that was told to end is gone.
    ///
    /// # Panics
    /// When it stays.
    pub fn await_end(&self, name: &str) {
        let task = format!("/proc/{}/task/{}", self.pid(), self.id(name));
        poll::until_true("a thread to end", || !std::path::Path::new(&task).exists());
    }

    /// The callbacks that ran so far.
    ///
    /// # Errors
    /// When the answer makes no sense.
    pub fn journal(&mut self) -> Result<Vec<Entry>, String> {
        let count: usize = number(&self.ask("journal", "journal ")?)?;
        let lines = (0..count).map(|_| self.target.line());
        lines.collect::<Vec<_>>().iter().map(|line| entry(line)).collect()
    }

    /// Whether the entry of a function has the file's bytes.
    #[must_use]
    pub fn entry_is_the_files(&self, function: &str) -> bool {
        self.target.entry(function) == self.target.file_entry(function)
    }

    /// Gives the first byte of an entry back.
    pub fn restore(&self, function: &str) {
        let first = self.target.file_entry(function).first().copied();
        first.map(|byte| self.probe(function, byte));
    }

    /// Puts a breakpoint's byte on the entry of a function, or gives back what was there.
    pub fn probe(&self, function: &str, byte: u8) -> u8 {
        let at = code::address(self.pid(), self.target.program(), function);
        let before = code::read(self.pid(), at, 1)[0];
        code::write(self.pid(), at, &[byte]);
        before
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.trim().parse().map_err(|_| format!("the program answers {text:?} instead of a number"))
}

fn entry(line: &str) -> Result<Entry, String> {
    let mut fields = line.splitn(4, ' ').map(str::to_owned);
    let mut field = || fields.next().ok_or_else(|| format!("{line:?} is no line of a journal"));
    Ok(Entry { kind: field()?, patch: field()?, state: number(&field()?)?, content: field()? })
}
