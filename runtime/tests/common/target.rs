//! A running victim: its memory, its threads, what the kernel says of it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use suture_abi::block::{Rows, RuntimeBlock};
use suture_abi::event::{EVENT_RING_LEN, Event};

pub struct Target {
    pub pid: i32,
    pub names: BTreeMap<String, u64>,
    mem: File,
    child: Option<Child>,
}

impl Target {
    /// Starts the victim with the library preloaded.
    pub fn start() -> Self {
        Self::start_as(|_| ())
    }

    /// Starts it as `prepare` says.
    pub fn start_as(prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(super::victim());
        command.env("LD_PRELOAD", super::library()).stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().expect("the victim starts");
        let mut names = BTreeMap::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let (name, addr) = line.split_once(' ').unwrap();
            if name == "ready" {
                break;
            }
            names.insert(name.to_owned(), u64::from_str_radix(addr.trim_start_matches("0x"), 16).unwrap());
        }
        let pid = child.id() as i32;
        Target { pid, names, mem: open_mem(pid), child: Some(child) }
    }

    /// The child the victim forks, with the same addresses.
    pub fn fork(&self) -> Self {
        self.write(self.at("fork_now"), &1u64.to_le_bytes());
        let pid = super::eventually("the fork", || Some(self.counter("forked")).filter(|p| *p != 0)) as i32;
        Target { pid, names: self.names.clone(), mem: open_mem(pid), child: None }
    }

    pub fn at(&self, name: &str) -> u64 {
        self.names[name]
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_exact_at(&mut bytes, addr).unwrap();
        bytes
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_all_at(bytes, addr).unwrap();
    }

    pub fn word(&self, addr: u64) -> u64 {
        u64::from_le_bytes(self.read(addr, 8).try_into().unwrap())
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.word(self.at(name))
    }

    fn field32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(self.at("block") + offset as u64, 4).try_into().unwrap())
    }

    pub fn worker(&self) -> u32 {
        self.field32(offset_of!(RuntimeBlock, worker))
    }

    pub fn channel_fd(&self) -> u32 {
        self.field32(offset_of!(RuntimeBlock, channel_fd))
    }

    pub fn rows_seq(&self) -> u32 {
        self.field32(offset_of!(RuntimeBlock, rows_seq))
    }

    pub fn block_word(&self, offset: usize) -> u64 {
        self.word(self.at("block") + offset as u64)
    }

    pub fn generation(&self) -> u64 {
        self.block_word(offset_of!(RuntimeBlock, generation))
    }

    /// Waits until the worker has left.
    pub fn await_no_worker(&self) {
        super::eventually("the worker to leave", || (self.worker() == 0).then_some(()));
    }

    /// A table of the block.
    pub fn rows<T: Copy>(&self, offset: usize) -> Vec<T> {
        let bytes = self.read(self.at("block") + offset as u64, size_of::<Rows>());
        // SAFETY: `Rows` is integers and the buffer is that long.
        let rows = unsafe { bytes.as_ptr().cast::<Rows>().read_unaligned() };
        if rows.count == 0 {
            return Vec::new();
        }
        assert_eq!(rows.row_size as usize, size_of::<T>());
        let bytes = self.read(rows.addr, rows.count as usize * size_of::<T>());
        // SAFETY: rows of the contract are integers; each chunk is one row long.
        bytes
            .chunks_exact(size_of::<T>())
            .map(|b| unsafe { b.as_ptr().cast::<T>().read_unaligned() })
            .collect()
    }

    /// Words of all events so far.
    pub fn events(&self) -> Vec<u32> {
        let count = self.block_word(offset_of!(RuntimeBlock, event_count)) as usize;
        assert!(count <= EVENT_RING_LEN);
        let ring = self.block_word(offset_of!(RuntimeBlock, events));
        let bytes = self.read(ring, count * size_of::<Event>());
        let record = |b: &[u8]| {
            // SAFETY: events are integers; the chunk is one long.
            unsafe { b.as_ptr().cast::<Event>().read_unaligned() }
        };
        let events: Vec<Event> = bytes.chunks_exact(size_of::<Event>()).map(record).collect();
        assert!(events.iter().zip(1..).all(|(e, n)| e.number == n && e.time_ns != 0));
        events.iter().map(|e| e.word).collect()
    }

    /// Thread ids.
    pub fn threads(&self) -> Vec<i32> {
        let mut tids: Vec<i32> = fs::read_dir(format!("/proc/{}/task", self.pid))
            .unwrap()
            .map(|e| e.unwrap().file_name().to_str().unwrap().parse().unwrap())
            .collect();
        tids.sort_unstable();
        tids
    }

    /// Descriptors and what they lead to.
    pub fn descriptors(&self) -> Vec<(String, String)> {
        let dir = format!("/proc/{}/fd", self.pid);
        let mut fds: Vec<_> = fs::read_dir(&dir)
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                let to = fs::read_link(e.path()).unwrap();
                (e.file_name().into_string().unwrap(), to.display().to_string())
            })
            .collect();
        fds.sort();
        fds
    }

    /// Signal masks and handlers of every thread.
    pub fn signals(&self) -> Vec<String> {
        self.threads()
            .iter()
            .flat_map(|tid| {
                let status = fs::read_to_string(format!("/proc/{}/task/{tid}/status", self.pid)).unwrap();
                // SigQ counts the signals of all processes of the user.
                let own = |l: &&str| l.starts_with("Sig") && !l.starts_with("SigQ") || l.starts_with("Shd");
                let lines = status.lines().filter(own);
                lines.map(|l| format!("{tid} {l}")).collect::<Vec<_>>()
            })
            .collect()
    }

    pub fn maps(&self) -> Vec<(u64, u64, String)> {
        let text = fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap();
        text.lines()
            .map(|line| {
                let (range, rest) = line.split_once(' ').unwrap();
                let (from, to) = range.split_once('-').unwrap();
                let hex = |s| u64::from_str_radix(s, 16).unwrap();
                (hex(from), hex(to), rest.to_owned())
            })
            .collect()
    }

    /// `pages` free pages below the mapping that holds `addr`.
    pub fn hole_below(&self, addr: u64, pages: u64) -> u64 {
        let maps = self.maps();
        let mut top = maps.iter().position(|(from, to, _)| (*from..*to).contains(&addr)).unwrap();
        loop {
            let floor = if top == 0 { 0x10000 } else { maps[top - 1].1 };
            let wanted = (pages + 32) * 4096;
            if maps[top].0 - floor >= wanted {
                return maps[top].0 - wanted;
            }
            top -= 1;
        }
    }

    /// The state of a thread and the number of the call it is in.
    pub fn syscall_of(&self, tid: i32) -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{}/task/{tid}/syscall", self.pid)).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    pub fn is_alive(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        status.contains("State:") && !status.contains("Z (zombie)")
    }
}

fn open_mem(pid: i32) -> File {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap()
}

impl Drop for Target {
    fn drop(&mut self) {
        // SAFETY: a process this test started.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        if let Some(child) = &mut self.child {
            let _ = child.wait();
        }
    }
}
