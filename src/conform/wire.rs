//! Bytes of the request channel, laid out by hand from the specification: header 12 bytes, native endian.

/// Request codes.
pub(super) mod code {
    pub(in crate::conform) const IOTLB: u32 = 1;
    pub(in crate::conform) const CONFIG_CHANGE: u32 = 2;
    pub(in crate::conform) const HOST_NOTIFIER: u32 = 3;
    pub(in crate::conform) const VRING_CALL: u32 = 4;
    pub(in crate::conform) const VRING_ERR: u32 = 5;
    pub(in crate::conform) const SHARED_OBJECT_ADD: u32 = 6;
    pub(in crate::conform) const SHARED_OBJECT_REMOVE: u32 = 7;
    pub(in crate::conform) const SHARED_OBJECT_LOOKUP: u32 = 8;
    pub(in crate::conform) const MAP: u32 = 9;
    pub(in crate::conform) const UNMAP: u32 = 10;
    pub(in crate::conform) const OLD_MAP: u32 = 1000;
    pub(in crate::conform) const OLD_UNMAP: u32 = 1001;
    pub(in crate::conform) const GPU_MAP: u32 = 1006;
    pub(in crate::conform) const EXTERNAL_MAP: u32 = 1007;
}

pub(super) const VERSION: u32 = 1;
pub(super) const REPLY: u32 = 4;
pub(super) const NEED_REPLY: u32 = 8;
pub(super) const HEADER_BYTES: usize = 12;

/// Returns a message: header and payload, whatever they are.
pub(super) fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = header(code, flags, size).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// Returns a header on its own.
pub(super) fn header(code: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[0..4].copy_from_slice(&code.to_ne_bytes());
    bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
    bytes[8..12].copy_from_slice(&size.to_ne_bytes());
    bytes
}

/// The payload of SHMEM_MAP and SHMEM_UNMAP of the specification, 40 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mmap {
    pub(super) shmid: u8,
    pub(super) padding: [u8; 7],
    pub(super) fd_offset: u64,
    pub(super) shm_offset: u64,
    pub(super) len: u64,
    pub(super) flags: u64,
}

impl Mmap {
    pub(super) fn at(shm_offset: u64, len: u64) -> Mmap {
        Mmap {
            shmid: 0,
            padding: [0; 7],
            fd_offset: 0,
            shm_offset,
            len,
            flags: 0,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.shmid];
        bytes.extend_from_slice(&self.padding);
        for field in [self.fd_offset, self.shm_offset, self.len, self.flags] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes
    }
}

/// The payload of crosvm's older SHMEM_MAP, 32 bytes: flags, shmid, then region offset *before* file offset.
pub(super) fn old_map(flags: u8, shmid: u8, shm_offset: u64, fd_offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![flags, shmid, 0, 0, 0, 0, 0, 0];
    for field in [shm_offset, fd_offset, len] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// The payload of crosvm's older SHMEM_UNMAP, 24 bytes.
pub(super) fn old_unmap(shmid: u8, shm_offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![shmid, 0, 0, 0, 0, 0, 0, 0];
    for field in [shm_offset, len] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes
}

/// The payload of GPU_MAP, 64 bytes.
pub(super) fn gpu_map(shm_offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = old_unmap(0, shm_offset, len);
    bytes.extend_from_slice(&[0; 40]);
    bytes
}

/// The payload of EXTERNAL_MAP, 32 bytes.
pub(super) fn external_map(shm_offset: u64, len: u64, pointer: u64) -> Vec<u8> {
    let mut bytes = old_unmap(0, shm_offset, len);
    bytes.extend_from_slice(&pointer.to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_their_lengths() {
        assert_eq!(Mmap::at(0, 1).bytes().len(), 40);
        assert_eq!(old_map(1, 0, 0, 0, 1).len(), 32);
        assert_eq!(old_unmap(0, 0, 1).len(), 24);
        assert_eq!(gpu_map(0, 1).len(), 64);
        assert_eq!(external_map(0, 1, 0).len(), 32);
    }

    #[test]
    fn mmap_is_laid_out_as_specified() {
        let mmap = Mmap {
            shmid: 1,
            padding: [2; 7],
            fd_offset: 3,
            shm_offset: 4,
            len: 5,
            flags: 6,
        };
        assert_eq!(
            mmap.bytes(),
            [
                1, 2, 2, 2, 2, 2, 2, 2, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0,
                0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0
            ]
        );
    }
}
