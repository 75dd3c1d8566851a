//! Doorbells: an event that the guest signals by a write, without the VMM's help (ioeventfd).
//!
//! That is more than a matter of speed. An eventfd that a backend has, too, can be filled by the backend until a write to
//! it waits; the kernel's own signal never does. So with a doorbell no backend can stop the vCPU.

use std::sync::Arc;
use std::sync::Weak;

use base::Event;
use vmm_sys_util::eventfd::EventFd;

use super::Error;
use super::machine::Shared;

/// Makes the doorbells of one device. It does not keep the machine alive, so that a device on the machine's bus can own it.
#[derive(Clone)]
pub struct Doorbells {
    shared: Weak<Shared>,
    address: u64,
}

impl Doorbells {
    pub(super) fn new(shared: &Arc<Shared>, address: u64) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            address,
        }
    }

    /// Lets the guest signal an event by writing this value. None if there is no guest.
    ///
    /// # Errors
    /// [`Error::Kvm`] if the value has its doorbell already.
    pub fn connect(&self, value: u32, event: &Event) -> Result<Option<Doorbell>, Error> {
        let Some(shared) = self.shared.upgrade() else {
            return Ok(None);
        };
        let Some(vm) = &shared.vm else {
            return Ok(None);
        };
        Ok(Some(Doorbell {
            event: vm.ring(self.address, value, event)?,
            place: self.clone(),
            value,
        }))
    }
}

/// A doorbell, until it is dropped.
pub struct Doorbell {
    place: Doorbells,
    value: u32,
    event: EventFd,
}

impl Drop for Doorbell {
    fn drop(&mut self) {
        // Without the machine there is nothing left to take back.
        let shared = self.place.shared.upgrade();
        let vm = shared.as_ref().and_then(|shared| shared.vm.as_ref());
        if let Some(vm) = vm
            && let Err(error) = vm.unring(self.place.address, self.value, &self.event)
        {
            tracing::error!("doorbell at {:#x}: {error:#}", self.place.address);
        }
    }
}
