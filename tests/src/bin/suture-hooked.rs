//! A program that redirects a function of its own with another library (the crate `ilhook`).
//!
//! | command | answer |
//! |---|---|
//! | `call N` | `call N = R`: what `value(N)` returned, N + 1 at first |
//! | `hook` | `hooked`: the library is at `value`, whose results become larger by 1000 |
//! | `unhook` | `unhooked`: the library has put back what it found |
//!
//! # Safety
//!
//! The library's own: it overwrites the first 5 or 14 bytes of `value`, which has more than that, no jump into them,
//! and no other thread in it, because the program has one.
#![allow(unsafe_code)]

use ilhook::x64::{CallbackOption, ClosureHookPoint, HookFlags, Registers, hook_closure_retn};
use std::hint::black_box;
use std::io::BufRead;

/// The function that is redirected, long enough for a jump to any address.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn value(n: i64) -> i64 {
    let n = black_box(n);
    let once = black_box(n.wrapping_mul(3));
    let twice = black_box(n.wrapping_mul(2));
    once.wrapping_sub(twice).wrapping_add(black_box(1))
}

/// What the library calls instead.
fn larger(registers: *mut Registers, original: usize) -> usize {
    // SAFETY: the library passes a copy of the registers at the call, and an address that has `value`'s
    // signature.
    let (argument, original) = unsafe {
        let argument = (*registers).rdi.cast_signed();
        (argument, std::mem::transmute::<usize, extern "C" fn(i64) -> i64>(original))
    };
    (original(argument) + 1000).cast_unsigned() as usize
}

fn hook() -> ClosureHookPoint<'static> {
    let entry = value as extern "C" fn(i64) -> i64 as usize;
    // SAFETY: at the top of this file.
    let hooked = unsafe { hook_closure_retn(entry, larger, CallbackOption::None, HookFlags::empty()) };
    hooked.unwrap_or_else(|error| panic!("the library cannot hook: {error}"))
}

fn main() {
    let mut point = None;
    println!("ready");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("call", n)) => {
                let n: i64 = n.parse().expect("a number");
                println!("call {n} = {}", value(n));
            }
            None if line == "hook" => {
                point = Some(hook());
                println!("hooked");
            }
            None if line == "unhook" => {
                drop(point.take());
                println!("unhooked");
            }
            _ => println!("unknown {line}"),
        }
    }
}
