//! The memory-mapping service: one thread, one wait context, one tube a device.
//!
//! Commands of the VMM reach the thread through a queue and an event; requests of devices through their tubes. The thread never
//! waits for a device: what a device does not read in time costs that device its place.

mod aside;
mod batch;
mod closing;
mod device;
mod serve;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use base::AsRawDescriptor;
use base::Event;
use base::RawDescriptor;
use base::Tube;
use base::TubeError;
use remain::sorted;

use crate::Arena;
use crate::DeviceStats;
use crate::Generation;
use crate::Limits;
use crate::MappingInfo;
use crate::Vm;
use crate::limits::share_of_areas;

/// Names one device among all that the service ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(test, derive(Default))]
pub struct DeviceId(u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the service is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Areas of the process's memory map (VMAs) that the mappings of all devices together may need: each costs one, or two
    /// where it leaves a hole between itself and the next.
    pub max_areas: u64,
    /// How long a device waits without one of its descriptors being closed, before it is dropped for [`GoneReason::Stalls`].
    ///
    /// What is refused and can take long to close is closed on a thread of the device's own. While more than 128 descriptors are
    /// left to close there, nothing is read from the device; the others are served.
    pub closing_patience: Duration,
}

impl Default for ServiceConfig {
    /// Fifteen sixteenths of `vm.max_map_count`, as it is now, and five seconds.
    fn default() -> Self {
        Self {
            max_areas: share_of_areas(),
            closing_patience: Duration::from_secs(5),
        }
    }
}

/// A new device.
#[derive(Clone, Debug)]
pub struct DeviceConfig {
    /// Its name, in reports and logs.
    pub name: String,
    /// What it may map.
    pub limits: Limits,
    /// Whether only memfds that are sealed against shrinking are mapped.
    pub require_seals: bool,
    /// Whether an unmap names its mapping by the offset alone.
    pub offset_only_unmap: bool,
    /// Whether it may name memory of this process: its backend lives here, too.
    pub allow_external: bool,
}

impl DeviceConfig {
    /// Returns the strict defaults for a device of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            limits: Limits::default(),
            require_seals: false,
            offset_only_unmap: false,
            allow_external: false,
        }
    }
}

/// A new region of a device.
#[derive(Clone, Debug)]
pub struct RegionConfig {
    /// Its id among the device's.
    pub shmid: u8,
    /// Where the guest sees it; page aligned.
    pub guest_address: u64,
    /// Its bytes, a multiple of the page size.
    pub len: u64,
    /// The reserved range behind it, of the same length; [`ArenaVm`](crate::ArenaVm) makes one where there is none.
    pub arena: Option<Arena>,
    /// Bytes of new mappings whose pages are filled in ahead of the guest, in all for as long as the region is there; 0 for none.
    ///
    /// Of memfds only, on a thread of the [`ArenaVm`](crate::ArenaVm)'s own, after the mapping was made: the answer does not wait for it.
    /// The pages that a sparse file lacks are allocated then, on this process's account, and stay with the file when it is
    /// unmapped, so that this is also how much memory a backend can have the process allocate without the guest's help. Where
    /// shared memory comes in huge pages (`shmem_enabled`) it can be a huge page for each page.
    pub populate: u64,
}

/// What went with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedDevice {
    /// Live mappings that were removed.
    pub mappings: u64,
}

/// Why a device is gone without the VMM's doing.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum GoneReason {
    /// The device closed its end of the tube, or died.
    #[error("the device closed its memory tube")]
    Closed,
    /// It does not read its answers.
    #[error("the device does not read the mapping service's answers")]
    DoesNotRead,
    /// A packet of no request came.
    #[error("the device sent an empty batch of requests")]
    EmptyBatch,
    /// What it sent is no batch of requests.
    #[error("the device broke the memory tube's protocol")]
    Protocol(#[source] TubeError),
    /// Descriptors that it sent take for ever to close, or no thread could be started to close them.
    #[error("the device sends descriptors that do not close")]
    Stalls,
}

/// Something that the VMM did not ask for.
#[derive(Debug)]
pub enum ServiceEvent {
    /// A device is gone, with its mappings; its regions and its id are forgotten. Mappings that could not be removed stay in
    /// the list, and the service tries again until they are gone.
    DeviceGone {
        /// The device.
        device_id: DeviceId,
        /// Its name.
        device: String,
        /// Why.
        reason: GoneReason,
        /// Live mappings that were removed.
        mappings: u64,
    },
}

/// Why a command was not carried out.
#[sorted]
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The arena is that of another region, so that their mappings would be one another's.
    #[error("region {shmid}: its arena is that of another region")]
    ArenaShared {
        /// The region.
        shmid: u8,
    },
    /// The region's place or length cannot be.
    #[error(
        "region {shmid}: {len:#x} bytes at guest address {guest_address:#x} are not whole pages of the address space"
    )]
    BadRegion {
        /// The region.
        shmid: u8,
        /// Where it was to be.
        guest_address: u64,
        /// Its bytes.
        len: u64,
    },
    /// Mappings of the device could not be removed. They are still in the list. After a reset it can be called again; for
    /// a device that goes the service tries again itself.
    #[error("device {device}: mappings could not be removed")]
    Cleanup {
        /// The device.
        device: DeviceId,
        /// Why.
        #[source]
        source: base::Error,
    },
    /// There is a region at the place in the guest's address space.
    #[error(
        "region {shmid}: {len:#x} bytes at guest address {guest_address:#x} meet the region at {other:#x}"
    )]
    GuestOverlap {
        /// The region.
        shmid: u8,
        /// Where it was to be.
        guest_address: u64,
        /// Its bytes.
        len: u64,
        /// Where the other one begins.
        other: u64,
    },
    /// The device is not there, or not any more.
    #[error("there is no device {0}")]
    NoDevice(DeviceId),
    /// The device has a region of this id.
    #[error("region {shmid} is there already")]
    RegionExists {
        /// The region.
        shmid: u8,
    },
    /// The thread could not be started.
    #[error("mapping service: start")]
    Start(#[source] base::Error),
    /// The service has ended.
    #[error("the mapping service has ended")]
    Stopped,
    /// No tube could be made.
    #[error("memory tube")]
    Tube(#[source] TubeError),
    /// The VMM does not take the region.
    #[error("region {shmid}")]
    Vm {
        /// The region.
        shmid: u8,
        /// Why.
        #[source]
        source: base::Error,
    },
    /// The thread cannot wait for the device.
    #[error("mapping service: wait context")]
    Wait(#[source] base::Error),
}

/// What the VMM asks; each carries the way back.
enum Command {
    AddDevice(DeviceConfig, Answer<Result<(DeviceId, Tube), ServiceError>>),
    AddRegion(DeviceId, RegionConfig, Answer<Result<(), ServiceError>>),
    Mappings(Answer<Vec<MappingInfo>>),
    RemoveDevice(DeviceId, Answer<Result<RemovedDevice, ServiceError>>),
    ResetDevice(DeviceId, Answer<Result<Generation, ServiceError>>),
    Stats(Answer<Vec<DeviceStats>>),
    Stop,
}

type Answer<T> = mpsc::Sender<T>;

/// The running service. Dropping it ends the thread; all mappings go before that.
#[derive(Debug)]
pub struct MappingService {
    handle: ServiceHandle,
    thread: Option<JoinHandle<()>>,
    events: Option<ServiceEvents>,
}

impl MappingService {
    /// Starts the service's thread.
    ///
    /// # Errors
    /// [`ServiceError::Start`], [`ServiceError::Wait`].
    pub fn start(vm: Box<dyn Vm>, config: ServiceConfig) -> Result<Self, ServiceError> {
        let wake = Event::new().map_err(ServiceError::Start)?;
        let happened = Event::new().map_err(ServiceError::Start)?;
        let (commands, receiver) = mpsc::channel();
        let (events_sender, events) = mpsc::channel();
        let server = serve::Server::new(
            vm,
            config,
            receiver,
            wake.try_clone().map_err(ServiceError::Start)?,
            EventSink {
                queue: events_sender,
                happened: happened.try_clone().map_err(ServiceError::Start)?,
            },
        )?;
        let thread = std::thread::Builder::new()
            .name("mapping".to_owned())
            .spawn(move || server.run())
            .map_err(|error| ServiceError::Start(error.into()))?;
        Ok(Self {
            handle: ServiceHandle {
                commands,
                wake: Arc::new(wake),
            },
            thread: Some(thread),
            events: Some(ServiceEvents {
                queue: events,
                happened,
            }),
        })
    }

    /// Returns a handle through which the service is told what to do, from any thread.
    pub fn handle(&self) -> ServiceHandle {
        self.handle.clone()
    }

    /// Returns what happens without the VMM's doing. There is one reader: a second call returns nothing.
    pub fn take_events(&mut self) -> Option<ServiceEvents> {
        self.events.take()
    }
}

impl Drop for MappingService {
    fn drop(&mut self) {
        // Fails only where the thread has ended already.
        let _ = self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            base::error!("the mapping service's thread panicked");
        }
    }
}

/// Where events for the VMM go.
struct EventSink {
    queue: mpsc::Sender<ServiceEvent>,
    happened: Event,
}

impl EventSink {
    fn send(&self, event: ServiceEvent) {
        // Nobody has to read the events.
        if self.queue.send(event).is_ok()
            && let Err(error) = self.happened.signal()
        {
            base::error!("mapping service: cannot signal an event: {error}");
        }
    }
}

/// What happens without the VMM's doing, in order.
#[derive(Debug)]
pub struct ServiceEvents {
    queue: mpsc::Receiver<ServiceEvent>,
    happened: Event,
}

impl ServiceEvents {
    /// Takes the next event, if there is one; the descriptor is readable until there is none.
    ///
    /// # Errors
    /// The errno of resetting the event behind the descriptor.
    pub fn try_next(&self) -> Result<Option<ServiceEvent>, base::Error> {
        if let Ok(event) = self.queue.try_recv() {
            return Ok(Some(event));
        }
        // Reset first and look again: what comes in between signals once more.
        self.happened.reset()?;
        Ok(self.queue.try_recv().ok())
    }
}

impl AsRawDescriptor for ServiceEvents {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.happened.as_raw_descriptor()
    }
}

/// The VMM's side of the service. Calls wait for the service's thread, which waits for no device.
#[derive(Clone, Debug)]
pub struct ServiceHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<Event>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Command")
    }
}

impl ServiceHandle {
    /// Adds a device without regions and returns the device's end of its tube.
    ///
    /// # Errors
    /// [`ServiceError::Tube`], [`ServiceError::Wait`], [`ServiceError::Stopped`].
    pub fn add_device(&self, config: DeviceConfig) -> Result<(DeviceId, Tube), ServiceError> {
        self.ask(|answer| Command::AddDevice(config, answer))?
    }

    /// Adds a region to a device.
    ///
    /// # Errors
    /// [`ServiceError::BadRegion`], [`ServiceError::GuestOverlap`], [`ServiceError::ArenaShared`],
    /// [`ServiceError::NoDevice`], [`ServiceError::RegionExists`], [`ServiceError::Vm`], [`ServiceError::Stopped`].
    pub fn add_region(&self, device: DeviceId, config: RegionConfig) -> Result<(), ServiceError> {
        self.ask(|answer| Command::AddRegion(device, config, answer))?
    }

    /// Removes a device with its mappings and regions, and closes its tube.
    ///
    /// # Errors
    /// [`ServiceError::NoDevice`] (it may have gone on its own), [`ServiceError::Cleanup`] (it is gone, and the service goes
    /// on trying to remove its mappings), [`ServiceError::Stopped`].
    pub fn remove_device(&self, device: DeviceId) -> Result<RemovedDevice, ServiceError> {
        self.ask(|answer| Command::RemoveDevice(device, answer))?
    }

    /// Removes a device's mappings and begins a new generation, which is returned: requests of the older one are answered
    /// ECANCELED from now on.
    ///
    /// # Errors
    /// [`ServiceError::NoDevice`], [`ServiceError::Stopped`]; [`ServiceError::Cleanup`]: the generation is a new one, but
    /// mappings are left, and it is to be called again.
    pub fn reset_device(&self, device: DeviceId) -> Result<Generation, ServiceError> {
        self.ask(|answer| Command::ResetDevice(device, answer))?
    }

    /// Lists the live mappings of all devices, by device, region and offset; empty where the service has ended.
    pub fn mappings(&self) -> Vec<MappingInfo> {
        self.ask(Command::Mappings).unwrap_or_default()
    }

    /// Lists the counters of all devices; empty where the service has ended.
    pub fn stats(&self) -> Vec<DeviceStats> {
        self.ask(Command::Stats).unwrap_or_default()
    }

    fn ask<T>(&self, command: impl FnOnce(Answer<T>) -> Command) -> Result<T, ServiceError> {
        let (answer, receiver) = mpsc::channel();
        self.send(command(answer))?;
        receiver.recv().map_err(|_| ServiceError::Stopped)
    }

    fn send(&self, command: Command) -> Result<(), ServiceError> {
        self.commands
            .send(command)
            .map_err(|_| ServiceError::Stopped)?;
        self.wake.signal().map_err(ServiceError::Wait)
    }
}

#[cfg(test)]
mod tests;
