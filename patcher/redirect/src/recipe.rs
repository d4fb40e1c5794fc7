//! Plans for files that are not loaded yet.
//!
//! The object is planned as if it were loaded at a made-up base, in an address space with nothing else in it. What
//! comes out is turned into offsets from that base. Where the real object comes, the arena's place may be taken,
//! so the arena can be moved: the displacements that cross between it and the rest are listed. They are found by
//! decoding the copies, the only code of the arena that names anything outside it; jumps into the arena are those
//! of the sites and of the punned pages.

use crate::analysis::ObjectAnalysis;
use crate::error::{PlanError, Refusal};
use crate::options::Options;
use crate::pages::PAGE;
use crate::plan::{LoadedObject, PlannedSite, Request, plan_sites, pun_target};
use crate::process::{ExistingSite, ProcessView};
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use std::ops::Range;
use suture_abi::batch::{MAPPING_FILE, Site};
use suture_abi::late::{JUMP_NONE, Piece, Reloc};
use suture_elf::{Base, Vaddr};

/// Where the object is assumed: anywhere that leaves room on both sides.
const ASSUMED: u64 = 0x3000_0000_0000;

/// A plan for an object wherever it will be.
#[derive(Clone, Debug, Default)]
pub struct RecipePlan {
    /// Offset of the object's first page from its load base.
    pub start: u64,
    /// Offset behind its last page.
    pub end: u64,
    /// Pages near it, with offsets into [`RecipePlan::data`].
    pub pieces: Vec<Piece>,
    /// Displacements that change when pieces are moved.
    pub relocs: Vec<Reloc>,
    /// Bytes of the pieces.
    pub data: Vec<u8>,
    /// One for each request, in their order. Requests of the same entry have equal sites.
    pub sites: Vec<RecipeSite>,
}

/// A relative site.
#[derive(Clone, Debug)]
pub struct RecipeSite {
    /// What was planned. Addresses in the object are offsets from its load base; those of stub, slot, choice,
    /// dispatcher and copy mean nothing.
    pub planned: PlannedSite,
    /// Offset of the copy from the load base.
    pub copy: u64,
    /// Where in the data the word lies that the stub jumps through.
    pub slot: usize,
}

/// Plans the redirection of functions of a file, beside relative sites that other recipes for it have. Nothing is
/// planned unless all can be.
///
/// # Errors
/// As [`plan_sites`].
pub fn plan_recipe(
    analysis: &ObjectAnalysis,
    requests: &[Request],
    existing: &[Site],
    options: &Options,
) -> Result<RecipePlan, PlanError> {
    let objects = [LoadedObject { analysis: analysis.clone(), base: Base(ASSUMED) }];
    let assumed = |addr: u64| addr.wrapping_add(ASSUMED);
    let existing: Vec<ExistingSite> = existing
        .iter()
        .map(|s| {
            let (entry, site, store_addr) = (assumed(s.entry), assumed(s.site), assumed(s.store_addr));
            let pad_addr = if s.pad_len == 0 { 0 } else { assumed(s.pad_addr) };
            ExistingSite { id: s.id, site: Site { entry, site, store_addr, pad_addr, ..*s } }
        })
        .collect();
    let process = ProcessView { existing: &existing, ..ProcessView::default() };
    let plan = plan_sites(&objects, requests, &process, options)?;
    let hull = analysis.image_hull();
    let mut recipe = RecipePlan { start: hull.start, end: hull.end, ..RecipePlan::default() };
    let pages: Vec<u64> = plan.sites.iter().filter_map(|s| pun(&s.site)).map(|at| at & !(PAGE - 1)).collect();
    for m in &plan.mappings {
        let offset = recipe.data.len();
        let len = usize::try_from(m.len).unwrap_or(0);
        if m.kind == MAPPING_FILE {
            let from = usize::try_from(m.offset).unwrap_or(0);
            recipe.data.extend_from_slice(&plan.blob[from..from + len]);
        } else {
            recipe.data.resize(offset + len, 0);
        }
        recipe.pieces.push(Piece {
            at: relative(m.addr),
            len: m.len,
            data: u32::try_from(offset).unwrap_or(u32::MAX),
            exec: u32::from(m.kind == MAPPING_FILE),
            moves: u32::from(!pages.contains(&m.addr)),
            reserved: 0,
        });
    }
    let mut known: Vec<u64> = Vec::new();
    for planned in &plan.sites {
        let name = &planned.name;
        let odd = |at| PlanError::Refused(vec![(name.clone(), Refusal::CopyReach { at })]);
        if !known.contains(&planned.site.entry) {
            known.push(planned.site.entry);
            recipe.cross(&planned.site).map_err(odd)?;
        }
        let site = recipe.site(planned).ok_or_else(|| odd(Vaddr(relative(planned.site.site))))?;
        recipe.sites.push(site);
    }
    Ok(recipe)
}

fn relative(addr: u64) -> u64 {
    addr.wrapping_sub(ASSUMED)
}

/// Where the pun of a site leads, if it is one.
fn pun(site: &Site) -> Option<u64> {
    site.is_pun().then(|| pun_target(site))
}

impl RecipePlan {
    /// The piece that holds an assumed address, and the offset in it.
    fn place(&self, addr: u64) -> Option<(usize, u64)> {
        let at = relative(addr);
        let holds = |p: &Piece| at.wrapping_sub(p.at) < p.len;
        let index = self.pieces.iter().position(holds)?;
        Some((index, at.wrapping_sub(self.pieces[index].at)))
    }

    fn moves(&self, addr: u64) -> bool {
        self.place(addr).is_some_and(|(piece, _)| self.pieces[piece].moves != 0)
    }

    fn data_of(&self, addr: u64, len: u64) -> Option<Range<usize>> {
        let (piece, offset) = self.place(addr)?;
        let start = usize::try_from(u64::from(self.pieces[piece].data) + offset).ok()?;
        Some(start..start + usize::try_from(len).ok()?)
    }

    fn add(&mut self, at: u64) -> Option<()> {
        let (piece, offset) = self.place(at)?;
        let reloc = Reloc { piece: u32::try_from(piece).ok()?, at: u32::try_from(offset).ok()? };
        if !self.relocs.iter().any(|r| (r.piece, r.at) == (reloc.piece, reloc.at)) {
            self.relocs.push(reloc);
        }
        Some(())
    }

    /// Lists the displacements of a site's copy and page. `Err`: an instruction whose displacement cannot be
    /// moved.
    fn cross(&mut self, site: &Site) -> Result<(), Vaddr> {
        let lost = Vaddr(relative(site.site));
        let code =
            self.data_of(site.copy, site.copy_len).and_then(|r| self.data.get(r)).ok_or(lost)?.to_vec();
        let mut decoder = Decoder::with_ip(64, &code, site.copy, DecoderOptions::NONE);
        while decoder.can_decode() {
            let insn = decoder.decode();
            let offsets = decoder.get_constant_offsets(&insn);
            let branch = matches!(
                insn.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch | FlowControl::Call
            );
            let crossing = if insn.is_ip_rel_memory_operand() && !self.moves(insn.ip_rel_memory_address()) {
                Some((offsets.displacement_offset(), offsets.displacement_size()))
            } else if branch && insn.near_branch_target() != 0 && !self.moves(insn.near_branch_target()) {
                Some((offsets.immediate_offset(), offsets.immediate_size()))
            } else {
                None
            };
            match crossing {
                None => {}
                Some((at, 4)) => self.add(insn.ip() + at as u64).ok_or(lost)?,
                Some(_) => return Err(lost),
            }
        }
        let Some(target) = pun(site) else { return Ok(()) };
        // `jmp [rip + slot]`, or `jmp stub` where there is a prologue to undo.
        let opcode = self.data_of(target, 1).map(|r| self.data[r.start]);
        let skip = if opcode == Some(0xff) { 2 } else { 1 };
        self.add(target + skip).ok_or(lost)
    }

    fn site(&self, planned: &PlannedSite) -> Option<RecipeSite> {
        let site = planned.site;
        let relocated = Site {
            entry: relative(site.entry),
            site: relative(site.site),
            store_addr: relative(site.store_addr),
            pad_addr: if site.pad_addr == 0 { 0 } else { relative(site.pad_addr) },
            stub: 0,
            slot: 0,
            choice: 0,
            dispatcher: 0,
            copy: 0,
            copy_len: 0,
            late: 1,
            jump: jump(&site)?,
            ..site
        };
        Some(RecipeSite {
            planned: PlannedSite { site: relocated, ..planned.clone() },
            copy: relative(site.copy),
            slot: self.data_of(site.slot, 8)?.start,
        })
    }
}

/// Where the jump to the stub has its displacement.
fn jump(site: &Site) -> Option<u8> {
    if site.is_pun() {
        return Some(JUMP_NONE);
    }
    let (bytes, start) = match site.pad_len {
        0 => (site.new_word.to_le_bytes(), site.store_addr),
        _ => (site.pad_new, site.pad_addr),
    };
    let leads = |at: usize| {
        let field: Option<[u8; 4]> = bytes.get(at + 1..at + 5).and_then(|b| b.try_into().ok());
        let end = start + at as u64 + 5;
        bytes[at] == 0xe9
            && field.is_some_and(|d| end.wrapping_add_signed(i64::from(i32::from_le_bytes(d))) == site.stub)
    };
    (0..4).find(|at| leads(*at)).and_then(|at| u8::try_from(at + 1).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Instruction;
    use suture_abi::late::moved;
    use suture_elf::{ObjectFile, SymbolKind};

    /// What a copy refers to outside of the arena, decoded at an address.
    fn outside(code: &[u8], at: u64, arena: &Range<u64>) -> Vec<(iced_x86::Code, u64)> {
        let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
        let mut found = Vec::new();
        while decoder.can_decode() {
            let insn: Instruction = decoder.decode();
            let memory = insn.is_ip_rel_memory_operand().then(|| insn.ip_rel_memory_address());
            let branch = Some(insn.near_branch_target()).filter(|t| *t != 0);
            let targets = memory.into_iter().chain(branch).filter(|t| !arena.contains(t));
            found.extend(targets.map(|t| (insn.code(), t)));
        }
        found
    }

    /// Every function of a library that can be redirected: its copy, its jump and its page mean the same when the
    /// arena is moved.
    #[test]
    fn moved_arenas_mean_the_same() {
        let file = ObjectFile::open("/lib/x86_64-linux-gnu/libz.so.1".as_ref()).unwrap();
        let analysis = ObjectAnalysis::new(&file);
        let functions = file.symbols().all().filter(|s| s.kind == SymbolKind::Func && s.size > 0);
        let (mut classes, mut crossing) = (std::collections::BTreeMap::new(), 0);
        for symbol in functions {
            let request =
                Request { object: 0, entry: symbol.addr, name: symbol.name.to_owned(), replacement: None };
            let Ok(recipe) = plan_recipe(&analysis, &[request], &[], &Options::default()) else { continue };
            let site = &recipe.sites[0];
            *classes.entry(site.planned.class).or_insert(0) += 1;
            let delta = 0x5000u64.wrapping_neg();
            let mut data = recipe.data.clone();
            for reloc in &recipe.relocs {
                let piece = recipe.pieces[reloc.piece as usize];
                let at = (piece.data + reloc.at) as usize;
                let by = if piece.moves == 1 { delta.wrapping_neg() } else { delta };
                let new = moved(data[at..at + 4].try_into().unwrap(), by).unwrap();
                data[at..at + 4].copy_from_slice(&new);
            }
            let arena: Vec<_> = recipe.pieces.iter().filter(|p| p.moves == 1).collect();
            let start = arena.iter().map(|p| p.at.cast_signed()).min().unwrap().cast_unsigned();
            let end =
                arena.iter().map(|p| p.at.wrapping_add(p.len).cast_signed()).max().unwrap().cast_unsigned();
            let code = arena.iter().find(|p| p.exec == 1).unwrap();
            let copy = (u64::from(code.data) + site.copy.wrapping_sub(code.at)) as usize;
            let len = (code.data as usize + code.len as usize - copy).min(64);
            let shifted = start.wrapping_add(delta)..end.wrapping_add(delta);
            let before = outside(&recipe.data[copy..copy + len], site.copy, &(start..end));
            let after = outside(&data[copy..copy + len], site.copy.wrapping_add(delta), &shifted);
            // What follows the copy (the unused dispatcher) names only the arena, or absolute words.
            let same = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
            let relocated =
                recipe.relocs.iter().filter(|r| recipe.pieces[r.piece as usize].moves == 1).count();
            assert!(same >= relocated, "{}: {before:?} {after:?}", symbol.name);
            crossing += relocated;
            let placed = site.planned.site.placed(0x7000_0000_0000, delta).unwrap();
            if placed.is_pun() {
                let pages: Vec<_> = recipe.pieces.iter().filter(|p| p.moves == 0).collect();
                assert_eq!(pages.len(), 1, "{}", symbol.name);
            } else {
                let jump = usize::from(site.planned.site.jump);
                let (bytes, at) = match placed.pad_len {
                    0 => (placed.new_word.to_le_bytes(), placed.store_addr),
                    _ => (placed.pad_new, placed.pad_addr),
                };
                let distance = i32::from_le_bytes(bytes[jump..jump + 4].try_into().unwrap());
                let leads = at.wrapping_add(jump as u64 + 4).wrapping_add_signed(i64::from(distance));
                let stub = leads.wrapping_sub(0x7000_0000_0000);
                assert!(shifted.contains(&stub), "{}: {stub:#x} not in {shifted:x?}", symbol.name);
            }
        }
        assert!(crossing > 50 && classes.len() >= 3, "{crossing} {classes:?}");
    }
}
