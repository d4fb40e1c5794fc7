//! What patches read of the tree of attributes, path by path beside what the command shows of it.

use serde_json::Value;
use std::fs;
use suture_tests::callbacks::{PLAIN, Patch, begin, both};
use suture_tests::command::{apply, disable, get, run, set};
use suture_tests::report::{await_end, details};
use suture_tests::{Lab, Target, poll};

/// What was read at one path: as a number, and as a text with its length.
#[derive(Clone, Debug, PartialEq)]
struct Read {
    number: i64,
    length: i64,
    text: String,
}

impl Read {
    /// The same refusal of both.
    fn refused(errno: i64) -> Self {
        Self { number: -errno, length: -errno, text: String::new() }
    }
}

/// A patch `asks` by which `beta N` asks for all paths of a file and writes down what it is told. For N above 0 there
/// is room for N bytes.
fn asker(lab: &Lab) -> std::path::PathBuf {
    let text = format!(
        "#include <stdio.h>\n#include <string.h>\n#include <suture.h>\n\
         static long ask(long n) {{\n\
             char path[400], text[4096];\n\
             size_t size = n > 0 ? n : (long)sizeof text;\n\
             FILE *in = fopen(\"{}\", \"r\"), *out = fopen(\"{}\", \"w\");\n\
             while (fgets(path, sizeof path, in)) {{\n\
                 path[strcspn(path, \"\\n\")] = 0;\n\
                 memset(text, '~', sizeof text);\n\
                 text[sizeof text - 1] = text[0] = 0;\n\
                 long number = suture_attribute_get(path), length = suture_attribute_read(path, text, size);\n\
                 fprintf(out, \"%ld %ld %s%c\", number, length, text, 0);\n\
             }}\n\
             fclose(in);\n\
             return fclose(out);\n\
         }}\n\
         SUTURE_PATCH(\"asks\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"beta\", ask)));\n",
        lab.path("paths").display(),
        lab.path("answers").display()
    );
    lab.patch("asks", &text)
}

/// Has the patched process read paths.
fn ask(lab: &Lab, target: &mut Target, paths: &[String], room: usize) -> Vec<Read> {
    lab.write("paths", paths.iter().map(|path| format!("{path}\n")).collect::<String>());
    assert_eq!(target.ask(&format!("beta {room}")), format!("beta {room} = 0"));
    let answers = fs::read_to_string(lab.path("answers")).expect("answers");
    let read = |answer: &str| {
        let mut words = answer.splitn(3, ' ');
        let mut next = || words.next().expect("three parts");
        let (number, length) = (next().parse().expect("a number"), next().parse().expect("a length"));
        Read { number, length, text: next().to_owned() }
    };
    let reads: Vec<Read> = answers.split_terminator('\0').map(read).collect();
    assert_eq!(reads.len(), paths.len(), "{answers}");
    reads
}

/// Everything the command lists: path, access, value.
fn listed(pid: i32) -> Vec<(String, String, Option<String>)> {
    let entries = details(&run(&["get", "/"], pid).json())["entries"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let row = |e: &Value| (text(&e["path"]).unwrap(), text(&e["access"]).unwrap(), text(&e["value"]));
    entries.iter().map(row).collect()
}

/// What is to be read inside at a path of which the command shows this.
fn expected(path: &str, access: &str, value: Option<&str>) -> Read {
    let Some(value) = value else { return Read::refused(if access == "write" { 13 } else { 21 }) };
    let bits = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch", "shadow_dtor"];
    let bit = |name: &str| 1 << bits.iter().position(|bit| *bit == name).expect("a callback");
    let count = |number: usize| i64::try_from(number).unwrap();
    let number = match path.rsplit('/').next().unwrap() {
        "last_callback" => -95,
        "pending" => count(value.lines().count()),
        "holders" => count(value.split(' ').count()),
        "callbacks" => value.split_whitespace().map(bit).sum(),
        _ => value.parse().expect("a number"),
    };
    Read { number, length: count(value.len()), text: value.to_owned() }
}

/// Every path of the command is read from inside, and is what the command shows.
#[track_caller]
fn assert_same(lab: &Lab, target: &mut Target) {
    let pid = target.pid();
    let listed = listed(pid);
    let paths: Vec<String> = listed.iter().map(|(path, ..)| path.clone()).collect();
    for ((path, access, value), read) in listed.iter().zip(ask(lab, target, &paths, 0)) {
        assert_eq!(read, expected(path, access, value.as_deref()), "{path}");
    }
}

const LONG: &str = "a_library_with_a_name_that_is_rather_long_but_not_so_long_that_it_is_cut.so";

/// A patch with about everything a patch can have.
fn rich(lab: &Lab) -> std::path::PathBuf {
    let long = "f".repeat(100);
    let text = format!(
        "#include <suture.h>\n\
         SUTURE_EXTERN void note(const char *what, const char *patch, unsigned long state);\n\
         static int ready(struct suture_patch *p, struct suture_state *s) {{ (void)p; (void)s; return 0; }}\n\
         static void noted(struct suture_patch *p, struct suture_state *s) {{ note(\"noted\", p->name, s->id); }}\n\
         static void gone(void *o, void *d) {{ (void)o; (void)d; }}\n\
         static long add(long n) {{ return n + 1000; }}\n\
         SUTURE_PATCH(\"rich\", SUTURE_OBJECT(SUTURE_MAIN, SUTURE_FUNC(\"alpha\", add)),\n\
             SUTURE_OBJECT(\"{LONG}\", SUTURE_FUNC_AT(\"{long}\", 3, add), SUTURE_FUNC(\"x\", add)),\n\
             SUTURE_STATE(10, SUTURE_IS_SHADOW, ready, noted, noted, noted, gone),\n\
             SUTURE_STATE(18446744073709551615ull, 0, 0, noted, 0, 0, 0));\n"
    );
    lab.patch("rich", &text)
}

#[test]
fn every_path_is_read_as_the_command_shows_it() {
    both(|lab, mut target| {
        let pid = target.pid();
        apply(&asker(lab), pid).expect(0);
        assert_same(lab, &mut target);
        apply(&rich(lab), pid).expect(0);
        apply(&Patch { name: "b", states: &[(10, "0")], ..PLAIN }.make(lab), pid).expect(0);
        let paths: Vec<String> = listed(pid).into_iter().map(|(path, ..)| path).collect();
        for path in [
            "rich/main/alpha,1".to_owned(),
            format!("rich/{LONG}/{},3", "f".repeat(100)),
            format!("rich/{LONG}/x,1"),
            "rich/states/18446744073709551615/callbacks".into(),
        ] {
            assert!(paths.contains(&path), "{path} in {paths:#?}");
        }
        assert_eq!(get("rich/last_callback", pid), "post_patch(18446744073709551615) returned");
        assert_same(lab, &mut target);
        set("tick_ms", "35", pid);
        disable("b", pid).expect(0);
        assert_same(lab, &mut target);
        disable("rich", pid).expect(0);
        assert_same(lab, &mut target);
        assert!(target.finish().success());
    });
}

#[test]
fn what_is_not_there_has_the_commands_errno() {
    both(|lab, mut target| {
        let pid = target.pid();
        apply(&asker(lab), pid).expect(0);
        apply(&rich(lab), pid).expect(0);
        let paths: Vec<String> = [
            "nobody",
            "nobody/enabled",
            "rich/nothing",
            "rich/force",
            "rich/enabled/x",
            "rich/main/beta,1",
            "rich/main/alpha",
            "rich/main/alpha,2",
            "rich/main/alpha,1/x",
            "rich/libnone.so/patched",
            "rich/states/11",
            "rich/states/10/x",
            "rich/pending/x",
        ]
        .map(str::to_owned)
        .to_vec();
        let reads = ask(lab, &mut target, &paths, 0);
        for (path, read) in paths.iter().zip(reads) {
            let errno = match run(&["get", path], pid).refusal().0.as_str() {
                "ENOENT" => 2,
                "EACCES" => 13,
                other => panic!("{path}: {other}"),
            };
            assert_eq!(read, Read::refused(errno), "{path}");
        }
        // Too long to be a path, and so long that it is just one.
        let paths = ["x".repeat(256), "x".repeat(255)];
        assert_eq!(ask(lab, &mut target, &paths, 0), [Read::refused(22), Read::refused(2)]);
    });
}

#[test]
fn texts_are_cut_like_those_of_snprintf() {
    both(|lab, mut target| {
        let pid = target.pid();
        apply(&asker(lab), pid).expect(0);
        apply(&rich(lab), pid).expect(0);
        let paths = ["rich/states/10/callbacks".to_owned()];
        let whole = "pre_patch post_patch pre_unpatch post_unpatch shadow_dtor";
        for room in [1, 2, whole.len(), whole.len() + 1] {
            let read = ask(lab, &mut target, &paths, room).remove(0);
            let cut = whole[..whole.len().min(room - 1)].to_owned();
            assert_eq!(read, Read { number: 31, length: whole.len() as i64, text: cut }, "{room}");
        }
    });
}

/// The thread that holds the transition up is named from inside when no command is there any more.
#[test]
fn who_holds_a_transition_up_is_read_from_inside() {
    both(|lab, mut target| {
        let pid = target.pid();
        apply(&asker(lab), pid).expect(0);
        assert_eq!(target.ask("enter"), "inside");
        begin(&Patch { functions: &["blocker"], ..PLAIN }.make(lab), pid);
        let shown = get("a/pending", pid);
        assert!(shown.ends_with(" states: on function blocker") && shown.lines().count() == 1, "{shown}");
        let paths = ["a/pending".to_owned()];
        let mut last = Vec::new();
        // The worker looks when its tick is due.
        poll::until_or(
            || {
                last = ask(lab, &mut target, &paths, 0);
                (last[0].text == shown).then_some(())
            },
            || panic!("{shown:?} is shown outside"),
        );
        assert_same(lab, &mut target);
        set("a/enabled", "0", pid);
        await_end(pid);
        assert_eq!(ask(lab, &mut target, &paths, 0), [Read::refused(2)], "it has gone");
        assert_eq!(target.ask("leave"), "left 1");
        // Back and forth: what was noted of the last transition is not told of this one.
        begin_and_end(lab, &mut target);
    });
}

fn begin_and_end(lab: &Lab, target: &mut Target) {
    let pid = target.pid();
    apply(&Patch { functions: &["blocker"], ..PLAIN }.make(lab), pid).expect(0);
    let paths = ["a/pending".to_owned(), "a/transition".into()];
    let none = |number, text: &str| Read { number, length: text.len() as i64, text: text.into() };
    assert_eq!(ask(lab, target, &paths, 0), [none(0, ""), none(0, "0")]);
}
