//! What patches call the functions of a process.

use crate::description::{Description, FunctionDescription, ObjectDescription};
use crate::status::MAIN;
use crate::target::books::Books;
use std::collections::HashMap;
use suture_abi::block::SiteRow;
use suture_elf::demangle;

/// Functions of one description by where they lie: patches may have ten thousand.
#[derive(Debug, Default)]
pub struct Names<'d> {
    by_entry: HashMap<u64, Found<'d>>,
    by_offset: HashMap<u64, Vec<Found<'d>>>,
}

type Found<'d> = (&'d ObjectDescription, &'d FunctionDescription);

/// Where a function is looked for: at an entry, or at an offset in an object that may come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Address of the entry.
    Entry(u64),
    /// Offset from the load base, and the object's file name.
    Offset(u64, String),
}

impl Place {
    /// Where the function of a site lies.
    #[must_use]
    pub fn of(books: &Books, site: &SiteRow) -> Self {
        match books.relative_site(site.id) {
            Some(relative) => {
                let object = books.object_name(u64::from(site.plan.recipe)).unwrap_or_default();
                Self::Offset(relative.entry, object)
            }
            None => Self::Entry(site.plan.entry),
        }
    }
}

impl<'d> Names<'d> {
    /// The names that a patch gave.
    #[must_use]
    pub fn of(description: &'d Description) -> Self {
        let mut names = Self::default();
        for object in &description.objects {
            for function in &object.functions {
                names.by_entry.entry(function.old).or_insert((object, function));
                names.by_offset.entry(function.offset).or_default().push((object, function));
            }
        }
        names
    }

    /// Name of a function and of its object, for people.
    #[must_use]
    pub fn at(&self, place: &Place) -> Option<(String, String)> {
        let (object, function) = match place {
            Place::Entry(entry) => self.by_entry.get(entry)?,
            Place::Offset(offset, name) => {
                let same = |found: &&Found<'_>| file_name(found.0) == Some(name.as_str());
                self.by_offset.get(offset)?.iter().find(same)?
            }
        };
        Some((demangle(&function.name), object.name.clone().unwrap_or_else(|| MAIN.into())))
    }
}

fn file_name(object: &ObjectDescription) -> Option<&str> {
    object.name.as_deref()?.rsplit('/').next()
}

/// What the patches of a process say of themselves, in the order of the books.
#[must_use]
pub fn descriptions(books: &Books) -> Vec<Description> {
    books.patches.iter().map(|p| Description::from_bytes(&p.description).unwrap_or_default()).collect()
}

/// Name of the function at an entry, if a patch of the process names it.
#[must_use]
pub fn known_function(books: &Books, entry: u64) -> Option<String> {
    let site = books.sites.iter().find(|s| s.plan.entry == entry);
    let place = site.map_or(Place::Entry(entry), |s| Place::of(books, s));
    descriptions(books).iter().find_map(|d| Names::of(d).at(&place)).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, old: u64, offset: u64) -> FunctionDescription {
        FunctionDescription { name: name.into(), old, offset, ..FunctionDescription::default() }
    }

    fn object(name: Option<&str>, functions: Vec<FunctionDescription>) -> ObjectDescription {
        ObjectDescription { name: name.map(Into::into), functions, ..ObjectDescription::default() }
    }

    #[test]
    fn functions_are_found_by_entry_and_by_offset_in_their_object() {
        let objects = vec![
            object(None, vec![function("first", 0x1000, 0x10), function("second", 0x1000, 0x20)]),
            object(Some("/lib/a.so"), vec![function("_ZN1a3runEv", 0, 0x10)]),
            object(Some("b.so"), vec![function("b_run", 0, 0x10)]),
        ];
        let description = Description { objects, ..Description::default() };
        let names = Names::of(&description);
        let found = |place| names.at(&place);
        let of = |name: &str, object: &str| Some((name.to_owned(), object.to_owned()));
        assert_eq!(found(Place::Entry(0x1000)), of("first", "main"));
        assert_eq!(found(Place::Entry(0x10)), None);
        assert_eq!(found(Place::Offset(0x10, "a.so".into())), of("a::run()", "/lib/a.so"));
        assert_eq!(found(Place::Offset(0x10, "b.so".into())), of("b_run", "b.so"));
        assert_eq!(found(Place::Offset(0x20, "b.so".into())), None);
    }
}
