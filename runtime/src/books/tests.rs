//! The books against a plain model: a list of patches, each with the sites it replaces.

use super::*;
use crate::batch::tests::Maker;
use proptest::prelude::*;
use suture_abi::batch::{Func, HOOK_DL_FIND_OBJECT, HOOK_DL_ITERATE_PHDR, HOOK_PTHREAD_CREATE};
use suture_abi::block::{IMAGE_LEFT, IMAGE_PINNED, PATCH_ENABLED};

const HOOK_HANDLER: u64 = 0xdead_0000;

/// The image goes, and the arenas if told.
fn dropped(arenas: bool) -> Dropped {
    Dropped { arenas, image: true }
}

/// A batch that replaces these entries; those the books know are referred to by their id.
fn batch(books: &Books, entries: &[u64], tag: u64, hooks: &[(u64, u32)]) -> Vec<u8> {
    let mut maker = Maker::sample();
    let sample = maker.sites[0];
    let mut add = |entry: u64| {
        let known = books.sites.iter().find(|s| s.plan.entry == entry).map_or(0, |s| s.id);
        let slot = 0x11000 + entry % 0x1000 / 8 * 8;
        maker.sites.push(Site { id: known, entry, copy: copy_of(entry), slot, choice: slot + 8, ..sample });
        maker.sites.len() as u32 - 1
    };
    let mut funcs = Vec::new();
    for entry in entries {
        funcs.push(Func { site: add(*entry), new_func: new_of(tag, *entry), ..Func::default() });
    }
    for (entry, hook) in hooks {
        funcs.push(Func { site: add(*entry), hook: *hook, ..Func::default() });
    }
    maker.sites.remove(0);
    for func in &mut funcs {
        func.site -= 1;
    }
    maker.funcs = funcs;
    maker.ranges.clear();
    maker.states.clear();
    maker.bytes()
}

fn copy_of(entry: u64) -> u64 {
    entry | 0x1000_0000
}

fn new_of(tag: u64, entry: u64) -> u64 {
    tag << 40 | entry
}

fn prepared(books: &Books, entries: &[u64], tag: u64, hooks: &[(u64, u32)]) -> Books {
    let bytes = batch(books, entries, tag, hooks);
    let view = View::parse(&bytes).unwrap();
    books.with_batch(&view, 0, &[], 1).unwrap()
}

/// The same, enabled with no thread in the way.
fn enabled(books: &Books, batch: Batch) -> Books {
    let moving = books.with_patching(batch, 1).unwrap().with_started(2).unwrap();
    moving.with_completing().unwrap().with_done(3).unwrap()
}

fn disabled(books: &Books, id: u32) -> Books {
    let moving = books.with_unpatching(id, 1).unwrap().with_started(2).unwrap();
    moving.with_completing().unwrap().with_done(3).unwrap()
}

/// What every slot should hold, by entry.
fn slots(books: &Books) -> Vec<(u64, u64)> {
    let stacks = Stacks::of(books).unwrap();
    let handler = |hook| HOOK_HANDLER + u64::from(hook);
    let value = |(i, s): (usize, &SiteRow)| (s.plan.entry, slot_value(i, books, &stacks, handler).unwrap());
    books.sites.iter().enumerate().map(value).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Enable(Vec<u64>),
    Abort(Vec<u64>),
    Disable(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let entries =
        || prop::collection::btree_set(1u64..12, 1..5).prop_map(|s| s.into_iter().map(|e| e * 16).collect());
    prop_oneof![
        3 => entries().prop_map(Step::Enable),
        1 => entries().prop_map(Step::Abort),
        2 => any::<usize>().prop_map(Step::Disable),
    ]
}

proptest! {
    /// After every step each slot, depth, id and order is what the model says.
    #[test]
    fn stacks_follow_the_list(steps in prop::collection::vec(step(), 1..24)) {
        let mut books = Books::default();
        let mut model: Vec<(u32, u64, Vec<u64>)> = Vec::new();
        let mut last = 0u32;
        for (step, tag) in steps.into_iter().zip(1u64..) {
            match step {
                Step::Enable(entries) => {
                    books = prepared(&books, &entries, tag, &[]);
                    prop_assert_eq!(books.prepared(), Some(Batch(last + 1)));
                    books = enabled(&books, Batch(last + 1));
                    last += 1;
                    model.push((last, tag, entries));
                }
                Step::Abort(entries) => {
                    let before = slots(&books);
                    let now = prepared(&books, &entries, tag, &[]);
                    prop_assert_eq!(&slots(&now)[..before.len()], &before[..], "preparing flips nothing");
                    last += 1;
                    books = now.without_prepared(Batch(last), dropped(false), |_| Fate::Retired).unwrap();
                }
                Step::Disable(pick) => {
                    if model.is_empty() {
                        continue;
                    }
                    let (id, ..) = model.remove(pick % model.len());
                    books = disabled(&books, id);
                }
            }
            let listed: Vec<u32> = books.patches.iter().map(|p| p.id).collect();
            prop_assert_eq!(listed, model.iter().map(|m| m.0).collect::<Vec<_>>());
            prop_assert!(books.sites.iter().zip(1..).all(|(s, id)| s.id == id));
            prop_assert!(books.funcs.is_sorted_by_key(|f| f.patch));
            prop_assert_eq!(books.prepared(), None);
            for (site, (entry, slot)) in books.sites.iter().zip(slots(&books)) {
                let on: Vec<_> = model.iter().filter(|m| m.2.contains(&entry)).collect();
                prop_assert_eq!(site.depth as usize, on.len());
                prop_assert_eq!(slot, on.last().map_or(copy_of(entry), |m| new_of(m.1, entry)));
            }
        }
    }
}

#[test]
fn hooks_lie_below_patches_and_stay() {
    let books =
        prepared(&Books::default(), &[16], 1, &[(32, HOOK_DL_FIND_OBJECT), (48, HOOK_DL_ITERATE_PHDR)]);
    assert_eq!(books.funcs.iter().map(|f| f.patch).collect::<Vec<_>>(), [0, 0, 1]);
    assert_eq!(slots(&books), [(16, copy_of(16)), (32, copy_of(32)), (48, copy_of(48))]);
    // Dropped with its batch...
    let dropped = books.without_prepared(Batch(1), dropped(true), |_| Fate::Dropped).unwrap();
    assert!(dropped.funcs.is_empty() && dropped.sites.is_empty() && dropped.mappings.is_empty());
    assert_eq!((dropped.last_patch, dropped.last_site), (1, 3), "numbers are never used again");
    // ... or there for ever.
    let books = enabled(&books, Batch(1));
    let hook = HOOK_HANDLER + u64::from(HOOK_DL_FIND_OBJECT);
    assert_eq!(slots(&books)[1], (32, hook));
    let books = enabled(&prepared(&books, &[32], 7, &[]), Batch(2));
    assert_eq!((slots(&books)[1], books.sites[1].depth), ((32, new_of(7, 32)), 2));
    let books = disabled(&disabled(&books, 2), 1);
    assert_eq!((slots(&books)[1], books.sites[1].depth), ((32, hook), 1));
    assert!(books.images.iter().all(|i| i.flags == IMAGE_LEFT) && books.images.len() == 2);
    let again = batch(&books, &[], 8, &[(32, HOOK_DL_FIND_OBJECT)]);
    let refused = books.with_batch(&View::parse(&again).unwrap(), 0, &[], 1);
    assert_eq!(refused.map(drop), Err(BooksError::State(PATCH_ENABLED)), "one hook, one site");
}

#[test]
fn one_batch_is_prepared_at_a_time() {
    let books = prepared(&Books::default(), &[16], 1, &[]);
    let bytes = batch(&books, &[32], 2, &[]);
    let second = books.with_batch(&View::parse(&bytes).unwrap(), 0, &[], 1);
    assert_eq!(second.map(drop), Err(BooksError::State(PATCH_PREPARED)));
}

#[test]
fn a_dropped_batch_takes_its_image_and_leaves_arenas_unless_told() {
    let roles = |books: &Books| books.mappings.iter().map(|m| m.role).collect::<Vec<_>>();
    let books = prepared(&Books::default(), &[16], 1, &[]);
    assert_eq!(roles(&books), [ROLE_IMAGE, ROLE_ARENA, ROLE_ARENA]);
    assert!(books.made(Batch(1), &books.sites[0]));
    let kept = books.without_prepared(Batch(1), dropped(false), |_| Fate::Armed).unwrap();
    assert_eq!((roles(&kept), kept.sites[0].state), (vec![ROLE_ARENA; 2], SITE_ARMED));
    let gone = books.without_prepared(Batch(1), dropped(true), |_| Fate::Dropped).unwrap();
    assert!(roles(&gone).is_empty() && gone.sites.is_empty() && gone.images.is_empty());
    // One that somebody may still write to is in the books until a look has found nobody.
    let what = Dropped { arenas: true, image: false };
    let left = books.without_prepared(Batch(1), what, |_| Fate::Dropped).unwrap();
    assert_eq!((roles(&left), left.images[0].flags), (vec![ROLE_IMAGE], IMAGE_LEFT));
    assert!(left.patches.is_empty() && left.prepared().is_none());
    let gone = left.with_drained(&[(left.images[0].id, 0)]).unwrap();
    assert!(roles(&gone).is_empty() && gone.images.is_empty());
}

#[test]
fn images_go_when_they_were_left_and_nobody_was_forced_out_of_them() {
    let books = enabled(&prepared(&Books::default(), &[16], 1, &[]), Batch(1));
    let look = |books: &Books| books.with_drained(&[(1, 0)]).map(|books| books.images.len());
    assert_eq!(look(&books), Err(BooksError::State(0)), "in use");
    let mut left = disabled(&books, 1);
    assert_eq!(look(&left), Ok(0));
    left.images[0].flags |= IMAGE_PINNED;
    assert_eq!(look(&left), Err(BooksError::State(IMAGE_LEFT | IMAGE_PINNED)), "for ever");
}

#[test]
fn hooks_of_transitions_lead_to_the_old_function_while_none_runs() {
    let books = prepared(&Books::default(), &[16], 1, &[(32, HOOK_PTHREAD_CREATE)]);
    let slot = |books: &Books| slots(books)[1].1;
    let begun = books.with_patching(Batch(1), 1).unwrap();
    assert_eq!((slot(&begun), begun.sites[1].hook), (copy_of(32), HOOK_PTHREAD_CREATE));
    let running = begun.with_started(2).unwrap();
    assert_eq!(slot(&running), HOOK_HANDLER + u64::from(HOOK_PTHREAD_CREATE));
    assert_eq!(slots(&running)[0].1, 0x12000, "the patch's own function has its dispatcher");
    assert_eq!(slot(&running.with_completing().unwrap()), copy_of(32));
}
