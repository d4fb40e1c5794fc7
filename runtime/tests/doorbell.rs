//! The doorbell and the worker's life, on a program that notices every trace.

mod common;

use common::client::Client;
use common::eventually;
use common::ring::{ring, ring_with};
use common::target::Target;
use std::os::unix::process::CommandExt;
use suture_abi::block::RuntimeBlock;
use suture_abi::channel::{CHANNEL_MAGIC, error, op};

const SYS_READ: u64 = 0;

fn thread_in(target: &Target, call: u64) -> i32 {
    eventually("a thread in that call", || {
        target.threads().into_iter().find(|tid| target.syscall_of(*tid) == Some(call))
    })
}

#[test]
fn two_hundred_rings_leave_no_trace() {
    let target = Target::start();
    let before = (target.threads(), target.descriptors(), target.signals());
    let rounds = target.counter("rounds");
    for n in 0..200 {
        let tid = before.0[n % before.0.len()];
        ring(&target, tid);
        let client = Client::connect(&target);
        let [generation, block, ..] = client.expect(op::HELLO, [0; 4], &[]);
        assert_eq!((generation, block), (0, target.at("block")));
        // SAFETY: page 0 of the channel is mapped.
        assert_eq!(unsafe { (*client.header()).magic }, CHANNEL_MAGIC);
        client.expect(op::SYNC, [0; 4], &[]);
        assert_eq!(client.request(999, [0; 4], &[]).0, error::UNKNOWN_OP);
        assert_eq!(target.descriptors(), before.1, "the program's table while the worker lives");
        assert_eq!(client.worker_fds(), 1, "the worker must not hold the program's files open");
        // SAFETY: a call on an open descriptor.
        let cut = unsafe { libc::ftruncate(client.fd(), 0) };
        assert_eq!(cut, -1, "a truncated channel would kill the program");
        client.expect(op::BYE, [0; 4], &[]);
        target.await_no_worker();
    }
    assert_eq!((target.threads(), target.descriptors(), target.signals()), before);
    // Both counters of the victim must have had the chance to grow after the last ring.
    let timeouts = target.counter("timeouts");
    eventually("another timeout", || (target.counter("timeouts") > timeouts + 1).then_some(()));
    assert!(target.counter("rounds") > rounds + 10);
    assert_eq!(target.counter("eintr"), 0, "calls ended with EINTR");
    assert_eq!(target.counter("wrong"), 0, "registers, results or timeouts were wrong");
}

#[test]
fn a_second_ring_makes_no_second_worker() {
    let target = Target::start();
    let tids = target.threads();
    ring(&target, tids[0]);
    let client = Client::connect(&target);
    let threads = target.threads();
    assert_eq!(threads.len(), tids.len() + 1);
    for tid in &tids {
        ring(&target, *tid);
    }
    client.expect(op::HELLO, [0; 4], &[]);
    assert_eq!((target.worker(), target.threads()), (client.worker, threads));
    client.expect(op::BYE, [0; 4], &[]);
    target.await_no_worker();
    assert_eq!(target.threads(), tids);
}

#[test]
fn a_waiting_signal_decides_as_the_kernel_would() {
    let target = Target::start();
    let reader = thread_in(&target, SYS_READ);
    let send = |signal: i32| {
        // SAFETY: a signal for a thread of a process this test started.
        unsafe { libc::syscall(libc::SYS_tgkill, target.pid, reader, signal) };
    };
    // With SA_RESTART the handler runs and the call goes on.
    ring_with(&target, reader, || send(libc::SIGUSR1));
    eventually("the handler", || (target.counter("handled") == 1).then_some(()));
    eventually("the call", || (target.syscall_of(reader) == Some(SYS_READ)).then_some(()));
    assert_eq!(target.counter("eintr"), 0);
    // Without it the call ends with EINTR, once.
    ring_with(&target, reader, || send(libc::SIGUSR2));
    eventually("the handler", || (target.counter("handled") == 2).then_some(()));
    eventually("the call's end", || (target.counter("eintr") == 1).then_some(()));
    // An ignored one is not waited for.
    ring_with(&target, reader, || send(libc::SIGURG));
    eventually("the call", || (target.syscall_of(reader) == Some(SYS_READ)).then_some(()));
    assert_eq!((target.counter("handled"), target.counter("eintr")), (2, 1));
}

#[test]
fn a_worker_whose_client_dies_leaves() {
    let target = Target::start();
    ring(&target, target.pid);
    let client = Client::connect(&target);
    client.expect(op::HELLO, [0; 4], &[]);
    drop(client);
    target.await_no_worker();
    assert_eq!(target.channel_fd(), u32::MAX);
    ring(&target, target.pid);
    Client::connect(&target).expect(op::HELLO, [0; 4], &[]);
}

#[test]
fn a_worker_without_a_client_leaves() {
    let target = Target::start();
    ring(&target, target.pid);
    eventually("the worker", || (target.channel_fd() != u32::MAX).then_some(()));
    target.await_no_worker();
    assert_eq!(target.channel_fd(), u32::MAX);
}

#[test]
fn a_limit_on_file_sizes_does_not_matter() {
    let target = Target::start_as(|command| {
        let limit = || {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: a plain call on a live local.
            match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(limit) };
    });
    ring(&target, target.pid);
    let client = Client::connect(&target);
    client.expect(op::HELLO, [0; 4], &[]);
    client.expect(op::BYE, [0; 4], &[]);
    target.await_no_worker();
    assert!(target.is_alive());
}

#[test]
fn a_worker_that_cannot_open_its_channel_says_why() {
    let target = Target::start();
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a plain call on a live local, for a process this test started.
    let set =
        unsafe { libc::prlimit(target.pid, libc::RLIMIT_NOFILE, &raw const none, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    ring(&target, target.pid);
    let offset = std::mem::offset_of!(RuntimeBlock, worker_errno);
    let errno = || target.block_word(offset) as i32;
    eventually("the reason", || (errno() == libc::EMFILE).then_some(()));
    target.await_no_worker();
    assert!(target.is_alive() && target.channel_fd() == u32::MAX);
}
