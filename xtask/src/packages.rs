//! Programs of the distribution that tests and demos use.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::step::{privileged, run, step};

/// A program, and the Debian package it comes in.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Name of the program.
    pub program: &'static str,
    /// Name of the package.
    pub package: &'static str,
}

const fn need(program: &'static str, package: &'static str) -> Need {
    Need { program, package }
}

/// For `demo redis`.
pub const REDIS: &[Need] = &[
    need("redis-server", "redis-server"),
    need("redis-cli", "redis-tools"),
    need("redis-benchmark", "redis-tools"),
];

/// For the tests.
pub const TESTS: &[Need] = &[
    need("redis-server", "redis-server"),
    need("redis-cli", "redis-tools"),
    need("redis-benchmark", "redis-tools"),
    need("nginx", "nginx-light"),
    need("mariadbd", "mariadb-server-core"),
    need("node", "nodejs"),
    need("/usr/lib/postgresql/15/bin/postgres", "postgresql-15"),
    need("setpriv", "util-linux"),
    need("memcached", "memcached"),
    need("gdb", "gdb"),
    need("python3", "python3"),
    need("pgrep", "procps"),
    need("readelf", "binutils"),
    need("g++", "g++"),
    need("strace", "strace"),
    need("xz", "xz-utils"),
    need("musl-gcc", "musl-tools"),
];

/// For `servers`.
pub const SERVERS: &[Need] = &[
    need("redis-server", "redis-server"),
    need("memcached", "memcached"),
    need("nginx", "nginx-light"),
    need("haproxy", "haproxy"),
    need("apache2", "apache2"),
    need("pgbench", "postgresql"),
    need("mariadbd", "mariadb-server-core"),
    need("python3", "python3"),
    need("gcc", "gcc"),
];

/// For `census`.
pub const CENSUS: &[Need] = &[
    need("redis-server", "redis-server"),
    need("nginx", "nginx-light"),
    need("mariadbd", "mariadb-server-core"),
    need("node", "nodejs"),
    need("/usr/bin/python3", "python3"),
    need("gcc", "gcc"),
];

/// Installs what is missing, saying so.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let mut missing: Vec<Need> = needs.iter().copied().filter(|need| !is_installed(need.program)).collect();
    missing.dedup_by_key(|need| need.package);
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !is_installed("apt-get") {
        let programs: Vec<&str> = missing.iter().map(|need| need.program).collect();
        bail!("these programs are needed and there is no apt-get to install them: {}", programs.join(" "));
    }
    step(format!("installing Debian packages that are missing: {}", packages.join(" ")));
    run(apt_get().args(["update", "-qq"]))?;
    run(apt_get().args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages))
        .context("cannot install the missing packages; install them by hand and run this again")
}

fn apt_get() -> Command {
    let mut command = privileged("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    command
}

/// Whether a program is in the search path or where system programs are.
fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .any(|dir| Path::new(&dir).join(program).is_file())
}
