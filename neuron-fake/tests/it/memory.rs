//! Device memory: budgets, poison, slices, ranges, and handles that are gone.

use njoule_neuron_sys::{Library, Status, Tensor};

use crate::child::{EVALUATOR, child, faults, start};
use crate::modules::{Bound, read};

#[test]
fn memory_is_counted_and_ends() {
    child(&[("NJOULE_FAKE_HBM_BYTES", "1048576")], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let before = runtime.memory(core).unwrap();
        assert_eq!(before.limit, 1 << 20);
        let half = Tensor::on_core(&runtime, core, 1 << 19, "half").unwrap();
        assert_eq!(runtime.memory(core).unwrap().used, before.used + (1 << 19));
        let error = Tensor::on_core(&runtime, core, 1 << 19, "other half").unwrap_err();
        assert_eq!(error.status(), Some(Status(4)));
        // Another core has its own, and what is freed is free.
        Tensor::on_core(&runtime, runtime.core(1).unwrap(), 1 << 19, "there").unwrap();
        drop(half);
        assert_eq!(runtime.memory(core).unwrap(), before);
        let bound = Bound::new(&runtime, core);
        assert!(runtime.memory(core).unwrap().used > before.used + 140, "tensors and code");
        drop(bound);
        assert_eq!(runtime.memory(core).unwrap(), before);
    });
}

#[test]
fn memory_that_nobody_wrote_is_nan() {
    child(&[], || {
        let runtime = start();
        let tensor = Tensor::on_core(&runtime, runtime.core(0).unwrap(), 64, "t").unwrap();
        assert!(read::<f32>(&tensor).iter().all(|v| v.is_nan()));
        assert!(read::<half::bf16>(&tensor).iter().all(|v| v.is_nan()));
        assert_eq!(read::<i32>(&tensor), [-1; 16]);
    });
}

#[test]
fn an_input_that_nobody_wrote_shows_in_the_result() {
    child(EVALUATOR, || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let mut b = Bound::new(&runtime, core);
        let table = Tensor::on_core(&runtime, core, 60, "unwritten").unwrap();
        b.run = crate::modules::bind(&runtime, &b.model, &[&b.ids, &b.cache, &table], &[&b.rows, &b.cache]).unwrap();
        b.run.execute().unwrap();
        assert!(read::<f32>(&b.rows).iter().all(|v| v.is_nan()));
        assert_eq!(&read::<f32>(&b.cache)[..3], [0.0; 3], "only the rows that were written");
        b.ids.fill(0, 8, 0xFF).unwrap();
        assert_eq!(b.run.execute().unwrap_err().status(), Some(Status(1006)), "unwritten ids are out of bounds");
    });
}

#[test]
fn slices_share_memory_that_outlives_the_source() {
    child(&[], || {
        let runtime = start();
        let core = runtime.core(0).unwrap();
        let before = runtime.memory(core).unwrap().used;
        let whole = Tensor::on_core(&runtime, core, 100, "whole").unwrap();
        whole.fill(0, 100, 1).unwrap();
        let part = whole.slice(10, 20, "part").unwrap();
        let inner = part.slice(5, 5, "inner").unwrap();
        inner.fill(0, 5, 9).unwrap();
        let bytes = read::<u8>(&whole);
        assert_eq!((bytes[14], bytes[15], bytes[19], bytes[20]), (1, 9, 9, 1));
        assert_eq!(part.allocation().unwrap().physical_address, whole.allocation().unwrap().physical_address + 10);
        drop((whole, part));
        assert_eq!(read::<u8>(&inner), [9; 5]);
        assert_eq!(runtime.memory(core).unwrap().used, before + 100);
        drop(inner);
        assert_eq!(runtime.memory(core).unwrap().used, before);
    });
}

#[test]
fn copies_stay_in_one_memory() {
    child(&[], || {
        let runtime = start();
        let [a, b] = [0, 0].map(|c| Tensor::on_core(&runtime, runtime.core(c).unwrap(), 8, "t").unwrap());
        a.write(0, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        b.copy_from(4, &a, 0, 4).unwrap();
        assert_eq!(read::<u8>(&b), [255, 255, 255, 255, 1, 2, 3, 4]);
        let there = Tensor::on_core(&runtime, runtime.core(1).unwrap(), 8, "there").unwrap();
        let error = there.copy_from(0, &a, 0, 8);
        assert!(error.is_err());
        let host = Tensor::on_host(&runtime, 4 << 20, "host").unwrap();
        assert_eq!(host.core(), None);
    });
}

/// What neuron-sys does not let its users do, done to the library itself.
mod raw {
    use std::ffi::c_void;
    use std::ptr::{null, null_mut};

    use super::*;

    macro_rules! function {
        ($library:ident, $name:ident: fn($($t:ty),*) $(-> $r:ty)?) => {
            // SAFETY: the function's type in njoule_nrt.h.
            let $name = unsafe {
                $library.get::<unsafe extern "C" fn($($t),*) $(-> $r)?>(stringify!($name).as_bytes())
            }
            .unwrap();
        };
    }

    fn open() -> libloading::Library {
        // SAFETY: the stand-in, whose initialisers do nothing.
        unsafe { libloading::Library::new(std::env::var_os("NJOULE_NRT").unwrap()) }.unwrap()
    }

    #[test]
    fn calls_too_early_and_too_late_have_their_own_codes() {
        crate::child::spawn(&[], || {
            let library = open();
            function!(library, nrt_allocate_tensor_set: fn(*mut *mut c_void) -> u32);
            function!(library, nrt_init: fn(u32, *const i8, *const i8) -> u32);
            function!(library, nrt_close: fn());
            let mut set = null_mut();
            // SAFETY: as the header says.
            unsafe {
                assert_eq!(nrt_allocate_tensor_set(&mut set), 13);
                assert_eq!(nrt_init(1, c"".as_ptr(), c"".as_ptr()), 0);
                assert_eq!(nrt_init(1, c"".as_ptr(), c"".as_ptr()), 1, "twice");
                assert_eq!(nrt_allocate_tensor_set(&mut set), 0);
                nrt_close();
                assert_eq!(faults(), 1, "a set was left");
                assert_eq!(nrt_allocate_tensor_set(&mut set), 14);
                assert_eq!(faults(), 2, "a call after the end");
            }
        })
        .inspect(|output| assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)));
    }

    #[test]
    fn use_after_free_is_told_and_recorded() {
        let output = crate::child::spawn(&[], || {
            let _runtime = start();
            let library = open();
            function!(library, nrt_tensor_allocate: fn(u32, i32, usize, *const i8, *mut *mut c_void) -> u32);
            function!(library, nrt_tensor_free: fn(*mut *mut c_void));
            function!(library, nrt_tensor_write: fn(*mut c_void, *const c_void, usize, usize) -> u32);
            function!(library, nrt_tensor_get_size: fn(*const c_void) -> usize);
            function!(library, nrt_unload: fn(*mut c_void) -> u32);
            let (mut tensor, byte) = (null_mut(), 7u8);
            // SAFETY: as the header says, but for what is tested: handles are never followed.
            unsafe {
                assert_eq!(nrt_tensor_allocate(0, 0, 4, null(), &mut tensor), 0);
                let kept = tensor;
                assert_eq!(nrt_tensor_get_size(kept), 4);
                nrt_tensor_free(&mut tensor);
                assert!(tensor.is_null());
                assert_eq!(faults(), 0);
                assert_eq!(nrt_tensor_write(kept, (&raw const byte).cast(), 0, 1), 3);
                assert_eq!(faults(), 1);
                // The place is used again; the handle is not.
                assert_eq!(nrt_tensor_allocate(0, 0, 4, null(), &mut tensor), 0);
                assert_ne!(tensor, kept);
                assert_eq!(nrt_tensor_write(kept, (&raw const byte).cast(), 0, 1), 3);
                assert_eq!(nrt_unload(tensor), 3, "a tensor is no model");
                assert_eq!(nrt_tensor_write(tensor, null(), 0, 1), 2);
                assert_eq!(nrt_tensor_write(tensor, (&raw const byte).cast(), 4, 1), 2, "past the end");
                assert_eq!(nrt_tensor_write(tensor, (&raw const byte).cast(), usize::MAX, 1), 2);
                nrt_tensor_free(&mut tensor);
                nrt_tensor_free(&mut tensor);
                assert_eq!(faults(), 4, "null was freed");
            }
        });
        if let Some(output) = output {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{stderr}");
            assert!(stderr.contains("4 misuses of libnrt in this process"), "said again at exit: {stderr}");
        }
    }

    /// What the host writes at a tensor's address is the tensor's, and what calls write the host sees there.
    #[test]
    fn a_tensor_has_an_address_for_the_host_and_what_is_none_has_not() {
        child(&[], || {
            let _runtime = start();
            let library = open();
            function!(library, nrt_tensor_allocate: fn(u32, i32, usize, *const i8, *mut *mut c_void) -> u32);
            function!(library, nrt_tensor_allocate_slice: fn(*const c_void, usize, usize, *const i8, *mut *mut c_void) -> u32);
            function!(library, nrt_tensor_free: fn(*mut *mut c_void));
            function!(library, nrt_tensor_write: fn(*mut c_void, *const c_void, usize, usize) -> u32);
            function!(library, nrt_tensor_read: fn(*const c_void, *mut c_void, usize, usize) -> u32);
            function!(library, nrt_tensor_memset: fn(*mut c_void, u64, i32, usize) -> u32);
            function!(library, nrt_tensor_get_va: fn(*const c_void) -> *mut c_void);
            let (mut whole, mut slice, mut read) = (null_mut(), null_mut(), [0u8; 8]);
            // SAFETY: as the header says; addresses are read and written within their tensor, beside no call.
            unsafe {
                assert!(nrt_tensor_get_va(null()).is_null());
                assert_eq!(nrt_tensor_allocate(0, 0, 8, null(), &mut whole), 0);
                assert_eq!(nrt_tensor_write(whole, [1u8, 2, 3, 4, 5, 6, 7, 8].as_ptr().cast(), 0, 8), 0);
                let at: *mut u8 = nrt_tensor_get_va(whole).cast();
                assert_eq!(std::slice::from_raw_parts(at, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
                at.add(2).write(33);
                assert_eq!(nrt_tensor_memset(whole, 6, 9, 2), 0);
                assert_eq!(nrt_tensor_allocate_slice(whole, 4, 4, null(), &mut slice), 0);
                let part: *mut u8 = nrt_tensor_get_va(slice).cast();
                assert_eq!((part, part.add(2).read()), (at.add(4), 9));
                part.write(55);
                assert_eq!(nrt_tensor_read(whole, read.as_mut_ptr().cast(), 0, 8), 0);
                assert_eq!(read, [1, 2, 33, 4, 55, 6, 9, 9]);
                nrt_tensor_free(&mut slice);
                nrt_tensor_free(&mut whole);
            }
            assert_eq!(faults(), 0);
        });
    }

    #[test]
    fn what_cannot_be_allocated_is_refused() {
        child(&[], || {
            let _runtime = start();
            let library = open();
            function!(library, nrt_tensor_allocate: fn(u32, i32, usize, *const i8, *mut *mut c_void) -> u32);
            let mut tensor = null_mut();
            // SAFETY: as the header says.
            let mut allocate =
                |placement, vnc, size| unsafe { nrt_tensor_allocate(placement, vnc, size, null(), &mut tensor) };
            assert_eq!(allocate(0, 0, 0), 2, "no bytes");
            assert_eq!(allocate(2, 0, 8), 2, "virtual");
            assert_eq!(allocate(1, -1, (4 << 20) + 1), 2, "large, on the host");
            assert_eq!(allocate(0, 2, 8), 2, "no such core");
            assert_eq!(allocate(0, 0, usize::MAX), 4);
        });
    }

    #[test]
    fn an_unknown_library_call_before_2_31_is_misuse() {
        let output = crate::child::spawn(&[("NJOULE_FAKE_VERSION", "2.30.50")], || {
            assert!(!Library::open().unwrap().can_schedule());
            let _runtime = start();
            let library = open();
            function!(library, nrta_is_completed: fn(u64, *mut bool) -> u32);
            // SAFETY: as the header says.
            assert_eq!(unsafe { nrta_is_completed(1, &mut false) }, 2);
            assert_eq!(faults(), 1);
        });
        if let Some(output) = output {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
