//! Targets whose threads take orders one at a time (`orders.h`), and patches for them.

use crate::block::Block;
use crate::lab::Lab;
use crate::report;
use crate::target::{Options, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Length of a tick in these targets, in milliseconds.
pub const TICK_MS: u32 = 20;

/// A running target whose threads take orders.
#[derive(Debug)]
pub struct Stall {
    /// The process.
    pub target: Target,
    tids: BTreeMap<String, i32>,
}

impl Stall {
    /// Starts `stall.c` with short ticks.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        Self::with(&lab.compile_target("stall.c", &[]), &[])
    }

    /// Starts `corners.c` with short ticks.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start_corners(lab: &Lab) -> Self {
        let program = lab.compile_target("corners.c", &[]);
        Self::with(&program, &[&lab.path("fifo").to_string_lossy()])
    }

    /// Starts a program of this kind with short ticks.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn with(program: &Path, args: &[&str]) -> Self {
        let target = Target::start(program, args, Options::default());
        Block::of(target.pid()).set_tick_ms(TICK_MS);
        let tids = BTreeMap::from([("main".to_owned(), target.pid())]);
        Self { target, tids }
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.target.pid()
    }

    /// Gives an order and waits for the answer: what follows name and order in it.
    ///
    /// # Panics
    /// When the answer is somebody else's.
    #[track_caller]
    pub fn order(&mut self, name: &str, order: &str) -> i64 {
        self.target.tell(&format!("{name} {order}"));
        let word = order.split(' ').next().unwrap_or(order);
        self.answer(name, word)
    }

    /// Gives an order that is answered with another word than its own.
    ///
    /// # Panics
    /// When the answer is somebody else's.
    #[track_caller]
    pub fn order_answered(&mut self, name: &str, order: &str, word: &str) -> i64 {
        self.target.tell(&format!("{name} {order}"));
        self.answer(name, word)
    }

    /// The next answer, which must be this thread's, to this order.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn answer(&self, name: &str, word: &str) -> i64 {
        let answer = self.target.line();
        let result = answer.strip_prefix(&format!("{name} {word} ")).and_then(|r| r.parse().ok());
        result.unwrap_or_else(|| panic!("{name} {word} was answered with {answer:?}"))
    }

    /// The next answers in any order, sorted.
    ///
    /// # Panics
    /// When there are not so many.
    #[must_use]
    #[track_caller]
    pub fn answers(&self, count: usize) -> Vec<String> {
        let mut answers: Vec<String> = (0..count).map(|_| self.target.line()).collect();
        answers.sort();
        answers
    }

    /// Has the thread `creator` make a thread.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn create(&mut self, creator: &str, name: &str) -> i32 {
        self.made(creator, "new", name)
    }

    /// Has the thread `creator` make a thread that spins until the order `release`.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn create_spinning(&mut self, creator: &str, name: &str) -> i32 {
        self.made(creator, "spin", name)
    }

    #[track_caller]
    fn made(&mut self, creator: &str, how: &str, name: &str) -> i32 {
        let tid = i32::try_from(self.order(creator, &format!("{how} {name}"))).expect("a thread id");
        assert!(tid > 0, "{creator} could not make {name}");
        self.tids.insert(name.to_owned(), tid);
        tid
    }

    /// Creates several threads from the first one.
    ///
    /// # Panics
    /// When it cannot.
    pub fn create_all(&mut self, names: &[&str]) {
        names.iter().for_each(|name| _ = self.create("main", name));
    }

    /// Number of a thread.
    ///
    /// # Panics
    /// When there is none of that name.
    #[must_use]
    #[track_caller]
    pub fn tid(&self, name: &str) -> i32 {
        *self.tids.get(name).unwrap_or_else(|| panic!("no thread {name}"))
    }

    /// The patch state of a thread, as `status --threads` shows it.
    ///
    /// # Panics
    /// When it does not show the thread.
    #[must_use]
    #[track_caller]
    pub fn state(&self, name: &str) -> i64 {
        let tid = self.tid(name);
        let states = report::thread_states(self.pid());
        *states.get(&tid).unwrap_or_else(|| panic!("no thread {name} ({tid}) in {states:?}"))
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // A vforked child and one that is being spawned do not end with their parent.
        for child in self.target.children() {
            crate::sys::kill_if_there(child);
        }
    }
}

/// A patch NAME of functions of `stall.c` or `corners.c`: each answers 2 where the old one answers 1; the
/// `in_` ones answer 22 and wait for nothing.
///
/// # Panics
/// When the compiler refuses it.
#[must_use]
pub fn patch(lab: &Lab, name: &str, functions: &[&str]) -> PathBuf {
    let body = |function: &str| match function {
        "f" | "g" => "(void) { return 2; }",
        "pair" => "(void) { long first = f(); return 1000 + 10 * first + g(); }",
        "blocker" | "edge" => "(void) { obey(); return 2; }",
        "deep" => "(long depth) { dig(depth); return 2; }",
        "in_cold" | "trail" => "(long n) { return 22 + 0 * n; }",
        other if other.starts_with("in_") => "(void) { return 22; }",
        other => panic!("no function {other} in the targets"),
    };
    let definitions: String = functions.iter().map(|f| format!("static long new_{f}{}\n", body(f))).collect();
    let rows = functions.iter().map(|f| format!("SUTURE_FUNC(\"{f}\", new_{f})"));
    let rows = rows.collect::<Vec<_>>().join(", ");
    let text = format!(
        "#include <suture.h>\n\
         SUTURE_EXTERN void obey(void);\n\
         SUTURE_EXTERN long f(void);\n\
         SUTURE_EXTERN long g(void);\n\
         SUTURE_EXTERN long dig(long depth);\n\
         {definitions}SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, {rows}));\n"
    );
    lab.patch(name, &text)
}
