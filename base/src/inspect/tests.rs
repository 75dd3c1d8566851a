//! Tests of each kind of descriptor that can be made here.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::MemfdFlags;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::memfd_create;

use super::*;
use crate::Error;
use crate::Event;
use crate::scm;

#[track_caller]
fn check(descriptor: &impl AsFd, kind: DescriptorKind, size: Option<u64>) {
    let info = inspect(descriptor.as_fd()).expect("it is open");
    assert_eq!((info.kind, info.size), (kind, size));
}

#[test]
fn file_has_a_size() {
    let file = tempfile::tempfile().expect("a file is made");
    file.set_len(12345).expect("it grows");
    check(&file, DescriptorKind::File, Some(12345));
}

#[test]
fn file_in_shared_memory_file_system_is_no_memfd() {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file is made");
    check(&file, DescriptorKind::File, Some(0));
}

#[test]
fn memfd_is_told_from_file() {
    let memfd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
    rustix::fs::ftruncate(&memfd, 4096).expect("it grows");
    check(&memfd, DescriptorKind::Memfd, Some(4096));
}

#[test]
fn memfd_of_huge_pages_is_a_memfd_of_huge_pages() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    match memfd_create(c"test", flags) {
        Ok(memfd) => {
            check(&memfd, DescriptorKind::Memfd, Some(0));
            let info = inspect(memfd.as_fd()).expect("it is open");
            assert_eq!(info.page_size, 2 << 20);
        }
        Err(errno) => {
            println!("skipped: no memfd of huge pages: {errno}");
            assert_eq!(std::env::var_os("CI"), None, "skipped: {errno}");
        }
    }
}

#[test]
fn other_files_have_the_systems_pages() {
    let page_size = u64::try_from(crate::page_size()).expect("a page is small");
    let memfd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
    let file = tempfile::tempfile().expect("a file is made");
    let shared = tempfile::tempfile_in("/dev/shm").expect("a file is made");
    for descriptor in [memfd.as_fd(), file.as_fd(), shared.as_fd()] {
        let info = inspect(descriptor).expect("it is open");
        assert_eq!(info.page_size, page_size);
    }
}

#[test]
fn mapping_that_huge_pages_would_exceed_is_einval() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(huge) = memfd_create(c"test", flags) else {
        assert_eq!(std::env::var_os("CI"), None, "skipped: no huge pages");
        println!("skipped: no memfd of huge pages");
        return;
    };
    let ordinary = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
    let huge_page = 2 << 20;
    for (address, len, outcome) in [
        (huge_page, huge_page, Ok(())),
        (huge_page, 4096, Err(Error::new(libc::EINVAL))),
        (huge_page, huge_page + 4096, Err(Error::new(libc::EINVAL))),
        // The kernel refuses this address.
        (huge_page + 4096, 4096, Ok(())),
    ] {
        let of = |memfd: &std::os::fd::OwnedFd| check_not_rounded_up(memfd.as_fd(), address, len);
        assert_eq!(of(&huge), outcome, "{address:#x} {len:#x}");
        assert_eq!(of(&ordinary), Ok(()), "{address:#x} {len:#x}");
    }
}

#[test]
fn kinds_without_a_size_have_none() {
    let (pipe, _other) = rustix::pipe::pipe().expect("a pipe is made");
    check(&pipe, DescriptorKind::Pipe, None);
    let (socket, _other) = scm::stream_pair().expect("a pair is made");
    check(&socket, DescriptorKind::Socket, None);
    check(
        &File::open("/").expect("it opens"),
        DescriptorKind::Directory,
        None,
    );
    check(
        &File::open("/dev/null").expect("it opens"),
        DescriptorKind::CharDevice,
        None,
    );
    check(
        &Event::new().expect("an eventfd is made"),
        DescriptorKind::Anonymous,
        None,
    );
}

#[test]
fn path_descriptor_shows_what_it_names() {
    let file = tempfile::NamedTempFile::new().expect("a file is made");
    let path = rustix::fs::open(file.path(), OFlags::PATH, Mode::empty()).expect("it opens");
    check(&path, DescriptorKind::File, Some(0));
    let link = rustix::fs::open(
        "/proc/self/exe",
        OFlags::PATH | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .expect("it opens");
    check(&link, DescriptorKind::Other, None);
}

#[test]
fn only_file_that_is_not_known_can_stall() {
    let memfd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
    let file = tempfile::tempfile().expect("a file is made");
    let shared = tempfile::tempfile_in("/dev/shm").expect("a file is made");
    let (pipe, _other) = rustix::pipe::pipe().expect("a pipe is made");
    // Its file system is of none of the known types.
    let other = File::open("/proc/cpuinfo").expect("it opens");
    let can_stall = |file: BorrowedFd<'_>| inspect(file).expect("it is open").can_stall;
    let files = [
        memfd.as_fd(),
        file.as_fd(),
        shared.as_fd(),
        pipe.as_fd(),
        other.as_fd(),
    ];
    assert_eq!(files.map(can_stall), [false, false, false, false, true]);
}

#[test]
fn two_descriptors_of_one_file_have_its_inode() {
    let file = tempfile::tempfile().expect("a file is made");
    let copy = file.try_clone().expect("duplicates");
    let other = tempfile::tempfile().expect("a file is made");
    let of = |file: &File| inspect(file.as_fd()).expect("it is open");
    assert_eq!(of(&file), of(&copy));
    assert_ne!(of(&file).inode, of(&other).inode);
    assert_eq!(of(&file).device, of(&other).device);
}

#[test]
fn closed_descriptor_is_ebadf() {
    let number = crate::Descriptor(1 << 20);
    let descriptor = crate::descriptor::borrow(&number).expect("the number is positive");
    assert_eq!(inspect(descriptor), Err(Error::new(libc::EBADF)));
}
