//! A steady step allocates nothing on this side of the library: writes, a run, reads; on the caller's thread and on a
//! lane's. (The stand-in's own memory is C's and is not counted.)
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

#[allow(dead_code)]
#[path = "it/standin.rs"]
mod standin;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use njoule_neuron_sys::Lane;
use standin::{Bound, Standin};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts the allocations of each thread.
struct Counting;

// SAFETY: every call is passed on to the system allocator unchanged; counting touches a thread-local integer that needs
// neither initialisation nor destruction, so it cannot allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_steady_step_allocates_nothing() {
    // By eventfd, by asking again and again, and on the lane's thread.
    for switches in [&[][..], &["NO_EVENTFD"], &["OLD"]] {
        let standin = Standin::new(switches);
        let runtime = standin.start();
        let mut bound = Bound::new(&runtime, runtime.core(0).unwrap());
        let mut lane = Lane::new("core 0").unwrap();
        let mut output = [0; 8];
        let mut step = |lane: &mut Lane| {
            bound.input.write(0, &[1; 8]).unwrap();
            lane.execute(&mut bound.run, LIMIT).unwrap();
            bound.output.read(0, &mut output).unwrap();
        };
        let on_lane = |lane: &mut Lane| lane.call("counting", LIMIT, || ALLOCATIONS.with(Cell::get)).unwrap();
        (0..3).for_each(|_| step(&mut lane));
        on_lane(&mut lane);
        let lane_before = on_lane(&mut lane);
        let before = ALLOCATIONS.with(Cell::get);
        assert!(before > 0, "setting up allocates: it is counted");
        (0..20).for_each(|_| step(&mut lane));
        let counted = ALLOCATIONS.with(Cell::get) - before;
        let lane_counted = on_lane(&mut lane) - lane_before;
        assert_eq!((counted, lane_counted), (0, 0), "{switches:?}: on the caller's thread, on the lane's");
        drop((bound, lane, runtime));
        standin.assert_clean();
    }
}
