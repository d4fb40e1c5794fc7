//! The database servers, and clients that speak their protocols.
//!
//! Their files are made in the lab's directory.

use super::client::{Client, Code, PATIENCE, wrong};
use super::servers::{Connect, Start};
use crate::lab::Lab;
use std::fs;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// User and group of a name, from /etc/passwd.
fn user(name: &str) -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = fields
        .filter(|f| f.first() == Some(&name))
        .find_map(|f| Some((f.get(2)?.parse().ok()?, f.get(3)?.parse().ok()?)));
    found.unwrap_or_else(|| panic!("there is no user {name}"))
}

pub(super) fn postgres(lab: &Lab) -> Start {
    let programs = newest(Path::new("/usr/lib/postgresql")).join("bin");
    let (uid, gid) = user("postgres");
    let folder = lab.path("postgres");
    if !folder.exists() {
        fs::create_dir(&folder).expect("a directory");
        std::os::unix::fs::chown(&folder, Some(uid), Some(gid)).expect("chown");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["-A", "trust", "-N", "--no-instructions", "-D"]).arg(&folder).uid(uid).gid(gid);
        let done = initdb.current_dir(&folder).stdin(Stdio::null()).output().expect("running initdb");
        assert!(done.status.success(), "initdb: {}", String::from_utf8_lossy(&done.stderr));
    }
    // A server that was killed leaves it, and its process id may be somebody else's by now.
    let _ = fs::remove_file(folder.join("postmaster.pid"));
    let mut command = Command::new(programs.join("postgres"));
    command.arg("-D").arg(&folder).arg("-k").arg(&folder).args([
        "-c",
        "listen_addresses=",
        "-c",
        "fsync=off",
    ]);
    command.current_dir(&folder).uid(uid).gid(gid);
    let socket = folder.join(".s.PGSQL.5432");
    let connect: Connect = Box::new(move || Ok(Box::new(Postgres::connect(&socket, "424242")?)));
    Start { command, connect, children: false }
}

/// A PostgreSQL connection over its socket, speaking the simple query protocol.
#[derive(Debug)]
struct Postgres {
    stream: BufReader<UnixStream>,
    backend: i32,
    /// What new code answers.
    new: &'static str,
}

impl Postgres {
    /// Connects as the server's own user, which it trusts.
    fn connect(socket: &Path, new: &'static str) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
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

/// The last of a directory's entries by name.
fn newest(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries.max().unwrap_or_else(|| panic!("nothing in {}", folder.display()))
}

pub(super) fn mariadb(lab: &Lab) -> Start {
    // It fills an empty directory by itself, and needs no tables of its own where nobody is asked who he is. One that
    // was killed before may leave files that it does not understand.
    let folder = lab.path("mariadb");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a directory");
    let socket = folder.join("socket");
    let mut command = Command::new("/usr/sbin/mariadbd");
    command.args(["--no-defaults", "--user=root", "--skip-networking", "--skip-grant-tables"]);
    command.args(["--innodb-flush-log-at-trx-commit=0", "--datadir"]).arg(&folder);
    command.arg("--socket").arg(&socket);
    let connect: Connect = Box::new(move || Ok(Box::new(Mariadb::connect(&socket)?)));
    Start { command, connect, children: false }
}

/// A MariaDB connection over its socket: text queries.
#[derive(Debug)]
struct Mariadb {
    stream: BufReader<UnixStream>,
}

/// `CLIENT_PROTOCOL_41` and `CLIENT_SECURE_CONNECTION`.
const CAPABILITIES: u32 = 0x200 | 0x8000;

impl Mariadb {
    /// Connects to a server that asks nobody who he is.
    fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Self { stream: BufReader::new(stream) };
        client.packet()?;
        let mut answer = CAPABILITIES.to_le_bytes().to_vec();
        answer.extend(0x0100_0000u32.to_le_bytes());
        answer.push(33); // utf8
        answer.extend([0; 23]);
        answer.extend(b"root\0\0");
        client.send(1, &answer)?;
        match client.packet()?.first() {
            Some(0) => Ok(client),
            other => Err(io::Error::other(format!("not let in: {other:?}"))),
        }
    }

    fn send(&mut self, number: u8, body: &[u8]) -> io::Result<()> {
        let [a, b, c, _] = u32::try_from(body.len()).unwrap_or(0).to_le_bytes();
        self.stream.get_mut().write_all(&[&[a, b, c, number], body].concat())
    }

    fn packet(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; 4];
        self.stream.read_exact(&mut head)?;
        let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        self.stream.read_exact(&mut body)?;
        Ok(body)
    }

    /// The packets of an answer to a query: columns, rows.
    fn query(&mut self, text: &str) -> io::Result<Vec<Vec<u8>>> {
        self.send(0, &[b"\x03", text.as_bytes()].concat())?;
        let columns = self.packet()?;
        if columns.first() == Some(&0xff) {
            return wrong(columns);
        }
        let (mut rows, mut ends) = (Vec::new(), 0);
        while ends < 2 {
            let packet = self.packet()?;
            let is_end = packet.first() == Some(&0xfe) && packet.len() < 9;
            ends += usize::from(is_end);
            if ends == 1 && !is_end {
                rows.push(packet);
            }
        }
        Ok(rows)
    }
}

impl Client for Mariadb {
    fn ask(&mut self) -> io::Result<Code> {
        let rows =
            self.query("SELECT ENCRYPT('key', 'sa'), SUM(seq.a) FROM (SELECT 1 a UNION SELECT 2) seq")?;
        // Each column is a length and its text.
        match rows.first().map(Vec::as_slice) {
            Some(b"\x06Suture\x013") => Ok(Code::New),
            Some([13, b's', b'a', rest @ ..]) if rest.ends_with(b"\x013") => Ok(Code::Old),
            other => wrong(other.unwrap_or_default()),
        }
    }
}
