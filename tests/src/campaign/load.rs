//! Clients at work.

use super::client::{Client, Code};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// How many clients ask at the same time.
pub const CLIENTS: usize = 4;

/// What was seen in one phase.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    /// Answers of the old code.
    pub old: u64,
    /// Answers of the new code.
    pub new: u64,
    /// What went wrong.
    pub failures: Vec<String>,
    /// Microseconds from request to answer.
    pub latencies: Vec<u32>,
}

impl Phase {
    /// Answers.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.old + self.new
    }

    /// Adds another phase.
    pub fn add(&mut self, more: Self) {
        self.old += more.old;
        self.new += more.new;
        self.failures.extend(more.failures);
        self.latencies.extend(more.latencies);
    }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    /// Answers by client; `GONE` of one that is of no use any more.
    answers: Vec<AtomicU64>,
    phase: Mutex<Phase>,
}

/// In place of a count.
const GONE: u64 = u64::MAX;

/// Clients that ask until they are told to stop.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Sets clients to work.
    #[must_use]
    pub fn start(clients: Vec<Box<dyn Client>>) -> Self {
        let answers = clients.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Arc::new(Shared { answers, ..Shared::default() });
        let threads = clients.into_iter().enumerate().map(|(index, client)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || ask(client, index, &shared))
        });
        let threads = threads.collect();
        Self { shared, threads }
    }

    /// Answers so far, by client.
    #[must_use]
    pub fn answers(&self) -> Vec<u64> {
        self.shared.answers.iter().map(|n| n.load(Ordering::Acquire)).collect()
    }

    /// Whether every client that is still at work has got so many answers since `before`.
    #[must_use]
    pub fn have_answered(&self, before: &[u64], more: u64) -> bool {
        self.answers().iter().zip(before).all(|(now, before)| *now == GONE || *now >= before + more)
    }

    /// Ends a phase and gives what was seen in it.
    #[must_use]
    pub fn phase(&self) -> Phase {
        std::mem::take(&mut self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the work and gives what was seen since the last phase.
    ///
    /// # Panics
    /// When a client did.
    #[must_use]
    pub fn stop(self) -> Phase {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client");
        }
        std::mem::take(&mut self.shared.phase.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn ask(mut client: Box<dyn Client>, index: usize, shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let answer = client.ask();
        let took = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
        let broken = note(&mut shared.phase.lock().unwrap_or_else(PoisonError::into_inner), answer, took);
        // Behind the note: who sees the count finds the answer in the phase.
        if broken {
            shared.answers[index].store(GONE, Ordering::Release);
            return;
        }
        shared.answers[index].fetch_add(1, Ordering::Release);
    }
}

/// Notes an answer; true when the client is of no use any more.
fn note(phase: &mut Phase, answer: io::Result<Code>, took: u32) -> bool {
    match answer {
        Ok(Code::Old) => phase.old += 1,
        Ok(Code::New) => phase.new += 1,
        Err(error) => {
            phase.failures.push(error.to_string());
            return true;
        }
    }
    phase.latencies.push(took);
    false
}
