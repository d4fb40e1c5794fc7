//! Debian's redis-server under the load of 50 clients.

use std::path::PathBuf;
use suture_tests::code;
use suture_tests::command::{apply, disable};
use suture_tests::dist::root;
use suture_tests::server::redis::Redis;
use suture_tests::{Lab, Snapshot, poll, repeat, report};

/// The program's file, without the link that names it.
fn program(pid: i32) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/exe")).expect("the server's program")
}

/// Descriptors of the clients and jemalloc's own threads come and go with the load; what belongs to
/// the server itself stays.
fn without_clients(mut picture: Snapshot) -> Snapshot {
    picture.threads.retain(|_, (name, _)| name != "jemalloc_bg_thd");
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
    let load = redis.load(&lab);
    let number = |key: &str| redis.info("stats", key).parse::<u64>().expect("a number");
    for cycle in 0..repeat(10, 50) {
        let served = number("total_commands_processed");
        let applied = report::apply(&patch, redis.pid());
        assert_eq!(applied["stops"], 1, "cycle {cycle}: {applied:#}");
        assert_eq!(redis.command("PING"), "+PONG from the patch", "cycle {cycle}");
        let disabled = report::disable("redis-ping", redis.pid());
        assert_eq!(disabled["stops"], 1, "cycle {cycle}: {disabled:#}");
        assert_eq!(redis.command("PING"), "+PONG", "cycle {cycle}");
        // More than one command of each client: the load goes on meanwhile.
        poll::until_true("the clients to be served", || number("total_commands_processed") > served + 50);
    }
    load.stop();
    println!("{} commands served", number("total_commands_processed"));
    assert_eq!(number("total_error_replies"), 0);
    assert_eq!(number("rejected_connections"), 0);
    assert_eq!(code::live_entry(redis.pid(), &file, "pingCommand"), code::file_entry(&file, "pingCommand"));
    without_clients(Snapshot::of(redis.pid())).assert_same_program(&before);
}

#[test]
fn io_threads_are_neither_stopped_nor_added() {
    let lab = Lab::new();
    let redis = Redis::start(&lab);
    let patch = lab.patch_file(&root().join("samples/redis-ping.c"), "redis-ping");
    let threads = || without_clients(Snapshot::of(redis.pid())).threads;
    let before = threads();
    assert!(before.values().any(|(name, _)| name.starts_with("io_thd_")), "{before:?}");
    apply(&patch, redis.pid()).expect(0);
    assert_eq!(threads(), before);
    // A fork of the patched server: its child writes the database and ends well.
    assert_eq!(redis.command("SET key value"), "+OK");
    assert_eq!(redis.command("BGSAVE"), "+Background saving started");
    let saving = || redis.info("persistence", "rdb_bgsave_in_progress");
    poll::until_true("the save to end", || saving() == "0");
    assert_eq!(redis.info("persistence", "rdb_last_bgsave_status"), "ok");
    disable("redis-ping", redis.pid()).expect(0);
    assert_eq!(threads(), before);
}
