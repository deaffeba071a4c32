//! The recycler as a program's allocator, by the kernel's account of the process.
#![cfg(target_os = "linux")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use sd_ops::Recycler;

#[global_allocator]
static MEMORY: Recycler = Recycler::new();

const MIB: usize = 1 << 20;

/// The tests share the process, and so what is resident of it.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096 / MIB
}

#[test]
fn memory_is_kept_for_the_next_ones_and_goes_back_when_it_is_trimmed() {
    let _alone = alone();
    let before = resident();
    for i in 0..20u8 {
        // Of many sizes, none of which fits into the others' place.
        let first = vec![i; (100 - usize::from(i)) * MIB];
        let second = vec![i; (20 + usize::from(i)) * MIB];
        drop(first);
        assert_eq!(second[MIB], i);
    }
    assert!(MEMORY.kept_bytes() > 50 * MIB);
    let kept = resident() - before;
    assert!((50..=140).contains(&kept), "{kept} MiB are resident");
    MEMORY.trim();
    let left = resident() - before;
    assert!(left < 5, "{left} MiB are still resident");
}

#[test]
fn blocks_become_those_of_other_sizes() {
    let _alone = alone();
    let before = resident();
    let kept = vec![1u8; 90 * MIB];
    drop(kept);
    // Nothing is written to these, so that what is resident of them was so before.
    let taken = [40, 32].map(|mib| Vec::<u8>::with_capacity(mib * MIB));
    let resident = resident() - before;
    assert!(resident > 80, "{resident} MiB are resident");
    for mut block in taken {
        block.resize(block.capacity(), 7);
        assert!(block.iter().all(|v| *v == 7));
    }
    MEMORY.trim();
}
