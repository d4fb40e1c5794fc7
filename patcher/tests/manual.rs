//! Manual pages and completions have every verb and option of the command line, and are well-formed.

#[path = "../examples/manual.rs"]
mod manual;

use clap::CommandFactory;
use std::fs;
use std::path::Path;
use std::process::Command;
use suture_patcher::cli::Cli;

fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    manual::write(folder.path()).expect("pages and completions");
    folder
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Verbs, each with its long options.
fn verbs() -> Vec<(String, Vec<String>)> {
    let command = Cli::command();
    let long = |verb: &clap::Command| {
        verb.get_arguments().filter_map(|a| a.get_long().map(|l| format!("--{l}"))).collect()
    };
    command.get_subcommands().map(|verb| (verb.get_name().to_owned(), long(verb))).collect()
}

#[test]
fn every_verb_has_a_page_with_its_options_and_exit_status() {
    let folder = written();
    let overview = read(folder.path(), "man/man1/suture.1");
    let pages = fs::read_dir(folder.path().join("man/man1")).expect("pages").count();
    assert_eq!(pages, verbs().len() + 1, "a page of nothing");
    for (verb, options) in verbs() {
        assert!(overview.contains(&format!("suture\\-{verb}(1)")), "{verb} is not in the overview");
        let page = read(folder.path(), &format!("man/man1/suture-{verb}.1"));
        let plain = page.replace("\\-", "-");
        for wanted in options.iter().map(String::as_str).chain([".SH NAME", ".SH SYNOPSIS", "Exit status:"]) {
            assert!(plain.contains(wanted), "{wanted} is not in the page of {verb}");
        }
    }
}

#[test]
fn completions_offer_every_verb_and_option() {
    let folder = written();
    for name in [
        "bash-completion/completions/suture",
        "zsh/site-functions/_suture",
        "fish/vendor_completions.d/suture.fish",
    ] {
        let script = read(folder.path(), name);
        for (verb, options) in verbs() {
            assert!(script.contains(&verb), "{verb} is not in {name}");
            // fish writes the options without dashes.
            let missing = options.iter().find(|o| !script.contains(o.trim_start_matches('-')));
            assert_eq!(missing, None, "of {verb} in {name}");
        }
    }
}

/// What bash makes of it: the words offered behind `suture` and behind a verb.
#[test]
fn bash_completes_verbs_and_options() {
    let folder = written();
    let script = folder.path().join("bash-completion/completions/suture");
    let offered = |words: &[&str]| {
        let line = format!(
            "source '{}'; COMP_WORDS=({}); COMP_CWORD={}; _suture suture \"{}\" \"{}\"; echo \"${{COMPREPLY[@]}}\"",
            script.display(),
            words.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let done = Command::new("bash").args(["--norc", "-c", &line]).output().expect("bash");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    assert_eq!(offered(&["suture", "app"]), "apply");
    assert_eq!(offered(&["suture", "apply", "--time"]), "--timeout");
    assert_eq!(offered(&["suture", "status", "--thr"]), "--threads");
}
