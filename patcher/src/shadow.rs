//! Shadow variables of a process, read from outside without stopping it.
//!
//! Nothing that is read here is ever unmapped while the process lives, but the program goes on: what is
//! read is no snapshot, and a variable that comes or goes meanwhile may be in it or not.

use crate::error::Error;
use crate::target::Target;
use serde::Serialize;
use std::mem::{offset_of, size_of};
use suture_abi::block::RuntimeBlock;
use suture_abi::shadow::{
    BlockRow, CLASSES, FIRST_BLOCK, HEADS, IdRow, SLAB_LEN, STRIDES, STRIPES, SlabRow, StripeRow,
};
use suture_elf::{Addr, Memory};

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Variable {
    /// Its id.
    pub id: u64,
    /// The object it belongs to.
    pub object: u64,
    /// Its bytes' number.
    pub size: u64,
    /// Where they are.
    pub data: u64,
}

/// The variables of an id together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// The id.
    pub id: u64,
    /// How many there are.
    pub variables: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Variables of a process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Variables {
    /// By id.
    pub counts: Vec<Count>,
    /// Each, by id and object.
    pub variables: Vec<Variable>,
}

/// Most entries of a list of ids or slabs that are followed: a list that does not end is no list.
const MOST: usize = 1 << 22;

/// Words of a row as it lies in memory.
struct Row(Vec<u8>);

impl Row {
    fn word(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    fn half(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }
}

struct Reader<'t> {
    target: &'t Target,
}

impl Reader<'_> {
    fn row(&self, addr: u64, len: usize) -> Result<Row, Error> {
        match self.target.memory.read_vec(Addr(addr), len) {
            Ok(bytes) => Ok(Row(bytes)),
            Err(_) => {
                self.target.still_there()?;
                Err(self.odd(addr))
            }
        }
    }

    fn odd(&self, addr: u64) -> Error {
        Error::Patch {
            what: format!(
                "process {}: its list of shadow variables is broken at {addr:#x}; something has written over it",
                self.target.pid()
            ),
            errno: "EFAULT",
            hint: None,
        }
    }

    /// Rows of ids.
    fn ids(&self, block: Addr) -> Result<Vec<Row>, Error> {
        let heads = self.row(block.0 + offset_of!(RuntimeBlock, shadow) as u64, 8)?.word(0);
        if heads == 0 {
            return Ok(Vec::new());
        }
        let heads = self.row(heads, HEADS * 8)?;
        let mut ids = Vec::new();
        for head in 0..HEADS {
            let mut next = heads.word(head * 8);
            while next != 0 {
                let row = self.row(next, size_of::<IdRow>())?;
                next = row.word(offset_of!(IdRow, next));
                ids.push(row);
                if ids.len() > MOST {
                    return Err(self.odd(next));
                }
            }
        }
        Ok(ids)
    }

    /// Calls `each` with every variable of an id.
    fn variables(&self, row: &Row, each: &mut dyn FnMut(Variable)) -> Result<(), Error> {
        for stripe in 0..STRIPES {
            for class in 0..CLASSES {
                let stripe = offset_of!(IdRow, stripes) + stripe * size_of::<StripeRow>();
                let mut next = row.word(stripe + offset_of!(StripeRow, newest) + class * 8);
                let mut slabs = 0;
                while next != 0 {
                    let addr = next;
                    let head = self.row(addr, size_of::<SlabRow>())?;
                    next = head.word(offset_of!(SlabRow, before));
                    self.blocks(addr, &head, row.word(offset_of!(IdRow, id)), class, each)?;
                    slabs += 1;
                    if slabs > MOST {
                        return Err(self.odd(addr));
                    }
                }
            }
        }
        Ok(())
    }

    fn blocks(
        &self,
        slab: u64,
        head: &Row,
        id: u64,
        class: usize,
        each: &mut dyn FnMut(Variable),
    ) -> Result<(), Error> {
        let stride = STRIDES[class];
        let most = (SLAB_LEN - FIRST_BLOCK) / stride;
        let used = u64::from(head.half(offset_of!(SlabRow, used))).min(most);
        let len = usize::try_from(used * stride).map_err(|_| self.odd(slab))?;
        let start = slab + FIRST_BLOCK;
        let blocks = self.row(start, len)?;
        for at in (0..len).step_by(usize::try_from(stride).map_err(|_| self.odd(slab))?) {
            let block = BlockRow {
                state: blocks.word(at + offset_of!(BlockRow, state)),
                obj: blocks.word(at + offset_of!(BlockRow, obj)),
                id: blocks.word(at + offset_of!(BlockRow, id)),
                extent: blocks.word(at + offset_of!(BlockRow, extent)),
            };
            if !block.is_live() || block.id != id {
                continue;
            }
            let inside = at + size_of::<BlockRow>();
            let (data, size) = match class + 1 == CLASSES {
                true => (blocks.word(inside), blocks.word(inside + 8)),
                false => (start + inside as u64, block.size()),
            };
            each(Variable { id, object: block.obj, size, data });
        }
        Ok(())
    }
}

/// How many variables there are of each id.
///
/// # Errors
/// When the process is gone, or its lists are broken.
pub fn counts(target: &Target, block: Addr) -> Result<Vec<Count>, Error> {
    let reader = Reader { target };
    let mut counts = Vec::new();
    for row in reader.ids(block)? {
        let mut count = Count { id: row.word(offset_of!(IdRow, id)), ..Count::default() };
        reader.variables(&row, &mut |variable| {
            count.variables += 1;
            count.bytes = count.bytes.saturating_add(variable.size);
        })?;
        counts.push(count);
    }
    counts.retain(|count| count.variables > 0);
    counts.sort_by_key(|count| count.id);
    Ok(counts)
}

/// All variables, or those of one id.
///
/// # Errors
/// As [`counts`].
pub fn read(target: &Target, block: Addr, only: Option<u64>) -> Result<Variables, Error> {
    let reader = Reader { target };
    let mut variables = Vec::new();
    for row in reader.ids(block)? {
        if only.is_none_or(|id| id == row.word(offset_of!(IdRow, id))) {
            reader.variables(&row, &mut |variable| variables.push(variable))?;
        }
    }
    variables.sort_unstable();
    let mut counts: Vec<Count> = Vec::new();
    for variable in &variables {
        if counts.last().is_none_or(|count| count.id != variable.id) {
            counts.push(Count { id: variable.id, ..Count::default() });
        }
        if let Some(count) = counts.last_mut() {
            count.variables += 1;
            count.bytes = count.bytes.saturating_add(variable.size);
        }
    }
    Ok(Variables { counts, variables })
}
