//! What travels in the memory tube: batches of requests one way, batches of answers the other.
//!
//! Messages only; what they lead to stands in `service`. `D` is a descriptor, or its place among those of the packet where a
//! packet is decoded as it lies.

use arrayvec::ArrayVec;
use base::Protection;
use base::SafeDescriptor;
use serde::Deserialize;
use serde::Serialize;

/// Requests in one packet at most.
pub const MAX_BATCH: usize = 32;

/// Counts the activations of a device. A request of an older generation than the service's is answered ECANCELED.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Generation(pub u32);

impl Generation {
    /// The one after this; after the last comes the first.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A place in one of the device's own regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmMemoryDestination {
    /// The region.
    pub shmid: u8,
    /// Bytes from its start.
    pub offset: u64,
}

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmMemorySource<D = SafeDescriptor> {
    /// A file, a memfd or a dma-buf.
    Descriptor {
        /// What is mapped.
        descriptor: D,
        /// Bytes from its start, page aligned.
        offset: u64,
    },
    /// An allocation that a Vulkan driver exported.
    Vulkan {
        /// The exported handle.
        descriptor: D,
        /// The kind of handle, in the backend's terms.
        handle_type: u32,
        /// The index of the memory type.
        memory_idx: u32,
        /// The UUID of the physical device.
        device_uuid: [u8; 16],
        /// The UUID of the driver.
        driver_uuid: [u8; 16],
    },
    /// Memory of the VMM's own process, which only an in-process backend can name.
    ExternalMapping {
        /// Its address.
        ptr: u64,
    },
}

/// One request of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmMemoryRequest<D = SafeDescriptor> {
    /// Makes a region ready before its first mapping.
    PrepareRegion {
        /// The region.
        shmid: u8,
    },
    /// Maps memory into a region.
    RegisterMemory {
        /// What is mapped.
        source: VmMemorySource<D>,
        /// Where it is mapped.
        dest: VmMemoryDestination,
        /// Bytes; not necessarily a multiple of the page size.
        len: u64,
        /// What the guest may do with it.
        prot: Protection,
    },
    /// Removes one whole mapping, of whatever source.
    UnregisterMemory {
        /// Where it begins.
        dest: VmMemoryDestination,
        /// Its length as it was mapped, or that rounded up to a page.
        len: u64,
    },
    /// Removes all mappings of the device.
    UnregisterAll,
}

/// The answer to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmMemoryResponse {
    /// It was done.
    Ok,
    /// It was refused, and nothing changed.
    Err(base::Error),
}

/// Requests that travel together; they are executed in order.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestBatch<D = SafeDescriptor> {
    /// The device's activation that they belong to.
    pub generation: Generation,
    /// The requests, at least one.
    pub requests: ArrayVec<VmMemoryRequest<D>, MAX_BATCH>,
}

impl<D> Default for RequestBatch<D> {
    fn default() -> Self {
        Self {
            generation: Generation::default(),
            requests: ArrayVec::new(),
        }
    }
}

impl<D> VmMemoryRequest<D> {
    /// Its descriptor, if it has one.
    pub(crate) fn descriptor(&self) -> Option<&D> {
        match self {
            Self::RegisterMemory {
                source:
                    VmMemorySource::Descriptor { descriptor, .. }
                    | VmMemorySource::Vulkan { descriptor, .. },
                ..
            } => Some(descriptor),
            _ => None,
        }
    }

    /// The same request with what `find` makes of its descriptor; nothing where it has one that is not found.
    pub(crate) fn try_map<E>(
        self,
        find: impl FnOnce(D) -> Option<E>,
    ) -> Option<VmMemoryRequest<E>> {
        Some(match self {
            Self::PrepareRegion { shmid } => VmMemoryRequest::PrepareRegion { shmid },
            Self::RegisterMemory {
                source,
                dest,
                len,
                prot,
            } => VmMemoryRequest::RegisterMemory {
                source: source.try_map(find)?,
                dest,
                len,
                prot,
            },
            Self::UnregisterMemory { dest, len } => VmMemoryRequest::UnregisterMemory { dest, len },
            Self::UnregisterAll => VmMemoryRequest::UnregisterAll,
        })
    }
}

impl<D> VmMemorySource<D> {
    fn try_map<E>(self, find: impl FnOnce(D) -> Option<E>) -> Option<VmMemorySource<E>> {
        Some(match self {
            Self::Descriptor { descriptor, offset } => VmMemorySource::Descriptor {
                descriptor: find(descriptor)?,
                offset,
            },
            Self::Vulkan {
                descriptor,
                handle_type,
                memory_idx,
                device_uuid,
                driver_uuid,
            } => VmMemorySource::Vulkan {
                descriptor: find(descriptor)?,
                handle_type,
                memory_idx,
                device_uuid,
                driver_uuid,
            },
            Self::ExternalMapping { ptr } => VmMemorySource::ExternalMapping { ptr },
        })
    }
}

/// The answers to one [`RequestBatch`], in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseBatch {
    /// One answer a request.
    pub responses: ArrayVec<VmMemoryResponse, MAX_BATCH>,
}
