//! The part of late sites that does not wait for the object: slots, choices, dispatchers, and the two jumps
//! through words by which an object that comes is connected.
//!
//! ```text
//! entry: jmp → stub near the object: undo; jmp [word] → front: jmp [slot] → dispatcher, new function or
//! back: jmp [copy word] → copy near the object
//! ```

use suture_abi::batch::{
    MAPPING_ANON, MAPPING_FILE, Mapping, PROT_EXEC, PROT_READ, PROT_WRITE, ROLE_ARENA, Site,
};
use suture_abi::dispatch::Constants;
use suture_elf::{Addr, PAGE};
use suture_redirect::dispatcher;

/// Bytes of code of one site: two jumps of 16 bytes, a dispatcher.
const CODE: u64 = 256;
/// Bytes of data of one site: slot, choice, copy word.
const WORDS: u64 = 32;

/// Bytes that `count` sites take.
#[must_use]
pub fn len(count: usize) -> u64 {
    code_len(count) + (count as u64 * WORDS).next_multiple_of(PAGE)
}

fn code_len(count: usize) -> u64 {
    (count as u64 * CODE).next_multiple_of(PAGE)
}

/// An arena for a number of sites at an address.
#[derive(Debug)]
pub struct Far {
    at: u64,
    count: usize,
    code: Vec<u8>,
    used: usize,
}

impl Far {
    /// An empty one.
    #[must_use]
    pub fn new(at: u64, count: usize) -> Self {
        Self { at, count, code: Vec::new(), used: 0 }
    }

    /// Gives the next site its places; gives the address of its copy word.
    pub fn place(&mut self, site: &mut Site, of: &Constants) -> Option<u64> {
        let code = self.at + self.used as u64 * CODE;
        let words = self.at + code_len(self.count) + self.used as u64 * WORDS;
        (site.slot, site.choice) = (words, words + 8);
        let copy_word = words + 16;
        (site.stub, site.copy, site.copy_len) = (code, code + 16, 6);
        site.dispatcher = code + 32;
        let body = dispatcher(Addr(site.dispatcher), Addr(site.choice), of)?;
        let mut bytes = vec![0xcc; CODE as usize];
        bytes[..6].copy_from_slice(&through(site.stub, site.slot)?);
        bytes[16..22].copy_from_slice(&through(site.copy, copy_word)?);
        bytes.get_mut(32..32 + body.len())?.copy_from_slice(&body);
        self.code.extend_from_slice(&bytes);
        self.used += 1;
        Some(copy_word)
    }

    /// What has to be mapped: mappings with offsets into the bytes.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Mapping>, Vec<u8>) {
        self.code.resize(usize::try_from(code_len(self.count)).unwrap_or(0), 0xcc);
        let code_len = code_len(self.count);
        let mapping = |addr, len, kind, prot| Mapping {
            addr,
            len,
            offset: 0,
            kind,
            prot,
            final_prot: prot,
            role: ROLE_ARENA,
        };
        let words = len(self.count) - code_len;
        let mappings = vec![
            mapping(self.at, code_len, MAPPING_FILE, PROT_READ | PROT_EXEC),
            mapping(self.at + code_len, words, MAPPING_ANON, PROT_READ | PROT_WRITE),
        ];
        (mappings, self.code)
    }
}

/// `jmp [rip + word]`.
fn through(at: u64, word: u64) -> Option<[u8; 6]> {
    let [a, b, c, d] = i32::try_from(word.wrapping_sub(at + 6).cast_signed()).ok()?.to_le_bytes();
    Some([0xff, 0x25, a, b, c, d])
}
