//! What a patch leaves: its memory goes when nothing can come back into it, and not before.

use std::path::PathBuf;
use suture_tests::block::Block;
use suture_tests::command::{apply, disable};
use suture_tests::target::Options;
use suture_tests::{Lab, Target, code, repeat, report, snapshot};

/// Replaces `work` and `name`. What the new `work` returns is no replacement: no transition that leads to another
/// patch waits for threads in it.
const TEXT: &str = "#include <suture.h>\n\
    SUTURE_EXTERN void pause_here(void);\n\
    typedef long op_t(void);\n\
    static long op(void) { pause_here(); return 7; }\n\
    static op_t *new_work(void) { return op; }\n\
    static const char *new_name(void) { return \"new\"; }\n\
    SUTURE_PATCH(\"a\", SUTURE_OBJECT(SUTURE_MAIN,\n\
        SUTURE_FUNC(\"work\", new_work), SUTURE_FUNC(\"name\", new_name)));\n";

struct Scene {
    lab: Lab,
    target: Target,
    a: PathBuf,
}

impl Scene {
    /// `a` is on.
    fn new() -> Self {
        let lab = Lab::new();
        let program = lab.compile_target("leftovers.c", &[]);
        let target = Target::start(&program, &[], Options::default());
        let a = lab.patch("a", TEXT);
        let scene = Self { lab, target, a };
        scene.apply();
        scene
    }

    fn pid(&self) -> i32 {
        self.target.pid()
    }

    fn apply(&self) {
        apply(&self.a, self.pid()).expect(0);
    }

    /// Another patch takes the place of all; gives what the command says.
    fn replace(&self, name: &str) -> serde_json::Value {
        let text = format!(
            "#include <suture.h>\nstatic long new_value(long n) {{ return n + 1000; }}\n\
             SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", new_value)), \
             SUTURE_REPLACE_ALL);\n"
        );
        let applied = report::apply(&self.lab.patch(name, &text), self.pid());
        assert_eq!(applied["finished"], true, "{applied:#}");
        applied
    }

    /// Why images are kept.
    fn kept(&self) -> Vec<String> {
        let status = report::status(self.pid());
        let kept = status["images_kept"].as_array().cloned().unwrap_or_default();
        assert_eq!(status["images_left"], kept.len(), "{status:#}");
        kept.iter().map(|k| k["why"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[track_caller]
    fn assert_kept(&self, why: &str) {
        let kept = self.kept();
        assert!(kept.len() == 1 && kept[0].contains(why), "{kept:?}");
    }
}

#[test]
fn the_image_goes_with_its_patch() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("name"), "name new");
    let disabled = report::disable("a", scene.pid());
    assert_eq!((&disabled["images_unmapped"], &disabled["images_left"]), (&1.into(), &0.into()));
    assert_eq!(scene.target.ask("name"), "name old");
    assert_eq!(scene.kept(), [""; 0]);
    scene.apply();
    assert_eq!(scene.target.ask("name"), "name new");
    assert_eq!(scene.replace("r")["images_unmapped"], 1, "the replaced one's, too");
    assert_eq!(scene.target.ask("name"), "name old");
}

#[test]
fn a_thread_that_sleeps_in_a_helper_keeps_the_image() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("enter"), "inside");
    assert_eq!(scene.replace("r")["images_unmapped"], 0);
    scene.assert_kept("a thread may return into it");
    // Every command tries again.
    assert_eq!(scene.replace("s")["images_unmapped"], 1, "r's own");
    scene.assert_kept("a thread may return into it");
    assert_eq!(scene.target.ask("leave"), "left 7");
    let disabled = report::disable("s", scene.pid());
    assert_eq!((&disabled["images_unmapped"], &disabled["images_left"]), (&2.into(), &0.into()));
    assert_eq!(
        (scene.target.ask("enter").as_str(), scene.target.ask("leave").as_str()),
        ("inside", "left 1")
    );
}

/// The runtime stands in for the loader there, and still has the table of images in hand.
#[test]
fn a_thread_in_the_answers_for_unwinders_keeps_the_image() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("iterate"), "iterating");
    assert_eq!(report::disable("a", scene.pid())["images_unmapped"], 0);
    scene.assert_kept("a thread may return into it");
    assert_eq!(scene.target.ask("leave"), "left 7");
    assert_eq!(scene.replace("r")["images_left"], 0);
}

#[test]
fn a_suspended_coroutine_keeps_the_image() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("co"), "suspended");
    scene.replace("r");
    scene.assert_kept("memory of the program");
    assert_eq!(scene.target.ask("resume"), "left 7");
    assert_eq!(scene.target.ask("wipe"), "wiped");
    assert_eq!(report::disable("r", scene.pid())["images_left"], 0);
}

#[test]
fn what_the_program_has_kept_of_a_patch_keeps_the_image() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("keep"), "kept new");
    disable("a", scene.pid()).expect(0);
    scene.assert_kept("memory of the program");
    assert_eq!(scene.target.ask("show"), "kept new");
    assert_eq!(scene.target.ask("drop"), "dropped");
    assert_eq!(scene.replace("r")["images_left"], 0);
}

#[test]
fn old_return_addresses_in_a_live_frame_keep_nothing() {
    let mut scene = Scene::new();
    assert_eq!(scene.target.ask("sit"), "sitting");
    let disabled = report::disable("a", scene.pid());
    assert_eq!(
        (&disabled["finished"], &disabled["images_unmapped"]),
        (&true.into(), &1.into()),
        "{disabled:#}"
    );
    // Any line wakes it.
    scene.target.tell("up");
    assert_eq!(scene.target.ask("name"), "name old");
}

/// Mappings and KiB of private writable memory of a process, in all and of the records of threads. New records come
/// with new numbers of threads, whoever the kernel gives those between.
fn size(pid: i32) -> (usize, u64, u64) {
    let records = Block::of(pid).records_len() >> 10;
    (code::maps(pid).regions.len(), snapshot::status_number(pid, "VmData"), records)
}

#[test]
fn cycles_leave_no_more_than_one() {
    let mut scene = Scene::new();
    let pid = scene.pid();
    disable("a", pid).expect(0);
    let mut sizes = Vec::new();
    for _ in 0..repeat(8, 1000) {
        scene.apply();
        assert_eq!(scene.target.ask("name"), "name new");
        disable("a", pid).expect(0);
        assert_eq!(scene.target.ask("name"), "name old");
        sizes.push(size(pid));
    }
    let ((mappings, memory, records), last) = (sizes[2], sizes[sizes.len() - 1]);
    // More records make longer lists, so that the arena may grow with them, but only then.
    let more = last.2 - records;
    let most = if more == 0 { memory } else { memory + more + 256 + last.2 };
    assert!((memory..=most).contains(&last.1), "{sizes:?}");
    // What grows comes in pieces of at least that size.
    assert!((mappings..=mappings + (last.1 - memory) as usize / 64).contains(&last.0), "{sizes:?}");
}

#[test]
fn a_thread_that_always_runs_keeps_few_images() {
    let mut scene = Scene::new();
    let pid = scene.pid();
    disable("a", pid).expect(0);
    assert_eq!(scene.target.ask("spin"), "spinning");
    let mut most = 0;
    for _ in 0..12 {
        scene.apply();
        let disabled = report::disable("a", pid);
        most = most.max(disabled["images_left"].as_u64().unwrap_or(0));
    }
    assert!(scene.kept().iter().all(|why| why.contains("a thread that runs")), "{:?}", scene.kept());
    assert!((1..=8).contains(&most), "{most} images were left at a time");
}
