//! What the service tells the VMM about its devices.

use std::fmt;

use arrayvec::ArrayVec;
use base::Error;
use base::Protection;

use crate::Generation;
use crate::MappingKind;
use crate::Reason;
use crate::VmMemoryRequest;
use crate::service::DeviceId;

/// One live mapping, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingInfo {
    /// The device's name.
    pub device: String,
    /// The device.
    pub device_id: DeviceId,
    /// The region.
    pub shmid: u8,
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes that were asked for.
    pub len: u64,
    /// Bytes in whole pages.
    pub footprint: u64,
    /// What the guest may do with it.
    pub protection: Protection,
    /// What it shows.
    pub kind: MappingKind,
    /// Where the guest sees it.
    pub guest_address: u64,
}

/// What was asked, in the service's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// [`VmMemoryRequest::RegisterMemory`]
    Map,
    /// [`VmMemoryRequest::PrepareRegion`]
    Prepare,
    /// [`VmMemoryRequest::UnregisterMemory`]
    Unmap,
    /// [`VmMemoryRequest::UnregisterAll`]
    UnmapAll,
}

impl fmt::Display for RequestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Map => "map",
            Self::Prepare => "prepare",
            Self::Unmap => "unmap",
            Self::UnmapAll => "unmap all",
        })
    }
}

/// A request that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What was asked.
    pub kind: RequestKind,
    /// The region, 0 for [`RequestKind::UnmapAll`].
    pub shmid: u8,
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What it was answered.
    pub errno: Error,
    /// Why, with the numbers that explain it; in words by `Display`.
    pub reason: Reason,
}

impl Refusal {
    pub(crate) fn new<D>(request: &VmMemoryRequest<D>, reason: Reason) -> Self {
        let (kind, shmid, offset, len) = match request {
            VmMemoryRequest::PrepareRegion { shmid } => (RequestKind::Prepare, *shmid, 0, 0),
            VmMemoryRequest::RegisterMemory { dest, len, .. } => {
                (RequestKind::Map, dest.shmid, dest.offset, *len)
            }
            VmMemoryRequest::UnregisterMemory { dest, len } => {
                (RequestKind::Unmap, dest.shmid, dest.offset, *len)
            }
            VmMemoryRequest::UnregisterAll => (RequestKind::UnmapAll, 0, 0, 0),
        };
        Self {
            kind,
            shmid,
            offset,
            len,
            errno: reason.errno(),
            reason,
        }
    }
}

/// Different errnos that are counted apart; the service has fewer.
const ERRNOS: usize = 24;

/// Counters of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    /// The device's name.
    pub device: String,
    /// The device.
    pub device_id: DeviceId,
    /// Its activation.
    pub generation: Generation,
    /// Live mappings.
    pub live: u32,
    /// The most of them that there ever were.
    pub peak: u32,
    /// Bytes of their footprints.
    pub live_bytes: u64,
    /// Requests and answers so far.
    pub counters: Counters,
}

/// What is counted for one device, without allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that came.
    pub batches: u64,
    /// Mappings that were made.
    pub maps: u64,
    /// Mappings that were removed on request, [`RequestKind::UnmapAll`] included.
    pub unmaps: u64,
    /// Mappings that were removed by a reset.
    pub dropped: u64,
    /// Requests that were refused, by errno.
    pub refused: ArrayVec<(i32, u64), ERRNOS>,
    /// The last one of them.
    pub last_refused: Option<Refusal>,
}

impl Counters {
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        let errno = refusal.errno.errno();
        self.last_refused = Some(refusal);
        match self.refused.iter_mut().find(|(known, _)| *known == errno) {
            Some((_, count)) => *count += 1,
            // Past the last place the kind is not counted; the service does not have that many.
            None => drop(self.refused.try_push((errno, 1))),
        }
    }

    /// How many requests were refused, for whatever reason.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().map(|(_, count)| count).sum()
    }
}
