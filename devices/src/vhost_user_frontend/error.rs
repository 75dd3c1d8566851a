//! What can go wrong on the main channel, and what that means for the process.

use std::io;

use remain::sorted;
use thiserror::Error;

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
