//! A process as a look at its threads needs it. Each test uses a part of this.
#![allow(dead_code)]

use crate::common::{Blocked, Remote, modules};
use std::path::Path;
use suture_elf::{Addr, Memory, ObjectFile};
use suture_scan::{Interval, Ranges};
use suture_stack::ends::{OwnThread, STACK_END, TID, ThreadLayout};
use suture_stack::scan::Scanned;
use suture_stack::{By, Refusal, StackCheck};
use suture_unwind::{Module, Registers, Unwinder};

pub struct Facts {
    pub pid: i32,
    pub modules: Vec<Module>,
    pub layout: ThreadLayout,
    contexts: Vec<Interval>,
}

impl Facts {
    pub fn of(pid: i32) -> Self {
        let (modules, memory) = (modules(pid), Remote(pid));
        let defined = |name: &str| {
            modules.iter().find_map(|m| {
                let file = ObjectFile::open(Path::new(&m.name)).ok()?;
                let symbol = file.symbols().named(name).find(|s| s.dynamic)?.addr;
                Some(m.base + symbol)
            })
        };
        let end = defined(STACK_END).and_then(|at: Addr| memory.read_u64(at).ok()).unwrap_or(0);
        let layout = ThreadLayout::read(&memory, &defined, end).unwrap();
        assert!(end != 0 && defined(TID).is_some(), "{layout:?}");
        let contexts = modules.iter().filter_map(Module::context_return);
        let contexts = contexts.map(|r| Interval { first: r.start, last: r.end }).collect();
        Self { pid, modules, layout, contexts }
    }

    /// In the tests' own pid namespace.
    pub fn thread(&self, tid: i32) -> OwnThread {
        OwnThread { tid: tid.cast_unsigned(), main: tid == self.pid, block: None }
    }

    pub fn memory(&self) -> Remote {
        Remote(self.pid)
    }

    pub fn scan(&self, tid: i32, sp: u64, searched: &[Interval]) -> Scanned {
        let ranges = Ranges::new(searched).unwrap();
        self.layout.scan(self.thread(tid), sp, &ranges, &Remote(self.pid), &[])
    }

    pub fn check(&self, tid: i32, at: Blocked, searched: &[Interval]) -> Result<By, Refusal> {
        let mut unwinder = Unwinder::new(&self.modules, Vec::new());
        self.check_with(&mut unwinder, tid, at, Ranges::new(searched).unwrap())
    }

    pub fn check_with<M: AsRef<[Module]>>(
        &self,
        unwinder: &mut Unwinder<M>,
        tid: i32,
        at: Blocked,
        searched: Ranges<'_>,
    ) -> Result<By, Refusal> {
        let memory = &Remote(self.pid);
        let contexts = Ranges::new(&self.contexts).unwrap();
        let (layout, readable) = (self.layout, &[]);
        StackCheck { searched, contexts, layout, stacks: 0, memory, readable, unwinder }.check(
            self.thread(tid),
            Registers::from_pc_sp(at.pc, at.sp),
            memory,
        )
    }
}
