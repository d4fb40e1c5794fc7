//! Shadow variables of a patch in Rust.
//!
//! # Safety
//!
//! The functions are the runtime's; `include/suture.h` states what they promise. A variable's type is
//! settled by whoever makes the [`Shadow`].
#![allow(unsafe_code)]

use core::ffi::{c_int, c_void};
use core::marker::PhantomData;
use core::ops::Deref;
use core::ptr::NonNull;

// Objects are numbers to the runtime.

type Ctor = unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void) -> c_int;
type Dtor = unsafe extern "C" fn(*mut c_void, *mut c_void);

unsafe extern "C" {
    safe fn suture_shadow_enter() -> u32;
    safe fn suture_shadow_leave(guard: u32);
    safe fn suture_shadow_get(obj: usize, id: u64) -> *mut c_void;
    fn suture_shadow_alloc(
        obj: usize,
        id: u64,
        size: usize,
        ctor: Option<Ctor>,
        arg: *mut c_void,
    ) -> *mut c_void;
    fn suture_shadow_get_or_alloc(
        obj: usize,
        id: u64,
        size: usize,
        ctor: Option<Ctor>,
        arg: *mut c_void,
    ) -> *mut c_void;
    fn suture_shadow_free(obj: usize, id: u64, dtor: Option<Dtor>);
    fn suture_shadow_free_all(id: u64, dtor: Option<Dtor>);
}

/// The variables of one id, all of type `T`: data beside objects of the program that cannot be changed.
///
/// Any thread may use it, and any signal handler. Readers share a variable, so `T` is `Sync`; it has no
/// destructor, because a variable may be removed while another thread still reads it.
///
/// ```no_run
/// use core::sync::atomic::{AtomicU64, Ordering};
/// use suture_abi::author::Shadow;
///
/// // SAFETY: no other patch uses the id.
/// static HITS: Shadow<AtomicU64> = unsafe { Shadow::new(0x5348_0001) };
///
/// extern "C" fn lookup(table: *const core::ffi::c_void) {
///     if let Some(hits) = HITS.get_or_insert_with(table, || AtomicU64::new(0)) {
///         hits.fetch_add(1, Ordering::Relaxed);
///     }
/// }
/// # lookup(core::ptr::null());
/// ```
#[derive(Debug)]
pub struct Shadow<T> {
    id: u64,
    kind: PhantomData<fn() -> T>,
}

/// A variable that was found. It stays readable as long as this is held, also when it is removed.
#[derive(Debug)]
pub struct ShadowRef<'s, T> {
    data: NonNull<T>,
    guard: u32,
    kind: PhantomData<&'s T>,
}

impl<T: Sync + 'static> Shadow<T> {
    const FITS: () = assert!(
        !core::mem::needs_drop::<T>() && align_of::<T>() <= 16,
        "a shadow variable has no destructor and an alignment of at most 16"
    );

    /// The variables of an id.
    ///
    /// # Safety
    ///
    /// Whoever else makes variables of that id in the same process, in any language, makes valid `T`s.
    #[must_use]
    pub const unsafe fn new(id: u64) -> Self {
        let () = Self::FITS;
        Self { id, kind: PhantomData }
    }

    /// The object's variable.
    #[must_use]
    pub fn get(&self, obj: *const c_void) -> Option<ShadowRef<'_, T>> {
        self.look(|| suture_shadow_get(obj.addr(), self.id))
    }

    /// The object's variable, made by `make` if there is none. `None`: there is no memory, or this call was
    /// made in `make`.
    pub fn get_or_insert_with(
        &self,
        obj: *const c_void,
        make: impl FnOnce() -> T,
    ) -> Option<ShadowRef<'_, T>> {
        // SAFETY: `call` fits `ctor` and `arg` below.
        self.make(make, |ctor, arg| unsafe {
            suture_shadow_get_or_alloc(obj.addr(), self.id, size_of::<T>(), Some(ctor), arg)
        })
    }

    /// A new variable. `None` also if there is one already.
    pub fn insert_with(&self, obj: *const c_void, make: impl FnOnce() -> T) -> Option<ShadowRef<'_, T>> {
        // SAFETY: as above.
        self.make(make, |ctor, arg| unsafe {
            suture_shadow_alloc(obj.addr(), self.id, size_of::<T>(), Some(ctor), arg)
        })
    }

    /// Removes the object's variable, if it has one.
    pub fn remove(&self, obj: *const c_void) {
        // SAFETY: without a destructor nothing is called; references are held under guards.
        unsafe { suture_shadow_free(obj.addr(), self.id, None) };
    }

    /// Removes the variables of all objects.
    pub fn remove_all(&self) {
        // SAFETY: as in `remove`.
        unsafe { suture_shadow_free_all(self.id, None) };
    }

    fn make<F: FnOnce() -> T>(
        &self,
        make: F,
        call: impl FnOnce(Ctor, *mut c_void) -> *mut c_void,
    ) -> Option<ShadowRef<'_, T>> {
        /// Fills the variable with what the closure gives.
        unsafe extern "C" fn fill<T, F: FnOnce() -> T>(
            _: *mut c_void,
            data: *mut c_void,
            arg: *mut c_void,
        ) -> c_int {
            // SAFETY: `make` below passes its own variable, and nobody else has it during the call.
            let Some(make) = (unsafe { (*arg.cast::<Option<F>>()).take() }) else { return 1 };
            // SAFETY: the runtime gives memory for a `T`, aligned to 16, that nobody sees yet.
            unsafe { data.cast::<T>().write(make()) };
            0
        }
        let mut make = Some(make);
        let arg = (&raw mut make).cast();
        self.look(|| call(fill::<T, F>, arg))
    }

    fn look(&self, find: impl FnOnce() -> *mut c_void) -> Option<ShadowRef<'_, T>> {
        let guard = suture_shadow_enter();
        let Some(data) = NonNull::new(find().cast()) else {
            suture_shadow_leave(guard);
            return None;
        };
        Some(ShadowRef { data, guard, kind: PhantomData })
    }
}

impl<T> Deref for ShadowRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: a complete `T` (`Shadow::new`), whose memory the guard keeps as it is.
        unsafe { self.data.as_ref() }
    }
}

impl<T> Drop for ShadowRef<'_, T> {
    fn drop(&mut self) {
        suture_shadow_leave(self.guard);
    }
}
