//! The demo on the project's own service: two bugs corrected in a running process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::Script;
use super::load::{Client, Expected, Load};
use crate::step::{Project, leave_nothing_behind, run as run_command, step};

const CLIENTS: usize = 8;

const REQUESTS: &[Expected] = &[
    Expected { request: "price 7", old: "700", new: "833" },
    Expected { request: "greet bob", old: "helo, bob", new: "hello, bob" },
];

/// Runs the demo.
pub fn run(project: &Project, script: &mut Script) -> Result<()> {
    step("building the demo service");
    run_command(&mut project.cargo(["build", "--quiet", "--release", "--package", "suture-demo-target"]))?;
    step("starting the demo service, unprepared, 16 workers, 8 clients at work");
    let service = Service::start(project)?;
    let pid = service.child.id().to_string();
    let load = Load::start(service.port, CLIENTS, REQUESTS)?;
    // Its own connection each time: any worker may answer.
    let ask = |script: &mut Script, patched: bool| -> Result<()> {
        let mut client = Client::connect(service.port)?;
        for expected in REQUESTS {
            let wanted = if patched { expected.new } else { expected.old };
            script.expect(expected.request, client.ask(expected.request)?.as_str(), wanted);
        }
        Ok(())
    };
    ask(script, false)?;
    let patch = project.dist().join("samples/demo-fix.so");
    script.suture(project.suture(["apply"]).arg(&patch).args(["--pid", &pid]))?;
    ask(script, true)?;
    let status = script.suture(&mut project.suture(["status", "--pid", &pid]))?;
    script.require("status names the patch", status.contains("demo-fix"));
    script.suture(&mut project.suture(["disable", "demo-fix", "--pid", &pid]))?;
    ask(script, false)?;
    step("stopping the clients");
    let seen = load.finish()?;
    println!("  {} old and {} new answers, the longest took {:.1} ms", seen.old, seen.new, ms(seen.longest));
    script.expect("wrong answers", seen.wrong, 0);
    script.require("clients saw the old and the new behaviour", seen.old > 0 && seen.new > 0);
    Ok(())
}

fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The service, killed when the demo is over.
#[derive(Debug)]
struct Service {
    child: Child,
    port: u16,
}

impl Service {
    fn start(project: &Project) -> Result<Self> {
        let program = project.target.join("release/suture-demo-service");
        let mut child = leave_nothing_behind(&mut Command::new(&program))
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("the service has no output")?;
        let mut service = Self { child, port: 0 };
        let mut lines = BufReader::new(output).lines();
        let first = lines.next().context("the service ended before it listened")??;
        service.port = first
            .strip_prefix("listening ")
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("the service said {first:?} instead of its port"))?;
        // Its counts are shown as they come.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| println!("  service: {line}"))
        });
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
