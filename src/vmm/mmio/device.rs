//! The device behind the registers.

use thiserror::Error as ThisError;

/// A queue that the driver has made ready. The rings are in guest memory, aligned as the specification wants it;
/// whether the guest has memory there is for the device to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Which queue.
    pub index: u16,
    /// Its entries, a power of two, at most what the device allows.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    #[doc(alias = "available")]
    pub driver_area: u64,
    /// Guest address of the used ring.
    #[doc(alias = "used")]
    pub device_area: u64,
}

/// What a device gets when the driver is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Activation {
    /// The features that the driver accepted.
    pub features: u64,
    /// The queues that are ready, by index.
    pub queues: Vec<QueueSetup>,
}

/// Where the guest sees a shared memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedMemoryWindow {
    /// Its guest address.
    pub guest_address: u64,
    /// Its bytes.
    pub len: u64,
}

/// A device that could not start. It has logged why; the driver only learns that the device needs a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ThisError)]
#[error("the device could not be activated")]
pub struct ActivateError;

/// A virtio device without its transport.
///
/// All calls come from the vCPU's thread, one at a time. They may block as long as the VMM bounds it: the guest waits,
/// nobody else. After [`Self::activate`] succeeded there is no second one before a [`Self::reset`].
pub trait VirtioDevice: Send {
    /// Returns the device's type: 26 is fs, 16 is gpu. Always the same.
    fn device_type(&self) -> u32;

    /// Returns the features that the device offers. The transport adds version 1 and takes away what it can't do.
    /// Always the same between two resets.
    fn features(&self) -> u64;

    /// Returns the most entries of each queue, powers of two; there are as many queues as entries. Always the same.
    fn queue_sizes(&self) -> &[u16];

    /// Returns where the guest sees the shared memory region with this id, if the device has it.
    fn shared_memory(&self, shmid: u32) -> Option<SharedMemoryWindow>;

    /// Fills `out` with the configuration at `offset`; bytes beyond its end stay zero. Any state.
    fn read_config(&mut self, offset: u64, out: &mut [u8]);

    /// Takes a write to the configuration; bytes beyond its end are ignored. Any state.
    fn write_config(&mut self, offset: u64, bytes: &[u8]);

    /// Tells whether the device can work with these features, a subset of those offered. By default it can.
    fn accepts(&mut self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// Starts the device: the driver is ready.
    ///
    /// # Errors
    /// The device could not start; it is reset next.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// The driver has put buffers on a queue. Only while active, only for a queue of the activation.
    fn notify(&mut self, queue: u16);

    /// Stops the device and forgets what the driver did. Any state, so it must be idempotent.
    fn reset(&mut self);
}
