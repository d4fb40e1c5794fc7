//! Looking at the process.

use super::steps::{Scene, same};
use crate::product;
use crate::scn::Query;
use serde_json::Value;

/// What was seen, and how it is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It must be that.
    Text(String),
    /// It must have that in it.
    Containing(String),
    /// It must be at least that.
    AtLeast(u64),
}

impl Seen {
    /// Whether it is what was wanted.
    ///
    /// # Errors
    /// What is different.
    pub fn judge(&self, want: &str) -> Result<(), String> {
        match self {
            Self::Text(seen) => same(want, seen),
            Self::Containing(seen) if seen.contains(want) => Ok(()),
            Self::Containing(seen) => Err(format!("there is nothing about {want:?} in {seen:?}")),
            Self::AtLeast(seen) if want.parse().is_ok_and(|want: u64| *seen >= want) => Ok(()),
            Self::AtLeast(seen) => Err(format!("wanted at least {want}, got {seen}")),
        }
    }
}

/// Looks. `pid` is the program's process or a child's.
pub fn look(scene: &mut Scene<'_>, query: &Query, pid: i32) -> Result<Seen, String> {
    let bit = |is: bool| Seen::Text(u8::from(is).to_string());
    let text = |value: &Value| Seen::Text(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    Ok(match query {
        Query::State(thread) => {
            let (tid, status) = (scene.id(thread), product::status(pid)?);
            let states = status["thread_states"].as_array().cloned().unwrap_or_default();
            let state = states.iter().find(|t| t["tid"] == tid).map(|t| t["patch_state"].clone());
            text(&state.ok_or_else(|| format!("status says nothing of thread {thread} ({tid})"))?)
        }
        Query::States => {
            let status = product::status(pid)?;
            let states = status["thread_states"].as_array().cloned().unwrap_or_default();
            let mut distinct: Vec<String> = states.iter().map(|t| t["patch_state"].to_string()).collect();
            distinct.sort();
            distinct.dedup();
            Seen::Text(distinct.join(" "))
        }
        Query::Transition(patch) => bit(of_patch(scene, patch, pid)?["transition"] == true),
        Query::Enabled(patch) => bit(of_patch(scene, patch, pid)?["enabled"] == true),
        Query::Replace(patch) => bit(of_patch(scene, patch, pid)?["replace"] == true),
        Query::Order(patch) => text(&of_patch(scene, patch, pid)?["stack_order"]),
        Query::Listed(patch) => {
            let is_listed = !find(&product::status(pid)?, scene.patch_name(patch)).is_null();
            Seen::Text(if is_listed { "yes" } else { "no" }.into())
        }
        Query::Patched(patch, object) => {
            let status = of_patch(scene, patch, pid)?;
            let functions = status["functions"].as_array().cloned().unwrap_or_default();
            let library = format!("lib{object}.so");
            let is_it =
                |f: &Value| f["object"].as_str().is_some_and(|o| o == object || o.ends_with(&library));
            bit(functions.iter().any(|f| is_it(f) && f["site"] == "armed"))
        }
        Query::Entry(function) => {
            let is_files = scene.demo.entry_is_the_files(function);
            Seen::Text(if is_files { "file" } else { "changed" }.into())
        }
        Query::Blocker(thread) => {
            let (tid, status) = (scene.id(thread), product::status(pid)?);
            let blockers = status["transition"]["blockers"].as_array().cloned().unwrap_or_default();
            let why = blockers.iter().find(|b| b["tid"] == tid).map(|b| b["why"].clone());
            let why = why.ok_or_else(|| format!("status names {blockers:?}, not {thread} ({tid})"))?;
            Seen::Containing(why.as_str().map_or_else(|| why.to_string(), str::to_owned))
        }
        Query::Attempts => {
            Seen::AtLeast(product::status(pid)?["transition"]["attempts"].as_u64().unwrap_or(0))
        }
        Query::Lost => text(&product::status(pid)?["sites_lost"]),
        Query::Mapped(patch) => {
            let file = scene.file(patch).display().to_string();
            let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).map_err(|e| e.to_string())?;
            Seen::Text(if maps.contains(&file) { "yes" } else { "no" }.into())
        }
        // Blanks between columns do not count.
        Query::Tree(path) => {
            let list = product::get(path, pid)?;
            let lines = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
            Seen::Containing(lines.collect::<Vec<_>>().join(" | "))
        }
        Query::Status(patch) => Seen::Containing(of_patch(scene, patch, pid)?.to_string()),
        Query::Forced(patch) => {
            let name = scene.patch_name(patch);
            let is_forced = product::log(pid)?.iter().any(|e| e.word == "forced" && e.patch == name);
            Seen::Text(if is_forced { "yes" } else { "no" }.into())
        }
        Query::Events if pid == scene.demo.pid() => Seen::Text(scene.events()?.join(" · ")),
        Query::Events => Seen::Text(scene.child_events(pid)?.join(" · ")),
        asked => ask(scene, asked)?,
    })
}

/// What the program itself knows.
fn ask(scene: &mut Scene<'_>, query: &Query) -> Result<Seen, String> {
    let demo = &mut scene.demo;
    let answer = match query {
        Query::Shadow(state) => {
            let shadow = demo.ask(&format!("shadow {state}"), &format!("shadow {state} = "))?;
            // Where it is, is for `note` and `same`.
            shadow.split(" @").next().unwrap_or("").to_owned()
        }
        Query::Level => demo.ask("level", "level = ")?,
        Query::Signals => demo.ask("signals", "signals = ")?,
        Query::Constructed(library) => {
            demo.ask(&format!("constructed {library}"), &format!("constructed {library} = "))?
        }
        Query::Hammered => demo.ask("hammered", "hammered = ")?,
        Query::Meddled => demo.ask("meddled", "meddled = ")?,
        Query::Held => demo.ask("held", "held = ")?,
        other => return Err(format!("the program knows nothing of {other:?}")),
    };
    Ok(Seen::Text(answer))
}

fn find(status: &Value, name: &str) -> Value {
    let patches = status["patches"].as_array();
    patches.and_then(|all| all.iter().find(|p| p["name"] == name)).cloned().unwrap_or_default()
}

fn of_patch(scene: &Scene<'_>, patch: &str, pid: i32) -> Result<Value, String> {
    let name = scene.patch_name(patch);
    let found = find(&product::status(pid)?, name);
    if found.is_null() { Err(format!("status lists no patch {name}")) } else { Ok(found) }
}
