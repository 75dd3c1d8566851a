//! One device of the service: its regions, what it uses of its limits, and what its requests lead to.
//!
//! The order of the checks decides which errno a request with several faults gets: what the device may do at all (EPERM), the
//! request's form (EINVAL), the region (ENXIO), the range (ERANGE), the live mappings (EEXIST, ENOENT), the quotas (EDQUOT),
//! the descriptor's kind (EBADF), length (EOVERFLOW) and seals (EPERM), and at last the mapping itself (EACCES, or whatever
//! the kernel says).

use std::fmt;
use std::time::Duration;

use base::Protection;
use base::RateLimit;
use base::SafeDescriptor;
use base::error;
use base::warn;

use super::DeviceConfig;
use super::DeviceId;
use super::RegionConfig;
use super::ServiceError;
use super::batch::Batch;
use super::closing::Suspects;
use crate::Arena;
use crate::Generation;
use crate::MapOperation;
use crate::MapSource;
use crate::MappingInfo;
use crate::Occupied;
use crate::Reason;
use crate::RegionKey;
use crate::RegionTable;
use crate::ResponseBatch;
use crate::UnmapRule;
use crate::Vm;
use crate::VmMemoryDestination;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;
use crate::VmMemorySource;
use crate::limits::Account;
use crate::limits::AreaBudget;
use crate::own_memory;
use crate::region_table::check_alignment;
use crate::report::Counters;
use crate::report::DeviceStats;
use crate::report::Refusal;
use crate::source;
use crate::source::Range;

/// Lines about one device's refused requests: so many at once, and then one in this time.
const LOG_BURST: u32 = 8;
const LOG_PERIOD: Duration = Duration::from_secs(1);

/// What all devices share.
pub(super) struct Shared {
    pub(super) vm: Box<dyn Vm>,
    pub(super) areas: AreaBudget,
    pub(super) page_size: u64,
}

/// A region and its live mappings.
pub(super) struct Region {
    pub(super) shmid: u8,
    pub(super) guest_address: u64,
    pub(super) len: u64,
    pub(super) arena: Option<Arena>,
    table: RegionTable,
}

/// A device, without its tube.
pub(super) struct Device {
    id: DeviceId,
    config: DeviceConfig,
    generation: Generation,
    /// By their ids.
    regions: Vec<Region>,
    account: Account,
    counters: Counters,
    log: RateLimit,
}

impl Device {
    pub(super) fn new(id: DeviceId, config: DeviceConfig) -> Self {
        Self {
            id,
            account: Account::new(config.limits),
            config,
            generation: Generation::default(),
            regions: Vec::new(),
            counters: Counters::default(),
            log: RateLimit::new(LOG_BURST, LOG_PERIOD),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.config.name
    }

    pub(super) fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter()
    }

    /// Adds a region, which the caller has checked against all others.
    pub(super) fn add_region(
        &mut self,
        config: &RegionConfig,
        shared: &mut Shared,
    ) -> Result<(), ServiceError> {
        let shmid = config.shmid;
        let place = match self.find_region(shmid) {
            Ok(_) => return Err(ServiceError::RegionExists { shmid }),
            Err(place) => place,
        };
        shared
            .vm
            .add_region(self.key(shmid), config)
            .map_err(|source| ServiceError::Vm { shmid, source })?;
        let region = Region {
            shmid,
            guest_address: config.guest_address,
            len: config.len,
            arena: config.arena.clone(),
            table: RegionTable::new(config.len, shared.page_size),
        };
        self.regions.insert(place, region);
        Ok(())
    }

    /// Executes a batch in order and puts the answers into `answers`, which is empty, in the same order. Returns which of
    /// `descriptors` may be of a kind that does not close at once. What needs a descriptor that is not among them is refused
    /// with EMFILE.
    pub(super) fn execute(
        &mut self,
        batch: Batch<'_>,
        descriptors: &[SafeDescriptor],
        answers: &mut ResponseBatch,
        shared: &mut Shared,
    ) -> Suspects {
        self.counters.batches += 1;
        let mut suspects = Suspects::default();
        let generation = batch.generation();
        for request in batch {
            let outcome = self.check_generation(generation).and_then(|()| {
                let place = |index| descriptors.get(usize::from(index));
                let request = request.try_map(place).ok_or(Reason::NoDescriptor)?;
                self.request(&request, shared)
            });
            if let Some(&index) = request.descriptor()
                && (outcome.is_err() || is_import(&request))
            {
                suspects.insert(index);
            }
            // There is room: a batch has no more requests than answers.
            answers.responses.push(match outcome {
                Ok(()) => VmMemoryResponse::Ok,
                Err(reason) => self.note_refusal(Refusal::new(&request, reason)),
            });
        }
        suspects
    }

    /// Refuses requests of another activation of the device.
    fn check_generation(&self, generation: Generation) -> Result<(), Reason> {
        if generation == self.generation {
            Ok(())
        } else {
            let current = self.generation;
            Err(Reason::Cancelled {
                generation,
                current,
            })
        }
    }

    fn request(
        &mut self,
        request: &VmMemoryRequest<&SafeDescriptor>,
        shared: &mut Shared,
    ) -> Result<(), Reason> {
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
                let prepared = shared.vm.prepare(self.key(*shmid));
                prepared.map_err(|error| Reason::Kernel { error })
            }
            VmMemoryRequest::UnregisterAll => {
                let before = self.account.mappings();
                let outcome = self.clear(shared);
                self.counters.unmaps += u64::from(before - self.account.mappings());
                outcome.map_err(|error| Reason::Kernel { error })
            }
        }
    }

    fn map(
        &mut self,
        source: &VmMemorySource<&SafeDescriptor>,
        dest: VmMemoryDestination,
        len: u64,
        protection: Protection,
        shared: &mut Shared,
    ) -> Result<(), Reason> {
        let source_offset = source::start(source, self.config.allow_external)?;
        check_form(&[source_offset, dest.offset], len, shared.page_size)?;
        if !protection.allows(&Protection::read()) {
            return Err(Reason::Protection);
        }
        let key = self.key(dest.shmid);
        let place = self.region(dest.shmid)?;
        let vacancy = self.regions[place].table.vacancy(dest.offset, len)?;
        self.account.check(vacancy.footprint())?;
        shared.areas.check(vacancy.areas())?;
        let info = source::look(source)?;
        let range = Range {
            source: source_offset,
            dest: dest.offset,
            len,
        };
        let (source, kind) =
            source::open(source, info.as_ref(), &range, self.config.require_seals)?;
        if let MapSource::External { address } = source {
            own_memory::check(address, len, protection)?;
        }
        shared
            .vm
            .map(&MapOperation {
                region: key,
                offset: dest.offset,
                len,
                source,
                protection,
            })
            .map_err(|error| source::refusal(error, &source, protection))?;
        self.regions[place].table.insert(vacancy, protection, kind);
        self.account.add(vacancy.footprint());
        shared.areas.take(vacancy.areas());
        self.counters.maps += 1;
        Ok(())
    }

    fn unmap(
        &mut self,
        dest: VmMemoryDestination,
        len: u64,
        shared: &mut Shared,
    ) -> Result<(), Reason> {
        let (rule, form_len) = if self.config.offset_only_unmap {
            (UnmapRule::OffsetOnly, 1)
        } else {
            (UnmapRule::Exact, len)
        };
        check_form(&[dest.offset], form_len, shared.page_size)?;
        let place = self.region(dest.shmid)?;
        let occupied = self.regions[place].table.find(dest.offset, len, rule)?;
        // The record goes after the mapping, so that a failure leaves both.
        shared
            .vm
            .unmap(self.key(dest.shmid), dest.offset, occupied.footprint())
            .map_err(|error| Reason::Kernel { error })?;
        self.forget(place, &occupied, shared);
        self.counters.unmaps += 1;
        Ok(())
    }

    /// Forgets one mapping that is gone.
    fn forget(&mut self, place: usize, gone: &Occupied, shared: &mut Shared) {
        self.regions[place].table.remove(gone);
        self.account.remove(gone.footprint());
        shared.areas.give_back(gone.areas());
    }

    /// Counts a refused request, logs it if there is room in the log, and returns the answer.
    fn note_refusal(&mut self, refusal: Refusal) -> VmMemoryResponse {
        let reason = &refusal.reason;
        self.counters.refuse(refusal);
        if let Some(unsaid) = self.log.permit() {
            warn!(
                "{}: {} of region {} at {:#x} refused: {reason}{}{}",
                self.config.name,
                refusal.kind,
                refusal.shmid,
                refusal.offset,
                advice(reason),
                LeftOut(unsaid),
            );
        }
        VmMemoryResponse::Err(refusal.errno)
    }

    /// Removes all mappings, each region's at once where the VMM can. What can't be removed keeps its record.
    fn clear(&mut self, shared: &mut Shared) -> Result<(), base::Error> {
        let mut outcome = Ok(());
        for place in 0..self.regions.len() {
            let region = &mut self.regions[place];
            if region.table.is_empty() {
                continue;
            }
            let key = RegionKey {
                device: self.id,
                shmid: region.shmid,
            };
            match shared.vm.clear(key, region.len) {
                Ok(()) => {
                    shared.areas.give_back(region.table.areas());
                    self.account
                        .remove_all(region.table.len(), region.table.bytes());
                    region.table.clear();
                }
                Err(_) => outcome = outcome.and(self.unmap_each(place, shared)),
            }
        }
        outcome
    }

    /// Removes the mappings of a region one by one, since they don't go all at once.
    fn unmap_each(&mut self, place: usize, shared: &mut Shared) -> Result<(), base::Error> {
        let key = self.key(self.regions[place].shmid);
        let all: Vec<_> = self.regions[place].table.iter().copied().collect();
        let mut outcome = Ok(());
        for mapping in all {
            let table = &self.regions[place].table;
            let Ok(occupied) = table.find(mapping.offset, mapping.len, UnmapRule::Exact) else {
                continue;
            };
            let footprint = occupied.footprint();
            match shared.vm.unmap(key, mapping.offset, footprint) {
                Ok(()) => self.forget(place, &occupied, shared),
                Err(error) => {
                    if let Some(unsaid) = self.log.permit() {
                        error!(
                            "{}: {footprint:#x} bytes at {:#x} of region {} stay mapped: {error}{}",
                            self.config.name,
                            mapping.offset,
                            key.shmid,
                            LeftOut(unsaid),
                        );
                    }
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Begins a new generation and removes all mappings.
    ///
    /// # Errors
    /// Some mappings are still there, and recorded; the generation is the new one.
    pub(super) fn reset(&mut self, shared: &mut Shared) -> Result<Generation, base::Error> {
        self.generation = self.generation.next();
        let before = self.account.mappings();
        let outcome = self.clear(shared);
        self.counters.dropped += u64::from(before - self.account.mappings());
        outcome.map(|()| self.generation)
    }

    /// Removes the mappings and forgets the regions, before the device goes; returns how many mappings that were.
    ///
    /// # Errors
    /// How many mappings went, and why others did not. Nothing is forgotten then, and it can be called again.
    pub(super) fn remove(&mut self, shared: &mut Shared) -> Result<u64, (u64, base::Error)> {
        let before = self.account.mappings();
        let outcome = self.clear(shared);
        let removed = u64::from(before - self.account.mappings());
        outcome.map_err(|error| (removed, error))?;
        for region in self.regions.drain(..) {
            shared.vm.remove_region(RegionKey {
                device: self.id,
                shmid: region.shmid,
            });
        }
        Ok(removed)
    }

    pub(super) fn mappings(&self, page_size: u64) -> impl Iterator<Item = MappingInfo> {
        self.regions.iter().flat_map(move |region| {
            region.table.iter().map(move |mapping| MappingInfo {
                device: self.config.name.clone(),
                device_id: self.id,
                shmid: region.shmid,
                offset: mapping.offset,
                len: mapping.len,
                footprint: mapping.footprint(page_size),
                protection: mapping.protection,
                kind: mapping.kind,
                guest_address: region.guest_address + mapping.offset,
            })
        })
    }

    pub(super) fn stats(&self) -> DeviceStats {
        DeviceStats {
            device: self.config.name.clone(),
            device_id: self.id,
            generation: self.generation,
            live: self.account.mappings(),
            peak: self.account.peak_mappings(),
            live_bytes: self.account.bytes(),
            counters: self.counters.clone(),
        }
    }

    fn key(&self, shmid: u8) -> RegionKey {
        RegionKey {
            device: self.id,
            shmid,
        }
    }

    fn region(&self, shmid: u8) -> Result<usize, Reason> {
        self.find_region(shmid)
            .map_err(|_| Reason::NoRegion { shmid })
    }

    fn find_region(&self, shmid: u8) -> Result<usize, usize> {
        self.regions
            .binary_search_by_key(&shmid, |region| region.shmid)
    }
}

/// Checks what needs to know neither the region nor the source.
fn check_form(offsets: &[u64], len: u64, page_size: u64) -> Result<(), Reason> {
    for offset in offsets {
        check_alignment(*offset, page_size)?;
    }
    if len == 0 {
        return Err(Reason::ZeroLength);
    }
    Ok(())
}

/// Whether the VMM may have taken the descriptor for something else than a file to map.
fn is_import<D>(request: &VmMemoryRequest<D>) -> bool {
    matches!(
        request,
        VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Vulkan { .. },
            ..
        }
    )
}

/// What the backend's author, or whoever runs it, can do about it; only where that is not plain.
fn advice(reason: &Reason) -> &'static str {
    match reason {
        Reason::NoMapping {
            offset,
            live: Some((live, _)),
            ..
        } if offset == live => {
            "; an unmap names the whole mapping: allow offset-only unmaps for a backend that does not"
        }
        _ => "",
    }
}

/// How many lines were not written before this one, if any.
struct LeftOut(u64);

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, " ({count} such lines left out)"),
        }
    }
}
