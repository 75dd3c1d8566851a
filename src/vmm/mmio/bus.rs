//! Which device an address belongs to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;

use thiserror::Error as ThisError;

/// What answers accesses to a range of addresses. Called on the vCPU's thread, one call at a time for one device.
pub trait BusDevice: Send {
    /// Fills `out` with what is at `offset`; the whole access is inside the device's range.
    fn read(&mut self, offset: u64, out: &mut [u8]);
    /// Takes `bytes` at `offset`.
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

/// Why a device could not be put on a bus.
#[remain::sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
pub enum BusError {
    /// The range is empty or ends beyond the last address.
    #[error("bus range {address:#x}+{len:#x} is not a range")]
    BadRange {
        /// Where it would start.
        address: u64,
        /// Its bytes.
        len: u64,
    },
    /// Another device has some of these addresses.
    #[error("bus range {address:#x}+{len:#x} overlaps the device at {taken:#x}")]
    Overlap {
        /// Where it would start.
        address: u64,
        /// Its bytes.
        len: u64,
        /// Where the other device starts.
        taken: u64,
    },
}

#[derive(Clone)]
struct Entry {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// The devices by address.
#[derive(Default)]
pub struct Bus {
    entries: RwLock<BTreeMap<u64, Entry>>,
}

impl Bus {
    /// Makes a bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `address`.
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::Overlap`].
    pub fn insert(
        &self,
        address: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let end = address
            .checked_add(len)
            .filter(|_| len > 0)
            .ok_or(BusError::BadRange { address, len })?;
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((&taken, entry)) = entries.range(..end).next_back()
            && taken + entry.len > address
        {
            return Err(BusError::Overlap {
                address,
                len,
                taken,
            });
        }
        entries.insert(address, Entry { len, device });
        Ok(())
    }

    /// Takes the device at `address` off the bus; tells whether there was one. An access that has begun is completed.
    pub fn remove(&self, address: u64) -> bool {
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&address)
            .is_some()
    }

    /// Reads from the device at `address`. False, and `out` is untouched, if there is none for the whole access.
    pub fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let Some((device, offset)) = self.find(address, out.len()) else {
            return false;
        };
        device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, out);
        true
    }

    /// Writes to the device at `address`. False if there is none for the whole access.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        let Some((device, offset)) = self.find(address, bytes.len()) else {
            return false;
        };
        device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, bytes);
        true
    }

    /// Finds the device of an access, without holding the bus while it is served.
    fn find(&self, address: u64, len: usize) -> Option<(Arc<Mutex<dyn BusDevice>>, u64)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (start, entry) = entries.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= entry.len).then(|| (Arc::clone(&entry.device), offset))
    }
}
