//! How a patch is written in Rust: [`patch!`](crate::patch), the counterpart of the macros in
//! `include/suture.h`.
//!
//! A patch is a `no_std` `cdylib` with `panic = "abort"`, unwind tables and no start files;
//! `samples/rust` is a complete one. New functions are `extern "C"`. Functions and variables of the
//! target are declared in an ordinary `unsafe extern "C"` block.
//!
//! # Safety
//!
//! The two `unsafe` items here are the `Sync` of the descriptor (the command reads it from the file;
//! in the target nobody writes it) and the call through a slot the command has filled.
#![allow(unsafe_code)]

mod attributes;
mod shadow;

pub use attributes::{attribute, attribute_text, set_attribute};
pub use shadow::{Shadow, ShadowRef};

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::descriptor::{Callbacks, Func, Object, Patch, Reference, State};

/// The exported descriptor. Only [`patch!`](crate::patch) makes one.
#[repr(transparent)]
#[derive(Debug)]
pub struct Descriptor(pub Patch);

// SAFETY: `Sync` asks that shared references may be used from several threads; nothing in the
// target reads or writes the descriptor but callbacks, which the runtime calls one at a time.
unsafe impl Sync for Descriptor {}

/// Function pointer types an [`Old`] can hold.
///
/// # Safety
///
/// The type is as large as a pointer and every non-null address of a function of that signature is
/// a valid value of it.
pub unsafe trait FnPointer: Copy {}

macro_rules! fn_pointers {
    ($(($($arg:ident),*))*) => {
        $(
            // SAFETY: a function pointer is pointer-sized, and any function's address is a value.
            unsafe impl<R, $($arg),*> FnPointer for extern "C" fn($($arg),*) -> R {}
            // SAFETY: as above.
            unsafe impl<R, $($arg),*> FnPointer for unsafe extern "C" fn($($arg),*) -> R {}
        )*
    };
}
fn_pointers! { () (A) (A, B) (A, B, C) (A, B, C, D) (A, B, C, D, E) (A, B, C, D, E, F) }

/// The entry under which a replaced function stays callable.
///
/// Written once by the command, before any code of the patch runs, when the patch names it with
/// `old`; read by the patch's functions.
#[derive(Debug)]
pub struct Old<F> {
    slot: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

impl<F: FnPointer> Old<F> {
    /// An entry that is not filled yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { slot: AtomicPtr::new(ptr::null_mut()), kind: PhantomData }
    }

    /// The old function.
    ///
    /// # Panics
    ///
    /// If the patch does not name this entry with `old`, so that nobody filled it.
    #[must_use]
    pub fn get(&self) -> F {
        // Relaxed: the command fills slots before the patch's code can be reached at all.
        let address = self.slot.load(Ordering::Relaxed);
        assert!(!address.is_null(), "the patch does not name this entry with `old`");
        // SAFETY: `FnPointer` promises the size and that any function's address is a value; the
        // command put the address of the function of that name there, whose signature the author
        // states as he states that of an extern function.
        unsafe { core::mem::transmute_copy(&address) }
    }

    /// Address of the pointer, for the reference table.
    #[must_use]
    pub const fn slot(&self) -> *mut *mut c_void {
        self.slot.as_ptr()
    }
}

impl<F: FnPointer> Default for Old<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// End of a function table.
pub const END_FUNC: Func =
    Func { old_name: ptr::null(), new_func: ptr::null(), sympos: 0, offset: 0, expected: ptr::null() };
/// End of an object table.
pub const END_OBJECT: Object = Object { name: ptr::null(), build_id: ptr::null(), funcs: ptr::null() };
/// End of a reference table.
pub const END_REFERENCE: Reference = Reference {
    slot: ptr::null_mut(),
    kind: 0,
    reserved: 0,
    object: ptr::null(),
    symbol: ptr::null(),
    sympos: 0,
    offset: 0,
    expected: ptr::null(),
};

/// A state without callbacks.
pub const NO_CALLBACKS: Callbacks =
    Callbacks { pre_patch: None, post_patch: None, pre_unpatch: None, post_unpatch: None, shadow_dtor: None };
/// End of a state table.
pub const END_STATE: State = State { id: 0, flags: 0, reserved: 0, callbacks: NO_CALLBACKS };

/// A state of a patch.
///
/// # Panics
/// While it is compiled, if `id` is 0: that ends the table.
#[must_use]
pub const fn state(id: u64, flags: u32, callbacks: Callbacks) -> State {
    assert!(id != 0, "0 is no id of a state");
    State { id, flags, reserved: 0, callbacks }
}

/// The slot of a function's entry in the reference table: null unless the patch asks for it.
#[must_use]
pub const fn last(slots: &[*mut *mut c_void]) -> *mut *mut c_void {
    slots[slots.len() - 1]
}

/// Moves the references that have a slot to the front: the table ends at the first without.
#[must_use]
pub const fn compact<const N: usize>(mut references: [Reference; N]) -> [Reference; N] {
    let (mut kept, mut next) = (0, 0);
    while next < N {
        if !references[next].slot.is_null() {
            let (front, back) = references.split_at_mut(next);
            if kept < next {
                core::mem::swap(&mut front[kept], &mut back[0]);
            }
            kept += 1;
        }
        next += 1;
    }
    references
}

/// What [`patch!`](crate::patch) calls to put the tables together.
#[must_use]
pub const fn describe(
    name: *const core::ffi::c_char,
    flags: u64,
    objects: *const Object,
    states: *const State,
    references: *const Reference,
) -> Descriptor {
    let size = size_of::<Patch>() as u32;
    Descriptor(Patch { abi: crate::DESCRIPTOR_VERSION, size, name, flags, objects, states, references })
}

/// Writes the descriptor of a patch and exports it. Once per patch. A state is its id, flags if it has
/// any, and the callbacks it has.
///
/// ```
/// use suture_abi::author::Old;
/// use suture_abi::descriptor::{Patch, STATE_BLOCK_DISABLE, STATE_IS_SHADOW, State};
/// static OLD_PRICE: Old<extern "C" fn(u64) -> u64> = Old::new();
/// extern "C" fn new_price(item: u64) -> u64 { OLD_PRICE.get()(item) + 1 }
/// extern "C" fn new_greet() {}
/// extern "C" fn begin(_: *mut Patch, _: *mut State) -> core::ffi::c_int { 0 }
///
/// suture_abi::patch! {
///     name: "fix",
///     objects: [
///         main: ["price" => new_price, old OLD_PRICE],
///         "libgreet.so.1": ["greet" => new_greet, sympos 2],
///         // A function without a symbol: where it is, and its first bytes.
///         "libgone.so.1" build_id "00ff": [at 0x15b20 expected "4154498d" => new_greet],
///     ],
///     states: [
///         10, STATE_IS_SHADOW | STATE_BLOCK_DISABLE => { pre_patch: begin },
///         11 => {},
///     ]
/// }
///
/// let patch = &suture_patch.0;
/// // SAFETY: the tables are static and hold one entry more than asked for here.
/// let (greet, old, end, states) = unsafe {
///     let states = core::slice::from_raw_parts(patch.states, 3);
///     (&*(*patch.objects.add(1)).funcs, &*patch.references, &*patch.references.add(1), states)
/// };
/// assert_eq!(greet.sympos, 2);
/// assert_eq!((states[0].id, states[0].flags, states[1].id, states[2].id), (10, 3, 11, 0));
/// assert!(states[0].callbacks.pre_patch.is_some() && states[0].callbacks.post_patch.is_none());
/// // SAFETY: as above.
/// let gone = unsafe { &*(*patch.objects.add(2)).funcs };
/// assert!(gone.old_name.is_null() && !gone.expected.is_null());
/// assert_eq!(gone.offset, 0x15b20);
/// assert_eq!(old.slot, OLD_PRICE.slot());
/// assert!(end.slot.is_null());
/// ```
#[macro_export]
macro_rules! patch {
    (
        name: $name:literal,
        $(flags: $flags:expr,)?
        objects: [
            $($object:tt $(build_id $build_id:literal)?: [
                $($($old:literal)? $(at $offset:literal expected $expected:literal)?
                    => $new:expr $(, old $slot:path)? $(, sympos $sympos:literal)?),+ $(,)?
            ]),+ $(,)?
        ]
        $(, states: [
            $($id:literal $(, $state_flags:expr)? => { $($callback:ident: $code:expr),* $(,)? }),+ $(,)?
        ])?
        $(,)?
    ) => {
        /// What this patch changes.
        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        pub static suture_patch: $crate::author::Descriptor = $crate::author::describe(
            $crate::patch!(@text $name),
            0 $(| $flags)?,
            const {
                &[$($crate::descriptor::Object {
                    name: $crate::patch!(@object $object),
                    build_id: $crate::patch!(@maybe $($build_id)?),
                    funcs: const {
                        &[$($crate::descriptor::Func {
                            old_name: $crate::patch!(@maybe $($old)?),
                            new_func: $new as *const ::core::ffi::c_void,
                            sympos: 0 $(+ $sympos)?,
                            offset: 0 $(+ $offset)?,
                            expected: $crate::patch!(@maybe $($expected)?),
                        },)+ $crate::author::END_FUNC]
                    }.as_ptr(),
                },)+ $crate::author::END_OBJECT]
            }.as_ptr(),
            const {
                &[$($($crate::author::state(
                    $id,
                    0 $(| ($state_flags))?,
                    $crate::descriptor::Callbacks {
                        $($callback: ::core::option::Option::Some($code),)*
                        ..$crate::author::NO_CALLBACKS
                    },
                ),)+)? $crate::author::END_STATE]
            }.as_ptr(),
            const {
                &$crate::author::compact([$($($crate::descriptor::Reference {
                    slot: $crate::author::last(&[::core::ptr::null_mut() $(, $slot.slot())?]),
                    kind: $crate::descriptor::REFERENCE_OLD_FUNC,
                    object: $crate::patch!(@object $object),
                    symbol: $crate::patch!(@maybe $($old)?),
                    sympos: 0 $(+ $sympos)?,
                    offset: 0 $(+ $offset)?,
                    ..$crate::author::END_REFERENCE
                },)+)+ $crate::author::END_REFERENCE])
            }.as_ptr(),
        );
    };
    (@text $text:literal) => { ::core::concat!($text, "\0").as_ptr().cast() };
    (@maybe) => { ::core::ptr::null() };
    (@maybe $text:literal) => { $crate::patch!(@text $text) };
    (@object main) => { ::core::ptr::null() };
    (@object $name:literal) => { $crate::patch!(@text $name) };
}

/// The panic handler of a patch: an illegal instruction, the shortest way to a core dump that shows
/// the panicking function. Also defines, hidden, the personality routine that the precompiled core
/// library names; it lets every exception pass.
#[macro_export]
macro_rules! panic_aborts {
    () => {
        #[panic_handler]
        fn panic(_: &::core::panic::PanicInfo<'_>) -> ! {
            // SAFETY: `ud2` ends the process; nothing after it is reached.
            unsafe { ::core::arch::asm!("ud2", options(noreturn)) }
        }
        // 8 is `_URC_CONTINUE_UNWIND`.
        ::core::arch::global_asm!(
            ".hidden rust_eh_personality",
            ".globl rust_eh_personality",
            ".type rust_eh_personality, @function",
            "rust_eh_personality:",
            ".cfi_startproc",
            "mov eax, 8",
            "ret",
            ".cfi_endproc",
            ".size rust_eh_personality, . - rust_eh_personality",
        );
    };
}
