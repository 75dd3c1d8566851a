//! Peek, poke and sum of memory that is there.

use super::super::Access;
use super::super::Error;
use super::super::host_sum;
use super::super::layout::ADDRESS_LIMIT;
use super::*;

#[test]
fn file_mapped_under_a_live_guest_is_read() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 16) else {
            return;
        };
        assert_eq!(vm.peek(0x1000, 4), [0xff; 4]);
        let bytes = noise(0x2000, 1);
        vm.arena.map(0x1000, 0x2000, &memfd(&bytes), true);
        assert_eq!(vm.peek(0x1000, 0x2000), bytes);
        assert_eq!(vm.peek(0x1ffd, 7), bytes[0xffd..0x1004]);
    });
}

#[test]
fn page_mapped_anew_is_seen_at_once() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        for round in 0..20 {
            let bytes = noise(0x1000, round);
            vm.arena.map(0, 0x1000, &memfd(&bytes), true);
            assert_eq!(vm.peek(0, 0x1000), bytes, "round {round}");
        }
        vm.arena.unmap(0, 0x1000);
        assert_eq!(vm.peek(0, 0x1000), [0xff; 0x1000]);
    });
}

#[test]
fn poke_is_seen_in_the_file() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        let file = memfd(&[0; 0x2000]);
        vm.arena.map(0x1000, 0x2000, &file, true);
        let access = vm.machine.poke(REGION + 0x1ffe, b"gate").unwrap();
        assert_eq!(access, Access::default());
        let mut seen = [0; 6];
        file.read_exact_at(&mut seen, 0xffd).unwrap();
        assert_eq!(&seen, b"\0gate\0");
        assert_eq!(vm.peek(0x1ffe, 4), b"gate");
    });
}

#[test]
fn ram_is_shared_with_the_host() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        vm.machine
            .memory()
            .write(0xf0_0000, b"from the host")
            .unwrap();
        let mut bytes = [0; 13];
        vm.machine.peek(0xf0_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"from the host");
        vm.machine.poke(0xf0_0000, b"to").unwrap();
        vm.machine.memory().read(0xf0_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"toom the host");
    });
}

#[test]
fn sum_is_the_host_sum_for_every_length_and_alignment() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        let bytes = noise(0x3000, 7);
        vm.arena.map(0, 0x3000, &memfd(&bytes), false);
        for len in 0..=70 {
            let at = 0xfe0 + len % 3;
            let sum = vm.machine.sum(REGION + at as u64, len as u64).unwrap();
            assert_eq!(
                sum.total,
                host_sum(&bytes[at..at + len]),
                "{len} bytes at {at:#x}"
            );
            assert_eq!(sum.access, Access::default());
        }
    });
}

#[test]
fn sum_of_more_than_one_order_is_the_host_sum() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1024) else {
            return;
        };
        let bytes = noise((2 << 20) + 13, 3);
        vm.arena
            .map(0x1000, (2 << 20) + 0x1000, &memfd(&bytes), false);
        let sum = vm.machine.sum(REGION + 0x1000, bytes.len() as u64).unwrap();
        assert_eq!(sum.total, host_sum(&bytes));
        assert_eq!(vm.peek(0x1000, bytes.len()), bytes);
    });
}

#[test]
fn regions_far_apart_are_both_read() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        let far = ADDRESS_LIMIT - 0x1000;
        let arena = TestArena::new(1);
        let _slot = vm.machine.add_memslot(slot_config(far, &arena)).unwrap();
        arena.map(0, 0x1000, &memfd(b"far"), false);
        vm.arena.map(0, 0x1000, &memfd(b"near"), false);
        let mut bytes = [0; 3];
        vm.machine.peek(far, &mut bytes).unwrap();
        assert_eq!((&bytes, &vm.peek(0, 4)[..]), (b"far", &b"near"[..]));
    });
}

#[test]
fn range_beyond_the_guests_reach_is_refused() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        for (address, len) in [(ADDRESS_LIMIT - 1, 2), (u64::MAX, 2)] {
            let error = vm.machine.peek(address, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, Error::OutOfReach { len: 2, .. }), "{error}");
        }
    });
}

#[test]
fn orders_of_many_threads_do_not_mix() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 8) else {
            return;
        };
        let bytes = noise(0x8000, 9);
        vm.arena.map(0, 0x8000, &memfd(&bytes), true);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (vm, bytes) = (&vm, &bytes);
                scope.spawn(move || {
                    for round in 0..50 {
                        let at = thread * 0x2000 + round * 17;
                        assert_eq!(vm.peek(at as u64, 0x100), bytes[at..at + 0x100]);
                    }
                });
            }
        });
    });
}
