//! Offsets and bits of virtio-mmio.
//!
//! Specification: virtio 1.3, section 4.2.2 "MMIO Device Register Layout", 2.1 "Device Status Field" and 6
//! "Reserved Feature Bits".

/// `virt`, little endian. Read.
pub const MAGIC_VALUE: u64 = 0x000;
/// 2. Read.
pub const VERSION: u64 = 0x004;
/// The device's type, 0 for none. Read.
pub const DEVICE_ID: u64 = 0x008;
/// Read.
pub const VENDOR_ID: u64 = 0x00c;
/// The word of the offered features that [`DEVICE_FEATURES_SEL`] selects. Read.
pub const DEVICE_FEATURES: u64 = 0x010;
/// Write.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// The word of the accepted features that [`DRIVER_FEATURES_SEL`] selects. Write.
pub const DRIVER_FEATURES: u64 = 0x020;
/// Write.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Which queue the queue registers mean. Write.
pub const QUEUE_SEL: u64 = 0x030;
/// The most entries of the queue, 0 if there is none. Read.
#[doc(alias = "QueueNumMax")]
pub const QUEUE_SIZE_MAX: u64 = 0x034;
/// Write.
#[doc(alias = "QueueNum")]
pub const QUEUE_SIZE: u64 = 0x038;
/// Read and write.
pub const QUEUE_READY: u64 = 0x044;
/// The index of a queue with new buffers. Write.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// [`INTERRUPT_USED_BUFFER`] and [`INTERRUPT_CONFIG_CHANGE`]. Read.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Write.
pub const INTERRUPT_ACK: u64 = 0x064;
/// Read and write; 0 resets.
pub const STATUS: u64 = 0x070;
/// Write.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// Write.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// The available ring. Write.
#[doc(alias = "QueueAvailLow")]
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// Write.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// The used ring. Write.
#[doc(alias = "QueueUsedLow")]
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// Write.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Which shared memory region the following four mean. Write.
pub const SHM_SEL: u64 = 0x0ac;
/// All ones, as the other three, if there is no such region. Read.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// Read.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// Read.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// Read.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Read and write; always 0 here, since [`FEATURE_RING_RESET`] is not offered.
pub const QUEUE_RESET: u64 = 0x0c0;
/// Read.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// The device's own configuration starts here. Read and write, of any width.
pub const CONFIG: u64 = 0x100;

/// The content of [`MAGIC_VALUE`].
pub const MAGIC: u32 = 0x7472_6976;
/// The content of [`VERSION`].
pub const VERSION_2: u32 = 2;

/// The device used a buffer.
pub const INTERRUPT_USED_BUFFER: u32 = 1;
/// The device's configuration changed, or it needs a reset.
pub const INTERRUPT_CONFIG_CHANGE: u32 = 2;

/// The driver has noticed the device.
pub const STATUS_ACKNOWLEDGE: u32 = 1;
/// The driver knows how to drive the device.
pub const STATUS_DRIVER: u32 = 2;
/// The driver is ready, the device is live.
pub const STATUS_DRIVER_OK: u32 = 4;
/// The features are settled.
pub const STATUS_FEATURES_OK: u32 = 8;
/// The device can't go on.
pub const STATUS_DEVICE_NEEDS_RESET: u32 = 64;
/// The driver has given up.
pub const STATUS_FAILED: u32 = 128;

/// The device follows version 1 of the specification. Always offered, and never optional.
pub const FEATURE_VERSION_1: u64 = 1 << 32;
/// Packed rings.
pub const FEATURE_RING_PACKED: u64 = 1 << 34;
/// Notifications carry more than the queue's index.
pub const FEATURE_NOTIFICATION_DATA: u64 = 1 << 38;
/// Queues can be reset one by one.
pub const FEATURE_RING_RESET: u64 = 1 << 40;
