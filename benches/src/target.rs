//! Running target programs.

use crate::error::{Error, io};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A target that answers questions, killed when dropped.
#[derive(Debug)]
pub struct Subject {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Subject {
    /// Starts a target, with the runtime preloaded if one is given, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, preload: Option<&Path>) -> Result<Self, Error> {
        let mut command = command(program, preload);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(io("start a target"))?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both were asked for")
        };
        let mut subject = Self { child, questions, answers: BufReader::new(answers) };
        subject.expect("start", "ready")?;
        Ok(subject)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Asks for a number.
    ///
    /// # Errors
    /// When the target is gone or answers something else.
    pub fn ask(&mut self, question: &str) -> Result<f64, Error> {
        writeln!(self.questions, "{question}").map_err(io("ask a target"))?;
        let answer = self.line()?;
        let number = answer.parse().ok().filter(|n: &f64| *n >= 0.0);
        number.ok_or_else(|| Error::Answer { question: question.into(), answer })
    }

    fn expect(&mut self, question: &str, wanted: &str) -> Result<(), Error> {
        let answer = self.line()?;
        if answer == wanted { Ok(()) } else { Err(Error::Answer { question: question.into(), answer }) }
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(io("read a target's answer"))?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

/// A command line for a target.
#[must_use]
pub fn command(program: &Path, preload: Option<&Path>) -> Command {
    let mut command = Command::new(program);
    if let Some(runtime) = preload {
        command.env("LD_PRELOAD", runtime);
    }
    command
}

/// Kills and reaps a child. Both fail only when it is gone already.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
