//! Clients: one request, one answer, and whether it came from the old or the new code.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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

/// A PostgreSQL connection over its socket, speaking the simple query protocol.
#[derive(Debug)]
pub struct Postgres {
    stream: BufReader<UnixStream>,
    backend: i32,
    /// What new code answers.
    new: &'static str,
}

impl Postgres {
    /// Connects as the server's own user, which it trusts.
    ///
    /// # Errors
    /// When nobody listens, or the server does not want us.
    pub fn connect(socket: &Path, new: &'static str) -> io::Result<Self> {
        let stream = UnixStream::connect(PathBuf::from(socket))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self { stream: BufReader::new(stream), backend: 0, new };
        let mut start = 196_608u32.to_be_bytes().to_vec();
        start.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        let length = u32::try_from(start.len() + 4).unwrap_or(0).to_be_bytes();
        client.stream.get_mut().write_all(&[&length, start.as_slice()].concat())?;
        client.until_ready(|client, kind, body| {
            if kind == b'K' {
                client.backend = body.get(..4).map_or(0, |b| i32::from_be_bytes([b[0], b[1], b[2], b[3]]));
            }
        })?;
        Ok(client)
    }

    /// Reads messages until the server waits for the next query.
    fn until_ready(&mut self, mut each: impl FnMut(&mut Self, u8, &[u8])) -> io::Result<()> {
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.saturating_sub(4)];
            self.stream.read_exact(&mut body)?;
            match head[0] {
                b'E' => return wrong(body),
                b'Z' => return Ok(()),
                kind => each(self, kind, &body),
            }
        }
    }
}

impl Client for Postgres {
    fn ask(&mut self) -> io::Result<Code> {
        const QUERY: &[u8] = b"SELECT pg_backend_pid(), count(*) FROM generate_series(1, 200)\0";
        let length = u32::try_from(QUERY.len() + 4).unwrap_or(0).to_be_bytes();
        self.stream.get_mut().write_all(&[b"Q", length.as_slice(), QUERY].concat())?;
        let mut row = Vec::new();
        self.until_ready(|_, kind, body| {
            if kind == b'D' {
                row = body.to_vec();
            }
        })?;
        // Two columns, each a length and its text.
        let column = |at: usize| -> Option<(&[u8], usize)> {
            let length = row.get(at..at + 4)?;
            let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
            Some((row.get(at + 4..at + 4 + length)?, at + 4 + length))
        };
        let pid = column(2).and_then(|(pid, next)| Some((pid, column(next)?.0)));
        match pid {
            Some((pid, b"200")) if pid == self.new.as_bytes() => Ok(Code::New),
            Some((pid, b"200")) if pid == self.backend.to_string().as_bytes() => Ok(Code::Old),
            _ => wrong(row),
        }
    }

    fn server(&self) -> Option<i32> {
        Some(self.backend)
    }
}
