//! Values as texts: what `suture get` prints.

use super::until_nul;
use crate::books::Books;
use crate::held::{Pending, Why};
use crate::late;
use suture_abi::batch::{NamePart, RANGE_NEW};
use suture_abi::block::SiteRow;

/// The callbacks of a state and its destructor, in the order of the bits that stand for them.
const CALLBACKS: [&[u8]; 5] = [b"pre_patch", b"post_patch", b"pre_unpatch", b"post_unpatch", b"shadow_dtor"];

/// Where a text goes.
pub trait Out {
    /// Appends bytes.
    fn put(&mut self, bytes: &[u8]);
}

/// A place that may be too short: what does not fit is counted.
#[derive(Debug)]
pub struct Cut<'b> {
    room: &'b mut [u8],
    len: usize,
}

impl<'b> Cut<'b> {
    /// Nothing yet. The text will end with a NUL, unless there is no room at all.
    pub fn new(room: &'b mut [u8]) -> Self {
        let mut cut = Self { room, len: 0 };
        cut.end();
        cut
    }

    fn end(&mut self) {
        let last = self.room.len().saturating_sub(1).min(self.len);
        if let Some(place) = self.room.get_mut(last) {
            *place = 0;
        }
    }

    /// How long the text is, without its NUL, or would be.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Out for Cut<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let free = self.room.get_mut(self.len..).unwrap_or_default();
        free.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        self.len = self.len.saturating_add(bytes.len());
        self.end();
    }
}

/// Appends a number.
pub fn number(out: &mut impl Out, value: u64) {
    digits(out, value, 10);
}

fn digits(out: &mut impl Out, value: u64, base: u64) {
    let mut text = [0; 20];
    let (mut left, mut at) = (value, text.len());
    while let Some(place) = at.checked_sub(1).and_then(|next| text.get_mut(next)) {
        let digit = left.checked_rem(base).unwrap_or(0) as u8;
        *place = digit.wrapping_add(if digit < 10 { b'0' } else { b'a'.wrapping_sub(10) });
        left = left.checked_div(base).unwrap_or(0);
        at = at.saturating_sub(1);
        if left == 0 {
            break;
        }
    }
    out.put(text.get(at..).unwrap_or_default());
}

/// Appends pieces with something between each two.
fn joined<'p>(out: &mut impl Out, between: &[u8], pieces: impl Iterator<Item = &'p [u8]>) {
    for (index, piece) in pieces.enumerate() {
        if index > 0 {
            out.put(between);
        }
        out.put(piece);
    }
}

/// Names of the callbacks that have their bit in a set.
pub fn callbacks(out: &mut impl Out, set: i64) {
    let has = |bit: &u32| set & 1i64.wrapping_shl(*bit) != 0;
    joined(out, b" ", (0..).zip(CALLBACKS).filter(|(bit, _)| has(bit)).map(|(_, name)| name));
}

/// Names of the listed patches that have a state.
pub fn holders(out: &mut impl Out, books: &Books, id: u64) {
    let holds = |patch: u32| books.states.iter().any(|s| s.patch == patch && s.plan.id == id);
    joined(out, b" ", books.patches.iter().filter(|p| holds(p.id)).map(|p| until_nul(&p.name)));
}

/// One line about a thread that holds the transition up.
pub fn pending(out: &mut impl Out, books: &Books, pending: &Pending) {
    number(out, u64::from(pending.tid));
    let name = until_nul(&pending.name);
    if !name.is_empty() {
        out.put(b" ");
        out.put(name);
    }
    match pending.why {
        Why::Running => out.put(b": running"),
        Why::On(at) => {
            out.put(b": on function ");
            function_at(out, books, at);
        }
        Why::Unclear => out.put(b": unreliable stack"),
        Why::Unseen => out.put(b": left to the command"),
    }
}

/// Name of the function that an address is in, or behind by one, as the patches call it; those of patches with the
/// patch's.
fn function_at(out: &mut impl Out, books: &Books, address: u64) {
    // A return address may lie one past its function.
    let at = address.wrapping_sub(1);
    let base = |site: &SiteRow| match site.plan.late {
        0 => Some(0),
        _ => {
            let placed = late::placed(&site.plan, books.recipe(site.plan.recipe)?)?;
            Some(placed.entry.wrapping_sub(site.plan.entry))
        }
    };
    for range in &books.ranges {
        let Some(site) = books.site(range.site) else { continue };
        let base = if range.kind == RANGE_NEW { Some(0) } else { base(site) };
        let offset = base.map(|base| at.wrapping_sub(base));
        if offset.is_some_and(|offset| (range.start..range.end).contains(&offset)) {
            name_of(out, books, site);
            if let Some(patch) = books.patch(range.patch).filter(|_| range.kind == RANGE_NEW) {
                out.put(b" [");
                out.put(until_nul(&patch.name));
                out.put(b"]");
            }
            return;
        }
    }
    let is_copy = |s: &&SiteRow| at.wrapping_sub(s.plan.copy) < s.plan.copy_len;
    let image = books.images.iter().find(|i| (i.plan.text_start..i.plan.text_end).contains(&at));
    if let Some(site) = books.sites.iter().find(is_copy) {
        name_of(out, books, site);
    } else if let Some(patch) = image.and_then(|i| books.patch(i.patch)) {
        out.put(b"code of patch ");
        out.put(until_nul(&patch.name));
    } else {
        hexadecimal(out, address);
    }
}

fn hexadecimal(out: &mut impl Out, value: u64) {
    out.put(b"0x");
    digits(out, value, 16);
}

/// Name of the function of a site, without its position.
fn name_of(out: &mut impl Out, books: &Books, site: &SiteRow) {
    let file = |part: &NamePart, patch: u32| {
        let mut own = books.named.iter().filter(|o| o.patch == patch);
        let name = own.nth(part.object as usize).map(|o| until_nul(o.row.name.as_flattened()))?;
        name.rsplit(|b| *b == b'/').next()
    };
    let recipe = books.recipe(site.plan.recipe).filter(|_| site.plan.late != 0);
    let is_its = |part: &NamePart, patch: u32| {
        part.entry == site.plan.entry
            && recipe.is_none_or(|r| file(part, patch) == Some(until_nul(r.plan.name.as_flattened())))
    };
    let mut parts = books.names.iter().skip_while(|n| !is_its(&n.part, n.patch)).map(|n| n.part);
    let Some(first) = parts.next() else { return hexadecimal(out, site.plan.entry) };
    // The position stands behind the last comma.
    let mut part = Some(first);
    while let Some(NamePart { more, text, .. }) = part {
        let text = until_nul(text.as_flattened());
        part = parts.next().filter(|_| more != 0);
        let comma = text.iter().rposition(|b| *b == b',').filter(|_| part.is_none());
        out.put(text.get(..comma.unwrap_or(text.len())).unwrap_or_default());
    }
}
