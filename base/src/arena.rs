//! A reserved range of address space into which files are mapped and out of which they vanish without a trace.

// UNSAFETY: mmap with MAP_FIXED replaces memory; it is confined to a range that this file has reserved itself.
#![expect(
    unsafe_code,
    reason = "mmap, munmap, and an implementation of an unsafe trait"
)]

use std::ffi::c_void;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::MremapFlags;
use rustix::mm::ProtFlags;
use rustix::mm::madvise;
use rustix::mm::mmap;
use rustix::mm::mmap_anonymous;
use rustix::mm::mremap_fixed;
use rustix::mm::munmap;

use crate::AsRawDescriptor;
use crate::Error;
use crate::MappedRegion;
use crate::MemoryMapping;
use crate::Protection;
use crate::Result;
use crate::descriptor::borrow;
use crate::inspect::check_not_rounded_up;
use crate::mapped_range::MappedRange;
use crate::page_size;

/// What a large arena's address is a multiple of, so that huge pages of host and guest line up.
const HUGE_PAGE: usize = 2 << 20;

/// Reserved address space: inaccessible private memory that costs nothing, replaced by mappings of files and restored.
///
/// All methods take `&self`: the state is the kernel's, and what overlaps is for the owner to know. Whatever is mapped
/// here is reached through [`MemoryMappingArena::read_at`] and [`MemoryMappingArena::write_at`] or by raw pointer, never
/// by reference.
#[derive(Debug)]
pub struct MemoryMappingArena(MappedRange);

impl MemoryMappingArena {
    /// Reserves `size` bytes, a multiple of the page size. From 2 MiB on the address is a multiple of 2 MiB.
    ///
    /// # Errors
    /// `EINVAL` for a size that is 0 or no multiple of the page size, `ENOMEM` where there is no such range.
    pub fn new(size: usize) -> Result<Self> {
        if size == 0 || !size.is_multiple_of(page_size()) {
            return Err(Error::new(libc::EINVAL));
        }
        let slack = if size < HUGE_PAGE { 0 } else { HUGE_PAGE };
        let reserved_size = size.checked_add(slack).ok_or(Error::new(libc::ENOMEM))?;
        // SAFETY: without MAP_FIXED the kernel picks a range that nobody has.
        let reserved = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                reserved_size,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let skipped = if slack == 0 {
            0
        } else {
            reserved.addr().next_multiple_of(HUGE_PAGE) - reserved.addr()
        };
        let start = reserved.wrapping_byte_add(skipped);
        give_back(reserved, skipped)?;
        give_back(start.wrapping_byte_add(size), slack - skipped)?;
        // SAFETY: what is left of the reservation is this range, and nobody else knows its address.
        let range = unsafe { MappedRange::new(start, size) };
        range.map(Self).ok_or(Error::new(libc::ENOMEM))
    }

    /// Maps `size` bytes of `fd`, from `fd_offset` on, at `offset`: one `mmap`, which replaces what is there.
    ///
    /// All are bytes; the offsets are multiples of the page size, `size` is not 0. Where `size` ends within a page the
    /// whole page is mapped. Of a file of huge pages only whole ones are mapped: the kernel would round up, and what lies
    /// behind the range would be gone. On error the range is as it was or inaccessible.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not aligned, a size of 0 or a part of a huge page, `ERANGE` for a range that is not
    /// within the arena, otherwise the errno of `mmap`: `EACCES` where `fd` was not opened for what `protection` says,
    /// `EBADF` for a descriptor opened with `O_PATH`, `ENODEV` where the file can't be mapped, `ENOMEM`.
    pub fn add_fd_mapping(
        &self,
        offset: usize,
        size: usize,
        fd: &dyn AsRawDescriptor,
        fd_offset: u64,
        protection: Protection,
    ) -> Result<()> {
        let (address, footprint) = self.range(offset, size)?;
        let fd = borrow(fd)?;
        check_not_rounded_up(fd, address.addr(), footprint)?;
        // SAFETY: the range lies within the reservation, `range` has checked it, the kernel won't exceed it, as checked
        // above, and nobody has references into it.
        let mapped = unsafe {
            mmap(
                address,
                size,
                protection.flags(),
                MapFlags::SHARED | MapFlags::FIXED,
                fd,
                fd_offset,
            )
        };
        if let Err(errno) = mapped {
            close_hole(address, footprint);
            return Err(errno.into());
        }
        Ok(())
    }

    /// Moves a mapping to `offset`, where it replaces what is there: one `mremap`.
    ///
    /// [`MemoryMappingArena::add_fd_mapping`] is one system call less, but where the file's own code refuses the mapping,
    /// the range is no part of the arena until that has repaired it, and another thread's mapping can get there. With this
    /// the refusal comes when the mapping is made elsewhere, and the arena is whole at all times.
    ///
    /// # Errors
    /// `EINVAL` for an offset that is not aligned as the mapping needs it, `ERANGE` for a range that is not within the
    /// arena, `ENOMEM` where there are too many mappings. The mapping is gone then, and the range is as it was.
    pub fn move_in(&self, offset: usize, mapping: MemoryMapping) -> Result<()> {
        let (address, footprint) = self.range(offset, mapping.size())?;
        // SAFETY: the target lies within the reservation, `range` has checked it; nobody has references into it, nor
        // into the mapping, which is this function's own.
        let moved = unsafe {
            mremap_fixed(
                mapping.as_ptr().cast(),
                footprint,
                footprint,
                MremapFlags::MAYMOVE,
                address,
            )
        };
        if let Err(errno) = moved {
            close_hole(address, footprint);
            return Err(errno.into());
        }
        // Its old range may be somebody else's by now.
        std::mem::forget(mapping);
        Ok(())
    }

    /// Makes `size` bytes at `offset` inaccessible again: one `mmap`. Units as in
    /// [`MemoryMappingArena::add_fd_mapping`]; a range without mappings is fine.
    ///
    /// # Errors
    /// `EINVAL` and `ERANGE` as there, `ENOMEM` where the kernel can't split a mapping in two. The mappings are still
    /// there then.
    pub fn remove_mapping(&self, offset: usize, size: usize) -> Result<()> {
        let (address, footprint) = self.range(offset, size)?;
        // Inaccessible private memory with the reservation's own flags, so that the kernel merges it with its
        // neighbours and no VMA is left over.
        // SAFETY: the range lies within the reservation, `range` has checked it, and nobody has references into that.
        unsafe {
            mmap_anonymous(
                address,
                footprint,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
            )
        }?;
        Ok(())
    }

    /// Fills in the pages of `size` bytes at `offset`, as if each were read once: one `madvise`. What files lack of them is allocated, or
    /// read from where it is. Both are multiples of the page size, `size` is not 0.
    ///
    /// # Errors
    /// `EINVAL` and `ERANGE` as in [`MemoryMappingArena::add_fd_mapping`], `EINVAL` also where nothing is mapped and before Linux
    /// 5.14; `EFAULT` where the file has become too short. The pages before that are there.
    pub fn populate(&self, offset: usize, size: usize) -> Result<()> {
        let (address, footprint) = self.range(offset, size)?;
        // SAFETY: the range lies within the reservation, `range` has checked it, and no content changes.
        unsafe { madvise(address, footprint, Advice::LinuxPopulateRead) }?;
        Ok(())
    }

    /// Copies what is mapped at `offset` into `buffer`. Uses `process_vm_readv`, so nothing that a file's owner does to
    /// it can be a signal.
    ///
    /// # Errors
    /// `ERANGE` for a range that is not within the arena; `EFAULT` where nothing is mapped, or the file has become too
    /// short, or the memory is of a kind that can't be read that way.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buffer)
    }

    /// Copies `buffer` to what is mapped at `offset`; the counterpart of [`MemoryMappingArena::read_at`].
    ///
    /// # Errors
    /// As there; `EFAULT` also where the mapping is read-only.
    pub fn write_at(&self, offset: usize, buffer: &[u8]) -> Result<()> {
        self.0.write_at(offset, buffer)
    }

    /// Returns the address and the footprint of a mapping.
    fn range(&self, offset: usize, size: usize) -> Result<(*mut c_void, usize)> {
        if size == 0 || !offset.is_multiple_of(page_size()) {
            return Err(Error::new(libc::EINVAL));
        }
        let footprint = size
            .checked_next_multiple_of(page_size())
            .ok_or(Error::new(libc::ERANGE))?;
        Ok((self.0.place(offset, footprint)?.cast(), footprint))
    }
}

/// Returns `len` bytes of a fresh reservation to the kernel.
fn give_back(address: *mut c_void, len: usize) -> Result<()> {
    if len > 0 {
        // SAFETY: the bytes were reserved by `new` just before and nobody knows their address.
        unsafe { munmap(address, len) }?;
    }
    Ok(())
}

/// Repairs the reservation after a failed `mmap`.
///
/// Where a file's own code refuses a mapping, Linux has unmapped the range by then and leaves it so (6.18 still does).
/// `NOREPLACE`: where the range is there after all, or somebody else has got it in the meantime, it stays as it is.
fn close_hole(address: *mut c_void, len: usize) {
    // SAFETY: with NOREPLACE nothing is replaced.
    let _restored_or_intact = unsafe {
        mmap_anonymous(
            address,
            len,
            ProtFlags::empty(),
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE,
        )
    };
}

// SAFETY: the range from `as_ptr`, `size` bytes long, is reserved until drop, and only fixed mappings within it change it.
unsafe impl MappedRegion for MemoryMappingArena {
    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn add_fd_mapping(
        &mut self,
        offset: usize,
        size: usize,
        fd: &dyn AsRawDescriptor,
        fd_offset: u64,
        prot: Protection,
    ) -> Result<()> {
        Self::add_fd_mapping(self, offset, size, fd, fd_offset, prot)
    }

    fn remove_mapping(&mut self, offset: usize, size: usize) -> Result<()> {
        Self::remove_mapping(self, offset, size)
    }
}

#[cfg(test)]
mod tests;
