//! What a VMM does to its guest's address space for the service, and the arena that does it for a VMM which has no wishes.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Arc;

use base::DescriptorInfo;
use base::DescriptorKind;
use base::Error;
use base::MappedRegion;
use base::MemoryMapping;
use base::MemoryMappingArena;
use base::MemoryMappingBuilder;
use base::Protection;
use base::SafeDescriptor;
use base::Seals;
use base::SharedMemory;
use base::page_size;
use base::seal;

use crate::own_memory;
use crate::populate::Allowance;
use crate::populate::Populator;
use crate::service::DeviceId;
use crate::service::RegionConfig;

/// The name of one region among all of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionKey {
    /// Whose region it is.
    pub device: DeviceId,
    /// Its id among the device's.
    pub shmid: u8,
}

/// What is to be mapped.
#[derive(Clone, Copy, Debug)]
pub enum MapSource<'a> {
    /// A descriptor of a kind that is allowed, long enough for the range.
    Descriptor {
        /// What is mapped.
        descriptor: &'a SafeDescriptor,
        /// Bytes from its start, page aligned.
        offset: u64,
        /// What it refers to.
        info: &'a DescriptorInfo,
    },
    /// An allocation that a Vulkan driver exported, with a handle that can't be mapped. One that can comes as
    /// [`MapSource::Descriptor`].
    Vulkan {
        /// The exported handle.
        descriptor: &'a SafeDescriptor,
        /// The kind of handle, in the backend's terms.
        handle_type: u32,
        /// The index of the memory type.
        memory_idx: u32,
        /// The UUID of the physical device.
        device_uuid: &'a [u8; 16],
        /// The UUID of the driver.
        driver_uuid: &'a [u8; 16],
    },
    /// Memory of this process; only from devices that are allowed to name it.
    External {
        /// Its address, page aligned. All of the range is mapped, for what the protection asks.
        address: u64,
    },
}

/// One mapping that passed the service's checks: inside the region, on free pages, within the quotas.
#[derive(Clone, Copy, Debug)]
pub struct MapOperation<'a> {
    /// The region.
    pub region: RegionKey,
    /// Bytes from its start, page aligned.
    pub offset: u64,
    /// Bytes, not necessarily a multiple of the page size.
    pub len: u64,
    /// What is mapped.
    pub source: MapSource<'a>,
    /// What the guest may do with it.
    pub protection: Protection,
}

/// The guest's address space, as far as shared memory regions go.
///
/// Called by the service on its own thread only, one call at a time. A call must not wait for a device or a backend. On an error
/// nothing may have changed; the service answers the device with it.
pub trait Vm: Send {
    /// Takes over a new region, before any mapping in it. Called once a region.
    ///
    /// # Errors
    /// Whatever keeps the region from being used; it is not there then.
    fn add_region(&mut self, region: RegionKey, config: &RegionConfig) -> Result<(), Error>;

    /// Forgets a region that has no mapping left.
    fn remove_region(&mut self, region: RegionKey);

    /// Makes a region ready because the device says that mappings are to come. May come never, or more than once.
    ///
    /// # Errors
    /// Whatever keeps the region from being used. The default has nothing to prepare.
    fn prepare(&mut self, region: RegionKey) -> Result<(), Error> {
        let _ = region;
        Ok(())
    }

    /// Makes memory visible to the guest.
    ///
    /// # Errors
    /// The errno that the device gets; ENOTSUP for a kind of source that the VMM cannot map.
    fn map(&mut self, operation: &MapOperation<'_>) -> Result<(), Error>;

    /// Hides the `footprint` bytes at `offset` from the guest: one mapping as it was made, in whole pages.
    ///
    /// # Errors
    /// The errno that the device gets; the mapping is still there then.
    fn unmap(&mut self, region: RegionKey, offset: u64, footprint: u64) -> Result<(), Error>;

    /// Hides everything in a region of `len` bytes.
    ///
    /// # Errors
    /// What keeps mappings in place; the service then unmaps one by one, and tries again later. It must be idempotent.
    fn clear(&mut self, region: RegionKey, len: u64) -> Result<(), Error>;
}

/// A region's reserved range of host addresses, shared between the service and whoever shows it to the guest.
///
/// Clones are the same range. It goes when the last of them goes, so that a memslot's owner holds one as long as the slot.
#[derive(Clone, Debug)]
pub struct Arena {
    mapping: Arc<MemoryMappingArena>,
}

impl Arena {
    /// Reserves `len` bytes, a multiple of the page size. Nothing can be read or written there.
    ///
    /// # Errors
    /// EINVAL for 0 or a length that is no multiple, ENOMEM where there is no address space left.
    pub fn new(len: u64) -> Result<Self, Error> {
        let len = usize::try_from(len).map_err(|_| Error::new(libc::ENOMEM))?;
        Ok(Self {
            mapping: Arc::new(MemoryMappingArena::new(len)?),
        })
    }

    /// The range's first address.
    pub fn host_address(&self) -> u64 {
        self.mapping.as_ptr().expose_provenance() as u64
    }

    /// The range's bytes.
    pub fn len(&self) -> u64 {
        self.mapping.size() as u64
    }

    /// Returns whether the range is empty: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out of what is mapped.
    ///
    /// # Errors
    /// EFAULT where nothing is mapped or the file behind it has become shorter; ERANGE outside the range.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.mapping.read_at(place(offset)?, buffer)
    }

    /// Copies bytes into what is mapped.
    ///
    /// # Errors
    /// EFAULT where nothing is mapped, it is read-only, or the file behind it has become shorter; ERANGE outside the range.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.mapping.write_at(place(offset)?, bytes)
    }

    /// Whether both are the same range.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.mapping, &other.mapping)
    }

    /// Maps a descriptor right where it is wanted, with one system call. If the file's own code refuses, the range is no
    /// part of the arena for a moment.
    fn map_in_place(
        &self,
        operation: &MapOperation<'_>,
        descriptor: &SafeDescriptor,
        file_offset: u64,
    ) -> Result<(), Error> {
        let mapping: &MemoryMappingArena = &self.mapping;
        mapping.add_fd_mapping(
            place(operation.offset)?,
            place(operation.len)?,
            descriptor,
            file_offset,
            operation.protection,
        )
    }

    /// Maps a descriptor elsewhere and moves the mapping to where it is wanted.
    fn map_elsewhere(
        &self,
        operation: &MapOperation<'_>,
        descriptor: &SafeDescriptor,
        file_offset: u64,
    ) -> Result<(), Error> {
        let mapping = MemoryMappingBuilder::new(place(operation.len)?)
            .from_descriptor(descriptor)
            .offset(file_offset)
            .protection(operation.protection)
            .build()?;
        self.mapping.move_in(place(operation.offset)?, mapping)
    }

    /// Maps shared memory of this process a second time.
    fn duplicate(&self, operation: &MapOperation<'_>, address: u64) -> Result<(), Error> {
        if !own_memory::is_one_shared_area(address, operation.len)? {
            return Err(Error::new(libc::ENOTSUP));
        }
        let mapping =
            MemoryMapping::duplicate(address, place(operation.len)?, operation.protection)?;
        self.mapping.move_in(place(operation.offset)?, mapping)
    }

    fn unmap(&self, offset: u64, footprint: u64) -> Result<(), Error> {
        let mapping: &MemoryMappingArena = &self.mapping;
        mapping.remove_mapping(place(offset)?, place(footprint)?)
    }

    pub(crate) fn populate(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.mapping.populate(place(offset)?, place(len)?)
    }
}

fn place(offset: u64) -> Result<usize, Error> {
    usize::try_from(offset).map_err(|_| Error::new(libc::ERANGE))
}

/// The provided [`Vm`]: each region is an arena, a map and an unmap are one `mmap` each.
///
/// It maps descriptors, and memory of this process where that is a part of one shared mapping; other memory of this process is
/// ENOTSUP, since the kernel gives it no second address. A Vulkan allocation that has no descriptor to map is EBADF.
///
/// Where the file's own code may refuse the mapping, it is mapped elsewhere first: a refused `mmap` with `MAP_FIXED` leaves a
/// hole, and another thread's memory could get there and be shown to the guest.
///
/// In a region with [`RegionConfig::populate`] the pages of memfds are filled in ahead of the guest, by a thread of its own.
#[derive(Debug)]
pub struct ArenaVm {
    regions: HashMap<RegionKey, ArenaRegion>,
    seals_leave_holes: bool,
    /// From the first region on that has use for it.
    populator: Option<Populator>,
}

#[derive(Debug)]
struct ArenaRegion {
    arena: Arena,
    to_populate: Allowance,
}

impl Default for ArenaVm {
    fn default() -> Self {
        Self::new()
    }
}

impl ArenaVm {
    /// Makes one without regions.
    pub fn new() -> Self {
        Self {
            regions: HashMap::new(),
            seals_leave_holes: seals_leave_holes(),
            populator: None,
        }
    }

    /// Whether nothing but the kernel's memory management has a say in the mapping: so it is with memfds of ordinary pages,
    /// but for older kernels' check of the seals.
    fn accepts_in_place(&self, info: &DescriptorInfo, protection: Protection) -> bool {
        is_ordinary_memory(info)
            && !(self.seals_leave_holes && protection.allows(&Protection::write()))
    }

    fn arena(&self, region: RegionKey) -> Result<&Arena, Error> {
        let region = self.regions.get(&region).ok_or(Error::new(libc::ENXIO))?;
        Ok(&region.arena)
    }

    /// Has a new mapping's pages filled in as far as its region allows it. A file's pages may be on a disk, and a huge page takes long.
    fn populate(&mut self, operation: &MapOperation<'_>) {
        let Some(populator) = &self.populator else {
            return;
        };
        let Some(region) = self.regions.get_mut(&operation.region) else {
            return;
        };
        let MapSource::Descriptor { info, .. } = operation.source else {
            return;
        };
        let len = region.to_populate.of(operation.len, page_size() as u64);
        if len > 0
            && is_ordinary_memory(info)
            && populator.populate(&region.arena, operation.offset, len)
        {
            region.to_populate.spend(len);
        }
    }

    #[cfg(test)]
    pub(crate) fn into_populator(self) -> Option<Populator> {
        self.populator
    }
}

/// Whether it is a memfd of ordinary pages.
fn is_ordinary_memory(info: &DescriptorInfo) -> bool {
    info.kind == DescriptorKind::Memfd && info.page_size == page_size() as u64
}

impl Vm for ArenaVm {
    fn add_region(&mut self, region: RegionKey, config: &RegionConfig) -> Result<(), Error> {
        let arena = match &config.arena {
            Some(arena) => arena.clone(),
            None => Arena::new(config.len)?,
        };
        if arena.len() != config.len {
            return Err(Error::new(libc::EINVAL));
        }
        let to_populate = Allowance::new(config.populate);
        if !to_populate.is_spent() && self.populator.is_none() {
            self.populator = Some(Populator::start()?);
        }
        let added = ArenaRegion { arena, to_populate };
        self.regions.insert(region, added);
        Ok(())
    }

    fn remove_region(&mut self, region: RegionKey) {
        self.regions.remove(&region);
    }

    fn map(&mut self, operation: &MapOperation<'_>) -> Result<(), Error> {
        let arena = self.arena(operation.region)?;
        match operation.source {
            MapSource::Descriptor {
                descriptor,
                offset,
                info,
            } if self.accepts_in_place(info, operation.protection) => {
                arena.map_in_place(operation, descriptor, offset)
            }
            MapSource::Descriptor {
                descriptor, offset, ..
            } => arena.map_elsewhere(operation, descriptor, offset),
            MapSource::External { address } => arena.duplicate(operation, address),
            MapSource::Vulkan { .. } => Err(Error::new(libc::EBADF)),
        }?;
        self.populate(operation);
        Ok(())
    }

    fn unmap(&mut self, region: RegionKey, offset: u64, footprint: u64) -> Result<(), Error> {
        self.arena(region)?.unmap(offset, footprint)
    }

    fn clear(&mut self, region: RegionKey, len: u64) -> Result<(), Error> {
        self.arena(region)?.unmap(0, len)
    }
}

/// Finds out whether this kernel looks at a memfd's seals only when it has unmapped what was there (before 6.14 it does): whether
/// a mapping survives that another one is refused at its place. If anything fails the answer is yes.
fn seals_leave_holes() -> bool {
    let experiment = || -> Result<(), Error> {
        let page = page_size();
        let there = SharedMemory::new("there", page as u64)?;
        let sealed = SharedMemory::new("sealed", page as u64)?;
        seal(sealed.as_fd(), Seals::WRITE)?;
        let arena = MemoryMappingArena::new(page)?;
        let range: &MemoryMappingArena = &arena;
        range.add_fd_mapping(0, page, &there, 0, Protection::read())?;
        let refused = range.add_fd_mapping(0, page, &sealed, 0, Protection::read_write());
        if refused.is_ok() {
            return Err(Error::new(libc::EINVAL));
        }
        arena.read_at(0, &mut [0])
    };
    experiment().is_err()
}
