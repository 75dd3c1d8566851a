//! What a descriptor of unknown origin refers to, without giving its origin a chance to stall.

use std::os::fd::BorrowedFd;
use std::sync::LazyLock;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::MemfdFlags;
use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::fs::fstatfs;
use rustix::fs::memfd_create;
use rustix::fs::statx;
use serde::Deserialize;
use serde::Serialize;

use crate::Result;

/// `DMA_BUF_MAGIC`, the file system type of dma-bufs.
const DMA_BUF_MAGIC: u64 = 0x444d_4142;

/// What a descriptor refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DescriptorKind {
    /// Something without a type, such as an eventfd or an epoll instance.
    Anonymous,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A directory.
    Directory,
    /// A dma-buf.
    DmaBuf,
    /// A regular file in a file system.
    File,
    /// Anonymous shared memory, of huge pages or not.
    Memfd,
    /// Something else, such as a symbolic link opened with `O_PATH`.
    Other,
    /// A pipe or a FIFO.
    Pipe,
    /// A socket.
    Socket,
}

/// What [`inspect`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorInfo {
    /// What it refers to. A descriptor that was opened with `O_PATH` shows as what its path names; to map it is `EBADF`.
    pub kind: DescriptorKind,
    /// The length in bytes, for those kinds that have one: `File`, `Memfd` and `DmaBuf`. A file on a network or user
    /// file system shows the length that the kernel knows.
    pub size: Option<u64>,
    /// Major and minor number of the device that holds it.
    pub device: (u32, u32),
    /// Its inode number on that device.
    pub inode: u64,
}

/// Finds out what `descriptor` refers to; for everything that has a type with one system call.
///
/// It never waits for a file system: attributes are taken as the kernel has them (`AT_STATX_DONT_SYNC`), since the file
/// system may be the descriptor's sender.
///
/// # Errors
/// The errno of `statx`: `EBADF` if the descriptor is not open.
pub fn inspect(descriptor: BorrowedFd<'_>) -> Result<DescriptorInfo> {
    let status = status(descriptor)?;
    let device = (status.stx_dev_major, status.stx_dev_minor);
    let kind = match FileType::from_raw_mode(u32::from(status.stx_mode)) {
        FileType::RegularFile if MEMFD_DEVICES.contains(&Some(device)) => DescriptorKind::Memfd,
        FileType::RegularFile => DescriptorKind::File,
        FileType::Directory => DescriptorKind::Directory,
        FileType::Fifo => DescriptorKind::Pipe,
        FileType::Socket => DescriptorKind::Socket,
        FileType::CharacterDevice => DescriptorKind::CharDevice,
        FileType::BlockDevice => DescriptorKind::BlockDevice,
        _ if u32::from(status.stx_mode) & libc::S_IFMT == 0 => typeless(descriptor)?,
        _ => DescriptorKind::Other,
    };
    let has_size = matches!(
        kind,
        DescriptorKind::File | DescriptorKind::Memfd | DescriptorKind::DmaBuf
    );
    Ok(DescriptorInfo {
        kind,
        size: has_size.then_some(status.stx_size),
        device,
        inode: status.stx_ino,
    })
}

/// Tells dma-bufs from other inodes without a type. Only the kernel itself makes those, so that asking for their file
/// system waits for nobody.
fn typeless(descriptor: BorrowedFd<'_>) -> Result<DescriptorKind> {
    let file_system = fstatfs(descriptor)?.f_type;
    Ok(if u64::try_from(file_system) == Ok(DMA_BUF_MAGIC) {
        DescriptorKind::DmaBuf
    } else {
        DescriptorKind::Anonymous
    })
}

fn status(descriptor: BorrowedFd<'_>) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::INO;
    Ok(statx(descriptor, c"", flags, wanted)?)
}

/// The devices that hold memfds: one for ordinary pages, one for each size of huge pages. They are the kernel's own and
/// stay the same until it restarts, so that the first use finds them once and for all.
static MEMFD_DEVICES: LazyLock<[Option<(u32, u32)>; 3]> = LazyLock::new(|| {
    [
        MemfdFlags::CLOEXEC,
        MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    ]
    .map(|flags| {
        let memfd = memfd_create(c"inspect", flags).ok()?;
        let status = status(std::os::fd::AsFd::as_fd(&memfd)).ok()?;
        Some((status.stx_dev_major, status.stx_dev_minor))
    })
});

#[cfg(test)]
mod tests;
