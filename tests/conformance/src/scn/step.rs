//! Steps: what a row does and what it expects to be told.

/// A command about a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `suture apply`.
    Enable,
    /// `suture disable`.
    Disable,
    /// `suture reverse`.
    Reverse,
    /// `suture force`.
    Force,
    /// `suture wait`.
    Wait,
}

/// How a command must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// `0`: done.
    Done,
    /// `started`: begun, and not waited for.
    Started,
    /// `stalled`: begun, and held up after a second of looking.
    Stalled,
    /// `-EINVAL "words"`: refused with that errno and these words in the message.
    Refused(String, String),
    /// `… in background`: judged by `finish`.
    Later,
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Patch state of a thread.
    State(String),
    /// Patch states of all threads, without repetition.
    States,
    /// Whether a patch is in transition.
    Transition(String),
    /// Whether it is enabled.
    Enabled(String),
    /// Its position in the list.
    Order(String),
    /// Whether it replaces.
    Replace(String),
    /// Whether an object (`main`, or a library) is patched by it.
    Patched(String, String),
    /// Whether the process lists it.
    Listed(String),
    /// Entry bytes of a function of the program: `file` or `changed`.
    Entry(String),
    /// Why a thread holds the transition up.
    Blocker(String),
    /// Failed attempts so far; at least so many.
    Attempts,
    /// Content of the shadow variable of a state.
    Shadow(u64),
    /// The program's variable.
    Level,
    /// Signals the program noticed.
    Signals,
    /// What the constructor of a library saw.
    Constructed(String),
    /// What the hammering threads saw.
    Hammered,
    /// The callback that waits to be let go on.
    Held,
    /// Redirections that something undid.
    Lost,
    /// Exit statuses of the commands that a callback ran.
    Meddled,
    /// Everything status says of a patch.
    Status(String),
    /// Whether the process maps the file of a patch.
    Mapped(String),
    /// What `suture get` lists under a path.
    Tree(String),
    /// Whether the log has a notice: an event that the rows do not list.
    Logged(String),
    /// Events since the row's steps began, or since a child was forked.
    Events,
}

/// One thing a row does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A command about a patch.
    Command(Verb, String, Want),
    /// The end of the command in the background.
    Finish(Want),
    /// `suture set PATH VALUE`.
    Set(String, String, Want),
    /// `suture get PATH`, and what it prints.
    Get(String, String),
    /// The program loads a library.
    Load(String),
    /// The program unloads a library.
    Unload(String),
    /// A thread calls a function: who, what, what it returns.
    Call(String, String, String),
    /// A thread calls `pair`.
    Pair(String, String),
    /// A thread enters a function, so many frames deep, and stays.
    Park(String, String, u32),
    /// It leaves; what a blocker was told on its way out.
    Release(String, Option<String>),
    /// A thread ends where it is.
    Exit(String),
    /// A thread makes a thread, which may enter a function at once.
    Spawn(String, String, Option<String>),
    /// A thread forks; the child's only thread gets a name.
    Fork(String, String),
    /// So many threads call a function all the time.
    Hammer(u32, String),
    /// Lets the callback that holds go on.
    Go,
    /// Somebody else hooks a function.
    Hook(String),
    /// Somebody else puts a breakpoint on a function, or takes it away.
    Probe(String, bool),
    /// The first byte of a function's entry is the file's again, as a probe that goes leaves it.
    Restore(String),
    /// The program uses shadow variables: what it does, what comes of it.
    Lent(String, String),
    /// Keeps where the shadow variable of a state is.
    Note(u64),
    /// It is still there.
    Same(u64),
    /// Looks, once.
    Check(Query, String),
    /// Looks until it is so.
    Until(Query, String),
    /// The events are now exactly those up to the next │.
    Stall,
    /// The same in a forked child.
    On(String, Box<Action>),
}

/// An action and the line it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Line in the file, from 1.
    pub line: usize,
    /// The line, for messages.
    pub text: String,
    /// What it means.
    pub action: Action,
}

/// What steps may be about.
#[derive(Debug, Default)]
pub struct Known {
    /// Labels of patches and their names in the process.
    pub patches: Vec<(String, String)>,
    /// Threads that there are, `M` included.
    pub threads: Vec<String>,
}

impl Known {
    fn patch(&self, label: &str) -> Result<String, String> {
        let known = self.patches.iter().any(|(l, n)| l == label || n == label);
        if known { Ok(label.to_owned()) } else { Err(format!("patch {label:?} is not declared in this row")) }
    }

    fn thread(&self, name: &str) -> Result<String, String> {
        let known = self.threads.iter().any(|t| t == name);
        if known { Ok(name.to_owned()) } else { Err(format!("thread {name:?} is not declared in this row")) }
    }
}

/// Reads a step. Threads it makes become known.
///
/// # Errors
/// What is wrong.
pub fn parse(text: &str, known: &mut Known) -> Result<Action, String> {
    let (left, right) = match text.split_once(" = ") {
        Some((left, right)) => (left.trim(), Some(right.trim().trim_matches('"'))),
        None => (text.trim(), None),
    };
    let words: Vec<&str> = left.split_whitespace().collect();
    let value =
        || right.map(str::to_owned).ok_or_else(|| format!("{text:?} does not say what comes of it (= …)"));
    let want = || want(text.split_once(" = ").map_or("", |(_, right)| right.trim()));
    let main = || "M".to_owned();
    let action = match words[..] {
        [verb @ ("enable" | "disable" | "reverse" | "force" | "wait"), patch] => {
            Action::Command(self::verb(verb), known.patch(patch)?, want()?)
        }
        [verb @ ("enable" | "disable" | "wait"), patch, "in", "background"] => {
            no_value(right)?;
            Action::Command(self::verb(verb), known.patch(patch)?, Want::Later)
        }
        ["finish"] => Action::Finish(want()?),
        ["set", path, ref words @ ..] => Action::Set(path.to_owned(), words.join(" "), want()?),
        ["get", path] => Action::Get(path.to_owned(), value()?),
        ["load", library] => Action::Load(library.to_owned()),
        ["unload", library] => Action::Unload(library.to_owned()),
        ["call", function] => Action::Call(main(), function.to_owned(), value()?),
        ["call", function, "by", thread] => {
            Action::Call(known.thread(thread)?, function.to_owned(), value()?)
        }
        ["pair"] => Action::Pair(main(), value()?),
        ["pair", "by", thread] => Action::Pair(known.thread(thread)?, value()?),
        ["park", thread, "in", function] => Action::Park(known.thread(thread)?, function.to_owned(), 0),
        ["park", thread, "in", function, "depth", n] => {
            Action::Park(known.thread(thread)?, function.to_owned(), number(n)?)
        }
        ["release", thread] => Action::Release(known.thread(thread)?, right.map(str::to_owned)),
        ["exit", thread] => Action::Exit(known.thread(thread)?),
        ["spawn", child, "by", thread] => Action::Spawn(known.thread(thread)?, new(child, known)?, None),
        ["spawn", child, "by", thread, "in", function] => {
            Action::Spawn(known.thread(thread)?, new(child, known)?, Some(function.to_owned()))
        }
        ["fork", child, "by", thread] => Action::Fork(known.thread(thread)?, new(child, known)?),
        ["hammer", n, function] => Action::Hammer(number(n)?, function.to_owned()),
        ["go"] => Action::Go,
        ["hook", function] => Action::Hook(function.to_owned()),
        ["probe", function] => Action::Probe(function.to_owned(), true),
        ["unprobe", function] => Action::Probe(function.to_owned(), false),
        ["restore", function] => Action::Restore(function.to_owned()),
        [
            "lent",
            "get" | "alloc" | "ensure" | "bytes" | "free" | "free-all" | "ran" | "race" | "hold" | "held"
            | "drop",
            ref rest @ ..,
        ] => Action::Lent([&words[1..2], rest].concat().join(" "), value()?),
        ["note", "shadow", id] => Action::Note(id.parse().map_err(|_| format!("{id:?} is no state"))?),
        ["same", "shadow", id] => Action::Same(id.parse().map_err(|_| format!("{id:?} is no state"))?),
        ["check", ref what @ ..] => Action::Check(query(what, known)?, value()?),
        ["until", ref what @ ..] => Action::Until(query(what, known)?, value()?),
        ["stall"] => Action::Stall,
        ["on", child, ..] => {
            let child = known.thread(child)?;
            let rest = text.trim().splitn(3, char::is_whitespace).nth(2).unwrap_or("");
            match parse(rest, known)? {
                inner @ (Action::Command(..) | Action::Check(..) | Action::Until(..)) => {
                    Action::On(child, Box::new(inner))
                }
                _ => return Err("in a child only commands, `check` and `until` can be done".into()),
            }
        }
        _ => return Err(format!("{text:?} is no step; README.md lists them")),
    };
    Ok(action)
}

fn no_value(right: Option<&str>) -> Result<(), String> {
    right.map_or(Ok(()), |_| Err("what a command in the background answers is said by `finish = …`".into()))
}

fn verb(word: &str) -> Verb {
    match word {
        "enable" => Verb::Enable,
        "disable" => Verb::Disable,
        "reverse" => Verb::Reverse,
        "force" => Verb::Force,
        _ => Verb::Wait,
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn new(name: &str, known: &mut Known) -> Result<String, String> {
    super::patch::check_name(name)?;
    if known.threads.iter().any(|t| t == name) {
        return Err(format!("there is a thread {name:?} already"));
    }
    known.threads.push(name.to_owned());
    Ok(name.to_owned())
}

fn want(right: &str) -> Result<Want, String> {
    let (first, rest) = right.split_once(' ').unwrap_or((right, ""));
    match first {
        "0" if rest.is_empty() => Ok(Want::Done),
        "started" if rest.is_empty() => Ok(Want::Started),
        "stalled" if rest.is_empty() => Ok(Want::Stalled),
        errno if errno.starts_with("-E") => {
            Ok(Want::Refused(errno[1..].to_owned(), rest.trim().trim_matches('"').to_owned()))
        }
        _ => Err(format!("{right:?} is no end of a command: 0, started, stalled, or -EINVAL \"words\"")),
    }
}

fn query(words: &[&str], known: &Known) -> Result<Query, String> {
    let state = |id: &str| id.parse().map_err(|_| format!("{id:?} is no state"));
    Ok(match *words {
        ["state", thread] => Query::State(known.thread(thread)?),
        ["states"] => Query::States,
        ["transition", patch] => Query::Transition(known.patch(patch)?),
        ["enabled", patch] => Query::Enabled(known.patch(patch)?),
        ["order", patch] => Query::Order(known.patch(patch)?),
        ["replace", patch] => Query::Replace(known.patch(patch)?),
        ["listed", patch] => Query::Listed(known.patch(patch)?),
        ["patched", path] => {
            let (patch, object) = path.split_once('/').ok_or("`patched` is about PATCH/OBJECT")?;
            Query::Patched(known.patch(patch)?, object.to_owned())
        }
        ["entry", function] => Query::Entry(function.to_owned()),
        ["blocker", thread] => Query::Blocker(known.thread(thread)?),
        ["attempts"] => Query::Attempts,
        ["shadow", id] => Query::Shadow(state(id)?),
        ["level"] => Query::Level,
        ["signals"] => Query::Signals,
        ["constructed", library] => Query::Constructed(library.to_owned()),
        ["hammered"] => Query::Hammered,
        ["held"] => Query::Held,
        ["lost"] => Query::Lost,
        ["meddled"] => Query::Meddled,
        ["mapped", patch] => Query::Mapped(known.patch(patch)?),
        ["tree", path] => Query::Tree(path.to_owned()),
        ["status", patch] => Query::Status(known.patch(patch)?),
        ["logged", word] => Query::Logged(word.to_owned()),
        ["events"] => Query::Events,
        _ => return Err(format!("{:?} is nothing to look at; README.md lists what is", words.join(" "))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        Known { patches: vec![("A2".into(), "A".into())], threads: vec!["M".into(), "T1".into()] }
    }

    #[test]
    fn steps_are_understood() {
        let read = |text: &str| parse(text, &mut known()).unwrap();
        assert_eq!(read("enable A2 = 0"), Action::Command(Verb::Enable, "A2".into(), Want::Done));
        assert_eq!(
            read("disable A = -EINVAL \"does not support disable\""),
            Action::Command(
                Verb::Disable,
                "A".into(),
                Want::Refused("EINVAL".into(), "does not support disable".into())
            )
        );
        assert_eq!(read("call f by T1 = A:f"), Action::Call("T1".into(), "f".into(), "A:f".into()));
        assert_eq!(read("park T1 in f depth 5000"), Action::Park("T1".into(), "f".into(), 5000));
        assert_eq!(read("check shadow 10 = \"[ON]\""), Action::Check(Query::Shadow(10), "[ON]".into()));
        assert_eq!(
            read("set A/enabled maybe = -EINVAL"),
            Action::Set("A/enabled".into(), "maybe".into(), Want::Refused("EINVAL".into(), String::new()))
        );
    }

    #[test]
    fn threads_that_are_made_become_known() {
        let mut known = known();
        parse("spawn C1 by T1 in blocker", &mut known).unwrap();
        parse("call f by C1 = A:f", &mut known).unwrap();
        assert!(parse("spawn C1 by T1", &mut known).unwrap_err().contains("already"));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("enable B = 0", "not declared"),
            ("enable A", "is no end of a command"),
            ("enable A = 1", "is no end of a command"),
            ("enable A in background = 0", "finish"),
            ("call f", "does not say what comes of it"),
            ("call f by T9 = x", "thread \"T9\" is not declared"),
            ("dance", "is no step"),
            ("check weather = fine", "nothing to look at"),
            ("check patched A = 1", "PATCH/OBJECT"),
            ("hammer many f", "is no number"),
        ] {
            let what = parse(text, &mut known()).unwrap_err();
            assert!(what.contains(word), "{text}: {what}");
        }
    }
}
