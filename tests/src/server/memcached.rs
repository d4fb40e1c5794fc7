//! Debian's memcached: a program without any symbol of its own.

use super::free_port;
use crate::lab::{Lab, runtime};
use crate::need;
use crate::poll::{PATIENCE, until};
use crate::target::prepare;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Memcached {
    child: Child,
    port: u16,
}

impl Memcached {
    /// Starts a server with the runtime preloaded and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        need("memcached", "memcached");
        let port = free_port();
        let log = File::create(lab.path("memcached.log")).expect("a log file");
        let mut command = Command::new("memcached");
        command.args(["-u", "nobody", "-l", "127.0.0.1", "-U", "0", "-t", "4", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).env("LD_PRELOAD", runtime());
        prepare(&mut command, Vec::new());
        let server = Self { child: command.spawn().expect("starting memcached"), port };
        until("memcached to answer", || server.try_command("version"));
        server
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends one command on a connection of its own and gives the first line of the answer.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn command(&self, line: &str) -> String {
        self.try_command(line).unwrap_or_else(|| panic!("no answer to {line}"))
    }

    fn try_command(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).ok()?;
        (!answer.is_empty()).then(|| answer.trim_end().to_owned())
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
