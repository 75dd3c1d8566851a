//! The main channel of a backend: one frontend is served until it goes, on the crate `vhost`'s backend side.
//!
//! That crate does the framing and the negotiation; what a device adds is behind [`Device`]. What the
//! frontend says of memory and rings goes to [`super::rings`] for a device that has queues, and is taken
//! and never looked at otherwise. Every call blocks on the frontend, which a backend trusts.
//!
//! The request channel is taken away from the crate: its own proxy makes one error of every refusal,
//! and these backends report the errno. [`serve`] looks at a waiting message with `MSG_PEEK`, which
//! duplicates its descriptors, before the crate reads it.

use std::fs::File;
use std::io;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;

use base::SafeDescriptor;
use remain::sorted;
use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::RecvAncillaryBuffer;
use rustix::net::RecvAncillaryMessage;
use rustix::net::RecvFlags;
use thiserror::Error;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::Backend;
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::Error as VhostError;
use vhost::vhost_user::GpuBackend;
use vhost::vhost_user::Result as VhostResult;
use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::VhostTransferStateDirection;
use vhost::vhost_user::message::VhostTransferStatePhase;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserShMemConfig;
use vhost::vhost_user::message::VhostUserSharedMsg;
use vhost::vhost_user::message::VhostUserSingleMemoryRegion;
use vhost::vhost_user::message::VhostUserVringAddrFlags;
use vhost::vhost_user::message::VhostUserVringState;

use super::channel::Channel;
use super::rings::RingAddresses;
use super::rings::RingDevice;
use super::rings::Rings;

/// The code of `SET_BACKEND_REQ_FD`.
const SET_BACKEND_REQ_FD: u32 = 21;

/// The virtio feature behind which the protocol features are.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;

/// The main channel broke; that the frontend closed it is no error.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The frontend sent what the crate does not take.
    #[error("main channel: {0}")]
    Frontend(VhostError),
    /// A call on the socket failed.
    #[error("main channel")]
    Socket(#[source] io::Error),
}

/// What a backend offers.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Virtio features; bit 30 is added.
    pub features: u64,
    /// Protocol features; `REPLY_ACK` is added.
    pub protocol_features: VhostUserProtocolFeatures,
    /// The shared memory regions: shmid and size in bytes.
    pub regions: Vec<(u8, u64)>,
    /// How many queues it says it has.
    pub queues: u16,
}

impl Profile {
    /// What a backend without queues that maps into `regions` offers.
    pub fn mapping(regions: Vec<(u8, u64)>) -> Self {
        Self {
            features: 0,
            protocol_features: VhostUserProtocolFeatures::MQ
                | VhostUserProtocolFeatures::REPLY_ACK
                | VhostUserProtocolFeatures::BACKEND_REQ
                | VhostUserProtocolFeatures::CONFIG
                | VhostUserProtocolFeatures::BACKEND_SEND_FD
                | VhostUserProtocolFeatures::RESET_DEVICE
                | VhostUserProtocolFeatures::SHMEM,
            regions,
            queues: 1,
        }
    }
}

/// Says what a frontend with these protocol features lacks for a backend that maps; nothing where it lacks nothing.
pub(super) fn lacks_for_mapping(features: VhostUserProtocolFeatures) -> Option<&'static str> {
    if !features.contains(VhostUserProtocolFeatures::SHMEM) {
        Some("the frontend has no SHMEM")
    } else if !features.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
        Some("the frontend has no BACKEND_REQ")
    } else {
        None
    }
}

/// What a backend does with what comes over the main channel. All calls come from the serving thread.
pub trait Device: Send {
    /// The frontend has set its protocol features. Nothing needs to be done by default.
    fn negotiated(&mut self, _features: VhostUserProtocolFeatures) {}

    /// The frontend handed over the request channel; a second one takes the first one's place.
    /// Must not wait for the frontend, which waits for this to return.
    fn channel(&mut self, channel: Channel);

    /// Reads the configuration space.
    ///
    /// # Errors
    /// The frontend gets an empty answer, the connection goes on.
    fn read_config(&mut self, offset: u32, out: &mut [u8]) -> io::Result<()>;

    /// Writes the configuration space.
    ///
    /// # Errors
    /// The frontend gets a failure if it asked for an answer, the connection goes on.
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()>;

    /// The frontend resets the device: it removes the mappings itself. Must not wait for it. A device with queues gives
    /// up its rings, and what it was doing for them.
    fn reset(&mut self);

    /// The queues, for a device that has some; it has none by default.
    fn rings(&mut self) -> Option<&mut dyn RingDevice> {
        None
    }
}

/// Serves one frontend until it goes.
///
/// # Errors
/// [`enum@Error`] if it broke the protocol or the socket failed.
pub fn serve(stream: UnixStream, profile: &Profile, device: &mut dyn Device) -> Result<(), Error> {
    let peeked = stream.try_clone().map_err(Error::Socket)?;
    let handler = Arc::new(Mutex::new(Handler {
        profile,
        device,
        protocol_features: VhostUserProtocolFeatures::empty(),
        rings: Rings::new(profile.queues),
        waiting: None,
    }));
    let mut server = BackendReqHandler::from_stream(stream, Arc::clone(&handler));
    loop {
        let message = peek(&peeked).map_err(Error::Socket)?;
        if message.code == Some(SET_BACKEND_REQ_FD) {
            lock(&handler).waiting = message.descriptor;
        }
        match server.handle_request() {
            // A refusal of the device's: answered, and the stream is in step.
            Ok(()) | Err(VhostError::ReqHandlerError(_)) => {}
            Err(VhostError::Disconnected) => return Ok(()),
            Err(error) => return Err(Error::Frontend(error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The start of a message that is still in the socket.
#[derive(Debug, Default)]
struct Peeked {
    code: Option<u32>,
    descriptor: Option<OwnedFd>,
}

/// Waits for a message and looks at its code and its first descriptor without reading it.
fn peek(stream: &UnixStream) -> io::Result<Peeked> {
    let mut code = [0; 4];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry_on_intr(|| {
        rustix::net::recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut code)],
            &mut control,
            RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let mut peeked = Peeked::default();
    for item in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            for descriptor in rights {
                peeked.descriptor.get_or_insert(descriptor);
            }
        }
    }
    if message.bytes == code.len() {
        peeked.code = Some(u32::from_ne_bytes(code));
    }
    Ok(peeked)
}

struct Handler<'a> {
    profile: &'a Profile,
    device: &'a mut dyn Device,
    protocol_features: VhostUserProtocolFeatures,
    rings: Rings,
    /// The descriptor of the message that is being read.
    waiting: Option<OwnedFd>,
}

impl Handler<'_> {
    /// Passes on what the frontend says of rings, if the device has any.
    fn with_rings<T: Default>(
        &mut self,
        f: impl FnOnce(&mut Rings, &mut dyn RingDevice) -> io::Result<T>,
    ) -> VhostResult<T> {
        match self.device.rings() {
            Some(device) => f(&mut self.rings, device).map_err(refused),
            None => Ok(T::default()),
        }
    }
}

fn refused(error: io::Error) -> VhostError {
    VhostError::ReqHandlerError(error)
}

fn not_offered<T>() -> VhostResult<T> {
    Err(VhostError::InvalidOperation(
        "this backend does not offer it",
    ))
}

impl VhostUserBackendReqHandlerMut for Handler<'_> {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        self.device.reset();
        self.rings.reset();
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.profile.features | PROTOCOL_FEATURES)
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        self.with_rings(|rings, device| rings.set_features(features, device))
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(self.profile.protocol_features)
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        self.protocol_features = VhostUserProtocolFeatures::from_bits_truncate(features);
        self.device.negotiated(self.protocol_features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        Ok(self.profile.queues.into())
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        let mut config = VhostUserShMemConfig::default();
        for &(shmid, size) in &self.profile.regions {
            config.memory_sizes[usize::from(shmid)] = size;
        }
        let regions = config
            .memory_sizes
            .iter()
            .filter(|size| **size != 0)
            .count();
        config.nregions = u32::try_from(regions).unwrap_or(0);
        Ok(config)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        // The crate has checked that it is at most 4096.
        let mut bytes = vec![0; size as usize];
        self.device
            .read_config(offset, &mut bytes)
            .map_err(refused)?;
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<()> {
        self.device.write_config(offset, bytes).map_err(refused)
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {
        if let Some(descriptor) = self.waiting.take() {
            let socket = SafeDescriptor::from(descriptor);
            self.device
                .channel(Channel::new(socket, self.protocol_features.bits()));
        }
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.with_rings(|rings, device| rings.set_memory(regions, files, device))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        self.with_rings(|rings, device| rings.set_size(index, num, device))
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> VhostResult<()> {
        let addresses = RingAddresses {
            descriptors,
            available,
            used,
        };
        self.with_rings(|rings, device| rings.set_addresses(index, addresses, device))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        self.with_rings(|rings, _| rings.set_base(index, base))
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let base = self.with_rings(|rings, device| rings.take_base(index, device))?;
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, kick: Option<File>) -> VhostResult<()> {
        self.with_rings(|rings, device| rings.set_kick(index.into(), kick, device))
    }

    fn set_vring_call(&mut self, index: u8, call: Option<File>) -> VhostResult<()> {
        self.with_rings(|rings, _| rings.set_call(index.into(), call))
    }

    fn set_vring_err(&mut self, _index: u8, _err: Option<File>) -> VhostResult<()> {
        Ok(())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        self.with_rings(|rings, device| rings.set_enabled(index, enable, device))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> VhostResult<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        not_offered()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        not_offered()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> VhostResult<Option<VhostUserMemoryRegionBase>> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> VhostResult<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> VhostResult<()> {
        not_offered()
    }
}
