//! What can go wrong between the VMM and a device process.

use std::io;
use std::time::Duration;

use base::TubeError;
use remain::sorted;
use thiserror::Error;
use vmm_vhost::deviation::Deviation;

use crate::control::MAX_CONFIG_BYTES;
use crate::shmem_config::ShmemConfigError;

/// What a call of [`DeviceProcess`](super::DeviceProcess) can fail with.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// A piece of configuration space is longer than one call can carry.
    #[error("configuration space: {len} bytes are more than the {MAX_CONFIG_BYTES} of one call")]
    ConfigLength {
        /// The length.
        len: usize,
    },
    /// The process did not answer in time and was killed.
    #[error("device process {pid} did not answer {call} within {deadline:?} and was killed")]
    Deadline {
        /// The process.
        pid: u32,
        /// The call.
        call: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// The process has ended.
    #[error("device process {pid} has ended")]
    Ended {
        /// The process.
        pid: u32,
    },
    /// What came on the event tube or the hook tube is none of the process's messages, or it does not read its answers.
    #[error("tube from device process {pid}")]
    Events {
        /// The process.
        pid: u32,
        /// How.
        source: TubeError,
    },
    /// The process was not started with a tube for hooks.
    #[error("device process {pid} was started without hooks")]
    NoHooks {
        /// The process.
        pid: u32,
    },
    /// A pipe for the backend's state could not be made.
    #[error("no pipe for the backend's state")]
    Pipe(#[source] io::Error),
    /// The mapping service did not reset the device.
    #[error("the mapping service did not reset the device")]
    Service(#[source] vm_control::ServiceError),
    /// The process reports regions that its backend should not have got past it with.
    #[error("device process {pid} reports regions that it should have refused; it was killed")]
    ShmemConfig {
        /// The process.
        pid: u32,
        /// What is wrong with them.
        source: ShmemConfigError,
    },
    /// The process could not be started.
    #[error("the device process could not be started")]
    Spawn(#[source] jail::SpawnError),
    /// The backend's own state has more bytes than are kept.
    #[error("the backend's state has more than {limit} bytes")]
    StateTooLong {
        /// The limit.
        limit: usize,
    },
    /// A tube to the process could not be made.
    #[error("no tube to a device process")]
    Tube(#[source] TubeError),
    /// The process answered something else than was asked, and was killed.
    #[error("device process {pid} answered {call} with something else and was killed")]
    Unexpected {
        /// The process.
        pid: u32,
        /// The call.
        call: &'static str,
    },
    /// The process reports that the call failed. It goes on, unless it has ended since.
    #[error("{call}: {message}")]
    Unsuccessful {
        /// The call.
        call: &'static str,
        /// What it reports.
        message: String,
        /// The rule that the backend broke, if that is why, and if the device is [strict](crate::control::ConnectOptions::strict).
        deviation: Option<Deviation>,
    },
}

impl Error {
    /// Whether the process is gone, or was killed, because of this.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Deadline { .. }
                | Self::Ended { .. }
                | Self::Events { .. }
                | Self::ShmemConfig { .. }
                | Self::Spawn(_)
                | Self::Tube(_)
                | Self::Unexpected { .. }
        )
    }
}
