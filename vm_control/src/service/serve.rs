//! The service's thread: waits, takes one packet of each device that has one, and carries out the VMM's commands in between.

use std::collections::BTreeMap;
use std::sync::mpsc;

use base::Event;
use base::EventToken;
use base::Tube;
use base::TubeError;
use base::WaitContext;
use base::error;
use base::packet::PacketTube;
use base::warn;

use super::Command;
use super::DeviceConfig;
use super::DeviceId;
use super::GoneReason;
use super::RegionConfig;
use super::RemovedDevice;
use super::ServiceConfig;
use super::ServiceError;
use super::ServiceEvent;
use super::device::Device;
use crate::RequestBatch;
use crate::Vm;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EventToken)]
enum Token {
    Command,
    Device { id: u32 },
}

/// Where events for the VMM go.
pub(super) struct EventSink {
    pub(super) queue: mpsc::Sender<ServiceEvent>,
    pub(super) happened: Event,
}

impl EventSink {
    fn send(&self, event: ServiceEvent) {
        // Nobody has to read the events.
        if self.queue.send(event).is_ok()
            && let Err(error) = self.happened.signal()
        {
            error!("mapping service: cannot signal an event: {error}");
        }
    }
}

/// What all devices share.
pub(super) struct Shared {
    pub(super) vm: Box<dyn Vm>,
    /// Live mappings of all devices together.
    pub(super) mappings: u32,
    pub(super) max_mappings: u32,
}

pub(super) struct Server {
    wait: WaitContext<Token>,
    commands: mpsc::Receiver<Command>,
    wake: Event,
    events: EventSink,
    shared: Shared,
    devices: BTreeMap<DeviceId, Device>,
    next_id: u32,
}

impl Server {
    pub(super) fn new(
        vm: Box<dyn Vm>,
        config: ServiceConfig,
        commands: mpsc::Receiver<Command>,
        wake: Event,
        events: EventSink,
    ) -> Result<Self, ServiceError> {
        let wait =
            WaitContext::build_with(&[(&wake, Token::Command)]).map_err(ServiceError::Wait)?;
        Ok(Self {
            wait,
            commands,
            wake,
            events,
            shared: Shared {
                vm,
                mappings: 0,
                max_mappings: config.max_mappings,
            },
            devices: BTreeMap::new(),
            next_id: 0,
        })
    }

    pub(super) fn run(mut self) {
        loop {
            let events = match self.wait.wait() {
                Ok(events) => events,
                Err(error) => {
                    error!("mapping service: cannot wait: {error}");
                    break;
                }
            };
            let mut commanded = false;
            for event in &events {
                match event.token {
                    Token::Command => commanded = true,
                    Token::Device { id } => self.serve(DeviceId(id)),
                }
            }
            if commanded && !self.carry_out_commands() {
                break;
            }
        }
        let ids: Vec<DeviceId> = self.devices.keys().copied().collect();
        for id in ids {
            self.remove(id);
        }
    }

    /// Takes one packet of a device, so that no device can hold up another for longer.
    fn serve(&mut self, id: DeviceId) {
        // It may have gone since the wait returned.
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let Err(reason) = Self::serve_packet(device, &mut self.shared) else {
            return;
        };
        if !matches!(reason, GoneReason::Closed) {
            warn!("{}: {reason}; its mappings are removed", device.name());
        }
        let device = device.name().to_owned();
        let mappings = self.remove(id).map_or(0, |removed| removed.mappings);
        self.events.send(ServiceEvent::DeviceGone {
            device_id: id,
            device,
            reason,
            mappings,
        });
    }

    fn serve_packet(device: &mut Device, shared: &mut Shared) -> Result<(), GoneReason> {
        let batch: RequestBatch = match device.tube.try_recv() {
            Ok(batch) => batch,
            Err(TubeError::WouldBlock) => return Ok(()),
            Err(TubeError::Disconnected) => return Err(GoneReason::Closed),
            Err(error) => return Err(GoneReason::Protocol(error)),
        };
        if batch.requests.is_empty() {
            return Err(GoneReason::EmptyBatch);
        }
        let answers = device.execute(&batch, shared);
        match device.tube.try_send(&answers) {
            Ok(()) => {}
            Err(TubeError::WouldBlock) => return Err(GoneReason::DoesNotRead),
            Err(TubeError::Disconnected) => return Err(GoneReason::Closed),
            Err(error) => return Err(GoneReason::Protocol(error)),
        }
        // Answered before the descriptors are closed: that takes time which nobody has to wait for.
        drop(batch);
        Ok(())
    }

    /// Carries out what has come; false at the end.
    fn carry_out_commands(&mut self) -> bool {
        if let Err(error) = self.wake.reset() {
            error!("mapping service: cannot reset its event: {error}");
            return false;
        }
        loop {
            // Whoever asked may have given up on the answer.
            match self.commands.try_recv() {
                Ok(Command::AddDevice(config, answer)) => drop(answer.send(self.add(config))),
                Ok(Command::AddRegion(id, config, answer)) => {
                    drop(answer.send(self.add_region(id, &config)));
                }
                Ok(Command::Mappings(answer)) => {
                    let all = self.devices.iter();
                    drop(answer.send(all.flat_map(|(id, device)| device.mappings(*id)).collect()));
                }
                Ok(Command::RemoveDevice(id, answer)) => {
                    drop(answer.send(self.remove(id).ok_or(ServiceError::NoDevice(id))));
                }
                Ok(Command::ResetDevice(id, answer)) => {
                    let device = self.devices.get_mut(&id).ok_or(ServiceError::NoDevice(id));
                    drop(answer.send(device.map(|device| device.reset(id, &mut self.shared))));
                }
                Ok(Command::Stats(answer)) => {
                    let all = self.devices.iter();
                    drop(answer.send(all.map(|(id, device)| device.stats(*id)).collect()));
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    fn add(&mut self, config: DeviceConfig) -> Result<(DeviceId, Tube), ServiceError> {
        let (ours, theirs) = Tube::pair().map_err(ServiceError::Tube)?;
        let id = DeviceId(self.next_id);
        let tube = PacketTube::new(ours);
        self.wait
            .add(&tube, Token::Device { id: id.0 })
            .map_err(ServiceError::Wait)?;
        self.next_id += 1;
        self.devices.insert(id, Device::new(id, config, tube));
        Ok((id, theirs))
    }

    fn add_region(&mut self, id: DeviceId, config: &RegionConfig) -> Result<(), ServiceError> {
        let device = self
            .devices
            .get_mut(&id)
            .ok_or(ServiceError::NoDevice(id))?;
        device.add_region(config, &mut self.shared)
    }

    fn remove(&mut self, id: DeviceId) -> Option<RemovedDevice> {
        let mut device = self.devices.remove(&id)?;
        if let Err(error) = self.wait.delete(&device.tube) {
            error!("mapping service: cannot stop waiting for a device: {error}");
        }
        Some(RemovedDevice {
            mappings: device.remove(&mut self.shared),
        })
    }
}
