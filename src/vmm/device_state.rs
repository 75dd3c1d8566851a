//! What the main loop knows of its device, and how it is shown.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use arrayvec::ArrayVec;
use base::Event as InterruptEvent;
use base::EventType;
use base::RateLimit;
use base::WaitContext;
use devices::control::BackendInfo;
use devices::control::ChannelClosed;
use devices::control::DeviceEvent;
use devices::control::RefusedRequest;
use devices::device_process::DeviceProcess;
use vm_control::DeviceId;
use vmm_vhost::deviation::Rule;
use vmm_vhost::message::RequestCode;

use super::backend_socket::BackendSocket;
use super::host::Region;
use super::main_loop::Token;
use crate::control::message::DeviceState;
use crate::control::message::RefusedReport;
use crate::control::message::RegionReport;

/// A device that lived shorter than this is not started again at once.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// Half the pause after the second short life in a row.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause after lives that were short: a backend that is back is served within 50 ms.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// How many events of the device process are taken before others have their turn.
const EVENTS_A_TURN: usize = 32;

/// The VMM's device.
#[derive(Default)]
pub(super) struct Device {
    pub(super) state: DeviceState,
    /// The socket while it is not connected yet.
    pub(super) socket: Option<BackendSocket>,
    /// The device's name at the mapping service.
    pub(super) id: Option<DeviceId>,
    /// The process while no call has it.
    pub(super) process: Option<DeviceProcess>,
    /// The process as the kernel shows it, whoever has it.
    pub(super) watch: Option<Watch>,
    pub(super) backend: Option<Backend>,
    pub(super) info: Option<BackendInfo>,
    pub(super) regions: Vec<Region>,
    /// How the last life ended.
    pub(super) ended: Option<String>,
    pub(super) restarts: u32,
    pub(super) last_refused: Option<RefusedReport>,
    /// The rules that the backend broke in all lives, and how often.
    pub(super) deviations: BTreeMap<Rule, u64>,
    pub(super) interrupt: Option<InterruptEvent>,
    born: Option<Instant>,
    /// How many lives in a row were short.
    short_lives: u32,
    limits: Limits,
}

/// How much of what a device process tells is taken. A process that has been taken over tells without end.
struct Limits {
    /// What is read at all.
    read: RateLimit,
    /// What of it is told on.
    told: RateLimit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read: RateLimit::new(1000, Duration::from_millis(1)),
            told: RateLimit::new(20, Duration::from_millis(200)),
        }
    }
}

/// When to listen to a device process again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heed {
    /// As soon as it has something to tell.
    Now,
    /// After a while: it has told too much.
    Later,
    /// Not before something else has happened.
    Never,
}

/// What is watched of a live device process.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) events: OwnedFd,
}

/// The process that listened on the backend's socket.
#[derive(Debug)]
pub(super) struct Backend {
    pub(super) pid: u32,
    /// Watched as long as it is open.
    pub(super) _pidfd: OwnedFd,
}

impl Watch {
    pub(super) fn new(process: &DeviceProcess) -> io::Result<Self> {
        Ok(Self {
            pid: process.pid(),
            pidfd: process.pidfd().try_clone_to_owned()?,
            events: process.events().try_clone_to_owned()?,
        })
    }
}

impl Device {
    /// The regions as the outputs show them.
    pub(super) fn region_reports(&self) -> Vec<RegionReport> {
        self.regions.iter().map(Region::report).collect()
    }

    /// A life begins.
    pub(super) fn bear(&mut self) {
        self.state = DeviceState::Starting;
        self.born = Some(Instant::now());
        self.limits = Limits::default();
    }

    /// How long the next life had better wait: not at all after a long life or a first short one, and then longer each time.
    pub(super) fn pause(&mut self) -> Duration {
        if self.born.is_some_and(|born| born.elapsed() >= SHORT_LIFE) {
            self.short_lives = 0;
            return Duration::ZERO;
        }
        let doublings = self.short_lives;
        self.short_lives = self.short_lives.saturating_add(1);
        match doublings {
            0 => Duration::ZERO,
            _ => LONGEST_PAUSE.min(FIRST_PAUSE.saturating_mul(1 << doublings.min(16))),
        }
    }

    /// Reads what the process has to tell, but not without end.
    pub(super) fn read_events(&mut self) -> (ArrayVec<DeviceEvent, EVENTS_A_TURN>, Heed) {
        let mut events = ArrayVec::new();
        let Some(process) = &mut self.process else {
            // Until the call that has it gives it back.
            return (events, Heed::Never);
        };
        while !events.is_full() {
            if self.limits.read.permit().is_none() {
                // What it has to tell more can wait; it does not wait for us.
                return (events, Heed::Later);
            }
            match process.try_event() {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                // The process is ending; its pidfd tells how.
                Err(_) => return (events, Heed::Never),
            }
        }
        (events, Heed::Now)
    }

    /// Whether one more refused request may be told, and how many were not since the last one.
    pub(super) fn may_tell(&mut self) -> Option<u64> {
        self.limits.told.permit()
    }

    /// Watches, or does not watch, what the process has to tell.
    pub(super) fn heed_events(&self, wait: &WaitContext<Token>, interest: EventType) {
        if let Some(watch) = &self.watch {
            // It fails only if the descriptor is not watched at all.
            let _ = wait.modify(&watch.events, interest, Token::DeviceEvent);
        }
    }

    /// Forgets everything that belongs to a life that is over.
    pub(super) fn forget_life(&mut self, wait: &WaitContext<Token>) {
        if let Some(watch) = self.watch.take() {
            // They have duplicates, so closing them does not take them out of the wait context.
            let _ = wait.delete(&watch.pidfd);
            let _ = wait.delete(&watch.events);
        }
        self.process = None;
        self.regions.clear();
        self.info = None;
        self.interrupt = None;
        self.backend = None;
    }
}

/// A refused request as the outputs show it.
pub(super) fn refused_report(refused: &RefusedRequest) -> RefusedReport {
    RefusedReport {
        request: request_name(refused.code),
        shmid: refused.shmid,
        offset: refused.offset,
        len: refused.len,
        errno: errno_name(refused.errno),
    }
}

/// The name of a request by the specification, or its code.
fn request_name(code: u32) -> String {
    let code = RequestCode(code);
    code.name().map_or_else(|| code.to_string(), str::to_owned)
}

/// The name of an errno, or its number where it has none.
pub(super) fn errno_name(errno: base::Error) -> String {
    errno
        .name()
        .map_or_else(|| format!("errno {}", errno.errno()), str::to_owned)
}

/// Why a request channel ended, in words.
pub(super) fn closed_words(reason: &ChannelClosed) -> String {
    match reason {
        ChannelClosed::ByBackend => "the backend closed it".to_owned(),
        ChannelClosed::BrokenFraming { detail } => format!("broken framing: {detail}"),
        ChannelClosed::Failed { errno } => format!("it failed: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_short_lives_and_end_with_a_long_one() {
        let mut device = Device::default();
        device.bear();
        let pauses: Vec<_> = (0..7).map(|_| device.pause().as_millis()).collect();
        assert_eq!(pauses, [0, 2, 4, 8, 16, 25, 25]);
        device.born = Instant::now().checked_sub(SHORT_LIFE);
        assert_eq!(device.pause(), Duration::ZERO);
        device.bear();
        assert_eq!(device.pause(), Duration::ZERO);
        assert_eq!(device.pause(), Duration::from_millis(2));
    }
}
