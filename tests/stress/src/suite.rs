//! The named runs: one per class, and the first-touch run over all classes.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::shape::{Case, Class, cases};
use crate::world::{Text, World};

/// A run over many cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// Every shape of a class at every alignment.
    Class(Class),
    /// All classes on a text of private file pages, which are made untouched again and again.
    First,
}

impl Suite {
    /// The runs of `--class all`. The first-touch run is asked for by name.
    pub const ALL: [Self; 4] =
        [Self::Class(Class::P), Self::Class(Class::S), Self::Class(Class::A), Self::Class(Class::J)];

    /// The cases, in the order of the scoreboard.
    pub fn cases(self) -> Vec<Case> {
        match self {
            Self::Class(class) => cases(class),
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

    /// Builds the text under attack.
    pub fn world(self) -> Result<World> {
        let text = if self == Self::First { Text::FileBacked } else { Text::Writable };
        World::of_cases(&self.cases(), text)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => write!(f, "{class}"),
            Self::First => f.write_str("first"),
        }
    }
}

impl FromStr for Suite {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        [Self::ALL.as_slice(), &[Self::First]]
            .concat()
            .into_iter()
            .find(|suite| suite.to_string() == name)
            .ok_or_else(|| Error::Unknown(name.to_owned()))
    }
}
