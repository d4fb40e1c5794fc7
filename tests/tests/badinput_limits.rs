//! Processes at their limits: descriptors, threads, memory. Either the patch goes in all the same, or
//! it is refused by name; in both cases the process goes on as before.

use std::fs;
use std::path::{Path, PathBuf};
use suture_tests::command::{Outcome, apply, disable, suture};
use suture_tests::sys::{self, SoftLimit};
use suture_tests::target::{NOBODY, Options};
use suture_tests::{Lab, Snapshot, Target, snapshot};

/// Applies at the limit; then again with the limit lifted.
fn at_limit(lab: &Lab, target: &mut Target, words: &[&str], lift: impl FnOnce()) -> Outcome {
    let patch = lab.value_patch("fix", 100);
    let before = Snapshot::of(target.pid());
    let outcome = apply(&patch, target.pid());
    Snapshot::of(target.pid()).assert_same_program(&before);
    if outcome.code() == 0 {
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
    } else {
        outcome.expect_refused(words);
        Snapshot::of(target.pid()).assert_same_code(&before);
    }
    assert_eq!(target.call(1), 2);
    lift();
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    outcome
}

#[test]
fn out_of_descriptors() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let open = fs::read_dir(format!("/proc/{}/fd", target.pid())).expect("descriptors").count() as u64;
    let limit = SoftLimit::lower(target.pid(), libc::RLIMIT_NOFILE, open);
    // The worker has a table of its own, so that a full one is none of its business.
    at_limit(&lab, &mut target, &[], || limit.lift()).expect(0);
}

#[test]
fn no_descriptor_allowed_at_all() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let limit = SoftLimit::lower(target.pid(), libc::RLIMIT_NOFILE, 0);
    at_limit(&lab, &mut target, &["descriptor"], || limit.lift());
}

#[test]
fn no_process_allowed_to_its_user() {
    let lab = Lab::new();
    let user = Some(NOBODY);
    let limits = vec![(libc::RLIMIT_NPROC, (0, 4096))];
    // Single-threaded: with this limit it could not have made a second one either.
    let mut target = lab.start_with("memory.c", &[], Options { user, limits, ..Options::default() });
    let pid = target.pid();
    let lift = || sys::limit_as(NOBODY, pid, "--nproc=4096:4096");
    at_limit(&lab, &mut target, &["no thread can be made", "RLIMIT_NPROC"], lift)
        .expect_refused_with_hint(&[]);
}

/// A pids cgroup (version 2, else 1) that a test made; removed when dropped.
struct PidsCgroup(PathBuf);

impl PidsCgroup {
    fn new(name: &str) -> Self {
        let name = format!("suture-test-{name}-{}", std::process::id());
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
    let cgroup = PidsCgroup::new("full");
    let mut target = lab.start_several();
    cgroup.set("cgroup.procs", &target.pid_text());
    cgroup.set("pids.max", "2");
    let refused =
        at_limit(&lab, &mut target, &["no thread can be made", "cgroup"], || cgroup.set("pids.max", "max"));
    refused.expect_refused_with_hint(&["no thread"]);
    drop(target);
}

#[test]
fn a_full_pids_cgroup_is_seen_before_anything_is_touched() {
    let lab = Lab::new();
    let cgroup = PidsCgroup::new("untouched");
    let patch = lab.value_patch("fix", 100);
    let mut target =
        lab.start_with("threads.c", &["1", "0"], Options { preload: false, ..Options::default() });
    let (file, pid) = (patch.to_string_lossy().into_owned(), target.pid_text());
    cgroup.set("cgroup.procs", &pid);
    cgroup.set("pids.max", "2");
    let before = Snapshot::of(target.pid());
    for command in [["check"].as_slice(), &["inject"], &["apply", &file]] {
        let refused = suture(&[command, &["--pid", &pid]].concat());
        refused.expect_refused_with_hint(&[
            "no thread can be made",
            "suture-test-untouched",
            "pids.max is 2",
        ]);
        Snapshot::of(target.pid()).assert_untouched(&before);
    }
    cgroup.set("pids.max", "max");
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    drop(target);
}

#[test]
fn out_of_memory() {
    let lab = Lab::new();
    for spare in [0, 16 << 10, 256 << 10] {
        let mut target = lab.start_several();
        let used = snapshot::status_number(target.pid(), "VmSize") << 10;
        let limit = SoftLimit::lower(target.pid(), libc::RLIMIT_AS, used + spare);
        at_limit(&lab, &mut target, &["memory"], || limit.lift());
    }
}

#[test]
fn no_file_may_grow() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let limit = SoftLimit::lower(target.pid(), libc::RLIMIT_FSIZE, 0);
    // The command fills the files, with its own limit.
    at_limit(&lab, &mut target, &[], || limit.lift()).expect(0);
}
