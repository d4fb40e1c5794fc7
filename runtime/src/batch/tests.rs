use super::*;
use proptest::prelude::*;
use suture_abi::batch::{FIXUP_VALUE, HOOK_DL_FIND_OBJECT};

fn raw<T: Copy>(rows: &[T]) -> &[u8] {
    // SAFETY: rows of the contract are integers without padding.
    unsafe { core::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

/// A batch in the making.
#[derive(Clone, Debug)]
pub struct Maker {
    pub header: Header,
    pub objects: Vec<Object>,
    pub mappings: Vec<Mapping>,
    pub fixups: Vec<Fixup>,
    pub sites: Vec<Site>,
    pub funcs: Vec<Func>,
    pub images: Vec<Image>,
    pub ranges: Vec<Range>,
    pub states: Vec<State>,
    pub recipes: Vec<(Recipe, Vec<Word>)>,
    pub named: Vec<NamedObject>,
    pub names: Vec<NamePart>,
    pub name: &'static str,
}

impl Maker {
    /// One of everything.
    pub fn sample() -> Self {
        let mapping = |addr, prot, final_prot, role| Mapping {
            addr,
            len: PAGE,
            prot,
            final_prot,
            role,
            ..Mapping::default()
        };
        Maker {
            header: Header { magic: BATCH_MAGIC, abi: ABI_VERSION, flags: BATCH_PATCH, ..Header::default() },
            objects: vec![Object::default()],
            mappings: vec![
                mapping(0x10000, PROT_READ | PROT_WRITE, PROT_READ, ROLE_IMAGE),
                mapping(0x11000, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, ROLE_ARENA),
                mapping(0x12000, PROT_READ | PROT_EXEC, PROT_READ | PROT_EXEC, ROLE_ARENA),
            ],
            fixups: vec![Fixup { place: 0x10ff8, kind: FIXUP_ADDRESS, object: 0, addend: 1 }],
            sites: vec![Site {
                class: b'J',
                store_len: 1,
                old_word: 0x55,
                new_word: 0xe9,
                slot: 0x11ff8,
                choice: 0x11ff0,
                dispatcher: 0x12000,
                copy: 1,
                ..Site::default()
            }],
            funcs: vec![Func { new_func: 1, ..Func::default() }],
            images: vec![Image {
                start: 0x10000,
                end: 0x11000,
                text_start: 0x10000,
                text_end: 0x10800,
                ..Image::default()
            }],
            ranges: vec![Range { func: 0, kind: suture_abi::batch::RANGE_NEW, start: 0x10000, end: 0x10010 }],
            states: vec![State { id: 7, ..State::default() }],
            recipes: Vec::new(),
            named: vec![NamedObject::default()],
            names: vec![NamePart::default()],
            name: "sample",
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; size_of::<Header>()];
        let mut put = |rows: &[u8], count: usize| {
            out.resize(out.len().next_multiple_of(8), 0);
            let table = Table { offset: out.len() as u32, count: count as u32 };
            out.extend_from_slice(rows);
            table
        };
        let mut recipes = Vec::new();
        for (row, words) in &self.recipes {
            recipes.push(Recipe { blob: put(raw(words), size_of_val(&**words)), ..*row });
        }
        let header = Header {
            objects: put(raw(&self.objects), self.objects.len()),
            mappings: put(raw(&self.mappings), self.mappings.len()),
            fixups: put(raw(&self.fixups), self.fixups.len()),
            sites: put(raw(&self.sites), self.sites.len()),
            funcs: put(raw(&self.funcs), self.funcs.len()),
            images: put(raw(&self.images), self.images.len()),
            ranges: put(raw(&self.ranges), self.ranges.len()),
            states: put(raw(&self.states), self.states.len()),
            recipes: put(raw(&recipes), recipes.len()),
            named: put(raw(&self.named), self.named.len()),
            names: put(raw(&self.names), self.names.len()),
            name: put(self.name.as_bytes(), self.name.len()),
            description: put(b"d", 1),
            ..self.header
        };
        out[..size_of::<Header>()].copy_from_slice(raw(&[header]));
        out
    }
}

/// The refusal names the field: offset of `field` in entry `index` of `table`.
#[track_caller]
fn refused_at<T>(table: fn(&Header) -> Table, index: usize, field: usize, change: impl FnOnce(&mut Maker)) {
    let mut maker = Maker::sample();
    change(&mut maker);
    let bytes = maker.bytes();
    let header: Header = copy_out(&bytes, 0).unwrap();
    let expected = table(&header).offset as usize + index * size_of::<T>() + field;
    assert_eq!(View::parse(&bytes).map(drop), Err(Malformed(expected)));
}

#[test]
fn a_sound_batch_is_read_as_written() {
    let maker = Maker::sample();
    let bytes = maker.bytes();
    let view = View::parse(&bytes).unwrap();
    assert_eq!((view.name, view.description), (&b"sample"[..], &b"d"[..]));
    assert_eq!(view.fixups.get(0).unwrap().place, 0x10ff8);
    assert_eq!(view.mappings.iter().map(|m| m.addr).collect::<Vec<_>>(), [0x10000, 0x11000, 0x12000]);
    assert!(view.fixups.get(1).is_none() && view.sites.len() == 1);
}

#[test]
fn every_rule_refuses_and_names_its_field() {
    let header = |change: fn(&mut Maker), field: usize| {
        let mut maker = Maker::sample();
        change(&mut maker);
        assert_eq!(View::parse(&maker.bytes()).map(drop), Err(Malformed(field)));
    };
    header(|m| m.header.magic ^= 1, offset_of!(Header, magic));
    header(|m| m.header.abi += 1, offset_of!(Header, abi));
    header(|m| m.header.flags |= 1 << 31, offset_of!(Header, flags));
    header(|m| m.name = "", offset_of!(Header, name));
    header(|m| m.name = "a\0b", offset_of!(Header, name));
    header(|m| m.images.push(m.images[0]), offset_of!(Header, images));
    header(|m| m.header.flags = BATCH_REPLACE, offset_of!(Header, flags));
    header(|m| m.header.thread_id = 0x2d1, offset_of!(Header, thread_id));
    header(|m| m.header.thread_id = 4096, offset_of!(Header, thread_id));

    type H = Header;
    let mapping = |i, f, c: fn(&mut Maker)| refused_at::<Mapping>(|h: &H| h.mappings, i, f, c);
    mapping(0, offset_of!(Mapping, addr), |m| m.mappings[0].addr += 8);
    mapping(1, offset_of!(Mapping, len), |m| m.mappings[1].len = 0);
    mapping(1, offset_of!(Mapping, len), |m| m.mappings[1].len = 0u64.wrapping_sub(PAGE));
    mapping(1, offset_of!(Mapping, offset), |m| m.mappings[1].offset = 1);
    mapping(1, offset_of!(Mapping, kind), |m| m.mappings[1].kind = 2);
    mapping(1, offset_of!(Mapping, prot), |m| m.mappings[1].prot = PROT_WRITE | PROT_EXEC);
    mapping(1, offset_of!(Mapping, final_prot), |m| m.mappings[1].final_prot = PROT_EXEC);
    mapping(1, offset_of!(Mapping, role), |m| m.mappings[1].role = 2);

    let fixup = |f, c: fn(&mut Maker)| refused_at::<Fixup>(|h: &H| h.fixups, 0, f, c);
    fixup(offset_of!(Fixup, kind), |m| m.fixups[0].kind = 4);
    fixup(offset_of!(Fixup, object), |m| m.fixups[0].object = 1);
    fixup(offset_of!(Fixup, place), |m| m.fixups[0].place += 1);
    fixup(offset_of!(Fixup, place), |m| m.fixups[0].place = u64::MAX);
    fixup(offset_of!(Fixup, place), |m| m.fixups[0] = Fixup { kind: FIXUP_VALUE, ..Fixup::default() });

    let site = |f, c: fn(&mut Maker)| refused_at::<Site>(|h: &H| h.sites, 0, f, c);
    site(offset_of!(Site, class), |m| m.sites[0].class = b'X');
    site(offset_of!(Site, store_len), |m| m.sites[0].store_len = 8);
    site(offset_of!(Site, new_word), |m| m.sites[0].new_word = 0xaa55);
    site(offset_of!(Site, pad_len), |m| m.sites[0].pad_len = 9);
    site(offset_of!(Site, store_addr), |m| {
        m.sites[0] = Site { class: b'A', store_len: 8, store_addr: 4, ..m.sites[0] };
    });
    site(offset_of!(Site, slot), |m| m.sites[0].slot = 0x10ff8);
    site(offset_of!(Site, slot), |m| m.sites[0].slot = 0x11ffc);
    site(offset_of!(Site, copy), |m| m.sites[0].copy = 0);
    site(offset_of!(Site, choice), |m| m.sites[0].choice = 0x10ff8);
    site(offset_of!(Site, choice), |m| m.sites[0].choice = m.sites[0].slot);
    site(offset_of!(Site, dispatcher), |m| m.sites[0].dispatcher = 0x11000);

    let func = |f, c: fn(&mut Maker)| refused_at::<Func>(|h: &H| h.funcs, 0, f, c);
    func(offset_of!(Func, site), |m| m.funcs[0].site = 1);
    func(offset_of!(Func, hook), |m| m.funcs[0].hook = 6);
    func(offset_of!(Func, new_func), |m| m.funcs[0].new_func = 0);
    func(offset_of!(Func, flags), |m| m.funcs[0].flags = 2);
    func(offset_of!(Func, flags), |m| m.funcs[0].flags = FUNC_NOP);

    let range = |f, c: fn(&mut Maker)| refused_at::<Range>(|h: &H| h.ranges, 0, f, c);
    range(offset_of!(Range, func), |m| m.ranges[0].func = 1);
    range(offset_of!(Range, kind), |m| m.ranges[0].kind = 3);
    range(offset_of!(Range, end), |m| m.ranges[0].end = m.ranges[0].start);

    let state = |i, f, c: fn(&mut Maker)| refused_at::<State>(|h: &H| h.states, i, f, c);
    state(0, offset_of!(State, id), |m| m.states[0].id = 0);
    state(1, offset_of!(State, id), |m| m.states.push(m.states[0]));
    refused_at::<NamePart>(|h| h.names, 0, offset_of!(NamePart, object), |m| m.names[0].object = 1);

    let image = |f, c: fn(&mut Maker)| refused_at::<Image>(|h: &H| h.images, 0, f, c);
    image(offset_of!(Image, end), |m| m.images[0].end = 0);
    image(offset_of!(Image, object), |m| m.images[0].object = 1);
    image(offset_of!(Image, eh_frame_hdr), |m| m.images[0].eh_frame_hdr = 0x11000);
    image(offset_of!(Image, phdr), |m| m.images[0].phdr = 1);
    image(offset_of!(Image, text_end), |m| m.images[0].text_end = 0x11001);
    image(offset_of!(Image, text_end), |m| m.images[0].text_start = 0);
    image(offset_of!(Image, debug_elf), |m| m.images[0].debug_elf = 0x20000);
}

#[test]
fn a_batch_of_hooks_brings_no_patch() {
    let mut maker = Maker::sample();
    maker.header.flags = 0;
    maker.name = "";
    maker.images.clear();
    maker.states.clear();
    (maker.named, maker.names) = (Vec::new(), Vec::new());
    maker.funcs = vec![Func { hook: HOOK_DL_FIND_OBJECT, ..Func::default() }];
    assert!(View::parse(&maker.bytes()).is_ok());
    maker.funcs.push(Func { new_func: 1, ..Func::default() });
    assert!(View::parse(&maker.bytes()).is_err(), "a function of no patch");
}

/// Words are written for as long as the patch is there, so they must lie in pages of its image that stay writable.
#[test]
fn words_of_late_objects_are_checked() {
    let parse = |change: &dyn Fn(&mut Maker, &mut Recipe, &mut Word)| {
        let mut maker = Maker::sample();
        maker.header.r_debug = 0x1000;
        maker.mappings[0].final_prot = PROT_READ | PROT_WRITE;
        let mut row = Recipe { kind: RECIPE_WORDS, ..Recipe::default() };
        let mut word = Word { place: 0x10ff8, kind: WORD_MODULE, ..Word::default() };
        change(&mut maker, &mut row, &mut word);
        maker.recipes = vec![(row, vec![word])];
        View::parse(&maker.bytes()).is_ok()
    };
    assert!(parse(&|_, _, _| ()));
    assert!(!parse(&|maker, _, _| maker.mappings[0].final_prot = PROT_READ), "read-only afterwards");
    assert!(!parse(&|_, _, word| word.place = 0x11000), "not the image's");
    assert!(!parse(&|_, _, word| word.place = 0x10ffc), "not aligned");
    assert!(!parse(&|_, _, word| word.kind = WORD_MODULE + 1));
    assert!(!parse(&|_, row, _| row.lane = LANES as u32));
    assert!(!parse(&|_, row, _| row.kind = RECIPE_WORDS + 1));
    assert!(!parse(&|maker, _, _| maker.header.r_debug = 0), "nobody would fill them");
    assert!(!parse(&|maker, _, _| maker.images.clear()), "nobody would know when they go");
}

/// Whatever was accepted can be read without leaving the payload, and is as the rules say.
fn touch(payload: &[u8]) {
    let Ok(view) = View::parse(payload) else { return };
    let lens = (view.objects.len(), view.sites.len());
    assert_eq!(view.objects.iter().count(), lens.0);
    assert_eq!(view.sites.iter().count(), lens.1);
    for f in view.fixups.iter() {
        let end = f.place.checked_add(8).unwrap();
        assert!(view.mappings.iter().any(|m| m.addr <= f.place && end <= m.addr + m.len && m.prot & 2 != 0));
    }
    for f in view.funcs.iter() {
        assert!(view.sites.get(f.site as usize).is_some());
    }
    for m in view.mappings.iter() {
        assert!(m.prot & 6 != 6 && m.final_prot & 6 != 6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Random bytes, with a header that gets past the first checks.
    #[test]
    fn random_payloads_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), head: bool) {
        if head && bytes.len() >= 16 {
            bytes[..8].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
            bytes[8..12].copy_from_slice(&ABI_VERSION.to_le_bytes());
            bytes[12..16].copy_from_slice(&BATCH_PATCH.to_le_bytes());
        }
        touch(&bytes);
    }

    /// A sound batch with some bytes changed, cut or both.
    #[test]
    fn damaged_payloads_never_panic(
        damage in prop::collection::vec((0usize..700, any::<u8>()), 1..6),
        cut in 0usize..900,
    ) {
        let mut bytes = Maker::sample().bytes();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(cut);
        touch(&bytes);
    }
}
