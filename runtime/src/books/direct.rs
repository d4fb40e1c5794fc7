//! Jumps that lead straight to a new function: which could, and which may.
//!
//! A site is reached by a `jmp rel32`: in place (class A), or in the padding that a short jump leads to (P, S). Its
//! displacement is the stub's. While nothing moves the stub's slot holds the address of one function for good, and
//! the displacement may as well be that function's. [`SiteRow::direct`] says that it may be; what makes the change
//! safe stands in `commit/direct.rs`.
//!
//! Pure.

use super::{Books, BooksError, Stacks};
use suture_abi::batch::{FUNC_NOP, HOOK_NONE, Site};
use suture_abi::block::{PATCH_ENABLED, PATCH_STUBS_ONLY, SITE_ARMED, SiteRow};

/// Length of `jmp rel32`.
const LENGTH: u8 = 5;
/// Its opcode.
const OPCODE: u8 = 0xe9;
/// Length of `endbr64`, behind which a site may stand with nothing to undo.
const ENDBR: u64 = 4;

/// The jump of a site whose displacement lies in one aligned word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Address of the word, a multiple of 8.
    pub word: u64,
    /// Place of the displacement in it, in bits.
    shift: u32,
    /// Address behind the jump.
    end: u64,
    /// The displacement that leads to the stub.
    stub: u32,
    /// What stood there before the jump.
    file: u32,
}

impl Jump {
    /// The jump of a site. `None`: it has none of which only the displacement would have to change (J, W), the
    /// displacement lies in two words, the stub has a prologue to undo, or the site's object may come and go.
    pub fn of(plan: &Site) -> Option<Self> {
        let at_entry = plan.site == plan.entry || plan.site == plan.entry.wrapping_add(ENDBR);
        if plan.late != 0 || plan.recipe != 0 || !at_entry {
            return None;
        }
        let (at, new, old) = match (plan.class, plan.pad_len) {
            (b'P' | b'S', LENGTH) => (plan.pad_addr, plan.pad_new, plan.pad_old),
            (b'A', 0) => {
                let bits = plan.site.checked_sub(plan.store_addr).filter(|at| *at <= 3)?.wrapping_mul(8);
                let from_site = |word: u64| word.wrapping_shr(bits as u32).to_le_bytes();
                (plan.site, from_site(plan.new_word), from_site(plan.old_word))
            }
            _ => return None,
        };
        let [opcode, new @ ..] = *new.first_chunk::<{ LENGTH as usize }>()?;
        let [_, old @ ..] = *old.first_chunk::<{ LENGTH as usize }>()?;
        let place = at.wrapping_add(1);
        let end = at.wrapping_add(u64::from(LENGTH));
        let offset = place & 7;
        let (stub, file) = (u32::from_le_bytes(new), u32::from_le_bytes(old));
        let jump = Jump { word: place & !7, shift: (offset as u32).wrapping_mul(8), end, stub, file };
        let leads = jump.displacement(plan.stub) == Some(stub);
        (opcode == OPCODE && offset <= 4 && leads).then_some(jump)
    }

    /// The displacement that leads to an address. `None` = out of reach.
    pub fn displacement(&self, to: u64) -> Option<u32> {
        let distance = to.wrapping_sub(self.end).cast_signed();
        i32::try_from(distance).ok().map(i32::cast_unsigned)
    }

    /// The displacement in a word as it was read.
    fn found(&self, word: u64) -> u32 {
        word.wrapping_shr(self.shift) as u32
    }

    /// A word with its displacement replaced; what else is in it stays.
    fn with(&self, word: u64, displacement: u32) -> u64 {
        let mask = u64::from(u32::MAX).wrapping_shl(self.shift);
        word & !mask | u64::from(displacement).wrapping_shl(self.shift)
    }

    /// A word with the jump leading to its stub.
    pub fn to_stub(&self, word: u64) -> u64 {
        self.with(word, self.stub)
    }

    /// A word with the jump leading to an address; as it was if that is out of reach.
    pub fn straight_to(&self, word: u64, to: u64) -> u64 {
        self.displacement(to).map_or(word, |d| self.with(word, d))
    }

    /// True if the jump in a word that was read leads to its stub.
    pub fn is_to_stub(&self, word: u64) -> bool {
        self.found(word) == self.stub
    }

    /// True if it leads to an address.
    pub fn is_straight_to(&self, word: u64, to: u64) -> bool {
        self.displacement(to) == Some(self.found(word))
    }

    /// True if the bytes from before are there: the store was undone by somebody else, and nothing leads anywhere.
    pub fn is_undone(&self, word: u64) -> bool {
        self.found(word) == self.file
    }

    /// The plan of a site whose jump leads straight to an address.
    pub fn straight_plan(&self, plan: &Site, to: u64) -> Site {
        let mut straight = *plan;
        match self.displacement(to) {
            Some(_) if plan.pad_len == 0 => straight.new_word = self.straight_to(plan.new_word, to),
            Some(displacement) => {
                for (place, byte) in straight.pad_new.iter_mut().skip(1).zip(displacement.to_le_bytes()) {
                    *place = byte;
                }
            }
            None => {}
        }
        straight
    }
}

/// True if a stub that begins with `word` does nothing but jump through the site's slot.
pub fn is_plain_stub(plan: &Site, word: u64) -> bool {
    let [0xff, 0x25, a, b, c, d, ..] = word.to_le_bytes() else { return false };
    let end = plan.stub.wrapping_add(6);
    end.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d]))) == plan.slot
}

impl Books {
    /// The function that the jump of the site at `index` may lead to, past the stub.
    ///
    /// Nothing may be moving, and nothing may have been forced; a hook's handler may change at any time.
    pub fn direct_target(&self, index: usize, stacks: &Stacks) -> Option<u64> {
        let site = self.sites.get(index)?;
        let func = stacks.top(index, self)?;
        let patch = self.patch(func.patch)?;
        let settled = self.transition.is_empty() && site.state == SITE_ARMED && patch.state == PATCH_ENABLED;
        let own = site.hook == HOOK_NONE && func.plan.hook == HOOK_NONE && func.plan.flags & FUNC_NOP == 0;
        let allowed = patch.flags & PATCH_STUBS_ONLY == 0;
        let jump = Jump::of(&site.plan).filter(|_| settled && own && allowed)?;
        jump.displacement(func.plan.new_func).map(|_| func.plan.new_func)
    }

    /// The books with some sites marked: id, and where their jumps may lead (0 = to the stub alone).
    pub fn with_direct(&self, marks: &[(u32, u64)]) -> Result<Books, BooksError> {
        let mut next = self.try_clone()?;
        for (id, to) in marks {
            let index = next.site_index(*id).ok_or(BooksError::NoEntry(*id))?;
            if let Some(site) = next.sites.get_mut(index) {
                site.direct = *to;
            }
        }
        Ok(next)
    }

    /// A marked site of a patch's functions: there a slot would not be asked.
    pub fn direct_site_of(&self, patch: u32) -> Option<&SiteRow> {
        let sites = self.funcs.iter().filter(|f| f.patch == patch).filter_map(|f| self.site(f.site));
        sites.into_iter().find(|s| s.direct != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: u64 = 0x40_1000;
    const STUB: u64 = 0x3f_0000;

    fn jump_bytes(at: u64, to: u64) -> [u8; 8] {
        let [a, b, c, d] = (to.wrapping_sub(at + 5) as u32).to_le_bytes();
        [0xe9, a, b, c, d, 0, 0, 0]
    }

    fn padded(pad: u64) -> Site {
        Site {
            class: b'S',
            store_len: 8,
            pad_len: 5,
            entry: ENTRY,
            site: ENTRY,
            store_addr: ENTRY,
            pad_addr: pad,
            pad_old: [0x90; 8],
            pad_new: jump_bytes(pad, STUB),
            stub: STUB,
            slot: 0x3f_1000,
            ..Site::default()
        }
    }

    fn in_place(site: u64, entry: u64) -> Site {
        let word = site & !7;
        let shift = 8 * (site - word);
        let jump = u64::from_le_bytes(jump_bytes(site, STUB)) & 0xff_ffff_ffff;
        let old_word = 0x1122_3344_5566_7788;
        let new_word = old_word & !(0xff_ffff_ffff << shift) | jump << shift;
        let addresses = Site { entry, site, store_addr: word, stub: STUB, ..Site::default() };
        Site { class: b'A', store_len: 8, window_len: 5, old_word, new_word, ..addresses }
    }

    #[test]
    fn the_displacement_has_to_lie_in_one_word() {
        let fits = |pad: u64| Jump::of(&padded(pad)).is_some();
        let found: Vec<bool> = (0..8).map(|i| fits(ENTRY - 32 + i)).collect();
        // Only the displacement changes: the opcode may be in the word in front.
        assert_eq!(found, [true, true, true, true, false, false, false, true]);
        let word = |at: u64| Jump::of(&padded(at)).map(|j| j.word);
        assert_eq!(word(ENTRY - 32 + 7), Some(ENTRY - 24));
        assert_eq!(word(ENTRY - 32 + 3), Some(ENTRY - 32));
    }

    #[test]
    fn only_the_displacement_of_a_word_is_replaced() {
        for at in [0, 1, 2, 3] {
            let plan = in_place(ENTRY + at, ENTRY + at);
            let jump = Jump::of(&plan).unwrap();
            assert!(jump.is_to_stub(plan.new_word) && jump.is_undone(plan.old_word));
            let to = 0x50_0000;
            let word = jump.straight_to(plan.new_word, to);
            let mask = 0xffff_ffff << (8 * (at + 1));
            assert_eq!(word & !mask, plan.new_word & !mask);
            assert!(jump.is_straight_to(word, to) && !jump.is_to_stub(word));
            assert_eq!(jump.to_stub(word), plan.new_word);
            assert_eq!(jump.straight_plan(&plan, to).new_word, word);
            let landed = (word >> (8 * (at + 1))) as u32 as i32;
            assert_eq!((ENTRY + at + 5).wrapping_add_signed(i64::from(landed)), to);
        }
        let plan = padded(ENTRY - 32);
        let straight = Jump::of(&plan).unwrap().straight_plan(&plan, 0x50_0000);
        assert_eq!(straight.pad_new, jump_bytes(ENTRY - 32, 0x50_0000));
        assert_eq!(straight.new_word, plan.new_word);
    }

    #[test]
    fn puns_prologues_and_objects_that_go_keep_their_stubs() {
        let plan = padded(ENTRY - 16);
        assert!(Jump::of(&plan).is_some());
        assert!(Jump::of(&Site { site: ENTRY + 4, ..plan }).is_some(), "behind endbr64");
        assert!(Jump::of(&Site { site: ENTRY + 1, ..plan }).is_none(), "behind a push");
        for other in [
            Site { class: b'J', ..plan },
            Site { class: b'W', ..plan },
            Site { late: 1, ..plan },
            Site { recipe: 3, ..plan },
            Site { pad_len: 0, ..plan },
            Site { stub: STUB + 16, ..plan },
        ] {
            assert!(Jump::of(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_is_out_of_reach_stays() {
        let jump = Jump::of(&padded(ENTRY - 16)).unwrap();
        let end = ENTRY - 11;
        assert_eq!(jump.displacement(end + 0x7fff_ffff), Some(0x7fff_ffff));
        assert_eq!(jump.displacement(end + 0x8000_0000), None);
        assert_eq!(jump.displacement(end.wrapping_sub(0x8000_0000)), Some(0x8000_0000));
        assert_eq!(jump.displacement(end.wrapping_sub(0x8000_0001)), None);
        assert_eq!(jump.straight_to(7, end + 0x8000_0000), 7);
    }

    #[test]
    fn a_stub_that_undoes_something_is_not_plain() {
        let plan = padded(ENTRY - 16);
        let [a, b, c, d] = (plan.slot.wrapping_sub(STUB + 6) as u32).to_le_bytes();
        let word = |bytes: [u8; 8]| u64::from_le_bytes(bytes);
        assert!(is_plain_stub(&plan, word([0xff, 0x25, a, b, c, d, 0x41, 0x5c])));
        assert!(!is_plain_stub(&plan, word([0x5d, 0xff, 0x25, a, b, c, d, 0])), "pop rbp");
        assert!(!is_plain_stub(&plan, word([0xff, 0x25, a ^ 8, b, c, d, 0, 0])), "another slot");
    }
}
