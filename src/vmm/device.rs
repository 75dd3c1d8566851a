//! Calls on a device process that can wait for it, and how its end is told.
//!
//! These run aside from the main loop. A call takes the process and gives it back with the result, so that no two calls
//! meet.

use std::time::Duration;

use devices::control::Activation;
use devices::control::DeviceEvent;
use devices::device_process;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use devices::exit::Exit;
use jail::End;
use jail::ExitReport;
use jail::MissingCall;
use jail::Spawner;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::time::Timespec;
use vm_control::DeviceId;
use vm_control::Generation;
use vm_control::ServiceHandle;
use vmm_vhost::deviation::Deviation;

use crate::text::causes;

/// How long a process whose tube has closed may take to be gone: it is on its way out already.
const LAST_STEPS: Duration = Duration::from_secs(1);

/// How a device process ended, or why it never was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Death {
    /// The process; `None` if it never started.
    pub(super) pid: Option<u32>,
    /// How it ended, in words.
    pub(super) how: String,
    /// Whether the backend went, or the process was asked to go: nothing failed.
    pub(super) is_orderly: bool,
    /// In log mode, the system calls that it made against its policy.
    pub(super) missing: Vec<MissingCall>,
    /// What its backend did against the protocol and was not told before.
    pub(super) deviations: Vec<(Deviation, u64)>,
}

impl Death {
    /// The device has no process, for this reason.
    pub(super) fn unborn(reason: impl Into<String>) -> Self {
        Self {
            pid: None,
            how: reason.into(),
            is_orderly: false,
            missing: Vec::new(),
            deviations: Vec::new(),
        }
    }

    fn unknown(pid: u32, reason: &str) -> Self {
        let process = format!("device process {pid}");
        Self {
            pid: Some(pid),
            how: if reason.starts_with(&process) {
                reason.to_owned()
            } else {
                format!("{process} ended: {reason}")
            },
            is_orderly: false,
            missing: Vec::new(),
            deviations: Vec::new(),
        }
    }

    /// The words for an exit report.
    fn of(report: &ExitReport) -> Self {
        let pid = report.pid;
        let own = match &report.end {
            End::Exited { code } => Exit::from_code(*code),
            _ => None,
        };
        let how = match own {
            Some(Exit::BackendGone) => {
                format!("backend disconnected, device process {pid} has ended")
            }
            Some(exit) => format!("device process {pid} ended: {exit}"),
            None => format!("device process {pid} {}", report.end),
        };
        Self {
            pid: Some(pid),
            how,
            is_orderly: matches!(own, Some(Exit::BackendGone | Exit::Shutdown)),
            missing: Vec::new(),
            deviations: Vec::new(),
        }
    }

    /// Adds what is known of a process only when it has ended: nothing more can come from it.
    fn with_last_words(mut self, process: &mut DeviceProcess) -> Self {
        self.missing = process.missing_calls();
        while let Ok(Some(event)) = process.try_event() {
            if let DeviceEvent::Deviated { first, count } = event {
                self.deviations.push((first, count));
            }
        }
        self
    }
}

/// A call that failed and left the process as it was.
pub(super) struct Failed {
    /// Why, in words.
    pub(super) reason: String,
    /// The rule that the backend broke, if that is why, and if the device is strict.
    pub(super) deviation: Option<Deviation>,
}

impl Failed {
    fn of(error: &device_process::Error) -> Self {
        Self {
            reason: causes(error),
            deviation: match error {
                device_process::Error::Unsuccessful { deviation, .. } => *deviation,
                _ => None,
            },
        }
    }
}

/// A device process that is back from a call, with what the call gave.
pub(super) type Returned<T> = Result<(DeviceProcess, Result<T, Failed>), Death>;

/// Starts a device process.
///
/// # Errors
/// It could not be started, or its jail could not be set up.
pub(super) fn spawn(
    spawner: &Spawner,
    config: DeviceProcessConfig,
) -> Result<DeviceProcess, Death> {
    DeviceProcess::spawn(spawner, config).map_err(|error| Death::unborn(causes(&error)))
}

/// Finds out how a device process ended, if it has.
pub(super) fn ended(process: &mut DeviceProcess) -> Option<Death> {
    let death = Death::of(process.exit_report()?);
    Some(death.with_last_words(process))
}

/// Makes one call on a device process. A call that fails and leaves the process as it was gives the reason.
///
/// # Errors
/// The process has ended.
pub(super) fn call<T>(
    mut process: DeviceProcess,
    make: impl FnOnce(&mut DeviceProcess) -> Result<T, device_process::Error>,
) -> Returned<T> {
    match make(&mut process) {
        Ok(value) => Ok((process, Ok(value))),
        Err(error) if error.is_fatal() => Err(end_after(process, &error)),
        Err(error) => {
            let failed = Failed::of(&error);
            Ok((process, Err(failed)))
        }
    }
}

/// Opens the request channel and activates the device. There is no driver whose queues could be handed over, but a device
/// that is not active keeps its config changes to itself.
///
/// # Errors
/// Those of the two calls.
pub(super) fn start(process: &mut DeviceProcess) -> Result<(), device_process::Error> {
    process.start()?;
    process.activate(Activation::default())
}

/// Resets the device and activates it anew.
///
/// # Errors
/// Those of the two calls.
pub(super) fn reset(
    process: &mut DeviceProcess,
    service: &ServiceHandle,
    device: DeviceId,
) -> Result<Generation, device_process::Error> {
    let generation = process.reset(service, device)?;
    process.activate(Activation::default())?;
    Ok(generation)
}

/// Asks a device process to end.
pub(super) fn shut_down(mut process: DeviceProcess) -> Death {
    let pid = process.pid();
    let death = match process.shutdown() {
        Ok(report) => Death::of(&report),
        Err(error) => Death::unknown(pid, &causes(&error)),
    };
    death.with_last_words(&mut process)
}

/// Ends a process that is of no use any more, for this reason.
pub(super) fn end(mut process: DeviceProcess, reason: &str) -> Death {
    let pid = process.pid();
    let death = match process.kill() {
        Ok(_) => Death::unknown(pid, reason),
        Err(error) => Death::unknown(pid, &format!("{reason}; it cannot be killed: {error}")),
    };
    death.with_last_words(&mut process)
}

/// Finds out how a process ended whose call failed.
fn end_after(mut process: DeviceProcess, error: &device_process::Error) -> Death {
    if !matches!(error, device_process::Error::Ended { .. }) {
        // It was killed for the reason that the error gives.
        return end(process, &causes(error));
    }
    // Its tubes have closed because it is on its way out: then the system tells why.
    let pidfd = process.pidfd();
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let _ = rustix::event::poll(&mut fds, Timespec::try_from(LAST_STEPS).ok().as_ref());
    ended(&mut process).unwrap_or_else(|| end(process, &causes(error)))
}
