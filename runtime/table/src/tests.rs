//! The protocol in one thread, over a table of vectors. (Threads: the models, and the tests of the runtime's
//! own memory.)

use crate::get::get;
use crate::hash::Key;
use crate::insert::{Inserted, insert};
use crate::model::{Model, committed};
use crate::remove::{Afterwards::Reclaim, remove};

fn key(hash: u64) -> Key {
    Key { obj: hash, id: 1 }
}

#[test]
fn what_was_inserted_is_found_until_it_is_removed() {
    let model = Model::new(4, 100);
    let mem = model.thread(1, 1);
    for i in 0..60u64 {
        let h = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert!(get(&mem, key(h)).is_none());
        assert!(matches!(insert(&mem, key(h), 8, None), Inserted::New(_)));
        assert!(matches!(insert(&mem, key(h), 8, None), Inserted::Exists(_)));
        for j in 0..=i {
            assert!(get(&mem, key(j.wrapping_mul(0x9e37_79b9_7f4a_7c15))).is_some(), "{i} {j}");
        }
    }
    assert_eq!(committed(&model).len(), 60);
    for i in 0..60u64 {
        let h = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(remove(&mem, key(h), None, Reclaim), Ok(true));
        assert_eq!(remove(&mem, key(h), None, Reclaim), Ok(false));
        assert!(get(&mem, key(h)).is_none());
    }
    assert_eq!(model.free(), 100);
}
