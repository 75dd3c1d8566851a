//! Payloads of crosvm's dialect, codes 1000 to 1007.
//!
//! SHMEM_MAP's fields have another order and other flags than the standard dialect's. Codes 1002
//! to 1005 are an abandoned draft: their layout is here because their size sets the cap of the
//! channel, and they are always refused.

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::message::MAX_PAYLOAD;

const _: () = assert!(size_of::<CrosvmMapPayload>() == 32);
const _: () = assert!(size_of::<CrosvmUnmapPayload>() == 24);
const _: () = assert!(size_of::<FsPayload>() == MAX_PAYLOAD);
const _: () = assert!(size_of::<GpuMapPayload>() == 64);
const _: () = assert!(size_of::<ExternalMapPayload>() == 32);

/// SHMEM_MAP, code 1000.
#[doc(alias = "VhostUserShmemMapMsg")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CrosvmMapPayload {
    /// 1 read, 2 write, or both.
    pub flags: u8,
    /// The region's id.
    pub shmid: u8,
    /// Not looked at.
    pub padding: [u8; 6],
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Where the range starts in the descriptor, in bytes.
    pub fd_offset: u64,
    /// Bytes of the range.
    pub len: u64,
}

impl CrosvmMapPayload {
    /// [`flags`](Self::flags): the mapping can be read.
    pub const READ: u8 = 1;
    /// [`flags`](Self::flags): the mapping can be written.
    pub const WRITE: u8 = 2;
}

/// SHMEM_UNMAP, code 1001.
#[doc(alias = "VhostUserShmemUnmapMsg")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct CrosvmUnmapPayload {
    /// The region's id.
    pub shmid: u8,
    /// Not looked at.
    pub padding: [u8; 7],
    /// Where the mapping starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the mapping.
    pub len: u64,
}

/// FS_MAP, FS_UNMAP, FS_SYNC and FS_IO, codes 1002 to 1005: eight ranges at once.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct FsPayload {
    /// Where the ranges start in the descriptor.
    pub fd_offset: [u64; 8],
    /// Where the ranges start in the cache window.
    pub cache_offset: [u64; 8],
    /// Bytes of the ranges.
    pub len: [u64; 8],
    /// 1 read, 2 write.
    pub flags: [u64; 8],
}

/// GPU_MAP, code 1006: a Vulkan allocation.
#[doc(alias = "VhostUserGpuMapMsg")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct GpuMapPayload {
    /// The region's id.
    pub shmid: u8,
    /// Not looked at.
    pub padding: [u8; 7],
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
}

/// EXTERNAL_MAP, code 1007: memory of the VMM's own process.
#[doc(alias = "VhostUserExternalMapMsg")]
#[repr(C)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct ExternalMapPayload {
    /// The region's id.
    pub shmid: u8,
    /// Not looked at.
    pub padding: [u8; 7],
    /// Where the range starts in the region, in bytes.
    pub shm_offset: u64,
    /// Bytes of the range.
    pub len: u64,
    /// Address in the sender's address space.
    pub ptr: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_has_golden_bytes() {
        let payload = CrosvmMapPayload {
            flags: CrosvmMapPayload::READ | CrosvmMapPayload::WRITE,
            shmid: 1,
            padding: [0; 6],
            shm_offset: 0x20_0000,
            fd_offset: 0x1000,
            len: 0x3000,
        };
        let golden: [u8; 32] = [
            3, 1, 0, 0, 0, 0, 0, 0, // flags, shmid, padding
            0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // fd_offset
            0x00, 0x30, 0, 0, 0, 0, 0, 0, // len
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(CrosvmMapPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn unmap_has_golden_bytes() {
        let payload = CrosvmUnmapPayload {
            shmid: 1,
            padding: [0; 7],
            shm_offset: 0x20_0000,
            len: 0x3000,
        };
        let golden: [u8; 24] = [
            1, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
            0x00, 0x00, 0x20, 0, 0, 0, 0, 0, // shm_offset
            0x00, 0x30, 0, 0, 0, 0, 0, 0, // len
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(CrosvmUnmapPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn fs_has_golden_bytes() {
        let mut payload = FsPayload::default();
        payload.fd_offset[0] = 1;
        payload.cache_offset[0] = 2;
        payload.len[0] = 3;
        payload.flags[7] = 4;
        let mut golden = [0; 256];
        golden[0] = 1;
        golden[64] = 2;
        golden[128] = 3;
        golden[248] = 4;
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(FsPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn gpu_map_has_golden_bytes() {
        let payload = GpuMapPayload {
            shmid: 1,
            padding: [0; 7],
            shm_offset: 0x1000,
            len: 0x2000,
            memory_idx: 5,
            handle_type: 0x102,
            device_uuid: [0xaa; 16],
            driver_uuid: [0xbb; 16],
        };
        let golden: [u8; 64] = [
            1, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // shm_offset
            0x00, 0x20, 0, 0, 0, 0, 0, 0, // len
            5, 0, 0, 0, 0x02, 0x01, 0, 0, // memory_idx, handle_type
            0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, // device_uuid
            0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, //
            0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, // driver_uuid
            0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb, //
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(GpuMapPayload::read_from_bytes(&golden), Ok(payload));
    }

    #[test]
    fn external_map_has_golden_bytes() {
        let payload = ExternalMapPayload {
            shmid: 2,
            padding: [0; 7],
            shm_offset: 0x1000,
            len: 0x2000,
            ptr: 0x7fff_1234_5000,
        };
        let golden: [u8; 32] = [
            2, 0, 0, 0, 0, 0, 0, 0, // shmid, padding
            0x00, 0x10, 0, 0, 0, 0, 0, 0, // shm_offset
            0x00, 0x20, 0, 0, 0, 0, 0, 0, // len
            0x00, 0x50, 0x34, 0x12, 0xff, 0x7f, 0, 0, // ptr
        ];
        assert_eq!(payload.as_bytes(), golden);
        assert_eq!(ExternalMapPayload::read_from_bytes(&golden), Ok(payload));
    }
}
