//! A counter that threads and processes wait on: an eventfd.

use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::eventfd;
use rustix::event::poll;
use rustix::io::Errno;
use rustix::io::ReadWriteFlags;
use rustix::io::preadv2;
use rustix::io::retry_on_intr;
use serde::Deserialize;
use serde::Serialize;

use crate::AsRawDescriptor;
use crate::Deadline;
use crate::IntoRawDescriptor;
use crate::RawDescriptor;
use crate::ReadNotifier;
use crate::Result;
use crate::SafeDescriptor;

/// The offset that stands for the current position, the only one that an eventfd has.
const WHERE_IT_IS: u64 = u64::MAX;

/// An event that stays signalled until somebody waits for it or resets it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Event {
    descriptor: SafeDescriptor,
}

/// How [`Event::wait_timeout`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventWaitResult {
    /// The event was signalled, and no longer is.
    Signaled,
    /// The time was up.
    TimedOut,
}

impl Event {
    /// Makes an event that is not signalled.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` where there are too many descriptors.
    pub fn new() -> Result<Self> {
        let descriptor = eventfd(0, EventfdFlags::CLOEXEC)?.into();
        Ok(Self { descriptor })
    }

    /// Signals the event; whoever waits wakes up.
    ///
    /// It can wait if somebody else who has the event has filled its counter of 64 bits to the brim.
    ///
    /// # Errors
    /// The errno of `write`; none for an event that [`Event::new`] made.
    pub fn signal(&self) -> Result<()> {
        retry_on_intr(|| rustix::io::write(&self.descriptor, &1u64.to_ne_bytes()))?;
        Ok(())
    }

    /// Waits until the event is signalled, and takes the signal.
    ///
    /// # Errors
    /// The errno of `read`; none for an event that [`Event::new`] made.
    pub fn wait(&self) -> Result<()> {
        retry_on_intr(|| rustix::io::read(&self.descriptor, &mut [0; 8]))?;
        Ok(())
    }

    /// Waits for at most `timeout` until the event is signalled, and takes the signal.
    ///
    /// Where two wait for one event, the slower one can wait past its timeout.
    ///
    /// # Errors
    /// As [`Event::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<EventWaitResult> {
        let deadline = Deadline::after(timeout);
        let ready = retry_on_intr(|| {
            let mut sources = [PollFd::new(&self.descriptor, PollFlags::IN)];
            poll(&mut sources, deadline.remaining().as_ref())
        })?;
        if ready == 0 {
            return Ok(EventWaitResult::TimedOut);
        }
        self.wait()?;
        Ok(EventWaitResult::Signaled)
    }

    /// Takes the signal if there is one, and never waits, not even if somebody else who has the event takes the signal in
    /// the meantime. That makes it the call for events that are shared with somebody untrusted.
    ///
    /// # Errors
    /// The errno of `preadv2`; none for an event that [`Event::new`] made.
    pub fn reset(&self) -> Result<()> {
        let mut count = [0; 8];
        let mut bufs = [IoSliceMut::new(&mut count)];
        let taken = retry_on_intr(|| {
            preadv2(
                &self.descriptor,
                &mut bufs,
                WHERE_IT_IS,
                ReadWriteFlags::NOWAIT,
            )
        });
        match taken {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes another handle of the same event.
    ///
    /// # Errors
    /// `EMFILE` where the process may not have more descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        let descriptor = self.descriptor.try_clone()?;
        Ok(Self { descriptor })
    }
}

impl AsRawDescriptor for Event {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.descriptor.as_raw_descriptor()
    }
}

impl IntoRawDescriptor for Event {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.descriptor.into_raw_descriptor()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl ReadNotifier for Event {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        &self.descriptor
    }
}

/// Takes an eventfd that was made elsewhere, which is not checked.
impl From<SafeDescriptor> for Event {
    fn from(descriptor: SafeDescriptor) -> Self {
        Self { descriptor }
    }
}

impl From<Event> for SafeDescriptor {
    fn from(event: Event) -> Self {
        event.descriptor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_is_taken_by_one_wait() {
        let event = Event::new().expect("an eventfd is made");
        let other = event.try_clone().expect("it is duplicated");
        event.signal().expect("signals");
        event.signal().expect("signals");
        other.wait().expect("waits");
        assert_eq!(
            event.wait_timeout(Duration::ZERO),
            Ok(EventWaitResult::TimedOut)
        );
    }

    #[test]
    fn wait_timeout_sees_the_signal_of_another_thread() {
        let event = Event::new().expect("an eventfd is made");
        std::thread::scope(|scope| {
            scope.spawn(|| event.signal());
            assert_eq!(
                event.wait_timeout(Duration::from_secs(10)),
                Ok(EventWaitResult::Signaled)
            );
        });
    }

    #[test]
    fn reset_clears_the_signal_and_does_not_wait() {
        let event = Event::new().expect("an eventfd is made");
        event.reset().expect("resets");
        event.signal().expect("signals");
        event.reset().expect("resets");
        assert_eq!(
            event.wait_timeout(Duration::ZERO),
            Ok(EventWaitResult::TimedOut)
        );
    }
}
