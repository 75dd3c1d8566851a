//! What all devices of a VMM share: the machine, the mapping service, and the places of their regions.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use base::Tube;
use devices::shmem_config::ShmemRegion;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::DeviceId;
use vm_control::GoneReason;
use vm_control::Limits;
use vm_control::MappingInfo;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;
use vm_control::ServiceError;
use vm_control::ServiceEvent;
use vm_control::ServiceEvents;
use vm_control::ServiceHandle;

use super::config::DeviceOptions;
use super::config::Guest;
use super::machine;
use super::machine::GuestFault;
use super::machine::GuestKind;
use super::machine::HolePolicy;
use super::machine::LayoutError;
use super::machine::Machine;
use super::machine::MachineConfig;
use super::machine::Memslot;
use super::machine::MemslotConfig;
use super::machine::RegionLayout;
use crate::control::message::RegionReport;
use crate::control::message::SeenBy;
use crate::text::causes;

/// Why a part of the host could not be made.
#[remain::sorted]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host range of a region can't be reserved.
    #[error("region {shmid}: cannot reserve {len:#x} bytes of address space")]
    Arena {
        /// The region.
        shmid: u8,
        /// Its length.
        len: u64,
        /// Why.
        #[source]
        source: base::Error,
    },
    /// The machine can't be made.
    #[error("cannot make a machine")]
    Machine(#[source] machine::Error),
    /// The region does not become memory of the guest.
    #[error("region {shmid}: cannot add it to the guest's memory")]
    Memslot {
        /// The region.
        shmid: u8,
        /// Why.
        #[source]
        source: machine::Error,
    },
    /// The guest's address space has no place for a region.
    #[error("region {shmid}: no place in the guest's address space")]
    Place {
        /// The region.
        shmid: u8,
        /// Why.
        #[source]
        source: LayoutError,
    },
    /// The mapping service does not do what it was told.
    #[error("the mapping service failed")]
    Service(#[from] ServiceError),
    /// The thread that starts device processes can't be started.
    #[error("cannot start the thread that starts device processes")]
    Spawner(#[source] jail::SpawnError),
}

/// The machine and the service.
pub struct Host {
    // The service goes first: it unmaps what is left while the arenas and their slots are still there.
    service: MappingService,
    events: ServiceEvents,
    machine: Arc<Machine>,
    guest_reason: Option<String>,
    layout: Arc<Mutex<RegionLayout>>,
    spawner: Arc<Spawner>,
}

impl Host {
    /// Makes a machine and starts the service. With [`Guest::Auto`] a missing KVM is no failure; see
    /// [`Host::guest_reason`].
    ///
    /// # Errors
    /// [`Error::Machine`], [`Error::Service`], [`Error::Spawner`].
    pub fn new(
        guest: Guest,
        memory: u64,
        holes: HolePolicy,
        on_fault: impl FnMut(&GuestFault) + Clone + Send + 'static,
    ) -> Result<Self, Error> {
        let config = || MachineConfig {
            ram_bytes: memory,
            holes,
            on_fault: Box::new(on_fault.clone()),
            ..MachineConfig::default()
        };
        let (machine, guest_reason) = match guest {
            Guest::Kvm => (Machine::open(config()), None),
            Guest::None => (Machine::without_guest(config()), None),
            Guest::Auto => match Machine::open(config()) {
                Ok(machine) => (Ok(machine), None),
                Err(error) => (Machine::without_guest(config()), Some(causes(&error))),
            },
        };
        let machine = machine.map_err(Error::Machine)?;
        let mut service =
            MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())?;
        let events = service.take_events().ok_or(ServiceError::Stopped)?;
        Ok(Self {
            service,
            events,
            machine: Arc::new(machine),
            guest_reason,
            layout: Arc::default(),
            spawner: Arc::new(Spawner::start().map_err(Error::Spawner)?),
        })
    }

    /// The machine, for accesses aside from the main loop.
    pub fn machine(&self) -> Arc<Machine> {
        Arc::clone(&self.machine)
    }

    /// What starts device processes.
    pub fn spawner(&self) -> Arc<Spawner> {
        Arc::clone(&self.spawner)
    }

    /// The mapping service.
    pub fn service(&self) -> ServiceHandle {
        self.service.handle()
    }

    /// `kvm` or `none`.
    pub fn guest(&self) -> &'static str {
        match self.machine.kind() {
            GuestKind::Kvm => "kvm",
            GuestKind::None => "none",
        }
    }

    /// Why there is no guest although one was wanted if possible.
    pub fn guest_reason(&self) -> Option<&str> {
        self.guest_reason.as_deref()
    }

    /// Lists the live mappings.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.service.handle().mappings()
    }

    /// Makes a device known to the service; returns its name there, and its process's end of the memory tube.
    ///
    /// # Errors
    /// [`Error::Service`].
    pub fn add_device(&self, options: &DeviceOptions) -> Result<(DeviceId, Tube), Error> {
        let config = DeviceConfig {
            limits: Limits {
                max_mappings: options.max_mappings,
                max_bytes: options.max_bytes.unwrap_or(u64::MAX),
            },
            require_seals: options.require_seals,
            offset_only_unmap: options.offset_only_unmap,
            ..DeviceConfig::new(&options.name)
        };
        Ok(self.service.handle().add_device(config)?)
    }

    /// Puts a device's regions into the guest's address space and tells the service of them.
    ///
    /// # Errors
    /// A region can't be had; those before it are gone again.
    pub fn add_regions(
        &self,
        id: DeviceId,
        options: &DeviceOptions,
        regions: &[ShmemRegion],
    ) -> Result<Vec<Region>, Error> {
        regions
            .iter()
            .map(|region| self.add_region(id, options, *region))
            .collect()
    }

    fn add_region(
        &self,
        id: DeviceId,
        options: &DeviceOptions,
        region: ShmemRegion,
    ) -> Result<Region, Error> {
        let ShmemRegion { shmid, len } = region;
        let arena = Arena::new(len).map_err(|source| Error::Arena { shmid, len, source })?;
        let guest_address = lock(&self.layout)
            .place(len)
            .map_err(|source| Error::Place { shmid, source })?;
        let place = Place {
            layout: Arc::clone(&self.layout),
            guest_address,
        };
        let slot = self
            .machine
            .add_memslot(MemslotConfig {
                name: format!("{}/{shmid}", options.name),
                guest_address,
                backing: Arc::new(arena.clone()),
                read_only: false,
            })
            .map_err(|source| Error::Memslot { shmid, source })?;
        self.service.handle().add_region(
            id,
            RegionConfig {
                shmid,
                guest_address,
                len,
                arena: Some(arena),
                populate: options.populate,
            },
        )?;
        Ok(Region {
            shmid,
            len,
            _slot: slot,
            place,
        })
    }

    /// Removes a device from the service; the number of mappings that went, then or before.
    pub fn remove_device(&mut self, id: DeviceId) -> u64 {
        if let Ok(removed) = self.service.handle().remove_device(id) {
            return removed.mappings;
        }
        // The service has noticed its end, and has told how much went.
        let mut dropped = 0;
        while let Ok(Some(event)) = self.events.try_next() {
            let ServiceEvent::DeviceGone {
                device_id,
                device,
                reason,
                mappings,
            } = event;
            if device_id == id {
                dropped = mappings;
            }
            if !matches!(reason, GoneReason::Closed) {
                tracing::warn!("{device}: {}", causes(&reason));
            }
        }
        dropped
    }
}

/// Who reads and writes memory on such a machine.
pub fn seen_by(machine: &Machine) -> SeenBy {
    match machine.kind() {
        GuestKind::Kvm => SeenBy::Guest,
        GuestKind::None => SeenBy::Host,
    }
}

fn lock(layout: &Mutex<RegionLayout>) -> MutexGuard<'_, RegionLayout> {
    layout.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in the guest's address space; free again when dropped.
#[derive(Debug)]
struct Place {
    layout: Arc<Mutex<RegionLayout>>,
    guest_address: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.layout).release(self.guest_address);
    }
}

/// A region of a device, in the guest's address space for as long as it lives.
#[expect(
    clippy::len_without_is_empty,
    reason = "a region is never empty: it is made of pages"
)]
pub struct Region {
    shmid: u8,
    len: u64,
    // The slot goes before the place that it takes.
    _slot: Memslot,
    place: Place,
}

impl Region {
    /// The region's id.
    pub fn shmid(&self) -> u8 {
        self.shmid
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where the guest sees it.
    pub fn guest_address(&self) -> u64 {
        self.place.guest_address
    }

    /// The region as the outputs show it.
    pub fn report(&self) -> RegionReport {
        RegionReport {
            shmid: self.shmid,
            guest_address: self.guest_address(),
            len: self.len,
        }
    }
}
