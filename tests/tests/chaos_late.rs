//! A storm of libraries that come and go while patches of them do.

use suture_tests::command::suture;
use suture_tests::dist::root;
use suture_tests::lab::compile;
use suture_tests::target::Options;
use suture_tests::{Lab, Target, repeat, report};

/// Threads, each with a file of its own.
const THREADS: usize = 3;

fn mappings(pid: i32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).map_or(0, |maps| maps.lines().count())
}

#[test]
fn libraries_come_and_go_while_patches_do() {
    for preload in [true, false] {
        let lab = Lab::new();
        let first = lab.path("plugin.so0");
        let flags = ["-O2", "-fPIC", "-shared", "-Wl,--build-id", "-Wl,-Bsymbolic"];
        compile(&root().join("tests/targets/plugin.c"), &first, &flags);
        for n in 1..THREADS {
            std::fs::copy(&first, lab.path(&format!("plugin.so{n}"))).expect("a copy of the library");
        }
        let patch = lab.patch(
            "storm",
            "#include <suture.h>\nstatic long new_answer(long n) { return n + 1000; }\n\
             SUTURE_PATCH(\"storm\", SUTURE_OBJECT(\"plugin.so0\", SUTURE_FUNC(\"answer\", new_answer)));\n",
        );
        // The same by way of a private function of the library, wherever that is now.
        let reaching = lab.patch(
            "reaching",
            "#include <suture.h>\nSUTURE_EXTERN long twice(long n);\n\
             static long new_answer(long n) { return twice(n) + 999; }\n\
             SUTURE_PATCH(\"reaching\", SUTURE_OBJECT(\"plugin.so0\", SUTURE_FUNC(\"answer\", new_answer)));\n",
        );
        let mut target = lab.start_with("plugins.c", &[], Options { preload, ..Options::default() });
        let pid = target.pid_text();
        let (file, patch) = (first.display().to_string(), patch.display().to_string());
        let reaching = reaching.display().to_string();
        let apply = ["apply", patch.as_str(), "--json", "--pid", &pid, "--object-file", &file];
        let reach = ["apply", reaching.as_str(), "--json", "--pid", &pid, "--object-file", &file];
        // Everything that stays for good is made once.
        suture(&apply).expect(0);
        suture(&["disable", "storm", "--pid", &pid]).expect(0);
        let before = mappings(target.pid());
        let storm = format!("storm {THREADS} {}", lab.path("plugin.so").display());
        assert_eq!(target.ask(&storm), format!("storm {THREADS}"));
        let cycles = repeat(6, 400);
        let mut done = 0;
        let mut busy = 0;
        while done < cycles {
            let (args, name) = if done % 2 == 0 { (&apply, "storm") } else { (&reach, "reaching") };
            let applied = suture(args);
            if applied.code() == 1 {
                // What it was planned for was gone each time: the process is as before.
                assert!(applied.stdout.contains("EBUSY"), "{}", applied.stdout);
                busy += 1;
                assert!(busy <= 10 + cycles, "{}", applied.stdout);
                continue;
            }
            applied.expect(0);
            suture(&["disable", name, "--json", "--pid", &pid, "--timeout", "30"]).expect(0);
            done += 1;
        }
        let calm = target.ask("calm");
        println!("preload {preload}: {cycles} cycles, {busy} given up, {calm}");
        assert_eq!(Target::number(&calm, "wrong"), 0, "{calm}");
        assert!(Target::number(&calm, "loads") > 0, "{calm}");
        assert!(report::patches(target.pid()).is_empty());
        // Images of disabled patches stay: six mappings each, by ARCHITECTURE; nothing else does.
        let left = mappings(target.pid()).saturating_sub(before);
        assert!(left <= 8 * (done + busy), "{left} mappings more after {done} cycles and {busy} given up");
        // And all is as it should be with the next patch.
        suture(&apply).expect(0);
        for n in 0..THREADS {
            let load = target.ask(&format!("load {n} {}", lab.path(&format!("plugin.so{n}")).display()));
            assert_eq!(load, format!("load {n} 0"));
            assert_eq!(target.ask(&format!("ask {n}")), format!("ask {n} 1001"));
            assert_eq!(target.ask(&format!("birth {n}")), format!("birth {n} 1001"));
        }
        assert_eq!(
            report::status(target.pid())["patches"][0]["late"].as_array().map(Vec::len),
            Some(THREADS)
        );
    }
}
