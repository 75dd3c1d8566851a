//! Puts filters on.
// UNSAFETY: seccomp(2) takes a pointer to the program; no crate in use wraps it with the flags that are needed here.
#![expect(unsafe_code, reason = "calls seccomp(2)")]

use std::io;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use seccompiler::sock_filter;

/// `struct sock_fprog` of `linux/filter.h`.
#[repr(C)]
struct SockProgram {
    len: libc::c_ushort,
    filter: *const sock_filter,
}

/// Whom a filter binds, and who answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// All threads of the process.
    AllThreads,
    /// All threads of the process; calls wait for the holder of the listener that comes back.
    AllThreadsWithListener,
}

/// Puts `program` on all threads. The process needs no_new_privs.
pub(crate) fn install(program: &[sock_filter], mode: Mode) -> io::Result<Option<OwnedFd>> {
    let program = SockProgram {
        len: libc::c_ushort::try_from(program.len())
            .map_err(|_long| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr(),
    };
    let flags = match mode {
        Mode::AllThreads => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Mode::AllThreadsWithListener => {
            libc::SECCOMP_FILTER_FLAG_TSYNC
                | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH
                | libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        }
    };
    // SAFETY: the pointers are to a live `SockProgram` and to `len` live instructions; the kernel copies both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match (result, mode) {
        (0, Mode::AllThreads) => Ok(None),
        (fd, Mode::AllThreadsWithListener) if fd >= 0 => {
            let fd = i32::try_from(fd).map_err(|_large| io::ErrorKind::InvalidData)?;
            // SAFETY: with NEW_LISTENER the kernel returns a descriptor of its own, which nobody else owns.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
        }
        // With TSYNC alone, a positive number is the thread that could not be bound.
        (thread, _) if thread > 0 => Err(io::Error::other(format!(
            "thread {thread} has filters of its own"
        ))),
        _ => Err(io::Error::last_os_error()),
    }
}
