//! Each part of the search by itself: what it finds, no other part does.

use super::held::{Words, known};
use super::{ImageRow, Interval, searched};
use crate::target::books::{Books, LateRow};
use suture_abi::batch::{Image, PROT_EXEC, ROLE_ARENA, ROLE_IMAGE};
use suture_abi::block::{IMAGE_LEFT, IMAGE_POINTED_AT, IMAGE_UNSEARCHED, MappingRow};
use suture_abi::late::{Recipe, RecipeRow};

const IMAGE: u64 = 0x1_0000;
const OTHER: u64 = 0x2_0000;
const STUBS: u64 = 0x3_0000;
const SLOTS: u64 = 0x4_0000;
const LIBRARY: u64 = 0x5_0000;
const CHUNK: u64 = 0x6_0000;
const PATH: u64 = 0x7_0000;
const NEAR: u64 = 0x8_0000;

fn image(id: u32, start: u64) -> ImageRow {
    let plan = Image {
        start,
        end: start + 0x3000,
        text_start: start + 0x1000,
        text_end: start + 0x2000,
        ..Image::default()
    };
    ImageRow { id, patch: id + 10, flags: IMAGE_LEFT, reserved: 0, plan, link_map: 0 }
}

/// Two images are left.
fn books() -> Books {
    let mapping = |patch, role, addr, prot| MappingRow { patch, role, addr, len: 0x3000, prot, reserved: 0 };
    let late = LateRow {
        row: RecipeRow { id: 1, patch: 0, plan: Recipe::default(), blob: 0, blob_len: 0, place: 0 },
        state: 0,
        errno: 0,
        patch: 0,
        site: 0,
        base: 0,
        link_map: 0,
        delta: 0,
        near: vec![Interval { first: NEAR, last: NEAR + 0x100 }],
    };
    Books {
        images: vec![image(1, IMAGE), image(2, OTHER)],
        mappings: vec![
            mapping(11, ROLE_IMAGE, IMAGE, 1),
            mapping(12, ROLE_IMAGE, OTHER, 1),
            mapping(11, ROLE_ARENA, STUBS, 1 | PROT_EXEC),
            mapping(11, ROLE_ARENA, SLOTS, 3),
        ],
        own: vec![LIBRARY..LIBRARY + 0x1000, CHUNK..CHUNK + 0x1000],
        path: PATH..PATH + 0x100,
        recipes: vec![late],
        ..Books::default()
    }
}

#[track_caller]
fn assert_searched(addr: u64, expected: bool) {
    let found = searched(&books(), &[image(1, IMAGE)]);
    let is_in = found.iter().any(|i| (i.first..=i.last).contains(&addr));
    assert_eq!(is_in, expected, "{addr:#x} in {found:x?}");
}

#[test]
fn the_whole_image_is_searched_and_no_other() {
    assert_searched(IMAGE + 0x10, true);
    assert_searched(IMAGE + 0x2010, true);
    assert_searched(OTHER + 0x1010, false);
}

#[test]
fn stubs_and_dispatchers_are_searched_and_slots_are_not() {
    assert_searched(STUBS + 0x10, true);
    assert_searched(SLOTS + 0x10, false);
}

#[test]
fn all_of_the_runtimes_library_is_searched_and_its_data_is_not() {
    assert_searched(LIBRARY + 0x10, true);
    assert_searched(CHUNK + 0x10, false);
}

#[test]
fn the_way_into_a_function_is_searched() {
    assert_searched(PATH + 0x10, true);
}

#[test]
fn what_lies_near_objects_that_came_late_is_searched() {
    assert_searched(NEAR + 0x10, true);
}

#[test]
fn searched_code_that_overlaps_is_joined() {
    let mut books = books();
    books.path = LIBRARY + 0x800..LIBRARY + 0x1800;
    let found = searched(&books, &[]);
    assert!(found.is_sorted() && found.windows(2).all(|w| w[0].last < w[1].first), "{found:x?}");
    assert!(found.contains(&Interval { first: LIBRARY, last: LIBRARY + 0x1800 }), "{found:x?}");
}

const CALLED: u64 = IMAGE + 0x1100;
const FUNCTION: u64 = IMAGE + 0x1200;
const STRING: u64 = IMAGE + 0x2100;

/// With images 1 and 2 to go, and one place that follows a call, in the code and in the data.
fn with_words<R>(hidden: bool, ask: impl FnOnce(&Words<'_>) -> R) -> R {
    let (one, two) = (image(1, IMAGE), image(2, OTHER));
    let follows_call = |word: u64| word == CALLED || word == STRING;
    ask(&Words { going: &[&two, &one], hidden, follows_call: &follows_call })
}

#[test]
fn all_of_the_images_is_looked_for() {
    let whole = |start| Interval { first: start, last: start + 0x2fff };
    assert_eq!(with_words(false, |words| words.table()), [whole(IMAGE), whole(OTHER)]);
}

#[test]
fn return_addresses_in_memory_count_only_where_there_are_hidden_stacks() {
    with_words(false, |words| {
        assert!(!words.counts(CALLED));
        // Pointers do, and what only looks as if a call stood in front of it.
        assert!(words.counts(FUNCTION) && words.counts(STRING) && words.counts(OTHER));
    });
    assert!(with_words(true, |words| words.counts(CALLED)));
}

#[test]
fn old_return_addresses_on_threads_own_stacks_do_not_count() {
    with_words(true, |words| {
        assert!(!words.counts_at(CALLED, || true));
        assert!(words.counts_at(CALLED, || false), "a coroutine's");
        assert!(words.counts_at(FUNCTION, || true), "a pointer");
    });
}

#[test]
fn pointers_in_live_frames_count() {
    with_words(false, |words| {
        assert!(!words.counts_in_frame(CALLED), "the walk has judged it");
        assert!(words.counts_in_frame(FUNCTION) && words.counts_in_frame(STRING));
    });
}

#[test]
fn the_image_that_a_word_lies_in_stays() {
    with_words(false, |words| {
        assert_eq!(words.verdict(&[], true), []);
        assert_eq!(words.verdict(&[STRING], true), [(1, IMAGE_POINTED_AT)]);
        assert_eq!(words.verdict(&[IMAGE + 0x3000, OTHER - 1], true), [], "outside of both");
        assert_eq!(
            words.verdict(&[OTHER], false),
            [(2, IMAGE_POINTED_AT), (1, IMAGE_UNSEARCHED)],
            "not all was looked at"
        );
    });
}

#[test]
fn memory_that_is_looked_at_otherwise_is_not_searched() {
    let going = image(1, IMAGE);
    let found = known(&books(), &[&going], &[(0x9_1000, 0x9_0000..0x9_4000)]);
    let has = |addr: u64| found.iter().any(|range| range.contains(&addr));
    for addr in [IMAGE, STUBS, SLOTS, LIBRARY, CHUNK, 0x9_0000, 0x9_3fff] {
        assert!(has(addr), "{addr:#x} in {found:x?}");
    }
    // What an image that stays holds counts.
    assert!(!has(OTHER) && !has(0x9_4000), "{found:x?}");
}
