//! What a device wants to have mapped: whether it may be, and what the VMM makes of it.
//!
//! What the descriptor was opened for is not asked: `mmap` itself tells. So the usual mapping costs one system call here.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::DescriptorInfo;
use base::DescriptorKind;
use base::Protection;
use base::SafeDescriptor;
use base::Seals;
use base::inspect;
use base::page_size;
use base::seals;

use crate::MapSource;
use crate::VmMemorySource;
use crate::reason::Reason;
use crate::region_table::MappingKind;
use crate::region_table::check_alignment;

/// What a sealed memfd needs: its content then can't vanish under a mapping.
const NEEDED_SEALS: Seals = Seals::SHRINK;

/// What is to be mapped where, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    /// From the start of the file.
    pub(crate) source: u64,
    /// From the start of the region.
    pub(crate) dest: u64,
    /// How much.
    pub(crate) len: u64,
}

/// Returns where the range begins in its source, unless the device may not have such a source at all.
pub(crate) fn start<D>(source: &VmMemorySource<D>, allow_external: bool) -> Result<u64, Reason> {
    match source {
        VmMemorySource::Descriptor { offset, .. } => Ok(*offset),
        VmMemorySource::Vulkan { .. } => Ok(0),
        VmMemorySource::ExternalMapping { ptr } if allow_external => Ok(*ptr),
        VmMemorySource::ExternalMapping { .. } => Err(Reason::External),
    }
}

/// Finds out what the source's descriptor refers to, if it has one: usually the only system call besides the mapping itself.
pub(crate) fn look(
    source: &VmMemorySource<&SafeDescriptor>,
) -> Result<Option<DescriptorInfo>, Reason> {
    match source {
        VmMemorySource::Descriptor { descriptor, .. }
        | VmMemorySource::Vulkan { descriptor, .. } => inspect(descriptor.as_fd())
            .map(Some)
            .map_err(|error| Reason::Kernel { error }),
        VmMemorySource::ExternalMapping { .. } => Ok(None),
    }
}

/// Checks the descriptor that is to be mapped, if the source has one, and says what the [`Vm`](crate::Vm) is to map. `info` is
/// what [`look`] found.
pub(crate) fn open<'a>(
    source: &'a VmMemorySource<&'a SafeDescriptor>,
    info: Option<&'a DescriptorInfo>,
    range: &Range,
    require_seals: bool,
) -> Result<(MapSource<'a>, MappingKind), Reason> {
    match (source, info) {
        (VmMemorySource::Descriptor { descriptor, .. }, Some(info)) => {
            open_descriptor(descriptor, info, range, require_seals)
        }
        (VmMemorySource::Vulkan { descriptor, .. }, Some(info)) if check_kind(info).is_ok() => {
            open_descriptor(descriptor, info, range, require_seals)
        }
        (
            VmMemorySource::Vulkan {
                descriptor,
                handle_type,
                memory_idx,
                device_uuid,
                driver_uuid,
            },
            Some(_),
        ) => {
            // What can't be mapped may still be imported: the VMM knows.
            let source = MapSource::Vulkan {
                descriptor,
                handle_type: *handle_type,
                memory_idx: *memory_idx,
                device_uuid,
                driver_uuid,
            };
            Ok((source, MappingKind::Vulkan))
        }
        (VmMemorySource::ExternalMapping { ptr }, _) => {
            Ok((MapSource::External { address: *ptr }, MappingKind::External))
        }
        (_, None) => Err(Reason::NoDescriptor),
    }
}

fn open_descriptor<'a>(
    descriptor: &'a SafeDescriptor,
    info: &'a DescriptorInfo,
    range: &Range,
    require_seals: bool,
) -> Result<(MapSource<'a>, MappingKind), Reason> {
    let kind = check_kind(info)?;
    check_range(info, range)?;
    if require_seals {
        check_seals(descriptor.as_fd(), info)?;
    }
    let source = MapSource::Descriptor {
        descriptor,
        offset: range.source,
        info,
    };
    Ok((source, kind))
}

/// Says what an errno of [`Vm::map`](crate::Vm::map) means.
pub(crate) fn refusal(
    error: base::Error,
    source: &MapSource<'_>,
    protection: Protection,
) -> Reason {
    match source {
        MapSource::Descriptor { info, .. } => mmap_refusal(error, info.kind, protection),
        MapSource::External { .. } | MapSource::Vulkan { .. } => Reason::Kernel { error },
    }
}

/// Refuses kinds of descriptors that can't be mapped. `info` is what it refers to.
fn check_kind(info: &DescriptorInfo) -> Result<MappingKind, Reason> {
    match info.kind {
        // A mapping of such a file can make the whole VMM wait for its server.
        DescriptorKind::File if info.can_stall => Err(Reason::CanStall),
        DescriptorKind::Memfd => Ok(MappingKind::Memfd),
        DescriptorKind::File => Ok(MappingKind::File),
        DescriptorKind::DmaBuf => Ok(MappingKind::DmaBuf),
        kind => Err(Reason::DescriptorKind { kind }),
    }
}

/// Refuses a range that the file does not have, or that ends within one of its huge pages.
fn check_range(info: &DescriptorInfo, range: &Range) -> Result<(), Reason> {
    check_size(info, range.source, range.len)?;
    if info.page_size > page_size() as u64 {
        // The kernel maps whole pages only, and those of this file are larger than the region's.
        for number in [range.source, range.dest, range.len] {
            check_alignment(number, info.page_size)?;
        }
    }
    Ok(())
}

/// Refuses everything but a memfd that can't become shorter.
fn check_seals(descriptor: BorrowedFd<'_>, info: &DescriptorInfo) -> Result<(), Reason> {
    if info.kind != DescriptorKind::Memfd {
        return Err(Reason::DescriptorKind { kind: info.kind });
    }
    let has = seals(descriptor).map_err(|error| Reason::Kernel { error })?;
    if has.contains(NEEDED_SEALS) {
        Ok(())
    } else {
        let needs = NEEDED_SEALS;
        Err(Reason::NotSealed { has, needs })
    }
}

fn check_size(info: &DescriptorInfo, offset: u64, len: u64) -> Result<(), Reason> {
    let Some(size) = info.size else {
        return Ok(());
    };
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Reason::FileTooShort { offset, len, size }),
    }
}

/// Says what the kernel's reason to map a descriptor means.
fn mmap_refusal(error: base::Error, kind: DescriptorKind, protection: Protection) -> Reason {
    match error.errno() {
        // A seal against writing shows as EPERM.
        libc::EACCES | libc::EPERM => Reason::AccessMode { protection },
        // Opened with O_PATH, or in a file system without mappings.
        libc::EBADF | libc::ENODEV => Reason::DescriptorKind { kind },
        _ => Reason::Kernel { error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(kind: DescriptorKind, size: Option<u64>) -> DescriptorInfo {
        DescriptorInfo {
            kind,
            size,
            device: (0, 1),
            inode: 1,
            page_size: 0x1000,
            can_stall: false,
        }
    }

    #[test]
    fn kinds_other_than_files_memfds_and_dma_bufs_are_refused() {
        use DescriptorKind as Kind;
        let check = |kind| check_kind(&info(kind, None));
        assert_eq!(check(Kind::File), Ok(MappingKind::File));
        assert_eq!(check(Kind::Memfd), Ok(MappingKind::Memfd));
        assert_eq!(check(Kind::DmaBuf), Ok(MappingKind::DmaBuf));
        for kind in [
            Kind::Anonymous,
            Kind::BlockDevice,
            Kind::CharDevice,
            Kind::Directory,
            Kind::Other,
            Kind::Pipe,
            Kind::Socket,
        ] {
            assert_eq!(check(kind), Err(Reason::DescriptorKind { kind }));
        }
    }

    #[test]
    fn file_that_can_stall_is_refused() {
        let file = DescriptorInfo {
            can_stall: true,
            ..info(DescriptorKind::File, Some(0x1000))
        };
        assert_eq!(check_kind(&file), Err(Reason::CanStall));
        assert_eq!(Reason::CanStall.errno().errno(), libc::EBADF);
    }

    #[test]
    fn part_of_a_huge_page_is_refused() {
        const HUGE: u64 = 2 << 20;
        let file = DescriptorInfo {
            page_size: HUGE,
            ..info(DescriptorKind::Memfd, Some(4 * HUGE))
        };
        let check = |source, dest, len| check_range(&file, &Range { source, dest, len });
        assert_eq!(check(HUGE, 2 * HUGE, HUGE), Ok(()));
        for (source, dest, len) in [(0x1000, 0, HUGE), (0, 0x1000, HUGE), (0, 0, 0x1000)] {
            let reason = Reason::Misaligned {
                offset: 0x1000,
                page_size: HUGE,
            };
            assert_eq!(check(source, dest, len), Err(reason));
        }
    }

    #[test]
    fn range_up_to_the_last_byte_fits_and_one_more_does_not() {
        let file = info(DescriptorKind::File, Some(0x1801));
        assert_eq!(check_size(&file, 0x1000, 0x801), Ok(()));
        for (offset, len) in [(0x1000, 0x802), (0x2000, 1), (u64::MAX - 0xfff, 0x1000)] {
            let size = 0x1801;
            let reason = Reason::FileTooShort { offset, len, size };
            assert_eq!(check_size(&file, offset, len), Err(reason));
        }
        let unknown = info(DescriptorKind::DmaBuf, None);
        assert_eq!(check_size(&unknown, 0, u64::MAX), Ok(()));
    }

    #[test]
    fn refusals_of_mmap_get_the_errno_of_their_cause() {
        let errno = |errno| {
            let error = base::Error::new(errno);
            let protection = Protection::read_write();
            mmap_refusal(error, DescriptorKind::File, protection)
                .errno()
                .errno()
        };
        assert_eq!(errno(libc::EACCES), libc::EACCES);
        assert_eq!(errno(libc::EPERM), libc::EACCES);
        assert_eq!(errno(libc::EBADF), libc::EBADF);
        assert_eq!(errno(libc::ENODEV), libc::EBADF);
        assert_eq!(errno(libc::ENOMEM), libc::ENOMEM);
        assert_eq!(errno(libc::EOVERFLOW), libc::EOVERFLOW);
    }
}
