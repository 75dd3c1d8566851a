//! Tests of each kind of descriptor that can be made here.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::Mode;
use rustix::fs::OFlags;

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
fn memfd_of_huge_pages_is_a_memfd() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    match memfd_create(c"test", flags) {
        Ok(memfd) => check(&memfd, DescriptorKind::Memfd, Some(0)),
        Err(errno) => {
            println!("skipped: no memfd of huge pages: {errno}");
            assert_eq!(std::env::var_os("CI"), None, "skipped: {errno}");
        }
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
