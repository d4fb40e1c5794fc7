//! Doing what a row says.

use super::look;
use crate::compare::notation;
use crate::demo::Demo;
use crate::fixture::Fixture;
use crate::product;
use crate::report::Mode;
use crate::scn::{Action, Query, Row, Verb, Want};
use std::collections::HashMap;
use std::path::PathBuf;
use suture_tests::command::Running;
use suture_tests::dist::dist;
use suture_tests::poll;

/// A row being played.
#[derive(Debug)]
pub struct Scene<'r> {
    pub(super) demo: Demo,
    row: &'r Row,
    files: HashMap<String, PathBuf>,
    /// Where the libraries are.
    folder: PathBuf,
    /// Number of the last event that does not count.
    from: u64,
    /// The same in forked children, by process id.
    children: HashMap<i32, u64>,
    background: Option<Running>,
    noted: HashMap<u64, String>,
    /// What stood at entries before a probe was put there.
    probed: HashMap<String, u8>,
}

impl<'r> Scene<'r> {
    /// Compiles what the row needs and starts the program.
    pub fn begin(fixture: &Fixture, row: &'r Row, mode: Mode) -> Result<Self, String> {
        row.libraries.iter().for_each(|name| fixture.library(name));
        let folder = fixture.libraries();
        let compiled = |p| fixture.patch(&row.id, p);
        let files = row.patches.iter().map(|p| (p.label.clone(), compiled(p))).collect();
        let mut demo = Demo::start(fixture, mode == Mode::Preloaded);
        if mode == Mode::Injected {
            product::inject(demo.pid())?;
        }
        for library in &row.loaded {
            demo.ask(&format!("load {library}"), &format!("load {library} = ok"))?;
        }
        demo.ask(&format!("command {}", dist().suture.display()), "command")?;
        for thread in &row.threads {
            demo.spawn("M", thread, None)?;
        }
        Ok(Self {
            demo,
            row,
            files,
            folder,
            from: 0,
            children: HashMap::new(),
            background: None,
            noted: HashMap::new(),
            probed: HashMap::new(),
        })
    }

    /// Events from now on are those of the steps. The setup's own must be over.
    pub fn count_from_now(&mut self) -> Result<(), String> {
        let pid = self.demo.pid();
        if !self.row.setup.is_empty() {
            // What goes with the last transition is logged behind its end.
            poll::until("the setup to come to rest", || {
                let status = product::status(pid).ok()?;
                (status["transition"].is_null() && status["worker"] == false).then_some(())
            });
        }
        self.from = product::log(pid)?.last().map_or(0, |e| e.number);
        Ok(())
    }

    /// Events of the steps so far, in the notation of the rows.
    pub fn events(&mut self) -> Result<Vec<String>, String> {
        // The log first: a callback that runs meanwhile is in the journal only.
        let log = product::log(self.demo.pid())?;
        let journal = self.demo.journal()?;
        let all = notation(&log, &journal)?;
        Ok(all.into_iter().filter(|(number, _)| *number > self.from).map(|(_, text)| text).collect())
    }

    /// Events of a child since it was forked.
    pub(super) fn child_events(&self, pid: i32) -> Result<Vec<String>, String> {
        let from = self.children.get(&pid).copied().unwrap_or(0);
        let log: Vec<_> = product::log(pid)?.into_iter().filter(|e| e.number > from).collect();
        Ok(notation(&log, &[])?.into_iter().map(|(_, text)| text).collect())
    }

    /// Does one thing.
    pub fn take(&mut self, action: &Action) -> Result<(), String> {
        let pid = self.demo.pid();
        match action {
            Action::Command(verb, patch, want) => self.command(*verb, patch, want, pid),
            Action::Finish(want) => {
                let running = self.background.take().ok_or("there is no command in the background")?;
                product::judge(&running.finish(), want)
            }
            Action::Set(path, value, want) => product::set(path, value, pid, want),
            Action::Get(path, want) => same(want, &product::get(path, pid)?),
            Action::Check(query, want) => self.look(query, pid)?.judge(want),
            Action::Until(query, want) => self.until(query, want, pid),
            Action::On(child, inner) => {
                let child = self.demo.id(child);
                match &**inner {
                    Action::Command(verb, patch, want) => self.command(*verb, patch, want, child),
                    Action::Check(query, want) => self.look(query, child)?.judge(want),
                    Action::Until(query, want) => self.until(query, want, child),
                    _ => Err("cannot be done in a child".into()),
                }
            }
            Action::Note(state) => {
                let shadow = self.demo.ask(&format!("shadow {state}"), &format!("shadow {state} = "))?;
                self.noted.insert(*state, address(&shadow)?);
                Ok(())
            }
            Action::Same(state) => {
                let shadow = self.demo.ask(&format!("shadow {state}"), &format!("shadow {state} = "))?;
                let noted = self.noted.get(state).ok_or("its place was not noted")?;
                same(noted, &address(&shadow)?)
            }
            other => self.tell(other),
        }
    }

    /// Steps the program itself does.
    fn tell(&mut self, action: &Action) -> Result<(), String> {
        let demo = &mut self.demo;
        match action {
            Action::Load(library) => {
                same("ok", &demo.ask(&format!("load {library}"), &format!("load {library} = "))?)
            }
            Action::Unload(library) => {
                same("ok", &demo.ask(&format!("unload {library}"), &format!("unload {library} = "))?)
            }
            Action::Call(thread, function, want) => same(
                want,
                &demo.ask(&format!("{thread} call {function}"), &format!("{thread} {function} = "))?,
            ),
            Action::Pair(thread, want) => {
                same(want, &demo.ask(&format!("{thread} pair"), &format!("{thread} pair = "))?)
            }
            Action::Park(thread, function, depth) => {
                let inside = format!("{thread} inside {function}");
                demo.ask(&format!("{thread} enter {function} {depth}"), &inside).map(drop)
            }
            Action::Release(thread, want) => {
                let left = demo.ask(&format!("{thread} leave"), &format!("{thread} left "))?;
                let told = left.split_once(" = ").map_or("", |(_, told)| told);
                want.as_ref().map_or(Ok(()), |want| same(want, told))
            }
            Action::Exit(thread) => {
                demo.ask(&format!("{thread} exit"), &format!("{thread} exits"))?;
                demo.await_end(thread);
                Ok(())
            }
            Action::Spawn(by, child, function) => demo.spawn(by, child, function.as_deref()),
            Action::Fork(by, child) => {
                let pid = demo.fork(by, child)?;
                let last = product::log(pid)?.last().map_or(0, |e| e.number);
                self.children.insert(pid, last);
                Ok(())
            }
            Action::Hammer(count, function) => {
                demo.ask(&format!("hammer {count} {function}"), &format!("hammer {count}")).map(drop)
            }
            Action::Lent(what, want) => same(want, &demo.ask(&format!("lent {what}"), "lent = ")?),
            Action::Go => demo.ask("go", "go").map(drop),
            Action::Hook(function) => demo.ask(&format!("hook {function}"), "hook ").map(drop),
            Action::Probe(function, true) => {
                let before = demo.probe(function, BREAKPOINT);
                self.probed.insert(function.clone(), before);
                Ok(())
            }
            Action::Probe(function, false) => {
                let before = self.probed.remove(function).ok_or("there is no probe on it")?;
                demo.probe(function, before);
                Ok(())
            }
            Action::Restore(function) => {
                demo.restore(function);
                Ok(())
            }
            other => Err(format!("{other:?} is not for the program")),
        }
    }

    fn command(&mut self, verb: Verb, patch: &str, want: &Want, pid: i32) -> Result<(), String> {
        let declared = self.row.patches.iter().find(|p| p.label == patch).map_or(patch, |p| p.name.as_str());
        let file = self.file(patch);
        let blind = self.row.blind.iter().any(|label| label == patch);
        let absent = self.row.libraries.iter().filter(|l| !blind && !self.row.loaded.contains(l));
        let known: Vec<_> = absent.map(|l| self.folder.join(format!("lib{l}.so"))).collect();
        let running = product::begin(verb, declared, &file, &known, pid, want);
        if *want == Want::Later {
            let before = self.background.replace(running);
            return before.map_or(Ok(()), |_| Err("one command in the background at a time".into()));
        }
        product::judge(&running.finish(), want)
    }

    fn until(&mut self, query: &Query, want: &str, pid: i32) -> Result<(), String> {
        let mut last = String::new();
        let mut rounds = match query {
            // One attempt takes a second; patience is counted anew for each.
            Query::Attempts => want.parse::<u32>().map_err(|_| "attempts are a number")?,
            _ => 1,
        };
        loop {
            rounds = rounds.saturating_sub(1);
            let found = poll::until_or(
                || match self.look(query, pid).and_then(|seen| seen.judge(want)) {
                    Ok(()) => Some(true),
                    Err(what) => {
                        last = what;
                        None
                    }
                },
                || false,
            );
            if found || rounds == 0 {
                return if found { Ok(()) } else { Err(format!("waited in vain: {last}")) };
            }
        }
    }

    fn look(&mut self, query: &Query, pid: i32) -> Result<look::Seen, String> {
        look::look(self, query, pid)
    }

    /// Patch file of a patch of the row.
    pub(super) fn file(&self, label: &str) -> PathBuf {
        self.files.get(label).cloned().unwrap_or_default()
    }

    /// Thread id or process id of a name.
    pub(super) fn id(&self, name: &str) -> i32 {
        self.demo.id(name)
    }

    /// Name in the process of a patch of the row.
    pub(super) fn patch_name<'a>(&'a self, label: &'a str) -> &'a str {
        self.row.patches.iter().find(|p| p.label == label).map_or(label, |p| p.name.as_str())
    }

    /// Nothing may be left over.
    pub fn end(self) -> Result<(), String> {
        self.background.map_or(Ok(()), |_| Err("the row ends with a command in the background".into()))
    }
}

/// `int3`.
const BREAKPOINT: u8 = 0xcc;

/// What was wanted is what was seen.
pub(super) fn same(want: &str, seen: &str) -> Result<(), String> {
    if want == seen { Ok(()) } else { Err(format!("wanted {want:?}, got {seen:?}")) }
}

/// From `CONTENT @ADDRESS`.
fn address(shadow: &str) -> Result<String, String> {
    let at = shadow.rsplit_once('@').map(|(_, at)| at.to_owned());
    at.ok_or_else(|| format!("there is no variable: {shadow}"))
}
