//! What a device process tells of its own accord, and what is told on.

use std::io;
use std::time::Duration;

use base::EventType;
use devices::control::DeviceEvent;
use vmm_vhost::deviation::Deviation;

use super::device::Failed;
use super::device_state::Heed;
use super::device_state::closed_words;
use super::device_state::refused_report;
use super::events::DeviationCount;
use super::events::Event;
use super::main_loop::Error;
use super::main_loop::Vmm;

/// How long nothing is heard of a device process that has told too much.
const DEAFNESS: Duration = Duration::from_millis(50);

impl Vmm<'_> {
    /// Tells what the device process has to tell.
    pub(super) fn device_events(&mut self) {
        let (events, heed) = self.device.read_events();
        let interest = match heed {
            Heed::Now => EventType::Read,
            Heed::Later | Heed::Never => EventType::None,
        };
        self.device.heed_events(&self.wait, interest);
        if heed == Heed::Later
            && let Err(error) = self.deafness.start(DEAFNESS)
        {
            self.fail(Error::Loop(error));
        }
        for event in events {
            self.device_event(event);
        }
    }

    /// Goes on listening to a device process that has told too much.
    pub(super) fn heed_device(&mut self) -> io::Result<()> {
        self.deafness.take()?;
        self.device.heed_events(&self.wait, EventType::Read);
        Ok(())
    }

    fn device_event(&mut self, event: DeviceEvent) {
        let device = self.config.device.name.clone();
        match event {
            DeviceEvent::RequestRefused {
                refused,
                suppressed,
            } => {
                let report = refused_report(&refused);
                self.device.last_refused = Some(report.clone());
                let Some(untold) = self.device.may_tell() else {
                    return;
                };
                self.observer.event(Event::Refused {
                    device,
                    request: report.request,
                    shmid: report.shmid,
                    offset: report.offset,
                    len: report.len,
                    errno: report.errno,
                    suppressed: suppressed.saturating_add(untold),
                });
            }
            DeviceEvent::ConfigChanged | DeviceEvent::VringError { .. }
                if self.device.may_tell().is_none() => {}
            DeviceEvent::ConfigChanged => self.observer.event(Event::ConfigChanged { device }),
            DeviceEvent::VringError { index } => {
                self.observer.event(Event::QueueError { device, index });
            }
            DeviceEvent::Deviated { first, count } => self.deviated(first, count),
            DeviceEvent::ChannelClosed { reason } => self.observer.event(Event::ChannelClosed {
                device,
                reason: closed_words(&reason),
            }),
        }
    }

    /// Notes why a call failed, and returns the reason in words.
    pub(super) fn note_failed(&mut self, failed: Failed) -> String {
        if let Some(deviation) = failed.deviation {
            self.deviated(deviation, 1);
        }
        failed.reason
    }

    /// Counts what the backend did against the protocol, and tells the first of each rule.
    ///
    /// The words are this program's own; a device process that was taken over chooses rule, message and numbers.
    pub(super) fn deviated(&mut self, first: Deviation, count: u64) {
        if !self.config.device.strict {
            return;
        }
        let counted = self.device.deviations.get_mut(&first.rule);
        if let Some(counted) = counted {
            *counted = counted.saturating_add(count);
            return;
        }
        self.device.deviations.insert(first.rule, count);
        let info = first.rule.info();
        self.observer.event(Event::Deviation {
            device: self.config.device.name.clone(),
            rule: info.name,
            source: info.source.name(),
            channel: info.channel.name(),
            message: (first.code != 0).then(|| first.message()),
            field: info.field,
            value: first.value,
            text: info.text,
        });
    }

    /// Tells how often each rule was broken, and returns what that makes of the run.
    pub(super) fn sum_up_deviations(&mut self) -> Option<Error> {
        if !self.config.device.strict {
            return None;
        }
        let rules: Vec<_> = self
            .device
            .deviations
            .iter()
            .map(|(rule, count)| DeviationCount {
                rule: rule.info().name,
                source: rule.info().source.name(),
                count: *count,
            })
            .collect();
        let count = rules
            .iter()
            .fold(0_u64, |all, rule| all.saturating_add(rule.count));
        let broken = rules.len();
        self.observer.event(Event::Deviations {
            device: self.config.device.name.clone(),
            rules,
            count,
        });
        (broken > 0).then_some(Error::Deviations {
            rules: broken,
            count,
        })
    }
}
