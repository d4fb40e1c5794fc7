//! Random sequences.

use super::lab::{Lab, Step};
use super::{EBUSY, EINVAL, ENOENT, FUNCS, Host, Patch, State};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// A step before it is known which patches and threads there are.
#[derive(Clone, Debug)]
enum Draw {
    Apply(Shape, Option<u32>),
    Prepare(Shape),
    EnablePrepared,
    Abort,
    Write(usize, bool),
    Reverse(usize),
    Force(usize),
    Tick,
    Call(usize, usize),
    Jump(usize),
    Return(usize),
    Runs(usize, bool),
    Look(usize),
    Spawn(usize),
    Exit(usize),
    Host(Host),
    CallbackReturns,
    Starve(u32, u32),
}

/// A patch without its name.
#[derive(Clone, Debug)]
struct Shape {
    replace: bool,
    funcs: Vec<usize>,
    states: Vec<State>,
}

fn state() -> impl Strategy<Value = State> {
    let often = || prop::bool::weighted(0.85);
    let has = [often(), often(), often(), often()];
    let rarely = prop::bool::weighted(0.08);
    let fails = prop_oneof![9 => Just(0u32), 1 => Just(19u32)];
    (10u64..15, often(), rarely, has, often(), fails).prop_map(
        |(id, is_shadow, block_disable, has, has_dtor, fails)| State {
            id,
            is_shadow,
            block_disable,
            has,
            has_dtor,
            fails,
        },
    )
}

fn shape() -> impl Strategy<Value = Shape> {
    let funcs = prop::collection::btree_set(0..FUNCS, 0..=3);
    let states = prop::collection::vec(state(), 0..4);
    (prop::bool::weighted(0.35), funcs, states).prop_map(|(replace, funcs, mut states)| {
        let mut seen = Vec::new();
        states.retain(|s| {
            !seen.contains(&s.id) && {
                seen.push(s.id);
                true
            }
        });
        Shape { replace, funcs: funcs.into_iter().collect(), states }
    })
}

fn draw() -> impl Strategy<Value = Draw> {
    let any = any::<usize>;
    let host = prop_oneof![2 => Just(Host::Quick), 1 => Just(Host::Slow), 1 => Just(Host::Away)];
    let start = prop_oneof![12 => Just(None), 1 => Just(Some(16u32))];
    prop_oneof![
        8 => (shape(), start).prop_map(|(shape, errno)| Draw::Apply(shape, errno)),
        1 => shape().prop_map(Draw::Prepare),
        1 => Just(Draw::EnablePrepared),
        1 => Just(Draw::Abort),
        6 => (any(), prop::bool::weighted(0.25)).prop_map(|(p, v)| Draw::Write(p, v)),
        3 => any().prop_map(Draw::Reverse),
        1 => any().prop_map(Draw::Force),
        8 => Just(Draw::Tick),
        6 => (any(), 0..FUNCS).prop_map(|(t, f)| Draw::Call(t, f)),
        2 => any().prop_map(Draw::Jump),
        5 => any().prop_map(Draw::Return),
        2 => (any(), prop::bool::ANY).prop_map(|(t, r)| Draw::Runs(t, r)),
        3 => any().prop_map(Draw::Look),
        2 => any().prop_map(Draw::Spawn),
        1 => any().prop_map(Draw::Exit),
        2 => host.prop_map(Draw::Host),
        4 => Just(Draw::CallbackReturns),
        2 => (0u32..8, 1u32..3).prop_map(|(after, times)| Draw::Starve(after, times)),
    ]
}

/// Most threads at a time.
const THREADS: usize = 6;

/// Draws become steps: patches are named in the order in which they are drawn, the newest are meant most. Gives
/// what was done to the lab.
fn run(draws: &[Draw], lab: &mut Lab, steps: &mut Vec<Step>, errnos: &mut Vec<u32>) -> Result<(), String> {
    let mut names = 0u8;
    for draw in draws {
        let named = |shape: &Shape, names: &mut u8| {
            *names += 1;
            let name = char::from(b'A' - 1 + *names);
            let Shape { replace, funcs, states } = shape.clone();
            Patch { name, replace, funcs, states }
        };
        let patch = |pick: usize| char::from(b'A' + (names.max(1) - 1).saturating_sub((pick % 4) as u8));
        let tids = lab.tids();
        let thread = |pick: usize| tids[pick % tids.len()];
        let step = match draw {
            Draw::Apply(shape, errno) => Step::Apply(named(shape, &mut names), *errno),
            Draw::Prepare(shape) => Step::Prepare(named(shape, &mut names)),
            Draw::EnablePrepared => Step::EnablePrepared,
            Draw::Abort => Step::Abort,
            Draw::Write(pick, value) => Step::Write(patch(*pick), *value),
            Draw::Reverse(pick) => Step::Reverse(patch(*pick)),
            Draw::Force(pick) => Step::Force(patch(*pick)),
            Draw::Tick => Step::Tick,
            Draw::Call(pick, func) => Step::Call(thread(*pick), *func),
            Draw::Jump(pick) => Step::Jump(thread(*pick)),
            Draw::Return(pick) => Step::Return(thread(*pick)),
            Draw::Runs(pick, runs) => Step::Runs(thread(*pick), *runs),
            Draw::Look(pick) => Step::Look(thread(*pick)),
            Draw::Spawn(pick) if tids.len() < THREADS => Step::Spawn(thread(*pick)),
            Draw::Exit(pick) if tids.len() > 1 => Step::Exit(thread(*pick)),
            Draw::Spawn(_) | Draw::Exit(_) => continue,
            Draw::Host(host) => Step::Host(*host),
            Draw::CallbackReturns => Step::CallbackReturns,
            Draw::Starve(after, times) => Step::Starve(*after, *times),
        };
        steps.push(step.clone());
        errnos.push(lab.step(&step)?);
    }
    Ok(())
}

/// What the sequences must have come to, each often: else they prove little.
const REACHED: [&str; 24] = [
    "enable",
    "init+",
    "init-",
    "start+",
    "start-",
    "completing+",
    "completing-",
    "done+",
    "done-",
    "gone",
    "rev+",
    "rev-",
    "fail",
    "cancel",
    "forced",
    "pre_patch",
    "post_patch",
    "pre_unpatch",
    "post_unpatch",
    "dtor",
    "freed",
    "ended: errno 19",
    "ended: errno 16",
    "ended: errno 125",
];

#[test]
fn the_machine_does_what_the_model_says() {
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(12_000) };
    let mut reached: BTreeMap<String, u32> = BTreeMap::new();
    let seen = RefCell::new(&mut reached);
    let sequences = prop::collection::vec(draw(), 1..64);
    let outcome = TestRunner::new(config).run(&sequences, |draws| {
        let (mut lab, mut steps, mut errnos) = (Lab::new(3), Vec::new(), Vec::new());
        let done = run(&draws, &mut lab, &mut steps, &mut errnos);
        let mut seen = seen.borrow_mut();
        let words = lab.events().iter().map(|e| match e.strip_prefix("> ").unwrap_or(e) {
            e if e.starts_with("ended") => e.to_owned(),
            e => e.split([' ', '(']).next().unwrap_or(e).to_owned(),
        });
        for word in words.chain(errnos.iter().map(|errno| format!("errno {errno}"))) {
            *seen.entry(word).or_default() += 1;
        }
        done.map_err(|differs| TestCaseError::fail(format!("{differs}\nafter {steps:#?}")))
    });
    outcome.unwrap_or_else(|failed| panic!("{failed}"));
    let errnos = [ENOENT, EBUSY, EINVAL].map(|errno| format!("errno {errno}"));
    for word in REACHED.into_iter().chain(errnos.iter().map(String::as_str)) {
        let count = reached.get(word).copied().unwrap_or(0);
        assert!(count >= 100, "{word}: {count} times in all sequences");
    }
}
