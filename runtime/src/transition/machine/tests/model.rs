//! What is to happen, said as plainly as can be.

use super::{
    CALLBACKS, Code, EBUSY, ECANCELED, EINVAL, ENOENT, FUNCS, Host, POST_PATCH, POST_UNPATCH, PRE_PATCH,
    PRE_UNPATCH, Patch, State,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Idle,
    Unpatched,
    Patched,
}

#[derive(Clone, Debug)]
pub struct Thread {
    pub side: Side,
    pub frames: Vec<Code>,
    pub runs: bool,
}

#[derive(Clone, Debug)]
struct Listed {
    patch: Patch,
    nops: BTreeSet<usize>,
    enabled: bool,
    forced: bool,
}

impl Listed {
    fn holds(&self, id: u64) -> bool {
        self.patch.states.iter().any(|s| s.id == id)
    }

    fn blocks(&self) -> bool {
        self.patch.states.iter().any(|s| s.block_disable)
    }

    fn entries(&self) -> BTreeSet<usize> {
        self.patch.funcs.iter().chain(&self.nops).copied().collect()
    }
}

/// One patch's function on a function's stack.
#[derive(Clone, Copy, Debug)]
struct Entry {
    patch: char,
    nop: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Init,
    Running,
    Completing,
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Call(char, State, usize),
    Free(char, State),
}

#[derive(Clone, Debug)]
struct Moving {
    patch: char,
    begun: Side,
    target: Side,
    phase: Phase,
    todo: VecDeque<Action>,
    /// States of the patch whose `pre_patch` was tried, and whether it succeeded.
    introduced: Vec<(State, bool)>,
    /// States that were told that they go.
    told: Vec<(char, State)>,
    error: Option<u32>,
    forced: bool,
}

#[derive(Debug)]
pub struct Model {
    list: Vec<Listed>,
    prepared: Option<Listed>,
    stacks: Vec<Vec<Entry>>,
    moving: Option<Moving>,
    pub threads: BTreeMap<u32, Thread>,
    pub events: Vec<String>,
    pub host: Host,
    /// A callback was begun; whether it has returned.
    pub at_work: Option<bool>,
    /// Start fails with this, once.
    pub start_errno: Option<u32>,
    /// Patches that are gone, and whether threads may be in them for ever.
    pub left: BTreeSet<(char, bool)>,
}

fn opposite(side: Side) -> Side {
    if side == Side::Patched { Side::Unpatched } else { Side::Patched }
}

fn sign(target: Side) -> char {
    if target == Side::Patched { '+' } else { '-' }
}

enum Worked {
    All,
    Failed(u32),
    Waits(&'static str),
}

impl Model {
    pub fn new(threads: u32) -> Self {
        let thread = Thread { side: Side::Idle, frames: Vec::new(), runs: false };
        Model {
            list: Vec::new(),
            prepared: None,
            stacks: vec![Vec::new(); FUNCS],
            moving: None,
            threads: (1..=threads).map(|tid| (tid, thread.clone())).collect(),
            events: Vec::new(),
            host: Host::Quick,
            at_work: None,
            start_errno: None,
            left: BTreeSet::new(),
        }
    }

    fn say(&mut self, event: String) {
        self.events.push(event);
    }

    // ---- what can be seen ----

    /// Listed patches, oldest first: name, enabled, forced.
    pub fn listed(&self) -> Vec<(char, bool, bool)> {
        self.list.iter().map(|l| (l.patch.name, l.enabled, l.forced)).collect()
    }

    /// Who holds which states.
    pub fn holders(&self) -> Vec<(char, u64)> {
        let of = |l: &Listed| l.patch.states.iter().map(|s| (l.patch.name, s.id)).collect::<Vec<_>>();
        self.list.iter().flat_map(of).collect()
    }

    /// The patch whose threads move, or will, or have, and whether it is to be in effect.
    pub fn transition(&self) -> Option<(char, bool)> {
        self.moving.as_ref().map(|m| (m.patch, m.target == Side::Patched))
    }

    /// What a thread gets to when it calls.
    pub fn effect(&self, tid: u32, func: usize) -> Code {
        let mut stack = &self.stacks[func][..];
        let marked = |e: &Entry| {
            self.moving.as_ref().is_some_and(|m| m.patch == e.patch && m.phase != Phase::Completing)
        };
        if stack.last().is_some_and(marked) && self.threads[&tid].side == Side::Unpatched {
            stack = &stack[..stack.len() - 1];
        }
        match stack.last() {
            Some(entry) if !entry.nop => Code::New(entry.patch, func),
            _ => Code::Old(func),
        }
    }

    pub fn has_prepared(&self) -> bool {
        self.prepared.is_some()
    }

    fn get(&self, name: char) -> Option<&Listed> {
        self.list.iter().find(|l| l.patch.name == name)
    }

    fn get_mut(&mut self, name: char) -> &mut Listed {
        self.list.iter_mut().find(|l| l.patch.name == name).unwrap()
    }

    // ---- operations ----

    pub fn prepare(&mut self, patch: Patch) {
        let mut nops = BTreeSet::new();
        if patch.replace {
            nops.extend(self.list.iter().flat_map(Listed::entries));
            nops.retain(|f| !patch.funcs.contains(f));
        }
        self.prepared = Some(Listed { patch, nops, enabled: false, forced: false });
    }

    pub fn abort(&mut self) {
        self.prepared = None;
    }

    pub fn enable(&mut self) -> u32 {
        let Some(new) = self.prepared.clone() else { return ENOENT };
        let lacks = |s: &State| s.block_disable && !new.holds(s.id);
        if new.patch.replace && self.list.iter().any(|l| l.patch.states.iter().any(lacks)) {
            return EINVAL;
        }
        if self.moving.is_some() {
            return EBUSY;
        }
        self.prepared = None;
        let (name, replace) = (new.patch.name, new.patch.replace);
        let mut todo = VecDeque::new();
        for state in new.patch.states.iter().filter(|s| !self.list.iter().any(|l| l.holds(s.id))) {
            todo.push_back(Action::Call(name, *state, PRE_PATCH));
        }
        for (at, old) in self.list.iter().enumerate().filter(|_| replace) {
            for state in &old.patch.states {
                let newer = self.list[at + 1..].iter().any(|l| l.holds(state.id));
                if !new.holds(state.id) && !newer {
                    todo.push_back(Action::Call(old.patch.name, *state, PRE_UNPATCH));
                }
            }
        }
        self.list.push(new);
        self.say(format!("enable {name}"));
        self.init(name, Side::Patched, todo);
        0
    }

    fn init(&mut self, patch: char, target: Side, todo: VecDeque<Action>) {
        self.moving = Some(Moving {
            patch,
            begun: target,
            target,
            phase: Phase::Init,
            todo,
            introduced: Vec::new(),
            told: Vec::new(),
            error: None,
            forced: false,
        });
        self.threads.values_mut().for_each(|t| t.side = opposite(target));
        self.say(format!("init{} {patch}", sign(target)));
    }

    pub fn write_enabled(&mut self, name: char, value: bool) -> u32 {
        let Some(patch) = self.get(name).cloned() else { return ENOENT };
        let own = self.moving.as_ref().is_some_and(|m| m.patch == name);
        if patch.enabled == value {
            return EINVAL;
        }
        if patch.enabled && patch.blocks() {
            return EINVAL;
        }
        if own {
            return self.reverse(name);
        }
        if value {
            return EINVAL;
        }
        if self.moving.is_some() {
            return EBUSY;
        }
        let alone = |s: &&State| self.list.iter().filter(|l| l.holds(s.id)).count() == 1;
        let told = patch.patch.states.iter().filter(alone);
        let todo = told.map(|s| Action::Call(name, *s, PRE_UNPATCH)).collect();
        self.init(name, Side::Unpatched, todo);
        0
    }

    /// Turns a transition round; one that has not started for want of a host is given up.
    pub fn reverse(&mut self, name: char) -> u32 {
        let own = |m: &Moving| m.patch == name;
        if !self.moving.as_ref().is_some_and(own) {
            return EINVAL;
        }
        // What callbacks have returned counts.
        while self.moving.as_ref().is_some_and(|m| m.phase == Phase::Init) {
            match self.work() {
                Worked::All => self.start(),
                Worked::Failed(errno) => self.cancel(errno),
                Worked::Waits("host") if self.moving.as_ref().unwrap().begun == Side::Patched => {
                    self.cancel(ECANCELED);
                    return 0;
                }
                Worked::Waits(_) => break,
            }
        }
        let m = self.moving.as_ref().unwrap();
        let target = opposite(m.target);
        if target == Side::Unpatched && self.get(name).unwrap().blocks() {
            return EINVAL;
        }
        if m.phase != Phase::Running {
            return EBUSY;
        }
        self.moving.as_mut().unwrap().target = target;
        self.get_mut(name).enabled = target == Side::Patched;
        self.say(format!("rev{} {name}", sign(target)));
        self.say(format!("start{} {name}", sign(target)));
        0
    }

    pub fn force(&mut self, name: char) -> u32 {
        let Some(m) = self.moving.as_mut().filter(|m| m.patch == name) else { return EINVAL };
        if m.phase != Phase::Running {
            return EBUSY;
        }
        m.forced = true;
        let m = m.clone();
        let replaces = m.begun == Side::Patched && self.get(name).unwrap().patch.replace;
        for listed in &mut self.list {
            let own = listed.patch.name == name;
            let goes = if m.target == Side::Unpatched { own } else { replaces && !own };
            listed.forced |= goes;
        }
        let mut count = 0;
        for thread in self.threads.values_mut().filter(|t| t.side != m.target) {
            thread.side = m.target;
            count += 1;
        }
        self.say(format!("forced {name} {count}"));
        0
    }

    // ---- threads ----

    pub fn look(&mut self, tid: u32) {
        let Some(m) = self.moving.as_ref().filter(|m| m.phase == Phase::Running) else { return };
        let thread = &self.threads[&tid];
        if thread.side == m.target || thread.runs || thread.frames.iter().any(|code| self.is_searched(*code))
        {
            return;
        }
        let target = m.target;
        self.threads.get_mut(&tid).unwrap().side = target;
    }

    fn is_searched(&self, code: Code) -> bool {
        let m = self.moving.as_ref().unwrap();
        let has = self.get(m.patch).unwrap().entries();
        match code {
            Code::Old(func) => has.contains(&func),
            Code::New(patch, _) | Code::Part(patch) if m.target == Side::Unpatched => patch == m.patch,
            Code::Part(_) => false,
            Code::New(patch, func) => {
                let stack = &self.stacks[func];
                let own = stack.iter().position(|e| e.patch == m.patch);
                has.contains(&func)
                    && own.and_then(|at| at.checked_sub(1)).is_some_and(|below| {
                        let entry = stack[below];
                        entry.patch == patch && !entry.nop
                    })
            }
        }
    }

    // ---- phases ----

    /// Goes on as far as can be; says what it waits for.
    pub fn advance(&mut self) -> &'static str {
        loop {
            let Some(phase) = self.moving.as_ref().map(|m| m.phase) else { return "nothing" };
            match phase {
                Phase::Init => match self.work() {
                    Worked::All => self.start(),
                    Worked::Failed(errno) => self.cancel(errno),
                    Worked::Waits(waits) => return waits,
                },
                Phase::Running => {
                    let tids: Vec<u32> = self.threads.keys().copied().collect();
                    tids.into_iter().for_each(|tid| self.look(tid));
                    let target = self.moving.as_ref().unwrap().target;
                    if self.threads.values().any(|t| t.side != target) {
                        return "threads";
                    }
                    self.say(format!("completing{} {}", sign(target), self.moving.as_ref().unwrap().patch));
                    self.complete();
                }
                Phase::Completing => match self.work() {
                    Worked::Waits(waits) => return waits,
                    _ => self.done(),
                },
            }
        }
    }

    /// Runs what the phase has to run.
    fn work(&mut self) -> Worked {
        while let Some(action) = self.moving.as_ref().unwrap().todo.front().copied() {
            let (what, there) = match action {
                Action::Call(patch, state, which) => {
                    (format!("{}({patch},{})", CALLBACKS[which], state.id), state.has[which])
                }
                Action::Free(patch, state) => (format!("dtor({patch},{})", state.id), state.has_dtor),
            };
            if there {
                match (self.at_work, self.host) {
                    (Some(true), _) => {}
                    (Some(false), _) => return Worked::Waits("callback"),
                    (None, Host::Away) => return Worked::Waits("host"),
                    (None, Host::Quick) => self.say(format!("> {what}")),
                    (None, Host::Slow) => {
                        self.say(format!("> {what}"));
                        self.at_work = Some(false);
                        return Worked::Waits("callback");
                    }
                }
                self.at_work = None;
            }
            self.moving.as_mut().unwrap().todo.pop_front();
            let m = self.moving.as_mut().unwrap();
            let mut errno = 0;
            match action {
                Action::Call(_, state, PRE_PATCH) => {
                    errno = if there { state.fails } else { 0 };
                    m.introduced.push((state, errno == 0));
                }
                Action::Call(patch, state, PRE_UNPATCH) => m.told.push((patch, state)),
                _ => {}
            }
            match action {
                Action::Free(_, state) if !there => self.say(format!("freed({})", state.id)),
                Action::Call(..) if there && errno != 0 => self.say(format!("{what}=-{errno}")),
                Action::Call(..) if there => self.say(what),
                _ => {}
            }
            if errno != 0 {
                return Worked::Failed(errno);
            }
        }
        Worked::All
    }

    fn start(&mut self) {
        let m = self.moving.as_mut().unwrap();
        let (name, target) = (m.patch, m.target);
        if target == Side::Patched
            && let Some(errno) = self.start_errno.take()
        {
            return self.cancel(errno);
        }
        m.phase = Phase::Running;
        if target == Side::Patched {
            let listed = self.get(name).unwrap().clone();
            for func in listed.entries() {
                let nop = listed.nops.contains(&func);
                self.stacks[func].push(Entry { patch: name, nop });
            }
        }
        self.get_mut(name).enabled = target == Side::Patched;
        self.say(format!("start{} {name}", sign(target)));
    }

    fn cancel(&mut self, errno: u32) {
        let m = self.moving.as_mut().unwrap();
        let name = m.patch;
        m.error = Some(errno);
        m.target = Side::Unpatched;
        for event in ["fail", "cancel", "completing-"] {
            self.say(format!("{event} {name}"));
        }
        self.complete();
    }

    fn pop(&mut self, patch: char) {
        self.stacks.iter_mut().for_each(|stack| stack.retain(|e| e.patch != patch));
    }

    fn is_replacing(&self) -> bool {
        let m = self.moving.as_ref().unwrap();
        let replace = self.get(m.patch).unwrap().patch.replace;
        replace && m.begun == Side::Patched && m.target == Side::Patched
    }

    fn complete(&mut self) {
        let m = self.moving.clone().unwrap();
        if self.is_replacing() {
            for old in self.listed().into_iter().map(|l| l.0).filter(|name| *name != m.patch) {
                self.get_mut(old).enabled = false;
                self.pop(old);
            }
        }
        if m.target == Side::Unpatched {
            self.pop(m.patch);
        } else {
            self.stacks.iter_mut().for_each(|stack| stack.retain(|e| e.patch != m.patch || !e.nop));
            self.get_mut(m.patch).nops.clear();
        }
        self.threads.values_mut().for_each(|t| t.side = Side::Idle);
        let mut todo = VecDeque::new();
        let remove = |todo: &mut VecDeque<Action>, patch, state: State| {
            todo.push_back(Action::Call(patch, state, POST_UNPATCH));
            if state.is_shadow && !m.forced {
                todo.push_back(Action::Free(patch, state));
            }
        };
        match (m.begun, m.target) {
            (Side::Patched, Side::Patched) => {
                m.told.iter().for_each(|(patch, state)| remove(&mut todo, *patch, *state));
                for (state, _) in &m.introduced {
                    todo.push_back(Action::Call(m.patch, *state, POST_PATCH));
                }
            }
            (Side::Patched, _) => {
                for (patch, state) in &m.told {
                    todo.push_back(Action::Call(*patch, *state, POST_PATCH));
                }
                for (state, succeeded) in &m.introduced {
                    match succeeded {
                        true => remove(&mut todo, m.patch, *state),
                        false if state.is_shadow => todo.push_back(Action::Free(m.patch, *state)),
                        false => {}
                    }
                }
            }
            (_, Side::Patched) => {
                for (patch, state) in &m.told {
                    todo.push_back(Action::Call(*patch, *state, POST_PATCH));
                }
            }
            _ => m.told.iter().for_each(|(patch, state)| remove(&mut todo, *patch, *state)),
        }
        let m = self.moving.as_mut().unwrap();
        m.phase = Phase::Completing;
        m.todo = todo;
    }

    fn done(&mut self) {
        let replacing = self.is_replacing();
        let m = self.moving.take().unwrap();
        self.start_errno = None;
        self.say(format!("done{} {}", sign(m.target), m.patch));
        let goes =
            |name| if m.target == Side::Unpatched { name == m.patch } else { replacing && name != m.patch };
        let (gone, stay) = self.list.drain(..).partition(|l| goes(l.patch.name));
        self.list = stay;
        for listed in gone {
            self.say(format!("gone {}", listed.patch.name));
            self.left.insert((listed.patch.name, listed.forced));
        }
        let how = match m.error {
            Some(errno) => format!("errno {errno}"),
            None if m.begun != m.target => "reversed".into(),
            None => "as begun".into(),
        };
        self.say(format!("ended: {how}"));
    }
}
