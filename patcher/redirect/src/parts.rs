//! All code of a function: its body and the parts that lie elsewhere.
//!
//! Compilers move rare code away (`.cold`) and split functions (`.part`); a thread inside such a part
//! is inside the function, and its return address says only where the part is. Names are of no use:
//! distribution files keep none of the parts'. So parts are found by following control flow from the
//! body into other unwind ranges, transitively.
//!
//! What a jump leads to is a function of its own (a tail call), or a part. The error that matters is to
//! take a part for a function: a thread in it would be overlooked. The other one only makes a thread
//! wait. So a range is a part unless something proves that it is a function:
//!
//! | the range | is |
//! |---|---|
//! | has a function's symbol where the jump leads to, not one with `.cold` or `.part` | a function |
//! | is entered behind its start | a part |
//! | starts with a frame already made, by its unwind information | a part |
//! | is called by a decoded instruction outside the function and its parts | a function |
//! | anything else | a part |
//!
//! A pointer to it proves nothing: labels of computed jumps have pointers too. A part that several
//! functions jump into belongs to each of them.

use crate::Refusal;
use crate::analysis::ObjectAnalysis;
use crate::function::{self, Function};
use crate::refs::{Branch, direct_branch};
use crate::{pointers, tables};
use iced_x86::{Code, FlowControl, Instruction, Register};
use std::collections::BTreeSet;
use std::ops::Range;
use suture_elf::{Frame, SymbolKind, Type, Vaddr};

/// Parts of one function. More means that data was taken for code.
const MAX_PARTS: usize = 256;

/// Words looked at beyond the first and last label of a table.
const MAX_LABELS: usize = 32;

/// What a function consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionCode {
    /// From the entry to the end of the body.
    pub body: Range<Vaddr>,
    /// Parts elsewhere, ascending.
    pub parts: Vec<Range<Vaddr>>,
    /// A place from where control may go on to a part that was not found: an indirect jump whose
    /// targets are not known, an exception table that cannot be read, or bytes that are no code.
    pub unresolved: Option<Vaddr>,
}

impl FunctionCode {
    /// Finds the code of the function at `entry`.
    ///
    /// Decodes the function and its parts; looks through the whole object (1 ms for a C library) only
    /// where a nameless range might be a function, or an indirect jump leads to an unknown place.
    ///
    /// # Errors
    /// When there is no code, or nothing says how long the function is.
    ///
    /// # Examples
    /// ```
    /// # use suture_elf::ObjectFile;
    /// # use suture_redirect::{FunctionCode, ObjectAnalysis};
    /// let file = ObjectFile::open("/proc/self/exe".as_ref()).unwrap();
    /// let object = ObjectAnalysis::new(&file);
    /// let main = file.symbols().functions_named("main")[0];
    /// let code = FunctionCode::of(&object, main.addr).unwrap();
    /// assert_eq!(code.body.end.0 - code.body.start.0, main.size);
    /// assert!(code.ranges().all(|r| r.start < r.end));
    /// ```
    pub fn of(object: &ObjectAnalysis, entry: Vaddr) -> Result<Self, Refusal> {
        if object.code_from(entry).is_none() {
            return Err(Refusal::NotCode(entry));
        }
        let frame = object.frames().at(entry);
        let end = function::end(object, entry, frame.as_ref()).ok_or(Refusal::NoSize)?;
        Ok(Self::with_body(object, entry..end))
    }

    /// The same where the body is known.
    #[must_use]
    pub fn with_body(object: &ObjectAnalysis, body: Range<Vaddr>) -> Self {
        let mut search = Search {
            object,
            body: body.clone(),
            parts: Vec::new(),
            asked: Vec::new(),
            indirect: false,
            unresolved: None,
        };
        search.run();
        let (mut parts, unresolved) = (search.parts, search.unresolved);
        parts.sort_by_key(|p| p.start);
        Self { body, parts, unresolved }
    }

    /// Body and parts.
    pub fn ranges(&self) -> impl Iterator<Item = Range<Vaddr>> + '_ {
        std::iter::once(&self.body).chain(&self.parts).cloned()
    }
}

/// Parts of a decoded function. See [`FunctionCode`].
#[must_use]
pub fn split_parts(object: &ObjectAnalysis, function: &Function) -> Vec<Range<Vaddr>> {
    FunctionCode::with_body(object, function.entry..function.end).parts
}

/// All code of the function at `entry`: itself first, then its parts elsewhere. Where nothing else says how
/// long it is, `size` does. See [`FunctionCode`].
#[must_use]
pub fn code_ranges(object: &ObjectAnalysis, entry: Vaddr, size: u64) -> Vec<Range<Vaddr>> {
    let sized = || {
        let end = object.frames().at(entry).map_or(entry + size, |f| f.end.max(entry + size));
        FunctionCode::with_body(object, entry..end)
    };
    FunctionCode::of(object, entry).unwrap_or_else(|_| sized()).ranges().collect()
}

/// A range that may be a part, unless something calls it.
struct Asked {
    frame: Frame,
    /// Addresses of the instructions that call its start; looked for when first needed.
    callers: Option<Vec<Vaddr>>,
}

struct Search<'a> {
    object: &'a ObjectAnalysis,
    body: Range<Vaddr>,
    parts: Vec<Range<Vaddr>>,
    asked: Vec<Asked>,
    /// Some indirect jump is not one through a table of offsets.
    indirect: bool,
    unresolved: Option<Vaddr>,
}

impl Search<'_> {
    fn run(&mut self) {
        let mut work = vec![self.body.clone()];
        let mut looked_back = false;
        loop {
            while let Some(range) = work.pop() {
                if self.parts.len() > MAX_PARTS {
                    self.unresolved = Some(range.start);
                    return;
                }
                for target in self.leaving(&range) {
                    work.extend(self.enter(target));
                }
            }
            if self.indirect && !looked_back {
                looked_back = true;
                for target in self.labels() {
                    work.extend(self.enter(target));
                }
                for frame in self.returning() {
                    work.extend(self.judge(frame));
                }
            }
            work.extend(self.decide());
            if work.is_empty() {
                return;
            }
        }
    }

    fn contains(&self, addr: Vaddr) -> bool {
        self.body.contains(&addr) || self.parts.iter().any(|p| p.contains(&addr))
    }

    /// Where control goes from a range without a call, inside it or not.
    fn leaving(&mut self, range: &Range<Vaddr>) -> BTreeSet<Vaddr> {
        let code = self.object.decode(range);
        let tables = tables::resolve(self.object, &code, range);
        let jumps = code.iter().filter_map(direct_branch).filter(|b| !b.call).map(|b| b.target);
        let mut targets: BTreeSet<Vaddr> = jumps.chain(tables.targets.iter().map(|t| t.1)).collect();
        let tabled = |i: &Instruction| tables.targets.iter().any(|t| t.0.0 == i.ip());
        let mut indirect = code.iter().filter(|i| i.flow_control() == FlowControl::IndirectBranch);
        if indirect.any(|i| !tabled(i)) {
            self.indirect = true;
            let found = self.any_tables(&code);
            if found.is_empty() {
                self.unresolved = self.unresolved.or(tables.unresolved);
            }
            targets.extend(found);
        }
        targets.extend(self.pads(range));
        match code.last() {
            // Hand-written code may run into what follows it.
            Some(last) if last.next_ip() == range.end.0 => {
                if !function::is_terminal(last) && !is_call(last) {
                    targets.insert(range.end);
                }
            }
            Some(last) => self.unresolved = self.unresolved.or(Some(Vaddr(last.next_ip()))),
            None => self.unresolved = self.unresolved.or(Some(range.start)),
        }
        targets
    }

    /// Targets from everything that can be a table and whose address the code takes: compilers take it
    /// long before the jump, for example in front of a loop.
    fn any_tables(&self, code: &[Instruction]) -> Vec<Vaddr> {
        let data = |at: u64| self.object.file().bytes_from(Vaddr(at)).unwrap_or_default();
        let is_data = |at: &u64| self.object.code_from(Vaddr(*at)).is_none();
        let inside = |t: &Vaddr| self.body.contains(t) || self.is_nameless(*t);
        let mut targets = Vec::new();
        // Offsets from the table itself.
        let taken = code.iter().filter(|i| i.code() == Code::Lea_r64_m && i.is_ip_rel_memory_operand());
        for table in taken.map(Instruction::ip_rel_memory_address).filter(is_data) {
            let entries = data(table).as_chunks::<4>().0.iter().map(|e| i64::from(i32::from_le_bytes(*e)));
            targets.extend(entries.map(|e| Vaddr(table.wrapping_add_signed(e))).take_while(inside));
        }
        // Addresses, in executables that load where they say.
        let fixed = self.object.file().kind() == Type::Exec;
        let scaled = |i: &&Instruction| i.memory_index_scale() == 8 && i.memory_base() == Register::None;
        let indexed = code.iter().filter(|i| fixed && i.memory_index() != Register::None).filter(scaled);
        for table in indexed.map(Instruction::memory_displacement64).filter(is_data) {
            let entries = data(table).as_chunks::<8>().0.iter().map(|e| Vaddr(u64::from_le_bytes(*e)));
            targets.extend(entries.take_while(inside));
        }
        targets
    }

    /// Where exceptions continue that come out of the range.
    fn pads(&mut self, range: &Range<Vaddr>) -> Vec<Vaddr> {
        let frames = self.object.frames();
        let mut pads = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if let Some(frame) = frames.at(at) {
                match frames.landing_pads(&frame) {
                    Some(found) => pads.extend(found),
                    None => self.unresolved = self.unresolved.or(Some(frame.start)),
                }
            }
            at = frames.next_start(at).unwrap_or(range.end);
        }
        pads
    }

    /// Takes the range that something jumps into, if it is a part; it is then to be looked at.
    fn enter(&mut self, target: Vaddr) -> Option<Range<Vaddr>> {
        if self.contains(target) || self.is_stub(target) {
            return None;
        }
        let frame = self.object.frames().at(target)?;
        if target == frame.start {
            return self.judge(frame);
        }
        let function = self.named(target) == Some(Name::Function);
        (!function).then(|| self.take(&frame))
    }

    /// Takes a range that is entered at its start, or asks.
    fn judge(&mut self, frame: Frame) -> Option<Range<Vaddr>> {
        if self.contains(frame.start) || self.asked.iter().any(|a| a.frame == frame) {
            return None;
        }
        match self.named(frame.start) {
            Some(Name::Function) => return None,
            Some(Name::Part) => return Some(self.take(&frame)),
            None => {}
        }
        if self.object.frames().starts_like_a_function(&frame) == Some(false) {
            return Some(self.take(&frame));
        }
        self.asked.push(Asked { frame, callers: None });
        None
    }

    fn take(&mut self, frame: &Frame) -> Range<Vaddr> {
        self.parts.push(frame.start..frame.end);
        frame.start..frame.end
    }

    fn named(&self, addr: Vaddr) -> Option<Name> {
        let functions = || {
            self.object.symbols_at(addr).filter(|s| matches!(s.kind, SymbolKind::Func | SymbolKind::Ifunc))
        };
        let part = |name: &str| name.contains(".cold") || name.contains(".part.");
        if functions().any(|s| !part(s.name)) {
            return Some(Name::Function);
        }
        self.object.symbols_at(addr).any(|s| part(s.name)).then_some(Name::Part)
    }

    /// Whether the code there only jumps through a pointer: a tail call of an import.
    fn is_stub(&self, target: Vaddr) -> bool {
        let within = |ranges: &[Range<Vaddr>]| ranges.iter().any(|r| r.contains(&target));
        if within(self.object.plt()) || within(self.object.start_code()) {
            return true;
        }
        let code = self.object.decode(&(target..target + 16));
        let first = code.iter().find(|i| i.code() != Code::Endbr64);
        first.is_some_and(|i| i.flow_control() == FlowControl::IndirectBranch && i.is_ip_rel_memory_operand())
    }

    /// Takes those of the asked ranges that nothing outside calls. All of them are parts until a call
    /// from outside is found, so that two that call each other are parts too.
    fn decide(&mut self) -> Vec<Range<Vaddr>> {
        // Some may have been taken since, because something else enters them behind their start.
        let taken: Vec<Range<Vaddr>> = self.parts.clone();
        self.asked.retain(|a| !taken.iter().any(|p| p.contains(&a.frame.start)));
        self.find_callers();
        let mut open: Vec<usize> = (0..self.asked.len()).collect();
        loop {
            let inside =
                |addr: Vaddr| self.contains(addr) || open.iter().any(|&i| self.asked[i].frame.contains(addr));
            let stays = |i: &usize| self.asked[*i].callers.iter().flatten().all(|c| inside(*c));
            let kept: Vec<usize> = open.iter().copied().filter(|i| stays(i)).collect();
            if kept.len() == open.len() {
                break;
            }
            open = kept;
        }
        let frames: Vec<Frame> = open.iter().map(|&i| self.asked[i].frame).collect();
        self.asked.retain(|a| !frames.contains(&a.frame));
        frames.iter().map(|frame| self.take(frame)).collect()
    }

    fn find_callers(&mut self) {
        let unknown = |a: &&Asked| a.callers.is_none();
        let starts: Vec<Range<Vaddr>> =
            self.asked.iter().filter(unknown).map(|a| a.frame.start..a.frame.start + 1).collect();
        if starts.is_empty() {
            return;
        }
        let references = self.object.references(starts);
        for asked in self.asked.iter_mut().filter(|a| a.callers.is_none()) {
            let start = asked.frame.start;
            let calls = references.branches(&(start..start + 1)).iter().filter(|b| b.call);
            // Four bytes that look like a call prove nothing: only an instruction does.
            let real = calls.filter(|b| is_instruction(self.object, b));
            asked.callers = Some(real.map(|b| b.source).collect());
        }
    }

    /// Ranges with a jump into the middle of the function: parts that are entered by computed jumps
    /// come back like that.
    fn returning(&self) -> Vec<Frame> {
        let own: Vec<Range<Vaddr>> = std::iter::once(&self.body).chain(&self.parts).cloned().collect();
        let middles: Vec<Range<Vaddr>> = own.iter().map(|r| r.start + 1..r.end).collect();
        let references = self.object.references(middles.clone());
        let branches = middles.iter().flat_map(|m| references.branches(m));
        let jumps = branches.filter(|b| !b.call && !self.contains(b.source));
        let real = jumps.filter(|b| is_instruction(self.object, b));
        let mut frames: Vec<Frame> = real.filter_map(|b| self.object.frames().at(b.source)).collect();
        frames.sort_by_key(|f| f.start);
        frames.dedup();
        frames
    }

    /// Targets of computed jumps elsewhere: words of a table of pointers of which others lead into the
    /// middle of the body.
    fn labels(&self) -> Vec<Vaddr> {
        let hull = self.object.code_hull();
        let mut words: Vec<(u64, Vaddr)> = Vec::new();
        let file = self.object.file();
        pointers::each(file, &(hull.start.0..hull.end.0), |to, place| words.push((place, Vaddr(to))));
        words.sort_unstable();
        let own = |w: &(u64, Vaddr)| w.1 > self.body.start && self.body.contains(&w.1);
        let mut targets = Vec::new();
        for run in words.chunk_by(|a, b| a.0 + 8 == b.0) {
            let (Some(first), Some(last)) = (run.iter().position(own), run.iter().rposition(own)) else {
                continue;
            };
            // The table's first and last labels may be in parts; its neighbour may be another table.
            let before = run[..first].iter().rev().take(MAX_LABELS).take_while(|w| self.is_nameless(w.1));
            let behind = run[last..].iter().skip(1).take(MAX_LABELS).take_while(|w| self.is_nameless(w.1));
            let between = run[first..last].iter().filter(|w| self.is_nameless(w.1));
            targets.extend(before.chain(between).chain(behind).map(|w| w.1));
        }
        targets
    }

    /// Whether the address lies in a range that has no function's name.
    fn is_nameless(&self, addr: Vaddr) -> bool {
        let frame = self.object.frames().at(addr);
        frame.is_some_and(|f| self.named(f.start) != Some(Name::Function))
    }
}

/// What a symbol says of the code it stands at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Function,
    Part,
}

fn is_call(insn: &Instruction) -> bool {
    matches!(insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
}

/// Whether a branch that was found by its bytes is an instruction of the unwind range it lies in.
fn is_instruction(object: &ObjectAnalysis, branch: &Branch) -> bool {
    let Some(frame) = object.frames().at(branch.source) else { return false };
    let code = object.decode(&(frame.start..frame.end));
    let found = code.iter().find(|i| i.next_ip() == branch.next.0).and_then(direct_branch);
    found.is_some_and(|b| b.target == branch.target && b.call == branch.call)
}
