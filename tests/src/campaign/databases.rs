//! The database servers, and clients that speak their protocols.
//!
//! Their files are made in the lab's directory.

use super::client::{Client, Code, PATIENCE, Postgres, wrong};
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
