//! One device of the service: its regions, what it uses of its limits, and what its requests lead to.

use arrayvec::ArrayVec;
use base::Error;
use base::Protection;
use base::RateLimit;
use base::error;
use base::packet::PacketTube;
use base::page_size;
use base::warn;

use super::DeviceConfig;
use super::DeviceId;
use super::RegionConfig;
use super::ServiceError;
use super::serve::Shared;
use crate::Generation;
use crate::MapOperation;
use crate::MapSource;
use crate::MappingInfo;
use crate::MappingKind;
use crate::RegionKey;
use crate::RegionTable;
use crate::RequestBatch;
use crate::ResponseBatch;
use crate::VmMemoryDestination;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;
use crate::VmMemorySource;
use crate::limits::Usage;
use crate::report::Counters;
use crate::report::DeviceStats;
use crate::report::Refusal;
use crate::source;

/// Lines about unmaps of a wrong length: at once, and then one in this time.
const LOG_BURST: u32 = 3;
const LOG_PERIOD: std::time::Duration = std::time::Duration::from_secs(10);

struct Region {
    shmid: u8,
    guest_address: u64,
    len: u64,
    table: RegionTable,
}

pub(super) struct Device {
    pub(super) tube: PacketTube,
    id: DeviceId,
    config: DeviceConfig,
    generation: Generation,
    /// Few, so that a search is as fast as a map of any kind.
    regions: Vec<Region>,
    usage: Usage,
    counters: Counters,
    log: RateLimit,
}

impl Device {
    pub(super) fn new(id: DeviceId, config: DeviceConfig, tube: PacketTube) -> Self {
        Self {
            tube,
            id,
            config,
            generation: Generation::default(),
            regions: Vec::new(),
            usage: Usage::default(),
            counters: Counters::default(),
            log: RateLimit::new(LOG_BURST, LOG_PERIOD),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn add_region(
        &mut self,
        config: &RegionConfig,
        shared: &mut Shared,
    ) -> Result<(), ServiceError> {
        let RegionConfig {
            shmid,
            guest_address,
            len,
            ..
        } = *config;
        let page = page_size() as u64;
        let whole = len > 0
            && len.is_multiple_of(page)
            && guest_address.is_multiple_of(page)
            && guest_address.checked_add(len).is_some();
        if !whole {
            return Err(ServiceError::BadRegion {
                shmid,
                guest_address,
                len,
            });
        }
        if self.regions.iter().any(|region| region.shmid == shmid) {
            return Err(ServiceError::RegionExists { shmid });
        }
        shared
            .vm
            .add_region(self.key(shmid), config)
            .map_err(|source| ServiceError::Vm { shmid, source })?;
        self.regions.push(Region {
            shmid,
            guest_address,
            len,
            table: RegionTable::new(len),
        });
        Ok(())
    }

    /// Executes a batch in order and returns the answers in the same order.
    pub(super) fn execute(&mut self, batch: &RequestBatch, shared: &mut Shared) -> ResponseBatch {
        self.counters.batches += 1;
        let current = batch.generation == self.generation;
        let mut responses = ArrayVec::new();
        for request in &batch.requests {
            let result = if current {
                self.request(request, shared)
            } else {
                Err(Error::new(libc::ECANCELED))
            };
            // There is room: a batch has no more requests than answers.
            responses.push(match result {
                Ok(()) => VmMemoryResponse::Ok,
                Err(errno) => {
                    self.counters.refuse(Refusal::new(request, errno));
                    VmMemoryResponse::Err(errno)
                }
            });
        }
        ResponseBatch { responses }
    }

    fn request(&mut self, request: &VmMemoryRequest, shared: &mut Shared) -> Result<(), Error> {
        match request {
            VmMemoryRequest::RegisterMemory {
                source,
                dest,
                len,
                prot,
            } => self.map(source, *dest, *len, *prot, shared),
            VmMemoryRequest::UnregisterMemory { dest, len } => self.unmap(*dest, *len, shared),
            VmMemoryRequest::PrepareRegion { shmid } => {
                self.region(*shmid)?;
                shared.vm.prepare(self.key(*shmid))
            }
            VmMemoryRequest::UnregisterAll => {
                self.counters.unmaps += self.clear(shared);
                Ok(())
            }
        }
    }

    fn map(
        &mut self,
        source: &VmMemorySource,
        dest: VmMemoryDestination,
        len: u64,
        protection: Protection,
        shared: &mut Shared,
    ) -> Result<(), Error> {
        if !protection.allows(&Protection::read()) {
            return Err(Error::new(libc::EINVAL));
        }
        if matches!(source, VmMemorySource::ExternalMapping { .. }) && !self.config.allow_external {
            return Err(Error::new(libc::EPERM));
        }
        let place = self.region(dest.shmid)?.table.check_map(dest.offset, len)?;
        if shared.mappings >= shared.max_mappings {
            return Err(Error::new(libc::EDQUOT));
        }
        let usage = self.usage.with(place.footprint(), &self.config.limits)?;
        let (source, kind) = self.check_source(source, len)?;
        shared
            .vm
            .map(&MapOperation {
                region: self.key(dest.shmid),
                offset: dest.offset,
                len,
                source,
                protection,
            })
            .map_err(|error| source::translate(error, kind))?;
        self.region_mut(dest.shmid)?
            .table
            .insert(place, protection, kind);
        self.usage = usage;
        shared.mappings += 1;
        self.counters.maps += 1;
        Ok(())
    }

    fn check_source<'a>(
        &self,
        source: &'a VmMemorySource,
        len: u64,
    ) -> Result<(MapSource<'a>, MappingKind), Error> {
        let require_seals = self.config.require_seals;
        match source {
            VmMemorySource::Descriptor { descriptor, offset } => {
                let kind = source::check(descriptor, *offset, len, require_seals)?;
                let offset = *offset;
                Ok((MapSource::Descriptor { descriptor, offset }, kind))
            }
            VmMemorySource::Vulkan {
                descriptor,
                handle_type,
                memory_idx,
                device_uuid,
                driver_uuid,
            } => {
                // What is not mappable may still be importable: the VMM's own implementation of `Vm` knows.
                source::check(descriptor, 0, len, require_seals)?;
                let source = MapSource::Vulkan {
                    descriptor,
                    handle_type: *handle_type,
                    memory_idx: *memory_idx,
                    device_uuid,
                    driver_uuid,
                };
                Ok((source, MappingKind::Vulkan))
            }
            VmMemorySource::ExternalMapping { ptr } => {
                Ok((MapSource::External { address: *ptr }, MappingKind::External))
            }
        }
    }

    fn unmap(
        &mut self,
        dest: VmMemoryDestination,
        len: u64,
        shared: &mut Shared,
    ) -> Result<(), Error> {
        let offset_only = self.config.offset_only_unmap;
        let table = &self.region(dest.shmid)?.table;
        let mapping = match table.check_unmap(dest.offset, len, offset_only) {
            Ok(mapping) => mapping,
            Err(error) => {
                let live = table.at(dest.offset).map(|mapping| mapping.len);
                self.log_wrong_length(dest, len, live);
                return Err(error);
            }
        };
        let footprint = mapping.footprint();
        // The record goes after the mapping, so that a failure leaves both.
        shared
            .vm
            .unmap(self.key(dest.shmid), dest.offset, footprint)?;
        self.region_mut(dest.shmid)?.table.remove(dest.offset);
        self.usage = self.usage.without(footprint);
        shared.mappings = shared.mappings.saturating_sub(1);
        self.counters.unmaps += 1;
        Ok(())
    }

    /// Says what is wrong with an unmap that names a live mapping by its offset and not by its length.
    fn log_wrong_length(&mut self, dest: VmMemoryDestination, len: u64, live: Option<u64>) {
        if let Some(live) = live
            && let Some(unsaid) = self.log.permit()
        {
            warn!(
                "{}: unmap of {len:#x} bytes at {:#x} of region {}, where {live:#x} are mapped: an unmap names the whole \
                 mapping; allow offset-only unmaps for a backend that does not ({unsaid} such lines left out)",
                self.config.name, dest.offset, dest.shmid
            );
        }
    }

    /// Removes all mappings and returns how many there were. One that the VMM cannot remove keeps its record.
    fn clear(&mut self, shared: &mut Shared) -> u64 {
        let mut removed = 0;
        for region in &mut self.regions {
            if region.table.mappings() == 0 {
                continue;
            }
            let key = RegionKey {
                device: self.id,
                shmid: region.shmid,
            };
            let gone = match shared.vm.clear(key, region.len) {
                Ok(()) => region.table.take_all(),
                Err(_) => unmap_each(key, &mut region.table, shared),
            };
            self.usage.mappings = self.usage.mappings.saturating_sub(gone.mappings);
            self.usage.bytes = self.usage.bytes.saturating_sub(gone.bytes);
            shared.mappings = shared.mappings.saturating_sub(gone.mappings);
            removed += u64::from(gone.mappings);
        }
        removed
    }

    pub(super) fn reset(&mut self, id: DeviceId, shared: &mut Shared) -> Generation {
        debug_assert_eq!(id, self.id, "a device is kept under its own id");
        self.clear(shared);
        self.generation = Generation(self.generation.0.wrapping_add(1));
        self.generation
    }

    /// Removes everything before the device goes, and returns how many mappings there were.
    pub(super) fn remove(&mut self, shared: &mut Shared) -> u64 {
        let removed = self.clear(shared);
        for region in self.regions.drain(..) {
            shared.vm.remove_region(RegionKey {
                device: self.id,
                shmid: region.shmid,
            });
        }
        removed
    }

    pub(super) fn mappings(&self, id: DeviceId) -> impl Iterator<Item = MappingInfo> {
        self.regions.iter().flat_map(move |region| {
            region.table.iter().map(move |mapping| MappingInfo {
                device: self.config.name.clone(),
                device_id: id,
                shmid: region.shmid,
                offset: mapping.offset,
                len: mapping.len,
                footprint: mapping.footprint(),
                protection: mapping.protection,
                kind: mapping.kind,
                guest_address: region.guest_address + mapping.offset,
            })
        })
    }

    pub(super) fn stats(&self, id: DeviceId) -> DeviceStats {
        DeviceStats {
            device: self.config.name.clone(),
            device_id: id,
            generation: self.generation,
            live: self.usage.mappings,
            live_bytes: self.usage.bytes,
            counters: self.counters.clone(),
        }
    }

    fn key(&self, shmid: u8) -> RegionKey {
        RegionKey {
            device: self.id,
            shmid,
        }
    }

    fn region(&self, shmid: u8) -> Result<&Region, Error> {
        self.regions
            .iter()
            .find(|region| region.shmid == shmid)
            .ok_or(Error::new(libc::ENXIO))
    }

    fn region_mut(&mut self, shmid: u8) -> Result<&mut Region, Error> {
        self.regions
            .iter_mut()
            .find(|region| region.shmid == shmid)
            .ok_or(Error::new(libc::ENXIO))
    }
}

/// Removes the mappings of a region one by one, where they cannot go all at once, and returns what went.
fn unmap_each(key: RegionKey, table: &mut RegionTable, shared: &mut Shared) -> Usage {
    let mut gone = Usage::default();
    let all: Vec<_> = table.iter().copied().collect();
    for mapping in all {
        let footprint = mapping.footprint();
        match shared.vm.unmap(key, mapping.offset, footprint) {
            Ok(()) => {
                table.remove(mapping.offset);
                gone.mappings += 1;
                gone.bytes += footprint;
            }
            Err(error) => error!(
                "region {}: {footprint:#x} bytes at {:#x} stay mapped: {error}",
                key.shmid, mapping.offset
            ),
        }
    }
    gone
}
