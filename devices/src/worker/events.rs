//! What the worker tells the VMM of its own accord, without ever waiting for it.
//!
//! The event tube may be full for as long as the VMM likes. What can't be sent is remembered in one place a kind, so
//! that a backend that causes events can't make them pile up: a config change is a flag, a refusal is the last one with
//! a count, the end of a channel is its last reason, a deviation is the first of its kind with a count.

use base::AsRawDescriptor;
use base::RateLimit;
use base::RawDescriptor;
use base::TubeError;
use base::packet::PacketTube;
use vmm_vhost::deviation::Deviation;
use vmm_vhost::deviation::Deviations;
use vmm_vhost::deviation::Rule;

use crate::control::ChannelClosed;
use crate::control::DeviceEvent;
use crate::control::RefusedRequest;

/// The sending half of the event tube.
pub(super) struct EventSender {
    tube: PacketTube,
    limit: RateLimit,
    open: bool,
    config_changed: bool,
    vring_error: Option<u32>,
    refused: Option<RefusedRequest>,
    suppressed: u64,
    closed: Option<ChannelClosed>,
    deviations: Deviations,
    /// As `limit`, which counts refusals.
    deviation_limit: RateLimit,
    /// The rules of which something was told.
    told: u64,
    /// A deviation that had no room on the tube.
    untold: Option<(Deviation, u64)>,
}

const _: () = assert!(Rule::ALL.len() <= 64, "a bit for each rule");

impl EventSender {
    /// Sends events on `tube`; refusals no more often than `limit` allows.
    pub(super) fn new(tube: PacketTube, limit: RateLimit) -> Self {
        Self {
            tube,
            limit: limit.clone(),
            open: true,
            config_changed: false,
            vring_error: None,
            refused: None,
            suppressed: 0,
            closed: None,
            deviations: Deviations::default(),
            deviation_limit: limit,
            told: 0,
            untold: None,
        }
    }

    pub(super) fn config_changed(&mut self) {
        self.config_changed = true;
        self.flush();
    }

    pub(super) fn vring_error(&mut self, index: u32) {
        self.vring_error = Some(index);
        self.flush();
    }

    pub(super) fn refused(&mut self, refused: RefusedRequest) {
        if let Some(waiting) = &mut self.refused {
            // What waits is always the last one.
            *waiting = refused;
            self.suppressed = self.suppressed.saturating_add(1);
        } else if let Some(suppressed) = self.limit.permit() {
            self.refused = Some(refused);
            self.suppressed = suppressed;
            self.flush();
        }
    }

    pub(super) fn channel_closed(&mut self, reason: ChannelClosed) {
        self.closed = Some(reason);
        self.flush();
    }

    /// Counts deviations, and tells of the first of a kind.
    pub(super) fn deviated(&mut self, deviation: Deviation, count: u64) {
        self.deviations.note(deviation, count);
        let bit = 1 << deviation.rule as u32;
        if self.told & bit == 0 || self.deviation_limit.permit().is_some() {
            self.told |= bit;
            self.tell_deviations();
        }
    }

    /// Tells of all deviations that were counted and not told, as far as there is room.
    pub(super) fn tell_deviations(&mut self) {
        while let Some((first, count)) = self.untold.take().or_else(|| self.deviations.take()) {
            if !self.try_send(&DeviceEvent::Deviated { first, count }) {
                self.untold = Some((first, count));
                return;
            }
        }
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn flush(&mut self) {
        if self.untold.is_some() {
            self.tell_deviations();
        }
        if self.config_changed && self.try_send(&DeviceEvent::ConfigChanged) {
            self.config_changed = false;
        }
        if let Some(index) = self.vring_error
            && self.try_send(&DeviceEvent::VringError { index })
        {
            self.vring_error = None;
        }
        if let Some(refused) = self.refused {
            let event = DeviceEvent::RequestRefused {
                refused,
                suppressed: self.suppressed,
            };
            if self.try_send(&event) {
                self.refused = None;
                self.suppressed = 0;
            }
        }
        if let Some(reason) = self.closed.take() {
            let event = DeviceEvent::ChannelClosed { reason };
            if !self.try_send(&event)
                && let DeviceEvent::ChannelClosed { reason } = event
            {
                self.closed = Some(reason);
            }
        }
    }

    /// Whether there is something to send once there is room.
    pub(super) fn wants_write(&self) -> bool {
        let something = self.config_changed
            || self.vring_error.is_some()
            || self.refused.is_some()
            || self.closed.is_some()
            || self.untold.is_some();
        self.open && something
    }

    /// Returns true if the event needs no further attempt.
    fn try_send(&mut self, event: &DeviceEvent) -> bool {
        if !self.open {
            return true;
        }
        match self.tube.try_send(event) {
            Ok(()) => true,
            Err(TubeError::WouldBlock) => false,
            // The VMM is gone, or does not care. The control tube decides which.
            Err(_) => {
                self.open = false;
                true
            }
        }
    }
}

impl AsRawDescriptor for EventSender {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.tube.as_raw_descriptor()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use base::Tube;

    use super::*;

    fn deviation(rule: Rule) -> Deviation {
        Deviation {
            rule,
            code: 9,
            value: 0,
        }
    }

    #[test]
    fn first_deviation_of_a_kind_is_told_at_once_and_others_as_often_as_allowed() {
        let (ours, theirs) = Tube::pair().expect("a tube");
        let mut events = EventSender::new(
            PacketTube::new(ours),
            RateLimit::new(2, Duration::from_hours(1)),
        );
        let mut theirs = PacketTube::new(theirs);
        let mut told = || {
            let mut told = Vec::new();
            while let Ok(DeviceEvent::Deviated { first, count }) = theirs.try_recv() {
                told.push((first.rule, count));
            }
            told
        };
        let (one, other) = (Rule::ZeroLength, Rule::MapFlags);
        for _ in 0..10 {
            events.deviated(deviation(one), 1);
        }
        // The first one, and the two that the limit allows.
        assert_eq!(told(), [(one, 1); 3]);
        // What was counted meanwhile goes along with the first of another kind.
        events.deviated(deviation(other), 5);
        let mut both = told();
        both.sort_unstable_by_key(|(_, count)| *count);
        assert_eq!(both, [(other, 5), (one, 7)]);
        events.deviated(deviation(other), 3);
        assert_eq!(told(), []);
        // When the worker ends, nothing may be untold.
        events.tell_deviations();
        assert_eq!(told(), [(other, 3)]);
    }
}
