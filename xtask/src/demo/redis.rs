//! The demo on a stripped binary of the distribution: redis answers PING differently for a while.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::Script;
use crate::packages;
use crate::step::{Project, leave_nothing_behind, shown, step};

/// Requests of the load, for each of its three kinds.
const REQUESTS: &str = "100000";

/// Runs the demo.
pub fn run(project: &Project, script: &mut Script) -> Result<()> {
    packages::ensure(packages::REDIS)?;
    step("starting redis-server, unprepared, io-threads 2, 50 clients at work");
    let server = Server::start(project)?;
    let pid = server.process.0.id().to_string();
    let mut load = server.load()?;
    script.expect("PING", server.ping()?.as_str(), "PONG");
    let patch = project.dist().join("samples/redis-ping.so");
    script.suture(project.suture(["apply"]).arg(&patch).args(["--pid", &pid]))?;
    script.expect("PING", server.ping()?.as_str(), "PONG from the patch");
    let status = script.suture(&mut project.suture(["status", "--pid", &pid]))?;
    script.require("status names the patch", status.contains("redis-ping"));
    script.suture(&mut project.suture(["disable", "redis-ping", "--pid", &pid]))?;
    script.expect("PING", server.ping()?.as_str(), "PONG");
    script.require("the load ran all the time", load.0.try_wait()?.is_none());
    step("waiting for the load to end");
    let status = load.0.wait().context("cannot wait for redis-benchmark")?;
    script.expect("redis-benchmark", status.code().unwrap_or(-1), 0);
    script.expect("PING", server.ping()?.as_str(), "PONG");
    Ok(())
}

/// A process that does not outlive the demo.
#[derive(Debug)]
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A redis of our own: loopback only, nothing kept on disk.
#[derive(Debug)]
struct Server {
    process: Process,
    port: String,
}

impl Server {
    fn start(project: &Project) -> Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port, "--bind", "127.0.0.1", "--io-threads", "2"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .current_dir(project.dist())
            .stdout(Stdio::piped());
        let mut process =
            Process(command.spawn().with_context(|| format!("cannot run {}", shown(&command)))?);
        let output = process.0.stdout.take().context("redis-server has no output")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        if !lines.any(|line| line.contains("Ready to accept connections")) {
            bail!("redis-server ended before it was ready");
        }
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, port })
    }

    /// Load bounded in count, whose end is waited for.
    fn load(&self) -> Result<Process> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &self.port, "-c", "50", "-n", REQUESTS, "-t", "ping_mbulk,set,get", "--csv"]);
        leave_nothing_behind(&mut command);
        command.spawn().map(Process).with_context(|| format!("cannot run {}", shown(&command)))
    }

    fn ping(&self) -> Result<String> {
        let output = Command::new("redis-cli")
            .args(["-p", &self.port, "ping"])
            .output()
            .context("cannot run redis-cli")?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }
}

/// A port nobody listens on. Another program could take it before redis does; redis then ends at
/// once, which is reported.
fn free_port() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot find a free port")?;
    Ok(listener.local_addr()?.port().to_string())
}
