//! Telling dma-bufs from everything else.

use std::fs::read_to_string;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::fstatfs;

use super::Device;

/// `DMA_BUF_MAGIC`, the file system type of dma-bufs.
const DMA_BUF_MAGIC: u64 = 0x444d_4142;

/// No device; no device has this number.
const NONE: u64 = u64::MAX;

/// Whether an inode without a type is a dma-buf, as they were until Linux 6.15. Only the kernel itself makes such
/// inodes, so asking for their file system waits for nobody.
pub(super) fn is_typeless_dma_buf(descriptor: BorrowedFd<'_>) -> bool {
    fstatfs(descriptor).is_ok_and(|system| u64::try_from(system.f_type) == Ok(DMA_BUF_MAGIC))
}

/// Whether a regular file is a dma-buf, as which they appear since Linux 6.16.
///
/// To ask for the file system could wait for it, so `/proc` is asked for what only dma-bufs have. All of them are on one
/// device, which exists as long as the system runs: what is known of a device need not be asked again.
pub(super) fn is_regular_dma_buf(descriptor: BorrowedFd<'_>, (major, minor): Device) -> bool {
    static DMA_BUFS: AtomicU64 = AtomicU64::new(NONE);
    static OTHER: AtomicU64 = AtomicU64::new(NONE);

    if major != 0 {
        return false;
    }
    let device = u64::from(minor);
    if DMA_BUFS.load(Relaxed) == device {
        return true;
    }
    if OTHER.load(Relaxed) == device {
        return false;
    }
    let path = format!("/proc/self/fdinfo/{}", descriptor.as_raw_fd());
    let Ok(info) = read_to_string(path) else {
        return false;
    };
    let is_dma_buf = info.lines().any(|line| line.starts_with("exp_name:"));
    let known = if is_dma_buf { &DMA_BUFS } else { &OTHER };
    known.store(device, Relaxed);
    is_dma_buf
}
