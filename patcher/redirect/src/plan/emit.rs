//! The memory of a plan: stubs, copies, dispatchers, slots, punned pages.

use super::{Failure, PlannedSite, Planner, RedirectPlan, Subject, image};
use crate::arena::Arena;
use crate::dispatcher::dispatcher;
use crate::error::{PlanError, Refusal, TargetFault};
use crate::pages::PAGE;
use crate::plan::site::with_bytes;
use crate::relocate;
use crate::stub;
use crate::window::Undo;
use std::ops::Range;
use suture_abi::batch::{
    MAPPING_ANON, MAPPING_FILE, Mapping, PROT_EXEC, PROT_READ, PROT_WRITE, ROLE_ARENA, Site,
};
use suture_elf::{Addr, Base};

/// The jump that leads to the stub.
#[derive(Clone, Copy)]
pub(super) struct Hop {
    /// Where a near jump stands (P, S, A).
    pub from: Addr,
    /// Where the pun leads (J, W).
    pub pun: Option<u64>,
}

impl Planner<'_> {
    /// An arena in reach of the object and of the punned page.
    pub(super) fn arena(&mut self, subject: &Subject<'_>, pun: Option<u64>) -> Result<usize, Failure> {
        let own = image(subject.loaded);
        let near = match pun {
            Some(target) => own.start.min(target)..own.end.max(target + PAGE),
            None => own.clone(),
        };
        if let Some(index) = self.arenas.iter().position(|a| a.suits(&near)) {
            return Ok(index);
        }
        let nowhere = suture_elf::MapsSnapshot::default();
        let maps = self.process.maps.unwrap_or(&nowhere);
        let mut taken: Vec<Range<u64>> = self.arenas.iter().map(Arena::range).collect();
        taken.extend(self.pages.addresses().map(|p| p..p + PAGE));
        if let Some(target) = pun {
            taken.push(target & !(PAGE - 1)..(target & !(PAGE - 1)) + PAGE);
        }
        if self.process.maps.is_none() {
            taken.extend(self.objects.iter().map(image));
        }
        match Arena::place(maps, &taken, &own, &near, self.requests) {
            Some(arena) => {
                self.room.take(arena.range());
                self.arenas.push(arena);
                Ok(self.arenas.len() - 1)
            }
            None if pun.is_some() => {
                let page = pun.unwrap_or_default() & !(PAGE - 1);
                Err(Refusal::Target { page, why: TargetFault::Reach }.into())
            }
            None => Err(Failure::Plan(PlanError::NoRoom {
                path: subject.loaded.analysis.file().path().to_owned(),
                base: subject.loaded.base.0,
                len: self.requests as u64 * PAGE,
            })),
        }
    }

    /// Writes stub, copy, dispatcher and jumps, and completes the site.
    pub(super) fn fill(
        &mut self,
        arena: usize,
        base: Base,
        code: &[iced_x86::Instruction],
        undo: &[Undo],
        hop: Hop,
        site: &mut Site,
    ) -> Result<(), Failure> {
        let Hop { from, pun } = hop;
        let arena = &mut self.arenas[arena];
        let unreachable = || {
            let page = pun.unwrap_or(site.site) & !(PAGE - 1);
            Refusal::Target { page, why: TargetFault::Reach }
        };
        let slot = arena.next_slot();
        // Without a prologue to undo the punned page itself holds the jump through the slot.
        let direct = pun.filter(|_| undo.is_empty()).and_then(|at| stub::stub(&[], Addr(at), slot));
        let mut at_page = direct.clone();
        let stub_at = match (pun, &direct) {
            (Some(target), Some(_)) => Addr(target),
            _ => {
                let at = arena.next();
                arena.push(&stub::stub(undo, at, slot).ok_or_else(unreachable)?);
                if let Some(target) = pun {
                    let jump = stub::jump(Addr(target), at).ok_or_else(unreachable)?;
                    at_page = Some(jump.to_vec());
                }
                at
            }
        };
        let copy_at = arena.next();
        let copy = relocate::copy(code, base, copy_at)?;
        arena.push(&copy);
        let choice = slot + 8;
        let dispatcher_at = arena.next();
        arena.push(&dispatcher(dispatcher_at, choice, &self.process.dispatch).ok_or_else(unreachable)?);
        site.stub = stub_at.0;
        site.slot = slot.0;
        site.choice = choice.0;
        site.dispatcher = dispatcher_at.0;
        site.copy = copy_at.0;
        site.copy_len = copy.len() as u64;
        if pun.is_none() {
            let jump = stub::jump(from, stub_at).ok_or_else(unreachable)?;
            if site.pad_len > 0 {
                site.pad_new[..jump.len()].copy_from_slice(&jump);
            } else {
                site.new_word = with_bytes(site.new_word, from.0 - site.store_addr, &jump);
            }
        }
        arena.take_slot();
        if let (Some(target), Some(bytes)) = (pun, at_page) {
            self.pages.put(target, bytes);
        }
        Ok(())
    }

    pub(super) fn finish(self, sites: Vec<PlannedSite>) -> RedirectPlan {
        let mut plan = RedirectPlan { sites, ..RedirectPlan::default() };
        let mapping = |addr, len, offset, kind, prot| Mapping {
            addr,
            len,
            offset,
            kind,
            prot,
            final_prot: prot,
            role: ROLE_ARENA,
        };
        for arena in self.arenas.iter().filter(|a| !a.slot_pages().is_empty()) {
            let (addr, code) = arena.code_pages();
            if !code.is_empty() {
                let offset = plan.blob.len() as u64;
                plan.mappings.push(mapping(
                    addr,
                    code.len() as u64,
                    offset,
                    MAPPING_FILE,
                    PROT_READ | PROT_EXEC,
                ));
                plan.blob.extend(code);
            }
            let slots = arena.slot_pages();
            let len = slots.end - slots.start;
            plan.mappings.push(mapping(slots.start, len, 0, MAPPING_ANON, PROT_READ | PROT_WRITE));
        }
        let (bytes, shown) = self.pages.pack();
        let first = plan.blob.len() as u64;
        for (page, index) in shown {
            let offset = first + index as u64 * PAGE;
            plan.mappings.push(mapping(page, PAGE, offset, MAPPING_FILE, PROT_READ | PROT_EXEC));
        }
        plan.blob.extend(bytes);
        plan
    }
}
