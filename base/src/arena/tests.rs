//! Tests of reservation, mapping, and what is left in the address space afterwards.

use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::fs::ftruncate;
use rustix::fs::memfd_create;

use super::*;

const PAGE: usize = 4096;

fn memfd(content: &[u8]) -> OwnedFd {
    let memfd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
    assert_eq!(rustix::io::pwrite(&memfd, content, 0), Ok(content.len()));
    memfd
}

fn arena(size: usize) -> MemoryMappingArena {
    MemoryMappingArena::new(size).expect("the range is reserved")
}

/// Returns how many areas of `/proc/self/maps` touch the arena.
fn vmas(arena: &MemoryMappingArena) -> usize {
    let start = arena.as_ptr().addr();
    let end = start + arena.size();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let parse = |text| usize::from_str_radix(text, 16).expect("an address is hexadecimal");
    let mut seen = 0;
    let mut count = 0;
    for line in maps.lines() {
        let range = line.split(' ').next().expect("a line begins with a range");
        let (from, to) = range.split_once('-').expect("a range has two ends");
        // An area that another test's thread makes larger while the list is read comes twice.
        let is_new = parse(from) >= seen;
        seen = parse(to);
        count += usize::from(is_new && parse(from) < end && parse(to) > start);
    }
    count
}

fn byte_at(arena: &MemoryMappingArena, offset: usize) -> Result<u8> {
    let mut byte = [0];
    arena.read_at(offset, &mut byte)?;
    Ok(byte[0])
}

const EFAULT: Error = Error::new(libc::EFAULT);

#[test]
fn large_arena_is_aligned_to_huge_pages() {
    for size in [2 << 20, 6 << 20, (2 << 20) + PAGE] {
        let arena = arena(size);
        assert_eq!(arena.as_ptr().addr() % (2 << 20), 0);
        assert_eq!(arena.size(), size);
        assert_eq!(vmas(&arena), 1);
    }
}

#[test]
fn size_of_zero_or_of_half_a_page_is_einval() {
    for size in [0, 1, PAGE / 2, PAGE + 1] {
        let outcome = MemoryMappingArena::new(size).map(|_| ());
        assert_eq!(outcome, Err(Error::new(libc::EINVAL)), "{size}");
    }
}

#[test]
fn size_beyond_the_address_space_is_enomem() {
    for size in [1 << 60, usize::MAX & !(PAGE - 1)] {
        let outcome = MemoryMappingArena::new(size).map(|_| ());
        assert_eq!(outcome, Err(Error::new(libc::ENOMEM)), "{size:#x}");
    }
}

#[test]
fn mapping_shows_the_file_and_its_removal_leaves_a_hole() {
    let arena = arena(4 * PAGE);
    let memfd = memfd(&[7; 2 * PAGE]);
    assert_eq!(byte_at(&arena, PAGE), Err(EFAULT));
    arena
        .add_fd_mapping(PAGE, 2 * PAGE, &memfd, 0, Protection::read_write())
        .expect("maps");
    assert_eq!(byte_at(&arena, 0), Err(EFAULT));
    assert_eq!(byte_at(&arena, PAGE), Ok(7));
    assert_eq!(byte_at(&arena, 3 * PAGE - 1), Ok(7));
    assert_eq!(byte_at(&arena, 3 * PAGE), Err(EFAULT));

    assert_eq!(arena.write_at(2 * PAGE, b"hello"), Ok(()));
    let mut written = [0; 5];
    assert_eq!(rustix::io::pread(&memfd, &mut written, 4096), Ok(5));
    assert_eq!(&written, b"hello");

    arena.remove_mapping(PAGE, 2 * PAGE).expect("unmaps");
    assert_eq!(byte_at(&arena, PAGE), Err(EFAULT));
    assert_eq!(vmas(&arena), 1);
}

#[test]
fn file_offset_is_where_the_mapping_begins() {
    let arena = arena(PAGE);
    let memfd = memfd(&[[1; PAGE], [2; PAGE]].concat());
    arena
        .add_fd_mapping(0, PAGE, &memfd, 4096, Protection::read())
        .expect("maps");
    assert_eq!(byte_at(&arena, 0), Ok(2));
}

#[test]
fn partial_last_page_is_mapped_whole_and_removed_whole() {
    let arena = arena(0x80000);
    let memfd = memfd(&[9; 0x70800]);
    arena
        .add_fd_mapping(0, 0x70800, &memfd, 0, Protection::read())
        .expect("maps");
    assert_eq!(byte_at(&arena, 0x707ff), Ok(9));
    assert_eq!(byte_at(&arena, 0x70fff), Ok(0));
    assert_eq!(byte_at(&arena, 0x71000), Err(EFAULT));
    arena.remove_mapping(0, 0x70800).expect("unmaps");
    assert_eq!(byte_at(&arena, 0x70fff), Err(EFAULT));
}

#[test]
fn partial_last_page_at_the_arenas_end_fits() {
    let arena = arena(2 * PAGE);
    let memfd = memfd(&[9; 2 * PAGE]);
    let outcome = arena.add_fd_mapping(PAGE, 1, &memfd, 0, Protection::read());
    assert_eq!(outcome, Ok(()));
}

#[test]
fn ranges_that_are_misaligned_or_outside_are_refused() {
    let arena = arena(4 * PAGE);
    let memfd = memfd(&[1; PAGE]);
    let map = |offset, size| arena.add_fd_mapping(offset, size, &memfd, 0, Protection::read());
    let top = usize::MAX & !(PAGE - 1);
    for (offset, size, errno) in [
        (1, PAGE, libc::EINVAL),
        (0, 0, libc::EINVAL),
        (4 * PAGE, 1, libc::ERANGE),
        (3 * PAGE, PAGE + 1, libc::ERANGE),
        (0, 5 * PAGE, libc::ERANGE),
        (top, 2 * PAGE, libc::ERANGE),
        (0, usize::MAX, libc::ERANGE),
    ] {
        let expected = Err(Error::new(errno));
        assert_eq!(map(offset, size), expected, "{offset:#x} {size:#x}");
        assert_eq!(arena.remove_mapping(offset, size), expected);
    }
    let misaligned = arena.add_fd_mapping(0, PAGE, &memfd, 1, Protection::read());
    assert_eq!(misaligned, Err(Error::new(libc::EINVAL)));
    assert_eq!(byte_at(&arena, 4 * PAGE), Err(Error::new(libc::ERANGE)));
    assert_eq!(byte_at(&arena, usize::MAX), Err(Error::new(libc::ERANGE)));
}

#[test]
fn refusals_of_mmap_pass_through_and_leave_the_reservation_whole() {
    let arena = arena(4 * PAGE);
    let file = tempfile::NamedTempFile::new().expect("a file is made");
    let read_only = std::fs::File::open(file.path()).expect("it opens");
    let path = rustix::fs::open(
        file.path(),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    )
    .expect("it opens");
    let (pipe, _other) = rustix::pipe::pipe().expect("a pipe is made");
    // Its file system refuses only after the kernel has taken away what was mapped.
    let late = std::fs::File::open("/proc/cpuinfo").expect("it opens");
    let (read, both) = (Protection::read(), Protection::read_write());
    for (fd, protection, errno) in [
        (&read_only as &dyn AsRawDescriptor, both, libc::EACCES),
        (&path, read, libc::EBADF),
        (&pipe, read, libc::ENODEV),
        (&late, read, libc::EIO),
        (&crate::Descriptor(-1), read, libc::EBADF),
    ] {
        let outcome = arena.add_fd_mapping(PAGE, PAGE, fd, 0, protection);
        assert_eq!(outcome, Err(Error::new(errno)));
        assert_eq!(vmas(&arena), 1);
    }
}

#[test]
fn part_of_a_huge_page_is_einval_and_leaves_the_reservation_whole() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(memfd) = memfd_create(c"test", flags) else {
        assert_eq!(std::env::var_os("CI"), None, "skipped: no huge pages");
        println!("skipped: no memfd of huge pages");
        return;
    };
    ftruncate(&memfd, 2 << 20).expect("it grows");
    let arena = arena(4 << 20);
    for offset in [0, PAGE, 2 << 20] {
        let outcome = arena.add_fd_mapping(offset, PAGE, &memfd, 0, Protection::read());
        assert_eq!(outcome, Err(Error::new(libc::EINVAL)));
        assert_eq!(vmas(&arena), 1);
    }
}

#[test]
fn thousand_mappings_at_new_offsets_leave_no_vma() {
    let arena = arena(4096 * PAGE);
    let memfd = memfd(&[1; 4 * PAGE]);
    assert_eq!(vmas(&arena), 1);
    for offset in (0..4000 * PAGE).step_by(4 * PAGE) {
        arena
            .add_fd_mapping(offset, 3 * PAGE, &memfd, 0, Protection::read_write())
            .expect("maps");
        arena.remove_mapping(offset, 3 * PAGE).expect("unmaps");
    }
    assert_eq!(vmas(&arena), 1);
}

#[test]
fn thousand_live_mappings_removed_leave_no_vma() {
    let arena = arena(4096 * PAGE);
    let memfd = memfd(&[1; PAGE]);
    let offsets: Vec<usize> = (0..4000 * PAGE).step_by(4 * PAGE).collect();
    for offset in &offsets {
        arena
            .add_fd_mapping(*offset, PAGE, &memfd, 0, Protection::read())
            .expect("maps");
    }
    assert_eq!(vmas(&arena), 2000);
    for offset in offsets {
        arena.remove_mapping(offset, PAGE).expect("unmaps");
    }
    assert_eq!(vmas(&arena), 1);
}

#[test]
fn truncated_file_is_efault_to_read_and_to_write() {
    let arena = arena(2 * PAGE);
    let memfd = memfd(&[1; 2 * PAGE]);
    arena
        .add_fd_mapping(0, 2 * PAGE, &memfd, 0, Protection::read_write())
        .expect("maps");
    ftruncate(&memfd, 4096).expect("truncates");
    assert_eq!(byte_at(&arena, PAGE - 1), Ok(1));
    assert_eq!(byte_at(&arena, PAGE), Err(EFAULT));
    assert_eq!(arena.write_at(PAGE, b"x"), Err(EFAULT));
    let mut across = [0; 2];
    assert_eq!(arena.read_at(PAGE - 1, &mut across), Err(EFAULT));
}

#[test]
fn read_only_mapping_is_efault_to_write() {
    let arena = arena(PAGE);
    let memfd = memfd(&[1; PAGE]);
    arena
        .add_fd_mapping(0, PAGE, &memfd, 0, Protection::read())
        .expect("maps");
    assert_eq!(arena.write_at(0, b"x"), Err(EFAULT));
    assert_eq!(byte_at(&arena, 0), Ok(1));
}

#[test]
fn empty_copies_succeed_up_to_the_end() {
    let arena = arena(PAGE);
    assert_eq!(arena.read_at(PAGE, &mut []), Ok(()));
    assert_eq!(arena.write_at(0, &[]), Ok(()));
}

#[test]
fn arena_is_a_mapped_region() {
    let mut region: Box<dyn MappedRegion> = Box::new(arena(2 * PAGE));
    let memfd = memfd(&[3; PAGE]);
    region
        .add_fd_mapping(PAGE, PAGE, &memfd, 0, Protection::read())
        .expect("maps");
    region.remove_mapping(PAGE, PAGE).expect("unmaps");
    assert_eq!(region.size(), 2 * PAGE);
}

#[test]
fn mapping_that_moves_in_leaves_its_old_place() {
    let arena = arena(16 * PAGE);
    let memfd = memfd_create(c"moves-in", MemfdFlags::CLOEXEC).expect("a memfd is made");
    assert_eq!(rustix::io::pwrite(&memfd, &[9; PAGE + 1], 0), Ok(PAGE + 1));
    let builder = crate::MemoryMappingBuilder::new(PAGE + 1).from_descriptor(&memfd);
    let mapping = builder.build().expect("maps");
    let before = mapping.as_ptr().addr();
    assert_eq!(arena.move_in(2 * PAGE, mapping), Ok(()));
    assert_eq!(byte_at(&arena, 2 * PAGE), Ok(9));
    assert_eq!(byte_at(&arena, 3 * PAGE), Ok(9));
    assert_eq!(byte_at(&arena, 4 * PAGE), Err(EFAULT));
    assert_eq!(vmas(&arena), 3);
    let old = format!("{before:x}-");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    let memfd_is_there = |line: &str| line.starts_with(&old) && line.contains("moves-in");
    assert!(!maps.lines().any(memfd_is_there), "{maps}");
    assert_eq!(arena.remove_mapping(2 * PAGE, 2 * PAGE), Ok(()));
    assert_eq!(vmas(&arena), 1);
}

#[test]
fn pages_are_filled_in_up_to_the_end_of_the_file() {
    let arena = arena(4 * PAGE);
    let file = memfd(&[7]);
    ftruncate(&file, 2 * PAGE as u64).expect("it grows");
    let mapped = arena.add_fd_mapping(0, 3 * PAGE, &file, 0, Protection::read());
    assert_eq!(mapped, Ok(()));
    let pages = || rustix::fs::fstat(&file).map(|stat| stat.st_blocks * 512 / 4096);
    assert_eq!(pages(), Ok(1));
    assert_eq!(arena.populate(0, 2 * PAGE), Ok(()));
    assert_eq!(pages(), Ok(2));
    assert_eq!(arena.populate(0, 3 * PAGE), Err(EFAULT));
    let nothing = arena.populate(3 * PAGE, PAGE);
    assert_eq!(nothing, Err(Error::new(libc::EINVAL)));
    let outside = arena.populate(3 * PAGE, 2 * PAGE);
    assert_eq!(outside, Err(Error::new(libc::ERANGE)));
}

#[test]
fn mapping_that_moves_out_of_the_arena_is_erange_and_gone() {
    let arena = arena(4 * PAGE);
    let mapping = || {
        crate::MemoryMappingBuilder::new(2 * PAGE)
            .build()
            .expect("maps")
    };
    for (offset, errno) in [
        (3 * PAGE, libc::ERANGE),
        (4 * PAGE, libc::ERANGE),
        (1, libc::EINVAL),
    ] {
        assert_eq!(arena.move_in(offset, mapping()), Err(Error::new(errno)));
    }
    assert_eq!(arena.move_in(2 * PAGE, mapping()), Ok(()));
}
