//! Jumps that lead straight to a new function: marked first, back on their stubs before a slot decides.

use super::{Plan, Session, answers, patch_subject, rel32, sites};
use crate::common::target::Target;
use std::mem::offset_of;
use suture_abi::block::{PATCH_STUBS_ONLY, PatchRow, RuntimeBlock, SITE_ARMED, SiteRow};
use suture_abi::channel::{MAY_LOOK, error, op};

fn marks(target: &Target) -> Vec<u64> {
    let rows: Vec<SiteRow> = target.rows(offset_of!(RuntimeBlock, sites));
    rows.iter().map(|row| row.direct).collect()
}

fn request(session: &Session<'_>, op: u32, first: u64, payload: &[u8]) -> (u32, u64) {
    let (error, _, results) = session.client.request(op, [first, MAY_LOOK, 0, 0], payload);
    (error, results[0])
}

/// Makes the jump of the site lead to an address.
fn aim(target: &Target, plan: &Plan, to: u64) {
    let mut word = target.read(plan.sites[0].store_addr, 8);
    word[1..5].copy_from_slice(&rel32(plan.sites[0].entry + 5, to));
    target.write(plan.sites[0].store_addr, &word);
}

const FIRST: [u8; 4] = 1u32.to_le_bytes();

#[test]
fn marks_follow_the_top_of_the_stack() {
    let target = Target::start();
    let session = Session::open(&target);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0), "nothing is patched");
    let (_, first) = patch_subject(&target, "a", 10, 0);
    let prepared = session.prepared(&first);
    assert_eq!(request(&session, op::DIRECT, 0, &[]).0, error::STATE, "a batch is prepared");
    session.arm(&first);
    session.enable(prepared);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1));
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0), "marked already");
    assert_eq!(marks(&target), [first.funcs[0].new_func]);
    aim(&target, &first, first.funcs[0].new_func);
    // The stub is never passed: what the slot says does not count.
    let slot = first.sites[0].slot;
    target.write(slot, &first.sites[0].copy.to_le_bytes());
    for _ in 0..3 {
        target.write(target.at("value"), &[0; 8]);
        answers(&target, 10);
    }
    target.write(slot, &first.funcs[0].new_func.to_le_bytes());

    // Neither goes anything on top of it, nor does it go.
    let (_, second) = patch_subject(&target, "b", 20, 1);
    let id = session.prepared(&second);
    assert_eq!(request(&session, op::ENABLE, id, &[]), (error::DIRECT, 1));
    assert_eq!(request(&session, op::DISABLE, prepared, &[]), (error::DIRECT, 1));
    // Nor does the mark while the jump is straight.
    assert_eq!(request(&session, op::STUBS, 0, &FIRST), (0, 1));
    assert_eq!(marks(&target), [first.funcs[0].new_func]);
    assert_eq!(request(&session, op::STUBS, 0, &[1, 0]).0, error::MALFORMED);
    assert_eq!(request(&session, op::STUBS, 0, &7u32.to_le_bytes()), (error::NO_ENTRY, 7));
    aim(&target, &first, first.sites[0].stub);
    assert_eq!(request(&session, op::ENABLE, id, &[]), (error::DIRECT, 1), "on its stub, and not seen to be");
    assert_eq!(request(&session, op::STUBS, 0, &FIRST), (0, 0));
    assert_eq!(marks(&target), [0]);
    session.enable(id);
    answers(&target, 20);

    // The one on top now, and the one below when that has gone.
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1));
    assert_eq!(marks(&target), [second.funcs[0].new_func]);
    assert_eq!(request(&session, op::STUBS, 0, &FIRST), (0, 0));
    session.disable(id);
    answers(&target, 10);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1));
    assert_eq!(marks(&target), [first.funcs[0].new_func]);
    assert_eq!(request(&session, op::STUBS, 0, &FIRST), (0, 0));
    session.disable(prepared);
    answers(&target, 1);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0));
    assert_eq!((marks(&target), sites(&target)), (vec![0], vec![(SITE_ARMED, 0)]));
    session.close();
}

#[test]
fn bytes_or_slots_that_are_not_the_books_are_not_marked() {
    let target = Target::start();
    let session = Session::open(&target);
    let (_, plan) = patch_subject(&target, "p", 2, 0);
    session.apply(&plan);
    let Plan { sites, funcs, .. } = &plan;
    target.write(sites[0].slot, &sites[0].copy.to_le_bytes());
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0), "a slot on the copy");
    target.write(sites[0].slot, &funcs[0].new_func.to_le_bytes());
    aim(&target, &plan, sites[0].copy);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0), "somebody else's jump");
    aim(&target, &plan, sites[0].stub);
    let stub = target.word(sites[0].stub);
    let mut more = [0x90, 0xff, 0x25, 0, 0, 0, 0, 0xcc];
    more[3..7].copy_from_slice(&rel32(sites[0].stub + 7, sites[0].slot));
    target.write(sites[0].stub, &more);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0), "a stub that does more than jump");
    target.write(sites[0].stub, &stub.to_le_bytes());
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1));
    session.close();
}

#[test]
fn after_a_forced_transition_every_entry_keeps_its_stub() {
    let target = Target::start();
    let session = Session::open(&target);
    let id = session.apply(&patch_subject(&target, "a", 10, 0).1);
    let (_, second) = patch_subject(&target, "b", 20, 1);
    let forced = session.prepared(&second);
    // The thread that counts in registers holds it up.
    session.client.expect(op::ENABLE, [forced, MAY_LOOK, 0, 0], &[]);
    assert_eq!(request(&session, op::DIRECT, 0, &[]).0, error::STATE, "threads are moving");
    let begun = session.client.expect(op::FORCE, [forced, 0, 0, 0], &[]);
    session.settle(begun);
    answers(&target, 20);
    let rows: Vec<PatchRow> = target.rows(offset_of!(RuntimeBlock, patches));
    assert!(rows.iter().all(|p| p.flags & PATCH_STUBS_ONLY != 0));
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0));
    session.disable(forced);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 0));
    session.disable(id);
    let again = session.apply(&patch_subject(&target, "c", 30, 1).1);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1), "a patch that came after it");
    assert_eq!(request(&session, op::STUBS, 0, &FIRST), (0, 0));
    session.disable(again);
    session.close();
}

/// A process forked at any time has marks that are true.
#[test]
fn a_child_knows_what_it_inherits() {
    let target = Target::start();
    let session = Session::open(&target);
    let (_, plan) = patch_subject(&target, "p", 2, 0);
    let id = session.apply(&plan);
    assert_eq!(request(&session, op::DIRECT, 0, &[]), (0, 1));
    aim(&target, &plan, plan.funcs[0].new_func);
    session.close();
    let child = target.fork();
    let of_child = Session::open(&child);
    assert_eq!(request(&of_child, op::DISABLE, id, &[]), (error::DIRECT, 1));
    aim(&child, &plan, plan.sites[0].stub);
    assert_eq!(request(&of_child, op::STUBS, 0, &FIRST), (0, 0));
    of_child.disable(id);
    answers(&child, 1);
    of_child.close();
    answers(&target, 2);
    assert_eq!(marks(&target), [plan.funcs[0].new_func]);
}
