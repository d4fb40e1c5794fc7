//! Patches: `A!{f, dup@2, spk.welcome; 10, 11!}`.

/// A function a patch replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Library it is in, without `lib` and `.so`; `None` = the program.
    pub library: Option<String>,
    /// Its name.
    pub name: String,
    /// Which of several, as the descriptor says it (0 = the name must be unique).
    pub sympos: u64,
}

/// When and how `pre_patch` of a state fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fails {
    /// Before it allocates its shadow variable.
    Early(i32),
    /// After it allocated and freed it.
    AfterFreeing(i32),
    /// It leaves it allocated.
    Keeping(i32),
}

/// What a state's callbacks do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Opens and closes the applause in a shadow variable (NULL, id).
    #[default]
    Applause,
    /// There are none.
    Bare,
    /// Saves the program's `level` in a shadow variable and sets it to 15.
    Level,
}

/// A state of a patch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its id.
    pub id: u64,
    /// `block_disable`.
    pub block_disable: bool,
    /// Its shadow variables go with it.
    pub is_shadow: bool,
    /// What its callbacks do.
    pub kind: Kind,
    /// Whether `pre_patch` fails.
    pub fails: Option<Fails>,
    /// Every callback waits until it is let go on.
    pub holds: bool,
    /// Patch that `pre_patch` tries to enable, and its own that it tries to disable, by the command.
    pub meddles: Option<String>,
    /// Function whose entry `pre_patch` writes a foreign hook over.
    pub hooks: Option<String>,
}

/// A descriptor that must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It has no array of objects.
    NoObjects,
    /// An object has no array of functions.
    NoFunctions,
    /// A function has no name.
    NoName,
    /// A function has nothing in its place.
    NoNew,
    /// A state has no id.
    NoId,
}

/// What new code does besides saying whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    /// Allocates two shadow variables of that state.
    Allocates(u64),
    /// Says whether they are there.
    Finds(u64),
    /// Gives the program the functions for shadow variables.
    Lends,
    /// Returns the value of an attribute, or a negative errno.
    Asks(String),
}

/// A patch of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// What the row calls it.
    pub label: String,
    /// Its name in the process; the label unless the row says otherwise.
    pub name: String,
    /// Atomic replace.
    pub replace: bool,
    /// Functions, in the order given.
    pub functions: Vec<Function>,
    /// States, in the order of the array.
    pub states: Vec<State>,
    /// What is wrong with its descriptor.
    pub broken: Option<Broken>,
    /// What its new functions do, by the names of the old ones.
    pub code: Vec<(String, Code)>,
}

impl Patch {
    /// Reads `A!{f; 10} as NAME broken no-name`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = || format!("a patch looks like A{{f, lib.g, dup@2; 10, 11!}}, not like {text:?}");
        let (head, rest) = text.split_once('{').ok_or_else(shape)?;
        let (inside, after) = rest.split_once('}').ok_or_else(shape)?;
        let (label, replace) = match head.trim().strip_suffix('!') {
            Some(label) => (label, true),
            None => (head.trim(), false),
        };
        check_name(label)?;
        let (functions, states) = inside.split_once(';').unwrap_or((inside, ""));
        let mut patch = Self {
            label: label.to_owned(),
            name: label.to_owned(),
            replace,
            functions: items(functions).map(Function::parse).collect::<Result<_, _>>()?,
            states: items(states).map(State::parse).collect::<Result<_, _>>()?,
            broken: None,
            code: Vec::new(),
        };
        let mut words = after.split_whitespace();
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word:?} needs a word behind it"))?;
            match word {
                "as" => {
                    check_name(value)?;
                    value.clone_into(&mut patch.name);
                }
                "broken" => patch.broken = Some(broken(value)?),
                _ => return Err(format!("{word:?} is nothing a patch has: `as NAME` or `broken HOW`")),
            }
        }
        Ok(patch)
    }

    /// The state of that id.
    pub fn state(&mut self, id: u64) -> Option<&mut State> {
        self.states.iter_mut().find(|s| s.id == id)
    }
}

impl Code {
    /// Reads `allocates 10`, `finds 10` and so on.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        let state = |id: &str| id.parse().map_err(|_| format!("{id:?} is no state"));
        match words {
            ["allocates", id] => Ok(Self::Allocates(state(id)?)),
            ["finds", id] => Ok(Self::Finds(state(id)?)),
            ["lends", "shadow"] => Ok(Self::Lends),
            ["asks", path] => Ok(Self::Asks((*path).to_owned())),
            _ => Err(format!(
                "{:?} is nothing code does: allocates N, finds N, lends shadow, asks PATH",
                words.join(" ")
            )),
        }
    }
}

fn broken(how: &str) -> Result<Broken, String> {
    match how {
        "no-objects" => Ok(Broken::NoObjects),
        "no-functions" => Ok(Broken::NoFunctions),
        "no-name" => Ok(Broken::NoName),
        "no-new" => Ok(Broken::NoNew),
        "no-id" => Ok(Broken::NoId),
        _ => Err(format!(
            "{how:?} is no way to break a patch: no-objects, no-functions, no-name, no-new, no-id"
        )),
    }
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Names of patches, threads and libraries.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() < 16 && name.chars().all(good) {
        return Ok(());
    }
    Err(format!("{name:?} is no name: 1 to 15 letters, digits, `-` and `_`"))
}

impl Function {
    /// Reads `f`, `dup@2` or `spk.welcome`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (path, sympos) = match text.split_once('@') {
            Some((path, n)) => (path, n.parse().map_err(|_| format!("{n:?} is no position of a symbol"))?),
            None => (text, 0),
        };
        let (library, name) = match path.split_once('.') {
            Some((library, name)) => (Some(library), name),
            None => (None, path),
        };
        check_name(name)?;
        library.map(check_name).transpose()?;
        Ok(Self { library: library.map(str::to_owned), name: name.to_owned(), sympos })
    }

    /// As rows write it.
    #[must_use]
    pub fn path(&self) -> String {
        let place = if self.sympos == 0 { String::new() } else { format!("@{}", self.sympos) };
        match &self.library {
            Some(library) => format!("{library}.{}{place}", self.name),
            None => format!("{}{place}", self.name),
        }
    }
}

impl State {
    fn parse(text: &str) -> Result<Self, String> {
        let (number, block_disable) = match text.strip_suffix('!') {
            Some(number) => (number, true),
            None => (text, false),
        };
        let id = number
            .parse()
            .map_err(|_| format!("{text:?} is no state: a number, with `!` to block_disable"))?;
        Ok(Self {
            id,
            block_disable,
            is_shadow: true,
            kind: Kind::Applause,
            fails: None,
            holds: false,
            hooks: None,
            meddles: None,
        })
    }

    /// Reads what a row adds to it: `fails -12 keeping`, `bare`, `level`, `holds`, `no shadow`, `hooks f`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn change(&mut self, words: &[&str]) -> Result<(), String> {
        match words {
            ["fails", errno] => self.fails = Some(Fails::Early(number(errno)?)),
            ["fails", errno, "after", "freeing"] => self.fails = Some(Fails::AfterFreeing(number(errno)?)),
            ["fails", errno, "keeping"] => self.fails = Some(Fails::Keeping(number(errno)?)),
            ["bare"] => self.kind = Kind::Bare,
            ["level"] => self.kind = Kind::Level,
            ["holds"] => self.holds = true,
            ["no", "shadow"] => self.is_shadow = false,
            ["meddles", patch] => self.meddles = Some((*patch).to_owned()),
            ["hooks", function] => self.hooks = Some((*function).to_owned()),
            _ => {
                return Err(format!(
                    "{:?} is nothing a state does: fails -N [after freeing | keeping], bare, level, holds, no shadow, hooks FN, meddles P",
                    words.join(" ")
                ));
            }
        }
        Ok(())
    }
}

fn number(errno: &str) -> Result<i32, String> {
    let value: i32 = errno.parse().map_err(|_| format!("{errno:?} is no errno: -19"))?;
    if value < 0 { Ok(value) } else { Err(format!("an errno is negative, {value} is not")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_of_the_tables_is_understood() {
        let patch = Patch::parse("R!{f, dup@2, spk.welcome; 10,11!}").unwrap();
        assert!(patch.replace);
        let paths: Vec<String> = patch.functions.iter().map(Function::path).collect();
        assert_eq!(paths, ["f", "dup@2", "spk.welcome"]);
        assert_eq!(
            patch.states.iter().map(|s| (s.id, s.block_disable)).collect::<Vec<_>>(),
            [(10, false), (11, true)]
        );
        let empty = Patch::parse("A!{; 1}").unwrap();
        assert!(empty.functions.is_empty() && empty.states.len() == 1);
        let again = Patch::parse("A2{f;} as A").unwrap();
        assert_eq!((again.label.as_str(), again.name.as_str()), ("A2", "A"));
        assert_eq!(Patch::parse("B!{f} broken no-new").unwrap().broken, Some(Broken::NoNew));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("A f", "a patch looks like"),
            ("A{f", "a patch looks like"),
            ("{f}", "is no name"),
            ("A{f@x}", "position"),
            ("A{f;x}", "is no state"),
            ("A{f} as", "needs a word"),
            ("A{f} at B", "nothing a patch has"),
            ("A{f} broken badly", "no way to break"),
            ("A{f g}", "is no name"),
        ] {
            let what = Patch::parse(text).unwrap_err();
            assert!(what.contains(word), "{text}: {what}");
        }
        let mut state = State::parse("7").unwrap();
        assert!(state.change(&["fails", "12"]).unwrap_err().contains("negative"));
        assert!(state.change(&["sings"]).unwrap_err().contains("nothing a state does"));
    }
}
