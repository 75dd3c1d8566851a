//! A timer that becomes readable once, for the main loop's wait context.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::Itimerspec;
use rustix::time::TimerfdClockId;
use rustix::time::TimerfdFlags;
use rustix::time::TimerfdTimerFlags;
use rustix::time::Timespec;

/// A timer; not running when new.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// Makes a timer.
    pub(super) fn new() -> io::Result<Self> {
        let descriptor = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(Self(descriptor))
    }

    /// Lets the timer run for `pause`; zero stops it. What it had to tell before is forgotten.
    pub(super) fn start(&self, pause: Duration) -> io::Result<()> {
        let value = Timespec::try_from(pause).map_err(|_| io::ErrorKind::InvalidInput)?;
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: value,
        };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    /// Whether the time was up since the last call. Never waits.
    pub(super) fn take(&self) -> io::Result<bool> {
        match rustix::io::read(&self.0, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
