//! Signals as something to wait for beside everything else: a signalfd.

// UNSAFETY: `rustix` has neither signalfd nor signal masks, so both are raw calls.
#![expect(unsafe_code, reason = "signalfd and signal masks are raw libc calls")]

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::io::retry_on_intr;

use crate::AsRawDescriptor;
use crate::Error;
use crate::RawDescriptor;
use crate::ReadNotifier;
use crate::Result;

/// The length of what one signal reads as.
const RECORD: usize = size_of::<libc::signalfd_siginfo>();

/// Signals that come as readable data and no longer by interrupting a thread.
#[derive(Debug)]
pub struct SignalFd {
    descriptor: OwnedFd,
}

impl SignalFd {
    /// Blocks `signals` for the calling thread, and makes a descriptor that is readable when one is pending.
    ///
    /// Threads inherit what is blocked: call it before there are others, or they are still interrupted. The signals
    /// stay blocked when the descriptor is closed.
    ///
    /// # Errors
    /// `EINVAL` for a number that is no signal, `EMFILE` or `ENFILE` where there are too many descriptors.
    pub fn new(signals: &[i32]) -> Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` is valid for writes of a whole set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for &signal in signals {
            // SAFETY: `set` was initialised by `sigemptyset`; a number that is no signal is an error and no harm.
            if unsafe { libc::sigaddset(set.as_mut_ptr(), signal) } != 0 {
                return Err(Error::last());
            }
        }
        // SAFETY: `set` is initialised, and the old mask is not asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
        if result != 0 {
            return Err(Error::new(result));
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let descriptor = unsafe { libc::signalfd(-1, set.as_ptr(), flags) };
        if descriptor < 0 {
            return Err(Error::last());
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Self { descriptor })
    }

    /// Takes one pending signal and returns its number; `None` if there is none. Never blocks.
    ///
    /// # Errors
    /// The errno of `read`; none for a descriptor that [`SignalFd::new`] made.
    pub fn read(&self) -> Result<Option<i32>> {
        let mut record = [0; RECORD];
        match retry_on_intr(|| rustix::io::read(&self.descriptor, &mut record)) {
            Ok(_) => {
                // The kernel writes whole records, and the number comes first.
                let [a, b, c, d, ..] = record;
                Ok(Some(i32::from_ne_bytes([a, b, c, d])))
            }
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsRawDescriptor for SignalFd {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.descriptor.as_raw_descriptor()
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl ReadNotifier for SignalFd {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_signal_is_read_once() {
        let signals = SignalFd::new(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.read(), Ok(None));
        // To the thread and not to the process: other tests' threads have not blocked it.
        // SAFETY: takes nothing, and returns the calling thread.
        let this_thread = unsafe { libc::pthread_self() };
        // SAFETY: the calling thread is alive, and has the signal blocked.
        let result = unsafe { libc::pthread_kill(this_thread, libc::SIGUSR2) };
        assert_eq!(result, 0);
        assert_eq!(signals.read(), Ok(Some(libc::SIGUSR2)));
        assert_eq!(signals.read(), Ok(None));
    }

    #[test]
    fn number_that_is_no_signal_is_refused() {
        assert_eq!(SignalFd::new(&[0]).unwrap_err(), Error::new(libc::EINVAL));
        assert_eq!(
            SignalFd::new(&[1000]).unwrap_err(),
            Error::new(libc::EINVAL)
        );
    }
}
