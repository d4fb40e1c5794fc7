//! What became of the objects that a patch waits for.

use crate::description::Description;
use crate::error::errno_name;
use crate::target::books::{Books, LateRow};
use serde::Serialize;
use suture_abi::late::{NO_SITE, PLACE_BOUND, PLACE_FREE, PLACE_REFUSED, RECIPE_NAME, RECIPE_SITES};
use suture_elf::demangle;

/// An object that came after the patch.
#[derive(Clone, Debug, Serialize)]
pub struct LateStatus {
    /// Name in the patch.
    pub object: String,
    /// Its load base.
    pub base: u64,
    /// It was patched when it came.
    pub patched: bool,
    /// Why it was not.
    pub error: Option<LateError>,
}

/// Why an object was left as it is, for every patch.
#[derive(Clone, Debug, Serialize)]
pub struct LateError {
    /// The patch that could not have it.
    pub patch: String,
    /// The function because of which, if it is known.
    pub symbol: Option<String>,
    /// Name of the errno.
    pub errno: &'static str,
}

impl LateStatus {
    /// In one line.
    #[must_use]
    pub fn text(&self) -> String {
        let Some(LateError { patch, symbol, errno }) = &self.error else {
            return format!("{}: patched when it was loaded, at {:#x}", self.object, self.base);
        };
        let symbol = symbol.as_ref().map_or_else(String::new, |s| format!("{s}: "));
        format!(
            "{}: loaded at {:#x} and left as it is for every patch, because {patch} cannot have it: {symbol}{errno}",
            self.object, self.base
        )
    }
}

/// The objects that are there now and came after a patch that was waiting for them.
#[must_use]
pub fn of_patch(books: &Books, patch: u32, all: &[Description]) -> Vec<LateStatus> {
    let needs = |r: &&LateRow| {
        let row = &r.row;
        let mut sites = books.funcs_of(patch).filter_map(|f| books.site(f.site));
        row.plan.kind == RECIPE_NAME && row.patch == patch
            || row.plan.kind == RECIPE_SITES && sites.any(|s| s.plan.recipe == row.id)
    };
    let there = books.recipes.iter().filter(needs).filter(|r| r.state != PLACE_FREE);
    let mut list: Vec<LateStatus> = Vec::new();
    for row in there {
        if list.iter().any(|l| l.base == row.base) {
            continue;
        }
        list.push(LateStatus {
            object: books.object_name(u64::from(row.row.id)).unwrap_or_default(),
            base: row.base,
            patched: row.state == PLACE_BOUND,
            error: (row.state == PLACE_REFUSED).then(|| error(books, row, all)),
        });
    }
    list
}

fn error(books: &Books, row: &LateRow, all: &[Description]) -> LateError {
    let name = books.object_name(u64::from(row.row.id)).unwrap_or_default();
    let position = books.patches.iter().position(|p| p.row.id == row.patch);
    let mut objects = position.and_then(|at| all.get(at)).into_iter().flat_map(|d| &d.objects);
    let object =
        objects.find(|o| o.name.as_deref().is_some_and(|n| n.rsplit('/').next() == Some(name.as_str())));
    let offset = match row.site {
        NO_SITE => None,
        site => books.relative.iter().filter(|s| s.recipe == row.row.id).nth(site as usize).map(|s| s.entry),
    };
    // Of an object of which no file was known the first function stands for all.
    let is_it = |offset_of: u64| offset.is_none_or(|offset| offset == offset_of);
    let symbol = object.and_then(|o| o.functions.iter().find(|f| is_it(f.offset))).map(|f| demangle(&f.name));
    let errno = errno_name(i32::try_from(row.errno).unwrap_or(0));
    LateError { patch: books.name_of(row.patch), symbol, errno }
}
