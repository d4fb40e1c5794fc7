//! A few rounds of `cargo xtask servers`: servers that were not prepared, patched under load.

use suture_tests::campaign::servers::ALL;
use suture_tests::campaign::{run, table};
use suture_tests::repeat;

fn comes_through(name: &str) {
    let spec = ALL.iter().find(|spec| spec.name == name).expect("a server of that name");
    let tally = run::run(spec, repeat(4, 50), repeat(3, 50));
    let shown = table::table(&[(spec.name, tally.clone())]);
    println!("{shown}");
    assert!(table::is_good(&tally), "{shown}");
    assert!(tally.baseline.requests() > 0 && tally.patching.new > 0, "{shown}");
    assert!(tally.eintr_patching.calls > 0, "no call was counted\n{shown}");
}

#[test]
fn redis() {
    comes_through("redis");
}

#[test]
fn nginx() {
    comes_through("nginx");
}
