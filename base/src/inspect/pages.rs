//! Which devices hold memfds, and how large the pages of a file are.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

use arrayvec::ArrayVec;
use rustix::fs::MemfdFlags;
use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::fs::fcntl_get_seals;
use rustix::fs::fstatfs;
use rustix::fs::memfd_create;

use super::Device;
use super::device;
use super::status;
use crate::page_size;

/// `HUGETLBFS_MAGIC`, the file system type of files made of huge pages.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// The sizes that the supported architectures have.
const HUGE_PAGES: [(MemfdFlags, u64); 6] = [
    (MemfdFlags::HUGE_64KB, 64 << 10),
    (MemfdFlags::HUGE_2MB, 2 << 20),
    (MemfdFlags::HUGE_32MB, 32 << 20),
    (MemfdFlags::HUGE_512MB, 512 << 20),
    (MemfdFlags::HUGE_1GB, 1 << 30),
    (MemfdFlags::HUGE_16GB, 16 << 30),
];

/// A device of the kernel's own that holds the memfds of one page size. It stays the same until the system restarts.
struct Holder {
    device: Device,
    page_size: u64,
}

/// The ordinary memfds' holder first, then those of the huge pages that this system has. The first use finds them.
static HOLDERS: LazyLock<ArrayVec<Holder, 7>> = LazyLock::new(|| {
    let ordinary = holder(MemfdFlags::empty(), own_page_size());
    let huge = HUGE_PAGES.map(|(flag, size)| holder(MemfdFlags::HUGETLB | flag, size));
    ordinary
        .into_iter()
        .chain(huge.into_iter().flatten())
        .collect()
});

fn holder(flags: MemfdFlags, page_size: u64) -> Option<Holder> {
    let memfd = memfd_create(c"inspect", MemfdFlags::CLOEXEC | flags).ok()?;
    let device = device(&status(memfd.as_fd(), StatxFlags::INO).ok()?);
    Some(Holder { device, page_size })
}

fn own_page_size() -> u64 {
    u64::try_from(page_size()).expect("a page is smaller than 2^64 bytes")
}

/// Returns the page size of the memfds that `device` holds; `None` if it does not hold memfds.
pub(super) fn of_memfd(device: Device) -> Option<u64> {
    let holder = HOLDERS.iter().find(|holder| holder.device == device);
    holder.map(|holder| holder.page_size)
}

/// Returns the page size of a file that is no memfd: that of the system, unless the file is in a hugetlbfs.
///
/// Nothing here waits for a file system: only tmpfs and hugetlbfs have seals, and they are in the kernel.
pub(super) fn of_file(file: BorrowedFd<'_>, status: &Statx) -> u64 {
    let block_size = u64::from(status.stx_blksize);
    let is_huge = || {
        fcntl_get_seals(file).is_ok()
            && fstatfs(file).is_ok_and(|system| u64::try_from(system.f_type) == Ok(HUGETLBFS_MAGIC))
    };
    if block_size > own_page_size() && is_huge() {
        block_size
    } else {
        own_page_size()
    }
}

/// Returns the sizes of the huge pages that this system has.
pub(super) fn huge_sizes() -> impl Iterator<Item = u64> {
    let sizes = HOLDERS.iter().map(|holder| holder.page_size);
    sizes.filter(|size| *size > own_page_size())
}
