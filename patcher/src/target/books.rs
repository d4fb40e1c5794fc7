//! The runtime's books, read from outside without stopping anything.

use super::{Target, worker};
use crate::error::Error;
use crate::sys::time::{Backoff, Deadline};
use std::mem::{MaybeUninit, offset_of};
use std::time::Duration;
use suture_abi::batch::{RANGE_OLD, Site};
use suture_abi::block::{
    FuncRow, ImageRow, MappingRow, Moved, OWN_PIECES, OwnMemory, PatchRow, Piece, RangeRow, Rows,
    RuntimeBlock, SiteRow, StateRow, TransitionRow,
};
use suture_abi::event::{EVENT_RING_LEN, Event};
use suture_abi::late::{PLACE_BOUND, Place, RecipeRow};
use suture_elf::{Addr, Memory};
use suture_scan::Interval;

/// Plain data of the contract: any bytes are a valid value.
///
/// # Safety
/// Only for `repr(C)` types without padding-dependent meaning, references or niches.
#[allow(unsafe_code)]
unsafe trait Plain: Copy {}
#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers only.
unsafe impl Plain for PatchRow {}
#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers only.
unsafe impl Plain for SiteRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for FuncRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for ImageRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for MappingRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for TransitionRow {}
#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers only.
unsafe impl Plain for RecipeRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for PlaceCopy {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for StateRow {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for RangeRow {}
#[allow(unsafe_code)]
// SAFETY: integers and arrays of integers only.
unsafe impl Plain for Event {}
#[allow(unsafe_code)]
// SAFETY: integers only.
unsafe impl Plain for Rows {}
#[allow(unsafe_code)]
// SAFETY: an integer.
unsafe impl Plain for u32 {}
#[allow(unsafe_code)]
// SAFETY: an integer.
unsafe impl Plain for u64 {}
#[allow(unsafe_code)]
// SAFETY: an array of integers.
unsafe impl Plain for [u8; 16] {}

/// A listed patch with the description its command left.
#[derive(Clone, Debug)]
pub struct PatchEntry {
    /// The row.
    pub row: PatchRow,
    /// Name.
    pub name: String,
    /// The description blob, as the command that applied it wrote it.
    pub description: Vec<u8>,
}

/// A [`Place`], copied.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PlaceCopy {
    state: u32,
    errno: u32,
    patch: u32,
    site: u32,
    base: u64,
    link_map: u64,
    delta: u64,
}

const _: () = assert!(size_of::<PlaceCopy>() == size_of::<Place>());

/// An object that may come and go, and where it is.
#[derive(Clone, Debug)]
pub struct LateRow {
    /// The row.
    pub row: RecipeRow,
    /// `PLACE_*`.
    pub state: u32,
    /// Why it was refused.
    pub errno: u32,
    /// The patch because of which.
    pub patch: u32,
    /// The site because of which, by position in the recipe, or `NO_SITE`.
    pub site: u32,
    /// Load base of the object.
    pub base: u64,
    /// Address of its link map.
    pub link_map: u64,
    /// How far what lies near it was moved.
    pub delta: u64,
    /// Code of the runtime near the object.
    pub near: Vec<Interval>,
}

/// One consistent copy of the books.
#[derive(Clone, Debug, Default)]
pub struct Books {
    /// Version of the runtime.
    pub version: String,
    /// Generation the copy belongs to.
    pub generation: u64,
    /// errno of the membarrier registration.
    pub membarrier_errno: u32,
    /// Worker word: 0 none, `u32::MAX` being made, else its id.
    pub worker: u32,
    /// Patches in list order.
    pub patches: Vec<PatchEntry>,
    /// Sites in order of their ids.
    pub sites: Vec<SiteRow>,
    /// Functions.
    pub funcs: Vec<FuncRow>,
    /// Images.
    pub images: Vec<ImageRow>,
    /// Mappings.
    pub mappings: Vec<MappingRow>,
    /// The transition that is going on.
    pub transition: Option<TransitionRow>,
    /// States of the listed patches.
    pub states: Vec<StateRow>,
    /// Code of the functions of the listed patches.
    pub ranges: Vec<RangeRow>,
    /// Objects that may come and go.
    pub recipes: Vec<LateRow>,
    /// Count of objects that came late, from before the rest was read.
    pub late_epoch: u64,
    /// The sites as the runtime has them: those of recipes relative. In [`Books::sites`] they are where their
    /// object is, or nowhere.
    pub relative: Vec<Site>,
    /// The ranges as the runtime has them, those at relative sites as offsets.
    pub relative_ranges: Vec<RangeRow>,
    /// Address of the table of registered stacks, or 0.
    pub stacks: u64,
    /// Memory in which the runtime keeps addresses of code.
    pub own: Vec<std::ops::Range<u64>>,
    /// Address of the directory of thread records.
    pub records: u64,
    /// Address of the chunk of records that stands in for those that do not exist.
    pub stand_in: u64,
    /// Where dispatchers go whose record does not exist.
    pub slow_path: u64,
    /// Where dispatchers go whose thread is to look at its own stack.
    pub self_look: u64,
    /// The runtime's code on the way into a redirected function.
    pub path: std::ops::Range<u64>,
    /// Length of a tick in milliseconds.
    pub tick_ms: u32,
    /// Failed attempts to complete the transition.
    pub attempts: u32,
    /// What the transition waits for.
    pub waits_for: u32,
    /// Number of the last transition that ended, and how it ended.
    pub ended: (u32, u32),
    /// Enabling is switched off.
    pub hooking_off: bool,
}

impl Books {
    /// The listed patch of that name.
    #[must_use]
    pub fn patch(&self, name: &str) -> Option<&PatchEntry> {
        self.patches.iter().find(|p| p.name == name)
    }

    /// Name of the patch of that number.
    #[must_use]
    pub fn name_of(&self, patch: u32) -> String {
        self.patches.iter().find(|p| p.row.id == patch).map_or_else(|| "?".into(), |p| p.name.clone())
    }

    /// Functions of a patch.
    pub fn funcs_of(&self, patch: u32) -> impl Iterator<Item = &FuncRow> {
        self.funcs.iter().filter(move |f| f.patch == patch)
    }

    /// The same rows as the runtime's own books, so that its rules can be asked.
    #[must_use]
    pub fn as_runtime(&self) -> suture_runtime::books::Books {
        suture_runtime::books::Books {
            patches: self.patches.iter().map(|p| p.row).collect(),
            sites: self.sites.clone(),
            funcs: self.funcs.clone(),
            images: self.images.clone(),
            mappings: self.mappings.clone(),
            transition: self.transition.into_iter().collect(),
            states: self.states.clone(),
            ranges: self.ranges.clone(),
            ..suture_runtime::books::Books::EMPTY
        }
    }

    /// The object of a site, if it may come and go.
    #[must_use]
    pub fn recipe(&self, site: &Site) -> Option<&LateRow> {
        self.recipes.iter().find(|r| r.row.id == site.recipe)
    }

    /// File name of an object that may come and go, by the number of its row.
    #[must_use]
    pub fn object_name(&self, row: u64) -> Option<String> {
        let found = self.recipes.iter().find(|r| u64::from(r.row.id) == row)?;
        Some(text(found.row.plan.name.as_flattened()))
    }

    /// Code of the runtime near objects that came late.
    #[must_use]
    pub fn near(&self) -> Vec<Interval> {
        self.recipes.iter().flat_map(|r| r.near.iter().copied()).collect()
    }

    /// Whether a site is one of a recipe.
    #[must_use]
    pub fn is_relative(&self, id: u32) -> bool {
        self.relative_site(id).is_some()
    }

    /// The site of that number as the runtime has it, if it is one of a recipe.
    #[must_use]
    pub fn relative_site(&self, id: u32) -> Option<&Site> {
        let at = self.relative.binary_search_by_key(&id, |s| s.id).ok()?;
        self.relative.get(at).filter(|s| s.late != 0)
    }

    /// Whether a site's object is not there now.
    #[must_use]
    pub fn is_nowhere(&self, site: &Site) -> bool {
        self.recipe(site).is_some_and(|r| r.state != PLACE_BOUND)
    }

    /// A site by its id.
    #[must_use]
    pub fn site(&self, id: u32) -> Option<&SiteRow> {
        self.sites.get(self.sites.binary_search_by_key(&id, |s| s.id).ok()?)
    }
}

/// Most rows of one kind that are believed; more means the block is damaged.
const MOST_ROWS: u32 = 1 << 20;

/// Reads the books under the sequence lock.
///
/// # Errors
/// When the process is gone, or the lock never comes to rest.
pub fn read(target: &Target, block: Addr) -> Result<Books, Error> {
    let deadline = Deadline::after(Duration::from_secs(2));
    let mut backoff = Backoff::default();
    loop {
        let before = word(target, block, offset_of!(RuntimeBlock, rows_seq))?;
        // An odd number with no worker is a process forked in mid-publication: its pointers each
        // name a complete array (abi::block), so they are taken as they are.
        let at_work = word(target, block, offset_of!(RuntimeBlock, worker))?;
        if before.is_multiple_of(2) || !worker::is_there(target.pid(), at_work) {
            let books = read_once(target, block).map(placed);
            let after = word(target, block, offset_of!(RuntimeBlock, rows_seq))?;
            if before == after {
                return books;
            }
        }
        if deadline.passed() {
            return Err(Error::Unreadable {
                pid: target.pid(),
                what: "the runtime's books do not come to rest".into(),
            });
        }
        backoff.pause();
    }
}

/// The block's bytes, read at once: word by word takes as many system calls as it has fields.
struct Head(Vec<u8>);

impl Head {
    fn read(target: &Target, block: Addr) -> Result<Self, Error> {
        let bytes = target.memory.read_vec(block, size_of::<RuntimeBlock>());
        bytes.map(Self).map_err(|e| Error::from_memory(target, e))
    }

    fn at<T: Plain>(&self, offset: usize) -> T {
        from_bytes(&self.0[offset..offset + size_of::<T>()])
    }

    fn word(&self, offset: usize) -> u32 {
        self.at(offset)
    }

    fn quad(&self, offset: usize) -> u64 {
        self.at(offset)
    }

    fn rows(&self, offset: usize) -> Rows {
        self.at(offset)
    }
}

/// Puts sites and ranges of recipes where their objects are.
fn placed(mut books: Books) -> Books {
    books.relative = books.sites.iter().map(|s| s.plan).collect();
    books.relative_ranges.clone_from(&books.ranges);
    let recipes = std::mem::take(&mut books.recipes);
    let bound = |site: &Site| recipes.iter().find(|r| r.row.id == site.recipe && r.state == PLACE_BOUND);
    let mut ranges = std::mem::take(&mut books.ranges);
    ranges.retain_mut(|range| match books.relative_site(range.site).filter(|_| range.kind == RANGE_OLD) {
        None => true,
        Some(site) => bound(site).is_some_and(|r| {
            (range.start, range.end) = (r.base.wrapping_add(range.start), r.base.wrapping_add(range.end));
            true
        }),
    });
    books.ranges = ranges;
    for site in books.sites.iter_mut().filter(|s| s.plan.late != 0) {
        let there = bound(&site.plan).and_then(|r| site.plan.placed(r.base, r.delta));
        site.plan = there.unwrap_or(Site { store_addr: NOWHERE, pad_addr: 0, pad_len: 0, ..site.plan });
    }
    books.recipes = recipes;
    books
}

/// An address at which no process has anything.
const NOWHERE: u64 = 0xffff_8000_0000_0000;

/// What became of the objects of some rows.
fn late_rows(target: &Target, rows: Vec<RecipeRow>) -> Result<Vec<LateRow>, Error> {
    let one = |row: RecipeRow| {
        // Written while it is read, it is read again; loading threads write it once in a load.
        let mut place: PlaceCopy = plain(target, Addr(row.place))?;
        for _ in 0..100 {
            let again: PlaceCopy = plain(target, Addr(row.place))?;
            if std::mem::replace(&mut place, again) == again {
                break;
            }
        }
        let PlaceCopy { state, errno, patch, site, base, link_map, delta } = place;
        let mut near = Vec::new();
        if state == PLACE_BOUND && row.blob != 0 {
            let len = usize::try_from(row.blob_len.min(1 << 24)).unwrap_or(0);
            let blob =
                target.memory.read_vec(Addr(row.blob), len).map_err(|e| Error::from_memory(target, e))?;
            near.extend(suture_runtime::late::near(&blob, base, delta));
        }
        Ok(LateRow { row, state, errno, patch, site, base, link_map, delta, near })
    };
    rows.into_iter().map(one).collect()
}

fn read_once(target: &Target, block: Addr) -> Result<Books, Error> {
    let head = Head::read(target, block)?;
    let patches: Vec<PatchRow> = table(target, head.rows(offset_of!(RuntimeBlock, patches)))?;
    let patches = patches.into_iter().map(|row| {
        let length = usize::try_from(row.description_len.min(1 << 24)).unwrap_or(0);
        let description = target.memory.read_vec(Addr(row.description), length);
        Ok(PatchEntry {
            row,
            name: text(&row.name),
            description: description.map_err(|e| Error::from_memory(target, e))?,
        })
    });
    let path = [offset_of!(RuntimeBlock, path_start), offset_of!(RuntimeBlock, path_end)];
    Ok(Books {
        version: text(&head.at::<[u8; 16]>(offset_of!(RuntimeBlock, version))),
        generation: head.quad(offset_of!(RuntimeBlock, generation)),
        membarrier_errno: head.word(offset_of!(RuntimeBlock, membarrier_errno)),
        worker: head.word(offset_of!(RuntimeBlock, worker)),
        patches: patches.collect::<Result<_, Error>>()?,
        sites: table(target, head.rows(offset_of!(RuntimeBlock, sites)))?,
        funcs: table(target, head.rows(offset_of!(RuntimeBlock, funcs)))?,
        images: table(target, head.rows(offset_of!(RuntimeBlock, images)))?,
        mappings: table(target, head.rows(offset_of!(RuntimeBlock, mappings)))?,
        transition: table(target, head.rows(offset_of!(RuntimeBlock, transition)))?.first().copied(),
        states: table(target, head.rows(offset_of!(RuntimeBlock, states)))?,
        ranges: table(target, head.rows(offset_of!(RuntimeBlock, ranges)))?,
        recipes: late_rows(target, table(target, head.rows(offset_of!(RuntimeBlock, recipes)))?)?,
        relative: Vec::new(),
        relative_ranges: Vec::new(),
        late_epoch: head.quad(offset_of!(RuntimeBlock, late_epoch)),
        own: own_memory(target, head.quad(offset_of!(RuntimeBlock, own)))?,
        stacks: head.quad(offset_of!(RuntimeBlock, stacks)),
        records: head.quad(offset_of!(RuntimeBlock, records)),
        stand_in: head.quad(offset_of!(RuntimeBlock, stand_in)),
        slow_path: head.quad(offset_of!(RuntimeBlock, slow_path)),
        self_look: head.quad(offset_of!(RuntimeBlock, self_look)),
        path: head.quad(path[0])..head.quad(path[1]),
        tick_ms: head.word(offset_of!(RuntimeBlock, tick_ms)),
        attempts: head.word(offset_of!(RuntimeBlock, attempts)),
        waits_for: head.word(offset_of!(RuntimeBlock, waits_for)),
        ended: (head.word(offset_of!(RuntimeBlock, ended)), head.word(offset_of!(RuntimeBlock, ended_how))),
        hooking_off: head.word(offset_of!(RuntimeBlock, hooking_off)) != 0,
    })
}

/// Reads the events that are still in the ring, oldest first, leaving out numbers up to `after`.
///
/// # Errors
/// When the process is gone.
pub fn events(target: &Target, block: Addr, after: u64) -> Result<Vec<Event>, Error> {
    let count = quad(target, block, offset_of!(RuntimeBlock, event_count))?;
    let ring = quad(target, block, offset_of!(RuntimeBlock, events))?;
    let length = EVENT_RING_LEN as u64;
    let first = after.max(count.saturating_sub(length));
    let mut events = Vec::new();
    for number in first..count {
        let event: Event = plain(target, Addr(ring) + (number % length) * size_of::<Event>() as u64)?;
        match event.number {
            found if found == number + 1 => events.push(event),
            // Overwritten since: more came than the ring holds.
            found if found > number + 1 => {}
            // Still being written: it is read next time, and what comes after it, too.
            _ => break,
        }
    }
    Ok(events)
}

/// The runtime's own memory.
fn own_memory(target: &Target, list: u64) -> Result<Vec<std::ops::Range<u64>>, Error> {
    // A runtime from before the list has none.
    if list == 0 {
        return Ok(Vec::new());
    }
    let count = quad(target, Addr(list), offset_of!(OwnMemory, count))?.min(OWN_PIECES as u64);
    let pieces = (0..count).map(|i| {
        let at = Addr(list) + offset_of!(OwnMemory, pieces) as u64 + i * size_of::<Piece>() as u64;
        let start = quad(target, at, offset_of!(Piece, start))?;
        Ok(start..start.saturating_add(quad(target, at, offset_of!(Piece, len))?))
    });
    pieces.collect()
}

/// Threads that were moved since the last transition began: by the worker, by the command, by themselves.
///
/// # Errors
/// When the process is gone.
pub fn moved(target: &Target, block: Addr) -> Result<[u64; 3], Error> {
    let at = block + offset_of!(RuntimeBlock, moved) as u64;
    let word = |offset: usize| quad(target, at, offset);
    Ok([
        word(offset_of!(Moved, by_worker))?,
        word(offset_of!(Moved, by_command))?,
        word(offset_of!(Moved, by_themselves))?,
    ])
}

/// Reads the address of the doorbell's entry.
///
/// # Errors
/// When the process is gone.
pub fn doorbell(target: &Target, block: Addr) -> Result<u64, Error> {
    quad(target, block, offset_of!(RuntimeBlock, doorbell_entry))
}

/// Reads one word of the block.
///
/// # Errors
/// When the process is gone.
pub fn word(target: &Target, block: Addr, offset: usize) -> Result<u32, Error> {
    let mut bytes = [0; 4];
    target.memory.read(block + offset as u64, &mut bytes).map_err(|e| Error::from_memory(target, e))?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes one word of the block.
///
/// # Errors
/// When the process is gone, or may not be written.
pub fn write_word(target: &Target, block: Addr, offset: usize, value: u32) -> Result<(), Error> {
    let done = target.memory.write(block + offset as u64, &value.to_le_bytes());
    done.map_err(|e| target.ended_or(Error::from_proc(target.pid(), &e)))
}

fn quad(target: &Target, block: Addr, offset: usize) -> Result<u64, Error> {
    target.memory.read_u64(block + offset as u64).map_err(|e| Error::from_memory(target, e))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn table<T: Plain>(target: &Target, rows: Rows) -> Result<Vec<T>, Error> {
    if rows.count == 0 {
        return Ok(Vec::new());
    }
    if rows.row_size as usize != size_of::<T>() || rows.count > MOST_ROWS {
        return Err(Error::Unreadable { pid: target.pid(), what: "the runtime's books are damaged".into() });
    }
    let bytes = target.memory.read_vec(Addr(rows.addr), rows.count as usize * size_of::<T>());
    let bytes = bytes.map_err(|e| Error::from_memory(target, e))?;
    Ok(bytes.chunks_exact(size_of::<T>()).map(from_bytes).collect())
}

fn plain<T: Plain>(target: &Target, addr: Addr) -> Result<T, Error> {
    let bytes = target.memory.read_vec(addr, size_of::<T>());
    Ok(from_bytes(&bytes.map_err(|e| Error::from_memory(target, e))?))
}

#[allow(unsafe_code)]
fn from_bytes<T: Plain>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>());
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the destination is `size_of::<T>()` bytes, as just asserted of the source; `Plain`
    // says that any bytes are a valid `T`.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), bytes.len());
        value.assume_init()
    }
}
