//! Whole patches on a running program: what every operation does to slots, bytes, books and events.

mod common;
#[path = "commit/direct.rs"]
mod direct;

use common::client::{Answer, Client};
use common::eventually;
use common::ring::ring;
use common::target::Target;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use suture_abi::ABI_VERSION;
use suture_abi::batch::{
    BATCH_MAGIC, BATCH_PATCH, FIXUP_ADDRESS, FIXUP_VALUE, Fixup, Func, HOOK_DL_FIND_OBJECT, Header, Image,
    MAPPING_ANON, MAPPING_FILE, Mapping, Object, ROLE_ARENA, ROLE_IMAGE, Site, Table,
};
use suture_abi::block::{
    IMAGE_LEFT, IMAGE_ON_STACK, IMAGE_PINNED, IMAGE_POINTED_AT, ImageRow, MappingRow, PATCH_ENABLED,
    PATCH_PREPARED, PatchRow, RuntimeBlock, SITE_ARMED, SITE_RETIRED, SITE_UNARMED, SiteRow,
};
use suture_abi::channel::{MAY_LOOK, Move, error, op};
use suture_abi::dispatch::{Constants, RECORDS_PER_CHUNK};
use suture_abi::event::word;
use suture_abi::host::{Host, LEAVE, NONE};
use suture_elf::Addr;
use suture_redirect::dispatcher;

/// Offset of the thread id in glibc's thread header on x86-64 (`_thread_db_pthread_tid`).
const THREAD_ID: u32 = 0x2d0;

const RW: u32 = 3;
const RX: u32 = 5;
const R: u32 = 1;

/// A batch in the making.
#[derive(Default)]
struct Plan {
    generation: u64,
    objects: Vec<Object>,
    mappings: Vec<Mapping>,
    fixups: Vec<Fixup>,
    sites: Vec<Site>,
    funcs: Vec<Func>,
    images: Vec<Image>,
    name: &'static str,
    code: Vec<u8>,
    main_stack_end: u64,
}

fn raw<T: Copy>(rows: &[T]) -> &[u8] {
    // SAFETY: rows of the contract are integers without padding.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

impl Plan {
    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; size_of::<Header>()];
        let mut put = |rows: &[u8], count: usize| {
            out.resize(out.len().next_multiple_of(8), 0);
            let table = Table { offset: out.len() as u32, count: count as u32 };
            out.extend_from_slice(rows);
            table
        };
        let header = Header {
            magic: BATCH_MAGIC,
            abi: ABI_VERSION,
            flags: if self.name.is_empty() { 0 } else { BATCH_PATCH },
            generation: self.generation,
            thread_id: THREAD_ID,
            reserved: 0,
            main_stack_end: self.main_stack_end,
            objects: put(raw(&self.objects), self.objects.len()),
            mappings: put(raw(&self.mappings), self.mappings.len()),
            fixups: put(raw(&self.fixups), self.fixups.len()),
            sites: put(raw(&self.sites), self.sites.len()),
            funcs: put(raw(&self.funcs), self.funcs.len()),
            images: put(raw(&self.images), self.images.len()),
            ranges: put(&[], 0),
            states: put(&[], 0),
            recipes: Table::default(),
            r_debug: 0,
            name: put(self.name.as_bytes(), self.name.len()),
            description: put(b"made by hand", 12),
            named: Table::default(),
            names: Table::default(),
        };
        out[..size_of::<Header>()].copy_from_slice(raw(&[header]));
        out
    }

    /// A dispatcher behind stub and copy in the stub page; its address and that of its choice word.
    fn put_dispatcher(&mut self, target: &Target, base: u64) -> (u64, u64) {
        let (at, choice) = (base + 2 * 4096 + 128, base + 3 * 4096 + 256);
        let constants = Constants {
            directory: target.block_word(offset_of!(RuntimeBlock, records)),
            slow_path: target.block_word(offset_of!(RuntimeBlock, slow_path)),
            self_look: target.block_word(offset_of!(RuntimeBlock, self_look)),
            thread_id: THREAD_ID,
        };
        let code = dispatcher(Addr(at), Addr(choice), &constants).unwrap();
        self.code[4096 + 128..4096 + 128 + code.len()].copy_from_slice(&code);
        (at, choice)
    }

    /// Code that returns `answer`, at the end of the image's text page.
    fn new_function(&mut self, answer: u32) -> u64 {
        let page = self.mappings.iter().find(|m| m.role == ROLE_IMAGE).unwrap();
        let (at, place) = (page.offset as usize + 64, page.addr + 64);
        self.code[at] = 0xb8;
        self.code[at + 1..at + 5].copy_from_slice(&answer.to_le_bytes());
        self.code[at + 5] = 0xc3;
        place
    }
}

fn rel32(from: u64, to: u64) -> [u8; 4] {
    (to.wrapping_sub(from) as i64 as i32).to_le_bytes()
}

/// Pages for one patch below the victim: text of the image, data of the image, stub page, slot page.
fn pages(target: &Target, near: u64) -> (u64, Plan) {
    let base = target.hole_below(near, 4);
    let page = |n: u64, kind, prot, final_prot, role| Mapping {
        addr: base + n * 4096,
        len: 4096,
        offset: if kind == MAPPING_FILE { n / 2 * 4096 } else { 0 },
        kind,
        prot,
        final_prot,
        role,
    };
    let mappings = vec![
        page(0, MAPPING_FILE, RX, RX, ROLE_IMAGE),
        page(1, MAPPING_ANON, RW, R, ROLE_IMAGE),
        page(2, MAPPING_FILE, RX, RX, ROLE_ARENA),
        page(3, MAPPING_ANON, RW, RW, ROLE_ARENA),
    ];
    let (generation, main_stack_end) = (target.generation(), target.at("stack_end"));
    (base, Plan { mappings, code: vec![0xcc; 8192], generation, main_stack_end, ..Plan::default() })
}

/// A patch of `subject()`, class A, with an image, a RELRO page and fixups in it.
fn patch_subject(target: &Target, name: &'static str, answer: u32, existing: u32) -> (u64, Plan) {
    let entry = target.at("subject");
    let (base, mut plan) = pages(target, entry);
    let (stub, slot, copy) = (base + 2 * 4096, base + 3 * 4096 + 8, base + 2 * 4096 + 64);
    plan.name = name;
    // stub: jmp [rip + slot]
    plan.code[4096..4098].copy_from_slice(&[0xff, 0x25]);
    plan.code[4098..4102].copy_from_slice(&rel32(stub + 6, slot));
    // copy: mov eax, 1; jmp entry + 5
    plan.code[4160..4166].copy_from_slice(&[0xb8, 1, 0, 0, 0, 0xe9]);
    plan.code[4166..4170].copy_from_slice(&rel32(copy + 10, entry + 5));
    let old_word = if existing == 0 { target.word(entry) } else { 0 };
    let mut new = old_word.to_le_bytes();
    new[0] = 0xe9;
    new[1..5].copy_from_slice(&rel32(entry + 5, stub));
    let (dispatcher, choice) = plan.put_dispatcher(target, base);
    plan.sites.push(Site {
        choice,
        dispatcher,
        id: existing,
        class: b'A',
        store_len: 8,
        window_len: 5,
        entry,
        site: entry,
        store_addr: entry,
        old_word,
        new_word: u64::from_le_bytes(new),
        stub,
        slot,
        copy,
        copy_len: 10,
        ..Site::default()
    });
    let new_func = plan.new_function(answer);
    plan.funcs.push(Func { site: 0, new_func, new_size: 6, old_size: 6, ..Func::default() });
    plan.objects.push(Object {
        base: 0x1000,
        l_ld: base_of(target),
        link_map: 0,
        dynamic: target.word(base_of(target)),
    });
    plan.fixups.push(Fixup { place: base + 4096, kind: FIXUP_ADDRESS, object: 0, addend: 0x234 });
    plan.fixups.push(Fixup { place: base + 4096 + 8, kind: FIXUP_VALUE, object: 9, addend: 77 });
    plan.images.push(Image {
        start: base,
        end: base + 8192,
        base,
        eh_frame_hdr: base + 0x123,
        text_start: base,
        text_end: base + 4096,
        phdr: base + 64,
        phnum: 2,
        ..Image::default()
    });
    (base, plan)
}

/// Any readable address of a mapping that stays: stands for a dynamic section.
fn base_of(target: &Target) -> u64 {
    target.at("block")
}

struct Session<'t> {
    target: &'t Target,
    client: Client,
}

impl<'t> Session<'t> {
    fn open(target: &'t Target) -> Self {
        target.await_no_worker();
        ring(target, target.pid);
        Session { target, client: Client::connect(target) }
    }

    fn prepare(&self, plan: &Plan) -> Answer {
        let fd = self.client.expect(op::CODE_FILE, [0; 4], b"suture:test\0")[0];
        self.client.open_fd(fd).write_all_at(&plan.code, 0).unwrap();
        self.client.request(op::PREPARE, [0; 4], &plan.bytes())
    }

    #[track_caller]
    fn prepared(&self, plan: &Plan) -> u64 {
        let (error, errno, results) = self.prepare(plan);
        assert_eq!((error, errno), (0, 0), "{results:x?}");
        results[0]
    }

    fn arm(&self, plan: &Plan) {
        for site in plan.sites.iter().filter(|s| s.id == 0) {
            self.client.expect(op::SYNC, [0; 4], &[]);
            self.target.write(site.store_addr, &site.new_word.to_le_bytes());
            self.client.expect(op::SYNC, [0; 4], &[]);
        }
    }

    fn disarm(&self, plan: &Plan) {
        for site in plan.sites.iter().filter(|s| s.id == 0) {
            self.target.write(site.store_addr, &site.old_word.to_le_bytes());
        }
    }

    /// Prepares, arms and enables.
    fn apply(&self, plan: &Plan) -> u64 {
        let id = self.prepared(plan);
        self.arm(plan);
        self.enable(id);
        id
    }

    fn enable(&self, id: u64) {
        self.settle(self.client.expect(op::ENABLE, [id, MAY_LOOK, 0, 0], &[]));
    }

    fn disable(&self, id: u64) {
        self.settle(self.client.expect(op::DISABLE, [id, MAY_LOOK, 0, 0], &[]));
    }

    /// Helps a transition to its end. The thread that counts in registers never blocks; it never calls
    /// anything either, so it may be moved by its record alone.
    fn settle(&self, begun: [u64; 4]) {
        let id = begun[0];
        let mut state = begun;
        let mut ended = || {
            if state[0] == 0 {
                return Some(());
            }
            let spinning: Vec<u8> =
                self.target.threads().iter().filter_map(|tid| self.clear(*tid)).flatten().collect();
            self.client.expect(op::MOVE, [id, 0, 0, 0], &spinning);
            state = self.client.expect(op::ADVANCE, [id, MAY_LOOK, 0, 0], &[]);
            None
        };
        eventually("the end of the transition", &mut ended);
    }

    /// A move of a thread that runs.
    fn clear(&self, tid: i32) -> Option<Vec<u8>> {
        if self.target.syscall_of(tid).is_some() {
            return None;
        }
        let tid = tid as u32;
        let directory = self.target.block_word(offset_of!(RuntimeBlock, records));
        let chunk = self.target.word(directory + u64::from(tid / RECORDS_PER_CHUNK) * 8);
        let seen = (chunk != 0).then(|| self.target.word(chunk + u64::from(tid % RECORDS_PER_CHUNK) * 64))?;
        Some(raw(&[Move { tid, reserved: 0, seen }]).to_vec())
    }

    fn close(self) {
        self.client.expect(op::BYE, [0; 4], &[]);
        self.target.await_no_worker();
    }
}

fn patches(target: &Target) -> Vec<(String, u32)> {
    let rows: Vec<PatchRow> = target.rows(offset_of!(RuntimeBlock, patches));
    let name = |row: &PatchRow| {
        String::from_utf8(row.name.iter().copied().take_while(|b| *b != 0).collect()).unwrap()
    };
    rows.iter().map(|row| (name(row), row.state)).collect()
}

/// State and depth of every site.
fn sites(target: &Target) -> Vec<(u32, u32)> {
    let rows: Vec<SiteRow> = target.rows(offset_of!(RuntimeBlock, sites));
    rows.iter().map(|row| (row.state, row.depth)).collect()
}

#[track_caller]
fn answers(target: &Target, value: u64) {
    eventually("the program's answer", || (target.counter("value") == value).then_some(()));
    assert_eq!(target.counter("wrong"), 0);
    assert!(target.is_alive());
}

fn is_mapped(target: &Target, addr: u64) -> bool {
    target.maps().iter().any(|(from, to, _)| (*from..*to).contains(&addr))
}

#[test]
fn a_patch_comes_and_goes() {
    let target = Target::start();
    let session = Session::open(&target);
    let (base, plan) = patch_subject(&target, "first", 2, 0);
    let id = session.prepared(&plan);
    assert_eq!((id, target.generation()), (1, 1));
    assert_eq!(patches(&target), [("first".into(), PATCH_PREPARED)]);
    assert_eq!(sites(&target), [(SITE_UNARMED, 0)]);
    assert_eq!((target.word(base + 4096), target.word(base + 4104)), (0x1234, 77), "fixups");
    assert_eq!(target.word(plan.sites[0].slot), plan.sites[0].copy);
    let relro = target.maps().into_iter().find(|m| m.0 == base + 4096).unwrap();
    assert!(relro.2.starts_with("r--p"), "{relro:?}");
    // Armed, and still the old behaviour.
    session.arm(&plan);
    answers(&target, 1);
    session.enable(id);
    answers(&target, 2);
    assert_eq!(
        (patches(&target), sites(&target)),
        (vec![("first".into(), PATCH_ENABLED)], vec![(SITE_ARMED, 1)])
    );
    let rows: Vec<PatchRow> = target.rows(offset_of!(RuntimeBlock, patches));
    assert_eq!(target.read(rows[0].description, rows[0].description_len as usize), b"made by hand");
    session.close();
    answers(&target, 2);

    let session = Session::open(&target);
    assert_eq!(session.client.request(op::ABORT, [id, 0, 0, 0], &[]).0, error::STATE);
    session.disable(id);
    answers(&target, 1);
    assert_eq!((patches(&target), sites(&target)), (vec![], vec![(SITE_ARMED, 0)]));
    // Not restored yet, then restored.
    assert_eq!(session.client.expect(op::RETIRE, [0; 4], &1u32.to_le_bytes())[0], 1);
    session.disarm(&plan);
    assert_eq!(session.client.expect(op::RETIRE, [0; 4], &1u32.to_le_bytes())[0], 0);
    assert_eq!(sites(&target), [(SITE_RETIRED, 0)]);
    let images: Vec<ImageRow> = target.rows(offset_of!(RuntimeBlock, images));
    assert_eq!(images.iter().map(|i| i.flags).collect::<Vec<_>>(), [IMAGE_LEFT]);
    assert!(is_mapped(&target, base) && is_mapped(&target, plan.sites[0].stub));
    // The same site again, by its number.
    let (_, mut again) = patch_subject(&target, "again", 3, 1);
    again.sites[0].id = 1;
    let id = session.prepared(&again);
    target.write(plan.sites[0].store_addr, &plan.sites[0].new_word.to_le_bytes());
    session.enable(id);
    answers(&target, 3);
    session.close();
    let expected = [
        [word::ENABLE, word::INIT_PATCH, word::START_PATCH, word::COMPLETING_PATCH, word::DONE_PATCH]
            .as_slice(),
        &[word::INIT_UNPATCH, word::START_UNPATCH, word::COMPLETING_UNPATCH, word::DONE_UNPATCH, word::GONE],
        &[word::ENABLE, word::INIT_PATCH, word::START_PATCH, word::COMPLETING_PATCH, word::DONE_PATCH],
    ];
    assert_eq!(target.events(), expected.concat());
    assert_eq!(target.counter("eintr"), 0);
}

/// The payload of DRAINED for one image.
fn drained(image: u32, why: u32) -> Vec<u8> {
    [image, why].iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn an_image_goes_when_its_patch_has_and_not_before() {
    let target = Target::start();
    let session = Session::open(&target);
    let images = || -> Vec<(u32, u32)> {
        let rows: Vec<ImageRow> = target.rows(offset_of!(RuntimeBlock, images));
        rows.iter().map(|i| (i.id, i.flags)).collect()
    };
    let ask = |generation: u64, payload: &[u8]| {
        let (code, _, results) = session.client.request(op::DRAINED, [generation, 0, 0, 0], payload);
        (code, results[0])
    };
    let (base, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.apply(&plan);
    answers(&target, 2);
    assert_eq!(ask(target.generation(), &drained(1, 0)).0, error::STATE, "in use");
    session.disable(id);
    answers(&target, 1);
    let now = target.generation();
    assert_eq!(ask(now - 1, &drained(1, 0)), (error::STALE, now), "seen before the last change");
    assert_eq!(ask(now, &drained(7, 0)), (error::NO_ENTRY, 7));
    assert_eq!(ask(now, &[1, 0, 0, 0]).0, error::MALFORMED);
    assert!(is_mapped(&target, base));
    assert_eq!(ask(now, &drained(1, IMAGE_ON_STACK | IMAGE_PINNED)), (error::OK, 1));
    assert_eq!(images(), [(1, IMAGE_LEFT | IMAGE_ON_STACK)], "nobody pins an image but a forced transition");
    let second = session.apply(&patch_subject(&target, "q", 3, 1).1);
    assert_eq!(ask(target.generation(), &drained(1, IMAGE_POINTED_AT)), (error::OK, 1));
    assert_eq!(images(), [(1, IMAGE_LEFT | IMAGE_POINTED_AT), (2, 0)]);
    assert_eq!(ask(target.generation(), &drained(1, 0)), (error::OK, 0));
    assert_eq!(images(), [(2, 0)]);
    assert!(!is_mapped(&target, base));
    let mappings: Vec<MappingRow> = target.rows(offset_of!(RuntimeBlock, mappings));
    assert!(mappings.iter().all(|m| u64::from(m.patch) != id || m.role == ROLE_ARENA), "{mappings:?}");
    assert!(is_mapped(&target, plan.sites[0].stub), "stubs and copies stay");
    answers(&target, 3);
    session.disable(second);
    answers(&target, 1);
    session.close();
}

/// Threads are led by dispatchers then, or may come back from a callback: a look says nothing of later.
#[test]
fn no_image_goes_while_a_transition_or_a_host_is_there() {
    let target = Target::start();
    let session = Session::open(&target);
    let (base, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.apply(&plan);
    session.disable(id);
    let ask = || session.client.request(op::DRAINED, [target.generation(), 0, 0, 0], &drained(1, 0)).0;
    let plan = patch_subject(&target, "q", 3, 1).1;
    let id = session.prepared(&plan);
    session.arm(&plan);
    // One thread always runs: the worker does not move it.
    let begun = session.client.expect(op::ENABLE, [id, MAY_LOOK, 0, 0], &[]);
    assert_ne!(begun[0], 0, "over already");
    assert_eq!(ask(), error::STATE);
    session.settle(begun);
    // A host on its way out.
    let state = target.at("block") + offset_of!(RuntimeBlock, host) as u64;
    target.write(state + offset_of!(Host, tid) as u64, &target.pid.to_le_bytes());
    target.write(state + offset_of!(Host, state) as u64, &LEAVE.to_le_bytes());
    assert_eq!(ask(), error::STATE);
    target.write(state + offset_of!(Host, state) as u64, &NONE.to_le_bytes());
    assert!(is_mapped(&target, base));
    assert_eq!(ask(), error::OK);
    assert!(!is_mapped(&target, base));
    session.disable(id);
    session.close();
}

#[test]
fn patches_stack_in_list_order() {
    let target = Target::start();
    let session = Session::open(&target);
    let first = session.apply(&patch_subject(&target, "a", 10, 0).1);
    let second = session.apply(&patch_subject(&target, "b", 20, 1).1);
    let third = session.apply(&patch_subject(&target, "c", 30, 1).1);
    answers(&target, 30);
    assert_eq!(sites(&target), [(SITE_ARMED, 3)]);
    session.disable(second);
    answers(&target, 30);
    session.disable(third);
    answers(&target, 10);
    session.disable(first);
    answers(&target, 1);
    session.close();
}

#[test]
fn nothing_flips_before_every_site_is_armed() {
    let target = Target::start();
    let session = Session::open(&target);
    let (_, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.prepared(&plan);
    let entry = target.at("subject");
    let (code, _, results) = session.client.request(op::ENABLE, [id, 0, 0, 0], &[]);
    assert_eq!((code, results[..2].to_vec()), (error::BYTES, vec![1, entry]), "not armed");
    session.arm(&plan);
    // Somebody else's jump, to a place that happens to be harmless.
    let mut foreign = plan.sites[0].new_word.to_le_bytes();
    foreign[1..5].copy_from_slice(&rel32(entry + 5, plan.sites[0].copy));
    target.write(entry, &foreign);
    let (code, ..) = session.client.request(op::ENABLE, [id, 0, 0, 0], &[]);
    target.write(entry, &plan.sites[0].new_word.to_le_bytes());
    assert_eq!(code, error::BYTES, "somebody else's jump");
    assert_eq!(target.word(plan.sites[0].slot), plan.sites[0].copy);
    assert_eq!(patches(&target), [("p".into(), PATCH_PREPARED)]);
    session.enable(id);
    answers(&target, 2);
    session.close();
}

#[test]
fn a_refused_batch_leaves_nothing() {
    let target = Target::start();
    let session = Session::open(&target);
    let free = |plan: &Plan| plan.mappings.iter().filter(|m| !is_mapped(&target, m.addr)).count();
    let refused = |plan: &Plan| {
        let before = free(plan);
        let (code, _, results) = session.prepare(plan);
        assert_eq!(free(plan), before, "mappings were left behind");
        assert_eq!((patches(&target), sites(&target), target.generation()), (vec![], vec![], 0));
        (code, results)
    };
    let plan = || patch_subject(&target, "p", 2, 0).1;
    let mut stale = plan();
    stale.generation = 5;
    assert_eq!(refused(&stale), (error::STALE, [0; 4]));
    let mut taken = plan();
    taken.mappings[3].addr = target.at("subject") & !4095;
    taken.sites[0].slot = taken.mappings[3].addr;
    taken.sites[0].choice = taken.mappings[3].addr + 8;
    assert_eq!(refused(&taken).0, error::MAP, "the last mapping fails, three are undone");
    let mut short = plan();
    short.mappings[2].offset = 1 << 20;
    assert_eq!(refused(&short).0, error::MAP, "behind the end of the code file");
    let mut moved = plan();
    moved.objects[0].dynamic ^= 1;
    assert_eq!(refused(&moved), (error::OBJECT, [0; 4]));
    let mut bytes = plan();
    bytes.sites[0].old_word ^= 0xff00;
    assert_eq!(refused(&bytes).0, error::BYTES);
    let mut wild = plan();
    wild.fixups[0].place = target.at("wrong");
    assert_eq!(refused(&wild).0, error::MALFORMED);
    let mut unknown = plan();
    unknown.sites[0].id = 44;
    let (code, results) = refused(&unknown);
    assert_eq!((code, results[0]), (error::NO_ENTRY, 44));
    target.write(target.at("block") + offset_of!(RuntimeBlock, hooking_off) as u64, &1u32.to_le_bytes());
    assert_eq!(refused(&plan()).0, error::STATE);
    target.write(target.at("block") + offset_of!(RuntimeBlock, hooking_off) as u64, &0u32.to_le_bytes());
    session.apply(&plan());
    answers(&target, 2);
    session.close();
}

#[test]
fn abort_drops_what_was_never_armed_and_keeps_what_was() {
    let target = Target::start();
    let session = Session::open(&target);
    let (base, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.prepared(&plan);
    assert!(is_mapped(&target, base) && is_mapped(&target, plan.sites[0].slot));
    assert_eq!(session.client.expect(op::ABORT, [id, 0, 0, 0], &[])[0], 0);
    assert!(plan.mappings.iter().all(|m| !is_mapped(&target, m.addr)), "never armed: all of it goes");
    assert_eq!(sites(&target), []);
    let (base, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.prepared(&plan);
    session.arm(&plan);
    assert_eq!(session.client.expect(op::ABORT, [id, 0, 0, 0], &[])[0], 1);
    assert_eq!(sites(&target), [(SITE_ARMED, 0)]);
    assert!(!is_mapped(&target, base) && is_mapped(&target, plan.sites[0].stub));
    let mappings: Vec<MappingRow> = target.rows(offset_of!(RuntimeBlock, mappings));
    assert!(mappings.iter().all(|m| m.role == ROLE_ARENA) && mappings.len() == 2);
    answers(&target, 1);
    session.close();
}

#[test]
fn a_dead_client_is_rolled_back() {
    let target = Target::start();
    let session = Session::open(&target);
    let (base, plan) = patch_subject(&target, "p", 2, 0);
    session.prepared(&plan);
    session.arm(&plan);
    drop(session.client);
    target.await_no_worker();
    assert_eq!((patches(&target), sites(&target)), (vec![], vec![(SITE_RETIRED, 0)]));
    assert_eq!(target.word(target.at("subject")), plan.sites[0].old_word);
    assert_eq!(target.events(), [word::ROLLED_BACK, word::FAIL, word::GONE]);
    assert!(!is_mapped(&target, base) && is_mapped(&target, plan.sites[0].stub));
    answers(&target, 1);
}

#[test]
fn stores_from_inside_reach_sites_only() {
    let target = Target::start();
    let session = Session::open(&target);
    let (_, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.prepared(&plan);
    let Site { store_addr, old_word, new_word, .. } = plan.sites[0];
    let store = |addr, old, new, len| session.client.request(op::STORE, [addr, old, new, len], &[]).0;
    assert_eq!(store(store_addr, old_word ^ 1, new_word, 8), error::BYTES);
    assert_eq!(store(target.at("wrong"), 0, 1, 8), error::NO_ENTRY);
    assert_eq!(store(store_addr, old_word, new_word, 4), error::MALFORMED);
    assert_eq!(store(store_addr, old_word, new_word, 8), 0);
    session.enable(id);
    answers(&target, 2);
    let text = target.maps().into_iter().find(|(from, to, _)| (*from..*to).contains(&store_addr)).unwrap();
    assert!(text.2.starts_with("r-xp"), "{text:?}");
    session.close();
}

#[test]
fn a_forked_child_can_be_patched_on() {
    let target = Target::start();
    let session = Session::open(&target);
    session.apply(&patch_subject(&target, "a", 10, 0).1);
    let (_, plan) = patch_subject(&target, "b", 20, 1);
    session.prepared(&plan);
    // The child is forked in the middle of the session: a worker it does not have, a batch nobody
    // will enable, and (by hand) a publication that was cut off and a slot that was.
    let child = target.fork();
    session.close();
    answers(&child, 10);
    let block = child.at("block");
    child.write(block + offset_of!(RuntimeBlock, worker) as u64, &[0; 4]);
    child.write(block + offset_of!(RuntimeBlock, rows_seq) as u64, &(child.rows_seq() | 1).to_le_bytes());
    let slot = child.rows::<SiteRow>(offset_of!(RuntimeBlock, sites))[0].plan.slot;
    child.write(slot, &plan.funcs[0].new_func.to_le_bytes());
    answers(&child, 20);
    let session = Session::open(&child);
    session.client.expect(op::HELLO, [0; 4], &[]);
    answers(&child, 10);
    assert_eq!(child.rows_seq() % 2, 0);
    assert_eq!(patches(&child), [("a".into(), PATCH_ENABLED)]);
    let rows: Vec<PatchRow> = child.rows(offset_of!(RuntimeBlock, patches));
    assert_eq!(child.read(rows[0].description, rows[0].description_len as usize), b"made by hand");
    session.apply(&patch_subject(&child, "c", 30, 1).1);
    answers(&child, 30);
    session.disable(rows[0].id.into());
    answers(&child, 30);
    session.close();
    answers(&target, 10);
}

#[test]
fn unwinders_find_the_image() {
    let target = Target::start();
    let session = Session::open(&target);
    let entry = target.at("find_object");
    let code = target.read(entry, 16);
    // glibc 2.35 and later: mov rax, [rip + d], behind an endbr64 where built with it.
    let at = if code[..4] == [0xf3, 0x0f, 0x1e, 0xfa] { 4 } else { 0 };
    let site = entry + at as u64;
    if code[at..at + 3] != [0x48, 0x8b, 0x05] || site % 8 + 7 > 8 {
        println!("skipped: this _dl_find_object begins differently: {code:02x?}");
        return;
    }
    let displacement = i32::from_le_bytes(code[at + 3..at + 7].try_into().unwrap());
    let pointer = (site + 7).wrapping_add(displacement as u64);
    let store_addr = site & !7;
    let old_word = target.word(store_addr);
    let (base, mut hooks) = pages(&target, entry);
    let (stub, slot, copy) = (base + 2 * 4096, base + 3 * 4096, base + 2 * 4096 + 64);
    let (dispatcher, choice) = hooks.put_dispatcher(&target, base);
    hooks.code[4096..4098].copy_from_slice(&[0xff, 0x25]);
    hooks.code[4098..4102].copy_from_slice(&rel32(stub + 6, slot));
    // copy: movabs rax, [pointer]; jmp site + 7
    hooks.code[4160..4162].copy_from_slice(&[0x48, 0xa1]);
    hooks.code[4162..4170].copy_from_slice(&pointer.to_le_bytes());
    hooks.code[4170] = 0xe9;
    hooks.code[4171..4175].copy_from_slice(&rel32(copy + 15, site + 7));
    let mut new = old_word.to_le_bytes();
    let shift = (site % 8) as usize;
    new[shift] = 0xe9;
    new[shift + 1..shift + 5].copy_from_slice(&rel32(site + 5, stub));
    let new_word = u64::from_le_bytes(new);
    let store = (8, store_addr, old_word, new_word);
    let (store_len, store_addr, old_word, new_word) = store;
    let plan =
        Site { class: b'A', store_len, entry, site, store_addr, old_word, new_word, ..Site::default() };
    hooks.sites.push(Site { window_len: 7, stub, slot, choice, dispatcher, copy, copy_len: 15, ..plan });
    hooks.funcs.push(Func { hook: HOOK_DL_FIND_OBJECT, ..Func::default() });
    assert_eq!(session.prepared(&hooks), 0, "a batch of hooks has no patch");
    session.arm(&hooks);
    session.client.expect(op::ENABLE, [0; 4], &[]);
    let rows: Vec<SiteRow> = target.rows(offset_of!(RuntimeBlock, sites));
    assert_eq!((rows[0].hook, rows[0].depth, rows[0].state), (HOOK_DL_FIND_OBJECT, 1, SITE_ARMED));
    let (image, plan) = patch_subject(&target, "p", 2, 0);
    session.apply(&plan);
    answers(&target, 2);
    target.write(target.at("probe"), &(image + 64).to_le_bytes());
    eventually("the image's unwind table", || (target.counter("found") == image + 0x123).then_some(()));
    target.write(target.at("probe"), &(image - 1).to_le_bytes());
    eventually("nothing", || (target.counter("found") == 0).then_some(()));
    assert_eq!(target.counter("wrong"), 0, "the loader's own objects are no longer found");
    session.close();
}
