//! Processes at their limits: descriptors, threads, memory. Either the patch goes in all the same, or
//! it is refused by name; in both cases the process goes on as before.

use std::fs;
use std::path::{Path, PathBuf};
use suture_tests::command::{Outcome, apply, disable};
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Snapshot, Target, snapshot, sys};

/// Applies at the limit; if it is refused, tries again with the limit lifted.
fn at_limit(lab: &Lab, target: &mut Target, words: &[&str], lift: impl FnOnce(&Target)) -> Outcome {
    let patch = lab.value_patch("fix", 100);
    let before = Snapshot::of(target.pid());
    let outcome = apply(&patch, target.pid());
    Snapshot::of(target.pid()).assert_same_program(&before);
    if outcome.code() == 0 {
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
    } else {
        outcome.expect_refused(words);
        Snapshot::of(target.pid()).assert_untouched(&before);
    }
    assert_eq!(target.call(1), 2);
    lift(target);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    outcome
}

#[test]
fn out_of_descriptors() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let open = fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("descriptors").count() as u64;
    let old = sys::set_limit(target.pid(), libc::RLIMIT_NOFILE, (open, 4096)).expect("a limit");
    let lift = |t: &Target| _ = sys::set_limit(t.pid(), libc::RLIMIT_NOFILE, old).expect("the old limit");
    // The worker has a table of its own, so that a full one is none of its business.
    at_limit(&lab, &mut target, &[], lift).expect(0);
}

#[test]
fn no_descriptor_allowed_at_all() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let old = sys::set_limit(target.pid(), libc::RLIMIT_NOFILE, (0, 4096)).expect("a limit");
    let lift = |t: &Target| _ = sys::set_limit(t.pid(), libc::RLIMIT_NOFILE, old).expect("the old limit");
    at_limit(&lab, &mut target, &["descriptor"], lift);
}

#[test]
fn no_process_allowed_to_its_user() {
    let lab = Lab::new();
    let options = Options { user: Some(NOBODY), ..Options::default() };
    let mut target = lab.start_with("spin.c", &["1"], options);
    let old = sys::set_limit(target.pid(), libc::RLIMIT_NPROC, (0, 4096)).expect("a limit");
    let lift = |t: &Target| _ = sys::set_limit(t.pid(), libc::RLIMIT_NPROC, old).expect("the old limit");
    at_limit(&lab, &mut target, &["no thread can be made", "RLIMIT_NPROC"], lift);
}

/// A pids cgroup (version 2, else 1) that a test made; removed when dropped.
struct PidsCgroup(PathBuf);

impl PidsCgroup {
    fn new() -> Self {
        let name = format!("suture-test-{}", std::process::id());
        let v2 = Path::new("/sys/fs/cgroup");
        let has_pids = fs::read_to_string(v2.join("cgroup.controllers")).is_ok_and(|c| c.contains("pids"));
        if has_pids {
            // Fails where it is on already, or where processes sit in the root: then `pids.max` is missing.
            let _ = fs::write(v2.join("cgroup.subtree_control"), "+pids");
        }
        let parent = if has_pids { v2.to_owned() } else { v2.join("pids") };
        let folder = parent.join(name);
        fs::create_dir(&folder).unwrap_or_else(|e| {
            panic!(
                "no pids cgroup ({}: {e}): mount one, for instance: mount -t cgroup -o pids pids /mnt",
                folder.display()
            )
        });
        Self(folder)
    }

    fn set(&self, file: &str, text: &str) {
        let path = self.0.join(file);
        fs::write(&path, text).unwrap_or_else(|e| panic!("cannot write {text} to {}: {e}", path.display()));
    }
}

impl Drop for PidsCgroup {
    fn drop(&mut self) {
        // The target is gone by now; if not, the folder stays for the administrator to see.
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_pids_cgroup() {
    let lab = Lab::new();
    let cgroup = PidsCgroup::new();
    let mut target = lab.start_several();
    cgroup.set("cgroup.procs", &target.pid_text());
    cgroup.set("pids.max", "2");
    let refused =
        at_limit(&lab, &mut target, &["no thread can be made", "cgroup"], |_| cgroup.set("pids.max", "max"));
    refused.expect_refused_with_hint(&["no thread"]);
    drop(target);
}

#[test]
fn out_of_memory() {
    let lab = Lab::new();
    for spare in [0, 16 << 10, 256 << 10] {
        let mut target = lab.start_several();
        let used = snapshot::status_number(target.pid(), "VmSize") << 10;
        let limit = (used + spare, u64::MAX);
        let old = sys::set_limit(target.pid(), libc::RLIMIT_AS, limit).expect("a limit");
        let lift = |t: &Target| _ = sys::set_limit(t.pid(), libc::RLIMIT_AS, old).expect("the old limit");
        at_limit(&lab, &mut target, &["memory"], lift);
    }
}

#[test]
fn no_file_may_grow() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let old = sys::set_limit(target.pid(), libc::RLIMIT_FSIZE, (0, u64::MAX)).expect("a limit");
    let lift = |t: &Target| _ = sys::set_limit(t.pid(), libc::RLIMIT_FSIZE, old).expect("the old limit");
    // The command fills the files, with its own limit.
    at_limit(&lab, &mut target, &[], lift).expect(0);
}
