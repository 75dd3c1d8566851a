//! The error of a system call: a number with a name, copied freely and sent through tubes.

use std::fmt;
use std::io;

use serde::Deserialize;
use serde::Serialize;

/// An errno of Linux.
///
/// The number is whatever it was made from: one that came through a tube may be any `i32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Error(i32);

/// The result of an operation that fails with an errno.
pub type Result<T> = std::result::Result<T, Error>;

/// The errnos that have a name here: those of the calls and protocols of this workspace.
const NAMES: &[(i32, &str)] = &[
    (libc::E2BIG, "E2BIG"),
    (libc::EACCES, "EACCES"),
    (libc::EADDRINUSE, "EADDRINUSE"),
    (libc::EAGAIN, "EAGAIN"),
    (libc::EBADF, "EBADF"),
    (libc::EBUSY, "EBUSY"),
    (libc::ECANCELED, "ECANCELED"),
    (libc::ECHILD, "ECHILD"),
    (libc::ECONNABORTED, "ECONNABORTED"),
    (libc::ECONNREFUSED, "ECONNREFUSED"),
    (libc::ECONNRESET, "ECONNRESET"),
    (libc::EDEADLK, "EDEADLK"),
    (libc::EDQUOT, "EDQUOT"),
    (libc::EEXIST, "EEXIST"),
    (libc::EFAULT, "EFAULT"),
    (libc::EFBIG, "EFBIG"),
    (libc::EILSEQ, "EILSEQ"),
    (libc::EINTR, "EINTR"),
    (libc::EINVAL, "EINVAL"),
    (libc::EIO, "EIO"),
    (libc::EISDIR, "EISDIR"),
    (libc::ELOOP, "ELOOP"),
    (libc::EMFILE, "EMFILE"),
    (libc::EMLINK, "EMLINK"),
    (libc::EMSGSIZE, "EMSGSIZE"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG"),
    (libc::ENETDOWN, "ENETDOWN"),
    (libc::ENFILE, "ENFILE"),
    (libc::ENOBUFS, "ENOBUFS"),
    (libc::ENODATA, "ENODATA"),
    (libc::ENODEV, "ENODEV"),
    (libc::ENOENT, "ENOENT"),
    (libc::ENOEXEC, "ENOEXEC"),
    (libc::ENOMEM, "ENOMEM"),
    (libc::ENOSPC, "ENOSPC"),
    (libc::ENOSYS, "ENOSYS"),
    (libc::ENOTCONN, "ENOTCONN"),
    (libc::ENOTDIR, "ENOTDIR"),
    (libc::ENOTEMPTY, "ENOTEMPTY"),
    (libc::ENOTSOCK, "ENOTSOCK"),
    (libc::ENOTSUP, "ENOTSUP"),
    (libc::ENOTTY, "ENOTTY"),
    (libc::ENXIO, "ENXIO"),
    (libc::EOVERFLOW, "EOVERFLOW"),
    (libc::EPERM, "EPERM"),
    (libc::EPIPE, "EPIPE"),
    (libc::EPROTO, "EPROTO"),
    (libc::EPROTOTYPE, "EPROTOTYPE"),
    (libc::ERANGE, "ERANGE"),
    (libc::EROFS, "EROFS"),
    (libc::ESHUTDOWN, "ESHUTDOWN"),
    (libc::ESPIPE, "ESPIPE"),
    (libc::ESRCH, "ESRCH"),
    (libc::ESTALE, "ESTALE"),
    (libc::ETIMEDOUT, "ETIMEDOUT"),
    (libc::ETXTBSY, "ETXTBSY"),
    (libc::EXDEV, "EXDEV"),
];

impl Error {
    /// Wraps `errno`, a positive number such as `libc::EINVAL`.
    pub const fn new(errno: i32) -> Self {
        Self(errno)
    }

    /// Returns the calling thread's current `errno`, which only a libc call that has just failed makes meaningful.
    pub fn last() -> Self {
        io::Error::last_os_error().into()
    }

    /// Returns the number.
    pub const fn errno(self) -> i32 {
        self.0
    }

    /// Tells whether the kernel only had no memory for the call: nothing has happened, and later the same call may succeed.
    pub const fn is_shortage(self) -> bool {
        matches!(self.0, libc::ENOMEM | libc::ENOBUFS)
    }

    /// Returns the constant's name, such as `EEXIST`, for outputs that a program reads.
    pub fn name(self) -> Option<&'static str> {
        NAMES
            .iter()
            .find(|(number, _)| *number == self.0)
            .map(|(_, name)| *name)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(f)
    }
}

impl std::error::Error for Error {}

/// An error that has no errno, such as one that std made up, becomes `EIO`.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.0)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_displays_the_systems_words() {
        assert_eq!(
            Error::new(libc::EACCES).to_string(),
            "Permission denied (os error 13)"
        );
    }

    #[test]
    fn name_is_the_constants_or_none() {
        assert_eq!(Error::new(17).name(), Some("EEXIST"));
        assert_eq!(Error::new(95).name(), Some("ENOTSUP"));
        assert_eq!(Error::new(4095).name(), None);
        assert_eq!(Error::new(0).name(), None);
    }

    #[test]
    fn io_error_round_trips_its_errno() {
        let error = Error::from(io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(error, Error::new(libc::ENOENT));
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn io_error_without_errno_becomes_eio() {
        assert_eq!(Error::from(io::Error::other("made up")).errno(), libc::EIO);
    }

    #[test]
    fn last_is_the_errno_of_the_call_that_failed() {
        let missing = std::fs::File::open("/nonexistent").map(|_| ());
        let last = Error::last();
        assert_eq!(missing.map_err(Error::from), Err(last));
        assert_eq!(last.errno(), libc::ENOENT);
    }
}
