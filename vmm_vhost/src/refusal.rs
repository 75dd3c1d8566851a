//! Why a well-framed request is refused, and with which errno.
//!
//! A refusal never ends the channel: it is answered where an answer is due, counted, and kept as
//! the last one for whoever asks.

use base::Error as Errno;
use thiserror::Error;

use crate::message::DescriptorCount;
use crate::message::Gate;
use crate::message::RequestCode;

/// What was wrong with a request.
#[remain::sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The wrong number of descriptors came along.
    #[error("{got} descriptors, expected {} to {}", want.min, want.max)]
    DescriptorCount {
        /// What the message may carry.
        want: DescriptorCount,
        /// What came.
        got: usize,
    },
    /// The descriptors were not on the message's first byte.
    #[error("descriptors came with a later byte than the message's first")]
    DescriptorsMisplaced,
    /// The kernel could not hand over all descriptors that were sent.
    #[error("more descriptors were sent than a message may carry or this process may hold")]
    DescriptorsTruncated,
    /// The handler refused the request.
    #[error("refused when it was carried out: {0}")]
    Handler(Errno),
    /// The kind of an IOTLB message is none that a backend sends.
    #[error("IOTLB message of kind {kind}, a backend sends 1 (miss) and 4 (access fail)")]
    IotlbKind {
        /// The kind.
        kind: u8,
    },
    /// The permission of an IOTLB message names no access.
    #[error("IOTLB permission {permission}, expected 1 to 3")]
    IotlbPermission {
        /// The permission.
        permission: u8,
    },
    /// Flags of a map or unmap with reserved bits, or with no access at all.
    #[error("flags {flags:#x} are not valid")]
    MapFlags {
        /// The flags.
        flags: u64,
    },
    /// An offset into the descriptor is not a multiple of the page size.
    #[error("offset {offset:#x} into the descriptor is not a multiple of the page size")]
    MisalignedDescriptorOffset {
        /// The offset.
        offset: u64,
    },
    /// A pointer is not a multiple of the page size.
    #[error("pointer {ptr:#x} is not a multiple of the page size")]
    MisalignedPointer {
        /// The pointer.
        ptr: u64,
    },
    /// An offset into the region is not a multiple of the page size.
    #[error("offset {offset:#x} into the region is not a multiple of the page size")]
    MisalignedRegionOffset {
        /// The offset.
        offset: u64,
    },
    /// Only a backend in the VMM's own process may send this.
    #[error("not allowed for a backend of another process")]
    NotInProcess,
    /// The size of a host notifier is not one page.
    #[error("host notifier of {size:#x} bytes, expected one page")]
    NotifierSize {
        /// The size.
        size: u64,
    },
    /// What makes the code welcome was not negotiated.
    #[error("not negotiated: {0:?}")]
    NotNegotiated(Gate),
    /// The payload has another size than the code demands.
    #[error("payload of {got} bytes, expected {want}")]
    PayloadSize {
        /// What the code demands.
        want: usize,
        /// What came.
        got: usize,
    },
    /// The code is not known.
    #[error("unknown code")]
    UnknownCode,
    /// The code is known, and nobody serves it.
    #[error("known and not supported")]
    Unsupported,
    /// A reserved bit of a queue's index is set.
    #[error("queue index {bits:#x} has reserved bits set")]
    VringIndex {
        /// The bits.
        bits: u64,
    },
    /// The number beside a queue's index is not zero.
    #[error("number {num} beside the queue's index, expected 0")]
    VringNumber {
        /// The number.
        num: u32,
    },
    /// A length of zero.
    #[error("length 0")]
    ZeroLength,
}

impl Refusal {
    /// The errno that goes into the answer.
    pub fn errno(&self) -> Errno {
        match *self {
            Refusal::Handler(errno) => errno,
            Refusal::NotInProcess => Errno::new(libc::EPERM),
            Refusal::NotNegotiated(_) => Errno::new(libc::ENOTSUP),
            Refusal::Unsupported | Refusal::UnknownCode => Errno::new(libc::ENOSYS),
            Refusal::DescriptorCount { .. }
            | Refusal::DescriptorsMisplaced
            | Refusal::DescriptorsTruncated
            | Refusal::IotlbKind { .. }
            | Refusal::IotlbPermission { .. }
            | Refusal::MapFlags { .. }
            | Refusal::MisalignedDescriptorOffset { .. }
            | Refusal::MisalignedPointer { .. }
            | Refusal::MisalignedRegionOffset { .. }
            | Refusal::NotifierSize { .. }
            | Refusal::PayloadSize { .. }
            | Refusal::VringIndex { .. }
            | Refusal::VringNumber { .. }
            | Refusal::ZeroLength => Errno::new(libc::EINVAL),
        }
    }
}

/// One refused request, for reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The request's code.
    pub code: RequestCode,
    /// The how-manieth refusal of this channel it was, from 1.
    pub ordinal: u64,
    /// What was wrong.
    pub refusal: Refusal,
    /// Whether the peer got an answer.
    pub answered: bool,
}

impl Refused {
    /// The errno of the refusal.
    pub fn errno(&self) -> Errno {
        self.refusal.errno()
    }
}
