//! The demo service: an ordinary multi-threaded program with two bugs, to be patched while it runs.
//!
//! It answers a line protocol on a loopback TCP port, one connection per worker thread at a time:
//!
//! | request | answer | bug |
//! |---|---|---|
//! | `price N` | price of item N | the tax is forgotten: `N * 100` instead of `N * 119` |
//! | `greet NAME` | a greeting, made by `libsuture-demo.so` | misspelt: `helo, NAME` |
//! | `stop` | – | the service exits with status 0 |
//!
//! The first line on standard output is `listening PORT`; then, once a second while there are
//! requests, `served TOTAL (LAST/s)`. It knows nothing about patches.
//!
//! Usage: `suture-demo-service [WORKERS]`, 16 by default.

use std::ffi::{CStr, CString, c_char, c_int};
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

unsafe extern "C" {
    /// Writes a greeting for `name` into `out`; of `libsuture-demo.so`.
    fn greet(name: *const c_char, out: *mut c_char, len: usize) -> c_int;
}

/// Price of an item in cents, with the tax forgotten.
///
/// An ordinary function: neither exported nor prepared for patching in any way.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn price(item: u64) -> u64 {
    // Without `black_box` the compiler would compute the answer at the call instead.
    black_box(item).wrapping_mul(100)
}

fn main() -> ExitCode {
    let workers = std::env::args().nth(1).map_or(Ok(16), |text| text.parse::<usize>());
    let Ok(workers @ 1..) = workers else {
        eprintln!("usage: suture-demo-service [WORKERS]");
        return ExitCode::from(2);
    };
    match serve(workers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(workers: usize) -> io::Result<()> {
    let listener = Arc::new(TcpListener::bind("127.0.0.1:0")?);
    let served = Arc::new(AtomicU64::new(0));
    for index in 0..workers {
        let (listener, served) = (Arc::clone(&listener), Arc::clone(&served));
        thread::Builder::new().name(format!("worker-{index}")).spawn(move || work(&listener, &served))?;
    }
    let mut out = io::stdout();
    writeln!(out, "listening {}", listener.local_addr()?.port())?;
    out.flush()?;
    let mut before = 0;
    loop {
        thread::sleep(Duration::from_secs(1));
        let now = served.load(Ordering::Relaxed);
        if now != before {
            writeln!(out, "served {now} ({}/s)", now - before)?;
            out.flush()?;
        }
        before = now;
    }
}

fn work(listener: &TcpListener, served: &AtomicU64) {
    loop {
        match listener.accept() {
            // A client that goes away in mid-request is its own business.
            Ok((stream, _)) => drop(talk(stream, served)),
            Err(error) => {
                eprintln!("cannot accept: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn talk(stream: TcpStream, served: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        out.write_all(answer(&line?).as_bytes())?;
        served.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn answer(request: &str) -> String {
    match request.split_once(' ') {
        Some(("price", item)) => match item.parse() {
            Ok(item) => format!("{}\n", price(item)),
            Err(_) => String::from("error: not an item\n"),
        },
        Some(("greet", name)) => greeting(name),
        None if request == "stop" => std::process::exit(0),
        _ => String::from("error: unknown request\n"),
    }
}

fn greeting(name: &str) -> String {
    let Ok(name) = CString::new(name) else {
        return String::from("error: not a name\n");
    };
    let mut out: [c_char; 128] = [0; 128];
    // SAFETY: `greet` reads the NUL-terminated `name` and writes at most `out.len()` bytes,
    // NUL-terminated, to `out`; both live until it has returned.
    unsafe { greet(name.as_ptr(), out.as_mut_ptr(), out.len()) };
    // SAFETY: `out` was zeroed and `greet` terminates what it writes within it.
    let text = unsafe { CStr::from_ptr(out.as_ptr()) };
    format!("{}\n", text.to_string_lossy())
}
