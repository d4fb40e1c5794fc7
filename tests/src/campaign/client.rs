//! Clients: one request, one answer, and whether it came from the old or the new code.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// No server takes longer for an answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Which code gave an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The program's own.
    Old,
    /// The patch's.
    New,
}

/// Something that asks a server.
pub trait Client: Send {
    /// Asks once.
    ///
    /// # Errors
    /// When there is no answer, or a wrong one.
    fn ask(&mut self) -> io::Result<Code>;

    /// The process that answers, if it is one for this client alone.
    fn server(&self) -> Option<i32> {
        None
    }
}

pub(super) fn wrong<T>(answer: impl AsRef<[u8]>) -> io::Result<T> {
    let shown = String::from_utf8_lossy(answer.as_ref()).into_owned();
    Err(io::Error::other(format!("a wrong answer: {shown:?}")))
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One HTTP request on a connection of its own.
#[derive(Clone, Debug)]
pub struct Http {
    /// Port of the server.
    pub port: u16,
    /// What new code says.
    pub new: &'static str,
    /// What old code says, or both say.
    pub old: &'static str,
}

impl Client for Http {
    fn ask(&mut self) -> io::Result<Code> {
        let mut stream = connect(self.port)?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: campaign\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let text = String::from_utf8_lossy(&answer);
        let whole = text.starts_with("HTTP/1.") && text.contains(" 200 ") && text.ends_with("hello\n");
        match (whole, text.contains(self.new), text.contains(self.old)) {
            (true, true, _) => Ok(Code::New),
            (true, false, true) => Ok(Code::Old),
            _ => wrong(answer),
        }
    }
}

/// Commands of one line, answered by lines, on a connection that stays.
#[derive(Debug)]
pub struct Lines {
    stream: BufReader<TcpStream>,
    /// What is asked, in turn: a command, the end of its answer, and what new and old code say in it.
    asks: &'static [Ask],
    next: usize,
}

/// A command of a line protocol.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The command.
    pub command: &'static str,
    /// Last line of the answer begins so.
    pub end: &'static str,
    /// Some line is this when the code is new.
    pub new: &'static str,
    /// Some line begins so when the code is old.
    pub old: &'static str,
}

impl Lines {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(port: u16, asks: &'static [Ask]) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(connect(port)?), asks, next: 0 })
    }

    fn ask_one(&mut self, ask: &Ask) -> io::Result<Option<Code>> {
        self.stream.get_mut().write_all(ask.command.as_bytes())?;
        let (mut new, mut old, mut line) = (false, false, String::new());
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end();
            new |= text == ask.new;
            old |= text.starts_with(ask.old) && text != ask.new;
            if text.starts_with(ask.end) {
                break;
            }
            if text.starts_with("ERR") || text.starts_with("-ERR") {
                return wrong(&line);
            }
        }
        match (new, old, ask.new.is_empty()) {
            (_, true, true) => Ok(None),
            (true, false, false) => Ok(Some(Code::New)),
            (false, true, false) => Ok(Some(Code::Old)),
            _ => wrong(&line),
        }
    }
}

impl Client for Lines {
    fn ask(&mut self) -> io::Result<Code> {
        // One round of all commands; the one that tells comes last.
        loop {
            let ask = self.asks[self.next % self.asks.len()];
            self.next += 1;
            if let Some(code) = self.ask_one(&ask)? {
                return Ok(code);
            }
        }
    }
}
