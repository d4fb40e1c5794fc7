//! The tree of a small process.

use super::*;
use crate::states::StateStatus;
use crate::status::{ObjectStatus, PatchStatus, ProcessStatus};

fn status() -> ProcessStatus {
    let object = |name: &str, patched, functions: &[&str]| ObjectStatus {
        name: name.into(),
        patched,
        functions: functions.iter().map(|&f| f.to_owned()).collect(),
    };
    let patch = PatchStatus {
        name: "fix".into(),
        id: 3,
        stack_order: 1,
        enabled: true,
        transition: false,
        replace: true,
        since_ns: 0,
        file: None,
        build_id: None,
        forced: false,
        functions: Vec::new(),
        objects: vec![object("main", true, &["f,1", "dup,2"]), object("libspk.so", false, &["welcome,1"])],
        states: vec![StateStatus {
            id: 10,
            is_shadow: true,
            block_disable: false,
            callbacks: vec!["pre_patch"],
            holders: vec!["old".into(), "fix".into()],
        }],
        last_callback: None,
        objects_absent: Vec::new(),
        objects_awaited: Vec::new(),
        late: Vec::new(),
        gdb: None,
    };
    ProcessStatus {
        pid: 7,
        comm: "demo".into(),
        threads: 1,
        runtime: "0".into(),
        generation: 1,
        hooking: true,
        tick_ms: 1000,
        worker: false,
        transition: None,
        thread_states: None,
        patches: vec![patch],
        hooks: Vec::new(),
        images_left: 0,
        images_kept: Vec::new(),
        mapped_bytes: 0,
        shadow: Vec::new(),
        sites_lost: 0,
    }
}

#[test]
fn the_tree_is_the_kernels_and_more() {
    let line = |n: &Node| format!("{} {} {}", n.access.letters(), n.path, n.value.as_deref().unwrap_or("-"));
    let lines: Vec<String> = tree::nodes(&status()).iter().map(line).collect();
    let expected = [
        "rw hooking 1",
        "rw tick_ms 1000",
        "d fix -",
        "rw fix/enabled 1",
        "r- fix/transition 0",
        "-w fix/force -",
        "r- fix/replace 1",
        "r- fix/stack_order 1",
        "r- fix/last_callback ",
        "r- fix/pending ",
        "d fix/states -",
        "d fix/states/10 -",
        "r- fix/states/10/holders old fix",
        "r- fix/states/10/is_shadow 1",
        "r- fix/states/10/block_disable 0",
        "r- fix/states/10/callbacks pre_patch",
        "d fix/main -",
        "r- fix/main/patched 1",
        "d fix/main/f,1 -",
        "d fix/main/dup,2 -",
        "d fix/libspk.so -",
        "r- fix/libspk.so/patched 0",
        "d fix/libspk.so/welcome,1 -",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_path_that_is_not_there_is_told_from_a_patch_that_is_not_there() {
    let nodes = tree::nodes(&status());
    assert!(find(&nodes, 7, "fix/enabled").is_ok());
    for missing in ["fix/enable", "fix/main/g,1", "fix/states/11/holders", "fix/enabled/x"] {
        assert!(matches!(find(&nodes, 7, missing), Err(Error::NoAttribute { .. })), "{missing}");
    }
    for missing in ["other", "other/enabled", "enabled", "hooking/x"] {
        assert!(matches!(find(&nodes, 7, missing), Err(Error::NotEnabled { .. })), "{missing}");
    }
}

#[test]
fn truth_has_the_kernels_spellings() {
    for (text, wanted) in [
        ("1", Some(true)),
        ("y", Some(true)),
        ("Y\n", Some(true)),
        ("on\n\n", Some(true)),
        ("on", Some(true)),
        ("0", Some(false)),
        ("n", Some(false)),
        ("OFF", Some(false)),
        ("f", Some(false)),
        ("0\n0", None),
        ("", None),
        ("2", None),
        ("maybe", None),
        ("01", None),
        ("-1", None),
    ] {
        assert_eq!(boolean(text), wanted, "{text:?}");
    }
}
