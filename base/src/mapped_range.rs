//! An owned range of address space: what a mapping and an arena have in common behind their interfaces.

// UNSAFETY: munmap, and a pointer that threads share.
#![expect(
    unsafe_code,
    reason = "unmapping on drop, and Send and Sync for a pointer"
)]

use std::ffi::c_void;
use std::ptr::NonNull;

use rustix::mm::munmap;

use crate::Error;
use crate::Result;
use crate::own_memory;

/// A range that is unmapped on drop, and into which there are no references.
#[derive(Debug)]
pub(crate) struct MappedRange {
    address: NonNull<c_void>,
    size: usize,
}

// SAFETY: the range belongs to the process, not to a thread, and the pointer is only ever given to the kernel here.
unsafe impl Send for MappedRange {}

// SAFETY: as above; the kernel orders concurrent calls that change the address space.
unsafe impl Sync for MappedRange {}

impl MappedRange {
    /// Takes over a range; `None` if it is at address 0.
    ///
    /// # Safety
    /// 1. The caller has mapped the range, and nobody else unmaps it. 2. There are no references into it, ever.
    pub(crate) unsafe fn new(address: *mut c_void, size: usize) -> Option<Self> {
        let address = NonNull::new(address)?;
        Some(Self { address, size })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr().cast()
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Returns the address of `len` bytes at `offset`; `ERANGE` if they are not within the range.
    pub(crate) fn place(&self, offset: usize, len: usize) -> Result<*mut u8> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(self.as_ptr().wrapping_add(offset)),
            _ => Err(Error::new(libc::ERANGE)),
        }
    }

    pub(crate) fn read_at(&self, offset: usize, buffer: &mut [u8]) -> Result<()> {
        own_memory::read(self.place(offset, buffer.len())?, buffer)
    }

    pub(crate) fn write_at(&self, offset: usize, buffer: &[u8]) -> Result<()> {
        let place = self.place(offset, buffer.len())?;
        // SAFETY: the bytes lie within the range, `place` has checked it, and nobody has references into that.
        unsafe { own_memory::write(place, buffer) }
    }
}

impl Drop for MappedRange {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own and nobody has references into it. A raw pointer to it is its user's to
        // forget first, a KVM memslot for instance.
        let unmapped = unsafe { munmap(self.address.as_ptr(), self.size) };
        debug_assert_eq!(unmapped, Ok(()), "the range is aligned as it was mapped");
    }
}
