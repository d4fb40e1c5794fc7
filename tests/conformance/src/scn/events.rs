//! Expected events: `UP(A; pre_patch(A,10); post_patch(A,10)) · disable… │ done- A`.

use super::patch::Patch;

/// One entry of the expected list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// An event, in the words of the log; `…` stands for a content that does not matter.
    Event(String),
    /// A point where the row looks at the process while the transition is held up.
    Stall,
}

const WORDS: [&str; 13] = [
    "enable",
    "init+",
    "start+",
    "completing+",
    "done+",
    "init-",
    "start-",
    "completing-",
    "done-",
    "rev+",
    "rev-",
    "fail",
    "cancel",
];
const CALLBACKS: [&str; 4] = ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"];

/// Reads a list; macros are spelled out. `patches` are those of the row.
///
/// # Errors
/// What is wrong.
pub fn parse(text: &str, patches: &[Patch]) -> Result<Vec<Expected>, String> {
    let mut list = Vec::new();
    for piece in split(text)? {
        match piece.as_str() {
            "–" | "-" => {}
            "│" => list.push(Expected::Stall),
            event => list.extend(one(event, patches)?.into_iter().map(Expected::Event)),
        }
    }
    Ok(list)
}

/// Cuts at `·` and the end of a line outside of brackets; `│` is a piece of its own.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut pieces = vec![String::new()];
    let (mut depth, mut quoted) = (0i32, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
        let outside = depth == 0 && !quoted;
        match c {
            '·' | '\n' if outside => pieces.push(String::new()),
            '│' | '|' if outside => pieces.extend(["│".to_owned(), String::new()]),
            _ => pieces.last_mut().ok_or("no text")?.push(c),
        }
    }
    if depth != 0 || quoted {
        return Err("a bracket or quotation mark of the events is not closed".into());
    }
    Ok(pieces.into_iter().map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect())
}

fn one(event: &str, patches: &[Patch]) -> Result<Vec<String>, String> {
    if let Some(inside) = event.strip_prefix("UP(").or_else(|| event.strip_prefix("DOWN(")) {
        let inside = inside.strip_suffix(')').ok_or_else(|| unknown(event))?;
        return spell_out(event.starts_with("UP("), inside, patches);
    }
    if let Some((word, rest)) = event.split_once('(') {
        return callback(event, word.trim(), rest, patches).map(|e| vec![e]);
    }
    if event == "signal" {
        return Ok(vec![event.to_owned()]);
    }
    let (word, about) = event.split_once(' ').ok_or_else(|| unknown(event))?;
    let about = about.trim();
    let patch = match word {
        "apply" => about.split_once('>').ok_or_else(|| unknown(event))?.0,
        "revert" => about.split_once('<').ok_or_else(|| unknown(event))?.0,
        "gone" => about,
        _ if WORDS.contains(&word) => about,
        _ => return Err(unknown(event)),
    };
    known(patch.trim(), patches)?;
    Ok(vec![format!("{word} {about}")])
}

fn unknown(event: &str) -> String {
    format!(
        "{event:?} is no event: {} P, gone P, apply P>LIB, revert P<LIB, signal, {}(P,N), dtor(P,N,\"…\"), UP(P; x; y), DOWN(P; x; y), │",
        WORDS.join(" "),
        CALLBACKS.join(" ")
    )
}

fn known(name: &str, patches: &[Patch]) -> Result<(), String> {
    if patches.iter().any(|p| p.name == name) {
        return Ok(());
    }
    Err(format!("an event is about patch {name:?}, which the row does not declare"))
}

fn spell_out(up: bool, inside: &str, patches: &[Patch]) -> Result<Vec<String>, String> {
    let parts: Vec<&str> = inside.split(';').map(str::trim).collect();
    let [patch, first, second] = parts[..] else {
        return Err(format!("UP and DOWN have three parts, (P; x; y), not ({inside})"));
    };
    known(patch, patches)?;
    let part = |text: &str| -> Result<Vec<String>, String> {
        let list = parse(text, patches)?.into_iter().map(|e| match e {
            Expected::Event(event) => Ok(event),
            Expected::Stall => Err("there is no │ inside UP and DOWN".to_owned()),
        });
        list.collect()
    };
    let (first, second) = (part(first)?, part(second)?);
    let say = |words: &[&str]| words.iter().map(|w| format!("{w} {patch}")).collect::<Vec<_>>();
    Ok(if up {
        [say(&["enable", "init+"]), first, say(&["start+", "completing+"]), second, say(&["done+"])].concat()
    } else {
        [say(&["init-"]), first, say(&["start-", "completing-"]), second, say(&["done-", "gone"])].concat()
    })
}

fn callback(event: &str, word: &str, rest: &str, patches: &[Patch]) -> Result<String, String> {
    let (inside, after) = rest.rsplit_once(')').ok_or_else(|| unknown(event))?;
    let mut fields = inside.splitn(3, ',').map(str::trim);
    let (patch, state) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
    let content = fields.next();
    known(patch, patches)?;
    let id: u64 = state.parse().map_err(|_| unknown(event))?;
    // The newest patch of that name may lack it: an older one has it, then.
    let declared = patches.iter().filter(|p| p.name == patch).any(|p| p.states.iter().any(|s| s.id == id));
    if !declared {
        return Err(format!("{event:?}: patch {patch} has no state {id}"));
    }
    let after = after.trim().replace('−', "-");
    match (word, content, after.strip_prefix("=-")) {
        ("dtor", Some(content), None) if after.is_empty() => {
            let content = content.trim_matches('"');
            Ok(format!("dtor({patch},{id},\"{content}\")"))
        }
        ("pre_patch", None, Some(errno)) if errno.parse::<u32>().is_ok() => {
            Ok(format!("pre_patch({patch},{id})=-{errno}"))
        }
        (word, None, None) if CALLBACKS.contains(&word) && after.is_empty() => {
            Ok(format!("{word}({patch},{id})"))
        }
        _ => Err(unknown(event)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patches() -> Vec<Patch> {
        vec![Patch::parse("A{f; 10}").unwrap(), Patch::parse("B{g}").unwrap()]
    }

    fn events(text: &str) -> Vec<String> {
        let list = parse(text, &patches()).unwrap();
        list.into_iter().map(|e| if let Expected::Event(e) = e { e } else { "│".into() }).collect()
    }

    #[test]
    fn macros_are_spelled_out() {
        assert_eq!(
            events("UP(A; pre_patch(A,10); post_patch(A,10))"),
            [
                "enable A",
                "init+ A",
                "pre_patch(A,10)",
                "start+ A",
                "completing+ A",
                "post_patch(A,10)",
                "done+ A"
            ]
        );
        assert_eq!(
            events("DOWN(A; –; post_unpatch(A,10) · dtor(A,10,\"[]\"))"),
            [
                "init- A",
                "start- A",
                "completing- A",
                "post_unpatch(A,10)",
                "dtor(A,10,\"[]\")",
                "done- A",
                "gone A"
            ]
        );
    }

    #[test]
    fn stalls_and_lines_separate() {
        assert_eq!(
            events("enable A · start+ A │ signal\n│ apply A>spk"),
            ["enable A", "start+ A", "│", "signal", "│", "apply A>spk"]
        );
        assert!(events("–").is_empty());
        assert_eq!(events("pre_patch(A,10)=−19"), ["pre_patch(A,10)=-19"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("strat+ A", "is no event"),
            ("enable C", "does not declare"),
            ("pre_patch(A,11)", "has no state 11"),
            ("pre_patch(A,10", "not closed"),
            ("UP(A; –)", "three parts"),
            ("UP(A; │; –)", "no │ inside"),
            ("dtor(A,10)", "is no event"),
            ("post_patch(A,10)=-3", "is no event"),
            ("apply A", "is no event"),
            ("enable", "is no event"),
        ] {
            let what = parse(text, &patches()).unwrap_err();
            assert!(what.contains(word), "{text}: {what}");
        }
    }
}
