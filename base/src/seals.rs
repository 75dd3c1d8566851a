//! Seals of memfds: what nobody can do to the file any more.

use std::os::fd::BorrowedFd;

use bitflags::bitflags;
use rustix::fs::SealFlags;
use rustix::fs::fcntl_add_seals;
use rustix::fs::fcntl_get_seals;

use crate::Result;

bitflags! {
    /// A set of seals, with the system's numbers; unknown ones are kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Seals: u32 {
        /// No more seals can be set.
        const SEAL = SealFlags::SEAL.bits();
        /// The file can't become shorter.
        const SHRINK = SealFlags::SHRINK.bits();
        /// The file can't become longer.
        const GROW = SealFlags::GROW.bits();
        /// The content can't change.
        const WRITE = SealFlags::WRITE.bits();
        /// The content can't change but through mappings that exist.
        const FUTURE_WRITE = SealFlags::FUTURE_WRITE.bits();
        /// The permission to execute can't change.
        const EXEC = 0x20;
        const _ = !0;
    }
}

/// Returns the seals of a memfd, or of a file in tmpfs, which has [`Seals::SEAL`] alone.
///
/// # Errors
/// `EINVAL` for a file that can't have seals, `EBADF` if the descriptor is not open or was opened with `O_PATH`.
pub fn seals(descriptor: BorrowedFd<'_>) -> Result<Seals> {
    Ok(Seals::from_bits_retain(fcntl_get_seals(descriptor)?.bits()))
}

/// Adds `seals` to a memfd; they can't be taken off.
///
/// # Errors
/// `EPERM` if it was opened for reading only or has [`Seals::SEAL`], `EBUSY` for [`Seals::WRITE`] while a writable
/// mapping exists, `EINVAL` for a file that can't have seals.
pub fn seal(descriptor: BorrowedFd<'_>, seals: Seals) -> Result<()> {
    Ok(fcntl_add_seals(
        descriptor,
        SealFlags::from_bits_retain(seals.bits()),
    )?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::fs::MemfdFlags;
    use rustix::fs::memfd_create;

    use super::*;
    use crate::Error;

    #[test]
    fn seals_add_up_until_sealed() {
        let memfd = memfd_create(c"test", MemfdFlags::ALLOW_SEALING).expect("a memfd is made");
        let memfd = memfd.as_fd();
        assert_eq!(seals(memfd), Ok(Seals::empty()));
        assert_eq!(seal(memfd, Seals::SHRINK), Ok(()));
        assert_eq!(seal(memfd, Seals::GROW | Seals::SEAL), Ok(()));
        assert_eq!(seals(memfd), Ok(Seals::SHRINK | Seals::GROW | Seals::SEAL));
        assert_eq!(seal(memfd, Seals::WRITE), Err(Error::new(libc::EPERM)));
    }

    #[test]
    fn memfd_not_made_for_sealing_has_the_seal_on_seals() {
        let memfd = memfd_create(c"test", MemfdFlags::CLOEXEC).expect("a memfd is made");
        assert_eq!(seals(memfd.as_fd()), Ok(Seals::SEAL));
    }

    #[test]
    fn file_that_cant_have_seals_is_einval() {
        let null = File::open("/dev/null").expect("it opens");
        assert_eq!(seals(null.as_fd()), Err(Error::new(libc::EINVAL)));
    }
}
