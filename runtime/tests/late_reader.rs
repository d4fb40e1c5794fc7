//! A prepared batch is taken back while a thread that loads an object may still write into its image.
//!
//! The engine works on this process.

use std::sync::atomic::{AtomicU64, Ordering};
use suture_abi::ABI_VERSION;
use suture_abi::batch::{
    BATCH_MAGIC, BATCH_PATCH, Header, Image, MAPPING_ANON, Mapping, Object, ROLE_ARENA, ROLE_IMAGE, Table,
};
use suture_abi::block::{IMAGE_LEFT, ImageRow, MappingRow};
use suture_abi::channel::op;
use suture_abi::late::{RECIPE_WORDS, Recipe, WORD_ADDRESS, Word};
use suture_runtime::block::BLOCK;
use suture_runtime::commit::Engine;
use suture_runtime::late::table;
use suture_runtime::publish;
use suture_runtime::sys::mem::{self, PAGE};

/// Readable and writable.
const RW: u32 = 3;

/// Stands for an object of the program: its dynamic section.
static DYNAMIC: AtomicU64 = AtomicU64::new(0x50);

fn raw<T: Copy>(rows: &[T]) -> &[u8] {
    // SAFETY: rows of the contract are integers without padding.
    unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
}

/// A patch with a page of image, in which a word depends on an object that may come, and a page of arena.
fn batch(image: u64, arena: u64) -> Vec<u8> {
    let mut out = vec![0; size_of::<Header>()];
    let mut put = |rows: &[u8], count: usize| {
        out.resize(out.len().next_multiple_of(8), 0);
        let table = Table { offset: out.len() as u32, count: count as u32 };
        out.extend_from_slice(rows);
        table
    };
    let mapping = |addr, role| Mapping {
        addr,
        len: PAGE,
        offset: 0,
        kind: MAPPING_ANON,
        prot: RW,
        final_prot: RW,
        role,
    };
    let object = Object { base: 0, l_ld: DYNAMIC.as_ptr().addr() as u64, link_map: 0, dynamic: 0x50 };
    let words = [Word { place: image + 8, value: 7, absent: 0, kind: WORD_ADDRESS, reserved: 0 }];
    let blob = put(raw(&words), size_of_val(&words));
    let rows = Image {
        start: image,
        end: image + PAGE,
        base: image,
        text_start: image,
        text_end: image + 16,
        ..Image::default()
    };
    let header = Header {
        magic: BATCH_MAGIC,
        abi: ABI_VERSION,
        flags: BATCH_PATCH,
        generation: BLOCK.generation().load(Ordering::Relaxed),
        thread_id: 0x2d0,
        objects: put(raw(&[object]), 1),
        mappings: put(raw(&[mapping(image, ROLE_IMAGE), mapping(arena, ROLE_ARENA)]), 2),
        images: put(raw(&[rows]), 1),
        recipes: put(raw(&[Recipe { kind: RECIPE_WORDS, blob, ..Recipe::default() }]), 1),
        // Never looked at: no object is loaded meanwhile.
        r_debug: 0x1000,
        name: put(b"words", 5),
        ..Header::default()
    };
    out[..size_of::<Header>()].copy_from_slice(raw(&[header]));
    out
}

/// Two pages that are free.
fn free_pages() -> (u64, u64) {
    let at = mem::map_anywhere(2 * PAGE).expect("memory");
    // SAFETY: mapped the line above, and nobody knows of it.
    unsafe { mem::unmap(at, 2 * PAGE) }.expect("unmapping");
    (at, at + PAGE)
}

fn is_mapped(addr: u64) -> bool {
    mem::peek(addr).is_ok()
}

/// What the books say of images, and of mappings.
fn books() -> (Vec<ImageRow>, Vec<MappingRow>) {
    publish::with_current(|books| (books.images.clone(), books.mappings.clone()))
}

/// Prepares; gives the number of the patch.
fn prepare(engine: &mut Engine, image: u64, arena: u64) -> u64 {
    let reply = engine.answer(op::PREPARE, [0; 4], &batch(image, arena));
    assert_eq!(reply.error, 0, "{reply:?}");
    assert!(is_mapped(image) && is_mapped(arena));
    reply.results[0]
}

#[test]
fn an_image_whose_words_may_still_be_written_is_left() {
    let mut engine = Engine::default();
    // Nobody loads anything: all of it goes at once.
    let (image, arena) = free_pages();
    let patch = prepare(&mut engine, image, arena);
    let reply = engine.answer(op::ABORT, [patch, 0, 0, 0], &[]);
    assert_eq!(reply.error, 0, "{reply:?}");
    assert!(!is_mapped(image) && !is_mapped(arena));
    assert!(books().0.is_empty() && books().1.is_empty(), "{:?}", books());

    // A thread that loads an object has the table in hand that names the words.
    for ends_by_itself in [false, true] {
        let (image, arena) = free_pages();
        let patch = prepare(&mut engine, image, arena);
        table::with_current(|table| {
            assert_eq!(table.rows.len(), 1);
            if ends_by_itself {
                // The command is gone.
                engine.client_gone();
            } else {
                let reply = engine.answer(op::ABORT, [patch, 0, 0, 0], &[]);
                assert_eq!(reply.error, 0, "{reply:?}");
            }
            let place = std::ptr::with_exposed_provenance_mut::<u64>(image as usize + 8);
            // SAFETY: what the thread does next; it faults if the page is gone.
            unsafe { place.write_volatile(7) };
        });
        let (images, mappings) = books();
        assert_eq!(images.iter().map(|i| (i.plan.start, i.flags)).collect::<Vec<_>>(), [(image, IMAGE_LEFT)]);
        assert!(mappings.iter().any(|m| (m.addr, m.role) == (image, ROLE_IMAGE)), "{mappings:?}");
        assert!(publish::with_current(|books| books.patches.is_empty() && books.recipes.is_empty()));

        // The command has seen every thread outside of the runtime since.
        let generation = BLOCK.generation().load(Ordering::Relaxed);
        let found = [images[0].id.to_le_bytes(), 0u32.to_le_bytes()].concat();
        let reply = engine.answer(op::DRAINED, [generation, 0, 0, 0], &found);
        assert_eq!((reply.error, reply.results[0]), (0, 0), "{reply:?}");
        assert!(!is_mapped(image));
        let (images, mappings) = books();
        assert!(images.is_empty() && mappings.iter().all(|m| m.role == ROLE_ARENA), "{mappings:?}");
    }
}
