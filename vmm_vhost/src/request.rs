//! Typed requests of the backend, and the checks that need nothing but the message itself.
//!
//! Decoding owns the message's descriptors: they end in the request or are closed. Bounds,
//! overlaps, quotas and what a descriptor is are the business of whoever carries the request out.

use base::Protection;
use base::SafeDescriptor;
use base::scm::DescriptorVec;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::KnownLayout;

use crate::message::CrosvmMapPayload;
use crate::message::CrosvmUnmapPayload;
use crate::message::Dialect;
use crate::message::ExternalMapPayload;
use crate::message::GpuMapPayload;
use crate::message::IotlbPayload;
use crate::message::MAX_DESCRIPTORS;
use crate::message::MessageRules;
use crate::message::MmapPayload;
use crate::message::RequestCode;
use crate::message::SharedObjectPayload;
use crate::message::VringAreaPayload;
use crate::message::VringStatePayload;
use crate::refusal::Refusal;

/// A well-formed request of the backend.
#[derive(Debug)]
pub enum BackendRequest {
    /// A translation is missing in the backend's IOTLB.
    IotlbMiss(Iotlb),
    /// An access was not permitted by the backend's IOTLB.
    IotlbAccessFail(Iotlb),
    /// The config space has changed.
    ConfigChange,
    /// A queue's doorbell comes or goes.
    VringHostNotifier(VringHostNotifier),
    /// The queue of this index has used buffers.
    VringCall(u32),
    /// The queue of this index met an error.
    VringErr(u32),
    /// An object is offered.
    SharedObjectAdd(Uuid),
    /// An object is withdrawn.
    SharedObjectRemove(Uuid),
    /// An object's descriptor is asked for; answered by
    /// [`RequestChannel::complete_with_descriptor`](crate::RequestChannel::complete_with_descriptor).
    SharedObjectLookup(Uuid),
    /// Map a descriptor.
    ShmemMap(ShmemMap),
    /// Remove a mapping of any kind.
    ShmemUnmap(ShmemUnmap),
    /// Map a Vulkan allocation.
    GpuMap(GpuMap),
    /// Map memory of this process.
    ExternalMap(ExternalMap),
}

/// The UUID of a shared object, its bytes as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

/// What the backend's IOTLB stumbled over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes, where the backend says how many.
    pub size: u64,
    /// The access that was tried.
    pub access: Protection,
}

/// A queue's doorbell.
#[derive(Debug)]
pub struct VringHostNotifier {
    /// The queue's index.
    pub queue: u8,
    /// The new doorbell, or `None` where the old one goes.
    pub area: Option<NotifierArea>,
}

/// One page of a backend's doorbell.
#[derive(Debug)]
pub struct NotifierArea {
    /// What to map.
    pub descriptor: SafeDescriptor,
    /// Where the page starts in the descriptor, in bytes; a multiple of the page size.
    pub offset: u64,
    /// Bytes: one page.
    pub size: u64,
}

/// A request to map `len` bytes of a descriptor at `shm_offset` of a region.
///
/// Both offsets are multiples of the page size and `len` is not zero; nothing else is checked.
#[derive(Debug)]
pub struct ShmemMap {
    /// The region's id.
    pub shmid: u8,
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Where the range starts in the descriptor, in bytes.
    pub fd_offset: u64,
    /// Bytes of the range; not always a multiple of the page size.
    pub len: u64,
    /// What the guest may do. Write-only is asked for by crosvm's flags and served as read and
    /// write, since memory that can be written can be read on every architecture here.
    pub protection: Protection,
    /// What to map.
    pub descriptor: SafeDescriptor,
    /// How it was asked for.
    pub dialect: Dialect,
}

/// A request to remove the mapping at `shm_offset` of a region.
///
/// The offset is a multiple of the page size and `len` is not zero; nothing else is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemUnmap {
    /// The region's id.
    pub shmid: u8,
    /// Where the mapping starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the mapping.
    pub len: u64,
    /// How it was asked for.
    pub dialect: Dialect,
}

/// A request to map a Vulkan allocation.
///
/// The offset is a multiple of the page size and `len` is not zero; nothing else is checked.
#[derive(Debug)]
pub struct GpuMap {
    /// The region's id.
    pub shmid: u8,
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// Index of the memory type.
    pub memory_idx: u32,
    /// Kind of the descriptor's handle.
    pub handle_type: u32,
    /// UUID of the device that owns the allocation.
    pub device_uuid: [u8; 16],
    /// UUID of its driver.
    pub driver_uuid: [u8; 16],
    /// The allocation.
    pub descriptor: SafeDescriptor,
}

/// A request to map memory of the VMM's own process.
///
/// Only from a [`Peer::InProcess`](crate::Peer::InProcess). The offset and the pointer are
/// multiples of the page size and `len` is not zero; whether anything is there is not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalMap {
    /// The region's id.
    pub shmid: u8,
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// The address.
    pub ptr: u64,
}

/// Decodes the payload of a message that is welcome.
///
/// Every descriptor that does not end in the request is closed on return.
pub(crate) fn decode(
    rules: &MessageRules,
    payload: &[u8],
    mut descriptors: DescriptorVec<MAX_DESCRIPTORS>,
) -> Result<BackendRequest, Refusal> {
    if payload.len() != rules.payload {
        return Err(Refusal::PayloadSize {
            want: rules.payload,
            got: payload.len(),
        });
    }
    let got = descriptors.len();
    let wrong_count = Refusal::DescriptorCount {
        want: rules.descriptors,
        got,
    };
    if !rules.descriptors.allows(got) {
        return Err(wrong_count);
    }
    // The table allows one descriptor at most, so this is all there is.
    let descriptor = descriptors.pop();
    match rules.code {
        RequestCode::IOTLB => iotlb(read(payload)?),
        RequestCode::CONFIG_CHANGE => Ok(BackendRequest::ConfigChange),
        RequestCode::VRING_HOST_NOTIFIER => host_notifier(read(payload)?, descriptor, wrong_count),
        RequestCode::VRING_CALL => vring(read(payload)?).map(BackendRequest::VringCall),
        RequestCode::VRING_ERR => vring(read(payload)?).map(BackendRequest::VringErr),
        RequestCode::SHARED_OBJECT_ADD => uuid(payload).map(BackendRequest::SharedObjectAdd),
        RequestCode::SHARED_OBJECT_REMOVE => uuid(payload).map(BackendRequest::SharedObjectRemove),
        RequestCode::SHARED_OBJECT_LOOKUP => uuid(payload).map(BackendRequest::SharedObjectLookup),
        RequestCode::SHMEM_MAP => map(read(payload)?, descriptor.ok_or(wrong_count)?),
        RequestCode::SHMEM_UNMAP => unmap(&read(payload)?),
        RequestCode::CROSVM_SHMEM_MAP => crosvm_map(read(payload)?, descriptor.ok_or(wrong_count)?),
        RequestCode::CROSVM_SHMEM_UNMAP => crosvm_unmap(&read(payload)?),
        RequestCode::GPU_MAP => gpu_map(read(payload)?, descriptor.ok_or(wrong_count)?),
        RequestCode::EXTERNAL_MAP => external_map(&read(payload)?),
        _ => Err(Refusal::Unsupported),
    }
}

fn read<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Result<T, Refusal> {
    T::read_from_bytes(payload).map_err(|_| Refusal::PayloadSize {
        want: size_of::<T>(),
        got: payload.len(),
    })
}

fn uuid(payload: &[u8]) -> Result<Uuid, Refusal> {
    read::<SharedObjectPayload>(payload).map(|object| Uuid(object.uuid))
}

fn iotlb(payload: IotlbPayload) -> Result<BackendRequest, Refusal> {
    let access = match payload.permission {
        1 => Protection::read(),
        2 => Protection::write(),
        3 => Protection::read_write(),
        permission => return Err(Refusal::IotlbPermission { permission }),
    };
    let iotlb = Iotlb {
        iova: payload.iova,
        size: payload.size,
        access,
    };
    match payload.kind {
        IotlbPayload::MISS => Ok(BackendRequest::IotlbMiss(iotlb)),
        IotlbPayload::ACCESS_FAIL => Ok(BackendRequest::IotlbAccessFail(iotlb)),
        kind => Err(Refusal::IotlbKind { kind }),
    }
}

fn vring(payload: VringStatePayload) -> Result<u32, Refusal> {
    match payload.num {
        0 => Ok(payload.index),
        num => Err(Refusal::VringNumber { num }),
    }
}

/// Where there is no descriptor, known backends send zero for size and offset: they are not
/// looked at then.
fn host_notifier(
    payload: VringAreaPayload,
    descriptor: Option<SafeDescriptor>,
    wrong_count: Refusal,
) -> Result<BackendRequest, Refusal> {
    let bits = payload.index_and_flags;
    let queue = u8::try_from(bits & !VringAreaPayload::NO_DESCRIPTOR)
        .map_err(|_| Refusal::VringIndex { bits })?;
    let goes = bits & VringAreaPayload::NO_DESCRIPTOR != 0;
    let area = match (goes, descriptor) {
        (true, None) => None,
        (false, Some(descriptor)) => {
            if payload.size != page_size() {
                return Err(Refusal::NotifierSize { size: payload.size });
            }
            check_descriptor_offset(payload.offset)?;
            Some(NotifierArea {
                descriptor,
                offset: payload.offset,
                size: payload.size,
            })
        }
        _ => return Err(wrong_count),
    };
    Ok(BackendRequest::VringHostNotifier(VringHostNotifier {
        queue,
        area,
    }))
}

fn map(payload: MmapPayload, descriptor: SafeDescriptor) -> Result<BackendRequest, Refusal> {
    let protection = match payload.flags {
        0 => Protection::read(),
        MmapPayload::WRITABLE => Protection::read_write(),
        flags => return Err(Refusal::MapFlags { flags }),
    };
    check_range(payload.shm_offset, payload.len)?;
    check_descriptor_offset(payload.fd_offset)?;
    Ok(BackendRequest::ShmemMap(ShmemMap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        fd_offset: payload.fd_offset,
        len: payload.len,
        protection,
        descriptor,
        dialect: Dialect::Standard,
    }))
}

/// Backends may repeat the whole payload of the map here, so the descriptor's offset is not
/// looked at and the write flag is no mistake. Reserved flags are.
fn unmap(payload: &MmapPayload) -> Result<BackendRequest, Refusal> {
    if payload.flags & !MmapPayload::WRITABLE != 0 {
        return Err(Refusal::MapFlags {
            flags: payload.flags,
        });
    }
    check_range(payload.shm_offset, payload.len)?;
    Ok(BackendRequest::ShmemUnmap(ShmemUnmap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        len: payload.len,
        dialect: Dialect::Standard,
    }))
}

fn crosvm_map(
    payload: CrosvmMapPayload,
    descriptor: SafeDescriptor,
) -> Result<BackendRequest, Refusal> {
    const BOTH: u8 = CrosvmMapPayload::READ | CrosvmMapPayload::WRITE;
    let protection = match payload.flags {
        CrosvmMapPayload::READ => Protection::read(),
        CrosvmMapPayload::WRITE | BOTH => Protection::read_write(),
        flags => {
            return Err(Refusal::MapFlags {
                flags: flags.into(),
            });
        }
    };
    check_range(payload.shm_offset, payload.len)?;
    check_descriptor_offset(payload.fd_offset)?;
    Ok(BackendRequest::ShmemMap(ShmemMap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        fd_offset: payload.fd_offset,
        len: payload.len,
        protection,
        descriptor,
        dialect: Dialect::Crosvm,
    }))
}

fn crosvm_unmap(payload: &CrosvmUnmapPayload) -> Result<BackendRequest, Refusal> {
    check_range(payload.shm_offset, payload.len)?;
    Ok(BackendRequest::ShmemUnmap(ShmemUnmap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        len: payload.len,
        dialect: Dialect::Crosvm,
    }))
}

fn gpu_map(payload: GpuMapPayload, descriptor: SafeDescriptor) -> Result<BackendRequest, Refusal> {
    check_range(payload.shm_offset, payload.len)?;
    Ok(BackendRequest::GpuMap(GpuMap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        len: payload.len,
        memory_idx: payload.memory_idx,
        handle_type: payload.handle_type,
        device_uuid: payload.device_uuid,
        driver_uuid: payload.driver_uuid,
        descriptor,
    }))
}

fn external_map(payload: &ExternalMapPayload) -> Result<BackendRequest, Refusal> {
    check_range(payload.shm_offset, payload.len)?;
    if !is_page_multiple(payload.ptr) {
        return Err(Refusal::MisalignedPointer { ptr: payload.ptr });
    }
    Ok(BackendRequest::ExternalMap(ExternalMap {
        shmid: payload.shmid,
        shm_offset: payload.shm_offset,
        len: payload.len,
        ptr: payload.ptr,
    }))
}

fn check_range(shm_offset: u64, len: u64) -> Result<(), Refusal> {
    if len == 0 {
        return Err(Refusal::ZeroLength);
    }
    if !is_page_multiple(shm_offset) {
        return Err(Refusal::MisalignedRegionOffset { offset: shm_offset });
    }
    Ok(())
}

fn check_descriptor_offset(offset: u64) -> Result<(), Refusal> {
    if is_page_multiple(offset) {
        Ok(())
    } else {
        Err(Refusal::MisalignedDescriptorOffset { offset })
    }
}

fn page_size() -> u64 {
    // A usize is never wider than a u64 where Linux runs.
    base::page_size() as u64
}

fn is_page_multiple(value: u64) -> bool {
    value.is_multiple_of(page_size())
}
