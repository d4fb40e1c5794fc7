//! The GNU build-id: which build of an object this is.

use std::fmt;

/// Contents of the `NT_GNU_BUILD_ID` note.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// Takes the note's descriptor bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// Reads lower or upper case hexadecimal; `None` for anything else, or nothing.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.is_empty() || !text.len().is_multiple_of(2) || !text.is_ascii() {
            return None;
        }
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok())
            .collect::<Option<Vec<u8>>>()
            .map(Self)
    }

    /// The raw bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Finds the build-id among the notes of one `PT_NOTE` segment (4-byte aligned notes).
    #[must_use]
    pub fn from_notes(mut notes: &[u8]) -> Option<Self> {
        let word = |b: &[u8], at: usize| -> Option<usize> {
            let bytes: [u8; 4] = b.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes) as usize)
        };
        loop {
            let (name_len, desc_len, kind) = (word(notes, 0)?, word(notes, 4)?, word(notes, 8)?);
            let name_end = 12usize.checked_add(name_len)?;
            let desc = name_end.checked_next_multiple_of(4)?;
            let desc_end = desc.checked_add(desc_len)?;
            let bytes = notes.get(desc..desc_end)?;
            if kind == 3 && notes.get(12..name_end)? == b"GNU\0" && !bytes.is_empty() {
                return Some(Self::new(bytes));
            }
            notes = notes.get(desc_end.checked_next_multiple_of(4)?..)?;
        }
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BuildId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_goes_both_ways_and_bad_hex_is_refused() {
        let id = BuildId::from_hex("00ffAb").unwrap();
        assert_eq!(id.as_bytes(), [0, 0xff, 0xab]);
        assert_eq!(id.to_string(), "00ffab");
        for bad in ["", "0", "zz", "é0"] {
            assert_eq!(BuildId::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_note_is_found_behind_another_one() {
        let mut notes = Vec::new();
        for (name, kind, desc) in [(*b"XYZ\0", 3u32, [9u8; 5].as_slice()), (*b"GNU\0", 3, &[1, 2, 3])] {
            notes.extend(4u32.to_le_bytes());
            notes.extend((desc.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.extend(desc);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(BuildId::from_notes(&notes), Some(BuildId::new(&[1, 2, 3])));
        assert_eq!(BuildId::from_notes(&notes[..20]), None);
    }
}
