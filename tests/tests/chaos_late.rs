//! A storm of libraries that come and go while patches of them do.

use suture_tests::command::on;
use suture_tests::plugins::Plugins;
use suture_tests::target::Options;
use suture_tests::{Target, repeat, report};

/// Threads, each with a file of its own.
const THREADS: u32 = 3;

fn mappings(pid: i32) -> usize {
    std::fs::read_to_string(format!("/proc/{pid}/maps")).map_or(0, |maps| maps.lines().count())
}

#[test]
fn libraries_come_and_go_while_patches_do() {
    for preload in [true, false] {
        let mut p = Plugins::start("plugin.so0", Options { preload, ..Options::default() });
        for n in 1..THREADS {
            p.copy(&format!("plugin.so{n}"));
        }
        let patch = p.patch("storm", 1000, "");
        // The same by way of a private function of the library, wherever that is now.
        let reaching = p.lab.patch(
            "reaching",
            "#include <suture.h>\nSUTURE_EXTERN long twice(long n);\n\
             static long new_answer(long n) { return twice(n) + 999; }\n\
             SUTURE_PATCH(\"reaching\", SUTURE_OBJECT(\"plugin.so0\", SUTURE_FUNC(\"answer\", new_answer)));\n",
        );
        let pid = p.target.pid();
        // Everything that stays for good is made once.
        p.apply(&patch);
        p.disable("storm");
        let before = mappings(pid);
        let storm = format!("storm {THREADS} {}", p.lab.path("plugin.so").display());
        assert_eq!(p.target.ask(&storm), format!("storm {THREADS}"));
        let cycles = repeat(6, 400);
        let mut done = 0;
        let mut busy = 0;
        while done < cycles {
            let (patch, name) = if done % 2 == 0 { (&patch, "storm") } else { (&reaching, "reaching") };
            let applied = p.apply_with(patch, &[]);
            if applied.code() == 1 {
                // What it was planned for was gone each time: the process is as before.
                assert!(applied.stdout.contains("EBUSY"), "{}", applied.stdout);
                busy += 1;
                assert!(busy <= 10 + cycles, "{}", applied.stdout);
                continue;
            }
            applied.expect(0);
            on("disable", name, pid, &["--json", "--timeout", "30"]).expect(0);
            done += 1;
        }
        let calm = p.target.ask("calm");
        println!("preload {preload}: {cycles} cycles, {busy} given up, {calm}");
        assert_eq!(Target::number(&calm, "wrong"), 0, "{calm}");
        assert!(Target::number(&calm, "loads") > 0, "{calm}");
        assert!(report::patches(pid).is_empty());
        // Images of disabled patches stay: six mappings each, by ARCHITECTURE; nothing else does.
        let left = mappings(pid).saturating_sub(before);
        assert!(left <= 8 * (done + busy), "{left} mappings more after {done} cycles and {busy} given up");
        // And all is as it should be with the next patch.
        p.apply(&patch);
        for place in 0..THREADS {
            p.load(place, &format!("plugin.so{place}"));
            assert_eq!(p.values(place), (1001, 1001));
        }
        assert_eq!(p.status("storm")["late"].as_array().map(Vec::len), Some(THREADS as usize));
    }
}
