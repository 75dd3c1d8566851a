//! A service with devices, and descriptors of every kind to send to it.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::time::Duration;

use base::Protection;
use base::SafeDescriptor;
use base::Seals;
use base::Tube;
use base::WaitContext;
use base::seal;
use rustix::fs::MemfdFlags;
use rustix::fs::ftruncate;
use rustix::fs::memfd_create;

use crate::Arena;
use crate::ArenaVm;
use crate::DeviceConfig;
use crate::DeviceId;
use crate::DeviceStats;
use crate::Generation;
use crate::GoneReason;
use crate::MappingInfo;
use crate::MappingService;
use crate::RegionConfig;
use crate::RequestBatch;
use crate::ResponseBatch;
use crate::ServiceConfig;
use crate::ServiceEvent;
use crate::ServiceEvents;
use crate::ServiceHandle;
use crate::Vm;
use crate::VmMemoryDestination;
use crate::VmMemoryRequest;
use crate::VmMemoryResponse;
use crate::VmMemorySource;
use crate::api::ClientError;
use crate::api::VmMemoryClient;

/// How long to wait for what must happen; only a failing test waits that long.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) const PAGE: u64 = 0x1000;

/// The length of the region 0 that each device has.
pub(super) const REGION_LEN: u64 = 64 * PAGE;

pub(super) const READ: Protection = Protection::read();
pub(super) const BOTH: Protection = Protection::read_write();

/// A running service.
pub(super) struct Fixture {
    _service: MappingService,
    pub(super) handle: ServiceHandle,
    events: ServiceEvents,
    next_address: u64,
}

/// A device with a region 0, and a client at its tube.
pub(super) struct TestDevice {
    pub(super) id: DeviceId,
    pub(super) client: VmMemoryClient,
    pub(super) arena: Arena,
}

/// Why and with how many mappings a device went.
pub(super) struct Gone {
    pub(super) id: DeviceId,
    pub(super) reason: GoneReason,
    pub(super) mappings: u64,
}

impl Fixture {
    pub(super) fn new() -> Self {
        Self::with(Box::new(ArenaVm::new()), ServiceConfig::default())
    }

    pub(super) fn with(vm: Box<dyn Vm>, config: ServiceConfig) -> Self {
        let mut service = MappingService::start(vm, config).expect("the service starts");
        Self {
            handle: service.handle(),
            events: service.take_events().expect("the first reader"),
            _service: service,
            next_address: 1 << 32,
        }
    }

    /// Adds a device and leaves its tube to the caller.
    pub(super) fn add_bare(&mut self, config: DeviceConfig) -> (DeviceId, Tube, Arena) {
        let (id, tube) = self.handle.add_device(config).expect("a device");
        let arena = self.add_region(id, 0);
        (id, tube, arena)
    }

    pub(super) fn add_region(&mut self, id: DeviceId, shmid: u8) -> Arena {
        let arena = Arena::new(REGION_LEN).expect("an arena");
        let config = RegionConfig {
            shmid,
            guest_address: self.next_address,
            len: REGION_LEN,
            arena: Some(arena.clone()),
            populate: 0,
        };
        self.next_address += REGION_LEN;
        self.handle.add_region(id, config).expect("a region");
        arena
    }

    pub(super) fn add(&mut self, config: DeviceConfig) -> TestDevice {
        let (id, tube, arena) = self.add_bare(config);
        let client = VmMemoryClient::new(tube, Generation::default());
        TestDevice { id, client, arena }
    }

    pub(super) fn mappings(&self) -> Vec<MappingInfo> {
        self.handle.mappings()
    }

    pub(super) fn stats(&self, id: DeviceId) -> DeviceStats {
        let mut all = self.handle.stats().into_iter();
        all.find(|stats| stats.device_id == id)
            .expect("a known device")
    }

    /// Waits for a device to go without the VMM's doing.
    #[track_caller]
    pub(super) fn wait_gone(&self) -> Gone {
        let context = WaitContext::build_with(&[(&self.events, 0u32)]).expect("a wait context");
        let event = loop {
            // The descriptor stays readable until somebody has seen that there is nothing more.
            if let Some(event) = self.events.try_next().expect("it is readable") {
                break event;
            }
            let ready = context.wait_timeout(TIMEOUT).expect("it waits");
            assert_eq!(ready.len(), 1, "no event within {TIMEOUT:?}");
        };
        let ServiceEvent::DeviceGone {
            device_id,
            reason,
            mappings,
            ..
        } = event;
        Gone {
            id: device_id,
            reason,
            mappings,
        }
    }
}

impl TestDevice {
    pub(super) fn map(
        &mut self,
        fd: impl Into<SafeDescriptor>,
        offset: u64,
        len: u64,
        prot: Protection,
    ) -> Result<(), i32> {
        self.register(source(fd, 0), at(offset), len, prot)
    }

    pub(super) fn register(
        &mut self,
        source: VmMemorySource,
        dest: VmMemoryDestination,
        len: u64,
        prot: Protection,
    ) -> Result<(), i32> {
        errno(self.client.register_memory(source, dest, len, prot))
    }

    pub(super) fn unmap(&mut self, offset: u64, len: u64) -> Result<(), i32> {
        errno(self.client.unregister_memory(at(offset), len))
    }

    /// What is mapped at `offset`.
    pub(super) fn byte(&self, offset: u64) -> Result<u8, i32> {
        let mut byte = [0];
        let read = self.arena.read_at(offset, &mut byte);
        read.map(|()| byte[0]).map_err(base::Error::errno)
    }
}

/// A service with one device.
pub(super) fn one(config: DeviceConfig) -> (Fixture, TestDevice) {
    let mut fixture = Fixture::new();
    let device = fixture.add(config);
    (fixture, device)
}

pub(super) fn named(name: &str) -> DeviceConfig {
    DeviceConfig::new(name)
}

pub(super) fn at(offset: u64) -> VmMemoryDestination {
    VmMemoryDestination { shmid: 0, offset }
}

pub(super) fn source(fd: impl Into<SafeDescriptor>, offset: u64) -> VmMemorySource {
    VmMemorySource::Descriptor {
        descriptor: fd.into(),
        offset,
    }
}

pub(super) fn vulkan(fd: impl Into<SafeDescriptor>) -> VmMemorySource {
    VmMemorySource::Vulkan {
        descriptor: fd.into(),
        handle_type: 1,
        memory_idx: 2,
        device_uuid: [3; 16],
        driver_uuid: [4; 16],
    }
}

#[track_caller]
pub(super) fn errno(outcome: Result<(), ClientError>) -> Result<(), i32> {
    match outcome {
        Ok(()) => Ok(()),
        Err(ClientError::Refused(error)) => Err(error.errno()),
        Err(error) => panic!("{error:?}"),
    }
}

/// A memfd of `len` bytes, each `fill`.
pub(super) fn memfd(len: u64, fill: u8) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(c"test", flags).expect("a memfd");
    fill_with(&fd, len, fill);
    fd
}

/// A memfd of one page with seals.
pub(super) fn sealed(seals: Seals) -> OwnedFd {
    let fd = memfd(PAGE, 1);
    seal(fd.as_fd(), seals).expect("it seals");
    fd
}

/// A file in a file system, of `len` bytes, each `fill`.
pub(super) fn file(len: u64, fill: u8) -> File {
    let file = tempfile::tempfile().expect("a file");
    fill_with(&file, len, fill);
    file
}

fn fill_with(fd: impl AsFd, len: u64, fill: u8) {
    ftruncate(&fd, len).expect("it grows");
    let bytes = vec![fill; usize::try_from(len).expect("small")];
    assert_eq!(rustix::io::pwrite(&fd, &bytes, 0), Ok(bytes.len()));
}

/// The areas of address space (VMAs) within an arena.
pub(super) fn areas(arena: &Arena) -> usize {
    let range = arena.host_address()..arena.host_address() + arena.len();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it is there");
    let bounds = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let parse = |text| u64::from_str_radix(text, 16).ok();
        Some(parse(start)?..parse(end)?)
    };
    let mut seen = 0;
    let mut count = 0;
    for area in maps.lines().filter_map(bounds) {
        // An area that another test's thread makes larger while the list is read comes twice.
        let is_new = area.start >= seen;
        seen = area.end;
        count += usize::from(is_new && area.start < range.end && area.end > range.start);
    }
    count
}

/// Waits until nobody has the other end of a pipe any more, so that every copy of it is closed.
#[track_caller]
pub(super) fn assert_closed(read_end: &OwnedFd) {
    let context = WaitContext::build_with(&[(read_end, 0u32)]).expect("a wait context");
    let ready = context.wait_timeout(TIMEOUT).expect("it waits");
    let hung_up = ready.first().is_some_and(|event| event.is_hungup);
    assert!(hung_up, "the descriptor is still open after {TIMEOUT:?}");
}

/// A pipe: the end to watch, and the end to send away.
pub(super) fn watched() -> (OwnedFd, OwnedFd) {
    let (read_end, write_end) = std::io::pipe().expect("a pipe");
    (read_end.into(), write_end.into())
}

pub(super) fn map_request(fd: impl Into<SafeDescriptor>, page: u64) -> VmMemoryRequest {
    VmMemoryRequest::RegisterMemory {
        source: source(fd, 0),
        dest: at(page * PAGE),
        len: PAGE,
        prot: READ,
    }
}

pub(super) fn unmap_request(page: u64) -> VmMemoryRequest {
    VmMemoryRequest::UnregisterMemory {
        dest: at(page * PAGE),
        len: PAGE,
    }
}

pub(super) fn batch(requests: impl IntoIterator<Item = VmMemoryRequest>) -> RequestBatch {
    RequestBatch {
        generation: Generation::default(),
        requests: requests.into_iter().collect(),
    }
}

/// The answer to a refused request.
pub(super) fn refused(errno: i32) -> VmMemoryResponse {
    VmMemoryResponse::Err(base::Error::new(errno))
}

/// The answers to the next batch.
#[track_caller]
pub(super) fn received(tube: &Tube) -> Vec<VmMemoryResponse> {
    let answers: ResponseBatch = tube.recv().expect("answered");
    answers.responses.to_vec()
}
