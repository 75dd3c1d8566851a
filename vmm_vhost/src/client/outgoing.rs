//! Requests as a backend sends them: a code, a payload, perhaps a descriptor.
//!
//! Nothing is checked here: what is wrong is for the frontend to refuse, and tests want to see it
//! do so.

use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::client::Ack;
use crate::message::CrosvmMapPayload;
use crate::message::CrosvmUnmapPayload;
use crate::message::ExternalMapPayload;
use crate::message::FsPayload;
use crate::message::GpuMapPayload;
use crate::message::HEADER_SIZE;
use crate::message::Header;
use crate::message::IotlbPayload;
use crate::message::MAX_PAYLOAD;
use crate::message::MmapPayload;
use crate::message::RequestCode;
use crate::message::VringAreaPayload;
use crate::message::VringStatePayload;
use crate::request::Uuid;

/// One request, ready to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing<'a> {
    code: RequestCode,
    payload: ArrayVec<u8, MAX_PAYLOAD>,
    descriptor: Option<BorrowedFd<'a>>,
}

impl<'a> Outgoing<'a> {
    /// IOTLB_MSG: a miss or an access failure.
    pub fn iotlb(payload: &IotlbPayload) -> Outgoing<'a> {
        Outgoing::of(RequestCode::IOTLB, payload, None)
    }

    /// CONFIG_CHANGE_MSG.
    pub fn config_change() -> Outgoing<'a> {
        Outgoing {
            code: RequestCode::CONFIG_CHANGE,
            payload: ArrayVec::new(),
            descriptor: None,
        }
    }

    /// VRING_HOST_NOTIFIER_MSG, with the descriptor of the doorbell or, where it goes, with none.
    pub fn vring_host_notifier(
        payload: &VringAreaPayload,
        descriptor: Option<BorrowedFd<'a>>,
    ) -> Outgoing<'a> {
        Outgoing::of(RequestCode::VRING_HOST_NOTIFIER, payload, descriptor)
    }

    /// VRING_CALL for the queue of this index.
    pub fn vring_call(index: u32) -> Outgoing<'a> {
        let payload = VringStatePayload { index, num: 0 };
        Outgoing::of(RequestCode::VRING_CALL, &payload, None)
    }

    /// VRING_ERR for the queue of this index.
    pub fn vring_err(index: u32) -> Outgoing<'a> {
        let payload = VringStatePayload { index, num: 0 };
        Outgoing::of(RequestCode::VRING_ERR, &payload, None)
    }

    /// SHARED_OBJECT_ADD.
    pub fn shared_object_add(uuid: Uuid) -> Outgoing<'a> {
        Outgoing::of(RequestCode::SHARED_OBJECT_ADD, &uuid.0, None)
    }

    /// SHARED_OBJECT_REMOVE.
    pub fn shared_object_remove(uuid: Uuid) -> Outgoing<'a> {
        Outgoing::of(RequestCode::SHARED_OBJECT_REMOVE, &uuid.0, None)
    }

    /// SHARED_OBJECT_LOOKUP.
    pub fn shared_object_lookup(uuid: Uuid) -> Outgoing<'a> {
        Outgoing::of(RequestCode::SHARED_OBJECT_LOOKUP, &uuid.0, None)
    }

    /// SHMEM_MAP of the standard dialect.
    pub fn shmem_map(payload: &MmapPayload, descriptor: BorrowedFd<'a>) -> Outgoing<'a> {
        Outgoing::of(RequestCode::SHMEM_MAP, payload, Some(descriptor))
    }

    /// SHMEM_UNMAP of the standard dialect.
    pub fn shmem_unmap(payload: &MmapPayload) -> Outgoing<'a> {
        Outgoing::of(RequestCode::SHMEM_UNMAP, payload, None)
    }

    /// SHMEM_MAP of crosvm's dialect.
    pub fn crosvm_map(payload: &CrosvmMapPayload, descriptor: BorrowedFd<'a>) -> Outgoing<'a> {
        Outgoing::of(RequestCode::CROSVM_SHMEM_MAP, payload, Some(descriptor))
    }

    /// SHMEM_UNMAP of crosvm's dialect.
    pub fn crosvm_unmap(payload: &CrosvmUnmapPayload) -> Outgoing<'a> {
        Outgoing::of(RequestCode::CROSVM_SHMEM_UNMAP, payload, None)
    }

    /// A message of the abandoned draft, codes 1002 to 1005: no frontend serves them.
    pub fn fs(
        code: RequestCode,
        payload: &FsPayload,
        descriptor: Option<BorrowedFd<'a>>,
    ) -> Outgoing<'a> {
        Outgoing::of(code, payload, descriptor)
    }

    /// GPU_MAP.
    pub fn gpu_map(payload: &GpuMapPayload, descriptor: BorrowedFd<'a>) -> Outgoing<'a> {
        Outgoing::of(RequestCode::GPU_MAP, payload, Some(descriptor))
    }

    /// EXTERNAL_MAP: the pointer means something only in the frontend's own process.
    pub fn external_map(payload: &ExternalMapPayload) -> Outgoing<'a> {
        Outgoing::of(RequestCode::EXTERNAL_MAP, payload, None)
    }

    /// Any code with any payload of up to [`MAX_PAYLOAD`] bytes; `None` if it is longer.
    pub fn raw(
        code: RequestCode,
        payload: &[u8],
        descriptor: Option<BorrowedFd<'a>>,
    ) -> Option<Outgoing<'a>> {
        Some(Outgoing {
            code,
            payload: ArrayVec::try_from(payload).ok()?,
            descriptor,
        })
    }

    /// The request's code.
    pub fn code(&self) -> RequestCode {
        self.code
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'a>> {
        self.descriptor
    }

    /// The whole message in bytes.
    pub(super) fn encode(&self, ack: Ack) -> ArrayVec<u8, { HEADER_SIZE + MAX_PAYLOAD }> {
        let size = u32::try_from(self.payload.len()).expect("no more than MAX_PAYLOAD");
        let header = Header::request(self.code, size, ack == Ack::Wanted);
        let mut bytes = ArrayVec::new();
        for part in [header.as_bytes(), &self.payload] {
            bytes
                .try_extend_from_slice(part)
                .expect("a header and no more than MAX_PAYLOAD");
        }
        bytes
    }

    fn of<T: IntoBytes + Immutable>(
        code: RequestCode,
        payload: &T,
        descriptor: Option<BorrowedFd<'a>>,
    ) -> Outgoing<'a> {
        const { assert!(size_of::<T>() <= MAX_PAYLOAD) };
        Outgoing {
            code,
            payload: ArrayVec::try_from(payload.as_bytes()).expect("no more than MAX_PAYLOAD"),
            descriptor,
        }
    }
}
