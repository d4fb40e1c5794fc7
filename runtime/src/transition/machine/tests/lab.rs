//! The same done to the process and to the model, and compared after every step.

use super::model::{Model, Side};
use super::process::Process;
use super::{Code, FUNCS, Host, Patch};

/// What is done.
#[derive(Clone, Debug)]
pub enum Step {
    /// As the command applies: prepare, enable, drop it if that is refused. Its start may be refused.
    Apply(Patch, Option<u32>),
    /// As a command that dies before it enables.
    Prepare(Patch),
    EnablePrepared,
    Abort,
    Write(char, bool),
    Reverse(char),
    Force(char),
    /// The worker goes on.
    Tick,
    /// A thread calls a function and stays in it.
    Call(u32, usize),
    /// A thread that is in a new function leaves to another part of the patch.
    Jump(u32),
    Return(u32),
    Runs(u32, bool),
    /// One thread is looked at.
    Look(u32),
    Spawn(u32),
    Exit(u32),
    Host(Host),
    /// The callback that runs returns.
    CallbackReturns,
    /// After so many changes of the books, memory for the next is refused so often.
    Starve(u32, u32),
}

pub struct Lab {
    process: Process,
    model: Model,
    last_thread: u32,
}

impl Lab {
    pub fn new(threads: u32) -> Self {
        Lab { process: Process::new(threads), model: Model::new(threads), last_thread: threads }
    }

    pub fn tids(&self) -> Vec<u32> {
        self.model.threads.keys().copied().collect()
    }

    pub fn events(&self) -> &[String] {
        &self.model.events
    }

    pub fn effect(&self, tid: u32, func: usize) -> Code {
        self.model.effect(tid, func)
    }

    pub fn is_enabled(&self, name: char) -> bool {
        self.model.listed().iter().any(|l| l.0 == name && l.1)
    }

    pub fn transition(&self) -> Option<(char, bool)> {
        self.model.transition()
    }

    /// Does a step; gives the errno, or what differs.
    pub fn step(&mut self, step: &Step) -> Result<u32, String> {
        let (process, model) = (&mut self.process, &mut self.model);
        let mut advances = false;
        let (found, expected) = match step {
            Step::Apply(patch, start_errno) => {
                if model.has_prepared() {
                    process.abort();
                    model.abort();
                }
                process.prepare(patch);
                model.prepare(patch.clone());
                let errnos = (process.enable(), model.enable());
                if errnos.1 == 0 {
                    (process.start_errno, model.start_errno) = (*start_errno, *start_errno);
                    advances = true;
                } else {
                    process.abort();
                    model.abort();
                }
                errnos
            }
            Step::Prepare(patch) if !model.has_prepared() => {
                process.prepare(patch);
                model.prepare(patch.clone());
                (0, 0)
            }
            Step::EnablePrepared => {
                let errnos = (process.enable(), model.enable());
                advances = errnos.1 == 0;
                errnos
            }
            Step::Abort => {
                process.abort();
                model.abort();
                (0, 0)
            }
            Step::Write(name, value) => {
                let before = model.transition();
                let errnos = (process.write_enabled(*name, *value), model.write_enabled(*name, *value));
                // A disable goes on at once, a reverse does not.
                advances = before.is_none() && errnos.1 == 0;
                errnos
            }
            Step::Reverse(name) => (process.reverse(*name), model.reverse(*name)),
            Step::Force(name) => (process.force(*name), model.force(*name)),
            Step::Tick => {
                advances = true;
                (0, 0)
            }
            Step::Call(tid, func) => {
                let code = (process.effect(*tid, *func), model.effect(*tid, *func));
                process.threads.get_mut(tid).unwrap().frames.push(code.0);
                model.threads.get_mut(tid).unwrap().frames.push(code.1);
                (0, 0)
            }
            Step::Jump(tid) => {
                let leave = |frames: &mut Vec<Code>| {
                    if let Some(Code::New(patch, _)) = frames.last().copied() {
                        frames.pop();
                        frames.push(Code::Part(patch));
                    }
                };
                leave(&mut process.threads.get_mut(tid).unwrap().frames);
                leave(&mut model.threads.get_mut(tid).unwrap().frames);
                (0, 0)
            }
            Step::Return(tid) => {
                process.threads.get_mut(tid).unwrap().frames.pop();
                model.threads.get_mut(tid).unwrap().frames.pop();
                (0, 0)
            }
            Step::Runs(tid, runs) => {
                process.threads.get_mut(tid).unwrap().runs = *runs;
                model.threads.get_mut(tid).unwrap().runs = *runs;
                (0, 0)
            }
            Step::Look(tid) => {
                process.look(*tid);
                model.look(*tid);
                (0, 0)
            }
            Step::Spawn(tid) => {
                self.last_thread += 1;
                let side = process.threads[tid].side;
                let child = super::process::Thread { side, ..Default::default() };
                process.threads.insert(self.last_thread, child);
                let side = model.threads[tid].side;
                let child = super::model::Thread { side, frames: Vec::new(), runs: false };
                model.threads.insert(self.last_thread, child);
                (0, 0)
            }
            Step::Exit(tid) => {
                process.threads.remove(tid);
                model.threads.remove(tid);
                (0, 0)
            }
            Step::Host(host) => {
                if model.at_work != Some(false) {
                    (process.host, model.host) = (*host, *host);
                }
                (0, 0)
            }
            Step::CallbackReturns => {
                process.callback_returns();
                if model.at_work.is_some() {
                    model.at_work = Some(true);
                }
                (0, 0)
            }
            Step::Starve(after, times) => {
                process.starving = (*after, *times);
                (0, 0)
            }
            Step::Prepare(_) => (0, 0),
        };
        same("errno", &found, &expected)?;
        if advances {
            same("waits for", &self.process.advance(), &self.model.advance())?;
        }
        self.check()?;
        Ok(found)
    }

    fn check(&self) -> Result<(), String> {
        let (process, model) = (&self.process, &self.model);
        let at = process.events.iter().zip(&model.events).take_while(|(a, b)| a == b).count();
        let from = at.saturating_sub(3);
        same("events", &process.events.get(from..), &model.events.get(from..))?;
        same("listed (name, enabled, forced)", &process.listed(), &model.listed())?;
        same("holders", &process.holders(), &model.holders())?;
        same("transition", &process.transition(), &model.transition())?;
        same("left (name, pinned)", &process.left(), &model.left)?;
        same("prepared", &process.has_prepared(), &model.has_prepared())?;
        if let Some(sides) = process.sides() {
            let expected: Vec<bool> = model.threads.values().map(|t| t.side == Side::Patched).collect();
            same("sides", &sides, &expected)?;
        }
        for tid in model.threads.keys() {
            for func in 0..FUNCS {
                let (found, expected) = (process.effect(*tid, func), model.effect(*tid, func));
                same(&format!("function {func} of thread {tid}"), &found, &expected)?;
            }
        }
        Ok(())
    }
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: &T, expected: &T) -> Result<(), String> {
    match found == expected {
        true => Ok(()),
        false => Err(format!("{what}: {found:?}, expected {expected:?}")),
    }
}
