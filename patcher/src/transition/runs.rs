//! How often a thread was put on a processor: what proves that it did not run between two looks. The runtime decides
//! likewise (`transition/look.rs`).

use std::fs;
use suture_scan::proc::Runs;

/// What this kernel counts.
#[must_use]
pub fn known() -> Runs {
    Runs::by(&fs::read("/proc/thread-self/schedstat").unwrap_or_default())
}

/// The count of a thread: `None` when it is gone, `Some(None)` when nothing says.
#[must_use]
pub fn of(runs: Runs, pid: i32, tid: i32) -> Option<Option<u64>> {
    Some(runs.of(&fs::read(format!("/proc/{pid}/task/{tid}/{}", runs.file())).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_run_is_seen_and_none_is_made_up() {
        let pid = std::process::id().cast_signed();
        for runs in [known(), Runs::Switches] {
            let ((go, gone), (tell, told)) = (mpsc::channel::<()>(), mpsc::channel());
            let waits = std::thread::spawn(move || {
                let link = fs::read_link("/proc/thread-self").expect("a link");
                let tid: i32 = link.file_name().and_then(|n| n.to_str()?.parse().ok()).expect("a number");
                while tell.send(tid).is_ok() && gone.recv().is_ok() {}
            });
            let tid: i32 = told.recv().expect("its number");
            let asleep = || {
                while crate::sys::proc::state(pid, tid) != Some('S') {
                    std::thread::yield_now();
                }
                of(runs, pid, tid).flatten().expect("a count")
            };
            let before = asleep();
            assert_eq!(of(runs, pid, tid), Some(Some(before)));
            go.send(()).expect("it waits");
            told.recv().expect("it ran");
            assert!(asleep() > before, "{runs:?}");
            drop(go);
            waits.join().expect("it ends");
            assert_eq!(of(runs, pid, tid), None, "{runs:?}");
        }
    }
}
