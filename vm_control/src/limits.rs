//! How much a device, and all devices of a VM together, may map.

use base::Error;
use serde::Deserialize;
use serde::Serialize;

/// What one device may have mapped at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Live mappings.
    pub max_mappings: u32,
    /// Bytes of their footprints.
    pub max_bytes: u64,
}

impl Default for Limits {
    /// 16,384 mappings and 64 GiB: more than a DAX window or a set of GPU blobs needs.
    fn default() -> Self {
        Self {
            max_mappings: 16_384,
            max_bytes: 64 << 30,
        }
    }
}

/// What is used of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) mappings: u32,
    pub(crate) bytes: u64,
}

impl Usage {
    /// Returns the usage with one more mapping of `footprint` bytes, if `limits` allow it.
    pub(crate) fn with(self, footprint: u64, limits: &Limits) -> Result<Self, Error> {
        let next = Self {
            mappings: self.mappings.saturating_add(1),
            bytes: self.bytes.saturating_add(footprint),
        };
        if next.mappings > limits.max_mappings || next.bytes > limits.max_bytes {
            return Err(Error::new(libc::EDQUOT));
        }
        Ok(next)
    }

    /// Returns the usage with one mapping of `footprint` bytes less.
    pub(crate) fn without(self, footprint: u64) -> Self {
        Self {
            mappings: self.mappings.saturating_sub(1),
            bytes: self.bytes.saturating_sub(footprint),
        }
    }
}
