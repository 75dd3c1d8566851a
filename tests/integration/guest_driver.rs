//! A driver in a real guest, a jailed device process, and a backend built on the crate `vhost-user-backend`: the whole
//! way from the guest's write to a register to the mapping that it reads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread::JoinHandle;

use base::Event;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use portcullis::vmm::config::DeviceOptions;
use portcullis::vmm::config::Guest;
use portcullis::vmm::frontend_device::FrontendDevice;
use portcullis::vmm::frontend_device::FrontendDeviceConfig;
use portcullis::vmm::frontend_device::SharedProcess;
use portcullis::vmm::host::Error as HostError;
use portcullis::vmm::host::Host;
use portcullis::vmm::host::Region;
use portcullis::vmm::machine;
use portcullis::vmm::machine::DriverConfig;
use portcullis::vmm::machine::GuestDriver;
use portcullis::vmm::machine::HolePolicy;
use portcullis::vmm::machine::Machine;
use portcullis::vmm::machine::Started;
use portcullis::vmm::mmio::InterruptLine;
use portcullis::vmm::mmio::SharedMemoryWindow;
use portcullis::vmm::mmio::VirtioMmio;
use vhost::vhost_user::Backend as RequestProxy;
use vhost::vhost_user::Listener;
use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserShMemConfig;
use vhost_user_backend::VhostUserBackendMut;
use vhost_user_backend::VhostUserDaemon;
use vhost_user_backend::VringRwLock;
use vhost_user_backend::VringT;
use virtio_queue::QueueOwnedT;
use vm_memory::Bytes;
use vm_memory::GuestAddressSpace;
use vm_memory::GuestMemoryAtomic;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::EventConsumer;
use vmm_sys_util::event::EventFlag;
use vmm_sys_util::event::EventNotifier;
use vmm_sys_util::event::new_event_consumer_and_notifier;

const REGISTERS: u64 = 0xd000_0000;
pub(crate) const PAGE: u64 = 0x1000;
const SHMID: u8 = 1;
const REGION_BYTES: u64 = 16 * PAGE;
const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
const CONFIG: DriverConfig = DriverConfig {
    features: VERSION_1,
    queues: 1,
    queue_size: 16,
};

/// What a request asks of the backend; its first byte. The second is the page of the region.
const MAP: u8 = 1;
const UNMAP: u8 = 2;
/// What the backend answers.
const DONE: &[u8] = b"done";
const REFUSED: &[u8] = b"refused";

/// A device that maps what the driver sends it into its region.
struct Blobs {
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    proxy: Option<RequestProxy>,
    exit: (EventConsumer, EventNotifier),
}

impl Blobs {
    fn new() -> Self {
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK).unwrap();
        Self {
            memory: None,
            proxy: None,
            exit,
        }
    }

    /// Does what a request says.
    fn serve(&self, request: &[u8]) -> io::Result<u64> {
        let proxy = self
            .proxy
            .as_ref()
            .ok_or_else(|| io::Error::other("no request channel"))?;
        let mapping = VhostUserMMap {
            shmid: SHMID,
            shm_offset: u64::from(request[1]) * PAGE,
            len: PAGE,
            ..VhostUserMMap::default()
        };
        if request[0] == UNMAP {
            return proxy.shmem_unmap(&mapping);
        }
        let file = File::from(fixture::memfd(&[0; 0x1000]));
        file.write_all_at(&request[2..], 0)?;
        proxy.shmem_map(&mapping, &file)
    }
}

impl VhostUserBackendMut for Blobs {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        VERSION_1 | PROTOCOL_FEATURES
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::BACKEND_SEND_FD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::SHMEM
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = b"a device of many blobs..........";
        let offset = usize::try_from(offset).unwrap();
        config[offset..][..usize::try_from(size).unwrap()].to_vec()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn set_backend_req_fd(&mut self, proxy: RequestProxy) {
        self.proxy = Some(proxy);
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    fn handle_event(
        &mut self,
        _event: u16,
        _set: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().unwrap().memory();
        let mut vring = vrings[0].get_mut();
        let chains: Vec<_> = vring
            .get_queue_mut()
            .iter(memory.clone())
            .map_err(io::Error::other)?
            .collect();
        for chain in chains {
            let head = chain.head_index();
            let mut request = Vec::new();
            let mut written = 0;
            for descriptor in chain {
                if descriptor.is_write_only() {
                    let answer = if self.serve(&request).is_ok() {
                        DONE
                    } else {
                        REFUSED
                    };
                    memory
                        .write_slice(answer, descriptor.addr())
                        .map_err(io::Error::other)?;
                    written = u32::try_from(answer.len()).unwrap();
                } else {
                    let len = usize::try_from(descriptor.len()).unwrap();
                    request.resize(len, 0);
                    memory
                        .read_slice(&mut request, descriptor.addr())
                        .map_err(io::Error::other)?;
                }
            }
            vring.add_used(head, written).map_err(io::Error::other)?;
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn get_shmem_config(&self) -> io::Result<VhostUserShMemConfig> {
        Ok(VhostUserShMemConfig::new(1, &[0, REGION_BYTES]))
    }
}

/// Runs the backend for one frontend on a thread of its own.
fn start_backend(socket: &Path) -> JoinHandle<()> {
    let mut listener = Listener::new(socket, true).unwrap();
    std::thread::spawn(move || {
        let backend = Arc::new(Mutex::new(Blobs::new()));
        let exit = backend.lock().unwrap().exit.1.try_clone().unwrap();
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("blobs".into(), backend, memory).unwrap();
        daemon.start(&mut listener).unwrap();
        // How the frontend goes is not the point here.
        let _ = daemon.wait();
        exit.notify().unwrap();
    })
}

/// A VMM with a guest and one device that its driver can reach.
pub(crate) struct Vm {
    process: Arc<Mutex<DeviceProcess>>,
    regions: Vec<Region>,
    machine: Arc<Machine>,
    host: Host,
    interrupt: Event,
}

impl Vm {
    /// `None` where there is no KVM.
    pub(crate) fn start(socket: &Path) -> Option<Self> {
        let host = match Host::new(Guest::Kvm, 16 << 20, HolePolicy::AllOnes, |_| ()) {
            Ok(host) => host,
            Err(HostError::Machine(
                error @ (machine::Error::Missing | machine::Error::Permission),
            )) => {
                fixture::skip(&error.to_string());
                return None;
            }
            Err(error) => panic!("{error:?}"),
        };
        let machine = host.machine();
        let options = DeviceOptions::new("blobs");
        let (id, memory) = host.add_device(&options).unwrap();
        let change = Event::new().unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        let mut config =
            DeviceProcessConfig::new("blobs", stream.into(), memory, change.try_clone().unwrap());
        config.program = Some(env!("CARGO_BIN_EXE_portcullis").into());
        let mut process = DeviceProcess::spawn(&host.spawner(), config).unwrap();
        let info = process.connect().unwrap();
        let regions = host.add_regions(id, &options, &info.regions).unwrap();
        process.start().unwrap();
        let process = Arc::new(Mutex::new(process));
        let interrupt = Event::new().unwrap();
        let line = InterruptLine::new(interrupt.try_clone().unwrap());
        let windows = regions.iter().map(|region| {
            let window = SharedMemoryWindow {
                guest_address: region.guest_address(),
                len: region.len(),
            };
            (region.shmid(), window)
        });
        let config = FrontendDeviceConfig {
            device_type: 63,
            features: info.virtio_features,
            queue_sizes: vec![256; usize::from(info.queues.unwrap_or(1))],
            windows: windows.collect(),
            memory: machine.memory().clone(),
            interrupt: line.clone(),
            config_change: change,
            doorbells: machine.doorbells(REGISTERS + 0x50),
        };
        let calls = SharedProcess::new(Arc::clone(&process), host.service(), id);
        let device = FrontendDevice::new(config, Box::new(calls)).unwrap();
        let transport = Arc::new(Mutex::new(VirtioMmio::new(device, line)));
        machine.bus().insert(REGISTERS, 0x200, transport).unwrap();
        Some(Self {
            process,
            regions,
            machine,
            host,
            interrupt,
        })
    }

    pub(crate) fn driver(&self) -> GuestDriver<'_> {
        let line = self.machine.connect_interrupt(&self.interrupt).unwrap();
        self.machine.driver(REGISTERS, line, CONFIG).unwrap()
    }

    /// What the guest sees at the start of a page of the region.
    pub(crate) fn peek(&self, page: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let address = self.regions[0].guest_address() + page * PAGE;
        self.machine.peek(address, &mut bytes).unwrap();
        bytes
    }

    /// The pages that are mapped.
    pub(crate) fn mapped(&self) -> Vec<u64> {
        let mappings = self.host.mappings();
        mappings
            .iter()
            .map(|mapping| mapping.offset / PAGE)
            .collect()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.machine.bus().remove(REGISTERS);
        let _ = self.process.lock().unwrap().kill();
    }
}

fn map(page: u8, text: &[u8]) -> Vec<u8> {
    [&[MAP, page], text].concat()
}

#[test]
fn guest_drives_a_backend_that_maps_and_unmaps_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blobs");
    let backend = start_backend(&socket);
    let Some(vm) = Vm::start(&socket) else { return };
    let driver = vm.driver();
    let started = Started {
        device_type: 63,
        features: VERSION_1,
    };
    assert_eq!(driver.start().unwrap(), started);
    assert_eq!(driver.read_register(0x104).unwrap().to_le_bytes(), *b"vice");
    let window = driver.shared_memory(SHMID.into()).unwrap().unwrap();
    assert_eq!(window.len, REGION_BYTES);
    assert_eq!(window.guest_address, vm.regions[0].guest_address());
    assert_eq!(driver.shared_memory(0).unwrap(), None);

    assert_eq!(vm.peek(3, 4), [0xff; 4]);
    assert_eq!(driver.request(0, &map(3, b"portcullis"), 16).unwrap(), DONE);
    assert_eq!(vm.peek(3, 10), b"portcullis");
    assert_eq!(driver.request(0, &map(3, b"again"), 16).unwrap(), REFUSED);
    assert_eq!(driver.request(0, &map(99, b"far"), 16).unwrap(), REFUSED);
    assert_eq!(driver.request(0, &map(4, b"gate"), 16).unwrap(), DONE);
    assert_eq!(vm.mapped(), [3, 4]);
    assert_eq!(driver.request(0, &[UNMAP, 3], 16).unwrap(), DONE);
    assert_eq!(driver.request(0, &[UNMAP, 3], 16).unwrap(), REFUSED);
    assert_eq!(
        (vm.peek(3, 4), vm.peek(4, 4)),
        (vec![0xff; 4], b"gate".to_vec())
    );
    assert_eq!(driver.line().taken().unwrap(), 6);
    drop(driver);
    drop(vm);
    backend.join().unwrap();
}

#[test]
fn reset_by_the_driver_removes_all_mappings_and_the_device_starts_anew() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blobs");
    let backend = start_backend(&socket);
    let Some(vm) = Vm::start(&socket) else { return };
    let driver = vm.driver();
    for round in 0..3 {
        driver.start().unwrap();
        assert_eq!(vm.mapped(), [0; 0], "round {round}");
        for page in [0, 1, 15] {
            assert_eq!(driver.request(0, &map(page, b"blob"), 16).unwrap(), DONE);
        }
        assert_eq!(vm.mapped(), [0, 1, 15]);
        driver.reset().unwrap();
        assert_eq!(vm.mapped(), [0; 0]);
        assert_eq!(vm.peek(15, 4), [0xff; 4]);
    }
    drop(driver);
    drop(vm);
    backend.join().unwrap();
}

#[test]
fn death_of_the_device_process_leaves_holes_and_a_guest_that_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blobs");
    let backend = start_backend(&socket);
    let Some(mut vm) = Vm::start(&socket) else {
        return;
    };
    let driver = vm.driver();
    driver.start().unwrap();
    assert_eq!(driver.request(0, &map(2, b"blob"), 16).unwrap(), DONE);
    assert_eq!(vm.peek(2, 4), b"blob");
    vm.process.lock().unwrap().kill().unwrap();
    backend.join().unwrap();
    drop(driver);
    let id = vm.host.mappings().first().map(|mapping| mapping.device_id);
    if let Some(id) = id {
        vm.host.remove_device(id);
    }
    assert_eq!(vm.mapped(), [0; 0]);
    assert_eq!(vm.peek(2, 4), [0xff; 4]);
    // The driver's reset finds nobody, and the registers still answer.
    let driver = vm.driver();
    driver.reset().unwrap();
    let error = driver.start().unwrap_err();
    assert!(
        matches!(
            error,
            machine::Error::Driver {
                step: machine::DriverStep::Start,
                ..
            }
        ),
        "{error}"
    );
}
