//! The shadow variables of the real runtime, and the maps one would take instead, behind one face.
//!
//! Values are 64 bytes; the others keep them boxed, because a value's address must not change.

use crate::error::{Error, io};
use foldhash::fast::FixedState;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError, RwLock};

/// Object and id.
pub type Key = (u64, u64);
type Value = Box<[u64; 8]>;

/// What is measured of a map. Each gives the first word of the value, which is the object plus one.
pub trait Table: Sync {
    /// The value of a key, 0 if there is none.
    fn get(&self, key: Key) -> u64;
    /// The same, made if there is none.
    fn get_or_make(&self, key: Key) -> u64;
    /// Makes a new value.
    fn make(&self, key: Key);
    /// Removes it.
    fn remove(&self, key: Key);
}

fn value(key: Key) -> Value {
    let mut value = Box::new([0; 8]);
    value[0] = key.0 + 1;
    value
}

type Get = unsafe extern "C" fn(u64, u64) -> *mut u64;
type Make =
    unsafe extern "C" fn(u64, u64, usize, unsafe extern "C" fn(u64, *mut u64, u64) -> i32, u64) -> *mut u64;
type Free = unsafe extern "C" fn(u64, u64, *mut c_void);

/// The runtime's table, by the functions patches call.
#[derive(Debug)]
pub struct Shadow {
    get: Get,
    get_or_alloc: Make,
    alloc: Make,
    free: Free,
}

unsafe extern "C" fn fill(obj: u64, data: *mut u64, _: u64) -> i32 {
    // SAFETY: a new variable of 64 bytes that nobody else has.
    unsafe { data.write(obj + 1) };
    0
}

impl Shadow {
    /// Loads the runtime into this process.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(runtime: &Path) -> Result<Self, Error> {
        let path = CString::new(runtime.as_os_str().as_encoded_bytes()).unwrap_or_default();
        // SAFETY: a library whose constructor registers the process for a barrier and does nothing else.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        let find = |name: &CStr| {
            // SAFETY: the handle of the library, or null, which finds nothing of these names.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            match found.is_null() {
                false => Ok(found),
                true => {
                    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
                    Err(io(format!("find {name:?} in the runtime"))(missing))
                }
            }
        };
        // SAFETY: the functions have these signatures (`include/suture.h`).
        unsafe {
            Ok(Self {
                get: std::mem::transmute::<*mut c_void, Get>(find(c"suture_shadow_get")?),
                get_or_alloc: std::mem::transmute::<*mut c_void, Make>(find(c"suture_shadow_get_or_alloc")?),
                alloc: std::mem::transmute::<*mut c_void, Make>(find(c"suture_shadow_alloc")?),
                free: std::mem::transmute::<*mut c_void, Free>(find(c"suture_shadow_free")?),
            })
        }
    }
}

fn word(data: *mut u64) -> u64 {
    // SAFETY: null, or a variable that is being read by its only remover, or is never removed.
    unsafe { data.as_ref() }.copied().unwrap_or(0)
}

impl Table for Shadow {
    fn get(&self, (obj, id): Key) -> u64 {
        // SAFETY: takes any numbers.
        word(unsafe { (self.get)(obj, id) })
    }

    fn get_or_make(&self, (obj, id): Key) -> u64 {
        // SAFETY: takes any numbers; the constructor fits.
        word(unsafe { (self.get_or_alloc)(obj, id, 64, fill, 0) })
    }

    fn make(&self, (obj, id): Key) {
        // SAFETY: as above. Without a constructor, as the others have none.
        let make: unsafe extern "C" fn(u64, u64, usize, usize, u64) -> *mut u64 =
            unsafe { std::mem::transmute(self.alloc) };
        // SAFETY: a null constructor is none.
        let data = unsafe { make(obj, id, 64, 0, 0) };
        if !data.is_null() {
            // SAFETY: a new variable; nobody reads it but this thread.
            unsafe { data.write(obj + 1) };
        }
    }

    fn remove(&self, (obj, id): Key) {
        // SAFETY: without a destructor.
        unsafe { (self.free)(obj, id, null_mut()) };
    }
}

/// `Mutex<HashMap>`.
#[derive(Debug, Default)]
pub struct Locked(Mutex<HashMap<Key, Value, FixedState>>);

impl Table for Locked {
    fn get(&self, key: Key) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map_or(0, |v| v[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert_with(|| value(key))[0]
    }

    fn make(&self, key: Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// `RwLock<HashMap>`.
#[derive(Debug, Default)]
pub struct Shared(RwLock<HashMap<Key, Value, FixedState>>);

impl Table for Shared {
    fn get(&self, key: Key) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key).map_or(0, |v| v[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        match self.get(key) {
            0 => {
                let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
                map.entry(key).or_insert_with(|| value(key))[0]
            }
            found => found,
        }
    }

    fn make(&self, key: Key) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }
}

/// dashmap.
#[derive(Debug, Default)]
pub struct Dash(dashmap::DashMap<Key, Value, FixedState>);

impl Table for Dash {
    fn get(&self, key: Key) -> u64 {
        self.0.get(&key).map_or(0, |v| v[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        self.0.entry(key).or_insert_with(|| value(key))[0]
    }

    fn make(&self, key: Key) {
        self.0.insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.remove(&key);
    }
}

/// `scc::HashIndex`.
#[derive(Debug, Default)]
pub struct SccIndex(scc::HashIndex<Key, Value, FixedState>);

impl Table for SccIndex {
    fn get(&self, key: Key) -> u64 {
        self.0.peek_with(&key, |_, v| v[0]).unwrap_or(0)
    }

    fn get_or_make(&self, key: Key) -> u64 {
        match self.get(key) {
            0 => self.0.entry_sync(key).or_insert_with(|| value(key)).get()[0],
            found => found,
        }
    }

    fn make(&self, key: Key) {
        let _ = self.0.insert_sync(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.remove_sync(&key);
    }
}

/// `scc::HashMap`.
#[derive(Debug, Default)]
pub struct SccMap(scc::HashMap<Key, Value, FixedState>);

impl Table for SccMap {
    fn get(&self, key: Key) -> u64 {
        self.0.read_sync(&key, |_, v| v[0]).unwrap_or(0)
    }

    fn get_or_make(&self, key: Key) -> u64 {
        self.0.entry_sync(key).or_insert_with(|| value(key)).get()[0]
    }

    fn make(&self, key: Key) {
        let _ = self.0.insert_sync(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.remove_sync(&key);
    }
}

/// papaya, in the mode in which reads do not stay slow after a growth.
#[derive(Debug)]
pub struct Papaya(papaya::HashMap<Key, Value, FixedState>);

impl Default for Papaya {
    fn default() -> Self {
        let builder = papaya::HashMap::builder().hasher(FixedState::default());
        Self(builder.resize_mode(papaya::ResizeMode::Blocking).build())
    }
}

impl Table for Papaya {
    fn get(&self, key: Key) -> u64 {
        self.0.pin().get(&key).map_or(0, |v| v[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        self.0.pin().get_or_insert_with(key, || value(key))[0]
    }

    fn make(&self, key: Key) {
        self.0.pin().insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.pin().remove(&key);
    }
}

/// flurry.
#[derive(Debug, Default)]
pub struct Flurry(flurry::HashMap<Key, Value, FixedState>);

impl Table for Flurry {
    fn get(&self, key: Key) -> u64 {
        self.0.pin().get(&key).map_or(0, |v| v[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        let map = self.0.pin();
        match map.get(&key) {
            Some(found) => found[0],
            None => map.try_insert(key, value(key)).map_or_else(|e| e.current[0], |v| v[0]),
        }
    }

    fn make(&self, key: Key) {
        self.0.pin().insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.pin().remove(&key);
    }
}

/// crossbeam-skiplist.
#[derive(Debug, Default)]
pub struct Skip(crossbeam_skiplist::SkipMap<Key, Value>);

impl Table for Skip {
    fn get(&self, key: Key) -> u64 {
        self.0.get(&key).map_or(0, |e| e.value()[0])
    }

    fn get_or_make(&self, key: Key) -> u64 {
        self.0.get_or_insert_with(key, || value(key)).value()[0]
    }

    fn make(&self, key: Key) {
        self.0.insert(key, value(key));
    }

    fn remove(&self, key: Key) {
        self.0.remove(&key);
    }
}
