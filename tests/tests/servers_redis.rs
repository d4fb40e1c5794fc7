//! Debian's redis-server under the load of 50 clients.

use std::path::PathBuf;
use suture_tests::code;
use suture_tests::command::{apply, disable};
use suture_tests::dist::root;
use suture_tests::server::redis::Redis;
use suture_tests::{Lab, Snapshot, repeat, report, snapshot};

/// The program's file, without the link that names it.
fn program(pid: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("the server's program")
}

/// Descriptors of the clients come and go with the load; what belongs to the server itself stays.
fn without_clients(mut picture: Snapshot) -> Snapshot {
    picture.fds.retain(|_, leads_to| !leads_to.starts_with("socket:"));
    picture
}

#[test]
fn a_reply_changes_and_comes_back_under_load() {
    let lab = Lab::new();
    let redis = Redis::start(&lab);
    let patch = lab.patch_file(&root().join("samples/redis-ping.c"), "redis-ping");
    let file = program(redis.pid());
    let before = without_clients(Snapshot::of(redis.pid()));
    let cycles = repeat(10, 50);
    let mut load = redis.load(repeat(300_000, 3_000_000));
    let mut under_load = 0;
    for cycle in 0..cycles {
        let applied = report::apply(&patch, redis.pid());
        assert_eq!(applied["stops"], 1, "cycle {cycle}: {applied:#}");
        assert_eq!(redis.command("PING"), "+PONG from the patch", "cycle {cycle}");
        let disabled = report::disable("redis-ping", redis.pid());
        assert_eq!(disabled["stops"], 1, "cycle {cycle}: {disabled:#}");
        assert_eq!(redis.command("PING"), "+PONG", "cycle {cycle}");
        under_load += usize::from(load.running());
    }
    let figures = load.finish();
    println!("{under_load} of {cycles} cycles under load: {figures:?}");
    assert_eq!(figures.len(), 3, "the load did not finish: {figures:?}");
    assert!(under_load * 2 >= cycles, "the load ended too early: {under_load} of {cycles} cycles");
    assert_eq!(code::live_entry(redis.pid(), &file, "pingCommand"), code::file_entry(&file, "pingCommand"));
    without_clients(Snapshot::of(redis.pid())).assert_same_program(&before);
}

#[test]
fn io_threads_are_neither_stopped_nor_added() {
    let lab = Lab::new();
    let redis = Redis::start(&lab);
    let patch = lab.patch_file(&root().join("samples/redis-ping.c"), "redis-ping");
    let threads = snapshot::threads(redis.pid());
    assert!(threads.len() >= 3, "{threads:?}");
    apply(&patch, redis.pid()).expect(0);
    assert_eq!(snapshot::threads(redis.pid()), threads);
    assert_eq!(report::status(redis.pid())["threads"], threads.len());
    // A fork of the patched server: its child writes the database and ends well.
    assert_eq!(redis.command("SET key value"), "+OK");
    assert_eq!(redis.command("BGSAVE"), "+Background saving started");
    let saving = || redis.info("persistence", "rdb_bgsave_in_progress");
    suture_tests::poll::until_true("the save to end", || saving() == "0");
    assert_eq!(redis.info("persistence", "rdb_last_bgsave_status"), "ok");
    disable("redis-ping", redis.pid()).expect(0);
    assert_eq!(snapshot::threads(redis.pid()), threads);
}
