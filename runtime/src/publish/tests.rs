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

/// Books are of the process: one test at a time publishes.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A reader that follows the sequence lock never sees a table that belongs to no state, and one that
/// does not (a forked child's) never sees a count larger than the table.
#[test]
fn readers_see_whole_states_only() {
    let _alone = alone();
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
            // SAFETY: tests that publish hold the lock.
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

/// Threads of the program that read books while the next ones come never see freed or mixed ones, and what had to
/// wait for them is freed when they are done.
#[test]
fn readers_inside_keep_what_they_read() {
    let _alone = alone();
    let stop = AtomicBool::new(false);
    let reads = AtomicU32::new(0);
    let mut most = 0;
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    with_current(|books| {
                        // Twice, with time in between for somebody to free them.
                        for _ in 0..2 {
                            let count = books.patches.len() as u32;
                            assert!(books.patches.iter().all(|p| p.state == count), "rows of two states");
                            std::thread::yield_now();
                        }
                    });
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut round = 0u32;
        while reads.load(Ordering::Relaxed) < 20_000 {
            round += 1;
            let next = ready(books(round % 4)).unwrap();
            // SAFETY: tests that publish hold the lock.
            unsafe { next.show() };
            most = most.max(RETIRED.iter().filter(|p| !p.load(Ordering::Relaxed).is_null()).count());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(most > 0, "nobody was ever read: this has shown nothing");
    // The other test counts generations from a multiple of four.
    loop {
        // SAFETY: as above.
        unsafe { ready(books(0)).unwrap().show() };
        if BLOCK.generation().load(Ordering::Relaxed).is_multiple_of(4) {
            break;
        }
    }
    assert!(RETIRED.iter().all(|p| p.load(Ordering::Relaxed).is_null()));
}
