//! What a descriptor of unknown origin refers to, without giving its origin a chance to stall.

mod dma_buf;
mod pages;
mod stall;
#[cfg(test)]
mod tests;

use std::os::fd::BorrowedFd;

use rustix::fs::AtFlags;
use rustix::fs::FileType;
use rustix::fs::Statx;
use rustix::fs::StatxFlags;
use rustix::fs::statx;
use serde::Deserialize;
use serde::Serialize;

use crate::Error;
use crate::Result;

/// Major and minor number of a device.
type Device = (u32, u32);

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
    /// The size in bytes of the pages that it is mapped in: larger than the system's for files of huge pages, of which
    /// only whole pages can be mapped.
    pub page_size: u64,
    /// Whether to read, map, unmap or close it may wait for a process that serves its file system: a file for which the
    /// opposite is not known. It should be refused, and closed with a [`Closer`](crate::Closer).
    pub can_stall: bool,
}

/// Finds out what `descriptor` refers to. For memfds and for files on block devices that takes one system call; files in
/// other file systems, files with large blocks and what has no type take a few more.
///
/// It never waits for a file system: attributes are taken as the kernel has them (`AT_STATX_DONT_SYNC`), since the file
/// system may be the descriptor's sender.
///
/// # Errors
/// The errno of `statx`: `EBADF` if the descriptor is not open.
pub fn inspect(descriptor: BorrowedFd<'_>) -> Result<DescriptorInfo> {
    let wanted = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::INO | stall::MOUNT;
    let status = status(descriptor, wanted)?;
    let device = device(&status);
    let memfd_page_size = pages::of_memfd(device);
    let kind = match FileType::from_raw_mode(u32::from(status.stx_mode)) {
        FileType::RegularFile if memfd_page_size.is_some() => DescriptorKind::Memfd,
        FileType::RegularFile if dma_buf::is_regular_dma_buf(descriptor, device) => {
            DescriptorKind::DmaBuf
        }
        FileType::RegularFile => DescriptorKind::File,
        FileType::Directory => DescriptorKind::Directory,
        FileType::Fifo => DescriptorKind::Pipe,
        FileType::Socket => DescriptorKind::Socket,
        FileType::CharacterDevice => DescriptorKind::CharDevice,
        FileType::BlockDevice => DescriptorKind::BlockDevice,
        _ if u32::from(status.stx_mode) & libc::S_IFMT != 0 => DescriptorKind::Other,
        _ if dma_buf::is_typeless_dma_buf(descriptor) => DescriptorKind::DmaBuf,
        _ => DescriptorKind::Anonymous,
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
        page_size: memfd_page_size.unwrap_or_else(|| pages::of_file(descriptor, &status)),
        can_stall: kind == DescriptorKind::File && stall::of_file(descriptor, &status),
    })
}

/// Makes sure that a mapping of `len` bytes of `file` at `address` ends there.
///
/// Of a file of huge pages the kernel maps whole ones only, if the address is a multiple of their size, and rounds the
/// length up without a word. Other files are asked about only where it could happen to them.
///
/// # Errors
/// `EINVAL` if the mapping would be longer, the errno of `statx` if the file can't be asked.
pub(crate) fn check_not_rounded_up(file: BorrowedFd<'_>, address: usize, len: usize) -> Result<()> {
    let exceeds = |page_size: u64| match usize::try_from(page_size) {
        Ok(page_size) => address.is_multiple_of(page_size) && !len.is_multiple_of(page_size),
        Err(_) => true,
    };
    if pages::huge_sizes().any(exceeds) && exceeds(inspect(file)?.page_size) {
        return Err(Error::new(libc::EINVAL));
    }
    Ok(())
}

fn status(descriptor: BorrowedFd<'_>, wanted: StatxFlags) -> Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    Ok(statx(descriptor, c"", flags, wanted)?)
}

fn device(status: &Statx) -> Device {
    (status.stx_dev_major, status.stx_dev_minor)
}
