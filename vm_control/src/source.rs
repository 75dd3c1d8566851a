//! What may be mapped: the kinds of descriptors, their length, their seals.
//!
//! The access mode is not looked at: `mmap` itself refuses what the descriptor was not opened for, without a further call.

use std::os::fd::AsFd;

use base::DescriptorKind;
use base::Error;
use base::SafeDescriptor;
use base::Seals;
use base::inspect;
use base::page_size;
use base::seals;

use crate::MappingKind;

/// Checks that `len` bytes at `offset` of `descriptor` can be mapped and returns what it is.
///
/// # Errors
/// EINVAL: `offset` is not page aligned. EBADF: a kind that is not allowed. EOVERFLOW: too short. EPERM: seals are demanded and
/// missing.
pub(crate) fn check(
    descriptor: &SafeDescriptor,
    offset: u64,
    len: u64,
    require_seals: bool,
) -> Result<MappingKind, Error> {
    if !offset.is_multiple_of(page_size() as u64) {
        return Err(Error::new(libc::EINVAL));
    }
    let info = inspect(descriptor.as_fd())?;
    let kind = match info.kind {
        DescriptorKind::File if !require_seals => MappingKind::File,
        DescriptorKind::DmaBuf if !require_seals => MappingKind::DmaBuf,
        DescriptorKind::Memfd => MappingKind::Memfd,
        _ => return Err(Error::new(libc::EBADF)),
    };
    let end = offset.checked_add(len).ok_or(Error::new(libc::EOVERFLOW))?;
    // A dma-buf's length is the exporter's affair; its own mmap refuses what does not fit.
    if kind != MappingKind::DmaBuf && info.size.is_none_or(|size| size < end) {
        return Err(Error::new(libc::EOVERFLOW));
    }
    if require_seals && !seals(descriptor.as_fd())?.contains(Seals::SHRINK) {
        return Err(Error::new(libc::EPERM));
    }
    Ok(kind)
}

/// Turns what `mmap` says into what the device is told.
///
/// The kernel has EPERM for a writable mapping of a memfd that is sealed against writing, and ENODEV for a file system that maps
/// nothing: the project's errnos for these are EACCES and EBADF. A dma-buf says EINVAL where it is too short.
pub(crate) fn translate(error: Error, kind: MappingKind) -> Error {
    match (error.errno(), kind) {
        (libc::EPERM, _) => Error::new(libc::EACCES),
        (libc::ENODEV, _) => Error::new(libc::EBADF),
        (libc::EINVAL, MappingKind::DmaBuf) => Error::new(libc::EOVERFLOW),
        _ => error,
    }
}
