//! The registers of one virtio-mmio device and the states between them.
//!
//! Decided here: the driver can't take back a status bit but by a reset; features are settled by FEATURES_OK, queues by
//! their ready bit and all of them by DRIVER_OK; what comes too late, or at a wrong width, is ignored and reads as 0.

use super::Activation;
use super::BusDevice;
use super::InterruptLine;
use super::QueueSetup;
use super::VirtioDevice;
use super::register;
use super::register::FEATURE_NOTIFICATION_DATA;
use super::register::FEATURE_RING_PACKED;
use super::register::FEATURE_RING_RESET;
use super::register::FEATURE_VERSION_1;
use super::register::INTERRUPT_CONFIG_CHANGE;
use super::register::STATUS_DEVICE_NEEDS_RESET;
use super::register::STATUS_DRIVER_OK;
use super::register::STATUS_FEATURES_OK;

/// `port`, as other vendors spell themselves.
const VENDOR: u32 = 0x7472_6f70;
/// What this transport can't do, whatever the device offers.
const UNSUPPORTED_FEATURES: u64 =
    FEATURE_RING_PACKED | FEATURE_NOTIFICATION_DATA | FEATURE_RING_RESET;

/// A queue as the driver describes it.
#[derive(Clone, Copy, Debug, Default)]
struct QueueRegisters {
    size: u32,
    ready: bool,
    descriptors: u64,
    driver_area: u64,
    device_area: u64,
}

impl QueueRegisters {
    /// Makes a set-up of the registers, if they describe a queue of at most `max` entries.
    fn setup(&self, index: u16, max: u16) -> Option<QueueSetup> {
        let size = u16::try_from(self.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)?;
        let aligned = self.descriptors.is_multiple_of(16)
            && self.driver_area.is_multiple_of(2)
            && self.device_area.is_multiple_of(4);
        aligned.then_some(QueueSetup {
            index,
            size,
            descriptors: self.descriptors,
            driver_area: self.driver_area,
            device_area: self.device_area,
        })
    }
}

/// A device on a virtio-mmio transport.
pub struct VirtioMmio<D> {
    device: D,
    interrupt: InterruptLine,
    status: u32,
    offered_select: u32,
    accepted_select: u32,
    accepted: u64,
    /// Whether the driver accepted a feature from a word beyond the second, where there are none.
    accepted_beyond: bool,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    shm_select: u32,
    /// Queues of the activation, while the device is active.
    active: Option<Vec<u16>>,
}

impl<D: VirtioDevice> VirtioMmio<D> {
    /// Puts a device behind registers.
    pub fn new(device: D, interrupt: InterruptLine) -> Self {
        let queues = vec![QueueRegisters::default(); device.queue_sizes().len()];
        Self {
            device,
            interrupt,
            status: 0,
            offered_select: 0,
            accepted_select: 0,
            accepted: 0,
            accepted_beyond: false,
            queue_select: 0,
            queues,
            shm_select: 0,
            active: None,
        }
    }

    /// Returns the device.
    pub fn device(&mut self) -> &mut D {
        &mut self.device
    }

    /// Returns the device status field.
    pub fn status(&self) -> u32 {
        self.status
    }

    /// Tells the driver that the device can't go on without a reset.
    ///
    /// # Errors
    /// The eventfd's.
    pub fn needs_reset(&mut self) -> base::Result<()> {
        self.status |= STATUS_DEVICE_NEEDS_RESET;
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt.raise(INTERRUPT_CONFIG_CHANGE)
        } else {
            Ok(())
        }
    }

    fn offered(&self) -> u64 {
        (self.device.features() & !UNSUPPORTED_FEATURES) | FEATURE_VERSION_1
    }

    fn has(&self, bits: u32) -> bool {
        self.status & bits == bits
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            register::MAGIC_VALUE => register::MAGIC,
            register::VERSION => register::VERSION_2,
            register::DEVICE_ID => self.device.device_type(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => word(self.offered(), self.offered_select),
            register::QUEUE_SIZE_MAX => self
                .selected()
                .map_or(0, |(index, _)| u32::from(self.max(index))),
            register::QUEUE_READY => self
                .selected()
                .map_or(0, |(_, queue)| u32::from(queue.ready)),
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::STATUS => self.status,
            register::SHM_LEN_LOW => word(self.window().1, 0),
            register::SHM_LEN_HIGH => word(self.window().1, 1),
            register::SHM_BASE_LOW => word(self.window().0, 0),
            register::SHM_BASE_HIGH => word(self.window().0, 1),
            register::CONFIG_GENERATION => self.interrupt.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.offered_select = value,
            register::DRIVER_FEATURES_SEL => self.accepted_select = value,
            register::DRIVER_FEATURES => self.accept_word(value),
            register::QUEUE_SEL => self.queue_select = value,
            register::QUEUE_NOTIFY => self.notify(value),
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS if value == 0 => self.reset(),
            register::STATUS => self.advance(value),
            register::SHM_SEL => self.shm_select = value,
            _ => self.write_queue_register(offset, value),
        }
    }

    /// Returns base and length of the selected region: all ones if the device has none with this id.
    fn window(&self) -> (u64, u64) {
        let window = self.device.shared_memory(self.shm_select);
        window.map_or((u64::MAX, u64::MAX), |window| {
            (window.guest_address, window.len)
        })
    }

    fn max(&self, queue: u16) -> u16 {
        self.device
            .queue_sizes()
            .get(usize::from(queue))
            .copied()
            .unwrap_or(0)
    }

    fn selected(&self) -> Option<(u16, &QueueRegisters)> {
        let index = u16::try_from(self.queue_select).ok()?;
        self.queues
            .get(usize::from(index))
            .map(|queue| (index, queue))
    }

    fn accept_word(&mut self, value: u32) {
        if self.has(STATUS_FEATURES_OK) {
            return;
        }
        match self.accepted_select {
            select @ (0 | 1) => set_word(&mut self.accepted, select, value),
            _ => self.accepted_beyond |= value != 0,
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        // Before the features are settled there are no queues to set up; an active device has its queues.
        if !self.has(STATUS_FEATURES_OK) || self.active.is_some() {
            return;
        }
        let Some((index, queue)) = self.selected() else {
            return;
        };
        let mut queue = *queue;
        match offset {
            register::QUEUE_READY if value == 0 => queue.ready = false,
            register::QUEUE_READY => {
                queue.ready = value == 1 && queue.setup(index, self.max(index)).is_some()
            }
            _ if queue.ready => return,
            register::QUEUE_SIZE => queue.size = value,
            register::QUEUE_DESC_LOW => set_word(&mut queue.descriptors, 0, value),
            register::QUEUE_DESC_HIGH => set_word(&mut queue.descriptors, 1, value),
            register::QUEUE_DRIVER_LOW => set_word(&mut queue.driver_area, 0, value),
            register::QUEUE_DRIVER_HIGH => set_word(&mut queue.driver_area, 1, value),
            register::QUEUE_DEVICE_LOW => set_word(&mut queue.device_area, 0, value),
            register::QUEUE_DEVICE_HIGH => set_word(&mut queue.device_area, 1, value),
            _ => return,
        }
        self.queues[usize::from(index)] = queue;
    }

    fn notify(&mut self, value: u32) {
        let Ok(queue) = u16::try_from(value) else {
            return;
        };
        if self
            .active
            .as_ref()
            .is_some_and(|queues| queues.contains(&queue))
        {
            self.device.notify(queue);
        }
    }

    /// Sets status bits that the driver may set now.
    fn advance(&mut self, value: u32) {
        let value = value & !STATUS_DEVICE_NEEDS_RESET;
        let taken_back = self.status & !value & !STATUS_DEVICE_NEEDS_RESET;
        if taken_back != 0 {
            return;
        }
        let mut wanted = value & !self.status;
        if wanted & STATUS_FEATURES_OK != 0 && !self.settle_features() {
            wanted &= !(STATUS_FEATURES_OK | STATUS_DRIVER_OK);
        }
        let activate = wanted & STATUS_DRIVER_OK != 0;
        if activate && (self.status | wanted) & STATUS_FEATURES_OK == 0 {
            wanted &= !STATUS_DRIVER_OK;
        }
        self.status |= wanted;
        if wanted & STATUS_DRIVER_OK != 0 {
            self.activate();
        }
    }

    /// Tells whether the features that the driver accepted can be worked with.
    fn settle_features(&mut self) -> bool {
        !self.accepted_beyond
            && self.accepted & !self.offered() == 0
            && self.accepted & FEATURE_VERSION_1 != 0
            && self.device.accepts(self.accepted)
    }

    fn activate(&mut self) {
        let queues: Vec<QueueSetup> = (0..)
            .zip(&self.queues)
            .filter(|(_, queue)| queue.ready)
            .filter_map(|(index, queue)| queue.setup(index, self.max(index)))
            .collect();
        let indices = queues.iter().map(|queue| queue.index).collect();
        match self.device.activate(Activation {
            features: self.accepted,
            queues,
        }) {
            Ok(()) => self.active = Some(indices),
            Err(error) => {
                tracing::warn!(
                    "virtio-mmio device of type {}: {error}",
                    self.device.device_type()
                );
                self.device.reset();
                if let Err(error) = self.needs_reset() {
                    tracing::error!("an interrupt's eventfd: {error}");
                }
            }
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        self.active = None;
        self.status = 0;
        (self.accepted, self.accepted_beyond) = (0, false);
        (self.offered_select, self.accepted_select) = (0, 0);
        (self.queue_select, self.shm_select) = (0, 0);
        self.queues.fill(QueueRegisters::default());
        self.interrupt.acknowledge(u32::MAX);
    }
}

impl<D: VirtioDevice> BusDevice for VirtioMmio<D> {
    fn read(&mut self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.device.read_config(offset, out);
        } else if let (Ok(out), true) = (<&mut [u8; 4]>::try_from(out), offset.is_multiple_of(4)) {
            *out = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(offset) = offset.checked_sub(register::CONFIG) {
            self.device.write_config(offset, bytes);
        } else if let (Ok(bytes), true) = (<[u8; 4]>::try_from(bytes), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(bytes));
        }
    }
}

/// Returns the low (0) or the high (1) half of a number, and 0 for any other selection.
fn word(value: u64, select: u32) -> u32 {
    let bytes = value.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        1 => u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        _ => 0,
    }
}

/// Replaces the low (0) or the high (1) half of a number.
fn set_word(number: &mut u64, select: u32, value: u32) {
    let shift = 32 * select;
    *number = (*number & !(u64::from(u32::MAX) << shift)) | (u64::from(value) << shift);
}
