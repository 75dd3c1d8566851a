//! Each errno, through a tube, with real descriptors; and that nothing is left of what was refused.

use std::fs::File;
use std::os::unix::net::UnixStream;

use base::Event;
use base::Protection;
use base::Seals;
use rustix::fs::Mode;
use rustix::fs::OFlags;

use super::fixture::*;
use crate::Reason;
use crate::RequestKind;
use crate::VmMemoryDestination;
use crate::VmMemorySource;

/// Maps one page at the region's start and checks the answer; nothing is mapped but what was.
#[track_caller]
fn check_source(source: VmMemorySource, prot: Protection, expected: Result<(), i32>) {
    let (fixture, mut device) = one(named("fs0"));
    assert_eq!(device.register(source, at(0), PAGE, prot), expected);
    let live = usize::from(expected.is_ok());
    assert_eq!(fixture.mappings().len(), live);
    assert_eq!(areas(&device.arena), 1 + live);
}

#[test]
fn descriptors_of_other_kinds_are_ebadf() {
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    check_source(
        source(std::os::fd::OwnedFd::from(pipe), 0),
        READ,
        Err(libc::EBADF),
    );
    let (socket, _peer) = UnixStream::pair().expect("a pair");
    check_source(source(socket, 0), READ, Err(libc::EBADF));
    let directory = File::open("/").expect("it opens");
    check_source(source(directory, 0), READ, Err(libc::EBADF));
    let device = File::options().read(true).write(true).open("/dev/zero");
    check_source(source(device.expect("it opens"), 0), BOTH, Err(libc::EBADF));
    let event = Event::new().expect("an event");
    check_source(source(event, 0), READ, Err(libc::EBADF));
}

#[test]
fn descriptor_opened_with_o_path_is_ebadf() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(PAGE).expect("it grows");
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::open(file.path(), flags, Mode::empty()).expect("it opens");
    check_source(source(path, 0), READ, Err(libc::EBADF));
}

#[test]
fn descriptor_not_opened_for_the_protection_is_eacces() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(PAGE).expect("it grows");
    let open = |read, write| {
        let opened = File::options().read(read).write(write).open(file.path());
        source(opened.expect("it opens"), 0)
    };
    check_source(open(true, false), BOTH, Err(libc::EACCES));
    check_source(open(false, true), READ, Err(libc::EACCES));
    check_source(open(false, true), BOTH, Err(libc::EACCES));
    check_source(open(true, false), READ, Ok(()));
    check_source(open(true, true), BOTH, Ok(()));
}

#[test]
fn memfd_sealed_against_writing_is_eacces_to_write_and_readable() {
    for seals in [Seals::WRITE, Seals::FUTURE_WRITE] {
        check_source(source(sealed(seals), 0), BOTH, Err(libc::EACCES));
        check_source(source(sealed(seals), 0), READ, Ok(()));
    }
}

#[test]
fn protection_without_reading_is_einval() {
    for prot in [Protection::default(), Protection::write()] {
        check_source(source(memfd(PAGE, 1), 0), prot, Err(libc::EINVAL));
    }
}

#[test]
fn range_beyond_the_end_of_the_file_is_eoverflow() {
    let (fixture, mut device) = one(named("fs0"));
    let mut map = |size, offset, len| {
        let memory = device.register(source(memfd(size, 1), offset), at(0), len, READ);
        assert_eq!(
            device.register(source(file(size, 1), offset), at(0), len, READ),
            memory
        );
        memory
    };
    assert_eq!(map(0, 0, 1), Err(libc::EOVERFLOW));
    assert_eq!(map(PAGE - 1, 0, PAGE), Err(libc::EOVERFLOW));
    assert_eq!(map(PAGE, PAGE, 1), Err(libc::EOVERFLOW));
    assert_eq!(map(2 * PAGE, PAGE, PAGE + 1), Err(libc::EOVERFLOW));
    assert_eq!(map(PAGE, u64::MAX - PAGE + 1, PAGE), Err(libc::EOVERFLOW));
    assert_eq!(fixture.mappings(), []);
    let last_page = device.register(source(memfd(PAGE + 1, 1), PAGE), at(0), 1, READ);
    assert_eq!(last_page, Ok(()));
}

#[test]
fn form_is_checked_before_the_region_and_the_region_before_the_range() {
    let (_fixture, mut device) = one(named("fs0"));
    let mut map = |shmid, offset, fd_offset, len| {
        let dest = VmMemoryDestination { shmid, offset };
        device.register(source(memfd(PAGE, 1), fd_offset), dest, len, READ)
    };
    assert_eq!(map(9, 1, 0, PAGE), Err(libc::EINVAL));
    assert_eq!(map(9, 0, 1, PAGE), Err(libc::EINVAL));
    assert_eq!(map(9, 0, 0, 0), Err(libc::EINVAL));
    assert_eq!(map(9, REGION_LEN, 0, PAGE), Err(libc::ENXIO));
    assert_eq!(map(0, REGION_LEN, PAGE, PAGE), Err(libc::ERANGE));
    assert_eq!(map(0, 0, 0, REGION_LEN + 1), Err(libc::ERANGE));
    assert_eq!(map(0, u64::MAX - PAGE + 1, 0, PAGE), Err(libc::ERANGE));
    assert_eq!(map(0, 0, 0, u64::MAX), Err(libc::ERANGE));
}

#[test]
fn unmap_of_what_is_not_one_whole_mapping_is_refused() {
    let (fixture, mut device) = one(named("fs0"));
    assert_eq!(device.map(memfd(0x3000, 1), PAGE, 0x2801, READ), Ok(()));
    assert_eq!(
        device.map(memfd(PAGE, 1), 2 * PAGE, PAGE, READ),
        Err(libc::EEXIST)
    );
    assert_eq!(device.unmap(PAGE, 1), Err(libc::ENOENT));
    assert_eq!(device.unmap(PAGE, PAGE), Err(libc::ENOENT));
    assert_eq!(device.unmap(2 * PAGE, PAGE), Err(libc::ENOENT));
    assert_eq!(device.unmap(0, 0x4000), Err(libc::ENOENT));
    assert_eq!(device.unmap(9 * PAGE, PAGE), Err(libc::ENOENT));
    assert_eq!(device.unmap(PAGE + 1, PAGE), Err(libc::EINVAL));
    assert_eq!(device.unmap(PAGE, 0), Err(libc::EINVAL));
    assert_eq!(device.unmap(REGION_LEN, PAGE), Err(libc::ERANGE));
    let elsewhere = VmMemoryDestination {
        shmid: 1,
        offset: PAGE,
    };
    let unknown = device.client.unregister_memory(elsewhere, 0x2801);
    assert_eq!(errno(unknown), Err(libc::ENXIO));
    assert_eq!(fixture.mappings().len(), 1);
    assert_eq!(device.unmap(PAGE, 0x3000), Ok(()));
}

#[test]
fn unmap_by_offset_only_is_an_option_of_the_device() {
    let (fixture, mut device) = one(crate::DeviceConfig {
        offset_only_unmap: true,
        ..named("fs0")
    });
    for len in [0, 1, PAGE, u64::MAX] {
        assert_eq!(device.map(memfd(0x3000, 1), PAGE, 0x2801, READ), Ok(()));
        assert_eq!(device.unmap(2 * PAGE, len), Err(libc::ENOENT));
        assert_eq!(device.unmap(PAGE, len), Ok(()));
    }
    assert_eq!(fixture.mappings(), []);
}

#[test]
fn device_cannot_touch_the_regions_of_another() {
    let mut fixture = Fixture::new();
    let (mut one, mut other) = (fixture.add(named("fs0")), fixture.add(named("fs1")));
    fixture.add_region(other.id, 1);
    let dest = VmMemoryDestination {
        shmid: 1,
        offset: 0,
    };
    assert_eq!(
        other.register(source(memfd(PAGE, 2), 0), dest, PAGE, READ),
        Ok(())
    );
    assert_eq!(other.map(memfd(PAGE, 2), 0, PAGE, READ), Ok(()));
    assert_eq!(
        one.register(source(memfd(PAGE, 1), 0), dest, PAGE, READ),
        Err(libc::ENXIO)
    );
    assert_eq!(
        errno(one.client.unregister_memory(dest, PAGE)),
        Err(libc::ENXIO)
    );
    assert_eq!(
        errno(one.client.prepare_shared_memory_region(1)),
        Err(libc::ENXIO)
    );
    assert_eq!(errno(one.client.prepare_shared_memory_region(0)), Ok(()));
    // The same id is another region.
    assert_eq!(one.unmap(0, PAGE), Err(libc::ENOENT));
    assert_eq!(errno(one.client.unregister_all()), Ok(()));
    assert_eq!(other.byte(0), Ok(2));
    assert_eq!(fixture.mappings().len(), 2);
}

#[test]
fn demand_for_seals_takes_memfds_sealed_against_shrinking_only() {
    let (_fixture, mut device) = one(crate::DeviceConfig {
        require_seals: true,
        ..named("fs0")
    });
    let mut map = |fd: base::SafeDescriptor| device.map(fd, 0, PAGE, READ);
    assert_eq!(map(memfd(PAGE, 1).into()), Err(libc::EPERM));
    assert_eq!(
        map(sealed(Seals::GROW | Seals::WRITE).into()),
        Err(libc::EPERM)
    );
    assert_eq!(map(file(PAGE, 1).into()), Err(libc::EBADF));
    assert_eq!(map(sealed(Seals::SHRINK).into()), Ok(()));
}

#[test]
fn vulkan_handle_that_nobody_can_map_is_ebadf() {
    let event = Event::new().expect("an event");
    check_source(vulkan(event), READ, Err(libc::EBADF));
}

#[test]
fn descriptors_of_refused_requests_are_closed() {
    let (_fixture, mut device) = one(named("fs0"));
    let (watch, pipe) = watched();
    assert_eq!(device.map(pipe, 0, PAGE, READ), Err(libc::EBADF));
    assert_closed(&watch);
    let (watch, pipe) = watched();
    assert_eq!(
        device.register(vulkan(pipe), at(0), PAGE, READ),
        Err(libc::EBADF)
    );
    assert_closed(&watch);
    let (watch, pipe) = watched();
    assert_eq!(device.map(pipe, 1, PAGE, READ), Err(libc::EINVAL));
    assert_closed(&watch);
}

#[test]
fn refused_requests_are_counted_by_errno_and_the_last_is_kept() {
    let (fixture, mut device) = one(named("fs0"));
    assert_eq!(
        device.map(memfd(PAGE, 1), 0, 0x2000, READ),
        Err(libc::EOVERFLOW)
    );
    assert_eq!(device.unmap(0, PAGE), Err(libc::ENOENT));
    assert_eq!(device.unmap(PAGE, 0x1234), Err(libc::ENOENT));
    let counters = fixture.stats(device.id).counters;
    assert_eq!(
        counters.refused[..],
        [(libc::EOVERFLOW, 1), (libc::ENOENT, 2)]
    );
    assert_eq!((counters.maps, counters.refused_total()), (0, 3));
    let last = counters.last_refused.expect("a refused request");
    assert_eq!((last.kind, last.shmid), (RequestKind::Unmap, 0));
    assert_eq!((last.offset, last.len), (PAGE, 0x1234));
    assert_eq!(last.errno.errno(), libc::ENOENT);
    let reason = Reason::NoMapping {
        offset: PAGE,
        len: 0x1234,
        live: None,
    };
    assert_eq!(last.reason, reason);
}
