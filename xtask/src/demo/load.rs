//! Load for the demo service: clients that ask without a pause and look at every answer.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// What a request may be answered, before and with the patch.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The request.
    pub request: &'static str,
    /// The answer of the unpatched service.
    pub old: &'static str,
    /// The answer of the patched service.
    pub new: &'static str,
}

/// What the clients saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Answers of the unpatched service.
    pub old: u64,
    /// Answers of the patched service.
    pub new: u64,
    /// Answers that are neither.
    pub wrong: u64,
    /// The longest time an answer took.
    pub longest: Duration,
}

/// One connection to the service.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<TcpStream>,
}

impl Client {
    /// Connects to the service on this machine.
    pub fn connect(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends one request and waits for its answer.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes())?;
        let mut answer = String::new();
        if self.reader.read_line(&mut answer)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the service closed the connection"));
        }
        Ok(answer.trim_end().to_owned())
    }
}

/// Clients at work in threads of their own.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<io::Result<Seen>>>,
}

impl Load {
    /// Starts that many clients.
    pub fn start(port: u16, clients: usize, requests: &'static [Expected]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = (0..clients)
            .map(|_| {
                let client = Client::connect(port).context("cannot connect to the service")?;
                let stop = Arc::clone(&stop);
                Ok(thread::spawn(move || work(client, requests, &stop)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { stop, clients })
    }

    /// Stops the clients and adds up what they saw; a request that failed is an error.
    pub fn finish(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Seen::default();
        for client in self.clients {
            let seen =
                client.join().map_err(|_| anyhow!("a client panicked"))?.context("a request failed")?;
            sum.old += seen.old;
            sum.new += seen.new;
            sum.wrong += seen.wrong;
            sum.longest = sum.longest.max(seen.longest);
        }
        Ok(sum)
    }
}

fn work(mut client: Client, requests: &[Expected], stop: &AtomicBool) -> io::Result<Seen> {
    let mut seen = Seen::default();
    for expected in requests.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let answer = client.ask(expected.request)?;
        seen.longest = seen.longest.max(start.elapsed());
        match answer.as_str() {
            answer if answer == expected.old => seen.old += 1,
            answer if answer == expected.new => seen.new += 1,
            _ => seen.wrong += 1,
        }
    }
    Ok(seen)
}
