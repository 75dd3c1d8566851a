//! Copies from and to this process's own address space that fail with `EFAULT` where a plain access would be a signal.

// UNSAFETY: `process_vm_readv` and `process_vm_writev` have no safe wrapper.
#![expect(unsafe_code, reason = "two system calls that only libc has")]

use crate::Error;
use crate::Result;

type Transfer = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> libc::ssize_t;

/// Copies memory at `address` into `buffer`.
///
/// # Errors
/// `EFAULT` where a page is not mapped, not readable, or past the end of its file; the buffer may be partly filled.
/// `EPERM` or death where a seccomp policy has no `process_vm_readv`.
pub(crate) fn read(address: *const u8, buffer: &mut [u8]) -> Result<()> {
    copy(
        libc::process_vm_readv,
        buffer.as_mut_ptr(),
        address.cast_mut(),
        buffer.len(),
    )
}

/// Copies `buffer` into memory at `address`.
///
/// # Errors
/// `EFAULT` where a page is not mapped, not writable, or past the end of its file; a part may be written.
///
/// # Safety
/// The bytes at `address` are not memory that Rust code has references to or otherwise relies on.
pub(crate) unsafe fn write(address: *mut u8, buffer: &[u8]) -> Result<()> {
    copy(
        libc::process_vm_writev,
        buffer.as_ptr().cast_mut(),
        address,
        buffer.len(),
    )
}

fn copy(transfer: Transfer, local: *mut u8, remote: *mut u8, len: usize) -> Result<()> {
    let pid = rustix::process::getpid().as_raw_pid();
    let mut done = 0;
    while done < len {
        let rest = |start: *mut u8| libc::iovec {
            iov_base: start.wrapping_add(done).cast(),
            iov_len: len - done,
        };
        let (local, remote) = (rest(local), rest(remote));
        // SAFETY: both structures live on this stack and are one element long, as the counts say. The kernel checks
        // every address. What it writes to is `read`'s buffer, borrowed mutably for its whole length, or what `write`'s
        // caller answers for.
        let copied = unsafe { transfer(pid, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(copied) {
            // A short copy stops ahead of the page that is at fault; the next call begins there and says why.
            Ok(0) => return Err(Error::new(libc::EFAULT)),
            Ok(copied) => done += copied,
            Err(_) => return Err(Error::last()),
        }
    }
    Ok(())
}
