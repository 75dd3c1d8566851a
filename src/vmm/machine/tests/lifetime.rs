//! Slots that come and go, guests that hang, and what is left of a machine when it is dropped.

use std::os::fd::AsRawFd;

use super::super::agent;
use super::*;

#[test]
fn slots_that_overlap_or_are_not_pages_are_refused() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        let arena = TestArena::new(2);
        for address in [REGION, REGION + 0x3000, REGION - 0x1000, 0, 0xff_f000] {
            let error = vm
                .machine
                .add_memslot(slot_config(address, &arena))
                .err()
                .unwrap();
            assert!(
                matches!(error, Error::Overlap { len: 0x2000, .. }),
                "{address:#x}: {error}"
            );
        }
        let error = vm
            .machine
            .add_memslot(slot_config(REGION + 0x4800, &arena))
            .err()
            .unwrap();
        assert!(matches!(error, Error::Unaligned { .. }), "{error}");
        let error = vm
            .machine
            .add_memslot(slot_config((512 << 30) - 0x1000, &arena))
            .err()
            .unwrap();
        assert!(matches!(error, Error::OutOfReach { .. }), "{error}");
        let _below = vm
            .machine
            .add_memslot(slot_config(REGION - 0x2000, &arena))
            .unwrap();
        let _above = vm
            .machine
            .add_memslot(slot_config(REGION + 0x4000, &arena))
            .unwrap();
    });
}

#[test]
fn dropped_slot_frees_addresses_and_backing() {
    both(|kind| {
        let Some(Fixture {
            slot,
            arena,
            machine,
            ..
        }) = Fixture::new(kind, HolePolicy::AllOnes, 4)
        else {
            return;
        };
        arena.map(0, 0x1000, &memfd(b"old"), true);
        let mut bytes = [0; 3];
        machine.peek(REGION, &mut bytes).unwrap();
        assert_eq!(&bytes, b"old");
        assert_eq!(Arc::strong_count(&arena.0), 2);
        assert_eq!(slot.guest_address(), REGION);
        drop(slot);
        assert_eq!(Arc::strong_count(&arena.0), 1);
        machine.peek(REGION, &mut bytes).unwrap();
        assert_eq!(bytes, [0xff; 3]);
        let new = TestArena::new(1);
        new.map(0, 0x1000, &memfd(b"new"), true);
        let _slot = machine.add_memslot(slot_config(REGION, &new)).unwrap();
        machine.peek(REGION, &mut bytes).unwrap();
        assert_eq!(&bytes, b"new");
    });
}

#[test]
fn slot_outlives_the_machine_without_harm() {
    both(|kind| {
        let Some(Fixture {
            slot,
            arena,
            machine,
            ..
        }) = Fixture::new(kind, HolePolicy::AllOnes, 4)
        else {
            return;
        };
        drop(machine);
        drop(slot);
        assert_eq!(Arc::strong_count(&arena.0), 1);
    });
}

#[test]
fn guest_that_hangs_misses_its_deadline_and_works_again() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    // The instruction after the order's arrival becomes a jump to itself.
    let patched = agent::ENTRY + 7;
    let mut original = [0; 2];
    machine.memory().read(patched, &mut original).unwrap();
    machine.memory().write(patched, &[0xeb, 0xfe]).unwrap();
    machine.set_deadline(SHORT);
    let error = machine.peek(0, &mut [0; 8]).unwrap_err();
    assert!(
        matches!(error, Error::Deadline { deadline: SHORT }),
        "{error}"
    );
    machine.set_deadline(GENEROUS);
    machine.memory().write(patched, &original).unwrap();
    machine.memory().write(0, b"alive").unwrap();
    let mut bytes = [0; 5];
    machine.peek(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"alive");
}

#[test]
fn guest_that_crashes_is_reported_and_works_again() {
    let Some(machine) = open(GuestKind::Kvm, MachineConfig::default()) else {
        return;
    };
    let patched = agent::ENTRY + 7;
    let mut original = [0; 2];
    machine.memory().read(patched, &mut original).unwrap();
    machine.memory().write(patched, &[0x0f, 0x0b]).unwrap();
    let error = machine.peek(0, &mut [0; 8]).unwrap_err();
    assert!(matches!(error, Error::GuestStopped { .. }), "{error}");
    machine.memory().write(patched, &original).unwrap();
    machine.peek(0, &mut [0; 8]).unwrap();
}

#[test]
fn machine_can_be_shared_by_threads() {
    fn check<T: Send + Sync>() {}

    check::<Machine>();
    check::<Memslot>();
}

#[test]
fn dropped_machine_leaves_no_descriptor_thread_or_mapping() {
    let Some(first) = Fixture::new(GuestKind::Kvm, HolePolicy::AllOnes, 4) else {
        return;
    };
    let file = first
        .machine
        .memory()
        .regions()
        .next()
        .unwrap()
        .file
        .as_raw_fd();
    let inode = std::fs::metadata(format!("/proc/self/fd/{file}"))
        .map(|data| std::os::unix::fs::MetadataExt::ino(&data));
    let inode = inode.unwrap();
    assert_eq!(
        left_of(inode),
        Left {
            descriptors: 1,
            mappings: 1
        }
    );
    first.peek(0, 1);
    drop(first);
    assert_eq!(
        left_of(inode),
        Left {
            descriptors: 0,
            mappings: 0
        }
    );
}

/// What of a guest's RAM this process still has.
#[derive(Debug, PartialEq, Eq)]
struct Left {
    descriptors: usize,
    mappings: usize,
}

fn left_of(inode: u64) -> Left {
    use std::os::unix::fs::MetadataExt;

    let descriptors = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok())
        .filter(|data| data.ino() == inode)
        .count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps
        .lines()
        .filter(|line| {
            line.contains("memfd:guest-ram")
                && line.split_whitespace().nth(4) == Some(&inode.to_string())
        })
        .count();
    Left {
        descriptors,
        mappings,
    }
}
