//! Running rows.

mod look;
mod steps;

use crate::compare::{Agreement, compare, side_by_side, until};
use crate::fixture::Fixture;
use crate::report::{Ending, Mode, Outcome};
use crate::scn::{Action, Expected, Row, Step};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use steps::Scene;

/// What rows run with.
#[derive(Debug, Default)]
pub struct Runner {
    fixture: Fixture,
}

impl Runner {
    /// Compiles the program.
    ///
    /// # Panics
    /// Where the product or the compiler is missing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs rows in all modes given, several at a time, and tells of each as its turn in the list comes.
    pub fn run(
        &self,
        rows: &[Row],
        modes: &[Mode],
        at_a_time: usize,
        mut tell: impl FnMut(&Outcome),
    ) -> Vec<Outcome> {
        let jobs: Vec<(&Row, Mode)> = rows.iter().flat_map(|r| modes.iter().map(move |m| (r, *m))).collect();
        let next = AtomicUsize::new(0);
        let (send, done) = std::sync::mpsc::channel();
        let send = Mutex::new(send);
        let mut outcomes: Vec<Option<Outcome>> = vec![None; jobs.len()];
        std::thread::scope(|scope| {
            for _ in 0..at_a_time.max(1).min(jobs.len()) {
                scope.spawn(|| {
                    // The last of its programs ends with this thread at the latest.
                    while let Some((row, mode)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let at = jobs.iter().position(|(r, m)| std::ptr::eq(*r, *row) && m == mode);
                        let outcome = self.one(row, *mode);
                        let send = send.lock().unwrap_or_else(PoisonError::into_inner);
                        // Nobody listens only when this scope is being left by a panic.
                        let _ = send.send((at, outcome));
                    }
                });
            }
            let mut told = 0;
            for (at, outcome) in done.iter().take(jobs.len()) {
                if let Some(place) = at.and_then(|at| outcomes.get_mut(at)) {
                    *place = Some(outcome);
                }
                while let Some(Some(outcome)) = outcomes.get(told) {
                    tell(outcome);
                    told += 1;
                }
            }
        });
        outcomes.into_iter().flatten().collect()
    }

    /// Runs a row in a mode.
    #[must_use]
    pub fn one(&self, row: &Row, mode: Mode) -> Outcome {
        let ending = match &row.skip {
            Some(why) => Ending::Skip(why.clone()),
            None => self.judge(row, mode),
        };
        Outcome { id: row.id.clone(), mode, ending }
    }

    fn judge(&self, row: &Row, mode: Mode) -> Ending {
        // The harness gives up by panicking: a program that ended, a command that hangs.
        let result = catch_unwind(AssertUnwindSafe(|| self.play(row, mode)));
        let result =
            result.unwrap_or_else(|panic| Err(format!("{}:{}: {}", row.file, row.line, said(&*panic))));
        match (result, &row.awaits) {
            (Ok(()), None) => Ending::Pass,
            (Err(why), None) => Ending::Fail(why),
            (Err(why), Some(lacking)) => {
                Ending::Skip(format!("{lacking}; today: {}", why.lines().next().unwrap_or("")))
            }
            (Ok(()), Some(lacking)) => {
                Ending::Fail(format!("{}:{}: passes, though it awaits: {lacking}", row.file, row.line))
            }
        }
    }

    fn play(&self, row: &Row, mode: Mode) -> Result<(), String> {
        let expected = &row.events;
        let at = |step: &Step, what: String| format!("{}:{}: {}: {what}", row.file, step.line, step.text);
        let mut scene = Scene::begin(&self.fixture, row, mode)?;
        for step in &row.setup {
            scene.take(&step.action).map_err(|what| at(step, what))?;
        }
        scene.count_from_now()?;
        let mut stalls = 0;
        for step in &row.steps {
            if step.action == Action::Stall {
                let so_far = until(expected, stalls);
                await_events(&mut scene, &so_far).map_err(|what| at(step, what))?;
                stalls += 1;
            } else {
                scene.take(&step.action).map_err(|what| with_events(&mut scene, expected, at(step, what)))?;
            }
        }
        let all = until(expected, usize::MAX);
        await_events(&mut scene, &all).map_err(|what| format!("{}:{}: {what}", row.file, row.line))?;
        scene.end()
    }
}

/// A failed step, with what the log says by then.
fn with_events(scene: &mut Scene<'_>, expected: &[Expected], what: String) -> String {
    match scene.events() {
        Ok(seen) => format!("{what}\n{}", side_by_side(&until(expected, usize::MAX), &seen)),
        Err(error) => format!("{what}\n  ({error})"),
    }
}

/// Waits until the log has these events, all of them and no other.
fn await_events(scene: &mut Scene<'_>, expected: &[String]) -> Result<(), String> {
    let mut seen = Vec::new();
    let look = || match scene.events() {
        Ok(list) => {
            seen.clone_from(&list);
            match compare(expected, &list) {
                Agreement::SoFar => None,
                Agreement::Complete => Some(Ok(())),
                Agreement::Differs(_) => Some(Err("the events differ".to_owned())),
            }
        }
        Err(what) => Some(Err(what)),
    };
    let result = suture_tests::poll::until_or(look, || Err("events are missing".into()));
    result.map_err(|what| format!("{what}\n{}", side_by_side(expected, &seen)))
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("the runner gave up without a word").to_owned()
}
