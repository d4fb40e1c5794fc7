//! How often a thread was put on a processor: what proves that it did not run between two looks.
//!
//! `schedstat` says it, where the kernel counts (`CONFIG_SCHEDSTATS`, or delay accounting that is switched on). Where it
//! does not, that is 0 for everybody and proves nothing; the context switches in `status` stand in for it. The runtime
//! decides likewise (`transition/look.rs`).

use std::fs;
use suture_scan::proc::{run_count, switches};

/// What the kernel is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// For runs.
    Counted,
    /// For switches.
    Switches,
}

impl Runs {
    /// What this kernel counts.
    #[must_use]
    pub fn known() -> Self {
        // This thread was put on a processor at least once.
        match fs::read("/proc/thread-self/schedstat").ok().and_then(|text| run_count(&text)) {
            None | Some(0) => Self::Switches,
            Some(_) => Self::Counted,
        }
    }

    /// The count of a thread: `None` when it is gone, `Some(None)` when nothing says.
    #[must_use]
    pub fn of(self, pid: i32, tid: i32) -> Option<Option<u64>> {
        let text = |name: &str| fs::read(format!("/proc/{pid}/task/{tid}/{name}")).ok();
        match self {
            Self::Counted => Some(run_count(&text("schedstat")?)),
            Self::Switches => Some(switches(&text("status")?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_run_is_seen_and_none_is_made_up() {
        let pid = std::process::id().cast_signed();
        for runs in [Runs::known(), Runs::Switches] {
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
                runs.of(pid, tid).flatten().expect("a count")
            };
            let before = asleep();
            assert_eq!(runs.of(pid, tid), Some(Some(before)));
            go.send(()).expect("it waits");
            told.recv().expect("it ran");
            assert!(asleep() > before, "{runs:?}");
            drop(go);
            waits.join().expect("it ends");
            assert_eq!(runs.of(pid, tid), None, "{runs:?}");
        }
    }
}
