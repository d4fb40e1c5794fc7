//! Punned pages: one jump at a given offset of a given page.
//!
//! A punned page holds nothing but a few bytes, and its contents never change, so pages whose bytes
//! do not collide are one page of the code file mapped several times: 10 000 sites need about 33.

use std::collections::BTreeMap;
use std::ops::Range;

pub(crate) use suture_elf::PAGE;
/// Bytes from one spot to the next that is tried in a page.
const SPACING: usize = 8;

/// Punned pages of a plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    /// Page address → (offset in the page, bytes).
    pages: BTreeMap<u64, Vec<(u16, Vec<u8>)>>,
}

impl Pages {
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    pub fn contains(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    pub fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.keys().copied()
    }

    /// Whether `len` bytes at `addr` are still free.
    pub fn fits(&self, addr: u64, len: u64) -> bool {
        let (page, offset) = (addr & !(PAGE - 1), addr % PAGE);
        let apart = |(at, bytes): &(u16, Vec<u8>)| {
            u64::from(*at) + bytes.len() as u64 <= offset || offset + len <= u64::from(*at)
        };
        offset + len <= PAGE && self.pages.get(&page).is_none_or(|parts| parts.iter().all(apart))
    }

    /// The first of some addresses where that many bytes are free in a page that is there.
    pub fn spot(&self, among: &Range<u64>, len: u64) -> Option<u64> {
        let pages = self.pages.range(among.start & !(PAGE - 1)..among.end);
        let spots = pages.flat_map(|(page, _)| (*page..page + PAGE).step_by(SPACING));
        spots.filter(|spot| among.contains(spot)).find(|spot| self.fits(*spot, len))
    }

    pub fn put(&mut self, addr: u64, bytes: Vec<u8>) {
        self.pages.entry(addr & !(PAGE - 1)).or_default().push(((addr % PAGE) as u16, bytes));
    }

    /// Contents of the file pages, and for each virtual page the file page it shows.
    pub fn pack(&self) -> (Vec<u8>, Vec<(u64, usize)>) {
        let mut files: Vec<FilePage> = Vec::new();
        let mut shown = Vec::new();
        for (page, parts) in &self.pages {
            let index = files.iter().position(|f| f.fits(parts)).unwrap_or_else(|| {
                files.push(FilePage { bytes: vec![0xcc; PAGE as usize], used: vec![false; PAGE as usize] });
                files.len() - 1
            });
            files[index].put(parts);
            shown.push((*page, index));
        }
        (files.into_iter().flat_map(|f| f.bytes).collect(), shown)
    }
}

struct FilePage {
    bytes: Vec<u8>,
    used: Vec<bool>,
}

impl FilePage {
    fn range((at, bytes): &(u16, Vec<u8>)) -> std::ops::Range<usize> {
        usize::from(*at)..usize::from(*at) + bytes.len()
    }

    fn fits(&self, parts: &[(u16, Vec<u8>)]) -> bool {
        parts.iter().all(|p| !self.used[Self::range(p)].contains(&true))
    }

    fn put(&mut self, parts: &[(u16, Vec<u8>)]) {
        for part in parts {
            self.bytes[Self::range(part)].copy_from_slice(&part.1);
            self.used[Self::range(part)].fill(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_of_addresses_meets_a_page_that_is_there() {
        let mut pages = Pages::default();
        pages.put(0x5000, vec![1; 6]);
        assert_eq!(pages.spot(&(0x1000..0x5003), 6), None, "the only address in the page is taken");
        assert_eq!(pages.spot(&(0x1000..0x9000), 6), Some(0x5008));
        assert_eq!(pages.spot(&(0x5ff9..0x9000), 6), None, "would straddle");
        assert_eq!(pages.spot(&(0x6000..0x9000), 6), None);
    }

    #[test]
    fn pages_without_collisions_share_a_file_page() {
        let mut pages = Pages::default();
        pages.put(0x1100, vec![1; 6]);
        pages.put(0x5200, vec![2; 6]);
        pages.put(0x9104, vec![3; 6]);
        assert!(!pages.fits(0x1105, 6) && !pages.fits(0x10fb, 6));
        assert!(pages.fits(0x1106, 6) && pages.fits(0x10fa, 6));
        assert!(!pages.fits(0x3ffb, 6), "would straddle");
        pages.put(0x1106, vec![4; 6]);
        assert_eq!(pages.len(), 3);
        let (bytes, shown) = pages.pack();
        assert_eq!(shown, [(0x1000, 0), (0x5000, 0), (0x9000, 1)]);
        assert_eq!(bytes.len(), 0x2000);
        assert_eq!(bytes[0x100..0x10c], [1, 1, 1, 1, 1, 1, 4, 4, 4, 4, 4, 4]);
        assert_eq!((bytes[0x200], bytes[0x1104], bytes[0x300]), (2, 3, 0xcc));
    }
}
