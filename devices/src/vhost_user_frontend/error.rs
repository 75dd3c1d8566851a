//! What can go wrong on the main channel, and what that means for the process.

use std::io;

use remain::sorted;
use thiserror::Error;
use vmm_vhost::deviation::Deviation;
use vmm_vhost::deviation::Rule;
use vmm_vhost::deviation::main_code;

use super::raw::RawError;
use crate::control::MAX_CONFIG_BYTES;
use crate::control::MAX_MEMORY_REGIONS;
use crate::exit::Exit;
use crate::shmem_config::ShmemConfigError;

/// Why something on the main channel failed.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The backend is set up already.
    #[error("the main channel is set up already")]
    AlreadyConnected,
    /// The backend answers for another part of the configuration space.
    #[error("configuration space: the answer is not for {len} bytes at {offset:#x}")]
    ConfigAnswer {
        /// The first byte.
        offset: u32,
        /// How many.
        len: usize,
    },
    /// A range of configuration space is empty, too long or overflows.
    #[error(
        "configuration space: {len} bytes at {offset:#x} are not within the first {MAX_CONFIG_BYTES} bytes"
    )]
    ConfigBounds {
        /// The first byte.
        offset: u32,
        /// How many.
        len: u64,
    },
    /// The driver acknowledged features that it was not offered.
    #[error("the driver acknowledges features {extra:#x} that it was not offered")]
    Features {
        /// Those bits.
        extra: u64,
    },
    /// The answer to crosvm's query for regions is not a count and that many regions.
    #[error("the list of shared memory regions has {bytes} bytes for {count} regions")]
    LegacyList {
        /// The count in it.
        count: u64,
        /// The length of what follows the count.
        bytes: usize,
    },
    /// There are more memory regions than the protocol can carry, or none where queues need some.
    #[error(
        "{count} memory regions for {queues} queues: 1 to {MAX_MEMORY_REGIONS} can be handed over"
    )]
    MemoryRegions {
        /// How many there are.
        count: usize,
        /// How many queues there are.
        queues: usize,
    },
    /// A feature of the protocol that the call needs was not negotiated.
    #[error("protocol feature {feature} was not negotiated with the backend")]
    NotNegotiated {
        /// Its name.
        feature: &'static str,
    },
    /// The queues of an activation can't be.
    #[error("queue {index} of size {size}: {reason}")]
    Queue {
        /// The queue's index.
        index: u16,
        /// Its size.
        size: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// A request that is not the `vhost` crate's failed.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// The backend's list of regions was refused.
    #[error(transparent)]
    ShmemConfig(#[from] ShmemConfigError),
    /// The main channel's socket could not be duplicated.
    #[error("cannot duplicate the main channel")]
    Socket(#[source] io::Error),
    /// A request of the `vhost` crate failed.
    #[error("{request} failed")]
    Vhost {
        /// The request's name.
        request: &'static str,
        /// How.
        source: vhost::Error,
    },
}

impl Error {
    /// Returns the rule that the backend broke, if that is what went wrong.
    pub fn deviation(&self) -> Option<Deviation> {
        use vhost::vhost_user::Error as Wire;
        let (rule, code, value) = match self {
            Self::Raw(RawError::NotTheReply { code, flags, .. }) => {
                (Rule::MainReply, *code, u64::from(*flags))
            }
            Self::Raw(RawError::ReplySize { code, got, .. }) => {
                (Rule::MainReplySize, *code, u64::from(*got))
            }
            Self::ConfigAnswer { offset, .. } => (
                Rule::ConfigReply,
                main_code("GET_CONFIG"),
                u64::from(*offset),
            ),
            Self::LegacyList { count, .. } => (Rule::RegionList, LEGACY_REGIONS, *count),
            Self::ShmemConfig(error) => return deviation_of_regions(*error),
            // Which part of the reply was wrong, this client does not say.
            Self::Vhost {
                request,
                source:
                    vhost::Error::VhostUserProtocol(
                        Wire::InvalidMessage | Wire::OversizedMsg | Wire::IncorrectFds,
                    ),
            } => (Rule::MainReply, main_code(request), 0),
            _ => return None,
        };
        Some(Deviation { rule, code, value })
    }

    /// Returns how the process has to end, if the main channel can't be used after this error.
    pub fn fatal(&self) -> Option<Exit> {
        use vhost::vhost_user::Error as Wire;
        match self {
            Self::Raw(RawError::Closed { .. } | RawError::Socket { .. }) => Some(Exit::BackendGone),
            Self::Raw(RawError::NotTheReply { .. } | RawError::ReplySize { .. })
            | Self::ConfigAnswer { .. } => Some(Exit::BackendProtocol),
            Self::Vhost {
                source: vhost::Error::VhostUserProtocol(wire),
                ..
            } => match wire {
                // The client reports an end of file within a reply, or in place of one, as a partial message.
                Wire::Disconnected
                | Wire::PartialMessage
                | Wire::SocketBroken(_)
                | Wire::SocketError(_) => Some(Exit::BackendGone),
                Wire::InvalidMessage | Wire::OversizedMsg | Wire::IncorrectFds => {
                    Some(Exit::BackendProtocol)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// crosvm's query for regions.
const LEGACY_REGIONS: u32 = 1004;

/// The rule that a list of regions breaks; `None` where it only asks for more than the VMM gives.
fn deviation_of_regions(error: ShmemConfigError) -> Option<Deviation> {
    let (rule, code, value) = match error {
        ShmemConfigError::Count { announced, .. } => (
            Rule::RegionCount,
            main_code("GET_SHMEM_CONFIG"),
            u64::from(announced),
        ),
        ShmemConfigError::PageMultiple { len, .. } => {
            (Rule::RegionSize, main_code("GET_SHMEM_CONFIG"), len)
        }
        ShmemConfigError::Duplicate { shmid } | ShmemConfigError::Empty { shmid } => {
            (Rule::RegionList, LEGACY_REGIONS, u64::from(shmid))
        }
        ShmemConfigError::RegionLimit { .. }
        | ShmemConfigError::RegionsLimit { .. }
        | ShmemConfigError::Reserved { .. }
        | ShmemConfigError::TotalLimit { .. } => return None,
    };
    Some(Deviation { rule, code, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_backend_gets_wrong_is_a_deviation_and_a_limit_is_none() {
        let of = |error: Error| {
            error
                .deviation()
                .map(|found| (found.rule, found.code, found.value))
        };
        let not_the_reply = RawError::NotTheReply {
            code: 15,
            got: 16,
            flags: 7,
        };
        assert_eq!(of(not_the_reply.into()), Some((Rule::MainReply, 15, 7)));
        let config = Error::ConfigAnswer { offset: 8, len: 4 };
        assert_eq!(of(config), Some((Rule::ConfigReply, 24, 8)));
        let wire = Error::Vhost {
            request: "GET_QUEUE_NUM",
            source: vhost::Error::VhostUserProtocol(vhost::vhost_user::Error::InvalidMessage),
        };
        assert_eq!(of(wire), Some((Rule::MainReply, 17, 0)));
        let twice = ShmemConfigError::Duplicate { shmid: 3 };
        assert_eq!(of(twice.into()), Some((Rule::RegionList, 1004, 3)));
        let limit = ShmemConfigError::RegionsLimit {
            count: 20,
            limit: 16,
        };
        assert_eq!(of(limit.into()), None);
        assert_eq!(of(RawError::Closed { code: 15 }.into()), None);
    }
}
