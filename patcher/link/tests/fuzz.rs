//! Damaged patch files: whatever they say, reading them ends, and without a panic.

mod common;

use common::{Host, host, patch};
use proptest::prelude::*;
use std::sync::OnceLock;
use suture_elf::ObjectFile;
use suture_link::{AcceptOptions, LinkOptions, PatchDescriptor, PatchFile, ProcessView, accept};

const SOURCE: &str = r#"
#include <stdio.h>
#include <suture.h>
SUTURE_OLD(long, old_target, (long));
SUTURE_POINTER(int, counter);
SUTURE_EXTERN __thread int per_thread;
static int pre(struct suture_patch *p, struct suture_state *s) { return p != 0 && s != 0; }
static long fixed(long x) { printf("%ld %d\n", x, ++*counter + per_thread); return old_target(x); }
SUTURE_PATCH("fuzzed",
    SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_OLD("target", fixed, old_target)),
    SUTURE_SYMBOL(counter, SUTURE_MAIN, "counter", 0),
    SUTURE_STATE(7, SUTURE_IS_SHADOW, pre, 0, 0, 0, 0));
"#;
const HOST: &str = "int counter; __thread int per_thread = 1;\n\
    __attribute__((noinline)) long target(long x) { return x + counter + per_thread; }";

fn whole() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| patch("fuzzed", "gcc", SOURCE, &[]).data().to_vec())
}

fn process() -> &'static Host {
    static PROCESS: OnceLock<Host> = OnceLock::new();
    PROCESS.get_or_init(|| Host::start(&host("host-fuzzed", "gcc", HOST, &[]), &[]))
}

/// Everything that looks at a patch file. Returns whether it was linked.
fn read(bytes: Vec<u8>, view: Option<&ProcessView<'_>>) -> bool {
    let Ok(file) = ObjectFile::from_bytes(bytes, "fuzzed".into()) else { return false };
    if let Ok(patch) = PatchFile::new(&file) {
        let _ = PatchDescriptor::read(&patch);
        let _ = accept::check(&patch, AcceptOptions::default());
    }
    view.is_some_and(|view| suture_link::link(view, &file, &LinkOptions::default()).is_ok())
}

#[test]
fn the_undamaged_file_links() {
    let view = process().view().unwrap();
    assert!(read(whole().to_vec(), Some(&view)));
}

#[test]
fn every_cut_is_survived() {
    let bytes = whole();
    for cut in (0..bytes.len()).step_by(61) {
        read(bytes[..cut].to_vec(), None);
    }
}

/// Every single byte of headers, tables and descriptor, set to the values that hurt.
#[test]
fn single_bytes_are_survived() {
    let view = process().view().unwrap();
    let bytes = whole();
    let loaded = bytes.len().min(16 << 10);
    for at in (0..loaded).filter(|&at| bytes[at] != 0) {
        for value in [0, 0xff, bytes[at] ^ 0x80] {
            let mut damaged = bytes.to_vec();
            damaged[at] = value;
            read(damaged, Some(&view).filter(|_| at % 16 == 0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn scribbles_are_survived(changes in prop::collection::vec((0usize..1 << 14, any::<u8>()), 1..12)) {
        let view = process().view().unwrap();
        let mut bytes = whole().to_vec();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        read(bytes, Some(&view));
    }

    /// Whole words where offsets, counts and addresses stand.
    #[test]
    fn words_are_survived(at in 0usize..2048, word in prop_oneof![
        any::<u64>(), (0u64..0x5000), Just(u64::MAX), Just(1 << 47), Just(i64::MAX as u64)
    ]) {
        let mut bytes = whole().to_vec();
        let at = (at * 8 % (bytes.len() - 8)) & !7;
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        read(bytes, None);
    }
}
