//! Devices that send what takes long to close faster than it is closed: nothing is read from them meanwhile.

use std::time::Duration;
use std::time::Instant;

use base::Closer;

use super::DeviceId;

/// How many of a device's descriptors may wait to be closed before its next packet is taken. That packet's come on top.
const MAX_WAITING: u64 = 128;

/// Whether a device has to wait until its descriptors are closed.
pub(super) fn is_behind(closer: &Closer) -> bool {
    closer.waiting() > MAX_WAITING
}

/// The devices that have to wait.
#[derive(Debug)]
pub(super) struct Aside {
    patience: Duration,
    devices: Vec<Waiting>,
}

/// A device, and how far the closing of its descriptors had got when.
#[derive(Debug)]
struct Waiting {
    id: DeviceId,
    closed: u64,
    since: Instant,
}

/// The end of a device's wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Enough of its descriptors are closed.
    CaughtUp,
    /// Not one was closed for as long as the patience lasts.
    Stuck,
}

impl Aside {
    pub(super) const fn new(patience: Duration) -> Self {
        Self {
            patience,
            devices: Vec::new(),
        }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    pub(super) fn contains(&self, id: DeviceId) -> bool {
        self.devices.iter().any(|waiting| waiting.id == id)
    }

    pub(super) fn insert(&mut self, id: DeviceId, closer: &Closer) {
        self.devices.push(Waiting {
            id,
            closed: closer.closed(),
            since: Instant::now(),
        });
    }

    /// Takes a device out and tells whether it was in.
    pub(super) fn remove(&mut self, id: DeviceId) -> bool {
        let before = self.devices.len();
        self.devices.retain(|waiting| waiting.id != id);
        self.devices.len() < before
    }

    /// Tells which devices have waited long enough, one way or the other. They stay until they are taken out.
    ///
    /// A thread that gets little of the processor closes now and then; only one that closes nothing at all is stuck.
    pub(super) fn look<'a>(
        &mut self,
        closer: impl Fn(DeviceId) -> Option<&'a Closer>,
    ) -> Vec<(DeviceId, Outcome)> {
        let mut ended = Vec::new();
        for waiting in &mut self.devices {
            let Some(closer) = closer(waiting.id) else {
                continue;
            };
            if !is_behind(closer) {
                ended.push((waiting.id, Outcome::CaughtUp));
            } else if closer.closed() != waiting.closed {
                waiting.closed = closer.closed();
                waiting.since = Instant::now();
            } else if waiting.since.elapsed() >= self.patience {
                ended.push((waiting.id, Outcome::Stuck));
            }
        }
        ended
    }
}
