//! A mapping service with one device, whose process is jailed and whose backend is a script.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::thread::JoinHandle;

use base::Event;
use base::EventToken;
use base::WaitContext;
use devices::control::BackendInfo;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use devices::device_process::Error;
use jail::ExitReport;
use jail::SpawnError;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::DeviceId;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;
use vm_control::ServiceEvents;

use crate::runner::Skip;
use crate::testing::Script;
use crate::testing::Seen;
use crate::testing::TIMEOUT;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const REGION_BYTES: u64 = 1 << 20;

/// Where the guest would see the region.
const GUEST_ADDRESS: u64 = 1 << 32;

pub(crate) struct Bench {
    pub(crate) device: DeviceProcess,
    pub(crate) device_id: DeviceId,
    pub(crate) service: MappingService,
    pub(crate) service_events: ServiceEvents,
    pub(crate) arena: Arena,
    pub(crate) interrupt: Event,
    pub(crate) backend: JoinHandle<Vec<Seen>>,
    _spawner: Spawner,
}

impl Bench {
    /// Starts everything; the backend has not been spoken to.
    pub(crate) fn new(script: Script) -> Result<Self, Skip> {
        Self::configured(script, |_| ())
    }

    pub(crate) fn configured(
        script: Script,
        configure: impl FnOnce(&mut DeviceProcessConfig),
    ) -> Result<Self, Skip> {
        let (main_channel, theirs) = UnixStream::pair().expect("main channel");
        Self::with_backend(main_channel, script.serve(theirs), configure)
    }

    pub(crate) fn with_backend(
        main_channel: UnixStream,
        backend: JoinHandle<Vec<Seen>>,
        configure: impl FnOnce(&mut DeviceProcessConfig),
    ) -> Result<Self, Skip> {
        let mut service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
            .expect("mapping service");
        let service_events = service.take_events().expect("the only reader");
        let (device_id, memory) = service
            .handle()
            .add_device(DeviceConfig::new("test"))
            .expect("device");
        let interrupt = Event::new().expect("event");
        let mut config = DeviceProcessConfig::new(
            "test",
            OwnedFd::from(main_channel),
            memory,
            interrupt.try_clone().expect("clone"),
        );
        config.deadline = TIMEOUT;
        configure(&mut config);
        let spawner = Spawner::start().expect("spawner");
        let device = match DeviceProcess::spawn(&spawner, config) {
            Ok(device) => device,
            Err(Error::Spawn(error @ SpawnError::Jail { .. })) => {
                return Err(Skip(error.to_string()));
            }
            Err(error) => panic!("{error}"),
        };
        Ok(Self {
            device,
            device_id,
            service,
            service_events,
            arena: Arena::new(REGION_BYTES).expect("arena"),
            interrupt,
            backend,
            _spawner: spawner,
        })
    }

    /// Sets up the main channel, registers region 0 and opens the request channel.
    pub(crate) fn start(&mut self) -> BackendInfo {
        let info = self.device.connect().expect("connect");
        let region = RegionConfig {
            shmid: 0,
            guest_address: GUEST_ADDRESS,
            len: REGION_BYTES,
            arena: Some(self.arena.clone()),
            populate: 0,
        };
        self.service
            .handle()
            .add_region(self.device_id, region)
            .expect("region");
        self.device.start().expect("start");
        info
    }

    /// Waits for the end of the process.
    pub(crate) fn wait_for_exit(&mut self) -> ExitReport {
        wait_readable(&self.device.pidfd());
        self.device.exit_report().expect("a report").clone()
    }

    /// Waits until the service has noticed that the device is gone.
    pub(crate) fn wait_until_gone(&self) -> vm_control::ServiceEvent {
        loop {
            wait_readable(&self.service_events);
            if let Some(event) = self.service_events.try_next().expect("events") {
                return event;
            }
        }
    }

    pub(crate) fn mappings(&self) -> usize {
        self.service.handle().mappings().len()
    }
}

#[derive(Clone, Copy, EventToken)]
enum Token {
    It,
}

pub(crate) fn wait_readable(descriptor: &dyn base::AsRawDescriptor) {
    let wait = WaitContext::build_with(&[(descriptor, Token::It)]).expect("wait context");
    let events = wait.wait_timeout(TIMEOUT).expect("wait");
    assert!(!events.is_empty(), "nothing came within {TIMEOUT:?}");
}

/// A script that hands the request channel to the test.
pub(crate) fn script_with_channel() -> (Script, std::sync::mpsc::Receiver<UnixStream>) {
    let (sender, channels) = std::sync::mpsc::channel();
    let script = Script {
        shmem: (1, vec![(0, REGION_BYTES)]),
        on_channel: Box::new(move |channel| {
            channel.set_read_timeout(Some(TIMEOUT)).expect("timeout");
            sender.send(channel).expect("the test waits for it");
        }),
        ..Script::default()
    };
    (script, channels)
}

/// A backend that takes what comes and says nothing.
pub(crate) fn silent_backend(socket: UnixStream) -> JoinHandle<Vec<Seen>> {
    thread::spawn(move || {
        let mut sink = Vec::new();
        // Returns when the frontend is gone.
        let _ = std::io::Read::read_to_end(&mut &socket, &mut sink);
        Vec::new()
    })
}
