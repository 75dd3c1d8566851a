//! Guest memory: `vm-memory` over sealed memfds, so that a region's descriptor can be given to a backend.
//!
//! The memfds are sealed against shrinking and growing: whoever gets one can change the guest's bytes, which is its
//! job, and can't take the pages away from under the VMM.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use rustix::fs::MemfdFlags;
use rustix::fs::SealFlags;
use thiserror::Error as ThisError;
use vm_memory::Address;
use vm_memory::Bytes;
use vm_memory::FileOffset;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;

/// Why guest memory could not be made or reached.
#[remain::sorted]
#[derive(Debug, ThisError)]
pub enum MemoryError {
    /// A range of guest addresses is not guest memory.
    #[error("guest memory at {guest_address:#x}+{len:#x} cannot be reached")]
    Access {
        /// Where the range starts.
        guest_address: u64,
        /// Its bytes.
        len: usize,
        /// What `vm-memory` says.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// A memfd could not be made, sized or sealed.
    #[error("a memfd of {len:#x} bytes could not be made")]
    File {
        /// The bytes asked for.
        len: u64,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The memfd could not be mapped.
    #[error("guest memory could not be mapped")]
    Map(#[source] vm_memory::mmap::FromRangesError),
    /// The size is zero, not made of pages, or too large for this machine.
    #[error("{len:#x} bytes is not a possible size of guest memory")]
    Size {
        /// The bytes asked for.
        len: u64,
    },
}

/// One piece of guest memory, as `SET_MEM_TABLE` describes it.
#[derive(Debug)]
pub struct MemoryRegion<'a> {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Its bytes.
    pub len: u64,
    /// Where this process sees it.
    pub host_address: u64,
    /// The memfd.
    pub file: BorrowedFd<'a>,
    /// Where the piece starts in the memfd.
    pub file_offset: u64,
}

/// The guest's RAM. Clones share the memory.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    inner: GuestMemoryMmap,
}

impl GuestMemory {
    /// Makes `len` bytes of zeroed RAM at guest address 0.
    ///
    /// # Errors
    /// [`MemoryError::Size`] for a size that is zero or not made of pages; otherwise the system's errors.
    pub fn new(len: u64) -> Result<Self, MemoryError> {
        let size = usize::try_from(len)
            .ok()
            .filter(|_| len > 0 && len.is_multiple_of(super::PAGE_BYTES))
            .ok_or(MemoryError::Size { len })?;
        let file = memfd(len).map_err(|source| MemoryError::File { len, source })?;
        let range = (GuestAddress(0), size, Some(FileOffset::new(file, 0)));
        let inner = GuestMemoryMmap::from_ranges_with_files([range]).map_err(MemoryError::Map)?;
        Ok(Self { inner })
    }

    /// Returns the memory as `vm-memory` knows it, for queues and the like.
    pub fn inner(&self) -> &GuestMemoryMmap {
        &self.inner
    }

    /// Returns the pieces in the order of their addresses.
    pub fn regions(&self) -> impl Iterator<Item = MemoryRegion<'_>> {
        self.inner.iter().filter_map(|region| {
            let backing = region.file_offset()?;
            let host = region
                .get_host_address(vm_memory::MemoryRegionAddress(0))
                .ok()?;
            Some(MemoryRegion {
                guest_address: region.start_addr().raw_value(),
                len: region.len(),
                host_address: host.addr() as u64,
                file: backing.file().as_fd(),
                file_offset: backing.start(),
            })
        })
    }

    /// Tells whether any byte of the range is RAM.
    pub fn overlaps(&self, guest_address: u64, len: u64) -> bool {
        self.regions().any(|region| {
            guest_address < region.guest_address.saturating_add(region.len)
                && region.guest_address < guest_address.saturating_add(len)
        })
    }

    /// Copies bytes out of RAM.
    ///
    /// # Errors
    /// [`MemoryError::Access`] if the range is not RAM.
    pub fn read(&self, guest_address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let len = out.len();
        self.inner
            .read_slice(out, GuestAddress(guest_address))
            .map_err(|source| MemoryError::Access {
                guest_address,
                len,
                source,
            })
    }

    /// Copies bytes into RAM.
    ///
    /// # Errors
    /// [`MemoryError::Access`] if the range is not RAM.
    pub fn write(&self, guest_address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        self.inner
            .write_slice(bytes, GuestAddress(guest_address))
            .map_err(|source| MemoryError::Access {
                guest_address,
                len: bytes.len(),
                source,
            })
    }
}

/// Makes a memfd that can neither shrink nor grow.
fn memfd(len: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create(c"guest-ram", flags)?);
    file.set_len(len)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_memory_is_one_sealed_memfd_at_zero() {
        let memory = GuestMemory::new(0x20_0000).unwrap();
        let regions: Vec<_> = memory.regions().collect();
        assert_eq!(regions.len(), 1);
        assert_eq!(
            (
                regions[0].guest_address,
                regions[0].len,
                regions[0].file_offset
            ),
            (0, 0x20_0000, 0)
        );
        let seals = rustix::fs::fcntl_get_seals(regions[0].file).unwrap();
        assert_eq!(seals, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL);
    }

    #[test]
    fn bytes_written_are_seen_through_the_memfd() {
        use std::os::unix::fs::FileExt;

        let memory = GuestMemory::new(0x1000).unwrap();
        memory.write(0x10, b"portcullis").unwrap();
        let file = File::from(
            memory
                .regions()
                .next()
                .unwrap()
                .file
                .try_clone_to_owned()
                .unwrap(),
        );
        let mut seen = [0; 10];
        file.read_exact_at(&mut seen, 0x10).unwrap();
        assert_eq!(&seen, b"portcullis");
    }

    #[test]
    fn access_beyond_the_end_is_an_error_with_the_range() {
        let memory = GuestMemory::new(0x1000).unwrap();
        let error = memory.read(0xffc, &mut [0; 8]).unwrap_err();
        assert!(
            matches!(
                error,
                MemoryError::Access {
                    guest_address: 0xffc,
                    len: 8,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn size_that_is_not_made_of_pages_is_refused() {
        for len in [0, 1, 0x1001] {
            let error = GuestMemory::new(len).unwrap_err();
            assert!(
                matches!(error, MemoryError::Size { len: refused } if refused == len),
                "{error}"
            );
        }
    }

    #[test]
    fn overlap_counts_bytes_not_borders() {
        let memory = GuestMemory::new(0x1000).unwrap();
        assert!(memory.overlaps(0xfff, 1));
        assert!(!memory.overlaps(0x1000, 1));
        assert!(memory.overlaps(0, u64::MAX));
    }
}
