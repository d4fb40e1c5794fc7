//! Distribution servers under load.

use super::{Target, until};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

/// A server, perhaps with children, and clients that keep it busy. All end when dropped.
pub struct Server {
    pub name: &'static str,
    target: Target,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
    helper: Option<Child>,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(helper) = &mut self.helper {
            let _ = helper.kill();
            let _ = helper.wait();
        }
        // Before the server, so that no client waits for an answer.
        for pid in self.pids().into_iter().skip(1) {
            // SAFETY: a child of the server that this test started.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        self.target.kill();
        self.clients.drain(..).for_each(|client| _ = client.join());
    }
}

impl Server {
    /// The server's process, and the processes it made.
    pub fn pids(&self) -> Vec<i32> {
        let pid = self.target.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|p| p.parse().ok())).collect()
    }

    /// Starts clients that each call `work` until the end.
    fn with_clients(
        mut self,
        count: usize,
        work: impl Fn(usize, &AtomicBool) + Send + Sync + 'static,
    ) -> Self {
        let work = Arc::new(work);
        self.clients = (0..count)
            .map(|i| {
                let (work, stop) = (Arc::clone(&work), Arc::clone(&self.stop));
                std::thread::spawn(move || work(i, &stop))
            })
            .collect();
        self
    }
}

fn start(name: &'static str, program: &str, dir: tempfile::TempDir, args: &[&str]) -> Option<Server> {
    if !Path::new(program).exists() {
        println!("{name}: not looked at, there is no {program}");
        return None;
    }
    let target = Target::start_in(Path::new(program), args, dir.path());
    Some(Server { name, target, stop: Arc::default(), clients: Vec::new(), helper: None, _dir: dir })
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> Option<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    Some(stream)
}

pub fn redis(load: bool) -> Option<Server> {
    let port = free_port();
    let args = ["--bind", "127.0.0.1", "--save", "", "--io-threads", "2", "--port", &port.to_string()];
    let mut server = start("redis", "/usr/bin/redis-server", dir(), &args)?;
    until("redis", || connect(port));
    if load {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &port.to_string(), "-n", "100000000", "-c", "20", "-q"]);
        server.helper = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    Some(server)
}

pub fn nginx(load: bool) -> Option<Server> {
    let (port, dir) = (free_port(), dir());
    let root = dir.path().display().to_string();
    let config = format!(
        "daemon off; worker_processes 2; pid {root}/pid; error_log {root}/log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {root}/a; proxy_temp_path {root}/b; fastcgi_temp_path {root}/c;\n\
         uwsgi_temp_path {root}/d; scgi_temp_path {root}/e; gzip on; server {{ listen 127.0.0.1:{port}; root {root}; autoindex on; }} }}\n"
    );
    std::fs::write(dir.path().join("conf"), config).unwrap();
    std::fs::write(dir.path().join("page.html"), "hello ".repeat(20_000)).unwrap();
    let (conf, log) = (format!("{root}/conf"), format!("{root}/log"));
    let server = start("nginx", "/usr/sbin/nginx", dir, &["-c", &conf, "-e", &log])?;
    until("nginx", || connect(port));
    until("the workers of nginx", || (server.pids().len() >= 3).then_some(()));
    Some(server.with_clients(if load { 4 } else { 0 }, move |i, stop| {
        while !stop.load(Relaxed) {
            let Some(mut stream) = connect(port) else { return };
            let page = ["/page.html", "/", "/none"][i % 3];
            let request = format!("GET {page} HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n");
            let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut Vec::new()));
        }
    }))
}

/// Threads that wait for each other and call back and forth between Python and C.
const PYTHON: &str = "
import threading, queue, time, json, re, socket, zlib, sys
load = sys.argv[1] == 'load'
q = queue.Queue(10); lock = threading.Lock(); a, b = socket.socketpair()
def produce():
    while True:
        q.put(sorted([5, 3, 9, 1], key=lambda x: json.dumps(x)) if load else time.sleep(1) or 1)
def consume():
    while True:
        with lock: re.sub('[a-z]+', lambda m: m.group(0).upper(), str(q.get()) * 9)
def send():
    while True:
        a.sendall(zlib.compress(b'x' * 5000)[:90]); time.sleep(0.001 if load else 1)
def receive():
    while True: b.recv(90)
def nap():
    e = threading.Event()
    while True: e.wait(0.002 if load else 1)
ts = [threading.Thread(target=t, daemon=True) for t in (produce, consume, consume, send, receive, nap)]
[t.start() for t in ts]
open(sys.argv[2], 'w').close()
time.sleep(10000)
";

pub fn python(load: bool) -> Option<Server> {
    let dir = dir();
    let ready = dir.path().join("ready");
    let mode = if load { "load" } else { "idle" };
    let server = start("python", "/usr/bin/python3", dir, &["-c", PYTHON, mode, ready.to_str().unwrap()])?;
    until("python", || ready.exists().then_some(()));
    Some(server)
}

/// Debian keeps its programs out of the path.
const POSTGRES: &str = "/usr/lib/postgresql/15/bin";

pub fn postgres(load: bool) -> Option<Server> {
    let program = |name: &str| format!("{POSTGRES}/{name}");
    if !Path::new(&program("postgres")).exists() {
        println!("postgres: not looked at, there is no {POSTGRES}");
        return None;
    }
    // It refuses to run as root, so it has to reach its data as somebody else.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let data = dir.path().join("data");
    let (user, port) = ("postgres", free_port().to_string());
    let as_user = ["--reuid", user, "--regid", user, "--clear-groups", "--"];
    let run = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(as_user).args(args).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
    };
    let owned = Command::new("chown").args([user, dir.path().to_str()?]).status().unwrap();
    assert!(owned.success());
    assert!(run(&[&program("initdb"), "-D", data.to_str()?, "-A", "trust", "--no-sync"]));
    let socket = dir.path().to_str()?.to_owned();
    let executable = program("postgres");
    let wanted = [
        executable.as_str(),
        "-D",
        data.to_str()?,
        "-k",
        &socket,
        "-p",
        &port,
        "-h",
        "",
        "-c",
        "autovacuum=off",
    ];
    let args: Vec<&str> = as_user.into_iter().chain(wanted).collect();
    let bench = program("pgbench");
    let connection = ["-h", &socket, "-p", &port, "-U", user, user];
    let mut server = {
        let target = Target::start_in(Path::new("/usr/bin/setpriv"), &args, dir.path());
        let ready = || run(&[&[bench.as_str(), "-i", "-q"][..], &connection].concat()).then_some(());
        until("postgres", ready);
        Server {
            name: "postgres",
            target,
            stop: Arc::default(),
            clients: Vec::new(),
            helper: None,
            _dir: dir,
        }
    };
    if load {
        let mut command = Command::new(bench);
        command.args(["-c", "6", "-T", "1000000"]).args(connection);
        server.helper = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }
    Some(server)
}

/// A debugger that reads its own symbols, with its threads.
pub fn gdb(load: bool) -> Option<Server> {
    let work = "python\nwhile True: gdb.execute('info functions ^read', to_string=True)\nend\n";
    let dir = dir();
    let script = dir.path().join("script");
    std::fs::write(&script, if load { work } else { "" }).unwrap();
    let args = ["-q", "-nx", "-x", script.to_str()?, "/usr/bin/gdb"];
    let server = start("gdb", "/usr/bin/gdb", dir, &args)?;
    until("the threads of gdb", || (super::threads(server.target.pid()).len() > 1).then_some(()));
    Some(server)
}

pub fn mariadb(load: bool) -> Option<Server> {
    let (port, dir) = (free_port(), dir());
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join("mysql")).unwrap();
    let args = [
        "--no-defaults",
        "--user=root",
        "--skip-grant-tables",
        "--innodb-buffer-pool-size=16M",
        "--bind-address=127.0.0.1",
        "--socket=socket",
        "--pid-file=pid",
        "--log-error=log",
        &format!("--datadir={}", data.display()),
        &format!("--port={port}"),
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = start("mariadb", "/usr/sbin/mariadbd", dir, &args)?;
    until("mariadb", || Some(Sql::connect(port)?.query("CREATE DATABASE IF NOT EXISTS t")));
    let mut setup = Sql::connect(port).unwrap();
    for i in 0..3 {
        setup.query(&format!("CREATE TABLE t.t{i} (a INT PRIMARY KEY AUTO_INCREMENT, b INT, c VARCHAR(100), KEY (b)) ENGINE=InnoDB"));
    }
    Some(server.with_clients(if load { 12 } else { 3 }, move |i, stop| {
        let Some(mut sql) = Sql::connect(port) else { return };
        let mut n = i;
        while !stop.load(Relaxed) {
            n += 7;
            let query = match if load { n % 9 } else { 0 } {
                0 => "SELECT SLEEP(0.05)".to_owned(),
                1 => format!("INSERT INTO t.t{} (b, c) VALUES ({n}, REPEAT('x', {}))", n % 3, n % 100),
                2 => format!(
                    "SELECT COUNT(*), SUM(b), MAX(c) FROM t.t{} WHERE b > {} GROUP BY b % 10 ORDER BY 2 DESC",
                    n % 3,
                    n % 50
                ),
                3 => format!("UPDATE t.t{} SET b = b + 1 WHERE b = {}", n % 3, n % 30),
                4 => "SELECT x.a, y.b FROM t.t0 x JOIN t.t1 y USING (b) ORDER BY y.c LIMIT 5".to_owned(),
                5 => format!("SELECT GET_LOCK('l{}', 0.1), RELEASE_LOCK('l{}')", n % 2, n % 2),
                6 => format!("SELECT REGEXP_REPLACE(c, 'x+', 'y') FROM t.t{} WHERE a = {}", n % 3, n % 40),
                7 => "SELECT BENCHMARK(20000, MD5('x'))".to_owned(),
                _ => "SHOW ENGINE INNODB STATUS".to_owned(),
            };
            if !sql.query(&query) {
                return;
            }
        }
    }))
}

/// Just enough of the protocol to ask something and wait for the answer.
struct Sql(TcpStream);

impl Sql {
    fn connect(port: u16) -> Option<Self> {
        let mut sql = Self(connect(port)?);
        sql.packet()?;
        // Protocol 4.1, secure connection; no password.
        let mut answer = 0x8200u32.to_le_bytes().to_vec();
        answer.extend(0x100_0000u32.to_le_bytes());
        answer.push(33);
        answer.extend([0; 23]);
        answer.extend(b"root\0\0");
        sql.send(1, &answer)?;
        (sql.packet()?.first() == Some(&0)).then_some(sql)
    }

    fn send(&mut self, number: u8, body: &[u8]) -> Option<()> {
        let length = (body.len() as u32).to_le_bytes();
        let head = [length[0], length[1], length[2], number];
        self.0.write_all(&[&head[..], body].concat()).ok()
    }

    fn packet(&mut self) -> Option<Vec<u8>> {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).ok()?;
        let mut body = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// Asks, and reads the whole answer.
    fn query(&mut self, text: &str) -> bool {
        self.send(0, &[b"\x03", text.as_bytes()].concat()).and_then(|()| self.answer()).is_some()
    }

    fn answer(&mut self) -> Option<()> {
        // OK or error; else column descriptions, EOF, rows, EOF.
        if matches!(self.packet()?.first()?, 0 | 0xff) {
            return Some(());
        }
        let mut ends = 0;
        while ends < 2 {
            let packet = self.packet()?;
            match packet.first()? {
                0xfe if packet.len() < 9 => ends += 1,
                0xff => return Some(()),
                _ => {}
            }
        }
        Some(())
    }
}
