//! The named runs: one per class, and the first-touch run over all classes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::planned;
use crate::shape::{Case, Class, cases};
use crate::straight;
use crate::world::{Text, World};

/// A run over many cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Every shape of a class at every alignment.
    Class(Class),
    /// All classes on a text of private file pages, which are made untouched again and again.
    First,
    /// The sites of the project's own planner, in a library.
    Planned,
    /// Jumps that lead straight to the new function and back, in classes P, S and A.
    Straight,
}

impl Suite {
    /// The runs of `--class all`. The others are asked for by name.
    pub const ALL: [Self; 5] = [
        Self::Class(Class::P),
        Self::Class(Class::S),
        Self::Class(Class::A),
        Self::Class(Class::J),
        Self::Class(Class::W),
    ];

    /// The cases whose name contains `only`, in the order of the scoreboard.
    pub fn cases(self, only: &str) -> Vec<Case> {
        let mut cases = self.all_cases();
        cases.retain(|case| case.to_string().contains(only));
        cases
    }

    fn all_cases(self) -> Vec<Case> {
        match self {
            Self::Class(class) => cases(class),
            Self::Planned => planned::planned_cases(),
            Self::Straight => straight::straight_cases(),
            // Every shape once at each of the three places, at an offset that changes.
            Self::First => {
                let picked = |(i, case): (usize, Case)| (i % 7 == 0).then_some(case);
                Class::ALL
                    .into_iter()
                    .flat_map(|c| cases(c).into_iter().enumerate().filter_map(picked))
                    .collect()
            }
        }
    }

    /// Every run that can be asked for.
    pub fn every() -> Vec<Self> {
        [Self::ALL.as_slice(), &[Self::First, Self::Planned, Self::Straight]].concat()
    }

    /// Builds the text under attack.
    pub fn world(self, only: &str) -> Result<World> {
        let cases = self.cases(only);
        if cases.is_empty() {
            return Err(Error::Unknown(only.to_owned()));
        }
        if self == Self::Planned {
            return planned::world(&cases);
        }
        let text = if self == Self::First { Text::FileBacked } else { Text::Writable };
        let world = World::of_cases(&cases, text)?;
        if self == Self::Straight { world.made_straight() } else { Ok(world) }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(f, "{class}"),
            Self::First => f.write_str("first"),
            Self::Planned => f.write_str("planned"),
            Self::Straight => f.write_str("straight"),
        }
    }
}

impl FromStr for Suite {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::every().into_iter().find(|suite| suite.to_string() == name);
        found.ok_or_else(|| Error::Unknown(name.to_owned()))
    }
}
