//! Models: every interleaving (up to a bound of preemptions) and every value the memory model allows a
//! load to give.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p suture-table`
//!
//! A bucket's line has two slots here and its spill two more. The keys of a model share bucket and tag,
//! so that nothing but the protocol keeps them apart.
//!
//! *Who writes runs in the model's first thread.* loom remembers the last access to a word only: if a thread reads a
//! word, and another reads it and then changes it, as all our loops do, it takes this change for one that races with
//! nobody, and tries no other order. It begins with what the first thread does; a reader that comes after a change
//! is always tried before it, too. A model that was run once or twice has explored nothing and fails.

use crate::control::{LEFT_OUT, Part};
use crate::get::get;
use crate::hash::Key;
use crate::insert::{Inserted, insert};
use crate::levels::{find, hand_over, move_bucket, writable};
use crate::marks;
use crate::memory::{Level, Memory};
use crate::model::{Model, Thread, committed};
use crate::remove::{Afterwards::Reclaim, remove};
use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::Relaxed;
use loom::thread;

/// Keys that share everything a slot says of them.
const A: Key = Key { obj: 0x1_0000, id: 1 };
const B: Key = Key { obj: 0x2_0000, id: 2 };
/// Half of each: what a torn header would show.
const TORN: [Key; 2] = [Key { obj: A.obj, id: B.id }, Key { obj: B.obj, id: A.id }];

/// Runs a model without a part of the protocol. It must fail.
pub fn without(part: Part, test: fn()) {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            LEFT_OUT.set(None);
        }
    }
    let _restore = Restore;
    LEFT_OUT.set(Some(part));
    test();
}

fn check(f: impl Fn() + Sync + Send + 'static) {
    check_within(3, f);
}

/// With fewer preemptions, unless the environment says how many: three threads have too many ways with three.
fn check_within(preemptions: usize, f: impl Fn() + Sync + Send + 'static) {
    let runs = explore(preemptions, f);
    assert!(runs > 100, "only {runs} runs: this explores nothing");
}

/// Goes through all runs with so many preemptions, and says how many there were.
pub fn explore(preemptions: usize, f: impl Fn() + Sync + Send + 'static) -> u64 {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(model.preemption_bound.unwrap_or(preemptions));
    model.max_branches = 20_000;
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = runs.clone();
    model.check(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        f();
    });
    runs.load(std::sync::atomic::Ordering::Relaxed)
}

fn spawn<R: 'static>(
    model: &Arc<Model>,
    number: u32,
    f: impl FnOnce(Thread<'_>) -> R + 'static,
) -> thread::JoinHandle<R> {
    let model = model.clone();
    thread::spawn(move || f(model.thread(number, 1)))
}

fn is_new(inserted: Inserted) -> bool {
    matches!(inserted, Inserted::New(_))
}

/// insert/insert: one of two callers makes the variable, the other finds it, no block is lost.
#[test]
fn two_inserts_make_one_variable() {
    check(|| {
        let model = Arc::new(Model::new(0, 3));
        let other = spawn(&model, 1, |mem| insert(&mem, A, 8, None));
        let mine = insert(&model.thread(2, 1), A, 8, None);
        let theirs = other.join().unwrap();
        assert!(is_new(mine) != is_new(theirs), "{mine:?} {theirs:?}");
        assert_eq!(committed(&model).len(), 1);
        assert_eq!(model.free(), 2);
    });
}

/// insert/insert with a constructor: it runs once, and whoever gets the variable sees what it wrote.
#[test]
fn two_inserts_run_one_constructor() {
    check(|| {
        let model = Arc::new(Model::new(0, 2));
        let written = Arc::new(AtomicU64::new(0));
        let make = |mem: Thread<'_>, written: &AtomicU64| {
            let mut ctor = |_| {
                written.fetch_add(1, Relaxed);
                0
            };
            let inserted = insert(&mem, A, 8, Some(&mut ctor));
            assert_eq!(written.load(Relaxed), 1, "a variable that is not complete");
            inserted
        };
        let other = {
            let written = written.clone();
            spawn(&model, 1, move |mem| make(mem, &written))
        };
        let mine = make(model.thread(2, 1), &written);
        assert!(is_new(mine) != is_new(other.join().unwrap()));
        assert_eq!(model.free(), 1);
    });
}

/// ctor-failure/waiter: the second caller runs its own constructor; nothing of the first is left.
#[test]
fn a_failed_constructor_leaves_the_key_to_the_waiter() {
    check(|| {
        let model = Arc::new(Model::new(0, 2));
        let other = spawn(&model, 1, |mem| insert(&mem, A, 8, Some(&mut |_| 22)));
        let mem = model.thread(2, 1);
        let mine = insert(&mem, A, 8, Some(&mut |_| 0));
        let theirs = other.join().unwrap();
        assert!(is_new(mine), "{mine:?}");
        assert!(matches!(theirs, Inserted::Failed(22) | Inserted::Exists(_)), "{theirs:?}");
        assert_eq!(committed(&model).len(), 1);
        assert!(get(&mem, A).is_some());
        assert_eq!(model.free(), 1);
    });
}

/// insert/free/get: a block goes from one key to another; no reader sees half of each, nor a variable
/// that another key has.
#[test]
fn a_reused_block_is_nobodys_else() {
    check(|| {
        let model = Arc::new(Model::new(0, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let reader = spawn(&model, 1, |mem| {
            for torn in TORN {
                assert!(get(&mem, torn).is_none(), "half of each");
            }
            if get(&mem, B).is_some() {
                assert!(get(&mem, A).is_none());
            }
        });
        let mem = model.thread(2, 1);
        assert_eq!(remove(&mem, A, None, Reclaim), Ok(true));
        assert!(get(&mem, A).is_none());
        assert!(is_new(insert(&mem, B, 8, None)));
        assert!(get(&mem, B).is_some());
        reader.join().unwrap();
    });
}

/// free/insert of keys with the same marks: whoever is removed takes no mark from who has come meanwhile.
#[test]
fn a_removal_hides_nobody() {
    check(|| {
        let model = Arc::new(Model::new(0, 2));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let other = spawn(&model, 1, |mem| assert_eq!(remove(&mem, A, None, Reclaim), Ok(true)));
        let mem = model.thread(2, 1);
        let (inserted, found) = (insert(&mem, B, 8, None), get(&mem, B));
        other.join().unwrap();
        assert!(is_new(inserted));
        assert!(found.is_some() && get(&mem, B).is_some(), "hidden by another's removal");
        assert!(get(&mem, A).is_none());
        let place = Level(mem.current().load(Relaxed)).place(B.obj);
        assert!(!marks::read(mem.cell(place)).is_claimed(), "a cell that is never cleaned again");
    });
}

/// free/free: one of two callers removes it, and its destructor runs once.
#[test]
fn two_removals_run_one_destructor() {
    check(|| {
        let model = Arc::new(Model::new(0, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let runs = Arc::new(AtomicU64::new(0));
        let other = {
            let runs = runs.clone();
            let mut dtor = move |_| {
                runs.fetch_add(1, Relaxed);
            };
            spawn(&model, 1, move |mem| remove(&mem, A, Some(&mut dtor), Reclaim).unwrap())
        };
        let mine = remove(&model.thread(2, 1), A, None, Reclaim).unwrap();
        let theirs = other.join().unwrap();
        assert!(mine != theirs);
        assert_eq!(runs.load(Relaxed), u64::from(theirs));
        assert_eq!(model.free(), 1);
    });
}

/// free/insert: destructor and constructor of one key never run at the same time.
#[test]
fn a_constructor_waits_for_the_destructor() {
    check(|| {
        let model = Arc::new(Model::new(0, 2));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let inside = Arc::new(AtomicU64::new(0));
        let other = {
            let inside = inside.clone();
            let mut ctor = move |_| {
                assert_eq!(inside.fetch_add(1, Relaxed), 0);
                inside.fetch_sub(1, Relaxed);
                0
            };
            spawn(&model, 1, move |mem| insert(&mem, A, 8, Some(&mut ctor)))
        };
        let mut dtor = |_| {
            assert_eq!(inside.fetch_add(1, Relaxed), 0);
            thread::yield_now();
            inside.fetch_sub(1, Relaxed);
        };
        assert_eq!(remove(&model.thread(2, 1), A, Some(&mut dtor), Reclaim), Ok(true));
        let theirs = other.join().unwrap();
        assert!(matches!(theirs, Inserted::New(_) | Inserted::Exists(_)), "{theirs:?}");
        assert_eq!(model.free(), if is_new(theirs) { 1 } else { 2 });
    });
}

/// grow/get: what is there throughout is found throughout.
#[test]
fn growth_hides_nothing() {
    check(|| {
        let model = Arc::new(Model::new(1, 2));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let reader = spawn(&model, 1, |mem| {
            assert!(get(&mem, A).is_some(), "hidden by growth");
            assert!(get(&mem, TORN[0]).is_none());
        });
        let mem = model.thread(2, 1);
        assert!(model.grow_now());
        // Moves the bucket.
        assert!(is_new(insert(&mem, B, 8, None)));
        reader.join().unwrap();
        assert!(get(&mem, A).is_some() && get(&mem, B).is_some());
    });
}

/// grow/grow/get: the same, of a reader that was asleep for a whole growth.
#[test]
fn two_growths_hide_nothing() {
    check(|| {
        let model = Arc::new(Model::new(2, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let reader = spawn(&model, 1, |mem| assert!(get(&mem, A).is_some(), "hidden by growth"));
        assert!(model.grow_now() && model.grow_now());
        reader.join().unwrap();
        assert!(get(&model.thread(2, 1), A).is_some());
    });
}

/// grow/grow/insert: a helper of the first growth wakes up in the second, when its bucket is about to move on.
#[test]
fn a_late_helper_hides_nothing() {
    // There are not many: the helper has two words to change.
    let runs = explore(4, || {
        let model = Arc::new(Model::new(2, 2));
        let mem = model.thread(2, 1);
        assert!(is_new(insert(&mem, A, 8, None)));
        let first = Level(mem.current().load(Relaxed));
        assert!(model.grow_now());
        let (old, second) = (first.place(A.obj), Level(mem.current().load(Relaxed)));
        // As far as he has come. Then the level settles.
        hand_over(&mem, old, second).unwrap();
        mem.help();
        assert!(model.grow_now());
        let late = spawn(&model, 1, move |mem| move_bucket(&mem, old, second).unwrap());
        let (inserted, found) = (insert(&mem, B, 8, None), get(&mem, B));
        late.join().unwrap();
        assert!(is_new(inserted));
        assert!(found.is_some(), "hidden by a late helper");
    });
    assert!(runs > 20, "only {runs} runs: this explores nothing");
}

/// grow/free: what is removed while its bucket moves is not in the new one.
#[test]
fn a_move_leaves_nothing_behind() {
    check(|| {
        let model = Arc::new(Model::new(1, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        assert!(model.grow_now());
        let other = spawn(&model, 1, |mem| assert_eq!(remove(&mem, A, None, Reclaim), Ok(true)));
        let mem = model.thread(2, 1);
        // Moves the bucket, or helps.
        let _ = writable(&mem, A.obj);
        other.join().unwrap();
        assert!(get(&mem, A).is_none());
        assert_eq!(committed(&model), []);
        assert_eq!(model.free(), 1);
    });
}

/// grow/free/get: what was removed is not found in what is left of the old level.
#[test]
fn growth_revives_nothing() {
    check_within(2, || {
        let model = Arc::new(Model::new(1, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        assert!(model.grow_now());
        let gone = Arc::new(AtomicU64::new(0));
        let reader = {
            let gone = gone.clone();
            spawn(&model, 1, move |mem| {
                let was_gone = gone.load(loom::sync::atomic::Ordering::Acquire) == 1;
                assert!(!(get(&mem, A).is_some() && was_gone));
            })
        };
        let helper = spawn(&model, 3, |mem| {
            // Moves the bucket, or helps.
            let _ = writable(&mem, A.obj);
        });
        let mem = model.thread(2, 1);
        let removed = remove(&mem, A, None, Reclaim);
        gone.store(1, loom::sync::atomic::Ordering::Release);
        reader.join().unwrap();
        helper.join().unwrap();
        assert_eq!(removed, Ok(true));
        assert!(get(&mem, A).is_none());
        assert_eq!(committed(&model), []);
        assert_eq!(model.free(), 1);
    });
}

/// grow/insert/insert: two threads that move the same bucket and insert the same key.
#[test]
fn growth_keeps_keys_unique() {
    check(|| {
        let model = Arc::new(Model::new(1, 3));
        assert!(is_new(insert(&model.thread(0, 1), B, 8, None)));
        let other = spawn(&model, 1, |mem| {
            model_of(&mem).grow_now();
            insert(&mem, A, 8, None)
        });
        let mine = insert(&model.thread(2, 1), A, 8, None);
        assert!(is_new(mine) != is_new(other.join().unwrap()));
        let mut all = committed(&model);
        all.sort_by_key(|(key, _)| key.id);
        assert_eq!(all.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [A, B]);
        assert_eq!(model.free(), 1);
    });
}

/// guard/free/insert: what was found under a guard is not used again before its end.
#[test]
fn a_guard_keeps_the_block() {
    check(|| {
        let model = Arc::new(Model::new(0, 1));
        assert!(is_new(insert(&model.thread(0, 1), A, 8, None)));
        let other = spawn(&model, 1, |mem| {
            assert_eq!(remove(&mem, A, None, Reclaim), Ok(true));
            insert(&mem, B, 8, None)
        });
        let mem = model.thread(2, 1);
        let guard = model.guards.enter(0);
        if let Some(found) = find(&mem, A) {
            let extent = &mem.header(found.block()).extent;
            let before = extent.load(Relaxed);
            thread::yield_now();
            assert_eq!(extent.load(Relaxed), before, "used again under a guard");
        }
        model.leave(guard);
        let inserted = other.join().unwrap();
        assert!(matches!(inserted, Inserted::New(_) | Inserted::NoMemory), "{inserted:?}");
        // Whoever removes while the guard ends may leave the block to the next one who has to do with guards.
        model.leave(model.guards.enter(0));
        assert_eq!(model.free(), usize::from(!is_new(inserted)), "a block was lost");
    });
}

fn model_of<'m>(mem: &Thread<'m>) -> &'m Model {
    mem.model()
}

#[test]
#[should_panic(expected = "New(")]
fn control_a_commit_that_does_not_compare() {
    without(Part::CommitCompares, two_inserts_make_one_variable);
}

#[test]
#[should_panic(expected = "a variable that is not complete")]
fn control_a_constructor_in_the_open() {
    without(Part::Building, two_inserts_run_one_constructor);
}

/// The waiter waits for ever.
#[test]
#[should_panic(expected = "exceeded maximum number of branches")]
fn control_a_failed_constructor_that_stays() {
    without(Part::FailureLeaves, a_failed_constructor_leaves_the_key_to_the_waiter);
}

#[test]
#[should_panic(expected = "hidden by another's removal")]
fn control_a_removal_that_ignores_who_came() {
    without(Part::Disturbed, a_removal_hides_nobody);
}

#[test]
#[should_panic(expected = "without its mark")]
fn control_an_insertion_without_marks() {
    without(Part::Marks, a_variable_by_itself);
}

#[test]
#[should_panic(expected = "half of each")]
fn control_a_lookup_that_looks_once() {
    without(Part::LookAgain, a_reused_block_is_nobodys_else);
}

#[test]
#[should_panic(expected = "hidden by growth")]
fn control_a_reader_that_does_not_look_below() {
    without(Part::LookBelow, two_growths_hide_nothing);
}

#[test]
#[should_panic(expected = "hidden by its move")]
fn control_a_move_that_closes_no_cell() {
    without(Part::Close, a_variable_by_itself);
}

/// Without anybody else, for parts whose lack shows at once.
fn a_variable_by_itself() {
    loom::model(|| {
        let model = Model::new(2, 2);
        let mem = model.thread(1, 1);
        assert!(is_new(insert(&mem, A, 8, None)));
        assert!(get(&mem, A).is_some(), "without its mark");
        assert!(model.grow_now());
        assert!(get(&mem, A).is_some(), "hidden by growth");
        assert!(model.grow_now());
        // Moves one bucket of two, so that the level is not settled. The key has another mark.
        let other = Key { obj: 0xff, id: 2 };
        assert!(writable(&mem, other.obj).is_ok());
        assert!(is_new(insert(&mem, other, 8, None)));
        assert!(get(&mem, other).is_some(), "hidden by its move");
    });
}

#[test]
#[should_panic(expected = "assertion")]
fn control_a_move_that_does_not_freeze() {
    without(Part::Freeze, growth_keeps_keys_unique);
}

#[test]
#[should_panic(expected = "used again under a guard")]
fn control_a_guard_that_is_not_counted() {
    without(Part::Count, a_guard_keeps_the_block);
}

/// A withdrawal in the old bucket, which the move has read already.
#[test]
#[should_panic(expected = "assertion")]
fn control_a_withdrawal_during_a_move() {
    without(Part::Freeze, a_move_leaves_nothing_behind);
}
