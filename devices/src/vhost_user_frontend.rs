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

mod activation;
mod error;
mod features;
mod raw;
mod regions;

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use base::SafeDescriptor;
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::VringConfigData;
use vhost::vhost_user::Frontend;
use vhost::vhost_user::VhostUserFrontend as _;
use vhost::vhost_user::message::VhostTransferStateDirection;
use vhost::vhost_user::message::VhostTransferStatePhase;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

pub use self::error::Error;
pub use self::features::BACKEND_REQ;
pub use self::features::BACKEND_SEND_FD;
pub use self::features::CONFIG;
pub use self::features::DEVICE_STATE;
pub use self::features::HOST_NOTIFIER;
pub use self::features::INBAND_NOTIFICATIONS;
pub use self::features::MQ;
pub use self::features::REPLY_ACK;
pub use self::features::RESET_DEVICE;
pub use self::features::SHARED_OBJECT;
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
use crate::control::MAX_QUEUES;
use crate::control::ObjectId;
use crate::control::QueueSetup;
use crate::control::TransferDirection;
use crate::control::VringBase;
use crate::iotlb;
use crate::iotlb::IOTLB_MSG;
use crate::worker::Call;

// Codes of the main channel that `vhost` has no call for, or none that fits.
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_CONFIG: u32 = 24;
const SET_STATUS: u32 = 39;
const GET_SHARED_OBJECT: u32 = 41;

/// SET_VRING_CALL: there is no descriptor, the driver polls.
const VRING_NO_DESCRIPTOR: u64 = 1 << 8;

// Device status bits of the virtio specification, 2.1.
const STATUS_ACKNOWLEDGE: u64 = 1;
const STATUS_DRIVER: u64 = 2;
const STATUS_DRIVER_OK: u64 = 4;
const STATUS_FEATURES_OK: u64 = 8;

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
    /// Virtio features that the driver acknowledged.
    acked: u64,
    /// How many queues there can be.
    queue_limit: u16,
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
            client: Frontend::from_stream(socket, u64::from(MAX_QUEUES)),
            raw,
            connected: false,
            protocol: 0,
            offered: 0,
            backend_features: 0,
            acked: 0,
            queue_limit: MAX_QUEUES,
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
        let regions = self.regions(options, legacy)?;
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
        self.check_takes_channel()?;
        let raw = socket.as_fd().as_raw_fd();
        self.command("SET_BACKEND_REQ_FD", |client| {
            client.set_backend_request_fd(&raw)
        })
    }

    /// Fails if the backend takes no request channel.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`].
    pub fn check_takes_channel(&self) -> Result<(), Error> {
        if self.has(BACKEND_REQ) {
            return Ok(());
        }
        Err(Error::NotNegotiated {
            feature: "BACKEND_REQ",
        })
    }

    /// Reads `len` bytes of configuration space.
    ///
    /// # Errors
    /// [`Error::ConfigBounds`], [`Error::NotNegotiated`]; [`Error::Raw`] if the backend refuses.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        self.check_config(offset, u64::from(len))?;
        // A backend that can't answers without a payload, for which `vhost` would wait for ever.
        let head = [offset, len, 0].map(u32::to_ne_bytes);
        let head = head.as_flattened();
        let len = usize::try_from(len).expect("bounded by a page");
        let mut payload = vec![0; head.len() + len];
        payload[..head.len()].copy_from_slice(head);
        let answer = self.raw.query_like(GET_CONFIG, &payload)?;
        let (answered, bytes) = answer.split_at(head.len());
        // Offset and size; the flags mean nothing here.
        if answered[..8] != head[..8] {
            return Err(Error::ConfigAnswer { offset, len });
        }
        Ok(bytes.to_vec())
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
    /// The eventfds of the queues' calls are in `calls`, not in `activation`. With neither queues nor memory nothing is sent. If it fails half way, the queues that ran are stopped.
    ///
    /// # Errors
    /// [`Error::Features`], [`Error::MemoryRegions`] or [`Error::Queue`] before anything is sent; [`Error::Vhost`] and
    /// [`Error::Raw`] if the backend refuses.
    pub(crate) fn activate(
        &mut self,
        activation: &Activation,
        calls: &[Call],
    ) -> Result<(), Error> {
        self.check_activation(activation)?;
        if activation.queues.is_empty() && activation.memory.is_empty() {
            return Ok(());
        }
        let features = activation.features | self.transport_features();
        self.command("SET_FEATURES", |client| client.set_features(features))?;
        self.acked = features;
        self.set_status(STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK)?;
        self.set_memory(activation)?;
        for queue in &activation.queues {
            if let Err(error) = self.start_queue(queue, calls) {
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
            self.acked = 0;
            return self.set_status(0);
        }
        self.deactivate()?;
        self.acked = 0;
        self.set_status(0)
    }

    /// Takes `size` bytes at `iova` out of the backend's IOTLB.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`] if the driver's addresses are not translated; [`Error::Raw`].
    pub fn invalidate_iotlb(&mut self, iova: u64, size: u64) -> Result<(), Error> {
        if self.acked & VIRTIO_F_ACCESS_PLATFORM == 0 {
            return Err(Error::NotNegotiated {
                feature: "VIRTIO_F_ACCESS_PLATFORM",
            });
        }
        let payload = iotlb::invalidation(iova, size);
        let acked = self.has(REPLY_ACK);
        Ok(self.raw.command(IOTLB_MSG, &payload, None, acked)?)
    }

    /// Asks the backend for an object that it shares.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`], [`Error::Raw`].
    pub fn shared_object(&mut self, id: ObjectId) -> Result<Option<SafeDescriptor>, Error> {
        if !self.has(SHARED_OBJECT) {
            return Err(Error::NotNegotiated {
                feature: "SHARED_OBJECT",
            });
        }
        Ok(self.raw.query_descriptor(GET_SHARED_OBJECT, &id.0)?)
    }

    /// Begins to move the backend's own state through `pipe`, or through the descriptor that is returned instead.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`]; [`Error::Vhost`] if the backend can't.
    pub fn begin_transfer(
        &mut self,
        direction: TransferDirection,
        pipe: OwnedFd,
    ) -> Result<Option<OwnedFd>, Error> {
        self.check_device_state_feature()?;
        let direction = match direction {
            TransferDirection::Save => VhostTransferStateDirection::SAVE,
            TransferDirection::Load => VhostTransferStateDirection::LOAD,
        };
        let phase = VhostTransferStatePhase::STOPPED;
        let file = self
            .client
            .set_device_state_fd(direction, phase, pipe)
            .map_err(in_request("SET_DEVICE_STATE_FD"))?;
        Ok(file.map(OwnedFd::from))
    }

    /// Asks the backend whether the last move of its state went well.
    ///
    /// # Errors
    /// [`Error::NotNegotiated`]; [`Error::Vhost`] if it did not.
    pub fn end_transfer(&mut self) -> Result<(), Error> {
        self.check_device_state_feature()?;
        self.client
            .check_device_state()
            .map_err(in_request("CHECK_DEVICE_STATE"))
    }

    fn check_device_state_feature(&self) -> Result<(), Error> {
        if self.has(DEVICE_STATE) {
            return Ok(());
        }
        Err(Error::NotNegotiated {
            feature: "DEVICE_STATE",
        })
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
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        self.queue_limit = count.min(MAX_QUEUES);
        Ok(Some(count))
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

    fn start_queue(&mut self, queue: &QueueSetup, calls: &[Call]) -> Result<(), Error> {
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
        // A backend that calls by message must not have the eventfd: it could fill it, and the worker would wait.
        let call = if self.has(INBAND_NOTIFICATIONS) {
            None
        } else {
            calls.iter().find(|(of, _)| *of == queue.index)
        };
        let call = call.map(|(_, call)| call.as_fd());
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

    fn has(&self, feature: u64) -> bool {
        self.protocol & feature != 0
    }
}

fn in_request(request: &'static str) -> impl FnOnce(vhost::Error) -> Error {
    move |source| Error::Vhost { request, source }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
