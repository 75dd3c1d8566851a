//! The frontend's side of the main channel, on rust-vmm's `vhost` crate.
//!
//! Everything here blocks on the backend, for as long as the backend likes. That is why only the device process's
//! main thread may use it, and why nothing that has to go on (the request channel, the kill event) depends on that
//! thread. A backend that never answers is the VMM's to judge, by the deadline of its control call.
//!
//! The order of set-up is ours: the backend is asked for its shared memory regions *before* it gets the request
//! channel, so that the VMM has registered them when the first request arrives.
//!
//! Addresses handed to the backend are guest addresses throughout: the "user" addresses of the memory table are only a
//! common language for table and rings, and the VMM's own addresses are none of the backend's business.

mod features;
mod raw;

use std::io;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use remain::sorted;
use thiserror::Error;
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::VringConfigData;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

pub use self::features::BACKEND_REQ;
pub use self::features::BACKEND_SEND_FD;
pub use self::features::CONFIG;
use self::features::CROSVM_SHARED_MEMORY_REGIONS;
pub use self::features::MQ;
pub use self::features::REPLY_ACK;
pub use self::features::RESET_DEVICE;
pub use self::features::SHMEM;
pub use self::features::STATUS;
pub use self::features::SUPPORTED;
pub use self::features::VHOST_USER_F_PROTOCOL_FEATURES;
pub use self::features::VIRTIO_F_ACCESS_PLATFORM;
pub use self::features::VIRTIO_F_RING_PACKED;
use self::features::choose_protocol;
use self::features::offer_virtio;
use self::raw::RawChannel;
pub use self::raw::RawError;
use crate::control::Activation;
use crate::control::BackendInfo;
use crate::control::ConnectOptions;
use crate::control::MAX_CONFIG_BYTES;
use crate::control::MAX_MEMORY_REGIONS;
use crate::control::MAX_QUEUES;
use crate::control::QueueSetup;
use crate::control::RegionSource;
use crate::control::VringBase;
use crate::exit::Exit;
use crate::shmem_config;
use crate::shmem_config::MAX_REGIONS;
use crate::shmem_config::ShmemConfigError;
use crate::shmem_config::ShmemRegion;

// Codes of the main channel that `vhost` has no call for, or none that fits.
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_STATUS: u32 = 39;
const GET_SHMEM_CONFIG: u32 = 44;
const GET_SHARED_MEMORY_REGIONS: u32 = 1004;

/// SET_VRING_CALL: there is no descriptor, the driver polls.
const VRING_NO_DESCRIPTOR: u64 = 1 << 8;

// Device status bits of the virtio specification, 2.1.
const STATUS_ACKNOWLEDGE: u64 = 1;
const STATUS_DRIVER: u64 = 2;
const STATUS_DRIVER_OK: u64 = 4;
const STATUS_FEATURES_OK: u64 = 8;

/// Length of one entry in the answer to GET_SHARED_MEMORY_REGIONS.
const LEGACY_REGION_BYTES: usize = 16;

/// Why something on the main channel failed.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The backend is set up already.
    #[error("the main channel is set up already")]
    AlreadyConnected,
    /// A range of configuration space is empty, too long or overflows.
    #[error(
        "configuration space: {len} bytes at {offset:#x} are not within the first {MAX_CONFIG_BYTES} bytes"
    )]
    ConfigBounds {
        /// The first byte.
        offset: u32,
        /// How many.
        len: u64,
    },
    /// The driver acknowledged features that it was not offered.
    #[error("the driver acknowledges features {extra:#x} that it was not offered")]
    Features {
        /// Those bits.
        extra: u64,
    },
    /// The answer to crosvm's query for regions is not a count and that many regions.
    #[error("the list of shared memory regions has {bytes} bytes for {count} regions")]
    LegacyList {
        /// The count in it.
        count: u64,
        /// The length of what follows the count.
        bytes: usize,
    },
    /// There are more memory regions than the protocol can carry, or none where queues need some.
    #[error(
        "{count} memory regions for {queues} queues: 1 to {MAX_MEMORY_REGIONS} can be handed over"
    )]
    MemoryRegions {
        /// How many there are.
        count: usize,
        /// How many queues there are.
        queues: usize,
    },
    /// A feature of the protocol that the call needs was not negotiated.
    #[error("protocol feature {feature} was not negotiated with the backend")]
    NotNegotiated {
        /// Its name.
        feature: &'static str,
    },
    /// The queues of an activation can't be.
    #[error("queue {index} of size {size}: {reason}")]
    Queue {
        /// The queue's index.
        index: u16,
        /// Its size.
        size: u16,
        /// What is wrong.
        reason: &'static str,
    },
    /// A request that is not the `vhost` crate's failed.
    #[error(transparent)]
    Raw(#[from] RawError),
    /// The backend's list of regions was refused.
    #[error(transparent)]
    ShmemConfig(#[from] ShmemConfigError),
    /// The main channel's socket could not be duplicated.
    #[error("cannot duplicate the main channel")]
    Socket(#[source] io::Error),
    /// A request of the `vhost` crate failed.
    #[error("{request} failed")]
    Vhost {
        /// The request's name.
        request: &'static str,
        /// How.
        source: vhost::Error,
    },
}

impl Error {
    /// Returns how the process has to end, if the main channel can't be used after this error.
    pub fn fatal(&self) -> Option<Exit> {
        use vhost::vhost_user::Error as Wire;
        match self {
            Self::Raw(RawError::Closed { .. } | RawError::Socket { .. }) => Some(Exit::BackendGone),
            Self::Raw(RawError::NotTheReply { .. } | RawError::ReplySize { .. }) => {
                Some(Exit::BackendProtocol)
            }
            Self::Vhost {
                source: vhost::Error::VhostUserProtocol(wire),
                ..
            } => match wire {
                // The client reports an end of file within a reply, or in place of one, as a partial message.
                Wire::Disconnected
                | Wire::PartialMessage
                | Wire::SocketBroken(_)
                | Wire::SocketError(_) => Some(Exit::BackendGone),
                Wire::InvalidMessage | Wire::OversizedMsg | Wire::IncorrectFds => {
                    Some(Exit::BackendProtocol)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// The main channel of one backend.
pub struct VhostUserFrontend {
    client: Frontend,
    raw: RawChannel,
    connected: bool,
    /// Protocol features that were acknowledged.
    protocol: u64,
    /// Virtio features that the driver is offered, the transport's own not included.
    offered: u64,
    backend_features: u64,
    /// Queues that are running.
    active: Vec<u16>,
}

impl VhostUserFrontend {
    /// Takes over the connected socket of the main channel. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Socket`] if the descriptor table is full.
    pub fn new(socket: UnixStream) -> Result<Self, Error> {
        let raw = RawChannel::new(socket.try_clone().map_err(Error::Socket)?);
        Ok(Self {
            client: Frontend::from_stream(socket, MAX_QUEUES as u64),
            raw,
            connected: false,
            protocol: 0,
            offered: 0,
            backend_features: 0,
            active: Vec::new(),
        })
    }

    /// Returns the protocol features that were negotiated.
    pub fn protocol_features(&self) -> u64 {
        self.protocol
    }

    /// Returns the virtio features that are in force on the request channel: those of the transport.
    pub fn transport_features(&self) -> u64 {
        self.backend_features & VHOST_USER_F_PROTOCOL_FEATURES
    }

    /// Becomes the backend's owner, negotiates features and asks for the shared memory regions.
    ///
    /// # Errors
    /// Anything that the backend does wrong; the main channel is of no use then.
    pub fn connect(&mut self, options: &ConnectOptions) -> Result<BackendInfo, Error> {
        if self.connected {
            return Err(Error::AlreadyConnected);
        }
        self.client.set_owner().map_err(in_request("SET_OWNER"))?;
        self.backend_features = self
            .client
            .get_features()
            .map_err(in_request("GET_FEATURES"))?;
        self.offered = offer_virtio(self.backend_features, options);
        let mut legacy = None;
        if self.backend_features & VHOST_USER_F_PROTOCOL_FEATURES != 0 {
            legacy = self.negotiate_protocol(options)?;
        }
        let queues = self.query_queues()?;
        let regions = self.query_regions(options, legacy)?;
        self.connected = true;
        Ok(BackendInfo {
            virtio_features: self.offered,
            protocol_features: self.protocol,
            regions,
            queues,
            has_channel: self.has(BACKEND_REQ),
            legacy_shmem: legacy.is_some(),
        })
    }

    /// Gives the backend its end of the request channel. May be called again with another one.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`] if the backend takes none; [`Error::Vhost`].
    pub fn open_request_channel(&mut self, socket: impl AsFd) -> Result<(), Error> {
        if !self.has(BACKEND_REQ) {
            return Err(Error::NotNegotiated {
                feature: "BACKEND_REQ",
            });
        }
        let raw = socket.as_fd().as_raw_fd();
        self.command("SET_BACKEND_REQ_FD", |client| {
            client.set_backend_request_fd(&raw)
        })
    }

    /// Reads `len` bytes of configuration space.
    ///
    /// # Errors
    /// [`Error::ConfigBounds`], [`Error::NotNegotiated`]; [`Error::Vhost`] if the backend refuses.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        self.check_config(offset, u64::from(len))?;
        let len_in_memory = usize::try_from(len).expect("bounded by a page");
        let (_, bytes) = self
            .client
            .get_config(
                offset,
                len,
                VhostUserConfigFlags::empty(),
                &vec![0; len_in_memory],
            )
            .map_err(in_request("GET_CONFIG"))?;
        Ok(bytes)
    }

    /// Writes configuration space, as the driver does.
    ///
    /// # Errors
    /// [`Error::ConfigBounds`], [`Error::NotNegotiated`]; [`Error::Vhost`] if the backend refuses.
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.check_config(offset, bytes.len() as u64)?;
        self.command("SET_CONFIG", |client| {
            client.set_config(offset, VhostUserConfigFlags::empty(), bytes)
        })
    }

    /// Hands the driver's features, guest memory and the queues to the backend and starts them.
    ///
    /// With neither queues nor memory nothing is sent. If it fails half way, the queues that ran are stopped.
    ///
    /// # Errors
    /// [`Error::Features`], [`Error::MemoryRegions`] or [`Error::Queue`] before anything is sent; [`Error::Vhost`] and
    /// [`Error::Raw`] if the backend refuses.
    pub fn activate(&mut self, activation: &Activation) -> Result<(), Error> {
        self.check_activation(activation)?;
        if activation.queues.is_empty() && activation.memory.is_empty() {
            return Ok(());
        }
        let features = activation.features | self.transport_features();
        self.command("SET_FEATURES", |client| client.set_features(features))?;
        self.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK)?;
        self.set_memory(activation)?;
        for queue in &activation.queues {
            if let Err(error) = self.start_queue(queue) {
                if error.fatal().is_none() {
                    self.deactivate()?;
                }
                return Err(error);
            }
        }
        self.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK)
    }

    /// Stops the queues and returns where each of them stands.
    ///
    /// # Errors
    /// [`Error::Vhost`]; the queues before the failing one are stopped.
    pub fn deactivate(&mut self) -> Result<Vec<VringBase>, Error> {
        let mut bases = Vec::with_capacity(self.active.len());
        while let Some(&index) = self.active.first() {
            self.stop_queue(index, &mut bases)?;
            self.active.remove(0);
        }
        Ok(bases)
    }

    /// Puts the backend into its initial state, by the best means that were negotiated.
    ///
    /// # Errors
    /// [`Error::Vhost`], [`Error::Raw`] if the backend refuses.
    pub fn reset(&mut self) -> Result<(), Error> {
        if self.has(RESET_DEVICE) {
            self.command("RESET_DEVICE", Frontend::reset_device)?;
            self.active.clear();
            return self.set_status(0);
        }
        self.deactivate()?;
        self.set_status(0)
    }

    fn negotiate_protocol(&mut self, options: &ConnectOptions) -> Result<Option<u8>, Error> {
        // `vhost` drops the bits that it does not know, and the legacy one is among them.
        let offered = u64::from_ne_bytes(self.raw.query(GET_PROTOCOL_FEATURES)?);
        let choice = choose_protocol(offered, options);
        self.client
            .set_protocol_features(VhostUserProtocolFeatures::from_bits_retain(choice.bits))
            .map_err(in_request("SET_PROTOCOL_FEATURES"))?;
        self.protocol = choice.bits;
        Ok(choice.legacy_shmem)
    }

    fn query_queues(&mut self) -> Result<Option<u16>, Error> {
        if !self.has(MQ) {
            return Ok(None);
        }
        let count = self
            .client
            .get_queue_num()
            .map_err(in_request("GET_QUEUE_NUM"))?;
        Ok(Some(u16::try_from(count).unwrap_or(u16::MAX)))
    }

    fn query_regions(
        &mut self,
        options: &ConnectOptions,
        legacy: Option<u8>,
    ) -> Result<Vec<ShmemRegion>, Error> {
        let page = base::page_size() as u64;
        let limits = &options.shmem_limits;
        match (&options.regions, legacy) {
            (RegionSource::Given(regions), _) => {
                Ok(shmem_config::from_list(regions.clone(), page, limits)?)
            }
            (RegionSource::Backend, Some(CROSVM_SHARED_MEMORY_REGIONS)) => {
                Ok(shmem_config::from_list(self.legacy_list()?, page, limits)?)
            }
            (RegionSource::Backend, Some(_)) => {
                let (count, sizes) = split_table(&self.raw.query(GET_SHMEM_CONFIG)?);
                Ok(shmem_config::from_table(count, &sizes, page, limits)?)
            }
            (RegionSource::Backend, None) if self.has(SHMEM) => {
                let config = self
                    .client
                    .get_shmem_config()
                    .map_err(in_request("GET_SHMEM_CONFIG"))?;
                Ok(shmem_config::from_table(
                    config.nregions,
                    &config.memory_sizes,
                    page,
                    limits,
                )?)
            }
            (RegionSource::Backend, None) => Ok(Vec::new()),
        }
    }

    fn legacy_list(&self) -> Result<Vec<ShmemRegion>, Error> {
        let cap = 8 + MAX_REGIONS * LEGACY_REGION_BYTES;
        let cap = u32::try_from(cap).expect("a constant");
        let answer = self.raw.query_up_to(GET_SHARED_MEMORY_REGIONS, cap)?;
        parse_legacy_list(&answer)
    }

    fn set_memory(&mut self, activation: &Activation) -> Result<(), Error> {
        let regions: Vec<_> = activation
            .memory
            .iter()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.guest_address,
                memory_size: region.len,
                userspace_addr: region.guest_address,
                mmap_offset: region.offset,
                mmap_handle: region.descriptor.as_fd().as_raw_fd(),
            })
            .collect();
        self.command("SET_MEM_TABLE", |client| {
            client.set_mem_table(&regions).map(drop)
        })
    }

    fn start_queue(&mut self, queue: &QueueSetup) -> Result<(), Error> {
        let index = usize::from(queue.index);
        let rings = VringConfigData {
            queue_max_size: queue.size,
            queue_size: queue.size,
            flags: 0,
            desc_table_addr: queue.descriptor_table,
            used_ring_addr: queue.used_ring,
            avail_ring_addr: queue.available_ring,
            log_addr: None,
        };
        self.command("SET_VRING_NUM", |c| c.set_vring_num(index, queue.size))?;
        self.command("SET_VRING_ADDR", |c| c.set_vring_addr(index, &rings))?;
        self.command("SET_VRING_BASE", |c| c.set_vring_base(index, queue.base))?;
        let acked = self.has(REPLY_ACK);
        let call = queue.call.as_ref().map(AsFd::as_fd);
        let no_call = if call.is_none() {
            VRING_NO_DESCRIPTOR
        } else {
            0
        };
        let payload = u64::from(queue.index) | no_call;
        self.raw
            .command(SET_VRING_CALL, &payload.to_ne_bytes(), call, acked)?;
        // A backend starts the ring when it gets the kick, so it has to be stopped from here on.
        self.active.push(queue.index);
        self.raw.command(
            SET_VRING_KICK,
            &u64::from(queue.index).to_ne_bytes(),
            Some(queue.kick.as_fd()),
            acked,
        )?;
        if self.transport_features() != 0 {
            self.command("SET_VRING_ENABLE", |c| c.set_vring_enable(index, true))?;
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16, bases: &mut Vec<VringBase>) -> Result<(), Error> {
        let queue = usize::from(index);
        if self.transport_features() != 0 {
            let disabled = self.command("SET_VRING_ENABLE", |c| c.set_vring_enable(queue, false));
            // What stops a ring for good is GET_VRING_BASE: a refusal here does not keep it running.
            if let Err(error) = disabled
                && error.fatal().is_some()
            {
                return Err(error);
            }
        }
        let base = self
            .client
            .get_vring_base(queue)
            .map_err(in_request("GET_VRING_BASE"))?;
        bases.push(VringBase { index, base });
        Ok(())
    }

    fn set_status(&mut self, status: u64) -> Result<(), Error> {
        if self.has(STATUS) {
            let acked = self.has(REPLY_ACK);
            self.raw
                .command(SET_STATUS, &status.to_ne_bytes(), None, acked)?;
        }
        Ok(())
    }

    /// Makes a request that has no answer of its own, with an ack where that was negotiated.
    fn command(
        &mut self,
        request: &'static str,
        call: impl FnOnce(&mut Frontend) -> vhost::Result<()>,
    ) -> Result<(), Error> {
        if self.has(REPLY_ACK) {
            self.client.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let result = call(&mut self.client);
        // Requests with an answer of their own must not ask for an ack as well.
        self.client.set_hdr_flags(VhostUserHeaderFlag::empty());
        result.map_err(in_request(request))
    }

    fn check_config(&self, offset: u32, len: u64) -> Result<(), Error> {
        if !self.has(CONFIG) {
            return Err(Error::NotNegotiated { feature: "CONFIG" });
        }
        if len == 0 || u64::from(offset) + len > u64::from(MAX_CONFIG_BYTES) {
            return Err(Error::ConfigBounds { offset, len });
        }
        Ok(())
    }

    fn check_activation(&self, activation: &Activation) -> Result<(), Error> {
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
            let reason = if usize::from(queue.index) >= MAX_QUEUES {
                "the index is out of range"
            } else if !queue.size.is_power_of_two() {
                "the size is not a power of two"
            } else if self.active.contains(&queue.index) {
                "it is running already"
            } else if earlier.iter().any(|other| other.index == queue.index) {
                "it is set up twice"
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

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }
}

fn in_request(request: &'static str) -> impl FnOnce(vhost::Error) -> Error {
    move |source| Error::Vhost { request, source }
}

/// Splits the answer to GET_SHMEM_CONFIG: a count, four bytes of padding, 256 sizes.
fn split_table(answer: &[u8; 8 + 8 * MAX_REGIONS]) -> (u32, [u64; MAX_REGIONS]) {
    let (head, table) = answer.split_at(8);
    let mut count = [0; 4];
    count.copy_from_slice(&head[..4]);
    let mut sizes = [0; MAX_REGIONS];
    for (size, bytes) in sizes.iter_mut().zip(table.as_chunks::<8>().0) {
        *size = u64::from_ne_bytes(*bytes);
    }
    (u32::from_ne_bytes(count), sizes)
}

fn parse_legacy_list(answer: &[u8]) -> Result<Vec<ShmemRegion>, Error> {
    let Some((count, list)) = answer.split_first_chunk::<8>() else {
        return Err(Error::LegacyList { count: 0, bytes: 0 });
    };
    let count = u64::from_ne_bytes(*count);
    let (entries, rest) = list.as_chunks::<LEGACY_REGION_BYTES>();
    if !rest.is_empty() || entries.len() as u64 != count {
        return Err(Error::LegacyList {
            count,
            bytes: list.len(),
        });
    }
    Ok(entries
        .iter()
        .map(|entry| {
            let (head, len) = entry.split_at(8);
            let mut bytes = [0; 8];
            bytes.copy_from_slice(len);
            ShmemRegion {
                shmid: head[0],
                len: u64::from_ne_bytes(bytes),
            }
        })
        .collect())
}

#[cfg(test)]
mod tests;
