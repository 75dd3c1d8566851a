//! The service's thread: waits, takes one packet of each device that has one, and carries out the VMM's commands in between.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;
use std::time::Instant;

use base::Closer;
use base::Event;
use base::EventToken;
use base::NoCloser;
use base::Tube;
use base::TubeError;
use base::WaitContext;
use base::error;
use base::packet::PacketTube;
use base::page_size;
use base::scm::Wait;
use base::warn;

use super::Command;
use super::DeviceConfig;
use super::DeviceId;
use super::EventSink;
use super::GoneReason;
use super::RegionConfig;
use super::RemovedDevice;
use super::ServiceConfig;
use super::ServiceError;
use super::ServiceEvent;
use super::aside::Aside;
use super::aside::Outcome;
use super::aside::is_behind;
use super::batch::Batch;
use super::closing::Descriptors;
use super::closing::Suspects;
use super::closing::close_all;
use super::closing::close_tube;
use super::device::Device;
use super::device::Shared;
use crate::Generation;
use crate::ResponseBatch;
use crate::Vm;
use crate::limits::AreaBudget;

/// How long the only device's next packet is waited for before everything else is looked at again.
const PACKET_WAIT: Duration = Duration::from_millis(1);
/// Packets of the only device that are taken before the wait context is asked again.
const PACKETS_IN_A_ROW: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EventToken)]
enum Token {
    Command,
    Device { id: u32 },
}

/// How long to wait before trying once more to remove what could not be removed.
const CLEANUP_PERIOD: Duration = Duration::from_millis(100);
/// How long to wait before looking again at devices whose descriptors are not closed as fast as they come.
const CLOSING_PERIOD: Duration = Duration::from_millis(10);

/// A device and the service's end of its tube.
struct Connected {
    device: Device,
    tube: PacketTube,
    closer: Closer,
}

pub(super) struct Server {
    wait: WaitContext<Token>,
    commands: mpsc::Receiver<Command>,
    wake: Event,
    events: EventSink,
    shared: Shared,
    devices: BTreeMap<DeviceId, Connected>,
    /// Devices that have to wait until their descriptors are closed: out of the wait context.
    aside: Aside,
    /// Devices that are gone but for mappings that could not be removed.
    leaving: Vec<Device>,
    /// When to try that again.
    next_cleanup: Instant,
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
                areas: AreaBudget::new(config.max_areas),
                page_size: page_size() as u64,
            },
            devices: BTreeMap::new(),
            aside: Aside::new(config.closing_patience),
            leaving: Vec::new(),
            next_cleanup: Instant::now(),
            next_id: 0,
        })
    }

    pub(super) fn run(mut self) {
        loop {
            let ready = match self.period() {
                None => self.wait.wait(),
                Some(period) => self.wait.wait_timeout(period),
            };
            let events = match ready {
                Ok(events) => events,
                Err(error) => {
                    error!("mapping service: cannot wait: {error}");
                    break;
                }
            };
            if !self.leaving.is_empty() && self.next_cleanup <= Instant::now() {
                self.clean_up();
            }
            if !self.aside.is_empty() {
                self.look_at_set_aside();
            }
            let mut commanded = false;
            for event in &events {
                match event.token {
                    Token::Command => commanded = true,
                    Token::Device { id } => {
                        self.serve(DeviceId(id), Wait::Never);
                    }
                }
            }
            if commanded && !self.carry_out_commands() {
                break;
            }
            if !commanded && !self.serve_only_device() {
                break;
            }
        }
        while let Some((id, _)) = self.devices.first_key_value() {
            let _left_over = self.remove(*id);
        }
        self.clean_up();
        for device in &self.leaving {
            error!("{}: mappings are left", device.name());
        }
    }

    /// How long to wait at the most before something has to be looked at.
    fn period(&self) -> Option<Duration> {
        if !self.aside.is_empty() {
            Some(CLOSING_PERIOD)
        } else if !self.leaving.is_empty() {
            Some(CLEANUP_PERIOD)
        } else {
            None
        }
    }

    /// Takes no packets of a device for now.
    fn set_aside(&mut self, id: DeviceId) {
        let Some(Connected { tube, closer, .. }) = self.devices.get(&id) else {
            return;
        };
        if self.aside.contains(id) {
            return;
        }
        match self.wait.delete(tube) {
            Ok(()) => self.aside.insert(id, closer),
            Err(error) => error!("mapping service: cannot stop waiting for a device: {error}"),
        }
    }

    /// Serves those again whose descriptors are closed, and drops those whose never are.
    fn look_at_set_aside(&mut self) {
        let Self { aside, devices, .. } = self;
        let ended = aside.look(|id| devices.get(&id).map(|connected| &connected.closer));
        for (id, outcome) in ended {
            match outcome {
                Outcome::CaughtUp => self.take_back(id),
                Outcome::Stuck => self.drop_device(id, GoneReason::Stalls),
            }
        }
    }

    /// Takes packets of a device again; where the kernel refuses, later.
    fn take_back(&mut self, id: DeviceId) {
        let Some(Connected { tube, .. }) = self.devices.get(&id) else {
            return;
        };
        match self.wait.add(tube, Token::Device { id: id.0 }) {
            Ok(()) => {
                self.aside.remove(id);
            }
            Err(error) => error!("mapping service: cannot wait for a device: {error}"),
        }
    }

    /// Tries to remove what could not be removed before.
    fn clean_up(&mut self) {
        let shared = &mut self.shared;
        self.leaving
            .retain_mut(|device| device.remove(shared).is_err());
        self.next_cleanup = Instant::now() + CLEANUP_PERIOD;
    }

    /// Where there is one device, takes more of its packets as they come, for as long as they come quickly.
    ///
    /// The wait context would say the same with one more system call a packet. Commands wait for a packet or for
    /// [`PACKET_WAIT`] at the most. False at the end.
    fn serve_only_device(&mut self) -> bool {
        for _ in 0..PACKETS_IN_A_ROW {
            if !self.carry_out_queued() {
                return false;
            }
            let mut ids = self.devices.keys();
            let (Some(&id), None) = (ids.next(), ids.next()) else {
                return true;
            };
            if !self.serve(id, Wait::Block) {
                return true;
            }
        }
        true
    }

    /// Takes one packet of a device, so that no device can hold up another for longer, and returns whether there was one.
    fn serve(&mut self, id: DeviceId, wait: Wait) -> bool {
        // It may have gone since the wait returned.
        let Some(connected) = self.devices.get_mut(&id) else {
            return false;
        };
        if is_behind(&connected.closer) {
            self.set_aside(id);
            return false;
        }
        match Self::serve_packet(connected, &mut self.shared, wait) {
            Ok(served) => served,
            Err(reason) => {
                self.drop_device(id, reason);
                false
            }
        }
    }

    /// Removes a device and tells the VMM why.
    fn drop_device(&mut self, id: DeviceId, reason: GoneReason) {
        let Some(connected) = self.devices.get(&id) else {
            return;
        };
        let device = connected.device.name().to_owned();
        match &reason {
            GoneReason::Closed => {}
            GoneReason::Protocol(cause) => warn!("{device}: {reason}: {cause}; it is dropped"),
            _ => warn!("{device}: {reason}; it is dropped"),
        }
        let mappings = match self.remove(id) {
            Some(Ok(mappings) | Err((mappings, _))) => mappings,
            None => 0,
        };
        self.events.send(ServiceEvent::DeviceGone {
            device_id: id,
            device,
            reason,
            mappings,
        });
    }

    fn serve_packet(
        connected: &mut Connected,
        shared: &mut Shared,
        wait: Wait,
    ) -> Result<bool, GoneReason> {
        let Connected {
            device,
            tube,
            closer,
        } = connected;
        let mut descriptors = Descriptors::new();
        let received = tube
            .recv_packet(wait, &mut descriptors)
            .and_then(|packet| Batch::parse(packet, descriptors.len()));
        let batch = match received {
            Ok(batch) => batch,
            Err(error) => {
                close_all(&mut descriptors, Suspects::ALL, closer)
                    .map_err(|NoCloser| GoneReason::Stalls)?;
                return match error {
                    TubeError::TimedOut | TubeError::WouldBlock => Ok(false),
                    // The packet is still there, and so is the wait context.
                    TubeError::Recv(error) if error.is_shortage() => Ok(false),
                    TubeError::Disconnected => Err(GoneReason::Closed),
                    error => Err(GoneReason::Protocol(error)),
                };
            }
        };
        let mut answers = ResponseBatch::default();
        let suspects = if batch.is_bare() {
            device.execute(batch, &[], &mut answers, shared);
            Suspects::ALL
        } else {
            device.execute(batch, &descriptors, &mut answers, shared)
        };
        let sent = send_answers(tube, &answers);
        // Answered before the descriptors are closed: that takes time which nobody has to wait for.
        let closed = close_all(&mut descriptors, suspects, closer);
        sent?;
        closed.map_err(|NoCloser| GoneReason::Stalls)?;
        Ok(true)
    }

    /// Carries out what has come; false at the end.
    fn carry_out_commands(&mut self) -> bool {
        if let Err(error) = self.wake.reset() {
            error!("mapping service: cannot reset its event: {error}");
            return false;
        }
        self.carry_out_queued()
    }

    /// Carries out what is in the queue; false at the end.
    fn carry_out_queued(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(command) => {
                    if !self.carry_out(command) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Carries out one command; false if it is to end.
    fn carry_out(&mut self, command: Command) -> bool {
        if !self.leaving.is_empty() {
            self.clean_up();
        }
        // Whoever asked may have given up on the answer.
        match command {
            Command::AddDevice(config, answer) => drop(answer.send(self.add(config))),
            Command::AddRegion(id, config, answer) => {
                drop(answer.send(self.add_region(id, &config)));
            }
            Command::Mappings(answer) => {
                let page_size = self.shared.page_size;
                let all = self.all_devices();
                let mappings = all.flat_map(|device| device.mappings(page_size));
                drop(answer.send(mappings.collect()));
            }
            Command::RemoveDevice(id, answer) => drop(answer.send(self.remove_device(id))),
            Command::ResetDevice(id, answer) => drop(answer.send(self.reset(id))),
            Command::Stats(answer) => {
                drop(answer.send(self.all_devices().map(Device::stats).collect()));
            }
            Command::Stop => return false,
        }
        true
    }

    fn add(&mut self, config: DeviceConfig) -> Result<(DeviceId, Tube), ServiceError> {
        let (ours, theirs) = Tube::pair().map_err(ServiceError::Tube)?;
        ours.set_recv_timeout(Some(PACKET_WAIT))
            .map_err(ServiceError::Tube)?;
        let id = DeviceId(self.next_id);
        self.wait
            .add(&ours, Token::Device { id: id.0 })
            .map_err(ServiceError::Wait)?;
        self.next_id += 1;
        let connected = Connected {
            device: Device::new(id, config),
            tube: PacketTube::new(ours),
            closer: Closer::default(),
        };
        self.devices.insert(id, connected);
        Ok((id, theirs))
    }

    fn add_region(&mut self, id: DeviceId, config: &RegionConfig) -> Result<(), ServiceError> {
        self.check_region(config)?;
        let (connected, shared) = self.connected(id)?;
        connected.device.add_region(config, shared)
    }

    /// Refuses a region that is no range of pages, or that meets another one in the guest or in the host.
    fn check_region(&self, config: &RegionConfig) -> Result<(), ServiceError> {
        let RegionConfig {
            shmid,
            guest_address,
            len,
            ref arena,
            populate: _,
        } = *config;
        let page_size = self.shared.page_size;
        let whole = len > 0 && len.is_multiple_of(page_size);
        let aligned = whole && guest_address.is_multiple_of(page_size);
        let Some(end) = guest_address.checked_add(len).filter(|_| aligned) else {
            return Err(ServiceError::BadRegion {
                shmid,
                guest_address,
                len,
            });
        };
        for other in self.all_devices().flat_map(Device::regions) {
            if other.guest_address < end && guest_address < other.guest_address + other.len {
                return Err(ServiceError::GuestOverlap {
                    shmid,
                    guest_address,
                    len,
                    other: other.guest_address,
                });
            }
            if let (Some(arena), Some(other)) = (arena, &other.arena)
                && arena.is_same(other)
            {
                return Err(ServiceError::ArenaShared { shmid });
            }
        }
        Ok(())
    }

    fn reset(&mut self, id: DeviceId) -> Result<Generation, ServiceError> {
        let (connected, shared) = self.connected(id)?;
        let outcome = connected.device.reset(shared);
        outcome.map_err(|source| ServiceError::Cleanup { device: id, source })
    }

    fn remove_device(&mut self, id: DeviceId) -> Result<RemovedDevice, ServiceError> {
        match self.remove(id) {
            Some(Ok(mappings)) => Ok(RemovedDevice { mappings }),
            Some(Err((_, source))) => Err(ServiceError::Cleanup { device: id, source }),
            None => Err(ServiceError::NoDevice(id)),
        }
    }

    /// Closes a device's tube and removes its mappings; `None` if there is no such device. One of which mappings are left
    /// stays among those that are leaving.
    fn remove(&mut self, id: DeviceId) -> Option<Result<u64, (u64, base::Error)>> {
        let Connected {
            mut device,
            tube,
            mut closer,
        } = self.devices.remove(&id)?;
        // One that was set aside is out of the wait context.
        if !self.aside.remove(id)
            && let Err(error) = self.wait.delete(&tube)
        {
            error!("mapping service: cannot stop waiting for a device: {error}");
        }
        close_tube(tube, &mut closer);
        let outcome = device.remove(&mut self.shared);
        if outcome.is_err() {
            self.leaving.push(device);
        }
        Some(outcome)
    }

    fn connected(&mut self, id: DeviceId) -> Result<(&mut Connected, &mut Shared), ServiceError> {
        let connected = self.devices.get_mut(&id);
        let connected = connected.ok_or(ServiceError::NoDevice(id))?;
        Ok((connected, &mut self.shared))
    }

    fn all_devices(&self) -> impl Iterator<Item = &Device> {
        let connected = self.devices.values().map(|connected| &connected.device);
        connected.chain(&self.leaving)
    }
}

/// Answers a batch, which had no requests if there are no answers.
fn send_answers(tube: &mut PacketTube, answers: &ResponseBatch) -> Result<(), GoneReason> {
    if answers.responses.is_empty() {
        return Err(GoneReason::EmptyBatch);
    }
    match tube.try_send(answers) {
        Ok(()) => Ok(()),
        Err(TubeError::WouldBlock) => Err(GoneReason::DoesNotRead),
        Err(TubeError::Disconnected) => Err(GoneReason::Closed),
        Err(error) => Err(GoneReason::Protocol(error)),
    }
}
