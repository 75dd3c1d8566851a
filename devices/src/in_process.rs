//! A backend that is part of the VMM: a thread of its process, trusted as much as the rest of it.
//!
//! It is served by the same worker as a backend of another process, over the same kind of channel; there is no main
//! channel, no jail and nothing to negotiate. It may name memory by its address (EXTERNAL_MAP), if the mapping service
//! allows that for its device as well; the service checks that the range is mapped memory before the guest gets it.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::Event;
use base::SafeDescriptor;
use base::Tube;
use base::TubeError;
use base::packet::PacketTube;
use remain::sorted;
use thiserror::Error;
use vm_control::DeviceId;
use vm_control::Generation;
use vm_control::ServiceError;
use vm_control::ServiceHandle;
use vmm_vhost::ChannelConfig;
use vmm_vhost::ChannelError;
use vmm_vhost::Negotiated;
use vmm_vhost::Peer;
use vmm_vhost::RequestChannel;
use vmm_vhost::message::ProtocolFeatures;

use crate::control::DeviceEvent;
use crate::control::WorkerStats;
use crate::worker::CommandError;
use crate::worker::MAX_IN_FLIGHT;
use crate::worker::Worker;
use crate::worker::WorkerConfig;
use crate::worker::WorkerExit;
use crate::worker::WorkerHandle;
use crate::worker::channel_pair;

/// What can fail with a device of this process.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The channel could not be made.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The worker has ended.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The mapping service did not reset the device.
    #[error("the mapping service did not reset the device")]
    Service(#[source] ServiceError),
    /// The worker could not be started.
    #[error("the worker could not be started")]
    Start(#[source] base::Error),
    /// The tube for events failed.
    #[error("event tube")]
    Tube(#[source] TubeError),
}

/// A device whose backend is a thread of this process. Dropping it ends the worker; the mappings go with it.
pub struct InProcessDevice {
    worker: WorkerHandle,
    events: PacketTube,
}

impl InProcessDevice {
    /// Starts a worker and returns the backend's end of the request channel, for a
    /// [`FrontendClient`](vmm_vhost::FrontendClient) that uses acks and both kinds of maps.
    ///
    /// `memory` is the device's end of its tube to the service, `interrupt` is signalled by config changes.
    ///
    /// # Errors
    /// [`Error::Start`] if descriptors or threads have run out; [`Error::Tube`].
    pub fn start(memory: Tube, interrupt: Event) -> Result<(Self, SafeDescriptor), Error> {
        let (events, workers_events) = Tube::pair().map_err(Error::Tube)?;
        let (ours, theirs) = channel_pair().map_err(Error::Start)?;
        let channel = RequestChannel::new(
            ours,
            ChannelConfig {
                negotiated: Negotiated {
                    virtio_features: 0,
                    protocol_features: ProtocolFeatures::REPLY_ACK
                        | ProtocolFeatures::CONFIG
                        | ProtocolFeatures::SHMEM,
                    legacy_shmem: false,
                },
                max_in_flight: MAX_IN_FLIGHT,
                peer: Peer::InProcess,
                has_timeout: true,
                strict: false,
            },
        )?;
        let worker = Worker::new(WorkerConfig {
            memory,
            generation: Generation::default(),
            events: PacketTube::new(workers_events),
            interrupt,
            main_channel: None,
            peer: Peer::InProcess,
            hooks: None,
        })
        .map_err(Error::Start)?;
        let worker = WorkerHandle::start(worker, |_| ()).map_err(Error::Start)?;
        worker.open(channel, None)?;
        let events = PacketTube::new(events);
        Ok((Self { worker, events }, theirs))
    }

    /// Says whether the driver is ready: config changes are delivered from then on.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn set_active(&self, active: bool) -> Result<(), Error> {
        Ok(self.worker.set_active(active)?)
    }

    /// Drops the device's mappings and returns the generation that it is in from now on. Requests of before, and those
    /// that come meanwhile, are answered ECANCELED. Resetting the backend itself is up to the caller, before.
    ///
    /// # Errors
    /// [`Error::Command`]; [`Error::Service`] if the service does not know the device.
    pub fn reset(&self, service: &ServiceHandle, device: DeviceId) -> Result<Generation, Error> {
        self.worker.cancel()?;
        self.worker.set_active(false)?;
        self.worker.hold()?;
        let generation = service.reset_device(device).map_err(Error::Service)?;
        self.worker.resume(generation)?;
        Ok(generation)
    }

    /// Returns the counters.
    ///
    /// # Errors
    /// [`Error::Command`].
    pub fn stats(&self) -> Result<WorkerStats, Error> {
        Ok(self.worker.stats()?)
    }

    /// Returns a descriptor that becomes readable when there is an event.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Returns the next event, if there is one. Never waits.
    ///
    /// # Errors
    /// [`Error::Tube`]; disconnected if the worker has ended.
    pub fn try_event(&mut self) -> Result<Option<DeviceEvent>, Error> {
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TubeError::WouldBlock) => Ok(None),
            Err(error) => Err(Error::Tube(error)),
        }
    }

    /// Ends the worker and returns why it ended, which may have been before.
    pub fn stop(self) -> WorkerExit {
        self.worker.stop()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use base::EventToken;
    use base::MappedRegion;
    use base::MemoryMappingBuilder;
    use base::SharedMemory;
    use base::WaitContext;
    use vm_control::Arena;
    use vm_control::ArenaVm;
    use vm_control::DeviceConfig;
    use vm_control::MappingService;
    use vm_control::RegionConfig;
    use vm_control::ServiceConfig;

    use super::*;
    use crate::testing::NEED_REPLY;
    use crate::testing::TIMEOUT;
    use crate::testing::file;
    use crate::testing::mmap;
    use crate::testing::read_reply;
    use crate::testing::send;

    #[derive(Clone, Copy, EventToken)]
    enum Token {
        Gone,
    }

    const PAGE: u64 = 4096;
    const EXTERNAL_MAP: u32 = 1007;

    struct Bench {
        device: InProcessDevice,
        device_id: DeviceId,
        channel: UnixStream,
        service: MappingService,
        arena: Arena,
    }

    impl Bench {
        fn new(allow_external: bool) -> Self {
            let vm = Box::new(ArenaVm::new());
            let service = MappingService::start(vm, ServiceConfig::default()).unwrap();
            let handle = service.handle();
            let config = DeviceConfig {
                allow_external,
                ..DeviceConfig::new("inner")
            };
            let (device_id, memory) = handle.add_device(config).unwrap();
            let arena = Arena::new(16 * PAGE).unwrap();
            let region = RegionConfig {
                shmid: 0,
                guest_address: 1 << 32,
                len: 16 * PAGE,
                arena: Some(arena.clone()),
                populate: 0,
            };
            handle.add_region(device_id, region).unwrap();
            let (device, theirs) = InProcessDevice::start(memory, Event::new().unwrap()).unwrap();
            let channel = UnixStream::from(OwnedFd::from(theirs));
            channel.set_read_timeout(Some(TIMEOUT)).unwrap();
            Self {
                device,
                device_id,
                channel,
                service,
                arena,
            }
        }

        fn external_map(&self, offset: u64, len: u64, address: u64) -> i64 {
            let mut payload = vec![0; 8];
            for word in [offset, len, address] {
                payload.extend_from_slice(&word.to_ne_bytes());
            }
            send(&self.channel, EXTERNAL_MAP, 0, &payload, None);
            let (code, value) = read_reply(&self.channel);
            assert_eq!(code, EXTERNAL_MAP);
            value
        }
    }

    #[test]
    fn external_map_shows_memory_of_this_process() {
        let bench = Bench::new(true);
        let memory = SharedMemory::new("blob", PAGE).unwrap();
        let mapping = MemoryMappingBuilder::new(usize::try_from(PAGE).unwrap())
            .from_shared_memory(&memory)
            .build()
            .unwrap();
        rustix::io::pwrite(&memory, b"seen", 0).unwrap();
        let address = mapping.as_ptr().addr() as u64;
        assert_eq!(bench.external_map(PAGE, PAGE, address), 0);
        let mut seen = [0; 4];
        bench.arena.read_at(PAGE, &mut seen).unwrap();
        assert_eq!(&seen, b"seen");
    }

    #[test]
    fn external_map_of_an_address_without_memory_is_refused() {
        let bench = Bench::new(true);
        // The first pages are never mapped.
        assert_eq!(bench.external_map(0, PAGE, PAGE), -i64::from(libc::EFAULT));
        assert_eq!(bench.device.stats().unwrap().refused, 1);
    }

    #[test]
    fn external_map_that_the_service_does_not_allow_is_refused() {
        let bench = Bench::new(false);
        assert_eq!(bench.external_map(0, PAGE, PAGE), -i64::from(libc::EPERM));
    }

    #[test]
    fn reset_drops_what_was_mapped_and_serves_on() {
        let bench = Bench::new(false);
        let map = || {
            let page = file(PAGE);
            let payload = mmap(0, 0, PAGE, 1);
            send(&bench.channel, 9, NEED_REPLY, &payload, Some(page.as_fd()));
            read_reply(&bench.channel)
        };
        assert_eq!(map(), (9, 0));
        let service = bench.service.handle();
        bench.device.reset(&service, bench.device_id).unwrap();
        assert_eq!(service.mappings().len(), 0);
        assert_eq!(map(), (9, 0));
    }

    #[test]
    fn stop_drops_what_was_mapped() {
        let mut bench = Bench::new(false);
        let events = bench.service.take_events().unwrap();
        let page = file(PAGE);
        let payload = mmap(0, 0, PAGE, 1);
        send(&bench.channel, 9, NEED_REPLY, &payload, Some(page.as_fd()));
        assert_eq!(read_reply(&bench.channel), (9, 0));
        assert_eq!(bench.device.stop(), WorkerExit::Killed);
        let wait = WaitContext::build_with(&[(&events, Token::Gone)]).unwrap();
        assert_eq!(wait.wait_timeout(TIMEOUT).unwrap().len(), 1);
        assert_eq!(bench.service.handle().mappings().len(), 0);
    }
}
