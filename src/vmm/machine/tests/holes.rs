//! Accesses that meet no memory.

use super::super::Access;
use super::super::FaultKind;
use super::super::Place;
use super::super::host_sum;
use super::*;

fn fault(offset: u64, len: u64, write: bool, kind: FaultKind) -> GuestFault {
    let place = Some(Place {
        name: "fs0/0".into(),
        offset,
    });
    GuestFault {
        guest_address: REGION + offset,
        len,
        write,
        kind,
        place,
    }
}

#[test]
fn hole_between_mappings_reads_as_ones_and_is_told_once() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 8) else {
            return;
        };
        let bytes = noise(0x1000, 1);
        vm.arena.map(0x1000, 0x1000, &memfd(&bytes), true);
        vm.arena.map(0x4000, 0x1000, &memfd(&bytes), true);
        let mut seen = vec![0; 0x3000];
        let access = vm.machine.peek(REGION + 0x1800, &mut seen).unwrap();
        assert_eq!(
            seen,
            [&bytes[0x800..], &[0xff; 0x2000], &bytes[..0x800]].concat()
        );
        let expected = fault(0x2000, 0x2000, false, FaultKind::Missing);
        assert_eq!(
            access,
            Access {
                missing: 0x2000,
                scratch: 0,
                faults: vec![expected.clone()]
            }
        );
        assert_eq!(*vm.faults.lock().unwrap(), [expected]);
    });
}

#[test]
fn hole_in_a_sum_counts_as_ones() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        let bytes = noise(0x1000, 2);
        vm.arena.map(0, 0x1000, &memfd(&bytes), true);
        // The word at the border is half file, half hole.
        let sum = vm.machine.sum(REGION + 0xff4, 29).unwrap();
        assert_eq!(
            sum.total,
            host_sum(&[&bytes[0xff4..], &[0xff; 17]].concat())
        );
        assert_eq!(
            sum.access.faults,
            [fault(0x1000, 17, false, FaultKind::Missing)]
        );
    });
}

#[test]
fn write_to_a_hole_is_dropped_and_the_rest_is_written() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        vm.arena.map(0x1000, 0x1000, &memfd(&[0; 0x1000]), true);
        let access = vm.machine.poke(REGION + 0xffe, b"dropkept").unwrap();
        assert_eq!(access.faults, [fault(0xffe, 2, true, FaultKind::Missing)]);
        assert_eq!(vm.peek(0xffe, 8), b"\xff\xffopkept");
    });
}

#[test]
fn write_to_a_read_only_mapping_is_dropped() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::Scratch { max_bytes: 1 << 20 }, 4) else {
            return;
        };
        let bytes = noise(0x1000, 3);
        vm.arena.map(0x1000, 0x1000, &memfd(&bytes), false);
        let access = vm.machine.poke(REGION + 0x1010, b"no").unwrap();
        assert_eq!(access.faults, [fault(0x1010, 2, true, FaultKind::ReadOnly)]);
        assert_eq!(vm.peek(0x1000, 0x1000), bytes);
    });
}

#[test]
fn write_to_a_read_only_slot_is_dropped() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        let arena = TestArena::new(4);
        let bytes = noise(0x3000, 4);
        arena.map(0, 0x3000, &memfd(&bytes), true);
        let config = MemslotConfig {
            read_only: true,
            name: "rom".into(),
            ..slot_config(REGION * 2, &arena)
        };
        let _slot = vm.machine.add_memslot(config).unwrap();
        let access = vm.machine.poke(REGION * 2 + 0x10, &[0; 0x2100]).unwrap();
        assert_eq!(access.missing, 0x2100);
        assert_eq!(access.faults.len(), 1, "{:?}", access.faults);
        assert_eq!(
            (access.faults[0].len, access.faults[0].kind),
            (0x2100, FaultKind::ReadOnly)
        );
        let mut seen = vec![0; 0x3000];
        vm.machine.peek(REGION * 2, &mut seen).unwrap();
        assert_eq!(seen, bytes);
    });
}

#[test]
fn file_truncated_under_the_guest_is_a_hole_from_then_on() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 4) else {
            return;
        };
        let bytes = noise(0x3000, 5);
        let file = memfd(&bytes);
        vm.arena.map(0, 0x3000, &file, true);
        assert_eq!(vm.peek(0, 0x3000), bytes);
        file.set_len(0x1000).unwrap();
        let mut seen = vec![0; 0x3000];
        let access = vm.machine.peek(REGION, &mut seen).unwrap();
        assert_eq!(seen, [&bytes[..0x1000], &[0xff; 0x2000]].concat());
        assert_eq!(
            access.faults,
            [fault(0x1000, 0x2000, false, FaultKind::Missing)]
        );
        let access = vm.machine.poke(REGION + 0x2000, b"gone").unwrap();
        assert_eq!(access.faults, [fault(0x2000, 4, true, FaultKind::Missing)]);
    });
}

#[test]
fn address_without_any_memory_is_said_to_have_none() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::AllOnes, 1) else {
            return;
        };
        let address = 3 << 30;
        let expected = |len, write| GuestFault {
            guest_address: address,
            len,
            write,
            kind: FaultKind::NoMemory,
            place: None,
        };
        let mut seen = [0; 0x1234];
        let access = vm.machine.peek(address, &mut seen).unwrap();
        assert_eq!(seen, [0xff; 0x1234]);
        assert_eq!(access.faults, [expected(0x1234, false)]);
        let access = vm.machine.poke(address, &[1; 0x1801]).unwrap();
        assert_eq!(access.faults, [expected(0x1801, true)]);
        assert_eq!(
            vm.machine.sum(address, 20).unwrap().total,
            host_sum(&[0xff; 20])
        );
    });
}

#[test]
fn scratch_keeps_what_is_written_until_something_is_mapped() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::Scratch { max_bytes: 0x1000 }, 4) else {
            return;
        };
        assert_eq!(vm.peek(0, 4), [0; 4]);
        let access = vm.machine.poke(REGION + 2, b"note").unwrap();
        assert_eq!((access.missing, access.scratch), (0, 4));
        assert_eq!(vm.peek(0, 8), b"\0\0note\0\0");
        // The second page is over the limit.
        let access = vm.machine.poke(REGION + 0x1000, b"note").unwrap();
        assert_eq!((access.missing, access.scratch), (4, 0));
        assert_eq!(vm.peek(0x1000, 4), [0xff; 4]);
        vm.arena.map(0, 0x1000, &memfd(b"file wins"), true);
        assert_eq!(vm.peek(0, 9), b"file wins");
    });
}

#[test]
fn scratch_goes_with_its_slot() {
    both(|kind| {
        let policy = HolePolicy::Scratch { max_bytes: 0x1000 };
        let Some(Fixture {
            slot,
            arena,
            machine,
            ..
        }) = Fixture::new(kind, policy, 4)
        else {
            return;
        };
        machine.poke(REGION, b"old").unwrap();
        drop(slot);
        let _slot = machine.add_memslot(slot_config(REGION, &arena)).unwrap();
        let mut bytes = [1; 3];
        machine.peek(REGION, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 3]);
    });
}

#[test]
fn stop_policy_ends_all_orders_and_says_where() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::Stop, 4) else {
            return;
        };
        vm.arena.map(0, 0x1000, &memfd(b"ok"), true);
        assert_eq!(vm.peek(0, 2), b"ok");
        assert_eq!(vm.machine.stopped(), None);
        let expected = fault(0x1000, 0x800, false, FaultKind::Missing);
        for address in [REGION + 0x800, REGION] {
            let error = vm.machine.peek(address, &mut [0; 0x1000]).unwrap_err();
            assert!(
                matches!(error, Error::Stopped(ref met) if *met == expected),
                "{error}"
            );
        }
        assert_eq!(vm.machine.stopped(), Some(expected.clone()));
        assert_eq!(*vm.faults.lock().unwrap(), [expected]);
    });
}

#[test]
fn stop_policy_at_an_address_without_memory_leaves_nothing_pending() {
    both(|kind| {
        let Some(vm) = Fixture::new(kind, HolePolicy::Stop, 4) else {
            return;
        };
        let error = vm.machine.poke(3 << 30, &[0; 0x1000]).unwrap_err();
        assert!(
            matches!(error, Error::Stopped(ref met) if met.guest_address == 3 << 30),
            "{error}"
        );
    });
}
