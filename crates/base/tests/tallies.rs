//! Counts of storages and bytes over threads. In a process of its own, and one test: the counts are
//! the process's.

use entrenar_base::{Array, DType, memory};
use std::cell::RefCell;
use std::thread;

const BYTES: usize = 1000;

fn array() -> Array {
    Array::zeros([25, 10], DType::F32)
}

#[test]
fn counts_outlive_threads_and_follow_storages_across_them() {
    let kept = array();
    let (made, live) = (memory::allocations(), memory::live_bytes());
    // Threads in turn, each with what the next one frees.
    let mut handed: Option<Array> = None;
    for _ in 0..50 {
        let last = handed.take();
        let run = thread::spawn(move || {
            drop(last);
            let here = memory::allocations_here();
            let (x, y) = (array(), array());
            assert_eq!(memory::allocations_here() - here, 2);
            drop(y);
            x
        });
        handed = Some(run.join().unwrap());
    }
    assert_eq!(memory::allocations() - made, 100);
    assert_eq!(memory::live_bytes() - live, BYTES);
    drop(handed);
    assert_eq!(memory::live_bytes(), live);

    // Made and freed while the thread ends, before and after its tally is given back: destructors
    // run in the order of first use or in reverse.
    struct Late(RefCell<Option<Array>>);
    impl Drop for Late {
        fn drop(&mut self) {
            drop(array());
        }
    }
    thread_local!(static LATE: Late = const { Late(RefCell::new(None)) });
    for first in [true, false] {
        let made = memory::allocations();
        let run = thread::spawn(move || {
            if first {
                LATE.with(|late| drop(late.0.take()));
            }
            let x = array();
            LATE.with(|late| *late.0.borrow_mut() = Some(x));
        });
        run.join().unwrap();
        assert_eq!(memory::allocations() - made, 2);
        assert_eq!(memory::live_bytes(), live);
    }

    // Many at once, each freeing what another made; whoever looks never sees too little.
    thread::scope(|scope| {
        for _ in 0..4 {
            let (to, from) = std::sync::mpsc::sync_channel::<Array>(8);
            scope.spawn(move || (0..2000).for_each(|_| to.send(array()).unwrap()));
            scope.spawn(move || from.into_iter().for_each(drop));
        }
        for _ in 0..2000 {
            let seen = memory::live_bytes();
            assert!((live..live + 8000 * BYTES).contains(&seen), "{seen} bytes");
        }
    });
    assert_eq!(memory::live_bytes(), live);
    drop(kept);
    assert_eq!(memory::live_bytes(), live - BYTES);
}
