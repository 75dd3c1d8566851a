//! File descriptors under crosvm's names: an owned one, a borrowed number, and the traits between them and std.

// UNSAFETY: taking ownership of a raw descriptor, and borrowing one, are promises that only the caller can make.
#![expect(
    unsafe_code,
    reason = "raw descriptors are turned into owned and borrowed ones"
)]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::IntoRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;

use crate::Error;
use crate::Result;

/// A descriptor's number.
pub type RawDescriptor = RawFd;

/// Something that has a descriptor.
pub trait AsRawDescriptor {
    /// Returns the descriptor's number; it stays open at least as long as `self`.
    fn as_raw_descriptor(&self) -> RawDescriptor;
}

/// Something that gives up its descriptor.
pub trait IntoRawDescriptor {
    /// Returns the descriptor's number, which the caller now has to close.
    fn into_raw_descriptor(self) -> RawDescriptor;
}

/// Something that takes over a descriptor.
pub trait FromRawDescriptor {
    /// Takes ownership of `descriptor`.
    ///
    /// # Safety
    /// 1. `descriptor` is open. 2. Nobody else owns it.
    unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self;
}

/// An owned descriptor, closed on drop.
///
/// It can be part of a message that goes through a [`Tube`](crate::Tube), where it is duplicated into the receiver.
/// With any other serde format it fails to serialise.
#[derive(Debug)]
pub struct SafeDescriptor(OwnedFd);

impl SafeDescriptor {
    /// Duplicates the descriptor; the duplicate is close-on-exec.
    ///
    /// # Errors
    /// `EMFILE` where the process may not have more descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }
}

/// Duplicates the descriptor; the duplicate is close-on-exec.
impl TryFrom<&dyn AsRawDescriptor> for SafeDescriptor {
    type Error = Error;

    fn try_from(descriptor: &dyn AsRawDescriptor) -> Result<Self> {
        Ok(Self(borrow(descriptor)?.try_clone_to_owned()?))
    }
}

impl AsRawDescriptor for SafeDescriptor {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0.as_raw_fd()
    }
}

impl IntoRawDescriptor for SafeDescriptor {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.0.into_raw_fd()
    }
}

impl FromRawDescriptor for SafeDescriptor {
    unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self {
        // SAFETY: the caller promises what `from_raw_fd` asks, an open descriptor that nobody else owns.
        Self(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

impl AsFd for SafeDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SafeDescriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A descriptor's number that owns nothing and keeps nothing open: for interfaces that want a descriptor which somebody
/// else keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Descriptor(pub RawDescriptor);

impl AsRawDescriptor for Descriptor {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.0
    }
}

impl<T: AsRawDescriptor + ?Sized> AsRawDescriptor for &T {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        (**self).as_raw_descriptor()
    }
}

impl AsRawDescriptor for BorrowedFd<'_> {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.as_raw_fd()
    }
}

macro_rules! owners_of_std {
    ($($ty:ty),*) => {$(
        impl AsRawDescriptor for $ty {
            fn as_raw_descriptor(&self) -> RawDescriptor {
                self.as_raw_fd()
            }
        }

        impl IntoRawDescriptor for $ty {
            fn into_raw_descriptor(self) -> RawDescriptor {
                self.into_raw_fd()
            }
        }

        impl FromRawDescriptor for $ty {
            unsafe fn from_raw_descriptor(descriptor: RawDescriptor) -> Self {
                // SAFETY: the caller promises what `from_raw_fd` asks, an open descriptor that nobody else owns.
                unsafe { Self::from_raw_fd(descriptor) }
            }
        }

        impl From<$ty> for SafeDescriptor {
            fn from(owner: $ty) -> Self {
                Self(owner.into())
            }
        }

        impl From<SafeDescriptor> for $ty {
            fn from(descriptor: SafeDescriptor) -> Self {
                descriptor.0.into()
            }
        }
    )*};
}

owners_of_std!(File, OwnedFd, UnixDatagram, UnixListener, UnixStream);

/// Borrows the descriptor of `descriptor` for system calls.
///
/// # Errors
/// `EBADF` if the number is negative. A number that is not open is found by the system call that uses it.
pub(crate) fn borrow(descriptor: &dyn AsRawDescriptor) -> Result<BorrowedFd<'_>> {
    borrow_raw(descriptor.as_raw_descriptor())
}

/// Borrows the descriptor with the number `raw` for system calls; the caller sees to it that it outlives `'a`.
///
/// # Errors
/// As [`borrow`].
pub(crate) fn borrow_raw<'a>(raw: RawDescriptor) -> Result<BorrowedFd<'a>> {
    if raw < 0 {
        return Err(Error::new(libc::EBADF));
    }
    // SAFETY: the number is not -1, checked above. That it stays open is what `AsRawDescriptor` promises of its
    // implementors; the one that can't, `Descriptor`, is its user's promise. The borrow goes no further than this
    // crate's system calls, for which a number that was closed too early is an `EBADF` or the wrong file, not memory.
    Ok(unsafe { BorrowedFd::borrow_raw(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close_on_exec(descriptor: &SafeDescriptor) -> bool {
        rustix::io::fcntl_getfd(descriptor)
            .expect("the descriptor is open")
            .contains(rustix::io::FdFlags::CLOEXEC)
    }

    #[test]
    fn duplicate_of_borrowed_number_is_another_descriptor() {
        let file = File::open("/dev/null").expect("/dev/null opens");
        let number = Descriptor(file.as_raw_descriptor());
        let duplicate = SafeDescriptor::try_from(&number as &dyn AsRawDescriptor)
            .expect("the descriptor is open");
        assert_ne!(duplicate.as_raw_descriptor(), file.as_raw_descriptor());
        assert!(close_on_exec(&duplicate));
        assert!(close_on_exec(&duplicate.try_clone().expect("it is open")));
    }

    #[test]
    fn negative_number_is_ebadf() {
        let duplicate = SafeDescriptor::try_from(&Descriptor(-1) as &dyn AsRawDescriptor);
        assert_eq!(duplicate.map(|_| ()), Err(Error::new(libc::EBADF)));
    }

    #[test]
    fn raw_round_trip_keeps_the_number() {
        let descriptor = SafeDescriptor::from(File::open("/dev/null").expect("/dev/null opens"));
        let number = descriptor.as_raw_descriptor();
        let raw = descriptor.into_raw_descriptor();
        assert_eq!(raw, number);
        // SAFETY: `raw` is open and has no owner, it was given up on the line above.
        let file = unsafe { File::from_raw_descriptor(raw) };
        assert_eq!((&&file).as_raw_descriptor(), number);
    }
}
