//! Inherited descriptors: taking the named ones, closing all others.
// UNSAFETY: a number from the command line becomes an owned descriptor, and close_range(2) closes what nobody owns.
#![expect(unsafe_code, reason = "turns inherited numbers into owned descriptors")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use remain::sorted;
use rustix::io::FdFlags;
use rustix::io::fcntl_setfd;

/// Descriptors below this one are standard input, output and error.
pub(crate) const FIRST_NAMED: RawFd = 3;

/// A number that is no inherited descriptor.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// The number is one of the standard descriptors, or negative.
    #[error("descriptor {0}: inherited descriptors are numbered from 3")]
    Number(RawFd),
    /// No descriptor has that number.
    #[error("descriptor {number}: {source}; was it passed on by the parent?")]
    Open {
        /// The number.
        number: RawFd,
        /// EBADF.
        source: io::Error,
    },
    /// The number was taken before.
    #[error("descriptor {0} is named twice")]
    Twice(RawFd),
}

static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes the descriptor `number` that this process inherited under that number. It is not passed on any further.
///
/// # Errors
/// [`InheritError`] if there is none, or if it was taken before.
pub fn take_inherited(number: RawFd) -> Result<OwnedFd, InheritError> {
    if number < FIRST_NAMED {
        return Err(InheritError::Number(number));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(InheritError::Twice(number));
    }
    // SAFETY: the number is not negative; that nothing may be open under it shows on the first use, which is the next line.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC).map_err(|errno| InheritError::Open {
        number,
        source: errno.into(),
    })?;
    taken.insert(number);
    // SAFETY: the descriptor is open (checked above) and no other caller of this function got it (`TAKEN`). That no other part of the
    // program opened it is what "inherited" means: the command line names numbers that its author passed on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes all descriptors but the standard ones and those in `keep`. That the standard ones are open, the standard library has seen to
/// before `main`.
pub(crate) fn close_all_but(keep: &BTreeSet<RawFd>) -> io::Result<()> {
    let mut first = FIRST_NAMED;
    for &number in keep.range(FIRST_NAMED..) {
        if first < number {
            close_range(first, number - 1)?;
        }
        first = number + 1;
    }
    close_range(first, RawFd::MAX)
}

fn close_range(first: RawFd, last: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers. Closing what the rest of the program owns would break its I/O safety: the only caller runs at the
    // start of `main`, before anything but the named descriptors was opened.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn take_inherited_standard_or_closed_number_is_refused() {
        assert!(matches!(take_inherited(2), Err(InheritError::Number(2))));
        assert!(matches!(take_inherited(-1), Err(InheritError::Number(-1))));
        let error = take_inherited(99_999).expect_err("nothing is open there");
        let InheritError::Open { source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(source.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn take_inherited_second_time_is_refused() {
        let (one, _other) = UnixStream::pair().expect("socketpair");
        let number = one.into_raw_fd();
        let taken = take_inherited(number).expect("it is open");
        assert_eq!(taken.as_raw_fd(), number);
        assert!(matches!(take_inherited(number), Err(InheritError::Twice(n)) if n == number));
    }
}
