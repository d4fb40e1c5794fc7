//! One patch, several patches, their order, and what the command reports of them.

use std::process::{Command, Stdio};
use suture_tests::code::{self, Change};
use suture_tests::command::{apply, disable, suture};
use suture_tests::lab::{replacing, replacing_all};
use suture_tests::target::Options;
use suture_tests::{Lab, Snapshot, Target, need, poll, report};

/// Changes of a target's code inside its function `value`.
fn changes_in_value(target: &Target) -> Vec<Change> {
    let start = code::file_offset(target.program(), "value");
    let range = start..start + target.file_entry("value").len() as u64;
    let mut changes = code::changes(target.pid());
    changes.retain(|c| target.program().to_str() == Some(&c.file) && range.contains(&c.offset));
    changes
}

#[test]
fn a_patch_comes_and_goes() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["12", "1"]);
    let patch = lab.value_patch("fix", 100);
    let before = Snapshot::of(target.pid());
    assert_eq!(before.code, [], "the preload alone changes no code");
    assert_eq!(target.call(1), 2);

    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    assert_ne!(target.entry("value"), target.file_entry("value"));
    let news = |target: &mut Target| Target::number(&target.ask("calls"), "new");
    poll::until_true("the working thread to run new code", || news(&mut target) > 0);
    Snapshot::of(target.pid()).assert_same_program(&before);

    disable("fix", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"), "entry bytes are the file's again");
    assert_eq!(changes_in_value(&target), [], "the whole function is the file's again");
    Snapshot::of(target.pid()).assert_same_program(&before);
    assert_eq!(target.ask("early"), "early 0", "a wait was cut short");
    assert!(target.finish().success());
}

#[test]
fn a_disabled_patch_can_be_applied_again() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    for _ in 0..20 {
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.call(1), 101);
        disable("fix", target.pid()).expect(0);
        assert_eq!(target.call(1), 2);
        assert_eq!(target.entry("value"), target.file_entry("value"));
    }
}

#[test]
fn one_thread_is_stopped_and_the_rest_never() {
    let lab = Lab::new();
    let mut target = lab.start("threads.c", &["24", "2"]);
    let patch = lab.value_patch("fix", 100);
    for _ in 0..5 {
        let applied = report::apply(&patch, target.pid());
        assert_eq!(applied["stops"], 1, "{applied:#}");
        assert!(applied["held_us"].as_u64().is_some(), "{applied:#}");
        let disabled = report::disable("fix", target.pid());
        assert_eq!(disabled["stops"], 1, "{disabled:#}");
        assert!(disabled["held_us"].as_u64().is_some(), "{disabled:#}");
    }
    assert_eq!(target.ask("early"), "early 0");
}

#[test]
fn two_patches_of_different_functions_do_not_disturb_each_other() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let a = lab.patch("a", &replacing("a", "alpha", "return n + 100;"));
    let b = lab.patch("b", &replacing("b", "beta", "return n + 200;"));
    apply(&a, target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 101 21 31");
    apply(&b, target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 101 201 31");
    disable("b", target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 101 21 31");
    disable("a", target.pid()).expect(0);
    assert_eq!(target.ask("all 1"), "all 11 21 31");
}

#[test]
fn the_youngest_patch_of_a_function_wins_until_it_goes() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let (a, b) = (lab.value_patch("a", 100), lab.value_patch("b", 200));
    apply(&a, target.pid()).expect(0);
    let armed = target.entry("value");
    apply(&b, target.pid()).expect(0);
    assert_eq!(target.call(1), 201);
    assert_eq!(target.entry("value"), armed, "one redirection serves both");
    assert_eq!(report::patches(target.pid()), ["a", "b"]);
    disable("b", target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    disable("a", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"));
}

#[test]
fn a_patch_in_the_middle_goes_first_without_being_noticed() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patches = [("a", 100), ("b", 200), ("c", 300)].map(|(name, plus)| lab.value_patch(name, plus));
    patches.iter().for_each(|p| _ = apply(p, target.pid()).expect(0));
    assert_eq!(target.call(1), 301);
    disable("b", target.pid()).expect(0);
    assert_eq!(target.call(1), 301);
    disable("a", target.pid()).expect(0);
    assert_eq!(target.call(1), 301);
    assert_eq!(report::patches(target.pid()), ["c"]);
    disable("c", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
    assert_eq!(target.entry("value"), target.file_entry("value"));
}

#[test]
fn a_patch_that_is_there_is_refused_and_one_that_is_gone_too() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.value_patch("fix", 100);
    apply(&patch, target.pid()).expect(0);
    let patched = Snapshot::of(target.pid());
    apply(&patch, target.pid()).expect_refused_with_hint(&["fix", "already enabled"]);
    Snapshot::of(target.pid()).assert_untouched(&patched);
    assert_eq!(target.call(1), 101);

    disable("fix", target.pid()).expect(0);
    let after = Snapshot::of(target.pid());
    disable("fix", target.pid()).expect_refused_with_hint(&["fix", "not enabled"]);
    Snapshot::of(target.pid()).assert_untouched(&after);
    assert_eq!(target.call(1), 2);
}

#[test]
fn the_old_function_stays_callable() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.patch(
        "wrap",
        "#include <suture.h>\n\
         SUTURE_OLD(long, old_value, (long n));\n\
         static long wrapped(long n) { return old_value(n) * 1000; }\n\
         SUTURE_PATCH(\"wrap\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_OLD(\"value\", wrapped, old_value)));\n",
    );
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 2000);
    disable("wrap", target.pid()).expect(0);
    assert_eq!(target.call(1), 2);
}

#[test]
fn a_patch_uses_the_programs_private_functions_and_data() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.patch(
        "uses",
        "#include <suture.h>\n\
         SUTURE_EXTERN volatile long ten;\n\
         SUTURE_EXTERN long beta(long n);\n\
         static int calls;\n\
         static long patched(long n) { return beta(n) * 1000 + ten + 0 * ++calls; }\n\
         SUTURE_PATCH(\"uses\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", patched)));\n",
    );
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 21_010);
}

#[test]
fn one_of_two_functions_of_a_name_is_picked_by_position() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = |position: u32| {
        let name = format!("twin-{position}");
        let text = format!(
            "#include <suture.h>\nstatic long patched(long n) {{ return n + {position}00; }}\n\
             SUTURE_PATCH(\"{name}\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC_AT(\"twin\", {position}, patched)));\n"
        );
        lab.patch(&name, &text)
    };
    apply(&patch(1), target.pid()).expect(0);
    assert_eq!(target.ask("twins 1"), "twins 101 3");
    apply(&patch(2), target.pid()).expect(0);
    assert_eq!(target.ask("twins 1"), "twins 101 201");
}

#[test]
fn a_function_of_a_library_is_patched() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    // A function that nothing else in the target calls, so that only the patch's own call shows.
    let patch = lab.patch(
        "library",
        "#include <suture.h>\n\
         SUTURE_EXTERN void *memfrob(void *text, unsigned long length);\n\
         static void *patched(void *text, unsigned long length)\n\
         { char *c = text; while (length--) *c++ = '!'; return text; }\n\
         static long caller(long n)\n\
         { char text[4] = \"abc\"; memfrob(text, 3); return n + text[0] + text[1] + text[2]; }\n\
         SUTURE_PATCH(\"library\",\n\
             SUTURE_OBJECT(\"libc.so.6\", SUTURE_FUNC(\"memfrob\", patched)),\n\
             SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", caller)));\n",
    );
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(0), i64::from(b'!') * 3);
    disable("library", target.pid()).expect(0);
    assert_eq!(target.call(0), 1);
}

/// Libcrypto of a running program that was not made for this: Python's ssl module.
#[test]
fn a_function_of_libcrypto_is_replaced_in_a_running_python() {
    need("python3", "python3");
    let lab = Lab::new();
    let patch = lab.patch(
        "seed",
        "#include <suture.h>\n\
         static int patched(void) { return 0; }\n\
         SUTURE_PATCH(\"seed\", SUTURE_OBJECT(\"libcrypto.so.3\", SUTURE_FUNC(\"RAND_status\", patched)));\n",
    );
    for preload in [true, false] {
        let mut python = Command::new("/usr/bin/python3");
        let script = "import ssl, sys\nfor line in sys.stdin: print(ssl.RAND_status(), flush=True)";
        python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let options = Options { preload, ..Options::default() };
        let mut target = Target::spawn(python, "/usr/bin/python3".as_ref(), options);
        assert_eq!(target.ask("seeded?"), "True");
        apply(&patch, target.pid()).expect(0);
        assert_eq!(target.ask("seeded?"), "False", "preload: {preload}");
        disable("seed", target.pid()).expect(0);
        assert_eq!(target.ask("seeded?"), "True", "preload: {preload}");
    }
}

#[test]
fn an_object_that_is_not_loaded_is_reported_and_the_rest_patched() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.patch(
        "absent",
        "#include <suture.h>\n\
         static long patched(long n) { return n + 100; }\n\
         SUTURE_PATCH(\"absent\", SUTURE_OBJECT(\"libnowhere.so.7\", SUTURE_FUNC(\"f\", patched)),\n\
             SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"value\", patched)));\n",
    );
    apply(&patch, target.pid()).expect(0);
    assert_eq!(target.call(1), 101);
    let status = report::status(target.pid());
    assert_eq!(status["patches"][0]["objects_absent"][0], "libnowhere.so.7", "{status:#}");
}

#[test]
fn a_process_that_maps_none_of_the_objects_is_skipped_by_name_and_not_by_pid() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let patch = lab.patch(
        "elsewhere",
        "#include <suture.h>\n\
         static long patched(long n) { return n + 100; }\n\
         SUTURE_PATCH(\"elsewhere\", SUTURE_OBJECT(\"libnowhere.so.7\", SUTURE_FUNC(\"f\", patched)));\n",
    );
    let file = patch.to_string_lossy().into_owned();
    let before = Snapshot::of(target.pid());
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", target.pid())).unwrap();
    let document = suture(&["apply", &file, "--name", comm.trim(), "--json"]).expect(0).json();
    let rows = document["results"].as_array().unwrap();
    let row = rows.iter().find(|row| row["pid"] == target.pid()).unwrap();
    assert_eq!(row["result"], "skipped", "{document:#}");
    Snapshot::of(target.pid()).assert_untouched(&before);
    apply(&patch, target.pid()).expect(0);
    assert_eq!(report::status(target.pid())["patches"][0]["objects_absent"][0], "libnowhere.so.7");
    assert_eq!(target.call(1), 2);
}

#[test]
fn json_documents_have_what_schema_1_promises() {
    let lab = Lab::new();
    let target = lab.start_several();
    let patch = lab.patch("three", &replacing_all("three", &["alpha", "beta", "gamma"]));
    let pid = target.pid_text();
    let file = patch.to_string_lossy().into_owned();

    let document = suture(&["apply", &file, "--pid", &pid, "--json"]).expect(0).json();
    assert_eq!((&document["schema"], &document["command"]), (&1.into(), &"apply".into()));
    let row = &document["results"][0];
    assert_eq!(
        (&row["pid"], &row["comm"], &row["result"]),
        (&target.pid().into(), &"several".into(), &"done".into())
    );

    let status = report::status(target.pid());
    assert_eq!(status["pid"], target.pid());
    assert_eq!(status["comm"], "several");
    assert_eq!(status["threads"], 2);
    assert_eq!(status["worker"], false);
    assert_eq!(status["sites_lost"], 0);
    let patch_row = &status["patches"][0];
    assert_eq!(patch_row["name"], "three");
    assert_eq!(patch_row["stack_order"], 1);
    assert_eq!(patch_row["enabled"], true);
    assert_eq!(patch_row["file"], file.as_str());
    assert!(patch_row["since_ns"].as_u64().is_some_and(|ns| ns > 0), "{patch_row:#}");
    let names = ["alpha", "beta", "gamma"];
    for (i, name) in names.iter().enumerate() {
        let function = &patch_row["functions"][i];
        assert_eq!(function["name"], *name);
        assert_eq!(function["object"], "main");
        assert_eq!(function["site"], "armed");
        assert!("PSAJW".contains(function["class"].as_str().unwrap_or("?")), "{function:#}");
        assert_eq!(function["old"].as_u64(), Some(code::address(target.pid(), target.program(), name)));
    }

    let again = suture(&["apply", &file, "--pid", &pid, "--json"]).expect(1).json();
    let error = &again["results"][0]["error"];
    assert_eq!(again["results"][0]["result"], "failed");
    assert_eq!(error["errno"], "EINVAL", "{error:#}");
    assert!(error["message"].as_str().is_some_and(|m| m.contains("three")), "{error:#}");

    let log = suture(&["log", "--pid", &pid, "--json"]).expect(0).json();
    assert!(log["events"].as_array().is_some_and(|e| !e.is_empty()), "{log:#}");
}

#[test]
fn several_processes_are_patched_by_one_command() {
    let lab = Lab::new();
    let program = lab.compile_target("spin.c", &[]);
    // A name that no process of another test has.
    let named = lab.path(&format!("one{}", std::process::id()));
    std::fs::rename(program, &named).expect("renaming the target");
    let start = || Target::start(&named, &["1"], suture_tests::target::Options::default());
    let mut targets = [start(), start(), start()];
    let patch = lab.value_patch("fix", 100).to_string_lossy().into_owned();
    let name = named.file_name().and_then(|n| n.to_str()).expect("a plain name");
    let document = suture(&["apply", &patch, "--name", name, "--json"]).expect(0).json();
    assert_eq!(document["results"].as_array().map(Vec::len), Some(3), "{document:#}");
    targets.iter_mut().for_each(|t| assert_eq!(t.call(1), 101));

    // One process has it already and one is not there: some failed.
    let fresh = start();
    let pids = [targets[0].pid_text(), fresh.pid_text()];
    suture(&["apply", &patch, "--pid", &pids[0], &pids[1]]).expect(4);
    assert_eq!(report::patches(fresh.pid()), ["fix"]);
    // With --name who has it is skipped.
    let document = suture(&["apply", &patch, "--name", name, "--json"]).expect(0).json();
    let results: Vec<_> =
        document["results"].as_array().into_iter().flatten().map(|r| r["result"].clone()).collect();
    assert_eq!(results, ["skipped"; 4], "{document:#}");
    suture(&["disable", "fix", "--name", name]).expect(0);
    targets.iter_mut().for_each(|t| assert_eq!(t.call(1), 2));
}

#[test]
fn check_and_info_say_what_would_happen_and_change_nothing() {
    let lab = Lab::new();
    let mut target = lab.start_several();
    let good = lab.patch("good", &replacing_all("good", &["alpha", "beta"]));
    let bad = lab.patch("bad", &replacing_all("bad", &["alpha", "tiny"]));
    let before = Snapshot::of(target.pid());
    let pid = target.pid_text();
    suture(&["check", &good.to_string_lossy(), "--pid", &pid]).expect(0);
    suture(&["check", &bad.to_string_lossy(), "--pid", &pid]).expect_refused(&["tiny"]);
    let info = suture(&["info", &good.to_string_lossy()]);
    info.expect(0);
    ["good", "alpha", "beta"].iter().for_each(|w| assert!(info.stdout.contains(w), "{}", info.stdout));
    Snapshot::of(target.pid()).assert_untouched(&before);
    assert_eq!(target.ask("all 1"), "all 11 21 31");
}
