//! Payloads of the standard dialect, codes 1 to 10.
//!
//! Paddings are not required to be zero by the specification and are never looked at.

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

const _: () = assert!(size_of::<IotlbPayload>() == 32);
const _: () = assert!(size_of::<VringAreaPayload>() == 24);
const _: () = assert!(size_of::<VringStatePayload>() == 8);
const _: () = assert!(size_of::<SharedObjectPayload>() == 16);
const _: () = assert!(size_of::<MmapPayload>() == 40);

/// A message about the IOTLB.
///
/// # Source
/// vhost-user specification, "An IOTLB message".
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct IotlbPayload {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// User address of the frontend.
    pub uaddr: u64,
    /// 1 read, 2 write, 3 both.
    pub permission: u8,
    /// 1 miss, 2 update, 3 invalidate, 4 access fail.
    pub kind: u8,
    /// Not looked at.
    pub padding: [u8; 6],
}

impl IotlbPayload {
    /// [`kind`](Self::kind): a translation is missing.
    pub const MISS: u8 = 1;
    /// [`kind`](Self::kind): a translation is given; frontend to backend only.
    pub const UPDATE: u8 = 2;
    /// [`kind`](Self::kind): a translation is withdrawn; frontend to backend only.
    pub const INVALIDATE: u8 = 3;
    /// [`kind`](Self::kind): an access was not permitted.
    pub const ACCESS_FAIL: u8 = 4;
}

/// A page of the backend's doorbell for one queue.
///
/// # Source
/// vhost-user specification, "Vring area description".
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VringAreaPayload {
    /// Bits 0 to 7 are the queue's index, bit 8 says that no descriptor comes along.
    pub index_and_flags: u64,
    /// Bytes of the area: one host page.
    pub size: u64,
    /// Where it starts in the descriptor.
    pub offset: u64,
}

impl VringAreaPayload {
    /// The bits of the queue's index.
    pub const INDEX_MASK: u64 = 0xff;
    /// Set when no descriptor comes along: the notifier goes.
    pub const NO_DESCRIPTOR: u64 = 0x100;
}

/// A queue's index with a number that is not used on this channel.
///
/// # Source
/// vhost-user specification, "A vring state description".
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct VringStatePayload {
    /// The queue's index.
    pub index: u32,
    /// Zero.
    pub num: u32,
}

/// The UUID of a shared object.
///
/// # Source
/// vhost-user specification, "VhostUserShared".
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct SharedObjectPayload {
    /// The UUID's bytes, as sent.
    pub uuid: [u8; 16],
}

/// A range of a shared memory region, and what is mapped there.
///
/// # Source
/// vhost-user specification, "MMAP request".
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct MmapPayload {
    /// The region's id.
    pub shmid: u8,
    /// Not looked at.
    pub padding: [u8; 7],
    /// Where the range starts in the descriptor, in bytes; 0 on an unmap.
    pub fd_offset: u64,
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// 0 read-only, 1 read-write; other bits are reserved.
    pub flags: u64,
}

impl MmapPayload {
    /// [`flags`](Self::flags): the mapping can be written.
    pub const WRITABLE: u64 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iotlb_has_golden_bytes() {
        let payload = IotlbPayload {
            iova: 0x1122_3344_5566_7788,
            size: 0x1000,
            uaddr: 0x2000,
            permission: 3,
            kind: IotlbPayload::MISS,
            padding: [0; 6],
        };
        let golden: [u8; 32] = [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, // iova
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // size
            0x00, 0x20, 0, 0, 0, 0, 0, 0, // uaddr
            3, 1, 0, 0, 0, 0, 0, 0, // permission, kind, padding
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(IotlbPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn vring_area_has_golden_bytes() {
        let payload = VringAreaPayload {
            index_and_flags: 0x102,
            size: 0x1000,
            offset: 0x3000,
        };
        let golden: [u8; 24] = [
            0x02, 0x01, 0, 0, 0, 0, 0, 0, // queue 2, no descriptor
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // size
            0x00, 0x30, 0, 0, 0, 0, 0, 0, // offset
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(VringAreaPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn vring_state_has_golden_bytes() {
        let payload = VringStatePayload { index: 1, num: 256 };
        let golden: [u8; 8] = [1, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(VringStatePayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn shared_object_has_golden_bytes() {
        let golden: [u8; 16] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let payload = SharedObjectPayload { uuid: golden };
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(SharedObjectPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn mmap_has_golden_bytes() {
        let payload = MmapPayload {
            shmid: 7,
            padding: [0; 7],
            fd_offset: 0x1000,
            shm_offset: 0x20_0000,
            len: 0x7_0800,
            flags: MmapPayload::WRITABLE,
        };
        let golden: [u8; 40] = [
            7, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // fd_offset
            0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
            0x00, 0x08, 0x07, 0, 0, 0, 0, 0, // len
            1, 0, 0, 0, 0, 0, 0, 0, // flags
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(MmapPayload::read_from_bytes(&golden), Ok(payload));
    }
}
