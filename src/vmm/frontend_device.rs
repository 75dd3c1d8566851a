//! A device process as a virtio device of the guest: what the guest's driver does to its registers, as calls on the
//! process, and the backend's call eventfds as the device's interrupt.
//!
//! It runs on the vCPU's thread. A call on the process takes as long as its deadline, and the guest waits with it; the
//! backend itself is never waited for. Kicks go from the guest to the backend through the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use base::Event;
use base::EventToken;
use base::SafeDescriptor;
use base::WaitContext;
use base::WorkerThread;
use devices::control::Activation as ProcessActivation;
use devices::control::MemoryRegion;
use devices::control::QueueSetup as ProcessQueue;
use devices::device_process;
use devices::device_process::DeviceProcess;
use thiserror::Error as ThisError;
use vm_control::DeviceId;
use vm_control::ServiceHandle;

use super::machine::Doorbell;
use super::machine::Doorbells;
use super::machine::GuestMemory;
use super::mmio::ActivateError;
use super::mmio::Activation;
use super::mmio::InterruptLine;
use super::mmio::SharedMemoryWindow;
use super::mmio::VirtioDevice;
use crate::text::causes;

#[cfg(test)]
mod tests;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: between frontend and backend, nothing for a driver.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// What a device needs of its process. Each call is bounded in time, and may come from the vCPU's thread.
pub trait ProcessCalls: Send {
    /// The driver is ready.
    ///
    /// # Errors
    /// The backend is not running then.
    fn activate(&mut self, activation: ProcessActivation) -> Result<(), device_process::Error>;

    /// Resets the backend and drops all of the device's mappings.
    ///
    /// # Errors
    /// The mappings are gone all the same.
    fn reset(&mut self) -> Result<(), device_process::Error>;

    /// Reads configuration space.
    ///
    /// # Errors
    /// The backend refuses, or the process has ended.
    fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, device_process::Error>;

    /// Writes to configuration space.
    ///
    /// # Errors
    /// The backend refuses, or the process has ended.
    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), device_process::Error>;
}

/// A process that the device shares with whoever watches it.
pub struct SharedProcess {
    process: Arc<Mutex<DeviceProcess>>,
    service: ServiceHandle,
    device: DeviceId,
}

impl SharedProcess {
    /// Names the process and what the service knows it as.
    pub fn new(
        process: Arc<Mutex<DeviceProcess>>,
        service: ServiceHandle,
        device: DeviceId,
    ) -> Self {
        Self {
            process,
            service,
            device,
        }
    }

    fn with<T>(&self, call: impl FnOnce(&mut DeviceProcess) -> T) -> T {
        call(&mut self.process.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ProcessCalls for SharedProcess {
    fn activate(&mut self, activation: ProcessActivation) -> Result<(), device_process::Error> {
        self.with(|process| process.activate(activation))
    }

    fn reset(&mut self) -> Result<(), device_process::Error> {
        self.with(|process| process.reset(&self.service, self.device))
            .map(|_| ())
    }

    fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, device_process::Error> {
        self.with(|process| process.read_config(offset, len))
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), device_process::Error> {
        self.with(|process| process.write_config(offset, bytes))
    }
}

/// What a device is made of.
pub struct FrontendDeviceConfig {
    /// The virtio device type.
    pub device_type: u32,
    /// The features that the backend offers.
    pub features: u64,
    /// The most entries of each queue.
    pub queue_sizes: Vec<u16>,
    /// Where the guest sees the shared memory regions, by id.
    pub windows: BTreeMap<u8, SharedMemoryWindow>,
    /// The guest's RAM, which the backend gets with the activation.
    pub memory: GuestMemory,
    /// The device's interrupt.
    pub interrupt: InterruptLine,
    /// Signalled by the process when the device's configuration has changed.
    pub config_change: Event,
    /// Doorbells at the device's notification register.
    pub doorbells: Doorbells,
}

/// Why a device could not be made or started.
#[remain::sorted]
#[derive(Debug, ThisError)]
pub enum Error {
    /// An event, a thread or a descriptor could not be had.
    #[error("no {what} to be had")]
    Base {
        /// What.
        what: &'static str,
        /// The system's error.
        #[source]
        source: base::Error,
    },
    /// A doorbell could not be made.
    #[error("a doorbell of the device")]
    Doorbell(#[source] super::machine::Error),
    /// The process does not want to.
    #[error("the device process")]
    Process(#[from] device_process::Error),
}

impl Error {
    fn base(what: &'static str) -> impl FnOnce(base::Error) -> Self {
        move |source| Self::Base { what, source }
    }
}

/// One queue's way to the backend.
struct Kick {
    queue: u16,
    event: Event,
    /// The guest's own way to the event, where there is a guest.
    doorbell: Option<Doorbell>,
}

/// What lives as long as the driver is ready.
struct Active {
    kicks: Vec<Kick>,
    _calls: WorkerThread<()>,
}

/// A device process behind a transport.
pub struct FrontendDevice {
    config: FrontendDeviceConfig,
    process: Box<dyn ProcessCalls>,
    active: Option<Active>,
    _config_changes: WorkerThread<()>,
}

impl FrontendDevice {
    /// Makes a device of a process that has been connected and started.
    ///
    /// # Errors
    /// [`Error::Base`].
    pub fn new(
        config: FrontendDeviceConfig,
        process: Box<dyn ProcessCalls>,
    ) -> Result<Self, Error> {
        let change = config
            .config_change
            .try_clone()
            .map_err(Error::base("event"))?;
        let config_changes = forward(
            "config change",
            vec![change],
            config.interrupt.clone(),
            InterruptLine::config_changed,
        )?;
        Ok(Self {
            config,
            process,
            active: None,
            _config_changes: config_changes,
        })
    }

    fn start(&mut self, activation: &Activation) -> Result<Active, Error> {
        let mut kicks = Vec::with_capacity(activation.queues.len());
        let mut calls = Vec::with_capacity(activation.queues.len());
        let mut queues = Vec::with_capacity(activation.queues.len());
        for queue in &activation.queues {
            let kick = Event::new().map_err(Error::base("event"))?;
            let call = Event::new().map_err(Error::base("event"))?;
            let share = |event: &Event| {
                event
                    .try_clone()
                    .map(SafeDescriptor::from)
                    .map_err(Error::base("event"))
            };
            queues.push(ProcessQueue {
                index: queue.index,
                size: queue.size,
                descriptor_table: queue.descriptors,
                available_ring: queue.driver_area,
                used_ring: queue.device_area,
                base: 0,
                call: Some(share(&call)?),
                kick: share(&kick)?,
            });
            let doorbell = self
                .config
                .doorbells
                .connect(queue.index.into(), &kick)
                .map_err(Error::Doorbell)?;
            kicks.push(Kick {
                queue: queue.index,
                event: kick,
                doorbell,
            });
            calls.push(call);
        }
        let calls = forward(
            "calls",
            calls,
            self.config.interrupt.clone(),
            InterruptLine::used_buffers,
        )?;
        let memory = self.memory()?;
        self.process.activate(ProcessActivation {
            features: activation.features,
            memory,
            queues,
        })?;
        Ok(Active {
            kicks,
            _calls: calls,
        })
    }

    /// Describes guest memory, with descriptors that the process can keep.
    fn memory(&self) -> Result<Vec<MemoryRegion>, Error> {
        self.config
            .memory
            .regions()
            .map(|region| {
                let descriptor = region
                    .file
                    .try_clone_to_owned()
                    .map_err(|error| Error::base("descriptor")(error.into()))?;
                Ok(MemoryRegion {
                    guest_address: region.guest_address,
                    len: region.len,
                    offset: region.file_offset,
                    descriptor: descriptor.into(),
                })
            })
            .collect()
    }
}

impl VirtioDevice for FrontendDevice {
    fn device_type(&self) -> u32 {
        self.config.device_type
    }

    fn features(&self) -> u64 {
        self.config.features & !PROTOCOL_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.config.queue_sizes
    }

    fn shared_memory(&self, shmid: u32) -> Option<SharedMemoryWindow> {
        self.config.windows.get(&u8::try_from(shmid).ok()?).copied()
    }

    fn read_config(&mut self, offset: u64, out: &mut [u8]) {
        let (Ok(offset), Ok(len)) = (u32::try_from(offset), u32::try_from(out.len())) else {
            return;
        };
        match self.process.read_config(offset, len) {
            Ok(bytes) if bytes.len() == out.len() => out.copy_from_slice(&bytes),
            Ok(_) => (),
            Err(error) => tracing::debug!("configuration at {offset}: {}", causes(&error)),
        }
    }

    fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        let Ok(offset) = u32::try_from(offset) else {
            return;
        };
        if let Err(error) = self.process.write_config(offset, bytes) {
            tracing::debug!("configuration at {offset}: {}", causes(&error));
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        match self.start(&activation) {
            Ok(active) => {
                self.active = Some(active);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(
                    "device of type {}: {}",
                    self.config.device_type,
                    causes(&error)
                );
                Err(ActivateError)
            }
        }
    }

    fn notify(&mut self, queue: u16) {
        let kicks = self.active.iter().flat_map(|active| &active.kicks);
        for kick in kicks.filter(|kick| kick.queue == queue && kick.doorbell.is_none()) {
            if let Err(error) = kick.event.signal() {
                tracing::debug!("kick of queue {queue}: {error}");
            }
        }
    }

    /// Resets the backend if the driver had made it ready. What a backend mapped before there was a driver stays: the
    /// first thing that a driver does is a reset.
    fn reset(&mut self) {
        if self.active.take().is_none() {
            return;
        }
        if let Err(error) = self.process.reset() {
            tracing::warn!(
                "reset of the device of type {}: {}",
                self.config.device_type,
                causes(&error)
            );
        }
    }
}

#[derive(EventToken)]
enum Token {
    Kill,
    Source(u32),
}

/// Starts a thread that turns events into interrupts. The events are shared with somebody untrusted, so it never waits
/// for one alone.
fn forward(
    name: &str,
    sources: Vec<Event>,
    interrupt: InterruptLine,
    raise: fn(&InterruptLine) -> base::Result<()>,
) -> Result<WorkerThread<()>, Error> {
    let wait = WaitContext::new().map_err(Error::base("wait context"))?;
    for (index, source) in (0..).zip(&sources) {
        wait.add(source, Token::Source(index))
            .map_err(Error::base("wait context"))?;
    }
    let work = move |kill: Event| {
        if let Err(error) = forward_until(&kill, &wait, &sources, || raise(&interrupt)) {
            tracing::error!("interrupts of a device: {error}");
        }
    };
    WorkerThread::try_start(name, work).map_err(Error::base("thread"))
}

fn forward_until(
    kill: &Event,
    wait: &WaitContext<Token>,
    sources: &[Event],
    raise: impl Fn() -> base::Result<()>,
) -> base::Result<()> {
    wait.add(kill, Token::Kill)?;
    loop {
        for event in wait.wait()? {
            match event.token {
                Token::Kill => return Ok(()),
                Token::Source(index) => {
                    if let Some(source) = usize::try_from(index)
                        .ok()
                        .and_then(|index| sources.get(index))
                    {
                        source.reset()?;
                    }
                    raise()?;
                }
            }
        }
    }
}
