//! The frontend's end of the channel with a handler that carries requests out at once.
//!
//! For whoever can answer without waiting: an in-process backend's frontend, tests, VMMs without
//! a device process. The jailed worker, whose answers come later, drives a
//! [`RequestChannel`] itself.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::AsRawDescriptor;
use base::Error as Errno;
use base::RawDescriptor;
use base::ReadNotifier;
use base::SafeDescriptor;

use crate::channel::ChannelConfig;
use crate::channel::ChannelError;
use crate::channel::Flush;
use crate::channel::Incoming;
use crate::channel::RequestChannel;
use crate::connection::Received;
use crate::gate::Negotiated;
use crate::request::BackendRequest;
use crate::request::ExternalMap;
use crate::request::GpuMap;
use crate::request::Iotlb;
use crate::request::ShmemMap;
use crate::request::ShmemUnmap;
use crate::request::Uuid;
use crate::request::VringHostNotifier;

/// How many receives one call makes at most, so that a busy backend doesn't starve its neighbours
/// on the same thread.
const RECEIVES_PER_CALL: usize = 64;

/// What a handler answers: the value of the reply, where 0 is success to every backend, or the
/// errno of a failure.
pub type HandlerResult<T> = Result<T, Errno>;

fn unsupported<T>() -> HandlerResult<T> {
    Err(Errno::new(libc::ENOSYS))
}

/// Carries out the requests of one backend.
///
/// Called by [`FrontendServer`] on its thread, in the order of the requests, only with what is
/// well formed and was negotiated. Methods must not wait for the backend. What a handler doesn't
/// implement is refused with ENOSYS.
#[doc(alias = "Frontend")]
#[doc(alias = "VhostUserMasterReqHandler")]
#[doc(alias = "VhostUserFrontendReqHandler")]
pub trait FrontendHandler {
    /// A translation is missing. Answer after the update went out on the main channel.
    fn iotlb_miss(&mut self, _miss: Iotlb) -> HandlerResult<u64> {
        unsupported()
    }

    /// An access was not permitted by a translation.
    fn iotlb_access_fail(&mut self, _fail: Iotlb) -> HandlerResult<u64> {
        unsupported()
    }

    /// The config space has changed. May come before the device is activated.
    #[doc(alias = "handle_config_change")]
    fn config_change(&mut self) -> HandlerResult<u64> {
        unsupported()
    }

    /// A queue's doorbell comes or goes.
    fn vring_host_notifier(&mut self, _notifier: VringHostNotifier) -> HandlerResult<u64> {
        unsupported()
    }

    /// The queue of this index has used buffers. The index is not checked.
    fn vring_call(&mut self, _queue: u32) -> HandlerResult<u64> {
        unsupported()
    }

    /// The queue of this index met an error. The index is not checked.
    fn vring_err(&mut self, _queue: u32) -> HandlerResult<u64> {
        unsupported()
    }

    /// An object is offered to other devices.
    fn shared_object_add(&mut self, _uuid: Uuid) -> HandlerResult<u64> {
        unsupported()
    }

    /// An object is withdrawn.
    fn shared_object_remove(&mut self, _uuid: Uuid) -> HandlerResult<u64> {
        unsupported()
    }

    /// An object's descriptor is asked for.
    fn shared_object_lookup(&mut self, _uuid: Uuid) -> HandlerResult<SafeDescriptor> {
        unsupported()
    }

    /// Map a descriptor, of either dialect. Bounds and the descriptor's kind are not checked.
    fn shmem_map(&mut self, _map: ShmemMap) -> HandlerResult<u64> {
        unsupported()
    }

    /// Remove a mapping of any kind, of either dialect.
    fn shmem_unmap(&mut self, _unmap: ShmemUnmap) -> HandlerResult<u64> {
        unsupported()
    }

    /// Map a Vulkan allocation.
    fn gpu_map(&mut self, _map: GpuMap) -> HandlerResult<u64> {
        unsupported()
    }

    /// Map memory of this process. Only for an in-process backend; what is there is not checked.
    fn external_map(&mut self, _map: ExternalMap) -> HandlerResult<u64> {
        unsupported()
    }
}

/// Serves the requests of one backend with a handler.
#[doc(alias = "MasterReqHandler")]
#[doc(alias = "FrontendReqHandler")]
#[derive(Debug)]
pub struct FrontendServer<H: FrontendHandler> {
    channel: RequestChannel,
    handler: H,
}

impl<H: FrontendHandler> FrontendServer<H> {
    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// [`ChannelError::InFlight`] if the configured number is out of range.
    pub fn new(
        socket: SafeDescriptor,
        config: ChannelConfig,
        handler: H,
    ) -> Result<FrontendServer<H>, ChannelError> {
        let channel = RequestChannel::new(socket, config)?;
        Ok(FrontendServer { channel, handler })
    }

    /// Serves what is there and returns how many requests reached the handler.
    ///
    /// Doesn't wait. Call it while the socket is readable, level-triggered: a busy backend is not
    /// read to the end.
    ///
    /// # Errors
    /// The channel can't go on: the peer is gone, broke the framing, or the socket failed.
    #[doc(alias = "handle_request")]
    pub fn handle_readable(&mut self) -> Result<usize, ChannelError> {
        let mut handled = 0;
        for _ in 0..RECEIVES_PER_CALL {
            let received = self.channel.receive()?;
            handled += self.serve()?;
            if received == Received::WouldBlock || !self.channel.wants_read() {
                break;
            }
        }
        Ok(handled)
    }

    /// Sends replies that were held up, serves what waited for them, and returns how many requests
    /// reached the handler.
    ///
    /// # Errors
    /// As [`handle_readable`](Self::handle_readable).
    pub fn handle_writable(&mut self) -> Result<usize, ChannelError> {
        self.channel.flush()?;
        self.serve()
    }

    /// Carries out what is here and flushes, until nothing is here or the socket takes no more.
    fn serve(&mut self) -> Result<usize, ChannelError> {
        let mut handled = 0;
        loop {
            while let Some(incoming) = self.channel.next_request()? {
                self.carry_out(incoming);
                handled += 1;
            }
            if self.channel.flush()? == Flush::Blocked || !self.channel.has_message() {
                return Ok(handled);
            }
        }
    }

    fn carry_out(&mut self, Incoming { ticket, request }: Incoming) {
        let handler = &mut self.handler;
        let result = match request {
            BackendRequest::IotlbMiss(miss) => handler.iotlb_miss(miss),
            BackendRequest::IotlbAccessFail(fail) => handler.iotlb_access_fail(fail),
            BackendRequest::ConfigChange => handler.config_change(),
            BackendRequest::VringHostNotifier(notifier) => handler.vring_host_notifier(notifier),
            BackendRequest::VringCall(queue) => handler.vring_call(queue),
            BackendRequest::VringErr(queue) => handler.vring_err(queue),
            BackendRequest::SharedObjectAdd(uuid) => handler.shared_object_add(uuid),
            BackendRequest::SharedObjectRemove(uuid) => handler.shared_object_remove(uuid),
            BackendRequest::SharedObjectLookup(uuid) => match handler.shared_object_lookup(uuid) {
                Ok(found) => return self.channel.complete_with_descriptor(ticket, found),
                Err(errno) => Err(errno),
            },
            BackendRequest::ShmemMap(map) => handler.shmem_map(map),
            BackendRequest::ShmemUnmap(unmap) => handler.shmem_unmap(unmap),
            BackendRequest::GpuMap(map) => handler.gpu_map(map),
            BackendRequest::ExternalMap(map) => handler.external_map(map),
        };
        self.channel.complete(ticket, result);
    }

    /// Changes what was negotiated, for the messages that are taken from now on.
    pub fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.channel.set_negotiated(negotiated);
    }

    /// Tells whether to wait for the socket to be readable.
    pub fn wants_read(&self) -> bool {
        self.channel.wants_read()
    }

    /// Tells whether to wait for the socket to be writable.
    pub fn wants_write(&self) -> bool {
        self.channel.wants_write()
    }

    /// The channel, for its counters and the last refused request.
    pub fn channel(&self) -> &RequestChannel {
        &self.channel
    }

    /// The handler.
    pub fn handler(&self) -> &H {
        &self.handler
    }

    /// The handler.
    pub fn handler_mut(&mut self) -> &mut H {
        &mut self.handler
    }
}

impl<H: FrontendHandler> AsFd for FrontendServer<H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl<H: FrontendHandler> AsRawDescriptor for FrontendServer<H> {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.channel.as_raw_descriptor()
    }
}

impl<H: FrontendHandler> ReadNotifier for FrontendServer<H> {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self
    }
}

#[cfg(test)]
mod tests;
