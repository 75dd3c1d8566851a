//! One mapping of a file or of anonymous memory.

// UNSAFETY: mmap has no safe form.
#![expect(unsafe_code, reason = "mmap, and an implementation of an unsafe trait")]

use std::ptr::null_mut;

use rustix::mm::MapFlags;
use rustix::mm::MremapFlags;
use rustix::mm::mmap;
use rustix::mm::mmap_anonymous;
use rustix::mm::mprotect;
use rustix::mm::mremap;

use crate::AsRawDescriptor;
use crate::Error;
use crate::MappedRegion;
use crate::Protection;
use crate::Result;
use crate::SharedMemory;
use crate::descriptor::borrow;
use crate::inspect::check_not_rounded_up;
use crate::mapped_range::MappedRange;
use crate::page_size;

/// A mapping, which ends when the value is dropped.
///
/// There are no references into it, since other processes may write to it. Copies go through the kernel, as those of
/// [`MemoryMappingArena`](crate::MemoryMappingArena) do; who may not make those system calls uses the pointer.
#[derive(Debug)]
pub struct MemoryMapping(MappedRange);

/// What to map, and how.
pub struct MemoryMappingBuilder<'a> {
    size: usize,
    descriptor: Option<&'a dyn AsRawDescriptor>,
    offset: u64,
    protection: Protection,
}

impl<'a> MemoryMappingBuilder<'a> {
    /// Begins a mapping of `size` bytes of anonymous memory, readable and writable.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            descriptor: None,
            offset: 0,
            protection: Protection::read_write(),
        }
    }

    /// Maps a file instead, shared.
    #[must_use]
    pub fn from_descriptor(mut self, descriptor: &'a dyn AsRawDescriptor) -> Self {
        self.descriptor = Some(descriptor);
        self
    }

    /// Maps shared memory instead.
    #[must_use]
    pub fn from_shared_memory(self, memory: &'a SharedMemory) -> Self {
        self.from_descriptor(memory)
    }

    /// Begins at byte `offset` of the file, a multiple of the page size.
    #[must_use]
    pub fn offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Permits what `protection` says.
    #[must_use]
    pub fn protection(mut self, protection: Protection) -> Self {
        self.protection = protection;
        self
    }

    /// Makes the mapping.
    ///
    /// # Errors
    /// `EINVAL` for a size of 0, an offset that is not aligned, or a part of a huge page; otherwise the errno of `mmap`: `EACCES` where the
    /// file was not opened for what the protection says, `ENODEV` where it can't be mapped, `ENOMEM`.
    pub fn build(self) -> Result<MemoryMapping> {
        let (size, flags) = (self.size, self.protection.flags());
        let address = match self.descriptor {
            Some(descriptor) => {
                let fd = borrow(descriptor)?;
                // The address is the kernel's choice, so one that is a multiple of everything.
                let footprint = size
                    .checked_next_multiple_of(page_size())
                    .ok_or(Error::new(libc::ENOMEM))?;
                check_not_rounded_up(fd, 0, footprint)?;
                // SAFETY: without MAP_FIXED the kernel picks a range that nobody has.
                unsafe { mmap(null_mut(), size, flags, MapFlags::SHARED, fd, self.offset) }
            }
            None => {
                // SAFETY: as above.
                unsafe { mmap_anonymous(null_mut(), size, flags, MapFlags::SHARED) }
            }
        }?;
        // SAFETY: the range is the one just mapped, and nobody else knows its address.
        let range = unsafe { MappedRange::new(address, size) };
        range.map(MemoryMapping).ok_or(Error::new(libc::ENOMEM))
    }
}

impl MemoryMapping {
    /// Maps memory a second time: `size` bytes at `address`, which must be a part of one shared mapping of this process.
    /// Both show the same from then on, whatever becomes of the first.
    ///
    /// Nothing is safe to refer to in shared memory, whoever has mapped it, since others can write to it at any time; so
    /// that one more can is no news to its owner.
    ///
    /// # Errors
    /// `EINVAL` for an address that is not aligned, a size of 0, memory that is not shared, or huge pages; `EFAULT` where nothing is
    /// mapped; `EACCES` where the file was not opened for what the protection says; `ENOMEM`. Where the mapping ends before
    /// the range does, what lies behind it in its file is mapped: that the range is mapped the caller has checked.
    pub fn duplicate(address: u64, size: usize, protection: Protection) -> Result<Self> {
        let address = usize::try_from(address).map_err(|_| Error::new(libc::EFAULT))?;
        let footprint = size
            .checked_next_multiple_of(page_size())
            .filter(|footprint| *footprint > 0)
            .ok_or(Error::new(libc::EINVAL))?;
        let old = std::ptr::without_provenance_mut(address);
        // SAFETY: with an old length of 0 the old mapping stays as it is, and the kernel picks a range that nobody has
        // for the new one. It refuses private memory.
        let new = unsafe { mremap(old, 0, footprint, MremapFlags::MAYMOVE) }?;
        // SAFETY: the range is the one just mapped, and nobody else knows its address.
        let range = unsafe { MappedRange::new(new, footprint) };
        let mapping = range.map(Self).ok_or(Error::new(libc::ENOMEM))?;
        // SAFETY: the range is this function's own, and nobody has references into it.
        unsafe { mprotect(new, footprint, protection.mprotect_flags()) }?;
        Ok(mapping)
    }

    /// Copies bytes at `offset` into `buffer`.
    ///
    /// # Errors
    /// `ERANGE` for a range that is not within the mapping, `EFAULT` where the file has become too short or the mapping
    /// is not readable.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buffer)
    }

    /// Copies `buffer` to `offset`.
    ///
    /// # Errors
    /// As [`MemoryMapping::read_at`]; `EFAULT` also where the mapping is not writable.
    pub fn write_at(&self, offset: usize, buffer: &[u8]) -> Result<()> {
        self.0.write_at(offset, buffer)
    }
}

// SAFETY: the range is mapped until it is dropped, and nothing here changes the mapping.
unsafe impl MappedRegion for MemoryMapping {
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn size(&self) -> usize {
        self.0.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(content: &[u8]) -> SharedMemory {
        let size = u64::try_from(content.len()).expect("a small size");
        let memory = SharedMemory::new("test", size).expect("memory is made");
        assert_eq!(rustix::io::pwrite(&memory, content, 0), Ok(content.len()));
        memory
    }

    #[test]
    fn mappings_of_one_memory_see_each_other() {
        let memory = memory(&[1; 100]);
        let map = || {
            let builder = MemoryMappingBuilder::new(100).from_shared_memory(&memory);
            builder.build().expect("maps")
        };
        let (one, other) = (map(), map());
        assert_eq!(one.size(), 100);
        assert_eq!(one.write_at(95, b"hello"), Ok(()));
        let mut seen = [0; 6];
        assert_eq!(other.read_at(94, &mut seen), Ok(()));
        assert_eq!(&seen, b"\x01hello");
        assert_eq!(one.write_at(96, b"hello"), Err(Error::new(libc::ERANGE)));
        assert_eq!(one.read_at(95, &mut seen), Err(Error::new(libc::ERANGE)));
    }

    #[test]
    fn offset_and_protection_are_kept() {
        let memory = memory(&[[1; 4096], [2; 4096]].concat());
        let mapping = MemoryMappingBuilder::new(4096)
            .from_descriptor(&memory)
            .offset(4096)
            .protection(Protection::read())
            .build()
            .expect("maps");
        let mut byte = [0];
        assert_eq!(mapping.read_at(0, &mut byte), Ok(()));
        assert_eq!(byte, [2]);
        assert_eq!(mapping.write_at(0, &[3]), Err(Error::new(libc::EFAULT)));
    }

    #[test]
    fn anonymous_memory_is_zero() {
        let mapping = MemoryMappingBuilder::new(1).build().expect("maps");
        let mut byte = [1];
        assert_eq!(mapping.read_at(0, &mut byte), Ok(()));
        assert_eq!(byte, [0]);
    }

    #[test]
    fn refusals_of_mmap_pass_through() {
        let memory = memory(&[1]);
        let build = |builder: MemoryMappingBuilder<'_>| builder.build().map(|_| ());
        let none = MemoryMappingBuilder::new(0);
        assert_eq!(build(none), Err(Error::new(libc::EINVAL)));
        let misaligned = MemoryMappingBuilder::new(1)
            .from_shared_memory(&memory)
            .offset(1);
        assert_eq!(build(misaligned), Err(Error::new(libc::EINVAL)));
        for size in [1 << 60, usize::MAX] {
            let endless = MemoryMappingBuilder::new(size);
            assert_eq!(build(endless), Err(Error::new(libc::ENOMEM)));
            let endless = MemoryMappingBuilder::new(size).from_shared_memory(&memory);
            assert_eq!(build(endless), Err(Error::new(libc::ENOMEM)));
        }
    }

    #[test]
    fn duplicate_shows_the_same_memory_even_after_the_first_is_gone() {
        let memory = memory(&[5; 2 * 4096]);
        let builder = MemoryMappingBuilder::new(2 * 4096).from_shared_memory(&memory);
        let first = builder.build().expect("maps");
        let address = first.as_ptr().addr() as u64;
        let second = MemoryMapping::duplicate(address + 4096, 4096, Protection::read());
        let second = second.expect("duplicates");
        assert_eq!(first.write_at(4096, &[6]), Ok(()));
        drop(first);
        let mut bytes = [0; 2];
        assert_eq!(second.read_at(0, &mut bytes), Ok(()));
        assert_eq!(bytes, [6, 5]);
        assert_eq!(second.write_at(0, &[7]), Err(Error::new(libc::EFAULT)));
    }

    #[test]
    fn duplicate_of_huge_pages_is_refused_and_leaves_nothing() {
        const HUGE: usize = 2 << 20;
        let flags = MapFlags::SHARED | MapFlags::HUGETLB | MapFlags::NORESERVE;
        let (read, size) = (Protection::read(), 2 * HUGE);
        // SAFETY: without MAP_FIXED the kernel picks a range that nobody has.
        let address = unsafe { mmap_anonymous(null_mut(), size, read.flags(), flags) };
        let Ok(address) = address else {
            assert!(std::env::var_os("CI").is_none(), "no huge pages here");
            eprintln!("skipped: no huge pages here");
            return;
        };
        // SAFETY: the range is the one just mapped, and nobody else knows its address.
        let range = unsafe { MappedRange::new(address, size) };
        let _first = range.expect("not at address 0");
        let huge_areas = || {
            let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
            maps.matches("/anon_hugepage").count()
        };
        let before = huge_areas();
        let start = address.addr() as u64;
        // The kernel would round a part of a huge page up.
        for size in [4096, HUGE] {
            let outcome = MemoryMapping::duplicate(start, size, read).map(|_| ());
            assert_eq!(outcome, Err(Error::new(libc::EINVAL)));
        }
        assert_eq!(huge_areas(), before);
    }

    #[test]
    fn duplicate_of_what_is_not_shared_memory_is_refused() {
        let duplicate = |address, size| {
            MemoryMapping::duplicate(address, size, Protection::read_write()).map(|_| ())
        };
        let private = vec![0u8; 4 * 4096];
        let address = (private.as_ptr().addr() as u64).next_multiple_of(4096);
        assert_eq!(duplicate(address, 4096), Err(Error::new(libc::EINVAL)));
        assert_eq!(duplicate(0, 4096), Err(Error::new(libc::EFAULT)));
        assert_eq!(duplicate(4096, 0), Err(Error::new(libc::EINVAL)));
    }

    #[test]
    fn mapping_is_no_place_for_other_mappings() {
        let memory = memory(&[1]);
        let mut mapping = MemoryMappingBuilder::new(4096).build().expect("maps");
        let outcome = mapping.add_fd_mapping(0, 4096, &memory, 0, Protection::read());
        assert_eq!(outcome, Err(Error::new(libc::ENOTSUP)));
        assert_eq!(
            mapping.remove_mapping(0, 4096),
            Err(Error::new(libc::ENOTSUP))
        );
    }
}
