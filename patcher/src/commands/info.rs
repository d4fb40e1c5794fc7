//! `suture info`.

use super::show;
use std::fmt::Write;
use std::path::Path;
use suture_elf::demangle;
use suture_link::CALLBACKS;
use suture_patcher::cli::Output;
use suture_patcher::patch::Patch;
use suture_patcher::report;

pub fn run(path: &Path, output: Output) -> u8 {
    match Patch::open(path) {
        Ok(patch) if output.json => {
            show::json(&json(&patch));
            0
        }
        Ok(patch) => {
            show::text(text(&patch));
            0
        }
        Err(error) => show::failure("info", &error, output),
    }
}

fn json(patch: &Patch) -> serde_json::Value {
    serde_json::json!({
        "schema": report::SCHEMA,
        "command": "info",
        "file": patch.path.display().to_string(),
        "build_id": patch.file.file().build_id().map(ToString::to_string),
        "patch": patch.descriptor,
    })
}

fn text(patch: &Patch) -> String {
    let descriptor = &patch.descriptor;
    let mut text = String::new();
    let replace = if descriptor.replace { ", replaces every enabled patch" } else { "" };
    let _ = writeln!(text, "{}{replace}", descriptor.name);
    let _ = writeln!(text, "  file      {}", patch.path.display());
    if let Some(id) = patch.file.file().build_id() {
        let _ = writeln!(text, "  build-id  {id}");
    }
    for object in &descriptor.objects {
        let name = object.name.as_deref().unwrap_or("main executable");
        let id = object.build_id.as_ref().map(|id| format!(" (build-id {id})")).unwrap_or_default();
        let _ = writeln!(text, "  {name}{id}");
        for func in &object.funcs {
            let position = if func.sympos == 0 { String::new() } else { format!(",{}", func.sympos) };
            let _ = writeln!(text, "    {}{position}  {} bytes", demangle(&func.old_name), func.new_size);
        }
    }
    for state in &descriptor.states {
        let shadow = if state.is_shadow { " shadow" } else { "" };
        let block = if state.block_disable { " block-disable" } else { "" };
        let named = CALLBACKS.iter().zip(&state.callbacks).filter(|(_, code)| code.is_some());
        let callbacks: String = named.map(|(name, _)| format!(" {name}")).collect();
        let _ = writeln!(text, "  state {}{shadow}{block}{callbacks}", state.id);
    }
    text
}
