//! `suture shadow`.

use super::show;
use std::fmt::Write;
use suture_patcher::cli::Output;
use suture_patcher::error::Error;
use suture_patcher::shadow::{self, Variables};
use suture_patcher::target::{Target, runtime};
use suture_patcher::{report, shadow::Count};

pub fn run(pid: i32, id: Option<u64>, output: Output) -> u8 {
    let found = match read(pid, id) {
        Ok(found) => found,
        Err(error) => return show::failure("shadow", &error, output),
    };
    if output.json {
        show::json(&serde_json::json!({
            "schema": report::SCHEMA,
            "command": "shadow",
            "pid": pid,
            "counts": found.counts,
            "variables": found.variables,
        }));
    } else {
        show::text(text(&found));
    }
    0
}

fn read(pid: i32, id: Option<u64>) -> Result<Variables, Error> {
    let target = Target::open(pid)?;
    let block = runtime::block(&target)?;
    shadow::read(&target, block, id)
}

fn text(found: &Variables) -> String {
    let mut text = String::new();
    if found.counts.is_empty() {
        text += "no shadow variables\n";
    }
    for count @ Count { id, .. } in &found.counts {
        text += &report::shadow_line("", count);
        for variable in found.variables.iter().filter(|v| v.id == *id) {
            let _ = writeln!(
                text,
                "  object {:#x}: {} bytes at {:#x}",
                variable.object, variable.size, variable.data
            );
        }
    }
    text
}
