//! Debian's nginx: a master as root, workers as `www-data`.

use super::free_port;
use crate::lab::{Lab, runtime};
use crate::need;
use crate::poll::{PATIENCE, until};
use crate::target::prepare;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Where Debian installs it.
pub const PROGRAM: &str = "/usr/sbin/nginx";

/// A running server; the master and its workers end when dropped.
#[derive(Debug)]
pub struct Nginx {
    master: Child,
    port: u16,
}

impl Nginx {
    /// Starts a server with two workers that serves `index.html`, and waits until both are there and
    /// it answers.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        need("nginx", "nginx-light");
        let port = free_port();
        lab.write("index.html", "hello\n");
        let folder = lab.path("");
        let folder = folder.to_string_lossy();
        let config = lab.write(
            "nginx.conf",
            format!(
                "daemon off; user www-data; worker_processes 2; pid {folder}/nginx.pid;\n\
                 error_log {folder}/error.log notice;\n\
                 events {{ worker_connections 256; }}\n\
                 http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
                 fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
                 server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
            ),
        );
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(config).arg("-e").arg(lab.path("error.log"));
        command.stdin(Stdio::null()).env("LD_PRELOAD", runtime());
        prepare(&mut command, Vec::new());
        let server = Self { master: command.spawn().expect("starting nginx"), port };
        until("nginx to answer", || server.try_get("/"));
        until("two workers of nginx", || (server.workers().len() == 2).then_some(()));
        server
    }

    /// Process id of the master.
    #[must_use]
    pub fn master(&self) -> i32 {
        self.master.id().cast_signed()
    }

    /// Process ids of the workers.
    #[must_use]
    pub fn workers(&self) -> Vec<i32> {
        let path = format!("/proc/{0}/task/{0}/children", self.master());
        let text = fs::read_to_string(Path::new(&path)).unwrap_or_default();
        text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The whole response to a GET, on a connection of its own.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn get(&self, path: &str) -> String {
        self.try_get(path).unwrap_or_else(|| panic!("no response to GET {path}"))
    }

    /// The same, without complaint.
    #[must_use]
    pub fn try_get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).ok()?;
        (!response.is_empty()).then_some(response)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The workers notice the closed channel and end by themselves; make sure of it.
        let workers = self.workers();
        let _ = self.master.kill();
        let _ = self.master.wait();
        for pid in workers {
            // Still nginx, not a process that was given the number since.
            if fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "nginx") {
                crate::sys::kill_if_there(pid);
            }
        }
    }
}
