//! Memory in vectors, for models and small tests: everything is a handful.
//!
//! The key's object *is* its hash, so that a test chooses buckets and tags.

use crate::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::atomic::{AtomicU32, AtomicU64};
use crate::bucket::begin_life;
use crate::guard::Guards;
use crate::hash::{Key, Seeds};
use crate::levels;
use crate::memory::{Header, Level, Line, Memory, NoMemory, Place, Spill};
use crate::word::{Block, Extent, HOME, Me, Meta, SPILL, Slot};

#[cfg(not(loom))]
use std::sync::Mutex;

#[cfg(loom)]
use loom::sync::Mutex;

/// One level.
struct Size {
    cells: Vec<AtomicU32>,
    lines: Vec<Line>,
    spills: Vec<(AtomicU64, Spill)>,
}

impl Size {
    fn new(bits: u32) -> Self {
        let slots = || std::array::from_fn::<_, HOME, _>(|_| AtomicU64::new(0));
        let line = |_| Line { meta: AtomicU64::new(0), slots: slots() };
        let spill = || Spill(std::array::from_fn::<_, SPILL, _>(|_| AtomicU64::new(0)));
        let lines: Vec<Line> = (0..1 << bits).map(line).collect();
        let spills = lines.iter().map(|_| (AtomicU64::new(0), spill())).collect();
        let cells = lines.iter().map(|_| AtomicU32::new(0)).collect();
        Size { cells, lines, spills }
    }
}

/// A table of one bucket that can grow to `1 << last_bits`.
pub struct Model {
    current: AtomicU64,
    settled: AtomicU64,
    sizes: Vec<Size>,
    blocks: Vec<Header>,
    free: Mutex<Vec<u64>>,
    /// Who holds on to removed variables.
    pub guards: Guards,
}

impl Model {
    /// A table with `blocks` blocks.
    pub fn new(last_bits: u32, blocks: u64) -> Self {
        let sizes: Vec<Size> = (0..=last_bits).map(Size::new).collect();
        let header = |_| Header {
            state: AtomicU64::new(0),
            obj: AtomicU64::new(0),
            id: AtomicU64::new(0),
            extent: AtomicU64::new(0),
        };
        let model = Model {
            current: AtomicU64::new(level(0).0),
            settled: AtomicU64::new(level(0).0),
            sizes,
            blocks: (0..blocks).map(header).collect(),
            free: Mutex::new((0..blocks).rev().collect()),
            guards: Guards::new(),
        };
        levels::open(&model.thread(0, 0), Place { level: level(0), index: 0 });
        model
    }

    /// The table as a thread sees it.
    pub fn thread(&self, number: u32, generation: u64) -> Thread<'_> {
        Thread { model: self, me: Me::new(number, generation) }
    }

    /// Ends a guard.
    pub fn leave(&self, guard: crate::guard::Place) {
        let mem = self.thread(0, 0);
        self.guards.leave(guard);
        self.guards.collect(|b| mem.header(b), |b| mem.give_back(b));
    }

    /// Blocks that are free.
    pub fn free(&self) -> usize {
        self.free.lock().unwrap().len()
    }

    /// Makes the next level current, if there is one, when this one is settled.
    pub fn grow_now(&self) -> bool {
        let now = Level(self.current.load(Acquire));
        let is_last = now.bits() as usize + 1 >= self.sizes.len();
        if is_last {
            return false;
        }
        self.settle_if(|mem, old| levels::move_bucket(mem, old, now).is_ok());
        self.current.compare_exchange(now.0, level(now.bits() + 1).0, AcqRel, Acquire).is_ok()
    }

    /// Says that the current level is settled, if this says of all buckets below that they have moved.
    fn settle_if(&self, has_moved: impl Fn(&Thread<'_>, Place) -> bool) {
        let mem = self.thread(0, 0);
        let (known, now) = (self.settled.load(Acquire), Level(self.current.load(Acquire)));
        if known == now.0 {
            return;
        }
        let old = level(now.bits() - 1);
        if (0..1 << old.bits()).all(|index| has_moved(&mem, Place { level: old, index })) {
            let _ = self.settled.compare_exchange(old.0, now.0, AcqRel, Acquire);
        }
    }
}

fn level(bits: u32) -> Level {
    Level::new(Level::ALIGN, bits, true)
}

/// A thread of a model.
#[derive(Clone, Copy)]
pub struct Thread<'m> {
    model: &'m Model,
    me: Me,
}

#[cfg(loom)]
impl<'m> Thread<'m> {
    /// The table.
    pub fn model(&self) -> &'m Model {
        self.model
    }
}

impl Memory for Thread<'_> {
    fn current(&self) -> &AtomicU64 {
        &self.model.current
    }

    fn settled(&self) -> &AtomicU64 {
        &self.model.settled
    }

    fn seeds(&self) -> Seeds {
        Seeds(1, 1)
    }

    fn hash(&self, key: Key) -> u64 {
        key.obj
    }

    fn line(&self, place: Place) -> &Line {
        &self.model.sizes[place.level.bits() as usize].lines[place.index as usize]
    }

    fn cell(&self, place: Place) -> &AtomicU32 {
        &self.model.sizes[place.level.bits() as usize].cells[place.index as usize]
    }

    fn spill(&self, place: Place) -> Option<&Spill> {
        let (made, spill) = &self.model.sizes[place.level.bits() as usize].spills[place.index as usize];
        (made.load(Acquire) != 0).then_some(spill)
    }

    fn make_spill(&self, place: Place) -> Result<&Spill, NoMemory> {
        let (made, spill) = &self.model.sizes[place.level.bits() as usize].spills[place.index as usize];
        made.store(1, crate::atomic::Ordering::Release);
        Ok(spill)
    }

    fn below(&self, level: Level) -> Option<Level> {
        let bits = level.bits().checked_sub(1)?;
        Some(self::level(bits))
    }

    fn begin(&self) -> Result<(), NoMemory> {
        Ok(())
    }

    fn grow(&self, level: Level) -> Result<(), NoMemory> {
        let grown = self.model.grow_now() || self.model.current.load(Acquire) != level.0;
        if grown { Ok(()) } else { Err(NoMemory) }
    }

    fn header(&self, block: Block) -> &Header {
        &self.model.blocks[(block.addr / 32 - 1) as usize]
    }

    fn data(&self, block: Block) -> u64 {
        block.addr
    }

    fn take(&self, _: u64, _: usize) -> Result<Block, NoMemory> {
        let index = self.model.free.lock().unwrap().pop().ok_or(NoMemory)?;
        let header = &self.model.blocks[index as usize];
        let life = Extent(header.extent.load(Relaxed)).life() + 1;
        begin_life(header, Extent::new(life, index, 8));
        Ok(Block { addr: (index + 1) * 32, large: false })
    }

    fn give_back(&self, block: Block) {
        self.model.free.lock().unwrap().push(block.addr / 32 - 1);
    }

    fn retire(&self, block: Block) {
        self.model.guards.retire(block, |b| self.header(b), |b| self.give_back(b));
    }

    fn me(&self) -> Result<Me, NoMemory> {
        Ok(self.me)
    }

    fn wait(&self, _word: &AtomicU64, _value: u64) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        std::thread::yield_now();
    }

    fn wake(&self, _word: &AtomicU64) {}

    fn is_gone(&self, _: Me) -> bool {
        false
    }

    fn help(&self) {
        self.model.settle_if(|mem, old| Meta(mem.line(old).meta.load(Acquire)).is_moved());
    }
}

/// Every slot of the table that counts, at rest: block numbers by key.
pub fn committed(model: &Model) -> Vec<(Key, u64)> {
    let mem = model.thread(0, 0);
    let now = Level(model.current.load(Acquire));
    let mut all = Vec::new();
    for index in 0..1 << now.bits() {
        let bucket = levels::writable(&mem, (index << 1 | 1) << (63 - now.bits())).unwrap();
        for k in (0..HOME + SPILL).filter(|&k| bucket.meta.has(k)) {
            let slot = Slot(bucket.slot(&mem, k).unwrap().load(Acquire));
            let header = mem.header(slot.block());
            let key = Key { obj: header.obj.load(Acquire), id: header.id.load(Acquire) };
            all.push((key, slot.block().addr));
        }
    }
    all
}
