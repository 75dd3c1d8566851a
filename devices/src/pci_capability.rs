//! The PCI capability by which a driver finds a shared memory region, for VMMs whose devices are on PCI.
//!
//! Only the 24 bytes: where they stand in configuration space, and which BAR they point into, is the VMM's affair.
//! Specification: virtio 1.3, section 4.1.4 "Virtio Structure PCI Capabilities" and 4.1.4.7 "Shared memory capability".

use remain::sorted;
use thiserror::Error as ThisError;

/// The bytes of the capability.
pub const CAPABILITY_BYTES: usize = 24;

/// `PCI_CAP_ID_VNDR`: the vendor decides what is in it.
const VENDOR_SPECIFIC: u8 = 9;
/// `VIRTIO_PCI_CAP_SHARED_MEMORY_CFG`.
const SHARED_MEMORY: u8 = 8;
/// The last BAR of a function.
const LAST_BAR: u8 = 5;

/// Why there is no such capability.
#[sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
pub enum Error {
    /// A function has the BARs 0 to 5.
    #[error("there is no BAR {bar}")]
    Bar {
        /// The BAR.
        bar: u8,
    },
    /// The region has no bytes, or ends beyond the 64 bits of an address.
    #[error("region {shmid} at offset {offset:#x} can't have {len:#x} bytes")]
    Range {
        /// The region's id.
        shmid: u8,
        /// Where it starts in the BAR.
        offset: u64,
        /// Its bytes.
        len: u64,
    },
}

/// Where a device's shared memory region is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryCapability {
    /// The BAR that the region is in.
    pub bar: u8,
    /// The region's id.
    pub shmid: u8,
    /// Where it starts in the BAR.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
}

impl SharedMemoryCapability {
    /// Returns the capability as it stands in configuration space. `next` is the offset of the next capability there,
    /// 0 for none.
    ///
    /// # Errors
    /// [`Error::Bar`], [`Error::Range`].
    pub fn encode(&self, next: u8) -> Result<[u8; CAPABILITY_BYTES], Error> {
        let Self {
            bar,
            shmid,
            offset,
            len,
        } = *self;
        if bar > LAST_BAR {
            return Err(Error::Bar { bar });
        }
        if len == 0 || offset.checked_add(len).is_none() {
            return Err(Error::Range { shmid, offset, len });
        }
        let ([offset_low, offset_high], [len_low, len_high]) = (halves(offset), halves(len));
        let mut bytes = [0; CAPABILITY_BYTES];
        bytes[..6].copy_from_slice(&[VENDOR_SPECIFIC, next, 24, SHARED_MEMORY, bar, shmid]);
        bytes[8..12].copy_from_slice(&offset_low);
        bytes[12..16].copy_from_slice(&len_low);
        bytes[16..20].copy_from_slice(&offset_high);
        bytes[20..].copy_from_slice(&len_high);
        Ok(bytes)
    }
}

/// Returns the low and the high half of a number, little endian.
fn halves(value: u64) -> [[u8; 4]; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [[a, b, c, d], [e, f, g, h]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_is_laid_out_as_the_specification_says() {
        let capability = SharedMemoryCapability {
            bar: 2,
            shmid: 7,
            offset: 0x1_2345_6000,
            len: 0x2_0000_1000,
        };
        #[rustfmt::skip]
        let expected = [
            9, 0x40, 24, 8,          // cap_vndr, cap_next, cap_len, cfg_type
            2, 7, 0, 0,              // bar, id, padding
            0x00, 0x60, 0x45, 0x23,  // offset
            0x00, 0x10, 0x00, 0x00,  // length
            1, 0, 0, 0,              // offset_hi
            2, 0, 0, 0,              // length_hi
        ];
        assert_eq!(capability.encode(0x40), Ok(expected));
    }

    #[test]
    fn bar_that_a_function_has_not_is_refused() {
        let capability = SharedMemoryCapability {
            bar: 6,
            shmid: 0,
            offset: 0,
            len: 0x1000,
        };
        assert_eq!(capability.encode(0), Err(Error::Bar { bar: 6 }));
    }

    #[test]
    fn region_that_is_empty_or_too_long_is_refused() {
        for (offset, len) in [(0x1000, 0), (u64::MAX, 1), (1, u64::MAX)] {
            let capability = SharedMemoryCapability {
                bar: 0,
                shmid: 3,
                offset,
                len,
            };
            let expected = Error::Range {
                shmid: 3,
                offset,
                len,
            };
            assert_eq!(capability.encode(0), Err(expected));
        }
    }
}
