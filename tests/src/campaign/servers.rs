//! The servers: how each is started, what is patched in it, and how a client sees that.
//!
//! Where a server exports functions, one of its own is patched; memcached and Python's http.server get one
//! of libc whose result their clients see.

use super::client::{Ask, Client, Http, Lines};
use super::databases::{mariadb, postgres};
use super::eintr::Counter;
use super::load::CLIENTS;
use crate::lab::Lab;
use crate::need;
use crate::poll::{PATIENCE, until_or, until_true};
use crate::server::free_port;
use crate::target::prepare;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A server of the distribution.
#[derive(Clone, Copy)]
pub struct Spec {
    /// Name in the table.
    pub name: &'static str,
    /// Its program and the package it comes in.
    pub needs: (&'static str, &'static str),
    /// Name of the patch.
    pub patch: &'static str,
    /// Text of the patch.
    pub text: &'static str,
    /// Processes that are patched at once.
    pub processes: usize,
    /// Signal that ends it at once but in order.
    pub ends_by: Option<i32>,
    start: fn(&Lab) -> Start,
}

/// How a server is started and reached.
pub(super) struct Start {
    pub(super) command: Command,
    pub(super) connect: Connect,
    /// Its processes that serve are children of the one started, and so many.
    pub(super) children: bool,
}

pub(super) type Connect = Box<dyn Fn() -> io::Result<Box<dyn Client>> + Send + Sync>;

/// A running server; it and its children end when dropped.
pub struct Server {
    main: Child,
    spec: Spec,
    connect: Connect,
    children: bool,
}

impl Spec {
    /// Starts the server and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(&self, lab: &Lab, counter: Option<&Counter>) -> Server {
        need(self.needs.0, self.needs.1);
        let Start { mut command, connect, children } = (self.start)(lab);
        let log = fs::File::create(lab.path("server.log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        if let Some(counter) = counter {
            counter.attach(&mut command);
        }
        prepare(&mut command, Vec::new());
        let main = command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.name));
        let server = Server { main, spec: *self, connect, children };
        let answer = || server.client().ok()?.ask().ok();
        until_or(answer, || {
            let said = fs::read_to_string(lab.path("server.log")).unwrap_or_default();
            panic!("{} does not answer; it said:\n{said}", self.name)
        });
        if children {
            until_true("its processes", || server.child_pids().len() == self.processes);
        }
        server
    }
}

impl Server {
    /// A client of it.
    ///
    /// # Errors
    /// When it does not listen.
    pub fn client(&self) -> io::Result<Box<dyn Client>> {
        (self.connect)()
    }

    /// Clients for a load, and the processes that serve them.
    ///
    /// # Panics
    /// When they cannot connect.
    #[must_use]
    pub fn clients(&self) -> (Vec<Box<dyn Client>>, Vec<i32>) {
        let connect = |_| self.client().unwrap_or_else(|e| panic!("{}: {e}", self.spec.name));
        let clients: Vec<Box<dyn Client>> = (0..CLIENTS).map(connect).collect();
        let own: Vec<i32> = clients.iter().filter_map(|c| c.server()).collect();
        let pids = match (own.is_empty(), self.children) {
            (false, _) => own,
            (true, true) => self.child_pids(),
            (true, false) => vec![self.pid()],
        };
        (clients, pids)
    }

    /// The process that was started.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.main.id().cast_signed()
    }

    fn child_pids(&self) -> Vec<i32> {
        let list = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid()));
        list.unwrap_or_default().split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let children = self.child_pids();
        let name = |pid: i32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let names: Vec<String> = children.iter().map(|pid| name(*pid)).collect();
        // With a signal that lets it take its children and its shared memory along, where it has one.
        if let Some(signal) = self.spec.ends_by {
            crate::sys::kill(self.pid(), signal);
            let _ = crate::sys::ends_within(self.pid(), PATIENCE);
        }
        let _ = self.main.kill();
        let _ = self.main.wait();
        for (pid, before) in children.into_iter().zip(names) {
            // Still the same, not a process that was given the number since.
            if !before.is_empty() && name(pid) == before {
                crate::sys::kill_if_there(pid);
            }
        }
    }
}

/// What most of them have in common: one process, and no signal of its own.
const PLAIN: Spec =
    Spec { name: "", needs: ("", ""), patch: "", text: "", processes: 1, ends_by: None, start: redis };

/// All of them.
pub const ALL: [Spec; 9] = [
    Spec {
        name: "redis",
        needs: ("redis-server", "redis-server"),
        patch: "redis-ping",
        text: include_str!("../../../samples/redis-ping.c"),
        start: redis,
        ..PLAIN
    },
    Spec {
        name: "memcached",
        needs: ("memcached", "memcached"),
        patch: "usage",
        text: "#include <suture.h>\n\
            static int patched(int who, long *usage)\n\
            { (void)who; for (int i = 0; i < 18; ++i) usage[i] = 0; usage[0] = 4242; return 0; }\n\
            SUTURE_PATCH(\"usage\", SUTURE_OBJECT(\"libc.so.6\", SUTURE_FUNC(\"getrusage\", patched)));\n",
        start: memcached,
        ..PLAIN
    },
    Spec {
        name: "nginx",
        needs: ("nginx", "nginx-light"),
        patch: "timeless",
        text: "#include <suture.h>\n\
            SUTURE_OLD(unsigned char *, old_time, (unsigned char *buffer, long time));\n\
            static unsigned char *epoch(unsigned char *buffer, long time) { (void)time; return old_time(buffer, 0); }\n\
            SUTURE_PATCH(\"timeless\", SUTURE_OBJECT(SUTURE_MAIN,\n\
                SUTURE_FUNC_OLD(\"ngx_http_time\", epoch, old_time)));\n",
        processes: 2,
        start: nginx,
        ..PLAIN
    },
    Spec {
        name: "haproxy",
        needs: ("haproxy", "haproxy"),
        patch: "reason",
        text: "#include <suture.h>\n\
            static const char *patched(unsigned status) { (void)status; return \"Patched\"; }\n\
            SUTURE_PATCH(\"reason\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"http_get_reason\", patched)));\n",
        start: haproxy,
        ..PLAIN
    },
    Spec {
        name: "apache-prefork",
        needs: ("apache2", "apache2"),
        patch: "banner",
        text: BANNER,
        processes: 4,
        start: apache_prefork,
        ..PLAIN
    },
    Spec {
        name: "apache-event",
        needs: ("apache2", "apache2"),
        patch: "banner",
        text: BANNER,
        processes: 2,
        start: apache_event,
        ..PLAIN
    },
    Spec {
        name: "postgresql",
        needs: ("pgbench", "postgresql"),
        patch: "backend-pid",
        text: "#include <suture.h>\n\
            static unsigned long patched(void *call) { (void)call; return 424242; }\n\
            SUTURE_PATCH(\"backend-pid\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"pg_backend_pid\", patched)));\n",
        processes: CLIENTS,
        ends_by: Some(libc::SIGQUIT),
        start: postgres,
    },
    Spec {
        name: "mariadb",
        needs: ("mariadbd", "mariadb-server-core"),
        patch: "encrypt",
        text: "#include <suture.h>\n\
            static char *patched(const char *key, const char *salt)\n\
            { (void)key; (void)salt; return (char *)\"Suture\"; }\n\
            SUTURE_PATCH(\"encrypt\", SUTURE_OBJECT(\"libcrypt.so.1\", SUTURE_FUNC(\"crypt\", patched)));\n",
        start: mariadb,
        ..PLAIN
    },
    Spec {
        name: "python",
        needs: ("python3", "python3"),
        patch: "epoch",
        text: "#include <suture.h>\n\
            static void *patched(const long *time, int *broken)\n\
            { (void)time; for (int i = 0; i < 14; ++i) broken[i] = 0;\n\
              broken[3] = 1; broken[5] = 70; broken[6] = 4; return broken; }\n\
            SUTURE_PATCH(\"epoch\", SUTURE_OBJECT(\"libc.so.6\", SUTURE_FUNC(\"gmtime_r\", patched)));\n",
        start: python,
        ..PLAIN
    },
];

const BANNER: &str = "#include <suture.h>\n\
    static const char *patched(void) { return \"Suture\"; }\n\
    SUTURE_PATCH(\"banner\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"ap_get_server_banner\", patched)));\n";

fn http(port: u16, new: &'static str, old: &'static str) -> Connect {
    Box::new(move || Ok(Box::new(Http { port, new, old })))
}

fn lines(port: u16, asks: &'static [Ask]) -> Connect {
    Box::new(move || Ok(Box::new(Lines::connect(port, asks)?)))
}

/// A folder with a page that every user may read.
fn pages(lab: &Lab) -> PathBuf {
    let folder = lab.path("pages");
    fs::create_dir_all(&folder).expect("a directory");
    fs::write(folder.join("index.html"), "hello\n").expect("a page");
    folder
}

fn redis(lab: &Lab) -> Start {
    const ASKS: [Ask; 3] = [
        Ask { command: "SET key value\r\n", end: "+OK", new: "", old: "+OK" },
        Ask { command: "GET key\r\n", end: "value", new: "", old: "$5" },
        Ask { command: "PING\r\n", end: "+PONG", new: "+PONG from the patch", old: "+PONG" },
    ];
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--io-threads", "2"]);
    command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(lab.path(""));
    Start { command, connect: lines(port, &ASKS), children: false }
}

fn memcached(_: &Lab) -> Start {
    const ASKS: [Ask; 3] = [
        Ask { command: "set key 0 0 5\r\nvalue\r\n", end: "STORED", new: "", old: "STORED" },
        Ask { command: "get key\r\n", end: "END", new: "", old: "VALUE key" },
        Ask {
            command: "stats\r\n",
            end: "END",
            new: "STAT rusage_user 4242.000000",
            old: "STAT rusage_user",
        },
    ];
    let port = free_port();
    let mut command = Command::new("memcached");
    command.args(["-u", "nobody", "-t", "4", "-l", "127.0.0.1", "-U", "0", "-p", &port.to_string()]);
    Start { command, connect: lines(port, &ASKS), children: false }
}

fn nginx(lab: &Lab) -> Start {
    let (port, folder, pages) = (free_port(), lab.path(""), pages(lab));
    let folder = folder.display();
    let config = format!(
        "daemon off; user www-data; worker_processes 2; pid {folder}/nginx.pid; error_log {folder}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
         server {{ listen 127.0.0.1:{port}; root {}; }} }}\n",
        pages.display()
    );
    let mut command = Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(lab.write("nginx.conf", config)).arg("-e").arg(lab.path("error.log"));
    let connect = http(port, "Last-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "Last-Modified: ");
    Start { command, connect, children: true }
}

fn haproxy(lab: &Lab) -> Start {
    let (port, pages) = (free_port(), pages(lab));
    // By default it gives up the right to make threads: RLIMIT_NPROC is 0 then, for good.
    let config = format!(
        "global\n  nbthread 2\n  insecure-fork-wanted\n  user haproxy\n  group haproxy\n\
         defaults\n  mode http\n  timeout client 20s\n  timeout server 20s\n  timeout connect 20s\n\
         frontend pages\n  bind 127.0.0.1:{port}\n\
         \x20 http-request return status 200 content-type text/plain file {}/index.html\n",
        pages.display()
    );
    let mut command = Command::new("/usr/sbin/haproxy");
    command.args(["-db", "-q", "-f"]).arg(lab.write("haproxy.cfg", config));
    Start { command, connect: http(port, " 200 Patched\r\n", " 200 OK\r\n"), children: false }
}

fn apache_prefork(lab: &Lab) -> Start {
    apache(
        lab,
        "prefork",
        "StartServers 4\nMinSpareServers 4\nMaxSpareServers 4\nServerLimit 4\nMaxRequestWorkers 4\n",
    )
}

fn apache_event(lab: &Lab) -> Start {
    let limits = "StartServers 2\nServerLimit 2\nThreadsPerChild 8\nMaxRequestWorkers 16\n\
                  MinSpareThreads 1\nMaxSpareThreads 1000\n";
    apache(lab, "event", limits)
}

fn apache(lab: &Lab, mpm: &str, limits: &str) -> Start {
    let (port, folder, pages) = (free_port(), lab.path(""), pages(lab));
    let (folder, pages) = (folder.display(), pages.display());
    let module = |name: &str| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n");
    let modules: String = [&format!("mpm_{mpm}"), "authz_core", "dir"].iter().map(|m| module(m)).collect();
    let config = format!(
        "ServerName localhost\nServerRoot {folder}\nDefaultRuntimeDir {folder}\nMutex pthread default\n\
         PidFile {folder}/apache.pid\nErrorLog {folder}/error.log\nListen 127.0.0.1:{port}\n\
         User www-data\nGroup www-data\n{modules}{limits}MaxConnectionsPerChild 0\nKeepAlive Off\n\
         DirectoryIndex index.html\nDocumentRoot {pages}\n<Directory />\nRequire all granted\n</Directory>\n"
    );
    let mut command = Command::new("/usr/sbin/apache2");
    command.args(["-D", "FOREGROUND", "-f"]).arg(lab.write("apache.conf", config));
    Start { command, connect: http(port, "Server: Suture\r\n", "Server: Apache"), children: true }
}

fn python(lab: &Lab) -> Start {
    let (port, pages) = (free_port(), pages(lab));
    // Debian's, whatever else is in the search path.
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory"]).arg(pages);
    let connect = http(port, "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "Date: ");
    Start { command, connect, children: false }
}
