//! Debian's `redis-server`, `redis-cli` protocol and `redis-benchmark`.

use super::free_port;
use crate::lab::{Lab, runtime};
use crate::poll::{PATIENCE, until};
use crate::target::prepare;
use crate::{need, sys};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
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
        let log = std::fs::File::create(lab.path("redis.log")).expect("a log file");
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

    /// Starts `redis-benchmark` with 50 clients that send `requests` PINGs and GETs each way.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn load(&self, requests: usize) -> Load {
        need("redis-benchmark", "redis-tools");
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", "50", "-q", "--csv"]);
        command.args(["-t", "ping_mbulk,set,get", "-n", &requests.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare(&mut command, Vec::new());
        Load { child: command.spawn().expect("starting redis-benchmark") }
    }
}

impl Load {
    /// Whether it is still sending.
    ///
    /// # Panics
    /// When its state cannot be read.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Waits for its end and gives the lines with its figures, one per kind of request.
    ///
    /// # Panics
    /// When it does not end, or reports an error.
    pub fn finish(mut self) -> Vec<String> {
        let pid = self.child.id().cast_signed();
        assert!(sys::ends_within(pid, PATIENCE * 6), "redis-benchmark hangs");
        let stdout = self.child.stdout.take().map(std::io::read_to_string).transpose();
        let stderr = self.child.stderr.take().map(std::io::read_to_string).transpose();
        let (stdout, stderr) =
            (stdout.ok().flatten().unwrap_or_default(), stderr.ok().flatten().unwrap_or_default());
        let status = self.child.wait().expect("a child");
        // It exits with 1 at the first connection error, and prints replies that are errors.
        assert!(status.success(), "redis-benchmark: {status}: {stdout}{stderr}");
        assert!(!stderr.to_lowercase().contains("error"), "redis-benchmark: {stderr}");
        stdout
            .lines()
            .filter(|l| l.starts_with('"') && !l.starts_with("\"test\""))
            .map(str::to_owned)
            .collect()
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
