//! Why a request is refused, with the numbers that explain it and the errno that the backend gets.
//!
//! A reason is copied, not allocated; it becomes text only where somebody reads it.

use base::DescriptorKind;
use base::Protection;
use base::Seals;
use remain::sorted;

use crate::request::Generation;

/// Why the service does not do what a device asks.
#[sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// `EACCES`: the descriptor was not opened for the protection, or a seal forbids it.
    #[error("the descriptor was not opened for {}, or it is sealed", words(*.protection))]
    AccessMode {
        /// What was asked for.
        protection: Protection,
    },
    /// `ECANCELED`: the request is of another activation of the device than the current one.
    #[error("request of generation {} in generation {}", .generation.0, .current.0)]
    Cancelled {
        /// Its generation.
        generation: Generation,
        /// The current one.
        current: Generation,
    },
    /// `EBADF`: a file of a file system that another process serves, or may serve.
    #[error(
        "the file is in a file system that is not known to be the kernel's own: its server could stall the VMM"
    )]
    CanStall,
    /// `EBADF`: nothing of this kind is mapped.
    #[error("a descriptor of kind {kind:?} is not mapped")]
    DescriptorKind {
        /// What the descriptor refers to.
        kind: DescriptorKind,
    },
    /// `EPERM`: the device may not pass pointers.
    #[error("this device may not map memory by its address")]
    External,
    /// `EFAULT`: the range of an in-process backend is not all memory, or not with this protection.
    #[error("address {address:#x}, {len:#x} bytes: not all of it is memory for {}", words(*.protection))]
    ExternalRange {
        /// Where the range begins.
        address: u64,
        /// Its length in bytes.
        len: u64,
        /// What was asked for.
        protection: Protection,
    },
    /// `EOVERFLOW`: the file ends before the range does.
    #[error("bytes {offset:#x} and {len:#x} more of a file of {size:#x} bytes")]
    FileTooShort {
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The file's length in bytes.
        size: u64,
    },
    /// The kernel's errno, or the VMM's.
    #[error("the system refused: {error}")]
    Kernel {
        /// It.
        error: base::Error,
    },
    /// `EINVAL`: an offset is no multiple of the page size.
    #[error("offset {offset:#x} is no multiple of {page_size:#x}")]
    Misaligned {
        /// The offset in the region or in the file, or an address.
        offset: u64,
        /// What it must be a multiple of.
        page_size: u64,
    },
    /// `EMFILE`: the descriptor did not get here, since the VMM has as many as it may have.
    #[error("the VMM has no room for the descriptor")]
    NoDescriptor,
    /// `ENOENT`: no live mapping is exactly that. `len` 0 stands for any length.
    #[error("no mapping at {offset:#x} of {len:#x} bytes, {}", found(*.live))]
    NoMapping {
        /// Where it was to begin.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The mapping that is there instead: offset and length.
        live: Option<(u64, u64)>,
    },
    /// `ENXIO`: the device has no such region.
    #[error("the device has no region {shmid}")]
    NoRegion {
        /// The region's id.
        shmid: u8,
    },
    /// `EPERM`: the device's policy demands seals that the file does not have.
    #[error("the memfd has seals {:#x}, the device needs {:#x}", .has.bits(), .needs.bits())]
    NotSealed {
        /// The file's seals.
        has: Seals,
        /// What it lacks at least one of.
        needs: Seals,
    },
    /// `ERANGE`: the range is not within the region.
    #[error("offset {offset:#x}, {len:#x} bytes: outside of a region of {region_len:#x} bytes")]
    OutOfRegion {
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// The region's length in bytes.
        region_len: u64,
    },
    /// `EEXIST`: a live mapping is in the way.
    #[error(
        "offset {offset:#x}, {len:#x} bytes: overlaps the mapping at {live_offset:#x} of {live_len:#x} bytes"
    )]
    Overlap {
        /// Where the range begins.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// Where the live one begins.
        live_offset: u64,
        /// Its length in bytes.
        live_len: u64,
    },
    /// `EINVAL`: a protection that lets nobody do anything.
    #[error("a mapping that can be neither read nor written")]
    Protection,
    /// `EDQUOT`: the areas of address space that all devices share.
    #[error("the devices of this VM use {used} of {limit} areas of address space")]
    QuotaAreas {
        /// How many they use.
        used: u64,
        /// How many they may use.
        limit: u64,
    },
    /// `EDQUOT`: the device's mapped bytes.
    #[error(
        "{len:#x} bytes more than the {used:#x} that are mapped: the device's limit is {limit:#x}"
    )]
    QuotaBytes {
        /// The mapping's footprint in bytes.
        len: u64,
        /// What the device has mapped.
        used: u64,
        /// What it may have mapped.
        limit: u64,
    },
    /// `EDQUOT`: the device's live mappings.
    #[error("the device has {limit} mappings, as many as it may have")]
    QuotaMappings {
        /// How many it may have.
        limit: u32,
    },
    /// `EINVAL`: a length of 0.
    #[error("a length of 0")]
    ZeroLength,
}

impl Reason {
    /// What the backend gets.
    pub const fn errno(&self) -> base::Error {
        let errno = match self {
            Self::AccessMode { .. } => libc::EACCES,
            Self::Cancelled { .. } => libc::ECANCELED,
            Self::CanStall | Self::DescriptorKind { .. } => libc::EBADF,
            Self::External | Self::NotSealed { .. } => libc::EPERM,
            Self::ExternalRange { .. } => libc::EFAULT,
            Self::FileTooShort { .. } => libc::EOVERFLOW,
            Self::Kernel { error } => return *error,
            Self::Misaligned { .. } | Self::Protection | Self::ZeroLength => libc::EINVAL,
            Self::NoDescriptor => libc::EMFILE,
            Self::NoMapping { .. } => libc::ENOENT,
            Self::NoRegion { .. } => libc::ENXIO,
            Self::OutOfRegion { .. } => libc::ERANGE,
            Self::Overlap { .. } => libc::EEXIST,
            Self::QuotaAreas { .. } | Self::QuotaBytes { .. } | Self::QuotaMappings { .. } => {
                libc::EDQUOT
            }
        };
        base::Error::new(errno)
    }
}

fn words(protection: Protection) -> &'static str {
    if protection.allows(&Protection::write()) {
        "reading and writing"
    } else {
        "reading"
    }
}

struct Found(Option<(u64, u64)>);

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((offset, len)) => write!(f, "but one at {offset:#x} of {len:#x} bytes"),
            None => f.write_str("and none around it"),
        }
    }
}

fn found(live: Option<(u64, u64)>) -> Found {
    Found(live)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_of_an_unmap_says_what_is_there() {
        let reason = Reason::NoMapping {
            offset: 0x1000,
            len: 1,
            live: Some((0x1000, 0x70800)),
        };
        assert_eq!(
            reason.to_string(),
            "no mapping at 0x1000 of 0x1 bytes, but one at 0x1000 of 0x70800 bytes"
        );
        assert_eq!(reason.errno(), base::Error::new(libc::ENOENT));
    }

    #[test]
    fn reason_of_an_access_mode_names_the_protection() {
        let reason = Reason::AccessMode {
            protection: Protection::read_write(),
        };
        assert_eq!(
            reason.to_string(),
            "the descriptor was not opened for reading and writing, or it is sealed"
        );
    }
}
