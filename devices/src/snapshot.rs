//! A device at rest: what a VMM keeps of it to bring it back later, perhaps elsewhere.
//!
//! Mappings are listed and not kept: only the backend has the descriptors, so only the backend can map them again.
//! After a restore the list tells which of them it has not.

use serde::Deserialize;
use serde::Serialize;
use vm_control::DeviceId;
use vm_control::MappingInfo;
use vm_control::ServiceHandle;

use crate::control::VringBase;
use crate::device_process::DeviceProcess;
use crate::device_process::Error;

/// One mapping that a device had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedMapping {
    /// The region's id.
    pub shmid: u8,
    /// Where it started in the region.
    pub offset: u64,
    /// Its bytes, as the backend gave them.
    pub len: u64,
    /// Whether the guest could write to it.
    pub writable: bool,
}

impl From<&MappingInfo> for SavedMapping {
    fn from(mapping: &MappingInfo) -> Self {
        Self {
            shmid: mapping.shmid,
            offset: mapping.offset,
            len: mapping.len,
            writable: mapping.protection.allows(&base::Protection::write()),
        }
    }
}

/// What is kept of a device whose queues are stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSnapshot {
    /// The virtio features that the driver had acknowledged.
    pub features: u64,
    /// Where the queues stood.
    pub vring_bases: Vec<VringBase>,
    /// The backend's own state, if it can save it.
    pub backend_state: Option<Vec<u8>>,
    /// What the device had mapped, in the order of regions and offsets.
    pub mappings: Vec<SavedMapping>,
}

impl DeviceSnapshot {
    /// Takes a snapshot of a device that is asleep.
    ///
    /// `features` and `vring_bases` are what the VMM knows: the driver's features, and what
    /// [`DeviceProcess::sleep`] returned. `with_state` says whether the backend negotiated DEVICE_STATE.
    ///
    /// # Errors
    /// Those of [`DeviceProcess::save_state`].
    pub fn take(
        process: &mut DeviceProcess,
        service: &ServiceHandle,
        device: DeviceId,
        features: u64,
        vring_bases: Vec<VringBase>,
        with_state: bool,
    ) -> Result<Self, Error> {
        let backend_state = if with_state {
            Some(process.save_state()?)
        } else {
            None
        };
        Ok(Self {
            features,
            vring_bases,
            backend_state,
            mappings: mappings_of(service, device),
        })
    }

    /// Gives the backend its state back, if there is one. Waking the queues is up to the VMM.
    ///
    /// # Errors
    /// Those of [`DeviceProcess::load_state`].
    pub fn restore_state(&self, process: &mut DeviceProcess) -> Result<(), Error> {
        match &self.backend_state {
            Some(state) => process.load_state(state),
            None => Ok(()),
        }
    }

    /// Returns the mappings of the snapshot that the device does not have now.
    pub fn missing(&self, service: &ServiceHandle, device: DeviceId) -> Vec<SavedMapping> {
        missing_of(&self.mappings, &mappings_of(service, device))
    }
}

fn mappings_of(service: &ServiceHandle, device: DeviceId) -> Vec<SavedMapping> {
    let mut mappings: Vec<SavedMapping> = service
        .mappings()
        .iter()
        .filter(|mapping| mapping.device_id == device)
        .map(SavedMapping::from)
        .collect();
    mappings.sort_by_key(|mapping| (mapping.shmid, mapping.offset));
    mappings
}

fn missing_of(wanted: &[SavedMapping], live: &[SavedMapping]) -> Vec<SavedMapping> {
    let is_missing = |mapping: &&SavedMapping| !live.contains(mapping);
    wanted.iter().filter(is_missing).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(offset: u64, writable: bool) -> SavedMapping {
        SavedMapping {
            shmid: 0,
            offset,
            len: 4096,
            writable,
        }
    }

    #[test]
    fn missing_names_what_is_not_there_or_not_the_same() {
        let wanted = [mapping(0, true), mapping(4096, true), mapping(8192, false)];
        let live = [mapping(0, true), mapping(8192, true), mapping(12288, true)];
        assert_eq!(
            missing_of(&wanted, &live),
            [mapping(4096, true), mapping(8192, false)]
        );
    }
}
