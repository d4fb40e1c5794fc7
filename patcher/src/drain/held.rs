//! Which words in memory hold an image. Pure.

use crate::target::books::Books;
use std::ops::Range;
use suture_abi::batch::ROLE_ARENA;
use suture_abi::block::{IMAGE_POINTED_AT, IMAGE_UNSEARCHED, ImageRow};
use suture_scan::Interval;

/// Words that lead into images which would go.
pub(super) struct Words<'a> {
    /// The images.
    pub(super) going: &'a [&'a ImageRow],
    /// The program may have stacks nobody knows: a return address anywhere counts.
    pub(super) hidden: bool,
    /// Whether a call stands in front of an address.
    pub(super) follows_call: &'a dyn Fn(u64) -> bool,
}

impl Words<'_> {
    /// What is looked for.
    pub(super) fn table(&self) -> Vec<Interval> {
        let whole = |i: &&ImageRow| Interval { first: i.plan.start, last: i.plan.end - 1 };
        let mut table: Vec<Interval> = self.going.iter().map(whole).collect();
        table.sort_unstable();
        table
    }

    /// Whether a word may be a return address, and not a pointer.
    fn returns(&self, word: u64) -> bool {
        let text = |i: &&ImageRow| (i.plan.text_start..=i.plan.text_end).contains(&word);
        self.going.iter().any(text) && (self.follows_call)(word)
    }

    /// Whether one counts that lies outside of known stacks.
    pub(super) fn counts(&self, word: u64) -> bool {
        self.hidden || !self.returns(word)
    }

    /// Whether one counts that was found there. The stack of a thread that ran could not be left out, and is full of
    /// old return addresses; who may still come back was judged by a look at the thread.
    pub(super) fn counts_at(&self, word: u64, is_of_thread: impl FnOnce() -> bool) -> bool {
        !(self.returns(word) && is_of_thread())
    }

    /// Whether one counts in the live part of a stack, where return addresses were judged by a walk.
    pub(super) fn counts_in_frame(&self, word: u64) -> bool {
        !self.returns(word)
    }

    /// Images that stay, by the words that count; without `all_of_it` there may be more of them.
    pub(super) fn verdict(&self, words: &[u64], all_of_it: bool) -> Vec<(u32, u32)> {
        let why = |image: &&&ImageRow| {
            let within = image.plan.start..image.plan.end;
            match words.iter().any(|word| within.contains(word)) {
                true => Some((image.id, IMAGE_POINTED_AT)),
                false if all_of_it => None,
                false => Some((image.id, IMAGE_UNSEARCHED)),
            }
        };
        self.going.iter().filter_map(|image| why(&image)).collect()
    }
}

/// Memory that is not searched: the runtime's own, where addresses of images are kept that go with them, the images
/// themselves, and the stacks of threads, which are looked at otherwise.
pub(super) fn known(books: &Books, going: &[&ImageRow], stacks: &[(u64, Range<u64>)]) -> Vec<Range<u64>> {
    let of_going = |patch: u32| going.iter().any(|i| i.patch == patch);
    let own = books.mappings.iter().filter(|m| m.role == ROLE_ARENA || of_going(m.patch));
    own.map(|m| m.addr..m.addr.saturating_add(m.len))
        .chain(books.own.iter().cloned())
        .chain(stacks.iter().map(|(_, whole)| whole.clone()))
        .collect()
}
