//! Debian's `redis-server`, `redis-cli` protocol and `redis-benchmark`.

use super::free_port;
use crate::lab::{Lab, runtime};
use crate::need;
use crate::poll::{PATIENCE, until};
use crate::target::prepare;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A running server, killed when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Child,
    port: u16,
}

/// A load that is under way.
#[derive(Debug)]
pub struct Load {
    child: Child,
    said: PathBuf,
}

impl Redis {
    /// Starts a server with two I/O threads and the runtime preloaded, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        need("redis-server", "redis-server");
        let port = free_port();
        let log = File::create(lab.path("redis.log")).expect("a log file");
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--io-threads", "2"]);
        command.args(["--io-threads-do-reads", "yes", "--save", "", "--appendonly", "no", "--dir"]);
        command.arg(lab.path("")).stdin(Stdio::null()).stdout(log).env("LD_PRELOAD", runtime());
        prepare(&mut command, Vec::new());
        let server = Self { child: command.spawn().expect("starting redis-server"), port };
        until("redis-server to answer", || server.try_command("PING").filter(|r| r == "+PONG"));
        server
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends one inline command on a connection of its own and gives the first line of the reply.
    ///
    /// # Panics
    /// When there is no reply.
    #[must_use]
    pub fn command(&self, line: &str) -> String {
        self.try_command(line).unwrap_or_else(|| panic!("no reply to {line}"))
    }

    /// The value of a key in the reply to an INFO command.
    ///
    /// # Panics
    /// When it is not in the reply.
    #[must_use]
    pub fn info(&self, section: &str, key: &str) -> String {
        let reply = self.ask(&format!("INFO {section}")).expect("a connection");
        let value = |line: String| line.strip_prefix(key)?.strip_prefix(':').map(|v| v.trim_end().to_owned());
        let mut lines = reply.lines().map_while(Result::ok);
        lines.find_map(value).unwrap_or_else(|| panic!("no {key} in INFO {section}"))
    }

    fn ask(&self, line: &str) -> Option<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("{line}\r\n").as_bytes()).ok()?;
        Some(BufReader::new(stream))
    }

    fn try_command(&self, line: &str) -> Option<String> {
        let mut reply = String::new();
        self.ask(line)?.read_line(&mut reply).ok()?;
        (!reply.is_empty()).then(|| reply.trim_end().to_owned())
    }

    /// Starts `redis-benchmark` with 50 clients that send PINGs, SETs and GETs until told otherwise.
    /// How many they get done depends on the machine, so it is never a number of requests that is
    /// waited for.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn load(&self, lab: &Lab) -> Load {
        need("redis-benchmark", "redis-tools");
        let said = lab.path("benchmark.log");
        let log = File::create(&said).expect("a log file");
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "50", "-q", "--csv", "-l"]);
        command.args(["-t", "ping_mbulk,set,get", "-n", "1000"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        prepare(&mut command, Vec::new());
        Load { child: command.spawn().expect("starting redis-benchmark"), said }
    }
}

impl Load {
    /// Ends it.
    ///
    /// # Panics
    /// When it ended by itself, which it does at the first connection error or error reply.
    pub fn stop(mut self) {
        let ended = self.child.try_wait().expect("a child");
        let said = std::fs::read_to_string(&self.said).unwrap_or_default();
        assert_eq!(ended, None, "redis-benchmark ended: {said}");
        assert!(!said.to_lowercase().contains("error"), "redis-benchmark: {said}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
