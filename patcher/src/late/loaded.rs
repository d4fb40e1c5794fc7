//! Whether a process has the objects that a plan was made for.

use crate::error::Error;
use crate::target::Target;
use crate::target::books::Books;
use crate::view::{self, Cache};
use suture_abi::late::{PLACE_FREE, Recipe};
use suture_link::{LoadedObject, ProcessView};

/// Objects that may go, by link map and load base, and how many had come late by then: one that goes and comes again
/// often lies where it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    all: Vec<(u64, u64)>,
    epoch: u64,
}

impl Loaded {
    /// Those of a view, with books that were read before.
    #[must_use]
    pub fn of(view: &ProcessView<'_>, books: &Books) -> Self {
        let mut all: Vec<(u64, u64)> = transient(view).map(key).collect();
        all.sort_unstable();
        Self { all, epoch: books.late_epoch }
    }

    /// Whether exactly these are loaded, and have been all the time. The count is read after the list: what has gone
    /// and come again between is counted by then.
    ///
    /// # Errors
    /// When it cannot be found out what is loaded.
    pub fn is_so(
        &self,
        target: &Target,
        read_books: &dyn Fn() -> Result<Books, Error>,
        cache: &Cache,
    ) -> Result<bool, Error> {
        let view = view::process(target, view::maps(target)?, cache)?;
        Ok(Self::of(&view, &read_books()?) == *self)
    }

    /// Whether every object that a recipe is about and that came since is known to the runtime. `books` were read
    /// after the recipes were shown to loading threads, and what is loaded is read after that: an object is either
    /// seen here or its thread has seen the recipes (`suture_runtime::late::table`).
    ///
    /// # Errors
    /// When it cannot be found out what is loaded.
    pub fn missed_none(
        &self,
        target: &Target,
        recipes: &[(Recipe, Vec<u8>)],
        read_books: &dyn Fn() -> Result<Books, Error>,
        cache: &Cache,
    ) -> Result<bool, Error> {
        if recipes.is_empty() {
            return Ok(true);
        }
        let view = view::process(target, view::maps(target)?, cache)?;
        let about = |o: &&LoadedObject| recipes.iter().any(|(recipe, _)| is_about(recipe, o));
        let new: Vec<_> = transient(&view).filter(|o| !self.all.contains(&key(o))).filter(about).collect();
        if new.is_empty() {
            return Ok(true);
        }
        // After the list: a thread that is in the middle of an object counts as having seen it when it is done.
        let books = read_books()?;
        let known = |o: &LoadedObject| {
            let at =
                |r: &crate::target::books::LateRow| r.state != PLACE_FREE && (r.link_map, r.base) == key(o);
            books.recipes.iter().any(at)
        };
        Ok(new.into_iter().all(known))
    }
}

fn transient<'v>(view: &'v ProcessView<'_>) -> impl Iterator<Item = &'v LoadedObject> {
    view.objects.iter().filter(|o| o.may_go())
}

fn key(object: &LoadedObject) -> (u64, u64) {
    (object.link_map.0, object.base.0)
}

fn is_about(recipe: &Recipe, object: &LoadedObject) -> bool {
    let id = recipe.build_id.get(..recipe.build_id_len as usize).unwrap_or_default();
    let name = recipe.name.as_flattened();
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    let same = !id.is_empty() && object.file.build_id().is_some_and(|i| i.as_bytes() == id);
    same || std::str::from_utf8(&name[..end]).is_ok_and(|name| object.is_named(name))
}
