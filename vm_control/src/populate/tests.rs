//! Tests of which pages are there before anybody has touched them.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use base::Protection;
use base::SafeDescriptor;
use base::inspect;
use rustix::fs::MemfdFlags;
use rustix::fs::fstat;
use rustix::fs::ftruncate;
use rustix::fs::memfd_create;

use super::*;
use crate::ArenaVm;
use crate::MapOperation;
use crate::MapSource;
use crate::RegionConfig;
use crate::RegionKey;
use crate::Vm;
use crate::service::DeviceId;

const PAGE: u64 = 4096;
const REGION_LEN: u64 = 4 << 20;

struct Region {
    vm: ArenaVm,
    arena: Arena,
    key: RegionKey,
}

impl Region {
    fn new(populate: u64) -> Self {
        let mut vm = ArenaVm::new();
        let arena = Arena::new(REGION_LEN).expect("an arena");
        let key = RegionKey {
            device: DeviceId::default(),
            shmid: 0,
        };
        let config = RegionConfig {
            shmid: 0,
            guest_address: 0,
            len: REGION_LEN,
            arena: Some(arena.clone()),
            populate,
        };
        vm.add_region(key, &config).expect("a region");
        Self { vm, arena, key }
    }

    fn map(&mut self, file: &SafeDescriptor, offset: u64, len: u64) {
        let info = inspect(file.as_fd()).expect("a descriptor");
        let source = MapSource::Descriptor {
            descriptor: file,
            offset: 0,
            info: &info,
        };
        let operation = MapOperation {
            region: self.key,
            offset,
            len,
            source,
            protection: Protection::read_write(),
        };
        self.vm.map(&operation).expect("it is mapped");
    }

    /// Waits for the thread, and returns which of the region's first pages the page table has.
    fn pages<const N: usize>(self) -> [bool; N] {
        if let Some(populator) = self.vm.into_populator() {
            populator.finish();
        }
        let pagemap = File::open("/proc/self/pagemap").expect("it is there");
        std::array::from_fn(|page| {
            let mut entry = [0; 8];
            let number = self.arena.host_address() / PAGE + page as u64;
            pagemap
                .read_exact_at(&mut entry, number * 8)
                .expect("an entry");
            u64::from_ne_bytes(entry) >> 63 == 1
        })
    }
}

/// A memfd without a page of its own.
fn sparse(len: u64) -> SafeDescriptor {
    let fd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, len).expect("it grows");
    fd.into()
}

fn allocated(file: &SafeDescriptor) -> i64 {
    fstat(file.as_fd()).expect("a file").st_blocks * 512
}

#[test]
fn pages_are_there_before_anybody_touches_them() {
    let file = sparse(REGION_LEN);
    let mut region = Region::new(u64::MAX);
    // More than one step, and not a multiple of the page size.
    let len = STEP + PAGE + 1;
    region.map(&file, 0, len);
    let mut expected = [true; 67];
    expected[66] = false;
    assert_eq!(region.pages(), expected);
    assert_eq!(allocated(&file), 66 * 4096);
}

#[test]
fn pages_are_left_to_the_guest_unless_the_region_says_otherwise() {
    let file = sparse(PAGE);
    let mut region = Region::new(0);
    region.map(&file, 0, PAGE);
    assert_eq!(region.pages(), [false]);
    assert_eq!(allocated(&file), 0);
}

#[test]
fn allowance_is_of_the_region_and_does_not_come_back() {
    let file = sparse(2 * PAGE);
    let mut region = Region::new(3 * PAGE + 1);
    region.map(&file, 8 * PAGE, 2 * PAGE);
    let unmapped = region.vm.unmap(region.key, 8 * PAGE, 2 * PAGE);
    assert_eq!(unmapped, Ok(()));
    // Each has pages of its own, which its owner keeps whatever is unmapped.
    let (other, last) = (sparse(2 * PAGE), sparse(PAGE));
    region.map(&other, 0, 2 * PAGE);
    region.map(&last, 2 * PAGE, PAGE);
    assert_eq!(region.pages(), [true, false, false]);
    assert_eq!((allocated(&other), allocated(&last)), (4096, 0));
}

#[test]
fn file_whose_pages_are_elsewhere_is_left_alone() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(PAGE).expect("it grows");
    let mut region = Region::new(u64::MAX);
    region.map(&OwnedFd::from(file).into(), 0, PAGE);
    assert_eq!(region.pages(), [false]);
}

#[test]
fn mapping_that_is_gone_harms_nobody() {
    let arena = Arena::new(REGION_LEN).expect("an arena");
    let populator = Populator::start().expect("a thread");
    assert!(populator.populate(&arena, 0, REGION_LEN));
    populator.finish();
    assert_eq!(arena.populate(0, PAGE), Err(Error::new(libc::EINVAL)));
}
