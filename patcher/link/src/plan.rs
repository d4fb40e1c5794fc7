//! From a patch file and a process to everything a commit needs.

mod error;
mod objects;

pub use error::LinkError;
pub use objects::PlannedObject;

use crate::accept::{self, AcceptError, AcceptOptions};
use crate::descriptor::{PatchDescriptor, ReferenceDescriptor, ReferenceTarget, object_label};
use crate::image::PatchFile;
use crate::late::{LateObject, LateValue, LateWord, LateWords};
use crate::layout::ImageLayout;
use crate::lookup::{Binding, Resolver};
use crate::process::{DebugFile, ProcessView};
use crate::relocate::{BoundSymbol, ObjectSet, relocate};
use crate::{debug_elf, elf};
use objects::{Targets, find_targets};
use std::ops::Range;
use suture_abi::batch::{
    FIXUP_ADDRESS, FIXUP_RESOLVER, FIXUP_VALUE, Fixup, Image, MAPPING_FILE, Mapping, Object, PROT_READ,
    ROLE_IMAGE, State,
};
use suture_abi::descriptor::{STATE_BLOCK_DISABLE, STATE_IS_SHADOW};
use suture_elf::{Addr, Base, Frames, ObjectFile, Vaddr};

/// What the caller decides about a link.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions<'a> {
    /// What is accepted.
    pub accept: AcceptOptions,
    /// Whether the plan carries an ELF copy for debuggers.
    pub debug_elf: bool,
    /// Where debug files of patched objects come from.
    pub debug_file: DebugFile<'a>,
    /// Libraries of the patch that may come or go, whose files are known.
    pub late: &'a [LateObject],
}

impl Default for LinkOptions<'_> {
    fn default() -> Self {
        Self {
            accept: AcceptOptions::default(),
            debug_elf: true,
            debug_file: DebugFile(&|_| None),
            late: &[],
        }
    }
}

/// A function that is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedFunc {
    /// Index into [`LinkPlan::objects`].
    pub object: u32,
    /// Symbol name in the object.
    pub symbol: String,
    /// The name as people read it.
    pub name: String,
    /// Entry of the old function in its file.
    pub old_entry: Vaddr,
    /// Entry of the old function in the process.
    pub old_addr: Addr,
    /// Size of the old function; 0 = its symbol does not say.
    pub old_size: u64,
    /// Entry of the new function in the process.
    pub new_addr: Addr,
    /// Size of the new function.
    pub new_size: u64,
}

/// A pointer of the patch that receives the address under which an old function stays callable.
/// That address is known once the redirect is planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldRef {
    /// The pointer.
    pub place: Addr,
    /// Index into [`LinkPlan::funcs`].
    pub func: usize,
}

impl OldRef {
    /// The fixup that fills it with the copy's address.
    #[must_use]
    pub fn fixup(&self, copy: Addr) -> Fixup {
        Fixup { place: self.place.0, kind: FIXUP_VALUE, object: 0, addend: copy.0 }
    }
}

/// A state with its callbacks in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedState {
    /// What callbacks get as their state.
    pub state: Addr,
    /// Id.
    pub id: u64,
    /// Its shadow variables are freed with it.
    pub is_shadow: bool,
    /// It cannot be given up.
    pub block_disable: bool,
    /// Callbacks, in the order of [`crate::descriptor::CALLBACKS`].
    pub callbacks: [Option<Addr>; 5],
}

impl PlannedState {
    /// The state as a row of the batch; `patch` is the descriptor's address.
    #[must_use]
    pub fn row(&self, patch: Addr) -> State {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let [pre_patch, post_patch, pre_unpatch, post_unpatch, shadow_dtor] =
            self.callbacks.map(|code| code.map_or(0, |code| code.0));
        State {
            id: self.id,
            flags: flag(self.is_shadow, STATE_IS_SHADOW) | flag(self.block_disable, STATE_BLOCK_DISABLE),
            reserved: 0,
            state: self.state.0,
            patch: patch.0,
            pre_patch,
            post_patch,
            pre_unpatch,
            post_unpatch,
            shadow_dtor,
        }
    }
}

/// Everything a commit needs to bring a patch into one process.
#[derive(Debug)]
pub struct LinkPlan {
    /// Name of the patch.
    pub name: String,
    /// Takes the place of every enabled patch.
    pub replace: bool,
    /// Load address of the image.
    pub base: Base,
    /// Address of the descriptor in the image: what callbacks get as their patch.
    pub descriptor: Addr,
    /// Mappings; offsets are those of [`LinkPlan::blob`].
    pub mappings: Vec<Mapping>,
    /// Content of the file mappings, whole pages.
    pub blob: Vec<u8>,
    /// Objects the plan refers to.
    pub objects: Vec<PlannedObject>,
    /// Words that depend on them.
    pub fixups: Vec<Fixup>,
    /// The image, for unwinders and debuggers.
    pub image: Image,
    /// Functions that are replaced.
    pub funcs: Vec<ResolvedFunc>,
    /// Pointers to old functions.
    pub old_refs: Vec<OldRef>,
    /// States.
    pub states: Vec<PlannedState>,
    /// Objects of the patch that are not loaded; nothing of them is in the plan.
    pub absent: Vec<String>,
    /// Imports because of which the image is never unmapped.
    pub pinned: Vec<String>,
    /// What the patch's imports were bound to.
    pub bound: Vec<BoundSymbol>,
    /// Words that depend on libraries that may come or go.
    pub late_words: Vec<LateWord>,
    /// What is bound now to libraries that may go, and could not be when they come again.
    pub stale: Vec<String>,
}

impl LinkPlan {
    /// Addresses from the first to the last page of the plan's mappings.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let start = self.mappings.iter().map(|m| m.addr).min().unwrap_or(0);
        let end = self.mappings.iter().map(|m| m.addr + m.len).max().unwrap_or(0);
        start..end
    }

    /// The objects as rows of the batch.
    #[must_use]
    pub fn object_rows(&self) -> Vec<Object> {
        self.objects.iter().map(|o| o.row).collect()
    }
}

/// Links a patch file into a process.
///
/// # Errors
/// When the file is not accepted, an object is another build, a function or an import cannot be
/// found, or there is no room.
pub fn link(
    view: &ProcessView<'_>,
    file: &ObjectFile,
    options: &LinkOptions<'_>,
) -> Result<LinkPlan, LinkError> {
    let patch = PatchFile::new(file)?;
    let acceptance = accept::check(&patch, options.accept)?;
    let descriptor = PatchDescriptor::read(&patch)?;
    if descriptor.needs_loader {
        return Err(LinkError::NeedsLoader);
    }
    check_frames(file, &descriptor, options.accept)?;
    let targets = find_targets(view, &descriptor, options.debug_file)?;
    let patched = targets.patched.clone();
    let absent = targets.absent.clone();
    let resolver = Resolver::new(view, &patch, patched, absent, options.late, options.debug_file);
    resolver.check_exports(&acceptance.exported).map_err(|e| LinkError::Symbols(vec![e]))?;

    let mut layout = ImageLayout::new(file);
    let near = view.objects.get(targets.patched.first().copied().unwrap_or(0)).map_or(0..0, |o| o.range());
    // The adjusted copy is as long wherever it is adjusted to.
    let debug_copy = |base| options.debug_elf.then(|| debug_elf::adjusted(file, base)).flatten();
    let debug_len = debug_copy(Base(0)).map_or(0, |copy| (copy.len() as u64).next_multiple_of(4096));
    let base = layout.places(&view.maps, &near, debug_len).first().copied();
    let base = base.ok_or(LinkError::NoRoom { len: layout.span() + debug_len })?;

    let mut objects = ObjectSet::default();
    targets.patched.iter().for_each(|&object| {
        objects.index(object);
    });
    let relocated = relocate(&patch, &resolver, view, &mut layout, base, &mut objects);
    let relocated = relocated.map_err(LinkError::Symbols)?;
    let (mut fixups, mut late) = (relocated.fixups, relocated.late);
    let funcs = place_funcs(view, &targets, base, &mut objects);
    let old_refs = References {
        view,
        targets: &targets,
        resolver: &resolver,
        layout: &mut layout,
        base,
        objects: &mut objects,
        late: &mut late,
    }
    .fill(&descriptor.references, &mut fixups)?;
    late.stale.extend(going_strangers(view, &objects, options.late));

    let image_range = layout.range();
    let text = layout.text();
    let answering = objects.index(targets.patched.first().copied().unwrap_or(0));
    let (mut mappings, mut blob) = layout.into_mappings(base);
    let mut image = Image {
        start: (base + image_range.start).0,
        end: (base + image_range.end).0,
        base: base.0,
        eh_frame_hdr: acceptance.eh_frame_hdr.map_or(0, |hdr| (base + hdr).0),
        text_start: (base + text.start).0,
        text_end: (base + text.end).0,
        phdr: (base + program_headers(&patch)?).0,
        phnum: file.program_headers().len() as u64,
        object: answering,
        ..Image::default()
    };
    if let Some(copy) = debug_copy(base) {
        image.debug_elf = image.end;
        image.debug_elf_len = copy.len() as u64;
        mappings.push(Mapping {
            addr: image.end,
            len: debug_len,
            offset: blob.len() as u64,
            kind: MAPPING_FILE,
            prot: PROT_READ,
            final_prot: PROT_READ,
            role: ROLE_IMAGE,
        });
        blob.extend_from_slice(&copy);
        blob.resize(blob.len().next_multiple_of(4096), 0);
    }
    let states = descriptor.states.iter().map(|state| PlannedState {
        state: base + state.at,
        id: state.id,
        is_shadow: state.is_shadow,
        block_disable: state.block_disable,
        callbacks: state.callbacks.map(|code| code.map(|code| base + code)),
    });
    let symbol = patch.exported(suture_abi::PATCH_SYMBOL).map_or(0, |s| s.value);
    Ok(LinkPlan {
        name: descriptor.name.clone(),
        replace: descriptor.replace,
        base,
        descriptor: base + Vaddr(symbol),
        mappings,
        blob,
        objects: objects::planned(view, &objects),
        fixups,
        image,
        funcs,
        old_refs,
        states: states.collect(),
        absent: targets.absent,
        pinned: acceptance.pinned,
        bound: relocated.bound,
        late_words: late.words,
        stale: late.stale,
    })
}

/// Objects that may go, are none of the patch's own and hold something of what it uses: what a library of the patch
/// needs goes with it.
fn going_strangers(view: &ProcessView<'_>, objects: &ObjectSet, late: &[LateObject]) -> Vec<String> {
    let used = objects.members().iter().filter(|i| !late.iter().any(|l| l.loaded == Some(**i)));
    used.map(|&i| &view.objects[i]).filter(|o| o.may_go() && !o.runtime).map(|o| o.name.clone()).collect()
}

/// Every new function must be one that unwinders know.
fn check_frames(
    file: &ObjectFile,
    descriptor: &PatchDescriptor,
    options: AcceptOptions,
) -> Result<(), AcceptError> {
    let frames = Frames::new(file);
    let all = descriptor.objects.iter().flat_map(|o| &o.funcs);
    let bare = all.filter(|f| frames.at(f.new_func).is_none()).map(|f| f.old_name.as_str()).next();
    match bare {
        Some(name) if !options.without_unwind_tables => {
            Err(AcceptError::Unwind { what: format!("the new `{name}` has no unwind tables") })
        }
        _ => Ok(()),
    }
}

/// Where the program headers lie in the image.
fn program_headers(patch: &PatchFile) -> Result<Vaddr, AcceptError> {
    let data = patch.file().data();
    let offset = data.get(32..40).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
    let len = patch.file().program_headers().len() as u64 * 56;
    let holds = |s: &&suture_elf::Segment| offset >= s.offset && offset + len <= s.offset + s.filesz;
    let segment = patch.file().segments().iter().find(holds);
    let segment = segment.filter(|s| s.flags & elf::PF_R != 0);
    segment
        .map(|s| s.addr + (offset - s.offset))
        .ok_or_else(|| AcceptError::Damaged { what: "no segment holds its program headers".into() })
}

fn place_funcs(
    view: &ProcessView<'_>,
    targets: &Targets,
    base: Base,
    objects: &mut ObjectSet,
) -> Vec<ResolvedFunc> {
    let place = |target: &objects::TargetFunc| ResolvedFunc {
        object: objects.index(target.old.object),
        name: suture_elf::demangle(&target.old.symbol),
        symbol: target.old.symbol.clone(),
        old_entry: target.old.entry,
        old_addr: view.objects[target.old.object].base + target.old.entry,
        old_size: target.old.size,
        new_addr: base + target.new_func,
        new_size: target.new_size,
    };
    targets.funcs.iter().map(place).collect()
}

/// The descriptor's reference table.
struct References<'a, 'v, 'm> {
    view: &'a ProcessView<'m>,
    targets: &'a Targets,
    resolver: &'a Resolver<'v, 'm>,
    layout: &'a mut ImageLayout,
    base: Base,
    objects: &'a mut ObjectSet,
    late: &'a mut LateWords,
}

/// Where a reference leads.
#[derive(Clone, Copy)]
enum Leads {
    /// Index into the objects of the view.
    Loaded(usize),
    /// Index into the late libraries: its file is known.
    Late(usize),
    /// Nothing is known of it.
    Nowhere,
}

impl References<'_, '_, '_> {
    fn fill(
        &mut self,
        references: &[ReferenceDescriptor],
        fixups: &mut Vec<Fixup>,
    ) -> Result<Vec<OldRef>, LinkError> {
        let mut old_refs = Vec::new();
        for reference in references {
            let leads = self.object(reference)?;
            if !self.layout.is_writable(reference.slot) {
                return Err(LinkError::SlotNotWritable { slot: reference.slot });
            }
            let object = match leads {
                Leads::Loaded(object) => object,
                Leads::Late(late) => {
                    self.fill_late(reference, late)?;
                    continue;
                }
                // What leads into it stays null, as its functions stay old.
                Leads::Nowhere => continue,
            };
            let place = self.base + reference.slot;
            match &reference.target {
                ReferenceTarget::OldFunc { name, sympos } => {
                    // Filled anew when the library comes again: where its old function is then is planned elsewhere.
                    if self.resolver.late_of(object).is_some() {
                        self.layout.keep_writable(reference.slot);
                    }
                    old_refs.push(OldRef { place, func: self.old_func(object, name, *sympos)? });
                }
                ReferenceTarget::Symbol { name, sympos } => {
                    let binding = self.resolver.bind_in(object, name, *sympos);
                    let binding = binding.map_err(|e| LinkError::Symbols(vec![e]))?;
                    self.again(reference.slot, name, object, binding);
                    fixups.push(self.fixup(place, binding));
                }
                ReferenceTarget::Offset { offset, expected } => {
                    self.compare(object, *offset, expected)?;
                    let binding = Binding::Address { object, vaddr: Vaddr(*offset) };
                    if let Some(late) = self.resolver.late_of(object) {
                        self.word(reference.slot, late, Vaddr(*offset));
                    }
                    fixups.push(self.fixup(place, binding));
                }
            }
        }
        Ok(old_refs)
    }

    fn object(&self, reference: &ReferenceDescriptor) -> Result<Leads, LinkError> {
        let found = self.view.objects_named(reference.object.as_deref());
        if let [object] = found[..] {
            return Ok(Leads::Loaded(object));
        }
        let object = object_label(reference.object.as_deref());
        if !found.is_empty() {
            return Err(LinkError::LoadedTwice { object });
        }
        let late = self.resolver.late().iter().position(|l| l.loaded.is_none() && l.name == object);
        match late {
            Some(late) => Ok(Leads::Late(late)),
            None if self.targets.absent.contains(&object) => Ok(Leads::Nowhere),
            None => Err(LinkError::ReferenceObject { object }),
        }
    }

    /// A reference into a library that is not loaded.
    fn fill_late(&mut self, reference: &ReferenceDescriptor, late: usize) -> Result<(), LinkError> {
        let it = &self.resolver.late()[late];
        let vaddr = match &reference.target {
            // The way to an old function is there before its library is.
            ReferenceTarget::OldFunc { .. } => return Ok(()),
            ReferenceTarget::Symbol { name, sympos } => {
                let found = self.resolver.bind_in_late(late, name, *sympos);
                match found.map_err(|e| LinkError::Symbols(vec![e]))? {
                    Binding::Late { vaddr, .. } => vaddr,
                    _ => return Ok(()),
                }
            }
            ReferenceTarget::Offset { offset, expected } => {
                let found =
                    it.object.file.bytes_at(Vaddr(*offset), expected.len() as u64).unwrap_or_default();
                compare(&it.name, *offset, expected, found)?;
                Vaddr(*offset)
            }
        };
        self.word(reference.slot, late, vaddr);
        Ok(())
    }

    /// A reference into a library that is loaded, if it could go and come again.
    fn again(&mut self, slot: Vaddr, name: &str, object: usize, binding: Binding) {
        let Some(late) = self.resolver.late_of(object) else { return };
        match binding {
            Binding::Address { object: holder, vaddr } if holder == object => self.word(slot, late, vaddr),
            _ => self.late.stale.push(name.to_owned()),
        }
    }

    fn word(&mut self, slot: Vaddr, late: usize, vaddr: Vaddr) {
        self.late.add(self.layout, self.base, slot, late, LateValue::Address(vaddr));
    }

    fn old_func(&self, object: usize, name: &str, sympos: u64) -> Result<usize, LinkError> {
        let is = |t: &objects::TargetFunc| t.named_in == object && t.old_name == name && t.sympos == sympos;
        let position = self.targets.funcs.iter().position(is);
        position.ok_or_else(|| LinkError::OldFuncNotReplaced {
            name: name.to_owned(),
            object: self.view.objects[object].name.clone(),
        })
    }

    fn compare(&self, object: usize, offset: u64, expected: &[u8]) -> Result<(), LinkError> {
        let loaded = &self.view.objects[object];
        let at = loaded.base + Vaddr(offset);
        let found = self.view.memory.0.read_vec(at, expected.len()).unwrap_or_default();
        compare(&loaded.name, offset, expected, &found)
    }

    fn fixup(&mut self, place: Addr, binding: Binding) -> Fixup {
        let (kind, object, addend) = match binding {
            Binding::Address { object, vaddr } => (FIXUP_ADDRESS, self.objects.index(object), vaddr.0),
            Binding::Resolver { object, vaddr } => (FIXUP_RESOLVER, self.objects.index(object), vaddr.0),
            Binding::Absolute(value) => (FIXUP_VALUE, 0, value),
            // `bind_in` yields nothing else: it looks at an object's own definitions.
            Binding::Own(_)
            | Binding::Null
            | Binding::Tls { .. }
            | Binding::Late { .. }
            | Binding::LateTls { .. } => (FIXUP_VALUE, 0, 0),
        };
        Fixup { place: place.0, kind, object, addend }
    }
}

/// The bytes at an offset must be those that the patch expects.
fn compare(object: &str, offset: u64, expected: &[u8], found: &[u8]) -> Result<(), LinkError> {
    if found == expected {
        return Ok(());
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    Err(LinkError::Expected {
        object: object.to_owned(),
        offset: Vaddr(offset),
        expected: hex(expected),
        found: if found.is_empty() { "nothing readable".into() } else { hex(found) },
    })
}
