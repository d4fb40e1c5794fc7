//! Debian's nginx, whose workers gave up root for `www-data`.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use suture_tests::command::{apply, suture};
use suture_tests::server::nginx::{Nginx, PROGRAM};
use suture_tests::{Lab, Snapshot, code, repeat, report, snapshot};

const FUNCTIONS: [&str; 2] = ["ngx_http_set_etag", "ngx_http_time"];
const PATCHED: &str = "\r\nLast-Modified: Thu, 01 Jan 1970 00:00:00 GMT\r\n";

/// A patch of two functions that every module may call and that therefore are in `.dynsym`: files
/// have no ETag any more and were all modified in 1970.
fn timeless(lab: &Lab) -> PathBuf {
    let text = "\
        #include <suture.h>\n\
        SUTURE_OLD(unsigned char *, old_time, (unsigned char *buffer, long time));\n\
        static unsigned char *epoch(unsigned char *buffer, long time) { (void)time; return old_time(buffer, 0); }\n\
        static long no_etag(void *request) { (void)request; return 0; }\n\
        SUTURE_PATCH(\"timeless\", SUTURE_OBJECT(SUTURE_MAIN,\n\
            SUTURE_FUNC(\"ngx_http_set_etag\", no_etag),\n\
            SUTURE_FUNC_OLD(\"ngx_http_time\", epoch, old_time)));\n";
    lab.patch("timeless", text)
}

fn is_patched(response: &str) -> bool {
    assert!(
        response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nhello\n"),
        "{response}"
    );
    response.contains(PATCHED)
}

fn on_workers(nginx: &Nginx, command: &[&str]) -> suture_tests::Outcome {
    let pids: Vec<String> = nginx.workers().iter().map(ToString::to_string).collect();
    let mut args = command.to_vec();
    args.extend(["--json", "--pid"]);
    args.extend(pids.iter().map(String::as_str));
    suture(&args)
}

/// Descriptors of connections come and go; what belongs to the worker itself stays.
fn without_connections(pid: i32) -> Snapshot {
    let mut picture = Snapshot::of(pid);
    picture.fds.retain(|_, leads_to| !leads_to.starts_with("socket:"));
    picture
}

fn apply_and_disable(nginx: &Nginx, patch: &str) {
    for cycle in 0..repeat(10, 50) {
        let document = on_workers(nginx, &["apply", patch]).expect(0).json();
        let rows = document["results"].as_array().cloned().unwrap_or_default();
        assert_eq!(rows.len(), 2, "{document:#}");
        rows.iter().for_each(|row| assert_eq!(row["details"]["stops"], 1, "cycle {cycle}: {row:#}"));
        let response = nginx.get("/");
        assert!(is_patched(&response) && !response.contains("\r\nETag: "), "cycle {cycle}: {response}");
        on_workers(nginx, &["disable", "timeless"]).expect(0);
        let response = nginx.get("/");
        assert!(!is_patched(&response) && response.contains("\r\nETag: "), "cycle {cycle}: {response}");
    }
}

#[test]
fn responses_change_and_come_back_under_load() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab);
    let patch = timeless(&lab).to_string_lossy().into_owned();
    let workers = nginx.workers();
    for &worker in &workers {
        assert_ne!(snapshot::status_number(worker, "Uid"), 0, "the workers run as www-data");
    }
    let before: Vec<_> = workers.iter().map(|&w| without_connections(w)).collect();
    let (stop, old, new) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let counter = if is_patched(&nginx.get("/")) { &new } else { &old };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let result = catch_unwind(AssertUnwindSafe(|| apply_and_disable(&nginx, &patch)));
        // Without this the clients would never end, and the scope not either.
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic));
    });
    let (old, new) = (old.load(Ordering::Relaxed), new.load(Ordering::Relaxed));
    println!("{old} old and {new} new responses");
    assert!(old > 0 && new > 0, "{old} old, {new} new");
    assert_eq!(nginx.workers(), workers, "no worker was replaced");
    for (worker, before) in workers.iter().zip(&before) {
        for function in FUNCTIONS {
            let file = Path::new(PROGRAM);
            assert_eq!(
                code::live_entry(*worker, file, function),
                code::file_entry(file, function),
                "{function}"
            );
        }
        without_connections(*worker).assert_same_program(before);
    }
}

#[test]
fn the_master_hands_its_patch_to_new_workers() {
    let lab = Lab::new();
    let nginx = Nginx::start(&lab);
    let patch = timeless(&lab);
    let old = nginx.workers();
    apply(&patch, nginx.master()).expect(0);
    assert!(!is_patched(&nginx.get("/")), "the workers were forked before");
    suture_tests::sys::kill(nginx.master(), libc::SIGHUP);
    let all_new = || nginx.workers().len() == 2 && nginx.workers().iter().all(|w| !old.contains(w));
    suture_tests::poll::until_true("two new workers", all_new);
    assert!(is_patched(&nginx.get("/")));
    for worker in nginx.workers() {
        assert_eq!(report::patches(worker), ["timeless"]);
    }
    on_workers(&nginx, &["disable", "timeless"]).expect(0);
    assert!(!is_patched(&nginx.get("/")));
    assert_eq!(report::patches(nginx.master()), ["timeless"]);
}
