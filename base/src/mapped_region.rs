//! What mappings have in common.

// UNSAFETY: the trait is unsafe, as crosvm's is.
#![expect(unsafe_code, reason = "an unsafe trait")]

use crate::AsRawDescriptor;
use crate::Error;
use crate::Protection;
use crate::Result;

/// A range of this process's address space.
///
/// # Safety
/// The range of [`MappedRegion::size`] bytes at [`MappedRegion::as_ptr`] is mapped or reserved until the value is
/// dropped. It may be inaccessible, and other processes may change it at any time.
pub unsafe trait MappedRegion: Send + Sync {
    /// Returns the address of the first byte.
    fn as_ptr(&self) -> *mut u8;

    /// Returns the length in bytes.
    fn size(&self) -> usize;

    /// Maps a part of a file over a part of the range; see [`MemoryMappingArena`](crate::MemoryMappingArena).
    ///
    /// # Errors
    /// `ENOTSUP` where the region is not made for it, which is the default.
    fn add_fd_mapping(
        &mut self,
        _offset: usize,
        _size: usize,
        _fd: &dyn AsRawDescriptor,
        _fd_offset: u64,
        _prot: Protection,
    ) -> Result<()> {
        Err(Error::new(libc::ENOTSUP))
    }

    /// Removes what was mapped over a part of the range.
    ///
    /// # Errors
    /// `ENOTSUP` where the region is not made for it, which is the default.
    fn remove_mapping(&mut self, _offset: usize, _size: usize) -> Result<()> {
        Err(Error::new(libc::ENOTSUP))
    }
}
