//! Resource limits.

use rustix::process::Resource;
use rustix::process::Rlimit;
use rustix::process::getrlimit;
use rustix::process::setrlimit;

use super::SandboxLevel;
use super::step::At;
use super::step::Step;
use super::step::StepError;

/// How much of what a jailed process may use. All others of the kernel's limits that matter are 0: core files, file sizes, locked memory,
/// message queues, real-time priorities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Descriptor numbers end before this one. It is large, since it is also how many descriptors all processes of the user together may
    /// have in flight for this one to be able to send any: with a small limit, a backend that fills its sockets with descriptors would
    /// keep the devices of others from sending theirs (ETOOMANYREFS).
    pub open_files: u64,
    /// Threads, until [`lock_down`](super::Jail::lock_down), from which on there are no new ones. At level full only: elsewhere the
    /// kernel counts all processes of the user.
    pub threads: u64,
    /// Bytes of address space.
    pub address_space: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_files: 16_384,
            threads: 16,
            address_space: 1 << 30,
        }
    }
}

impl Limits {
    pub(super) fn set(&self, level: SandboxLevel) -> Result<(), StepError> {
        lower(Resource::Core, 0)?;
        lower(Resource::Fsize, 0)?;
        lower(Resource::Memlock, 0)?;
        lower(Resource::Msgqueue, 0)?;
        lower(Resource::Rtprio, 0)?;
        lower(Resource::Nice, 0)?;
        lower(Resource::Nofile, self.open_files)?;
        lower(Resource::As, self.address_space)?;
        if level == SandboxLevel::Full {
            lower(Resource::Nproc, self.threads)?;
        }
        Ok(())
    }
}

/// No new threads or processes from here on.
pub(super) fn forbid_threads() -> Result<(), StepError> {
    lower(Resource::Nproc, 0)
}

/// Sets both limits to `value`, or to what the hard limit allows.
fn lower(resource: Resource, value: u64) -> Result<(), StepError> {
    let value = match getrlimit(resource).maximum {
        Some(maximum) => value.min(maximum),
        None => value,
    };
    let limit = Rlimit {
        current: Some(value),
        maximum: Some(value),
    };
    setrlimit(resource, limit).at(Step::Limits)
}
