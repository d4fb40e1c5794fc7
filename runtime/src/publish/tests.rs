use super::*;
use core::sync::atomic::fence;
use std::sync::atomic::{AtomicBool, AtomicU32};
use suture_abi::block::PatchRow;

fn books(count: u32) -> Books {
    let row = |id| PatchRow {
        flags: 0,
        reserved: 0,
        id,
        state: count,
        name: [0; 56],
        time_ns: 0,
        description: 0,
        description_len: 0,
        image: 0,
        func_count: 0,
    };
    Books { patches: (1..=count).map(row).collect(), ..Books::default() }
}

/// A reader that follows the sequence lock never sees a table that belongs to no state, and one that
/// does not (a forked child's) never sees a count larger than the table.
#[test]
fn readers_see_whole_states_only() {
    let block = BLOCK.as_ptr();
    let (stop, whole) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let block = BLOCK.as_ptr();
            let mut last = 0;
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: the block is a static; as a reader from outside would, word by word.
                unsafe {
                    let before = (*block).rows_seq.load(Ordering::Acquire);
                    let count = addr_of_mut!((*block).patches.count).read_volatile();
                    let addr = addr_of_mut!((*block).patches.addr).read_volatile();
                    let generation = (*block).generation.load(Ordering::Relaxed);
                    fence(Ordering::Acquire);
                    let after = (*block).rows_seq.load(Ordering::Relaxed);
                    if before == after && before.is_multiple_of(2) {
                        assert_eq!(u64::from(count), generation % 4, "a state that never was");
                        assert_eq!(addr == 0, count == 0);
                        // Looks that found nothing new prove nothing.
                        if generation != last {
                            whole.fetch_add(1, Ordering::Relaxed);
                            last = generation;
                        }
                    }
                }
            }
        });
        // Until the reader has had its share of looks, on however loaded a machine.
        let mut round = 0u32;
        while whole.load(Ordering::Relaxed) < 20_000 && !reader.is_finished() {
            round += 1;
            let next = ready(books(round % 4)).unwrap();
            // SAFETY: this test is the only publisher of the test program.
            unsafe { next.show() };
            // SAFETY: as above; the reference is not used after the next `show`.
            let now = unsafe { current() }.unwrap();
            assert_eq!(now.patches.len(), (round % 4) as usize);
        }
        while !round.is_multiple_of(4) {
            round += 1;
            // SAFETY: as above.
            unsafe { ready(books(round % 4)).unwrap().show() };
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    // A publication that was cut off by a fork: odd, then whole again.
    // SAFETY: as above.
    unsafe {
        (*block).rows_seq.fetch_add(1, Ordering::Relaxed);
        rescue().unwrap();
        assert!((*block).rows_seq.load(Ordering::Relaxed).is_multiple_of(2));
        assert_eq!(current().unwrap().patches.len(), 0);
    }
}
