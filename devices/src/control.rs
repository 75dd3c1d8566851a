//! What the VMM and a device process say to each other, beside memory: the control tube and the event tube.
//!
//! The control tube carries one request at a time from the VMM, and its answer. The event tube carries what nobody
//! asked for, from the device process only; it never blocks its sender, and it may leave out what a later event makes
//! up for. Both are plain data: the VMM trusts no answer beyond its shape, since a device process may have been taken
//! over by its backend.

use base::Protection;
use base::SafeDescriptor;
use serde::Deserialize;
use serde::Serialize;
use vm_control::Generation;
use vmm_vhost::deviation::Deviation;

use crate::shmem_config::ShmemLimits;
use crate::shmem_config::ShmemRegion;

/// The longest piece of configuration space that one request reads or writes.
///
/// # Source
/// vhost-user specification: the device configuration space has at most 256 bytes; rust-vmm's `vhost` allows a page.
pub const MAX_CONFIG_BYTES: u32 = 4096;

/// The most memory regions that one activation hands to the backend.
///
/// # Source
/// vhost-user specification, SET_MEM_TABLE: "maximum of 8 memory regions".
pub const MAX_MEMORY_REGIONS: usize = 8;

/// The most queues of a device.
pub const MAX_QUEUES: u16 = 64;

/// Where the list of a device's shared memory regions comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegionSource {
    /// The backend is asked, if it has negotiated a way to be asked.
    #[default]
    Backend,
    /// The VMM knows, and the backend is not asked.
    Given(Vec<ShmemRegion>),
}

/// How the main channel is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectOptions {
    /// Where the shared memory regions come from.
    pub regions: RegionSource,
    /// What the regions must keep to, wherever they come from.
    pub shmem_limits: ShmemLimits,
    /// The protocol feature bit by which an old peer means shared memory regions; no bit is ever guessed.
    pub legacy_shmem_bit: Option<u8>,
    /// The virtio features that the VMM can bear; those of the transport are added.
    pub virtio_features: u64,
    /// The protocol features that the VMM wants, of those that this crate serves.
    pub protocol_features: u64,
    /// Whether the VMM translates addresses for the backend: answers its IOTLB misses as [`HookRequest`]s.
    pub iommu: bool,
    /// Whether the VMM keeps a table of shared objects: answers requests for them as [`HookRequest`]s.
    pub shared_objects: bool,
    /// The region of the mapping service in which the backend's doorbells appear, one page a queue, if the transport
    /// announces them. Its id must not be one of the backend's regions.
    pub notifier_region: Option<u8>,
    /// Whether what the backend does against the protocol is reported: [`DeviceEvent::Deviated`], [`Failure::deviation`].
    pub strict: bool,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            regions: RegionSource::default(),
            shmem_limits: ShmemLimits::default(),
            legacy_shmem_bit: None,
            virtio_features: u64::MAX,
            protocol_features: u64::MAX,
            iommu: false,
            shared_objects: false,
            notifier_region: None,
            strict: false,
        }
    }
}

/// What is known of a backend once the main channel is set up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendInfo {
    /// The virtio features on offer to the driver.
    pub virtio_features: u64,
    /// The protocol features that were negotiated.
    pub protocol_features: u64,
    /// The shared memory regions, checked, in the order of their ids.
    pub regions: Vec<ShmemRegion>,
    /// How many queues the device has, where the backend can say so.
    pub queues: Option<u16>,
    /// Whether the backend takes a request channel at all.
    pub has_channel: bool,
    /// Whether the legacy shared memory bit was acknowledged.
    pub legacy_shmem: bool,
}

/// A piece of guest memory that the backend may use.
#[derive(Debug, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// Where the guest sees it.
    pub guest_address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where it starts in the file.
    pub offset: u64,
    /// The file behind it.
    pub descriptor: SafeDescriptor,
}

/// One queue as the driver has set it up. The ring's addresses are guest addresses.
#[derive(Debug, Serialize, Deserialize)]
pub struct QueueSetup {
    /// The queue's index.
    pub index: u16,
    /// The number of its descriptors.
    pub size: u16,
    /// The descriptor table.
    pub descriptor_table: u64,
    /// The available ring, which the driver writes.
    pub available_ring: u64,
    /// The used ring, which the device writes.
    pub used_ring: u64,
    /// The index of the available ring at which the device starts.
    pub base: u16,
    /// The eventfd by which the backend says that it used a buffer; without one the driver polls.
    pub call: Option<SafeDescriptor>,
    /// The eventfd by which the driver says that it made a buffer available.
    pub kick: SafeDescriptor,
}

/// Everything that the backend needs once the driver is ready.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Activation {
    /// The virtio features that the driver acknowledged.
    pub features: u64,
    /// Guest memory. With no queues it may be empty.
    pub memory: Vec<MemoryRegion>,
    /// The queues that are to run.
    pub queues: Vec<QueueSetup>,
}

/// Where a stopped queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringBase {
    /// The queue's index.
    pub index: u16,
    /// The index in the available ring at which it would go on.
    pub base: u32,
}

/// Which way a backend's own state moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferDirection {
    /// Out of the backend.
    Save,
    /// Into the backend.
    Load,
}

/// The UUID of a shared object, its bytes as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId(pub [u8; 16]);

/// One entry of a backend's IOTLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IotlbEntry {
    /// The first I/O virtual address.
    pub iova: u64,
    /// How many bytes.
    pub size: u64,
    /// The guest address that it stands for.
    pub guest_address: u64,
    /// What the backend may do there.
    pub access: Protection,
}

/// What a backend asks that only the VMM as a whole can answer. Answers come in the order of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HookRequest {
    /// A translation is missing. To be answered with [`HookResponse::Translation`].
    IotlbMiss {
        /// The I/O virtual address.
        iova: u64,
        /// How many bytes, where the backend says so.
        size: u64,
        /// What the backend wants to do there.
        access: Protection,
    },
    /// The backend met an address that it may not access in this way.
    IotlbAccessFail {
        /// The I/O virtual address.
        iova: u64,
        /// How many bytes, where the backend says so.
        size: u64,
        /// What the backend wanted to do there.
        access: Protection,
    },
    /// The backend shares an object.
    ObjectAdd(ObjectId),
    /// The backend shares it no longer.
    ObjectRemove(ObjectId),
    /// The backend wants an object of another one. To be answered with [`HookResponse::Object`].
    ObjectLookup(ObjectId),
}

/// The answer to a [`HookRequest`].
#[derive(Debug, Serialize, Deserialize)]
pub enum HookResponse {
    /// Done.
    Done,
    /// Refused, with the errno for the backend.
    Refused(base::Error),
    /// The object that was looked for.
    Object(SafeDescriptor),
    /// The translation that was missing; the backend gets it before its request is answered.
    Translation(IotlbEntry),
}

/// One refused request of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRequest {
    /// The request's code on the wire.
    pub code: u32,
    /// What it was answered with, or would have been, had it asked for an answer.
    pub errno: base::Error,
    /// The region that it named; zero where it did not get as far.
    pub shmid: u8,
    /// The offset in the region.
    pub offset: u64,
    /// The length.
    pub len: u64,
}

/// Counters of a device's request channels since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Requests that were complete, well formed and welcome.
    pub requests: u64,
    /// Map requests that the service granted.
    pub maps: u64,
    /// Unmap requests that the service granted.
    pub unmaps: u64,
    /// Config changes that the backend announced.
    pub config_changes: u64,
    /// In-band notifications of used buffers.
    pub vring_calls: u64,
    /// Requests that the VMM answered: IOTLB and shared objects.
    pub hooks: u64,
    /// Requests that were refused, wherever.
    pub refused: u64,
    /// Messages that went to the service; each carries up to 32 requests.
    pub batches: u64,
    /// Requests that wait for the service's answer now.
    pub in_flight: u32,
    /// Request channels that were opened.
    pub channels: u32,
    /// Whether one is open now.
    pub channel_open: bool,
    /// The last request that was refused.
    pub last_refused: Option<RefusedRequest>,
}

/// What the VMM asks on the control tube.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Set up the main channel.
    Connect(ConnectOptions),
    /// Give the backend its request channel and serve it.
    Start,
    /// The driver is ready.
    Activate(Activation),
    /// Stop the queues.
    Deactivate,
    /// Read configuration space.
    ReadConfig {
        /// The first byte.
        offset: u32,
        /// How many.
        len: u32,
    },
    /// Write configuration space.
    WriteConfig {
        /// The first byte.
        offset: u32,
        /// What to write there.
        data: Vec<u8>,
    },
    /// Reset the backend. From here to `Resume` no request of the backend is granted.
    Reset,
    /// The service has dropped this device's mappings: serve again, in this generation.
    Resume {
        /// The generation that the service is in.
        generation: Generation,
    },
    /// Report the counters.
    Stats,
    /// Take a piece of the address space out of the backend's IOTLB.
    IotlbInvalidate {
        /// The first I/O virtual address.
        iova: u64,
        /// How many bytes.
        size: u64,
    },
    /// Ask the backend for an object that it shares.
    SharedObject(ObjectId),
    /// Begin to move the backend's own state.
    BeginTransfer {
        /// Which way.
        direction: TransferDirection,
        /// The end of a pipe that the backend gets.
        theirs: SafeDescriptor,
        /// The other end.
        ours: SafeDescriptor,
    },
    /// Take the next piece of the state that the backend saves. An empty piece is the end.
    ReadState,
    /// Pass on a piece of the state that the backend loads.
    WriteState(Vec<u8>),
    /// End the move and ask the backend whether it went well.
    EndTransfer,
    /// End.
    Shutdown,
}

/// A failure that the device process lived through.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What went wrong, causes included, on one line.
    pub message: String,
    /// The rule that the backend broke, if that is why, and if the VMM wants to know.
    pub deviation: Option<Deviation>,
}

/// The answer to a [`ControlRequest`].
///
/// A descriptor in it is a `D`: for the receiver, who does not trust the sender, it is the descriptor's place among those that came along.
#[derive(Debug, Serialize, Deserialize)]
pub enum ControlResponse<D = SafeDescriptor> {
    /// Done; there is nothing to tell.
    Done,
    /// The main channel is set up.
    Connected(BackendInfo),
    /// A piece of configuration space.
    Config(Vec<u8>),
    /// The queues are stopped.
    Stopped(Vec<VringBase>),
    /// The counters.
    Stats(WorkerStats),
    /// The object, if the backend has it.
    SharedObject(Option<D>),
    /// A piece of the backend's state.
    State(Vec<u8>),
    /// It could not be done; the process is as it was before.
    Failed(Failure),
}

/// Why a request channel is no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChannelClosed {
    /// The backend closed it.
    ByBackend,
    /// The backend sent a header that can't be trusted for framing.
    BrokenFraming {
        /// What was wrong with it.
        detail: String,
    },
    /// A system call on it failed.
    Failed {
        /// How.
        errno: base::Error,
    },
}

/// What a device process tells of its own accord.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceEvent {
    /// The device's configuration space has changed; the interrupt event was signalled.
    ConfigChanged,
    /// The backend met an error on a queue.
    VringError {
        /// The last queue of which it said so.
        index: u32,
    },
    /// A request of the backend was refused. Rate limited.
    RequestRefused {
        /// The last one.
        refused: RefusedRequest,
        /// How many before it were not reported.
        suppressed: u64,
    },
    /// The request channel is closed, and the device's mappings are gone or going.
    ChannelClosed {
        /// Why.
        reason: ChannelClosed,
    },
    /// The backend did something against the protocol. Only with [`ConnectOptions::strict`]; the first of a kind is told at
    /// once, more of it at a limited rate, and what is left when the worker ends.
    Deviated {
        /// The first of its kind, or the first since the last event of this kind.
        first: Deviation,
        /// How many of its kind there were since the last event of this kind, this one included.
        count: u64,
    },
}
