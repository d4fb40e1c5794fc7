//! The doorbell and the worker's life, on a program that notices every trace.

mod common;

use common::client::Client;
use common::eventually;
use common::ring::{ring, ring_with};
use common::target::Target;
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
