//! The interrupt of a virtio-mmio device: an eventfd, the status register that says why, the configuration's generation.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use base::Event;

use super::register::INTERRUPT_CONFIG_CHANGE;
use super::register::INTERRUPT_USED_BUFFER;

/// The interrupt of one device. Clones are the same interrupt: one is the transport's, one the device's, and one
/// belongs to whoever waits for a backend's call eventfds, since these say nothing of the status register.
#[derive(Clone, Debug)]
pub struct InterruptLine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    event: Event,
    status: AtomicU32,
    generation: AtomicU32,
}

impl InterruptLine {
    /// Makes an interrupt that signals `event`.
    pub fn new(event: Event) -> Self {
        Self {
            shared: Arc::new(Shared {
                event,
                status: AtomicU32::new(0),
                generation: AtomicU32::new(0),
            }),
        }
    }

    /// Returns the event, for an irqfd or whoever else brings it to the guest.
    pub fn event(&self) -> &Event {
        &self.shared.event
    }

    /// Tells the driver that the device used buffers.
    ///
    /// # Errors
    /// The eventfd's.
    pub fn used_buffers(&self) -> base::Result<()> {
        self.raise(INTERRUPT_USED_BUFFER)
    }

    /// Tells the driver that the device's configuration changed: it reads another generation from now on.
    ///
    /// # Errors
    /// The eventfd's.
    pub fn config_changed(&self) -> base::Result<()> {
        self.shared.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INTERRUPT_CONFIG_CHANGE)
    }

    /// Sets bits of the status register and signals the event.
    pub(super) fn raise(&self, bits: u32) -> base::Result<()> {
        self.shared.status.fetch_or(bits, Ordering::AcqRel);
        self.shared.event.signal()
    }

    pub(super) fn status(&self) -> u32 {
        self.shared.status.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.shared.status.fetch_and(!bits, Ordering::AcqRel);
    }

    pub(super) fn generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }
}
