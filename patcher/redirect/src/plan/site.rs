//! One site: its bytes before and after, and why it was not to be.

use super::Subject;
use crate::Refusal;
use crate::function::Function;
use crate::options::Class;
use crate::window::{Boundary, Candidate, JUMP, PREFIXES, Wide, in_word_of};
use suture_abi::batch::Site;
use suture_elf::Vaddr;

/// Everything of a site that its file and its place decide.
pub(super) fn skeleton(subject: &Subject<'_>, candidate: &Candidate) -> Result<Site, Refusal> {
    let file = subject.loaded.analysis.file();
    let base = subject.loaded.base;
    let at = candidate.window.start;
    let bytes = |at: Vaddr, len: u64| file.bytes_at(at, len).ok_or(Refusal::NotCode(at));
    let padding = |at: Vaddr| subject.loaded.analysis.mapped_bytes(at, JUMP).ok_or(Refusal::NotCode(at));
    let mut site = Site {
        class: candidate.class.letter(),
        window_len: (candidate.window.end.0 - at.0) as u8,
        entry: (base + subject.function.entry).0,
        site: (base + at).0,
        ..Site::default()
    };
    if candidate.class == Class::J {
        site.store_len = 1;
        site.store_addr = site.site;
        site.old_word = u64::from(bytes(at, 1)?[0]);
        site.new_word = 0xe9;
        site.pad_new[0] = 0xe9;
        site.pad_new[1..5].copy_from_slice(&bytes(at + 1, 4)?[..4]);
        return Ok(site);
    }
    let word = Vaddr(at.0 & !7);
    site.store_len = 8;
    site.store_addr = (base + word).0;
    site.old_word = bytes(word, 8)?.try_into().map_or(0, u64::from_le_bytes);
    site.new_word = site.old_word;
    if let Some(wide) = candidate.wide {
        let len = wide.len() as usize;
        site.pad_new[..len].copy_from_slice(&bytes(at, wide.len())?[..len]);
        let prefixes = wide.prefixes as usize;
        site.pad_new[..prefixes].copy_from_slice(&PREFIXES[PREFIXES.len() - prefixes..]);
        site.pad_new[prefixes] = 0xe9;
        return Ok(site);
    }
    if let Some(pad) = candidate.pad {
        let distance = pad.at.0.wrapping_sub(at.0 + 2) as u8;
        site.new_word = with_bytes(site.new_word, at.0 - word.0, &[0xeb, distance]);
    }
    if let Some(pad) = candidate.pad.map(|pad| pad.at).filter(|pad| !in_word_of(*pad, at)) {
        site.pad_addr = (base + pad).0;
        site.pad_len = JUMP as u8;
        site.pad_old[..5].copy_from_slice(padding(pad)?);
    }
    Ok(site)
}

/// The word with some of its bytes replaced.
pub(super) fn with_bytes(word: u64, at: u64, bytes: &[u8]) -> u64 {
    let mut all = word.to_le_bytes();
    let at = at as usize;
    all[at..at + bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(all)
}

/// Where a pun leads.
pub(crate) fn pun_target(site: &Site) -> u64 {
    let end = usize::from(site.window_len);
    let displacement = site.pad_new[..end].last_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
    (site.site + end as u64).wrapping_add_signed(i64::from(displacement))
}

/// First address that a wide pun may lead to; how many there are follows from its free bytes.
pub(super) fn first_target(site: &Site, wide: Wide) -> u64 {
    let mut first = *site;
    let free = wide.prefixes as usize + 1..wide.stored() as usize;
    first.pad_new[free].fill(0);
    pun_target(&first)
}

/// Makes a wide pun lead to one of its targets.
pub(super) fn aim(site: &mut Site, wide: Wide, target: u64) {
    let end = site.site + wide.len();
    let displacement = (target.wrapping_sub(end) as u32).to_le_bytes();
    let (first, stored) = (wide.prefixes as usize + 1, wide.stored() as usize);
    site.pad_new[first..stored].copy_from_slice(&displacement[..stored - first]);
    site.new_word = with_bytes(site.old_word, site.site - site.store_addr, &site.pad_new[..stored]);
}

/// The code the copy has to hold: from the entry to the end of the displaced instruction, with the
/// second NOP of a compiler pad.
pub(crate) fn displaced<'f>(
    function: &'f Function,
    place: &Boundary,
    candidate: &Candidate,
) -> &'f [iced_x86::Instruction] {
    let end = if candidate.class == Class::P { candidate.window.end } else { place.at + 1 };
    let count = function.code[place.index..].iter().take_while(|i| i.ip() < end.0).count();
    &function.code[..place.index + count]
}

/// What came of the candidates of a function, to name one reason in the end.
#[derive(Default)]
pub(crate) struct Tried {
    /// Some class was switched off.
    pub off: bool,
    pun: Option<Refusal>,
    other: Option<Refusal>,
}

impl Tried {
    /// Notes a refusal. A pun is possible nearly everywhere, so why it is not says most.
    pub fn add(&mut self, candidate: &Candidate, why: Refusal) {
        let place = if candidate.class.is_pun() { &mut self.pun } else { &mut self.other };
        place.get_or_insert(why);
    }

    /// The reason to give.
    pub fn refusal(self, function: &Function) -> Refusal {
        self.pun.or(self.other).unwrap_or(if self.off {
            Refusal::ClassesOff
        } else if function.size() < JUMP {
            Refusal::TooShort { size: function.size() }
        } else {
            Refusal::NoStore
        })
    }
}
