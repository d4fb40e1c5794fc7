//! The conformance scenarios about states, callbacks and replace, as fixed sequences.
//!
//! The words are those of the scenarios; a destructor's event stands for the job that frees a state's
//! variables. That a patch does not hold an id twice, or 0, is refused earlier, with its batch.

use super::lab::{Lab, Step};
use super::{Code, EBUSY, ECANCELED, EINVAL, ENOENT, Host, Patch, State};

const F: usize = 0;
const G: usize = 1;
const BLOCKER: usize = 3;
/// A thread that is in no function unless it is told to, and one that is in many.
const W: u32 = 2;
const T1: u32 = 1;

/// A state with everything.
fn state(id: u64) -> State {
    State { id, is_shadow: true, block_disable: false, has: [true; 4], has_dtor: true, fails: 0 }
}

/// `A!{f,g; 10,11!}`: replaces all, the functions f and g, the states 10 and 11, the latter blocks.
pub fn patch(text: &str) -> Patch {
    let (head, body) = text.trim_end_matches('}').split_once('{').unwrap();
    let (funcs, states) = body.split_once(';').unwrap();
    let names = |text: &str| -> Vec<String> {
        text.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect()
    };
    Patch {
        name: head.chars().next().unwrap(),
        replace: head.ends_with('!'),
        funcs: names(funcs)
            .iter()
            .map(|f| ["f", "g", "h", "blocker"].iter().position(|n| n == f).unwrap())
            .collect(),
        states: names(states)
            .iter()
            .map(|s| State {
                block_disable: s.ends_with('!'),
                ..state(s.trim_end_matches('!').parse().unwrap())
            })
            .collect(),
    }
}

/// The events of a whole enable, with those before the start and those after the threads have moved.
fn up(name: char, before: &str, after: &str) -> String {
    join(&[
        &format!("enable {name} · init+ {name}"),
        before,
        &format!("start+ {name} · completing+ {name}"),
        after,
        &format!("done+ {name}"),
    ])
}

/// The events of a whole disable.
fn down(name: char, before: &str, after: &str) -> String {
    join(&[
        &format!("init- {name}"),
        before,
        &format!("start- {name} · completing- {name}"),
        after,
        &format!("done- {name} · gone {name}"),
    ])
}

fn join(parts: &[&str]) -> String {
    parts.iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>().join(" · ")
}

/// A lab that stops at the first difference.
pub struct Script {
    lab: Lab,
    seen: usize,
}

impl Script {
    pub fn new() -> Self {
        Script { lab: Lab::new(3), seen: 0 }
    }

    #[track_caller]
    pub fn step(&mut self, step: Step) -> u32 {
        self.lab.step(&step).unwrap_or_else(|differs| panic!("{step:?}: {differs}"))
    }

    #[track_caller]
    pub fn enable(&mut self, text: &str) {
        assert_eq!(self.refused(text), 0);
    }

    #[track_caller]
    pub fn refused(&mut self, text: &str) -> u32 {
        self.step(Step::Apply(patch(text), None))
    }

    #[track_caller]
    pub fn disable(&mut self, name: char) {
        assert_eq!(self.step(Step::Write(name, false)), 0);
    }

    #[track_caller]
    pub fn tick(&mut self) {
        self.step(Step::Tick);
    }

    /// The events since the last time, without those the scenarios do not show.
    #[track_caller]
    pub fn events(&mut self, expected: &str) {
        let new = &self.lab.events()[self.seen..];
        let hidden = |e: &str| {
            e.starts_with("> ") || e.starts_with("ended") || e.starts_with("freed") || e.starts_with("forced")
        };
        let shown = new.iter().map(|e| e.strip_prefix("> ").filter(|e| e.starts_with("dtor")).unwrap_or(e));
        let shown: Vec<&str> = shown.filter(|e| !hidden(e)).collect();
        assert_eq!(shown.join(" · "), expected);
        self.seen = self.lab.events().len();
    }

    /// The events since the last time that have this word, whatever they are.
    pub fn count(&self, word: &str) -> usize {
        self.lab.events()[self.seen..].iter().filter(|e| e.contains(word)).count()
    }
}

#[test]
fn sta_1_state_callbacks() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.disable('A');
    s.events(&down('A', "pre_unpatch(A,10)", "post_unpatch(A,10) · dtor(A,10)"));
}

#[test]
fn sta_2_failing_pre_patch() {
    let mut s = Script::new();
    let mut a = patch("A{f; 10}");
    a.states[0].fails = 19;
    s.step(Step::Apply(a, None));
    s.events(
        "enable A · init+ A · pre_patch(A,10)=-19 · fail A · cancel A · completing- A · dtor(A,10) · done- A · gone A",
    );
    assert_eq!(s.lab.effect(W, F), Code::Old(F));
}

#[test]
fn sta_3_blocked_transition() {
    let mut s = Script::new();
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{f,blocker; 10}");
    s.events("enable A · init+ A · pre_patch(A,10) · start+ A");
    assert_eq!((s.lab.effect(W, F), s.lab.effect(T1, F)), (Code::New('A', F), Code::Old(F)));
    s.disable('A');
    s.tick();
    s.events("rev- A · start- A · completing- A · post_unpatch(A,10) · dtor(A,10) · done- A · gone A");
}

#[test]
fn sta_4_unblocked_transition() {
    let mut s = Script::new();
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{f,blocker; 10}");
    s.events("enable A · init+ A · pre_patch(A,10) · start+ A");
    assert_eq!((s.lab.effect(W, F), s.lab.effect(T1, F)), (Code::New('A', F), Code::Old(F)));
    s.step(Step::Return(T1));
    s.tick();
    s.events("completing+ A · post_patch(A,10) · done+ A");
    s.disable('A');
    s.events(&down('A', "pre_unpatch(A,10)", "post_unpatch(A,10) · dtor(A,10)"));
}

#[test]
fn sta_5_parallel_patches() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.enable("B{f; 11}");
    s.events(&up('B', "pre_patch(B,11)", "post_patch(B,11)"));
    s.disable('B');
    s.events(&down('B', "pre_unpatch(B,11)", "post_unpatch(B,11) · dtor(B,11)"));
    s.disable('A');
    s.events(&down('A', "pre_unpatch(A,10)", "post_unpatch(A,10) · dtor(A,10)"));
}

#[test]
fn sta_6_atomic_replace() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.enable("R!{f; 10,11}");
    s.events(&join(&[&up('R', "pre_patch(R,11)", "post_patch(R,11)"), "gone A"]));
    s.disable('R');
    let after = "post_unpatch(R,10) · dtor(R,10) · post_unpatch(R,11) · dtor(R,11)";
    s.events(&down('R', "pre_unpatch(R,10) · pre_unpatch(R,11)", after));
}

#[test]
fn sta_7_and_8_a_state_without_functions_is_taken_over() {
    let mut s = Script::new();
    s.enable("A!{; 1}");
    s.events(&up('A', "pre_patch(A,1)", "post_patch(A,1)"));
    s.enable("B!{; 1}");
    s.events(&join(&[&up('B', "", ""), "gone A"]));
    s.disable('B');
    s.events(&down('B', "pre_unpatch(B,1)", "post_unpatch(B,1) · dtor(B,1)"));
}

#[test]
fn sta_9_incompatible_cumulative_patches() {
    let mut s = Script::new();
    s.enable("B!{; 1!}");
    s.events(&up('B', "pre_patch(B,1)", "post_patch(B,1)"));
    assert_eq!(s.refused("A!{;}"), EINVAL);
    s.events("");
    s.enable("C!{; 1}");
    s.events(&join(&[&up('C', "", ""), "gone B"]));
    s.disable('C');
    s.events(&down('C', "pre_unpatch(C,1)", "post_unpatch(C,1) · dtor(C,1)"));
}

#[test]
fn sta_10_and_11_unwinding_goes_forward_and_frees_what_the_failed_state_left() {
    let mut s = Script::new();
    let mut a = patch("A{f; 8,9,10,11}");
    a.states[2].fails = 12;
    s.step(Step::Apply(a, None));
    s.events(
        "enable A · init+ A · pre_patch(A,8) · pre_patch(A,9) · pre_patch(A,10)=-12 · fail A · cancel A · \
         completing- A · post_unpatch(A,8) · dtor(A,8) · post_unpatch(A,9) · dtor(A,9) · dtor(A,10) · \
         done- A · gone A",
    );
    s.enable("B{f; 8,9,10,11}");
    let all = |word: &str| (8..12).map(|id| format!("{word}(B,{id})")).collect::<Vec<_>>().join(" · ");
    s.events(&up('B', &all("pre_patch"), &all("post_patch")));
}

#[test]
fn sta_12_a_dropped_state_is_undone_by_its_own_patch() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.enable("R!{f;}");
    s.events(&join(&[&up('R', "pre_unpatch(A,10)", "post_unpatch(A,10) · dtor(A,10)"), "gone A"]));
}

#[test]
fn sta_13_keep_add_and_drop() {
    let mut s = Script::new();
    s.enable("A{f; 10,11,12}");
    s.seen = s.lab.events().len();
    s.enable("R!{f; 11,13,14}");
    let before = "pre_patch(R,13) · pre_patch(R,14) · pre_unpatch(A,10) · pre_unpatch(A,12)";
    let after = "post_unpatch(A,10) · dtor(A,10) · post_unpatch(A,12) · dtor(A,12) · \
                 post_patch(R,13) · post_patch(R,14)";
    s.events(&join(&[&up('R', before, after), "gone A"]));
}

#[test]
fn sta_14_a_replace_is_reversed() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.seen = s.lab.events().len();
    s.step(Step::Call(T1, BLOCKER));
    s.enable("R!{blocker; 11}");
    s.events("enable R · init+ R · pre_patch(R,11) · pre_unpatch(A,10) · start+ R");
    s.disable('R');
    s.events("rev- R · start- R");
    s.tick();
    s.events("completing- R · post_patch(A,10) · post_unpatch(R,11) · dtor(R,11) · done- R · gone R");
    assert!(s.lab.is_enabled('A'));
    assert_eq!(s.lab.effect(T1, F), Code::New('A', F));
}

#[test]
fn sta_15_a_disable_is_reversed() {
    let mut s = Script::new();
    s.enable("A{blocker; 10}");
    s.seen = s.lab.events().len();
    s.step(Step::Call(T1, BLOCKER));
    s.disable('A');
    s.events("init- A · pre_unpatch(A,10) · start- A");
    assert!(!s.lab.is_enabled('A'));
    assert_eq!(s.step(Step::Write('A', true)), 0);
    assert!(s.lab.is_enabled('A'));
    s.tick();
    s.events("rev+ A · start+ A · completing+ A · post_patch(A,10) · done+ A");
    assert_eq!(s.lab.transition(), None);
}

#[test]
fn sta_16_reversed_twice() {
    let mut s = Script::new();
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{blocker; 10}");
    s.step(Step::Call(W, BLOCKER));
    s.events("enable A · init+ A · pre_patch(A,10) · start+ A");
    s.disable('A');
    s.tick();
    s.events("rev- A · start- A");
    assert_eq!(s.step(Step::Write('A', true)), 0);
    s.tick();
    s.events("rev+ A · start+ A");
    s.step(Step::Return(T1));
    s.tick();
    s.events("completing+ A · post_patch(A,10) · done+ A");
}

#[test]
fn sta_17_a_state_of_parallel_patches() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.enable("B{g; 10}");
    s.events(&up('B', "", ""));
    s.disable('A');
    s.events(&down('A', "", ""));
    s.disable('B');
    s.events(&down('B', "pre_unpatch(B,10)", "post_unpatch(B,10) · dtor(B,10)"));
}

#[test]
fn sta_18_two_replaced_holders() {
    let mut s = Script::new();
    s.enable("A{f; 10}");
    s.enable("B{g; 10}");
    s.seen = s.lab.events().len();
    s.enable("R!{h;}");
    let replaced = up('R', "pre_unpatch(B,10)", "post_unpatch(B,10) · dtor(B,10)");
    s.events(&join(&[&replaced, "gone A", "gone B"]));
}

#[test]
fn sta_19_a_chain() {
    let mut s = Script::new();
    s.enable("A!{f; 10}");
    s.events(&up('A', "pre_patch(A,10)", "post_patch(A,10)"));
    s.enable("B!{f; 10}");
    s.events(&join(&[&up('B', "", ""), "gone A"]));
    s.enable("C!{f; 10,11}");
    s.events(&join(&[&up('C', "pre_patch(C,11)", "post_patch(C,11)"), "gone B"]));
    s.enable("D!{f; 11}");
    s.events(&join(&[&up('D', "pre_unpatch(C,10)", "post_unpatch(C,10) · dtor(C,10)"), "gone C"]));
}

#[test]
fn sta_20_and_21_variables_without_callbacks_and_callbacks_without_variables() {
    let mut s = Script::new();
    let mut a = patch("A{f; 10}");
    a.states[0] = State { has: [false; 4], has_dtor: false, ..a.states[0] };
    s.step(Step::Apply(a, None));
    s.events(&up('A', "", ""));
    s.disable('A');
    assert_eq!(s.count("freed(10)"), 1);
    s.events(&down('A', "", ""));
    let mut b = patch("B{f; 10}");
    b.states[0].is_shadow = false;
    s.step(Step::Apply(b, None));
    s.events(&up('B', "pre_patch(B,10)", "post_patch(B,10)"));
    s.disable('B');
    s.events(&down('B', "pre_unpatch(B,10)", "post_unpatch(B,10)"));
}

#[test]
fn sta_22_block_disable() {
    let mut s = Script::new();
    s.enable("A{f; 10,11!}");
    s.seen = s.lab.events().len();
    assert_eq!(s.step(Step::Write('A', false)), EINVAL);
    s.events("");
    assert!(s.lab.is_enabled('A') && s.lab.transition().is_none());
}

#[test]
fn sta_23_and_24_the_new_holders_flag_rules_and_parallel_patches_are_not_asked() {
    let mut s = Script::new();
    s.enable("A{f; 10!}");
    s.seen = s.lab.events().len();
    s.enable("B{g;}");
    s.events(&up('B', "", ""));
    s.disable('B');
    s.events(&down('B', "", ""));
    assert!(s.lab.is_enabled('A'));
    s.enable("R!{f; 10}");
    s.events(&join(&[&up('R', "", ""), "gone A"]));
    s.disable('R');
    s.events(&down('R', "pre_unpatch(R,10)", "post_unpatch(R,10) · dtor(R,10)"));
}

#[test]
fn sta_26_and_27_one_transition_at_a_time() {
    let mut s = Script::new();
    s.enable("B{g;}");
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{blocker;}");
    s.seen = s.lab.events().len();
    assert_eq!(s.refused("C{g; 11}"), EBUSY);
    assert_eq!(s.step(Step::Write('B', false)), EBUSY);
    s.events("");
    assert!(s.lab.is_enabled('B'));
    s.step(Step::Return(T1));
    s.tick();
    s.events("completing+ A · done+ A");
}

#[test]
fn sta_28_the_enabled_file() {
    let mut s = Script::new();
    s.enable("A{f;}");
    s.seen = s.lab.events().len();
    assert_eq!(s.step(Step::Write('A', true)), EINVAL);
    s.disable('A');
    s.events(&down('A', "", ""));
    assert_eq!(s.step(Step::Write('A', true)), ENOENT);
}

#[test]
fn sta_29_what_callbacks_find() {
    let mut s = Script::new();
    s.step(Step::Host(Host::Slow));
    s.enable("A{f; 10}");
    let check = |s: &mut Script, word: &str, code: Code| {
        assert_eq!(s.count(&format!("> {word}")), 1);
        assert_eq!((s.lab.effect(W, F), s.lab.transition().is_some()), (code, true), "{word}");
        s.seen = s.lab.events().len();
        s.step(Step::CallbackReturns);
    };
    check(&mut s, "pre_patch", Code::Old(F));
    s.tick();
    check(&mut s, "post_patch", Code::New('A', F));
    s.tick();
    assert_eq!(s.lab.transition(), None);
    s.disable('A');
    check(&mut s, "pre_unpatch", Code::New('A', F));
    s.tick();
    check(&mut s, "post_unpatch", Code::Old(F));
    s.tick();
    check(&mut s, "dtor", Code::Old(F));
    s.tick();
    assert_eq!(s.lab.transition(), None);
}

#[test]
fn bas_3_and_4_stacks() {
    let mut s = Script::new();
    s.enable("A{f;}");
    s.enable("B{f;}");
    assert_eq!(s.lab.effect(W, F), Code::New('B', F));
    s.disable('A');
    assert_eq!(s.lab.effect(W, F), Code::New('B', F));
    s.disable('B');
    assert_eq!(s.lab.effect(W, F), Code::Old(F));
}

#[test]
fn thr_2_and_3_children_start_where_their_creators_are_and_exit_is_enough() {
    let mut s = Script::new();
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{blocker,f;}");
    s.step(Step::Spawn(T1));
    s.step(Step::Spawn(W));
    let (unswitched, switched) = (4, 5);
    assert_eq!((s.lab.effect(unswitched, F), s.lab.effect(switched, F)), (Code::Old(F), Code::New('A', F)));
    s.step(Step::Call(unswitched, BLOCKER));
    s.step(Step::Exit(T1));
    s.tick();
    assert!(s.lab.transition().is_some());
    s.step(Step::Return(unswitched));
    s.tick();
    assert!(s.lab.transition().is_none());
}

#[test]
fn thr_7_and_8_force() {
    let mut s = Script::new();
    assert_eq!(s.step(Step::Force('A')), EINVAL);
    s.step(Step::Call(T1, BLOCKER));
    s.enable("A{blocker; 10}");
    s.events("enable A · init+ A · pre_patch(A,10) · start+ A");
    assert_eq!(s.step(Step::Force('A')), 0);
    assert!(s.lab.transition().is_some());
    s.tick();
    s.events("completing+ A · post_patch(A,10) · done+ A");
    s.step(Step::Return(T1));
    s.disable('A');
    s.events(&down('A', "pre_unpatch(A,10)", "post_unpatch(A,10) · dtor(A,10)"));
}

#[test]
fn hok_6_the_start_is_refused() {
    let mut s = Script::new();
    s.enable("A{g; 9}");
    s.seen = s.lab.events().len();
    s.step(Step::Apply(patch("R!{f; 10}"), Some(EBUSY)));
    s.events(
        "enable R · init+ R · pre_patch(R,10) · pre_unpatch(A,9) · fail R · cancel R · completing- R · \
         post_patch(A,9) · post_unpatch(R,10) · dtor(R,10) · done- R · gone R",
    );
    assert_eq!(s.lab.effect(W, G), Code::New('A', G));
}

#[test]
fn an_enable_that_waits_for_a_host_can_be_given_up() {
    let mut s = Script::new();
    s.step(Step::Host(Host::Away));
    s.enable("A{f; 10}");
    assert_eq!(s.step(Step::Reverse('A')), 0);
    s.tick();
    assert_eq!(s.count(&format!("ended: errno {ECANCELED}")), 1);
    s.events("enable A · init+ A · fail A · cancel A · completing- A · done- A · gone A");
}
