use super::*;
use suture_abi::batch::Image;
use suture_abi::block::ImageRow;

const FIRST: u64 = 0x7000_0000_0000;

extern "C" fn loader_find(pc: u64, result: *mut DlFindObject) -> c_int {
    // SAFETY: the tests pass a whole structure.
    unsafe { (*result).map_start = pc + 1 };
    7
}

extern "C" fn loader_iterate(callback: PhdrCallback, data: *mut c_void) -> c_int {
    for addr in [10, 20] {
        let mut info = DlPhdrInfo {
            addr,
            name: c"loaded".as_ptr(),
            phdr: 0,
            phnum: 1,
            adds: 5,
            subs: 2,
            tls_modid: 0,
            tls_data: core::ptr::null_mut(),
        };
        let stopped = callback(&raw mut info, size_of::<DlPhdrInfo>(), data);
        if stopped != 0 {
            return stopped;
        }
    }
    0
}

struct Seen {
    addrs: Vec<(u64, u64, u64)>,
    stop_at: u64,
}

extern "C" fn collect(info: *mut DlPhdrInfo, size: usize, data: *mut c_void) -> c_int {
    assert_eq!(size, size_of::<DlPhdrInfo>());
    // SAFETY: called with the structure and with the `Seen` of the test below.
    let (info, seen) = unsafe { (info.read(), &mut *data.cast::<Seen>()) };
    seen.addrs.push((info.addr, info.adds, info.subs));
    if info.addr == seen.stop_at { 3 } else { 0 }
}

fn walk(stop_at: u64) -> (c_int, Vec<(u64, u64, u64)>) {
    let mut seen = Seen { addrs: Vec::new(), stop_at };
    let result = iterate_phdr(collect, (&raw mut seen).cast());
    (result, seen.addrs)
}

/// One test: the handlers' state is the process's.
#[test]
fn answers_are_ours_for_images_and_the_loaders_for_the_rest() {
    let blank =
        || DlFindObject { flags: 9, map_start: 0, map_end: 0, link_map: 0, eh_frame: 0, reserved: [5; 7] };
    let mut result = blank();
    assert_eq!(find_object(FIRST, &raw mut result), -1, "no original yet, nothing known");
    set_original(HOOK_DL_FIND_OBJECT, loader_find as *const () as u64);
    set_original(HOOK_DL_ITERATE_PHDR, loader_iterate as *const () as u64);
    assert_eq!((find_object(FIRST, &raw mut result), result.map_start), (7, FIRST + 1));
    assert_eq!(walk(0), (0, vec![(10, 5, 2), (20, 5, 2)]));

    for n in 0..2 {
        let start = FIRST + n * 0x10000;
        let plan =
            Image { start, end: start + 0x1000, base: start, eh_frame_hdr: start + 8, ..Image::default() };
        let row = ImageRow { id: 1, patch: 1, flags: 0, reserved: 0, plan, link_map: 0x1234 };
        ranges::ready(&row, [0; 56]).unwrap().show();
    }
    let mut result = blank();
    assert_eq!(find_object(FIRST + 0x10fff, &raw mut result), 0);
    assert_eq!((result.flags, result.map_start, result.map_end), (0, FIRST + 0x10000, FIRST + 0x11000));
    assert_eq!((result.link_map, result.eh_frame, result.reserved), (0x1234, FIRST + 0x10008, [5; 7]));
    assert_eq!(find_object(FIRST + 0x1000, &raw mut result), 7);
    let all = vec![(10, 7, 2), (20, 7, 2), (FIRST, 7, 2), (FIRST + 0x10000, 7, 2)];
    assert_eq!(walk(0), (0, all.clone()), "both counts moved for every entry alike");
    assert_eq!(walk(20), (3, all[..2].to_vec()), "stopped by the callback");
    assert_eq!(walk(FIRST), (3, all[..3].to_vec()));

    // SAFETY: nobody but this test is in the handlers, and it holds nothing of theirs.
    let free = || unsafe { ranges::free_old() };
    assert_eq!((free(), free()), (1, 0), "of the table with one image");

    // In a forked child what was published before is not its arena's to free.
    let inherited = ranges::current().map(core::ptr::from_ref);
    ranges::rescue().unwrap();
    assert_ne!(ranges::current().map(core::ptr::from_ref), inherited);
    assert_eq!(walk(0), (0, all), "the same images");
    assert_eq!(free(), 0);
    ranges::ready_without(&[FIRST]).unwrap().unwrap().show();
    assert_eq!((free(), free()), (1, 0), "the child's own");
    assert_eq!((find_object(FIRST, &raw mut result), find_object(FIRST + 0x10000, &raw mut result)), (7, 0));
    assert_eq!(walk(0), (0, vec![(10, 7, 3), (20, 7, 3), (FIRST + 0x10000, 7, 3)]));
}
