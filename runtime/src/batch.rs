//! The validated view of a batch.
//!
//! Pure: no system call, no allocation, no pointer of the target is followed. [`View::parse`] checks
//! everything that can be checked with the payload alone, so that the commit can only fail on what the
//! process refuses. A refusal names the offset of the field.
//!
//! # Safety
//!
//! Values are copied out of the payload bytewise ([`Plain`]); a client that changes them while they
//! are checked could only mislead itself, since every table is bounds-checked from one copy.
#![allow(unsafe_code)]

use crate::late::blob::{self, Blob};
use crate::sys::mem::{PAGE, PROT_EXEC, PROT_READ, PROT_WRITE};
use core::marker::PhantomData;
use core::mem::offset_of;
use suture_abi::ABI_VERSION;
use suture_abi::batch::{
    BATCH_LINKED_THREADS, BATCH_MAGIC, BATCH_OWN_STACKS, BATCH_PATCH, BATCH_REPLACE, BATCH_STUBS_ONLY,
    FIXUP_ADDRESS, FIXUP_RESOLVER, FIXUP_TLSDESC, FUNC_NOP, Fixup, Func, HOOK_DL_DEBUG_STATE, HOOK_NONE,
    Header, Image, MAPPING_ANON, MAPPING_FILE, Mapping, NamePart, NamedObject, Object, RANGE_CONTEXT,
    ROLE_ARENA, ROLE_IMAGE, Range, Site, State, Table,
};
use suture_abi::late::{
    BUILD_ID_MAX, LANES, LateSite, RECIPE_SITES, RECIPE_WORDS, Recipe, WORD_MODULE, Word,
};

/// Longest name of a patch.
pub const NAME_MAX: usize = 55;

/// The payload does not fit its own bounds: offset of the offending field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub usize);

/// Structures of integers: any bytes are a value.
///
/// # Safety
///
/// Every bit pattern must be valid and the type must not own anything.
unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of integers only, in all of them.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for Object {}
// SAFETY: as above.
unsafe impl Plain for Mapping {}
// SAFETY: as above.
unsafe impl Plain for Fixup {}
// SAFETY: as above.
unsafe impl Plain for Site {}
// SAFETY: as above.
unsafe impl Plain for Func {}
// SAFETY: as above.
unsafe impl Plain for Range {}
// SAFETY: as above.
unsafe impl Plain for State {}
// SAFETY: as above.
unsafe impl Plain for Image {}
// SAFETY: as above.
unsafe impl Plain for Recipe {}
// SAFETY: as above.
unsafe impl Plain for NamedObject {}
// SAFETY: as above.
unsafe impl Plain for NamePart {}

fn copy_out<T: Plain>(bytes: &[u8], at: usize) -> Option<T> {
    let field = bytes.get(at..at.checked_add(size_of::<T>())?)?;
    // SAFETY: `field` is `size_of::<T>()` readable bytes and any bytes are a `T`.
    Some(unsafe { field.as_ptr().cast::<T>().read_unaligned() })
}

/// A table of the payload whose bounds were checked.
#[derive(Clone, Copy, Debug)]
pub struct Array<'a, T> {
    bytes: &'a [u8],
    start: usize,
    items: PhantomData<T>,
}

#[allow(private_bounds)] // nobody else shall be able to say what may be read from raw bytes
impl<'a, T: Plain> Array<'a, T> {
    fn of(payload: &'a [u8], table: Table, field: usize) -> Result<Self, Malformed> {
        let start = table.offset as usize;
        let bad = Malformed(field);
        if table.count == 0 {
            return Ok(Array { bytes: &[], start, items: PhantomData });
        }
        if !start.is_multiple_of(8) {
            return Err(bad);
        }
        let len = (table.count as usize).checked_mul(size_of::<T>()).ok_or(bad)?;
        let bytes = payload.get(start..start.checked_add(len).ok_or(bad)?).ok_or(bad)?;
        Ok(Array { bytes, start, items: PhantomData })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.bytes.len().checked_div(size_of::<T>()).unwrap_or(0)
    }

    /// No entries.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One entry.
    pub fn get(&self, index: usize) -> Option<T> {
        copy_out(self.bytes, index.checked_mul(size_of::<T>())?)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let bytes = self.bytes;
        // `chunks_exact` would panic for size 0; no table has entries of that size.
        bytes.chunks_exact(size_of::<T>().max(1)).filter_map(|entry| copy_out(entry, 0))
    }

    /// Offset of a field of an entry, for refusals.
    fn place(&self, index: usize, field: usize) -> Malformed {
        Malformed(index.saturating_mul(size_of::<T>()).saturating_add(self.start).saturating_add(field))
    }
}

/// A batch whose tables are in bounds and whose entries make sense.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The header.
    pub header: Header,
    /// Objects the plan refers to.
    pub objects: Array<'a, Object>,
    /// Mappings to make, in order.
    pub mappings: Array<'a, Mapping>,
    /// Words to fill.
    pub fixups: Array<'a, Fixup>,
    /// Sites.
    pub sites: Array<'a, Site>,
    /// Functions.
    pub funcs: Array<'a, Func>,
    /// The image, if any.
    pub images: Array<'a, Image>,
    /// Code of the functions, old and new.
    pub ranges: Array<'a, Range>,
    /// States.
    pub states: Array<'a, State>,
    /// Objects that may come and go.
    pub recipes: Array<'a, Recipe>,
    /// Objects of the patch, by name.
    pub named: Array<'a, NamedObject>,
    /// Names of its functions.
    pub names: Array<'a, NamePart>,
    payload: &'a [u8],
    /// Name of the patch.
    pub name: &'a [u8],
    /// The command's description of the patch.
    pub description: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks a payload.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Malformed> {
        let header: Header = copy_out(payload, 0).ok_or(Malformed(payload.len()))?;
        if header.magic != BATCH_MAGIC {
            return Err(Malformed(offset_of!(Header, magic)));
        }
        if header.abi != ABI_VERSION {
            return Err(Malformed(offset_of!(Header, abi)));
        }
        let known = BATCH_PATCH | BATCH_REPLACE | BATCH_LINKED_THREADS | BATCH_OWN_STACKS | BATCH_STUBS_ONLY;
        let no_patch = header.flags & BATCH_PATCH == 0;
        if header.flags & !known != 0 || header.flags & BATCH_REPLACE != 0 && no_patch {
            return Err(Malformed(offset_of!(Header, flags)));
        }
        // No thread header is that large; the offset is added to `fs` on every thread.
        if header.thread_id >= PAGE as u32 || !header.thread_id.is_multiple_of(4) {
            return Err(Malformed(offset_of!(Header, thread_id)));
        }
        let view = View {
            header,
            objects: Array::of(payload, header.objects, offset_of!(Header, objects))?,
            mappings: Array::of(payload, header.mappings, offset_of!(Header, mappings))?,
            fixups: Array::of(payload, header.fixups, offset_of!(Header, fixups))?,
            sites: Array::of(payload, header.sites, offset_of!(Header, sites))?,
            funcs: Array::of(payload, header.funcs, offset_of!(Header, funcs))?,
            images: Array::of(payload, header.images, offset_of!(Header, images))?,
            ranges: Array::of(payload, header.ranges, offset_of!(Header, ranges))?,
            states: Array::of(payload, header.states, offset_of!(Header, states))?,
            recipes: Array::of(payload, header.recipes, offset_of!(Header, recipes))?,
            named: Array::of(payload, header.named, offset_of!(Header, named))?,
            names: Array::of(payload, header.names, offset_of!(Header, names))?,
            payload,
            name: bytes_of(payload, header.name, offset_of!(Header, name))?,
            description: bytes_of(payload, header.description, offset_of!(Header, description))?,
        };
        view.check_name()?;
        view.check_mappings()?;
        view.check_fixups()?;
        view.check_recipes()?;
        view.check_sites()?;
        view.check_funcs()?;
        view.check_ranges()?;
        view.check_states()?;
        view.check_names()?;
        view.check_images()?;
        Ok(view)
    }

    /// True if the batch brings a patch.
    pub fn has_patch(&self) -> bool {
        self.header.flags & BATCH_PATCH != 0
    }

    fn check_name(&self) -> Result<(), Malformed> {
        let fits = match self.has_patch() {
            true => (1..=NAME_MAX).contains(&self.name.len()) && !self.name.contains(&0),
            false => self.name.is_empty(),
        };
        if fits { Ok(()) } else { Err(Malformed(offset_of!(Header, name))) }
    }

    fn check_mappings(&self) -> Result<(), Malformed> {
        for (i, m) in self.mappings.iter().enumerate() {
            let bad = |field| Err(self.mappings.place(i, field));
            if m.addr == 0 || !m.addr.is_multiple_of(PAGE) {
                return bad(offset_of!(Mapping, addr));
            }
            if m.len == 0 || !m.len.is_multiple_of(PAGE) || m.addr.checked_add(m.len).is_none() {
                return bad(offset_of!(Mapping, len));
            }
            if !m.offset.is_multiple_of(PAGE) {
                return bad(offset_of!(Mapping, offset));
            }
            if m.kind != MAPPING_ANON && m.kind != MAPPING_FILE {
                return bad(offset_of!(Mapping, kind));
            }
            let both = PROT_WRITE | PROT_EXEC;
            if m.prot & !(PROT_READ | both) != 0 || m.prot & both == both {
                return bad(offset_of!(Mapping, prot));
            }
            let narrowed = m.prot & PROT_WRITE != 0 && m.final_prot == PROT_READ;
            if m.final_prot != m.prot && !narrowed {
                return bad(offset_of!(Mapping, final_prot));
            }
            if m.role != ROLE_IMAGE && m.role != ROLE_ARENA {
                return bad(offset_of!(Mapping, role));
            }
        }
        Ok(())
    }

    /// True if `len` bytes at `addr` lie in one mapping of the batch for which `test` holds.
    fn mapped(&self, addr: u64, len: u64, test: impl Fn(&Mapping) -> bool) -> bool {
        let Some(end) = addr.checked_add(len) else { return false };
        self.mappings.iter().any(|m| test(&m) && m.addr <= addr && end <= m.addr.saturating_add(m.len))
    }

    fn check_fixups(&self) -> Result<(), Malformed> {
        let writable = |m: &Mapping| m.prot & PROT_WRITE != 0;
        // Fixups come in the order of their places: the mapping of the last one is the best guess.
        let (mut from, mut to) = (0, 0);
        for (i, f) in self.fixups.iter().enumerate() {
            let bad = |field| Err(self.fixups.place(i, field));
            if f.kind > FIXUP_TLSDESC {
                return bad(offset_of!(Fixup, kind));
            }
            if matches!(f.kind, FIXUP_ADDRESS | FIXUP_RESOLVER) && f.object as usize >= self.objects.len() {
                return bad(offset_of!(Fixup, object));
            }
            let Some(end) = f.place.checked_add(8) else { return bad(offset_of!(Fixup, place)) };
            if from <= f.place && end <= to {
                continue;
            }
            let inside = |m: &Mapping| m.addr <= f.place && end <= m.addr.saturating_add(m.len);
            match self.mappings.iter().find(|m| writable(m) && inside(m)) {
                Some(m) => (from, to) = (m.addr, m.addr.saturating_add(m.len)),
                None => return bad(offset_of!(Fixup, place)),
            }
        }
        Ok(())
    }

    /// The blob of a recipe.
    pub fn blob(&self, recipe: &Recipe) -> &'a [u8] {
        bytes_of(self.payload, recipe.blob, 0).unwrap_or(&[])
    }

    fn check_recipes(&self) -> Result<(), Malformed> {
        if !self.recipes.is_empty() && self.header.r_debug == 0 {
            return Err(Malformed(offset_of!(Header, r_debug)));
        }
        for (i, r) in self.recipes.iter().enumerate().filter(|(_, r)| r.id == 0) {
            let bad = |field| Err(self.recipes.place(i, field));
            if !(RECIPE_SITES..=RECIPE_WORDS).contains(&r.kind) || r.is_of_patch() && !self.has_patch() {
                return bad(offset_of!(Recipe, kind));
            }
            if r.lane as usize >= LANES {
                return bad(offset_of!(Recipe, lane));
            }
            if r.build_id_len as usize > BUILD_ID_MAX || r.build_id_len == 0 && r.kind == RECIPE_SITES {
                return bad(offset_of!(Recipe, build_id_len));
            }
            if bytes_of(self.payload, r.blob, 0).is_err() {
                return bad(offset_of!(Recipe, blob));
            }
            let good = match r.kind {
                RECIPE_SITES => self.are_sites(&r),
                RECIPE_WORDS => self.are_words(&r),
                _ => true,
            };
            if !good {
                return bad(offset_of!(Recipe, blob));
            }
        }
        Ok(())
    }

    fn are_sites(&self, recipe: &Recipe) -> bool {
        let lasting = |m: &Mapping| m.final_prot & PROT_WRITE != 0 && m.role == ROLE_ARENA;
        let good = |s: LateSite| s.copy_word.is_multiple_of(8) && self.mapped(s.copy_word, 8, lasting);
        Blob::new(self.blob(recipe)).is_some_and(|blob| blob.sites().all(good))
    }

    /// Words are written for as long as the patch is there.
    fn are_words(&self, recipe: &Recipe) -> bool {
        let own = |m: &Mapping| m.final_prot & PROT_WRITE != 0 && m.role == ROLE_IMAGE;
        let good =
            |w: Word| w.kind <= WORD_MODULE && w.place.is_multiple_of(8) && self.mapped(w.place, 8, own);
        // The image's row says when its pages may go.
        !self.images.is_empty() && blob::words(self.blob(recipe)).is_some_and(|mut words| words.all(good))
    }

    fn check_sites(&self) -> Result<(), Malformed> {
        for (i, s) in self.sites.iter().enumerate() {
            let bad = |field| Err(self.sites.place(i, field));
            if s.id != 0 {
                continue;
            }
            let (store_len, unused_bits) = match s.class {
                b'J' => (1, 56),
                b'P' | b'S' | b'A' | b'W' => (8, 0),
                _ => return bad(offset_of!(Site, class)),
            };
            if s.store_len != store_len {
                return bad(offset_of!(Site, store_len));
            }
            if s.window_len > 8 && s.is_pun() {
                return bad(offset_of!(Site, window_len));
            }
            if s.pad_len > 8 || s.pad_len != 0 && s.pad_addr.checked_add(16).is_none() {
                return bad(offset_of!(Site, pad_len));
            }
            if !s.store_addr.is_multiple_of(u64::from(store_len)) || s.store_addr.checked_add(16).is_none() {
                return bad(offset_of!(Site, store_addr));
            }
            // A store that changes nothing could not be told from one that was not made.
            if (s.old_word ^ s.new_word) << unused_bits == 0 {
                return bad(offset_of!(Site, new_word));
            }
            if s.site.checked_add(16).is_none() {
                return bad(offset_of!(Site, site));
            }
            // A slot is stored to for the life of the process: its page must stay writable.
            let lasting = |m: &Mapping| m.final_prot & PROT_WRITE != 0 && m.role == ROLE_ARENA;
            if !s.slot.is_multiple_of(8) || !self.mapped(s.slot, 8, lasting) {
                return bad(offset_of!(Site, slot));
            }
            if !s.choice.is_multiple_of(8) || s.choice == s.slot || !self.mapped(s.choice, 8, lasting) {
                return bad(offset_of!(Site, choice));
            }
            if s.copy == 0 {
                return bad(offset_of!(Site, copy));
            }
            if s.recipe as usize > self.recipes.len() || s.late != 0 && s.recipe == 0 {
                return bad(offset_of!(Site, recipe));
            }
            let code = |m: &Mapping| m.final_prot & PROT_EXEC != 0 && m.role == ROLE_ARENA;
            if !self.mapped(s.dispatcher, 1, code) {
                return bad(offset_of!(Site, dispatcher));
            }
        }
        Ok(())
    }

    fn check_funcs(&self) -> Result<(), Malformed> {
        for (i, f) in self.funcs.iter().enumerate() {
            let bad = |field| Err(self.funcs.place(i, field));
            if f.site as usize >= self.sites.len() {
                return bad(offset_of!(Func, site));
            }
            if f.hook > HOOK_DL_DEBUG_STATE || f.hook == HOOK_NONE && !self.has_patch() {
                return bad(offset_of!(Func, hook));
            }
            let replaces = self.header.flags & BATCH_REPLACE != 0;
            if f.flags & !FUNC_NOP != 0 || f.flags & FUNC_NOP != 0 && !(replaces && f.hook == HOOK_NONE) {
                return bad(offset_of!(Func, flags));
            }
            if f.hook == HOOK_NONE && f.flags & FUNC_NOP == 0 && f.new_func == 0 {
                return bad(offset_of!(Func, new_func));
            }
        }
        Ok(())
    }

    fn check_ranges(&self) -> Result<(), Malformed> {
        for (i, range) in self.ranges.iter().enumerate() {
            let bad = |field| Err(self.ranges.place(i, field));
            if range.func as usize >= self.funcs.len() {
                return bad(offset_of!(Range, func));
            }
            if range.kind > RANGE_CONTEXT {
                return bad(offset_of!(Range, kind));
            }
            if range.start >= range.end {
                return bad(offset_of!(Range, end));
            }
        }
        Ok(())
    }

    fn check_states(&self) -> Result<(), Malformed> {
        if !self.states.is_empty() && !self.has_patch() {
            return Err(Malformed(offset_of!(Header, states)));
        }
        for (i, state) in self.states.iter().enumerate() {
            let twin = self.states.iter().take(i).any(|s| s.id == state.id);
            if state.id == 0 || twin {
                return Err(self.states.place(i, offset_of!(State, id)));
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), Malformed> {
        if !self.named.is_empty() && !self.has_patch() {
            return Err(Malformed(offset_of!(Header, named)));
        }
        let strange = |part: NamePart| part.object as usize >= self.named.len();
        match self.names.iter().position(strange) {
            Some(at) => Err(self.names.place(at, offset_of!(NamePart, object))),
            None => Ok(()),
        }
    }

    fn check_images(&self) -> Result<(), Malformed> {
        if self.images.len() > 1 || !self.images.is_empty() && !self.has_patch() {
            return Err(Malformed(offset_of!(Header, images)));
        }
        for (i, image) in self.images.iter().enumerate() {
            let bad = |field| Err(self.images.place(i, field));
            if image.start >= image.end {
                return bad(offset_of!(Image, end));
            }
            if image.object as usize >= self.objects.len() {
                return bad(offset_of!(Image, object));
            }
            let readable = |m: &Mapping| m.final_prot & PROT_READ != 0;
            let inside = |addr: u64| addr == 0 || (image.start..image.end).contains(&addr);
            if !inside(image.eh_frame_hdr) {
                return bad(offset_of!(Image, eh_frame_hdr));
            }
            if !inside(image.phdr) {
                return bad(offset_of!(Image, phdr));
            }
            if image.text_start > image.text_end
                || image.text_start < image.start
                || image.end < image.text_end
            {
                return bad(offset_of!(Image, text_end));
            }
            let debug = (image.debug_elf, image.debug_elf_len);
            if debug.0 != 0 && !self.mapped(debug.0, debug.1.max(1), readable) {
                return bad(offset_of!(Image, debug_elf));
            }
        }
        Ok(())
    }
}

fn bytes_of(payload: &[u8], table: Table, field: usize) -> Result<&[u8], Malformed> {
    let (start, len) = (table.offset as usize, table.count as usize);
    if len == 0 {
        return Ok(&[]);
    }
    if !start.is_multiple_of(8) {
        return Err(Malformed(field));
    }
    let end = start.checked_add(len).ok_or(Malformed(field))?;
    payload.get(start..end).ok_or(Malformed(field))
}

#[cfg(test)]
pub(crate) mod tests;
