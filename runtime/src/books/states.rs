//! States: which callbacks a transition runs, in which order.
//!
//! Pure. A state is *introduced* by a patch when no other listed patch has its id, and *removed* when the
//! patch leaves and no listed patch that stays has it: callbacks run when the number of holders goes from
//! 0 to 1 and from 1 to 0, never in between. States are visited in array order in every phase, forward,
//! also on the way back; patches in list order.
//!
//! Two rules go beyond the kernel's series: of several replaced patches that hold the same state, the
//! newest one's callbacks run, once; and the variables of a state whose `pre_patch` failed are released
//! although its `post_unpatch` is not called.

use super::Books;
use crate::list::{self, NoMemory};
use alloc_crate::vec::Vec;
use suture_abi::block::{
    PATCHING, PHASE_COMPLETING, PHASE_INIT, STATE_FAILED, STATE_INTRODUCED, STATE_UNPATCHING, StateRow,
    TRANSITION_FORCED, TransitionRow,
};
use suture_abi::descriptor::STATE_IS_SHADOW;
use suture_abi::event::word;

/// What is to be done for a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Call `pre_patch`; it may fail.
    PrePatch,
    /// Call `post_patch`.
    PostPatch,
    /// Call `pre_unpatch`.
    PreUnpatch,
    /// Call `post_unpatch`.
    PostUnpatch,
    /// Free all shadow variables of its id.
    FreeShadow,
}

impl JobKind {
    /// Word of the event it is.
    pub fn word(self) -> u32 {
        match self {
            JobKind::PrePatch => word::PRE_PATCH,
            JobKind::PostPatch => word::POST_PATCH,
            JobKind::PreUnpatch => word::PRE_UNPATCH,
            JobKind::PostUnpatch => word::POST_UNPATCH,
            JobKind::FreeShadow => word::DTOR,
        }
    }
}

/// One step of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// What.
    pub kind: JobKind,
    /// For which state: position in the books.
    pub state: usize,
}

impl Job {
    /// Address of the code of the patch that the job runs, 0 for none.
    pub fn code(&self, books: &Books) -> u64 {
        let Some(StateRow { plan, .. }) = books.states.get(self.state) else { return 0 };
        match self.kind {
            JobKind::PrePatch => plan.pre_patch,
            JobKind::PostPatch => plan.post_patch,
            JobKind::PreUnpatch => plan.pre_unpatch,
            JobKind::PostUnpatch => plan.post_unpatch,
            JobKind::FreeShadow => plan.shadow_dtor,
        }
    }

    /// Marks the state gets when the job is done.
    pub fn marks(&self, failed: bool) -> u32 {
        match self.kind {
            JobKind::PrePatch if failed => STATE_FAILED,
            JobKind::PrePatch => STATE_INTRODUCED,
            JobKind::PreUnpatch => STATE_UNPATCHING,
            _ => 0,
        }
    }
}

/// The jobs of the phase the transition is in, in order; the first `callbacks_done` of them are done.
///
/// The list does not change while it is worked off: it depends on who is listed, which only the end of
/// the transition changes, and, after the threads have moved, on marks that only the first phase sets.
pub fn jobs(books: &Books) -> Result<Vec<Job>, NoMemory> {
    let mut jobs = Vec::new();
    let Some(t) = books.transition.first() else { return Ok(jobs) };
    let mut add = |kind: JobKind, state: usize| list::push(&mut jobs, Job { kind, state });
    let of_patch = || books.states.iter().enumerate().filter(|(_, s)| s.patch == t.patch);
    let dropped = || books.states.iter().enumerate().filter(|(_, s)| is_dropped(books, t, s));
    match (t.phase, t.begun, t.target) {
        (PHASE_INIT, PATCHING, _) => {
            for (at, _) in of_patch().filter(|(_, s)| is_only_holder(books, s)) {
                add(JobKind::PrePatch, at)?;
            }
            for (at, _) in dropped() {
                add(JobKind::PreUnpatch, at)?;
            }
        }
        (PHASE_INIT, ..) => {
            for (at, _) in of_patch().filter(|(_, s)| is_only_holder(books, s)) {
                add(JobKind::PreUnpatch, at)?;
            }
        }
        (PHASE_COMPLETING, PATCHING, PATCHING) => {
            for (at, state) in dropped() {
                remove(&mut add, t, at, state)?;
            }
            for (at, _) in of_patch().filter(|(_, s)| is_only_holder(books, s)) {
                add(JobKind::PostPatch, at)?;
            }
        }
        (PHASE_COMPLETING, PATCHING, _) => {
            for (at, _) in dropped().filter(|(_, s)| s.marks & STATE_UNPATCHING != 0) {
                add(JobKind::PostPatch, at)?;
            }
            for (at, state) in of_patch() {
                if state.marks & STATE_INTRODUCED != 0 {
                    remove(&mut add, t, at, state)?;
                } else if state.marks & STATE_FAILED != 0 && state.plan.flags & STATE_IS_SHADOW != 0 {
                    add(JobKind::FreeShadow, at)?;
                }
            }
        }
        (PHASE_COMPLETING, _, PATCHING) => {
            for (at, _) in of_patch().filter(|(_, s)| s.marks & STATE_UNPATCHING != 0) {
                add(JobKind::PostPatch, at)?;
            }
        }
        (PHASE_COMPLETING, ..) => {
            for (at, state) in of_patch().filter(|(_, s)| is_only_holder(books, s)) {
                remove(&mut add, t, at, state)?;
            }
        }
        _ => {}
    }
    Ok(jobs)
}

/// The variables of a forced transition's states stay: threads that were moved without a look may use them.
fn remove(
    add: &mut impl FnMut(JobKind, usize) -> Result<(), NoMemory>,
    t: &TransitionRow,
    at: usize,
    state: &StateRow,
) -> Result<(), NoMemory> {
    add(JobKind::PostUnpatch, at)?;
    if state.plan.flags & STATE_IS_SHADOW != 0 && t.flags & TRANSITION_FORCED == 0 {
        add(JobKind::FreeShadow, at)?;
    }
    Ok(())
}

/// The states of that id that listed patches hold. One that is prepared is not listed yet, and may never be.
fn holders(books: &Books, id: u64) -> impl Iterator<Item = &StateRow> {
    let prepared = books.prepared().map_or(0, |batch| batch.0);
    books.states.iter().filter(move |s| s.plan.id == id && s.patch != prepared)
}

/// No other listed patch has a state of that id.
fn is_only_holder(books: &Books, state: &StateRow) -> bool {
    !holders(books, state.plan.id).any(|s| s.patch != state.patch)
}

/// The state of a patch that the transition's patch replaces and does not take over. Of several holders
/// the newest.
fn is_dropped(books: &Books, t: &TransitionRow, state: &StateRow) -> bool {
    let order = |patch: u32| books.patches.iter().position(|p| p.id == patch);
    let later = |s: &StateRow| s.patch == t.patch || order(s.patch) > order(state.patch);
    let held = || holders(books, state.plan.id);
    books.replaces(t)
        && state.patch != t.patch
        && held().any(|s| s.patch == state.patch)
        && !held().any(later)
}
