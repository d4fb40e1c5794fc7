//! An independent count of calls that ended with EINTR: a library that is preloaded into the server, wraps
//! the calls that can be interrupted, and counts in a file that all processes of the server share.

use crate::lab::{self, Lab};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

/// The library and its file.
#[derive(Clone, Debug)]
pub struct Counter {
    library: PathBuf,
    file: PathBuf,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls.
    pub calls: u64,
    /// Those that ended with EINTR.
    pub eintr: u64,
    /// Which, of the last ones: the call, and the process by name and number.
    pub which: Vec<String>,
}

impl Counts {
    /// Adds others.
    pub fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.eintr += more.eintr;
        self.which.extend(more.which);
    }
}

/// Entries of the log behind the counts.
const LOGGED: u64 = 100;

impl Counter {
    /// Compiles the library.
    ///
    /// # Panics
    /// When the compiler refuses it.
    #[must_use]
    pub fn new(lab: &Lab) -> Self {
        let source = crate::dist::root().join("tests/targets/eintr.c");
        let library = lab.path("eintr.so");
        lab::compile(&source, &library, &["-O2", "-fPIC", "-shared", "-pthread"]);
        let file = lab.write("eintr.counts", [0; 4096]);
        // For servers that are started as another user.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).expect("chmod");
        Self { library, file }
    }

    /// Lets a program be counted.
    pub fn attach(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("EINTR_COUNTS", &self.file);
    }

    /// What was counted since the last time.
    ///
    /// # Panics
    /// When the file is gone.
    #[must_use]
    pub fn take(&self) -> Counts {
        let bytes = fs::read(&self.file).expect("the counts");
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let entry = |n: u64| {
            let at = 16 + 16 * usize::try_from(n).expect("a small number");
            let (pid, name) = (word(at), bytes[at + 8..at + 16].escape_ascii().to_string());
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} in process {pid} ({})", name.trim_end_matches("\\x00"), comm.trim())
        };
        let (calls, eintr) = (word(0), word(8));
        let counts = Counts { calls, eintr, which: (0..eintr.min(LOGGED)).map(entry).collect() };
        // In place: the servers have it mapped.
        let file = fs::OpenOptions::new().write(true).open(&self.file).expect("the counts");
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 16], 0).expect("writing the counts");
        counts
    }
}
