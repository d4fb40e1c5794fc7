use super::*;
use crate::height::Heights;
use proptest::prelude::*;
use std::path::Path;
use suture_elf::{Addr, Base, MapsSnapshot, Memory, MemoryError, ObjectFile};

fn open(path: &str) -> Option<Module> {
    let file = ObjectFile::open(Path::new(path)).ok()?;
    Some(Module::new(path.to_owned(), Base(0), file))
}

fn starts(module: &Module) -> Vec<Vaddr> {
    suture_elf::Frames::new(module.file().unwrap()).starts().collect()
}

/// Compilers describe frames without a frame pointer by `rsp`: there the description is the height. It is
/// not believed here, only compared with: all of the code of Debian's binaries is the test.
#[test]
fn heights_are_what_call_frame_information_says() {
    for (path, hand_written) in [
        ("/usr/bin/redis-server", 0),
        ("/usr/sbin/nginx", 0),
        ("/usr/bin/python3", 0),
        // Multiplication loops whose descriptions do not mention that they push.
        ("/lib/x86_64-linux-gnu/libc.so.6", 200),
    ] {
        let Some(module) = open(path) else {
            println!("not compared: there is no {path}");
            continue;
        };
        let rows = Rows::disbelieved(&module);
        let entry = module.file().unwrap().entry();
        let (mut same, mut other, mut unknown) = (0, Vec::new(), 0);
        for start in starts(&module).into_iter().filter(|start| rows.is_entered_by_call(*start)) {
            // The process starts with no return address on its stack.
            if start == entry {
                continue;
            }
            for reached in &Region::follow(&module, &rows, start, None).reached {
                let Some(frame) = rows.frame_at(reached.at) else { continue };
                let cfa = frame.stretches.at(reached.at).and_then(|s| s.cfa);
                let Some((Register::RSP, offset)) = cfa.filter(|_| frame.stretches.frame.start == start)
                else {
                    continue;
                };
                match reached.sp {
                    Value::Cfa(found) if found == -offset => same += 1,
                    Value::Cfa(found) => other.push((reached.at, found, offset)),
                    _ => unknown += 1,
                }
            }
        }
        println!("{path}: {same} heights agree, {} do not, {unknown} are not known", other.len());
        assert!(other.len() <= hand_written, "{path}: {:x?}", &other[..other.len().min(20)]);
        assert!(same > 100_000 && unknown < same / 500, "{path}: {unknown} of {same} are not known");
    }
}

/// mariadbd is built with frame pointers: at how many of its calls is the height known?
#[test]
fn heights_at_calls_of_code_with_frame_pointers() {
    let Some(module) = open("/usr/sbin/mariadbd") else {
        return println!("not counted: mariadbd is not installed");
    };
    // All of it takes a minute in an unoptimised build.
    let every = if std::env::var_os("SUTURE_LONG").is_some() { 1 } else { 40 };
    let rows = Rows::of(&module);
    let mut heights = Heights::default();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for start in starts(&module).into_iter().step_by(every) {
        let Some(frame) = rows.frame_at(start) else { continue };
        let range = frame.stretches.frame.clone();
        for insn in crate::facts::decode(&module, start, 100_000).take_while(|i| i.ip() < range.end.0) {
            let cfa = frame.stretches.at(Vaddr(insn.ip())).and_then(|s| s.cfa);
            if is_call(&insn) && !matches!(cfa, Some((Register::RSP, _))) {
                let height = heights.at(&module, &range, Place::Call(Vaddr(insn.next_ip())));
                let key = height.map_or_else(|why| why.to_string(), |_| "known".to_owned());
                *counts.entry(key).or_default() += 1;
            }
        }
    }
    println!("{counts:?}");
    let all: usize = counts.values().sum();
    assert!(counts["known"] * 100 > all * 95, "{counts:?}");
}

/// Code at address 0x1000, and nothing else.
struct Code(Vec<u8>);

impl Memory for Code {
    fn read(&self, addr: Addr, buf: &mut [u8]) -> Result<(), MemoryError> {
        let at = (addr.0 - 0x1000) as usize;
        buf.copy_from_slice(&self.0[at..at + buf.len()]);
        Ok(())
    }
}

fn bare(code: &[u8]) -> (Module, Range<Vaddr>) {
    let maps = format!("1000-{:x} r-xp 00000000 00:00 0\n", 0x1000 + code.len());
    let maps = MapsSnapshot::parse(&maps).unwrap();
    let range = 0x1000..0x1000 + code.len() as u64;
    let memory = Code(code.to_vec());
    let module = Module::image_in_memory("code".into(), Base(0), &range, Addr(0), &maps, &memory).unwrap();
    (module, Vaddr(range.start)..Vaddr(range.end))
}

fn height(code: &[u8], at: u64) -> Result<i64, NoHeight> {
    let (module, range) = bare(code);
    Heights::default().without_cfi(&module, &range, Place::Before(Vaddr(0x1000 + at)))
}

#[test]
fn everything_that_moves_the_stack_pointer() {
    let ret = 0xc3;
    // push rbx; push 1; sub rsp,0x20; lea rsp,[rsp-8]; add rsp,0x28; pop rax; pop rbx; ret
    let plain = [0x53, 0x6a, 1, 0x48, 0x83, 0xec, 0x20, 0x48, 0x8d, 0x64, 0x24, 0xf8, 0x48, 0x83, 0xc4, 0x28];
    let plain = [&plain[..], &[0x58, 0x5b, ret]].concat();
    for (at, expected) in [(0, 8), (1, 16), (3, 24), (7, 56), (12, 64), (16, 24), (17, 16), (18, 8)] {
        assert_eq!(height(&plain, at), Ok(expected), "at {at}");
    }
    // enter 0x20,0; push rax; leave; ret
    let enter = [0xc8, 0x20, 0, 0, 0x50, 0xc9, ret];
    assert_eq!([4, 5, 6].map(|at| height(&enter, at)), [Ok(0x30), Ok(0x38), Ok(8)]);
    // mov r11,rsp; sub rsp,rdi; mov rsp,r11; ret
    let kept = [0x49, 0x89, 0xe3, 0x48, 0x29, 0xfc, 0x4c, 0x89, 0xdc, ret];
    assert_eq!([3, 6, 9].map(|at| height(&kept, at)), [Ok(8), Err(NoHeight::Dynamic), Ok(8)]);
    // mov eax,0x12340; sub rsp,rax; ret
    let large = [0xb8, 0x40, 0x23, 1, 0, 0x48, 0x29, 0xc4, ret];
    assert_eq!(height(&large, 8), Ok(0x12348));
    // and rsp,-16; pop rsp; xchg rsp,rax
    assert_eq!(height(&[0x48, 0x83, 0xe4, 0xf0, ret], 4), Err(NoHeight::Aligned));
    assert_eq!(height(&[0x5c, ret], 1), Err(NoHeight::Dynamic));
    assert_eq!(height(&[0x48, 0x94, ret], 2), Err(NoHeight::Dynamic));
    // pushw 1: two bytes
    assert_eq!(height(&[0x66, 0x6a, 1, ret], 3), Ok(10));
}

#[test]
fn ways_that_meet() {
    // je +1; push rax; ret: two heights
    let meet = [0x74, 1, 0x50, 0xc3];
    assert_eq!(height(&meet, 3), Err(NoHeight::Conflict));
    assert_eq!(height(&meet, 2), Ok(8));
    // push rax; je +0; ret: one
    assert_eq!(height(&[0x50, 0x74, 0, 0xc3], 3), Ok(16));
    // jmp over something that nobody reaches
    assert_eq!(height(&[0xeb, 1, 0x90, 0xc3], 2), Err(NoHeight::Unreached));
    // Probing a large frame: lea r11,[rsp-0x4000]; 1: sub rsp,0x1000; or qword [rsp],0; cmp rsp,r11; jne 1b
    let probe = [
        0x4c, 0x8d, 0x9c, 0x24, 0, 0xc0, 0xff, 0xff, 0x48, 0x81, 0xec, 0, 0x10, 0, 0, 0x48, 0x83, 0x0c, 0x24,
        0, 0x4c, 0x39, 0xdc, 0x75, 0xef, 0xc3,
    ];
    assert_eq!(height(&probe, 25), Ok(0x4008));
    assert_eq!(height(&probe, 15), Err(NoHeight::Conflict));
    // The same with the jump the other way round: je 2f; jmp 1b; 2: ret
    let mut other = probe[..23].to_vec();
    other.extend([0x74, 2, 0xeb, 0xed, 0xc3]);
    assert_eq!(height(&other, 27), Ok(0x4008));
}

proptest! {
    /// Any bytes are followed to an end.
    #[test]
    fn any_bytes_are_followed(code in proptest::collection::vec(any::<u8>(), 1..400), at in 0u64..400) {
        let _ = height(&code, at);
    }

    /// The same for bytes that move the stack pointer and jump about.
    #[test]
    fn likely_bytes_are_followed(
        pieces in proptest::collection::vec(prop_oneof![
            Just(vec![0x50]), Just(vec![0x5b]), Just(vec![0xc9]), Just(vec![0x48, 0x83, 0xec, 8]),
            Just(vec![0x48, 0x89, 0xe5]), Just(vec![0x48, 0x89, 0xec]), Just(vec![0x48, 0x29, 0xc4]),
            any::<i8>().prop_map(|d| vec![0x75, d as u8]), any::<i8>().prop_map(|d| vec![0xeb, d as u8]),
            any::<i8>().prop_map(|d| vec![0xe8, d as u8, 0, 0, 0]), Just(vec![0x48, 0x39, 0xc4]),
            Just(vec![0x48, 0x8d, 5, 0, 0, 0, 0]), Just(vec![0x48, 0x63, 4, 0x90]), Just(vec![0xff, 0xe0]),
        ], 1..120),
        at in 0u64..300,
    ) {
        let _ = height(&pieces.concat(), at);
    }
}
