//! shapes.rs - the plain shape of shapes.c, in Rust.
use std::io::{Read, Write};

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn g() -> i64 {
    std::hint::black_box(1)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn f(n: i64, inside: extern "C" fn()) -> i64 {
    let a = g();
    inside();
    n + a + g()
}

fn line() -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match std::io::stdin().read(&mut byte) {
            Ok(1) if byte[0] == b'\n' => return String::from_utf8_lossy(&line).into_owned(),
            Ok(1) => line.push(byte[0]),
            _ => std::process::exit(0),
        }
    }
}

fn answer(text: &str) {
    let mut out = std::io::stdout();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

extern "C" fn stop_here() {
    answer("inside");
    let _ = line();
}

fn main() {
    answer("ready");
    loop {
        if line() == "do plain" {
            let result = std::hint::black_box(f as extern "C" fn(i64, extern "C" fn()) -> i64)(5, stop_here);
            answer(&format!("plain = {result}"));
        }
    }
}
