//! What an activation must be like before a byte of it goes to the backend.
//!
//! The queues are the guest driver's to set up, so the guest chooses these numbers. A backend may give up over them, which
//! would let a guest end its device; what can be told to be wrong is refused here.

use super::Error;
use super::VHOST_USER_F_PROTOCOL_FEATURES;
use super::VIRTIO_F_ACCESS_PLATFORM;
use super::VhostUserFrontend;
use crate::control::Activation;
use crate::control::MAX_MEMORY_REGIONS;
use crate::control::MemoryRegion;
use crate::control::QueueSetup;

/// The largest size of a split queue.
///
/// # Source
/// virtio 1.3, 2.7: "Queue Size value is always a power of 2. The maximum Queue Size value is 32768."
const MAX_QUEUE_SIZE: u16 = 32768;

impl VhostUserFrontend {
    pub(super) fn check_activation(&self, activation: &Activation) -> Result<(), Error> {
        let extra = activation.features & !self.offered & !VHOST_USER_F_PROTOCOL_FEATURES;
        if extra != 0 {
            return Err(Error::Features { extra });
        }
        let count = activation.memory.len();
        let queues = activation.queues.len();
        if count > MAX_MEMORY_REGIONS || (count == 0 && queues != 0) {
            return Err(Error::MemoryRegions { count, queues });
        }
        for (position, queue) in activation.queues.iter().enumerate() {
            let earlier = &activation.queues[..position];
            let reason = if queue.index >= self.queue_limit {
                "the backend has no such queue"
            } else if self.active.contains(&queue.index) {
                "it is running already"
            } else if earlier.iter().any(|other| other.index == queue.index) {
                "it is set up twice"
            } else if let Some(reason) = flaw(queue, activation) {
                reason
            } else {
                continue;
            };
            return Err(Error::Queue {
                index: queue.index,
                size: queue.size,
                reason,
            });
        }
        Ok(())
    }
}

/// Returns what is wrong with a queue by itself.
fn flaw(queue: &QueueSetup, activation: &Activation) -> Option<&'static str> {
    if !queue.size.is_power_of_two() || queue.size > MAX_QUEUE_SIZE {
        return Some("the size is not a power of two up to 32768");
    }
    // Alignments and lengths of the parts of a split queue, virtio 1.3, 2.7; with room for the event indices.
    let size = u64::from(queue.size);
    let parts = [
        (queue.descriptor_table, 16, 16 * size),
        (queue.available_ring, 2, 6 + 2 * size),
        (queue.used_ring, 4, 6 + 8 * size),
    ];
    if parts.iter().any(|(address, align, _)| address % align != 0) {
        return Some("a part of it is not aligned");
    }
    // Behind an IOMMU the addresses are not the guest's.
    let translated = activation.features & VIRTIO_F_ACCESS_PLATFORM != 0;
    let outside = |(address, _, len): &(u64, u64, u64)| {
        !activation
            .memory
            .iter()
            .any(|region| contains(region, *address, *len))
    };
    if !translated && parts.iter().any(outside) {
        return Some("a part of it is not in guest memory");
    }
    None
}

fn contains(region: &MemoryRegion, address: u64, len: u64) -> bool {
    address
        .checked_sub(region.guest_address)
        .and_then(|start| start.checked_add(len))
        .is_some_and(|end| end <= region.len)
}
