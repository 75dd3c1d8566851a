//! What is mapped, what goes when, and what the VMM is told.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use super::fixture::*;
use crate::Arena;
use crate::ArenaVm;
use crate::GoneReason;
use crate::Limits;
use crate::MapOperation;
use crate::MappingInfo;
use crate::MappingKind;
use crate::RegionConfig;
use crate::RegionKey;
use crate::RemovedDevice;
use crate::ServiceConfig;
use crate::ServiceError;
use crate::Vm;
use crate::VmMemoryDestination;

#[test]
fn mapping_shows_the_file_until_it_is_unmapped() {
    let (fixture, mut device) = one(named("fs0"));
    let memfd = memfd(2 * PAGE, 7);
    assert_eq!(device.map(memfd, 4 * PAGE, PAGE + 1, READ), Ok(()));
    assert_eq!(device.byte(5 * PAGE), Ok(7));
    assert_eq!(device.byte(6 * PAGE), Err(libc::EFAULT));
    let mapping = MappingInfo {
        device: "fs0".to_owned(),
        device_id: device.id,
        shmid: 0,
        offset: 4 * PAGE,
        len: PAGE + 1,
        footprint: 2 * PAGE,
        protection: READ,
        kind: MappingKind::Memfd,
        guest_address: (1 << 32) + 4 * PAGE,
    };
    assert_eq!(fixture.mappings(), [mapping]);
    assert_eq!(device.unmap(4 * PAGE, PAGE + 1), Ok(()));
    assert_eq!(device.byte(4 * PAGE), Err(libc::EFAULT));
    assert_eq!(fixture.mappings(), []);
    assert_eq!(areas(&device.arena), 1);
}

#[test]
fn each_kind_of_source_is_mapped_and_named() {
    let (fixture, mut device) = one(named("gpu"));
    assert_eq!(device.map(file(PAGE, 1), 0, PAGE, BOTH), Ok(()));
    assert_eq!(device.map(memfd(PAGE, 2), PAGE, PAGE, BOTH), Ok(()));
    let allocation = vulkan(memfd(PAGE, 3));
    assert_eq!(
        device.register(allocation, at(2 * PAGE), PAGE, BOTH),
        Ok(())
    );
    let bytes = [0, PAGE, 2 * PAGE].map(|offset| device.byte(offset));
    assert_eq!(bytes, [Ok(1), Ok(2), Ok(3)]);
    let kinds: Vec<_> = fixture
        .mappings()
        .iter()
        .map(|mapping| mapping.kind)
        .collect();
    assert_eq!(
        kinds,
        [MappingKind::File, MappingKind::Memfd, MappingKind::Memfd]
    );
}

#[test]
fn file_offset_is_where_the_mapping_begins() {
    let (_fixture, mut device) = one(named("fs0"));
    for (place, fd) in [(0, file(2 * PAGE, 1).into()), (PAGE, memfd(2 * PAGE, 1))] {
        assert_eq!(rustix::io::pwrite(&fd, &[9], PAGE), Ok(1));
        assert_eq!(
            device.register(source(fd, PAGE), at(place), PAGE, READ),
            Ok(())
        );
        assert_eq!(device.byte(place), Ok(9));
    }
}

#[test]
fn device_whose_tube_closes_loses_its_mappings_and_is_reported() {
    let (fixture, mut device) = one(named("fs0"));
    for page in [0, 2, 4] {
        assert_eq!(device.map(memfd(PAGE, 1), page * PAGE, PAGE, READ), Ok(()));
    }
    assert_eq!(areas(&device.arena), 6);
    drop(device.client);
    let gone = fixture.wait_gone();
    assert_eq!((gone.id, gone.mappings), (device.id, 3));
    assert!(
        matches!(gone.reason, GoneReason::Closed),
        "{:?}",
        gone.reason
    );
    assert_eq!(fixture.mappings(), []);
    assert_eq!(areas(&device.arena), 1);
    assert_eq!(fixture.handle.stats(), []);
    let again = fixture.handle.remove_device(device.id);
    assert!(matches!(again, Err(ServiceError::NoDevice(_))), "{again:?}");
}

#[test]
fn device_that_is_removed_leaves_the_others_alone() {
    let mut fixture = Fixture::new();
    let (mut one, mut other) = (fixture.add(named("fs0")), fixture.add(named("fs1")));
    assert_eq!(one.map(memfd(PAGE, 1), 0, PAGE, READ), Ok(()));
    assert_eq!(other.map(memfd(PAGE, 2), 0, PAGE, READ), Ok(()));
    let removed = fixture.handle.remove_device(one.id).expect("known");
    assert_eq!(removed, RemovedDevice { mappings: 1 });
    assert_eq!(one.byte(0), Err(libc::EFAULT));
    assert_eq!(other.byte(0), Ok(2));
    assert_eq!(other.unmap(0, PAGE), Ok(()));
}

#[test]
fn reset_drops_the_mappings_and_cancels_what_comes_late() {
    let (fixture, mut device) = one(named("fs0"));
    assert_eq!(device.map(memfd(PAGE, 1), 0, PAGE, READ), Ok(()));
    let generation = fixture.handle.reset_device(device.id).expect("known");
    assert_eq!(generation.0, 1);
    assert_eq!(device.byte(0), Err(libc::EFAULT));
    let late = device.map(memfd(PAGE, 1), 0, PAGE, READ);
    assert_eq!(late, Err(libc::ECANCELED));
    assert_eq!(device.unmap(0, PAGE), Err(libc::ECANCELED));
    assert_eq!(errno(device.client.unregister_all()), Err(libc::ECANCELED));
    assert_eq!(fixture.mappings(), []);
    device.client.set_generation(generation);
    assert_eq!(device.map(memfd(PAGE, 2), 0, PAGE, READ), Ok(()));
    assert_eq!(device.byte(0), Ok(2));
    let stats = fixture.stats(device.id);
    assert_eq!((stats.counters.maps, stats.counters.dropped), (2, 1));
    assert_eq!((stats.live, stats.peak, stats.live_bytes), (1, 1, PAGE));
}

#[test]
fn unregister_all_removes_what_is_in_each_region() {
    let mut fixture = Fixture::new();
    let mut device = fixture.add(named("gpu"));
    let second = fixture.add_region(device.id, 7);
    let dest = VmMemoryDestination {
        shmid: 7,
        offset: PAGE,
    };
    assert_eq!(device.map(memfd(PAGE, 1), 0, PAGE, READ), Ok(()));
    assert_eq!(
        device.register(source(memfd(PAGE, 1), 0), dest, PAGE, READ),
        Ok(())
    );
    assert_eq!(fixture.mappings().len(), 2);
    assert_eq!(errno(device.client.unregister_all()), Ok(()));
    assert_eq!(fixture.mappings(), []);
    assert_eq!((areas(&device.arena), areas(&second)), (1, 1));
    assert_eq!(fixture.stats(device.id).counters.unmaps, 2);
}

#[test]
fn service_that_ends_removes_everything_and_says_so() {
    let (fixture, mut device) = one(named("fs0"));
    assert_eq!(device.map(memfd(PAGE, 1), 0, PAGE, READ), Ok(()));
    let handle = fixture.handle.clone();
    drop(fixture);
    assert_eq!(device.byte(0), Err(libc::EFAULT));
    assert_eq!(areas(&device.arena), 1);
    let late = handle.reset_device(device.id);
    assert!(matches!(late, Err(ServiceError::Stopped)), "{late:?}");
}

#[test]
fn thousand_mappings_at_new_offsets_leave_nothing() {
    let (fixture, mut device) = one(named("fs0"));
    let memfd = memfd(REGION_LEN, 1);
    for step in 0..1000 {
        let offset = step * 7 % 64 * PAGE;
        let fd = memfd.try_clone().expect("a duplicate");
        assert_eq!(device.map(fd, offset, PAGE, READ), Ok(()));
        assert_eq!(device.unmap(offset, PAGE), Ok(()));
    }
    assert_eq!(areas(&device.arena), 1);
    let counters = fixture.stats(device.id).counters;
    assert_eq!((counters.maps, counters.unmaps), (1000, 1000));
}

#[test]
fn region_that_meets_another_or_is_no_range_is_refused() {
    let (fixture, device) = one(named("fs0"));
    let add = |shmid, guest_address, len, arena: Option<&Arena>| {
        let config = RegionConfig {
            shmid,
            guest_address,
            len,
            arena: arena.cloned(),
            populate: 0,
        };
        fixture.handle.add_region(device.id, config)
    };
    let free = 1 << 40;
    let misplaced = [
        (free, 0),
        (free, 1),
        (free + 1, PAGE),
        (u64::MAX - PAGE + 1, PAGE),
        (u64::MAX - PAGE + 1, 2 * PAGE),
    ];
    for (guest_address, len) in misplaced {
        let outcome = add(1, guest_address, len, None);
        assert!(
            matches!(outcome, Err(ServiceError::BadRegion { .. })),
            "{outcome:?}"
        );
    }
    for guest_address in [1 << 32, (1 << 32) + REGION_LEN - PAGE, (1 << 32) - PAGE] {
        let outcome = add(1, guest_address, 2 * PAGE, None);
        assert!(
            matches!(outcome, Err(ServiceError::GuestOverlap { .. })),
            "{outcome:?}"
        );
    }
    let outcome = add(1, free, REGION_LEN, Some(&device.arena));
    assert!(
        matches!(outcome, Err(ServiceError::ArenaShared { .. })),
        "{outcome:?}"
    );
    let outcome = add(0, free, PAGE, None);
    assert!(
        matches!(outcome, Err(ServiceError::RegionExists { .. })),
        "{outcome:?}"
    );
    let outcome = add(1, free, PAGE, None);
    assert!(outcome.is_ok(), "{outcome:?}");
}

/// A [`Vm`] whose unmapping fails as long as it is told to.
struct Stuck {
    inner: ArenaVm,
    is_stuck: Arc<AtomicBool>,
}

impl Stuck {
    fn check(&self) -> base::Result<()> {
        if self.is_stuck.load(Ordering::SeqCst) {
            return Err(base::Error::new(libc::ENOMEM));
        }
        Ok(())
    }
}

impl Vm for Stuck {
    fn add_region(&mut self, region: RegionKey, config: &RegionConfig) -> base::Result<()> {
        self.inner.add_region(region, config)
    }

    fn remove_region(&mut self, region: RegionKey) {
        self.inner.remove_region(region);
    }

    fn map(&mut self, operation: &MapOperation<'_>) -> base::Result<()> {
        self.inner.map(operation)
    }

    fn unmap(&mut self, region: RegionKey, offset: u64, footprint: u64) -> base::Result<()> {
        self.check()?;
        self.inner.unmap(region, offset, footprint)
    }

    fn clear(&mut self, region: RegionKey, len: u64) -> base::Result<()> {
        self.check()?;
        self.inner.clear(region, len)
    }
}

fn stuck(is_stuck: &Arc<AtomicBool>) -> Fixture {
    let vm = Stuck {
        inner: ArenaVm::new(),
        is_stuck: Arc::clone(is_stuck),
    };
    Fixture::with(Box::new(vm), ServiceConfig::default())
}

#[test]
fn failed_unmap_keeps_its_record() {
    let is_stuck = Arc::new(AtomicBool::new(true));
    let mut fixture = stuck(&is_stuck);
    let mut device = fixture.add(named("fs0"));
    assert_eq!(device.map(memfd(PAGE, 5), 0, PAGE, READ), Ok(()));
    assert_eq!(device.unmap(0, PAGE), Err(libc::ENOMEM));
    assert_eq!(errno(device.client.unregister_all()), Err(libc::ENOMEM));
    let reset = fixture.handle.reset_device(device.id);
    assert!(
        matches!(reset, Err(ServiceError::Cleanup { .. })),
        "{reset:?}"
    );
    assert_eq!(fixture.mappings().len(), 1);
    assert_eq!(device.byte(0), Ok(5));
    is_stuck.store(false, Ordering::SeqCst);
    assert_eq!(fixture.handle.reset_device(device.id).expect("works").0, 2);
    assert_eq!(fixture.mappings(), []);
    assert_eq!(device.byte(0), Err(libc::EFAULT));
}

#[test]
fn mappings_that_do_not_go_with_their_device_are_tried_again() {
    let is_stuck = Arc::new(AtomicBool::new(true));
    let mut fixture = stuck(&is_stuck);
    let mut device = fixture.add(named("fs0"));
    assert_eq!(device.map(memfd(PAGE, 5), 0, PAGE, READ), Ok(()));
    let removed = fixture.handle.remove_device(device.id);
    assert!(
        matches!(removed, Err(ServiceError::Cleanup { .. })),
        "{removed:?}"
    );
    assert_eq!(fixture.mappings().len(), 1);
    assert_eq!(fixture.stats(device.id).live, 1);
    is_stuck.store(false, Ordering::SeqCst);
    // A command wakes the service, which tries again before it carries the command out.
    assert_eq!(fixture.mappings(), []);
    assert_eq!(device.byte(0), Err(libc::EFAULT));
}

#[test]
fn quotas_are_kept_and_given_back() {
    let limits = Limits {
        max_mappings: 2,
        max_bytes: 3 * PAGE,
    };
    let (fixture, mut device) = one(crate::DeviceConfig {
        limits,
        ..named("fs0")
    });
    let mut map =
        |page: u64, pages: u64| device.map(memfd(pages * PAGE, 1), page * PAGE, pages * PAGE, READ);
    assert_eq!(map(0, 4), Err(libc::EDQUOT));
    assert_eq!(map(0, 1), Ok(()));
    assert_eq!(map(10, 3), Err(libc::EDQUOT));
    assert_eq!(map(10, 2), Ok(()));
    assert_eq!(map(20, 1), Err(libc::EDQUOT));
    assert_eq!(device.unmap(0, PAGE), Ok(()));
    assert_eq!(device.map(memfd(PAGE, 1), 20 * PAGE, PAGE, READ), Ok(()));
    assert_eq!(
        device.map(memfd(PAGE, 1), 30 * PAGE, PAGE, READ),
        Err(libc::EDQUOT)
    );
    assert_eq!(fixture.mappings().len(), 2);
}

#[test]
fn areas_are_shared_by_all_devices_and_given_back() {
    let config = ServiceConfig {
        max_areas: 5,
        ..ServiceConfig::default()
    };
    let mut fixture = Fixture::with(Box::new(ArenaVm::new()), config);
    let (mut one, mut other) = (fixture.add(named("fs0")), fixture.add(named("fs1")));
    assert_eq!(one.map(memfd(PAGE, 1), PAGE, PAGE, READ), Ok(()));
    assert_eq!(other.map(memfd(PAGE, 1), PAGE, PAGE, READ), Ok(()));
    assert_eq!(
        other.map(memfd(PAGE, 1), 9 * PAGE, PAGE, READ),
        Err(libc::EDQUOT)
    );
    // Next to a live mapping it costs one area less.
    assert_eq!(other.map(memfd(PAGE, 1), 2 * PAGE, PAGE, READ), Ok(()));
    assert_eq!(
        other.map(memfd(PAGE, 1), 3 * PAGE, PAGE, READ),
        Err(libc::EDQUOT)
    );
    assert_eq!(areas(&one.arena) + areas(&other.arena), 2 + 5);
    drop(one.client);
    fixture.wait_gone();
    assert_eq!(other.map(memfd(PAGE, 1), 9 * PAGE, PAGE, READ), Ok(()));
}
