//! A moment until which a system call may wait, across interruptions by signals.

use std::time::Duration;
use std::time::Instant;

use rustix::time::Timespec;

/// The end of a wait; one too far away for the clock means that the wait has no end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// A wait without an end.
    pub(crate) const NEVER: Self = Self(None);

    /// A wait that ends after `timeout` from now.
    pub(crate) fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// Returns what is left, as the system call wants it: `None` for ever.
    pub(crate) fn remaining(self) -> Option<Timespec> {
        let left = self.0?.saturating_duration_since(Instant::now());
        Timespec::try_from(left).ok()
    }
}
