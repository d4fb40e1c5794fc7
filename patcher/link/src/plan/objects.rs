//! The objects of the process that a patch means, and its functions in them.

use super::LinkError;
use crate::descriptor::{ObjectDescriptor, PatchDescriptor, object_label};
use crate::functions::{self, FunctionError, LazyFrames, OldFunc};
use crate::process::{DebugFile, ProcessView};
use crate::relocate::ObjectSet;
use std::collections::HashMap;
use suture_abi::batch::Object;
use suture_elf::{Base, ObjectFile, Vaddr};

/// An object a plan refers to.
#[derive(Clone, Debug)]
pub struct PlannedObject {
    /// The row of the batch.
    pub row: Object,
    /// Index into [`ProcessView::objects`].
    pub index: usize,
    /// SONAME or file name.
    pub name: String,
    /// Load address.
    pub base: Base,
    /// Its file.
    pub file: ObjectFile,
}

/// A function of the patch, found in the process.
#[derive(Debug)]
pub(super) struct TargetFunc {
    /// Object the descriptor names, where the symbol was looked up.
    pub named_in: usize,
    /// Name in the descriptor.
    pub old_name: String,
    /// Position in the descriptor.
    pub sympos: u64,
    /// Where it is.
    pub old: OldFunc,
    /// Its replacement.
    pub new_func: Vaddr,
    /// Size of the replacement.
    pub new_size: u64,
}

/// What of a patch applies to a process.
#[derive(Debug)]
pub(super) struct Targets {
    /// Objects the patch changes, in its order.
    pub patched: Vec<usize>,
    /// Names of its objects that are not loaded.
    pub absent: Vec<String>,
    /// Its functions in the loaded objects.
    pub funcs: Vec<TargetFunc>,
}

pub(super) fn find_targets(
    view: &ProcessView<'_>,
    descriptor: &PatchDescriptor,
    debug_file: DebugFile<'_>,
) -> Result<Targets, LinkError> {
    let mut targets = Targets { patched: Vec::new(), absent: Vec::new(), funcs: Vec::new() };
    for wanted in &descriptor.objects {
        let label = object_label(wanted.name.as_deref());
        match view.objects_named(wanted.name.as_deref())[..] {
            [] => targets.absent.push(label),
            [object] => {
                check_object(view, object, wanted, &label)?;
                check_namespace(view, &targets, object)?;
                targets.patched.push(object);
                find_funcs(view, object, wanted, debug_file, &mut targets.funcs)?;
            }
            _ => return Err(LinkError::LoadedTwice { object: label }),
        }
    }
    Ok(targets)
}

fn check_object(
    view: &ProcessView<'_>,
    object: usize,
    wanted: &ObjectDescriptor,
    label: &str,
) -> Result<(), LinkError> {
    let loaded = &view.objects[object];
    if loaded.runtime {
        return Err(LinkError::Runtime { object: label.to_owned() });
    }
    match (&wanted.build_id, loaded.file.build_id()) {
        (Some(wanted), found) if Some(wanted) != found => Err(LinkError::BuildId {
            object: label.to_owned(),
            wanted: wanted.to_string(),
            found: found.map_or_else(|| "none".to_owned(), ToString::to_string),
        }),
        _ => Ok(()),
    }
}

fn check_namespace(view: &ProcessView<'_>, targets: &Targets, object: usize) -> Result<(), LinkError> {
    let other = targets.patched.first().copied().unwrap_or(object);
    if view.objects[other].namespace == view.objects[object].namespace {
        return Ok(());
    }
    let name = |i: usize| view.objects[i].name.clone();
    Err(LinkError::Namespaces { first: name(other), second: name(object) })
}

fn find_funcs(
    view: &ProcessView<'_>,
    object: usize,
    wanted: &ObjectDescriptor,
    debug_file: DebugFile<'_>,
    funcs: &mut Vec<TargetFunc>,
) -> Result<(), LinkError> {
    let mut known: HashMap<(usize, Vaddr), usize> =
        funcs.iter().enumerate().map(|(i, f)| ((f.old.object, f.old.entry), i)).collect();
    let frames = LazyFrames::default();
    for func in &wanted.funcs {
        let old = functions::find(view, object, func, debug_file, &frames)?;
        if let Some(twin) = known.insert((old.object, old.entry), funcs.len()).map(|i| &funcs[i]) {
            return Err(LinkError::Function(FunctionError::Same {
                first: twin.old_name.clone(),
                second: func.old_name.clone(),
                object: view.objects[old.object].name.clone(),
            }));
        }
        funcs.push(TargetFunc {
            named_in: object,
            old_name: func.old_name.clone(),
            sympos: func.sympos,
            old,
            new_func: func.new_func,
            new_size: func.new_size,
        });
    }
    Ok(())
}

/// The objects of a plan, in the order of its rows.
pub(super) fn planned(view: &ProcessView<'_>, objects: &ObjectSet) -> Vec<PlannedObject> {
    let rows = objects.rows(view).into_iter().zip(objects.members());
    rows.map(|(row, &index)| {
        let object = &view.objects[index];
        PlannedObject { row, index, name: object.name.clone(), base: object.base, file: object.file.clone() }
    })
    .collect()
}
