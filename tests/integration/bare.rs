//! Devices without a VMM: a mapping service, and a jailed device process for each backend.

use std::os::unix::net::UnixStream;
use std::path::Path;

use base::Event;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use jail::Spawner;
use vm_control::Arena;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::DeviceId;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;
use vm_control::ServiceHandle;

use crate::rig::BINARY;

/// What all devices share.
pub(crate) struct Bare {
    pub(crate) handle: ServiceHandle,
    spawner: Spawner,
    next_address: u64,
    _service: MappingService,
}

/// A device whose request channel is served.
pub(crate) struct BareDevice {
    pub(crate) process: DeviceProcess,
    pub(crate) id: DeviceId,
    /// The memory of each region, in the order of the backend's list.
    pub(crate) arenas: Vec<Arena>,
}

impl Bare {
    pub(crate) fn start() -> Self {
        let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
            .expect("a service");
        Self {
            handle: service.handle(),
            spawner: Spawner::start().expect("a spawner"),
            next_address: 4 << 30,
            _service: service,
        }
    }

    /// Starts the device of the backend that listens on `socket`.
    #[track_caller]
    pub(crate) fn device(&mut self, socket: &Path, name: &str) -> BareDevice {
        let stream = UnixStream::connect(socket).expect("the backend listens");
        let (id, memory) = self
            .handle
            .add_device(DeviceConfig::new(name))
            .expect("a device");
        let interrupt = Event::new().expect("an event");
        let mut config = DeviceProcessConfig::new(name, stream.into(), memory, interrupt);
        config.program = Some(BINARY.into());
        let mut process = DeviceProcess::spawn(&self.spawner, config).expect("a device process");
        let info = process.connect().expect("the backend");
        let mut arenas = Vec::new();
        for region in &info.regions {
            let arena = Arena::new(region.len).expect("an arena");
            let config = RegionConfig {
                shmid: region.shmid,
                guest_address: self.next_address,
                len: region.len,
                arena: Some(arena.clone()),
                populate: 0,
            };
            self.handle.add_region(id, config).expect("a region");
            self.next_address += region.len;
            arenas.push(arena);
        }
        process.start().expect("the request channel");
        BareDevice {
            process,
            id,
            arenas,
        }
    }
}
