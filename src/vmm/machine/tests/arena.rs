//! A region's range for tests, with the mapping service's system calls and none of its checks.
//!
//! UNSAFETY: reserves and maps address ranges.
#![expect(unsafe_code, reason = "mmap of fixed addresses")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::super::Backing;
use super::super::PAGE_BYTES;

/// A reserved range of private PROT_NONE memory.
pub(super) struct TestArena {
    base: u64,
    len: u64,
}

impl TestArena {
    pub(super) fn new(pages: u64) -> Self {
        let len = pages * PAGE_BYTES;
        let base = map(
            0,
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        );
        Self { base, len }
    }

    /// Maps a file's first pages into the range.
    pub(super) fn map(&self, offset: u64, len: u64, file: &File, writable: bool) {
        assert!(offset + len <= self.len);
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        map(
            self.base + offset,
            len,
            protection,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
        );
    }

    /// Makes a hole again.
    pub(super) fn unmap(&self, offset: u64, len: u64) {
        assert!(offset + len <= self.len);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        map(self.base + offset, len, libc::PROT_NONE, flags, -1);
    }

    fn iovecs(
        &self,
        offset: u64,
        bytes: *mut u8,
        len: usize,
    ) -> io::Result<(libc::iovec, libc::iovec)> {
        if offset
            .checked_add(len as u64)
            .is_none_or(|end| end > self.len)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let remote =
            std::ptr::with_exposed_provenance_mut(usize::try_from(self.base + offset).unwrap());
        Ok((
            libc::iovec {
                iov_base: bytes.cast(),
                iov_len: len,
            },
            libc::iovec {
                iov_base: remote,
                iov_len: len,
            },
        ))
    }
}

/// Tells whether a transfer moved all of its bytes.
fn whole(moved: isize, len: usize) -> io::Result<()> {
    match usize::try_from(moved) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(moved) if moved == len => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
    }
}

fn own_pid() -> libc::pid_t {
    std::process::id().cast_signed()
}

// SAFETY: `new` reserved the range, nothing but `map` and `unmap` change what is mapped in it, `drop` frees it, and
// base and length are never changed.
unsafe impl Backing for TestArena {
    fn host_address(&self) -> u64 {
        self.base
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (local, remote) = self.iovecs(offset, out.as_mut_ptr(), out.len())?;
        // SAFETY: the local range is `out`; the kernel checks the remote one.
        let moved = unsafe {
            libc::process_vm_readv(own_pid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        whole(moved, out.len())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (local, remote) = self.iovecs(offset, bytes.as_ptr().cast_mut(), bytes.len())?;
        // SAFETY: the local range is `bytes`, which is only read; the remote one is in the arena, where no object
        // lives, and the kernel checks that it is there.
        let moved = unsafe {
            libc::process_vm_writev(own_pid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        whole(moved, bytes.len())
    }
}

impl Drop for TestArena {
    fn drop(&mut self) {
        let base = std::ptr::with_exposed_provenance_mut(usize::try_from(self.base).unwrap());
        // SAFETY: the range is the arena's own, and its slot is gone: a slot keeps its backing.
        let outcome = unsafe { libc::munmap(base, usize::try_from(self.len).unwrap()) };
        assert_eq!(outcome, 0);
    }
}

/// Maps at an address of the arena, or anywhere if it is 0 and not MAP_FIXED.
fn map(address: u64, len: u64, protection: i32, flags: i32, descriptor: i32) -> u64 {
    let address = std::ptr::with_exposed_provenance_mut(usize::try_from(address).unwrap());
    let len = usize::try_from(len).unwrap();
    // SAFETY: a fixed address is inside an arena (checked by the callers), where no object lives.
    let mapped = unsafe { libc::mmap(address, len, protection, flags, descriptor, 0) };
    assert_ne!(mapped, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    mapped.expose_provenance() as u64
}

/// Makes a memfd with these bytes.
pub(super) fn memfd(bytes: &[u8]) -> File {
    use std::os::unix::fs::FileExt;

    let file =
        File::from(rustix::fs::memfd_create(c"test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all_at(bytes, 0).unwrap();
    file
}
