//! Damaged objects and random stacks: a walk ends, with a reason or a stack, and never panics.

mod common;

use common::build;
use iced_x86::{Decoder, DecoderOptions};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use suture_elf::{Addr, Base, Memory, MemoryError, ObjectFile};
use suture_unwind::{Module, Register, Registers, Unreliable, Unwinder};

/// A stack of random words that repeat above each other.
struct Stack(Vec<u64>);

impl Memory for Stack {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        if addr.0 >= 0x10_0000 {
            return Err(MemoryError { addr, len: buf.len() });
        }
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = addr.0 + i as u64;
            let word = self.0[(at / 8) as usize % self.0.len()];
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
        Ok(())
    }
}

fn library() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let source = "#include <stdlib.h>\n#include <string.h>\n\
            int a(int n, char *p) { char v[n]; memset(v, n, n); switch (n) { case 0: p += a(1, v); break; case 1: abort(); case 2: p += 3; break; case 3: p = realloc(p, 7); break; case 4: free(p); } return v[1] + *p; }\n\
            int b(int *p, int n) { int s = 0; for (int i = 0; i < n; i++) s += a(p[i], (char *)p) * a(s, 0); return s; }\n";
        let path = build(source, "c", &["-O2", "-fno-omit-frame-pointer", "-shared", "-fPIC", "-nostartfiles", "-s"]);
        std::fs::read(path).unwrap()
    })
}

/// A word of the stack: anything, a small address, or one that returns behind a call.
#[derive(Clone, Debug)]
enum Word {
    Any(u64),
    Return(prop::sample::Index),
}

fn word() -> impl Strategy<Value = Word> {
    prop_oneof![
        any::<u64>().prop_map(Word::Any),
        (0u64..0x10_0000).prop_map(Word::Any),
        any::<prop::sample::Index>().prop_map(Word::Return),
        any::<prop::sample::Index>().prop_map(Word::Return),
    ]
}

/// Places in the code: of all instructions, and behind calls.
fn places(file: &ObjectFile) -> (Vec<u64>, Vec<u64>) {
    let (at, code) = file.section(".text").unwrap();
    let code = Decoder::with_ip(64, code, at.0, DecoderOptions::NONE).into_iter().collect::<Vec<_>>();
    let calls = code.iter().filter(|i| i.is_call_near() || i.is_call_near_indirect());
    (code.iter().map(|i| i.ip()).collect(), calls.map(|i| i.next_ip()).collect())
}

/// Walks that got somewhere.
static WALKED: AtomicUsize = AtomicUsize::new(0);

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: 8 * default.cases, failure_persistence: None, ..default }
}

#[test]
fn damaged_objects_and_random_stacks() {
    let whole = library();
    let sound = ObjectFile::from_bytes(whole.to_vec(), "library".into()).unwrap();
    let (instructions, returns) = places(&sound);
    let damage = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    let case = (
        damage,
        0u8..3,
        proptest::collection::vec(word(), 1..40),
        any::<prop::sample::Index>(),
        0u64..0x1000,
        any::<bool>(),
    );
    let result = TestRunner::new(config()).run(&case, |(scribbles, what, words, pc, sp, all)| {
        // Damage the unwind tables, the code, or the search table.
        let section = [".eh_frame", ".text", ".eh_frame_hdr"][usize::from(what)];
        let content = sound.section(section).unwrap().1;
        let start = content.as_ptr() as usize - sound.data().as_ptr() as usize;
        let mut bytes = whole.to_vec();
        for (place, byte) in &scribbles {
            bytes[start + place.index(content.len())] = *byte;
        }
        let Ok(file) = ObjectFile::from_bytes(bytes, "damaged".into()) else { return Ok(()) };
        let modules = [Module::new("damaged".into(), Base(0), file)];
        let words = words.iter().map(|word| match word {
            Word::Any(word) => *word,
            Word::Return(at) => *at.get(&returns),
        });
        let stack = Stack(words.collect());
        let mut registers = Registers::from_pc_sp(*pc.get(&instructions), sp * 8);
        if all {
            for column in (0..16).filter(|c| *c != 7) {
                registers
                    .set(Register(column), Some(stack.0[usize::from(column) % stack.0.len()] & 0xf_ffff));
            }
        }
        let mut unwinder = Unwinder::new(&modules, Vec::new()).limit(60);
        let once = unwinder.walk(registers, &stack);
        WALKED.fetch_add(usize::from(!matches!(once, Err(Unreliable::NoCfi { .. }))), Relaxed);
        // What was learnt changes nothing.
        prop_assert_eq!(unwinder.walk(registers, &stack), once);
        Ok(())
    });
    result.unwrap_or_else(|why| panic!("{why}"));
    println!("{} walks", WALKED.load(Relaxed));
    assert!(WALKED.load(Relaxed) > 500, "nearly all places must be described in spite of the damage");
}
