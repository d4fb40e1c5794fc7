//! A picture of a process: what a command that was refused must leave as it was.

use crate::code;
use std::collections::BTreeMap;
use std::fs;

/// Everything a program could notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Threads by id: name and blocked signals.
    pub threads: BTreeMap<i32, (String, String)>,
    /// Descriptors by number: what they lead to.
    pub fds: BTreeMap<i32, String>,
    /// Ignored and caught signals.
    pub dispositions: (String, String),
    /// Tracer, 0 = none.
    pub tracer: String,
    /// Lines of the memory map.
    pub maps: Vec<String>,
    /// Code that is not the files'.
    pub code: Vec<code::Change>,
    /// Limit lines.
    pub limits: Vec<String>,
}

impl Snapshot {
    /// Takes one.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn of(pid: i32) -> Self {
        let status = status_fields(&format!("/proc/{pid}/status"));
        let field = |name: &str| status.get(name).cloned().unwrap_or_default();
        Self {
            threads: threads(pid),
            fds: fds(pid),
            dispositions: (field("SigIgn"), field("SigCgt")),
            tracer: field("TracerPid"),
            maps: lines(&format!("/proc/{pid}/maps")),
            code: code::changes(pid),
            limits: lines(&format!("/proc/{pid}/limits")),
        }
    }

    /// Fails unless everything is as in `before`.
    ///
    /// # Panics
    /// When something differs.
    #[track_caller]
    pub fn assert_untouched(&self, before: &Self) {
        self.assert_same_program(before);
        let (new, gone) = (missing(&self.maps, &before.maps), missing(&before.maps, &self.maps));
        assert!(new.is_empty() && gone.is_empty(), "memory map changed: new {new:#?}, gone {gone:#?}");
        assert_eq!(self.code, before.code, "code bytes");
    }

    /// Fails unless the program and all its code are as in `before`. For refusals that come when the
    /// worker is in already: the guard page of its stack may show in the memory map.
    ///
    /// # Panics
    /// When something differs.
    #[track_caller]
    pub fn assert_same_code(&self, before: &Self) {
        self.assert_same_program(before);
        assert_eq!(self.code, before.code, "code bytes");
        let code =
            |picture: &Self| picture.maps.iter().filter(|l| l.contains("xp ")).cloned().collect::<Vec<_>>();
        assert_eq!(code(self), code(before), "executable mappings");
    }

    /// Fails unless what the program can see of itself is as in `before`: memory and code, which
    /// patches change, are left out.
    ///
    /// # Panics
    /// When something differs.
    #[track_caller]
    pub fn assert_same_program(&self, before: &Self) {
        assert_eq!(self.threads, before.threads, "threads and their signal masks");
        assert_eq!(self.fds, before.fds, "descriptors");
        assert_eq!(self.dispositions, before.dispositions, "ignored and caught signals");
        assert_eq!(self.tracer, before.tracer, "tracer");
        assert_eq!(self.limits, before.limits, "limits");
    }
}

fn missing(in_this: &[String], in_that: &[String]) -> Vec<String> {
    in_this.iter().filter(|line| !in_that.contains(line)).cloned().collect()
}

fn lines(path: &str) -> Vec<String> {
    fs::read_to_string(path)
        .unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
        .lines()
        .map(str::to_owned)
        .collect()
}

fn status_fields(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .filter_map(|l| l.split_once(":\t"))
        .map(|(k, v)| (k.to_owned(), v.trim().to_owned()))
        .collect()
}

/// Ids of the threads.
///
/// # Panics
/// When there is no such process.
pub fn tasks(pid: i32) -> impl Iterator<Item = i32> {
    numbers(&format!("/proc/{pid}/task"))
}

/// Threads by id, with name and blocked signals. A thread that ends while it is looked at is left out.
#[must_use]
pub fn threads(pid: i32) -> BTreeMap<i32, (String, String)> {
    tasks(pid)
        .filter_map(|tid| {
            let status = status_fields(&format!("/proc/{pid}/task/{tid}/status"));
            Some((tid, (status.get("Name")?.clone(), status.get("SigBlk")?.clone())))
        })
        .collect()
}

/// State letters of the threads.
#[must_use]
pub fn states(pid: i32) -> Vec<char> {
    let state = |tid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
        stat.get(stat.rfind(')')? + 2..)?.chars().next()
    };
    tasks(pid).filter_map(state).collect()
}

/// Numbers of the system calls in which the threads sleep; `None` for one that runs.
#[must_use]
pub fn calls(pid: i32) -> Vec<Option<i64>> {
    let call = |tid: i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall")).unwrap_or_default();
        line.split(' ').next().and_then(|nr| nr.parse().ok())
    };
    tasks(pid).map(call).collect()
}

fn fds(pid: i32) -> BTreeMap<i32, String> {
    let folder = format!("/proc/{pid}/fd");
    numbers(&folder)
        .filter_map(|fd| {
            Some((fd, fs::read_link(format!("{folder}/{fd}")).ok()?.to_string_lossy().into_owned()))
        })
        .collect()
}

fn numbers(folder: &str) -> impl Iterator<Item = i32> + use<> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("cannot list {folder}: {e}"));
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok())
}

/// A number of `/proc/PID/status`.
///
/// # Panics
/// When there is no such field.
#[must_use]
pub fn status_number(pid: i32, field: &str) -> u64 {
    let fields = status_fields(&format!("/proc/{pid}/status"));
    let value = fields.get(field).and_then(|v| v.split_ascii_whitespace().next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no number {field} for process {pid}"))
}
