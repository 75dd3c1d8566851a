//! Anonymous memory behind a descriptor.

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use rustix::fs::MemfdFlags;
use rustix::fs::ftruncate;
use rustix::fs::memfd_create;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::AsRawDescriptor;
use crate::Error;
use crate::IntoRawDescriptor;
use crate::RawDescriptor;
use crate::Result;
use crate::SafeDescriptor;
use crate::Seals;
use crate::seal;

/// A memfd and its length.
#[derive(Debug, Serialize, Deserialize)]
pub struct SharedMemory {
    descriptor: SafeDescriptor,
    size: u64,
}

impl SharedMemory {
    /// Makes `size` bytes of zeroed memory whose length is sealed; `debug_name` is what `/proc` shows.
    ///
    /// # Errors
    /// `EINVAL` for a name that contains a zero byte or is longer than 249 bytes, `EFBIG` or `EINVAL` for a size
    /// beyond what a file can have, `EMFILE` or `ENFILE` where there are too many descriptors.
    pub fn new(debug_name: impl Into<Vec<u8>>, size: u64) -> Result<Self> {
        let name = CString::new(debug_name).map_err(|_| Error::new(libc::EINVAL))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memfd = match memfd_create(&*name, flags | MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3 does not know the flag; some systems since then insist on it.
            Err(Errno::INVAL) => memfd_create(&*name, flags),
            outcome => outcome,
        }?;
        ftruncate(&memfd, size)?;
        seal(memfd.as_fd(), Seals::SHRINK | Seals::GROW)?;
        let descriptor = memfd.into();
        Ok(Self { descriptor, size })
    }

    /// Takes a descriptor that was made elsewhere, whose first `size` bytes are to be used; that is not checked.
    pub fn from_safe_descriptor(descriptor: SafeDescriptor, size: u64) -> Self {
        Self { descriptor, size }
    }

    /// Returns the length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl AsRawDescriptor for SharedMemory {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.descriptor.as_raw_descriptor()
    }
}

impl IntoRawDescriptor for SharedMemory {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.descriptor.into_raw_descriptor()
    }
}

impl AsFd for SharedMemory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl From<SharedMemory> for SafeDescriptor {
    fn from(memory: SharedMemory) -> Self {
        memory.descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DescriptorKind;
    use crate::inspect;
    use crate::seals;

    #[test]
    fn memory_has_its_size_and_keeps_it() {
        let memory = SharedMemory::new("test", 12345).expect("memory is made");
        assert_eq!(memory.size(), 12345);
        let info = inspect(memory.as_fd()).expect("it is open");
        assert_eq!((info.kind, info.size), (DescriptorKind::Memfd, Some(12345)));
        assert_eq!(ftruncate(&memory, 1), Err(Errno::PERM));
        assert_eq!(ftruncate(&memory, 1 << 20), Err(Errno::PERM));
    }

    #[test]
    fn more_seals_can_be_added() {
        let memory = SharedMemory::new("test", 1).expect("memory is made");
        assert_eq!(seal(memory.as_fd(), Seals::FUTURE_WRITE), Ok(()));
        let expected = Seals::SHRINK | Seals::GROW | Seals::FUTURE_WRITE;
        assert!(
            seals(memory.as_fd())
                .expect("it has seals")
                .contains(expected)
        );
    }

    #[test]
    fn name_with_a_zero_byte_or_a_size_without_end_is_refused() {
        let refused = |name: &str, size| SharedMemory::new(name, size).map(|_| ());
        assert_eq!(refused("a\0b", 1), Err(Error::new(libc::EINVAL)));
        assert_eq!(refused("test", u64::MAX), Err(Error::new(libc::EINVAL)));
    }
}
