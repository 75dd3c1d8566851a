//! One method a message that waits for the reply, and one without waiting for those that backends
//! send ahead. For the rest there are [`send`](FrontendClient::send) and [`Outgoing`].
//!
//! Errors are those of [`call`](FrontendClient::call) and [`send`](FrontendClient::send).

use std::os::fd::BorrowedFd;

use base::SafeDescriptor;

use crate::client::Ack;
use crate::client::ClientError;
use crate::client::FrontendClient;
use crate::client::Outgoing;
use crate::message::CrosvmMapPayload;
use crate::message::CrosvmUnmapPayload;
use crate::message::ExternalMapPayload;
use crate::message::GpuMapPayload;
use crate::message::IotlbPayload;
use crate::message::MmapPayload;
use crate::message::RequestCode;
use crate::message::VringAreaPayload;
use crate::request::Uuid;

type Done = Result<(), ClientError>;

impl FrontendClient {
    /// Reports a miss or an access failure of the IOTLB.
    pub fn iotlb(&mut self, payload: &IotlbPayload) -> Done {
        self.call(&Outgoing::iotlb(payload))
    }

    /// Reports that the config space has changed.
    #[doc(alias = "handle_config_change")]
    pub fn config_change(&mut self) -> Done {
        self.call(&Outgoing::config_change())
    }

    /// Offers a queue's doorbell, or withdraws it.
    pub fn vring_host_notifier(
        &mut self,
        payload: &VringAreaPayload,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Done {
        self.call(&Outgoing::vring_host_notifier(payload, descriptor))
    }

    /// Reports used buffers of a queue.
    pub fn vring_call(&mut self, index: u32) -> Done {
        self.call(&Outgoing::vring_call(index))
    }

    /// Reports an error of a queue.
    pub fn vring_err(&mut self, index: u32) -> Done {
        self.call(&Outgoing::vring_err(index))
    }

    /// Offers an object to other devices.
    pub fn shared_object_add(&mut self, uuid: Uuid) -> Done {
        self.call(&Outgoing::shared_object_add(uuid))
    }

    /// Withdraws an object.
    pub fn shared_object_remove(&mut self, uuid: Uuid) -> Done {
        self.call(&Outgoing::shared_object_remove(uuid))
    }

    /// Asks for an object's descriptor.
    pub fn shared_object_lookup(&mut self, uuid: Uuid) -> Result<SafeDescriptor, ClientError> {
        let code = RequestCode::SHARED_OBJECT_LOOKUP;
        let reply = self
            .exchange(&Outgoing::shared_object_lookup(uuid))?
            .ok_or(ClientError::NothingPending)?;
        reply.check()?;
        reply
            .descriptor
            .ok_or(ClientError::ReplyDescriptors { code, got: 0 })
    }

    /// Maps a descriptor into a region.
    pub fn shmem_map(&mut self, payload: &MmapPayload, descriptor: BorrowedFd<'_>) -> Done {
        self.call(&Outgoing::shmem_map(payload, descriptor))
    }

    /// Asks to map a descriptor into a region, and doesn't wait.
    pub fn shmem_map_nowait(
        &mut self,
        payload: &MmapPayload,
        descriptor: BorrowedFd<'_>,
        ack: Ack,
    ) -> Done {
        self.send(&Outgoing::shmem_map(payload, descriptor), ack)
    }

    /// Removes a mapping.
    pub fn shmem_unmap(&mut self, payload: &MmapPayload) -> Done {
        self.call(&Outgoing::shmem_unmap(payload))
    }

    /// Asks to remove a mapping, and doesn't wait.
    pub fn shmem_unmap_nowait(&mut self, payload: &MmapPayload, ack: Ack) -> Done {
        self.send(&Outgoing::shmem_unmap(payload), ack)
    }

    /// Maps a descriptor into a region, in crosvm's dialect.
    pub fn crosvm_map(&mut self, payload: &CrosvmMapPayload, descriptor: BorrowedFd<'_>) -> Done {
        self.call(&Outgoing::crosvm_map(payload, descriptor))
    }

    /// Asks to map a descriptor into a region, in crosvm's dialect, and doesn't wait. There is a
    /// reply in any case.
    pub fn crosvm_map_nowait(
        &mut self,
        payload: &CrosvmMapPayload,
        descriptor: BorrowedFd<'_>,
    ) -> Done {
        self.send(&Outgoing::crosvm_map(payload, descriptor), Ack::Unwanted)
    }

    /// Removes a mapping, in crosvm's dialect.
    pub fn crosvm_unmap(&mut self, payload: &CrosvmUnmapPayload) -> Done {
        self.call(&Outgoing::crosvm_unmap(payload))
    }

    /// Asks to remove a mapping, in crosvm's dialect, and doesn't wait. There is a reply in any
    /// case.
    pub fn crosvm_unmap_nowait(&mut self, payload: &CrosvmUnmapPayload) -> Done {
        self.send(&Outgoing::crosvm_unmap(payload), Ack::Unwanted)
    }

    /// Maps a Vulkan allocation into a region.
    pub fn gpu_map(&mut self, payload: &GpuMapPayload, descriptor: BorrowedFd<'_>) -> Done {
        self.call(&Outgoing::gpu_map(payload, descriptor))
    }

    /// Maps memory of the frontend's own process into a region.
    pub fn external_map(&mut self, payload: &ExternalMapPayload) -> Done {
        self.call(&Outgoing::external_map(payload))
    }
}
