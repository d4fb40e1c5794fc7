//! Patch files that are no patches, or not for this process: refused, and the process untouched.

use std::fs;
use std::path::{Path, PathBuf};
use suture_tests::command::{apply, suture};
use suture_tests::dist::root;
use suture_tests::lab::{compile, replacing};
use suture_tests::random::Random;
use suture_tests::{Lab, Snapshot, Target, repeat};

/// A target and what it looked like.
struct Victim {
    target: Target,
    before: Snapshot,
}

impl Victim {
    fn new(lab: &Lab) -> Self {
        let target = lab.start_several();
        let before = Snapshot::of(target.pid());
        Self { target, before }
    }

    /// The patch is refused with all of `words` and with what to do, and nothing has happened.
    #[track_caller]
    fn refuses(&mut self, patch: &Path, words: &[&str]) {
        let refused = apply(patch, self.target.pid());
        let said = &refused.expect_refused(words).stderr;
        // On a line of its own, or as the end of the message.
        let advice =
            ["\n  try: ", "; did you mean", "; name ", "; compile ", "; write ", " Use ", " Initialise "];
        assert!(advice.iter().any(|a| said.contains(a)), "it does not say what to do: {said}");
        Snapshot::of(self.target.pid()).assert_untouched(&self.before);
        assert_eq!(self.target.call(1), 2);
    }
}

/// A good patch's bytes.
fn good(lab: &Lab) -> Vec<u8> {
    fs::read(lab.value_patch("good", 100)).expect("the patch just compiled")
}

/// Offset in a patch file of the bytes of its descriptor.
fn descriptor(file: &[u8]) -> usize {
    let object = suture_elf::ObjectFile::from_bytes(file.to_vec(), "good.so".into()).expect("a good patch");
    let symbol = object.symbols().named("suture_patch").next().expect("a descriptor").addr;
    let segment = object.segments().iter().find(|s| s.backs(symbol)).expect("a segment").to_owned();
    usize::try_from(symbol.0 - segment.addr.0 + segment.offset).expect("an offset")
}

#[test]
fn files_that_are_no_patch() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    victim.refuses(&lab.path("nowhere.so"), &["nowhere.so", "No such file"]);
    victim.refuses(&lab.path(""), &[]);
    victim.refuses(&lab.write("empty.so", ""), &["empty.so"]);
    victim.refuses(&lab.write("text.so", "not an object\n"), &["text.so"]);
    let mut noise = 1u32;
    let mut random = || {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        noise.to_be_bytes()[0]
    };
    let bytes: Vec<u8> = (0..20_000).map(|_| random()).collect();
    victim.refuses(&lab.write("random.so", bytes), &["random.so"]);
    victim.refuses(Path::new("/dev/null"), &["/dev/null"]);
    let other = lab.write("other.c", "int f(void) { return 1; }\n");
    let library = lab.path("other.so");
    compile(&other, &library, &["-shared", "-fPIC"]);
    victim.refuses(&library, &["suture_patch"]);
}

#[test]
fn truncated_files_at_every_scale() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let whole = good(&lab);
    for length in [1, 4, 16, 63, 64, 100, 300, 1000, whole.len() / 4, whole.len() / 2] {
        let file = lab.write("short.so", &whole[..length]);
        victim.refuses(&file, &[]);
    }
}

#[test]
fn a_patch_for_another_processor() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let mut file = good(&lab);
    // e_machine: EM_AARCH64.
    file[18..20].copy_from_slice(&183u16.to_le_bytes());
    victim.refuses(&lab.write("arm.so", &file), &["arm.so", "aarch64"]);
    // e_ident[EI_CLASS]: 32 bit.
    let mut file = good(&lab);
    file[4] = 1;
    victim.refuses(&lab.write("narrow.so", &file), &["narrow.so"]);
    // e_ident[EI_DATA]: big endian.
    let mut file = good(&lab);
    file[5] = 2;
    victim.refuses(&lab.write("big.so", &file), &["big.so"]);
}

#[test]
fn a_patch_of_another_abi() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let mut file = good(&lab);
    let at = descriptor(&file);
    assert_eq!(file[at..at + 4], suture_abi::DESCRIPTOR_VERSION.to_le_bytes());
    file[at..at + 4].copy_from_slice(&99u32.to_le_bytes());
    victim.refuses(
        &lab.write("future.so", &file),
        &["version 99", &format!("knows {}", suture_abi::DESCRIPTOR_VERSION)],
    );
}

#[test]
fn a_patch_for_another_build() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let id = "00112233445566778899aabbccddeeff00112233";
    let text = replacing("other-build", "value", "return n;")
        .replace("SUTURE_OBJECT(SUTURE_MAIN", &format!("SUTURE_OBJECT_ID(SUTURE_MAIN, \"{id}\""));
    victim.refuses(&lab.patch("other-build", &text), &["build-id", id]);

    let own = suture_elf::ObjectFile::open(victim.target.program()).expect("the target's file");
    let own = own.build_id().expect("a build-id").to_string();
    let same = lab.patch("same-build", &text.replace(id, &own).replace("other-build", "same-build"));
    apply(&same, victim.target.pid()).expect(0);
}

#[test]
fn functions_that_are_not_there_or_not_one() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let patch = |name: &str, function: &str| lab.patch(name, &replacing(name, function, "return n;"));
    victim.refuses(&patch("unknown", "alpa"), &["`alpa`", "did you mean", "alpha"]);
    victim.refuses(&patch("ambiguous", "twin"), &["twin", "2"]);
    victim.refuses(&patch("short", "tiny"), &["tiny"]);
    victim.refuses(&patch("data", "ten"), &["ten"]);
    let at = |position: u32| {
        let text = replacing("at", "twin", "return n;");
        text.replace("SUTURE_FUNC(\"twin\"", &format!("SUTURE_FUNC_AT(\"twin\", {position}"))
    };
    victim.refuses(&lab.patch("at", &at(3)), &["twin", "3"]);
}

#[test]
fn a_function_named_twice() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let text = "\
        #include <suture.h>\n\
        static long a(long n) { return n; }\n\
        static long b(long n) { return n + 1; }\n\
        SUTURE_PATCH(\"double\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", a), SUTURE_FUNC(\"value\", b)));\n";
    victim.refuses(&lab.patch("double", text), &["value", "twice"]);
}

#[test]
fn what_the_linker_of_patches_does_not_take() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let with = |name: &str, declaration: &str, body: &str| {
        let text =
            replacing(name, "value", body).replace("static long", &format!("{declaration}\nstatic long"));
        lab.patch_with(name, &text, &["-Wl,-z,undefs"])
    };
    let missing = with("missing", "SUTURE_EXTERN long no_such_thing(long n);", "return no_such_thing(n);");
    victim.refuses(&missing, &["no_such_thing"]);
    let tls = with("own-tls", "static __thread long count;", "return n + ++count;");
    victim.refuses(&tls, &["thread-local"]);
    let constructor = with(
        "constructor",
        "static long k; __attribute__((constructor)) static void set(void) { k = 9; }",
        "return n + k;",
    );
    victim.refuses(&constructor, &["constructor"]);
}

#[test]
fn names_that_are_no_names() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let long = "x".repeat(56);
    for (file, name) in [("none", ""), ("space", "a b"), ("long", long.as_str())] {
        let text = replacing(name, "value", "return n;");
        victim.refuses(&lab.patch(file, &text), &["name"]);
    }
    // What would move the cursor of a terminal, or write a line of its own.
    for (file, name) in [("escape", "al\\033[2Jpha"), ("line", "al\\nsuture: done"), ("bytes", "al\\377pha")]
    {
        let text = replacing(file, name, "return n;");
        victim.refuses(&lab.patch(file, &text), &["the name of function 1", "is no text"]);
    }
    // Letters of other scripts are letters.
    victim.refuses(&lab.patch("letters", &replacing("letters", "größe", "return n;")), &["`größe`"]);
}

#[test]
fn a_patch_that_others_may_write_is_not_taken_from_root() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let patch = lab.value_patch("open", 100);
    fs::set_permissions(&patch, fs::Permissions::from_mode(0o777)).expect("chmod");
    victim.refuses(&patch, &["open.so", "writ"]);
}

/// The changes made to a good file, by round: bytes overwritten in the headers, in the descriptor
/// and its tables, or anywhere.
fn scribble(file: &mut [u8], round: usize, descriptor: usize) -> String {
    let mut numbers = Random::new((round as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut random = |below: usize| usize::try_from(numbers.number() >> 11).unwrap_or(0) % below;
    let mut done = String::new();
    for _ in 0..1 + random(4) {
        let at = match round % 4 {
            0 => random(64 + 56 * 12),
            1 => (descriptor + random(48)).min(file.len() - 1),
            2 => (descriptor.saturating_sub(512) + random(1024)).min(file.len() - 1),
            _ => random(file.len()),
        };
        let value = [0, 1, 0x7f, 0x80, 0xff, random(256).to_le_bytes()[0]][random(6)];
        done += &format!(" [{at:#x}] = {value:#x}");
        file[at] = value;
    }
    done
}

#[test]
fn fuzzed_files_never_make_the_command_or_the_target_fail() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let whole = good(&lab);
    let descriptor = descriptor(&whole);
    let pid = victim.target.pid_text();
    let mut refused = 0;
    for round in 0..repeat(300, 3000) {
        let mut file = whole.clone();
        let what = scribble(&mut file, round, descriptor);
        let patch: PathBuf = lab.write("fuzzed.so", &file);
        let done = suture(&["check", &patch.to_string_lossy(), "--pid", &pid]);
        let code = done.status.code();
        assert!(matches!(code, Some(0 | 1)), "round {round}{what}: {} {}", done.status, done.stderr);
        assert!(!done.stderr.contains("panicked"), "round {round}{what}: {}", done.stderr);
        assert_eq!(
            code == Some(1),
            done.stderr.starts_with("suture: "),
            "round {round}{what}: {}",
            done.stderr
        );
        refused += usize::from(code == Some(1));
    }
    assert!(refused > 50, "only {refused} of the scribbled files were refused: are they scribbled?");
    assert!(victim.target.alive());
    Snapshot::of(victim.target.pid()).assert_untouched(&victim.before);
    assert_eq!(victim.target.call(1), 2);
}

#[test]
fn patches_of_other_programs_are_refused_by_name() {
    let lab = Lab::new();
    let mut victim = Victim::new(&lab);
    let redis = lab.patch_file(&root().join("samples/redis-ping.c"), "redis-ping");
    victim.refuses(&redis, &["pingCommand"]);
}
