//! The whole server (channel, worker, tube, mapping service) beside a naive model: arrays of pages.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use base::Event;
use base::SharedMemory;
use devices::in_process::InProcessDevice;
use libc::EACCES;
use libc::EBADF;
use libc::EEXIST;
use libc::EINVAL;
use libc::ENOENT;
use libc::ENXIO;
use libc::EOVERFLOW;
use libc::ERANGE;
use rustix::fs::SealFlags;
use rustix::fs::fcntl_add_seals;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;
use vmm_vhost::ClientError;
use vmm_vhost::FrontendClient;
use vmm_vhost::Outgoing;
use vmm_vhost::message::MmapPayload;
use vmm_vhost::message::RequestCode;
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;
/// The regions, by their ids, and their pages.
const REGIONS: [(u8, u64); 2] = [(0, 16), (3, 4)];
/// Pages of each file.
const FILE_PAGES: u64 = 8;
/// Bytes of one step, and steps that are taken.
const STEP: usize = 8;
const MOST: usize = 48;

/// One request, out of eight bytes.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// An unmap for odd numbers, a map for even ones.
    is_map: bool,
    shmid: u8,
    offset: u64,
    len: u64,
    fd_offset: u64,
    writable: bool,
    source: u8,
}

impl Step {
    fn of(bytes: [u8; STEP]) -> Self {
        let [kind, shmid, page, pages, tail, source, fd_page, flags] = bytes;
        // One bit each takes the offsets off their pages.
        let askew = |bit: u8| u64::from(flags & bit != 0);
        Self {
            is_map: kind % 2 == 0,
            shmid: shmid % 5,
            offset: u64::from(page % 20) * PAGE + askew(2),
            len: u64::from(pages % 10) * PAGE + u64::from(tail),
            fd_offset: u64::from(fd_page % 10) * PAGE + askew(4),
            writable: flags & 1 != 0,
            source: source % 5,
        }
    }
}

/// What the backend maps, by [`Step::source`].
struct Sources {
    memory: SharedMemory,
    sealed: SharedMemory,
    read_only: File,
    pipe: std::io::PipeReader,
}

impl Sources {
    fn new() -> Self {
        let memfd = || SharedMemory::new("fuzz", FILE_PAGES * PAGE).expect("a memfd");
        let (memory, sealed) = (memfd(), memfd());
        fcntl_add_seals(sealed.as_fd(), SealFlags::WRITE).expect("a seal");
        let path = format!("/proc/self/fd/{}", memory.as_fd().as_raw_fd());
        Self {
            memory,
            sealed,
            read_only: File::open(path).expect("the memfd once more"),
            pipe: std::io::pipe().expect("a pipe").0,
        }
    }

    fn descriptor(&self, step: &Step) -> Option<BorrowedFd<'_>> {
        match step.source {
            0 => Some(self.memory.as_fd()),
            1 => Some(self.sealed.as_fd()),
            2 => Some(self.read_only.as_fd()),
            3 => Some(self.pipe.as_fd()),
            _ => None,
        }
    }
}

/// Which mapping each page belongs to, and how long each mapping is.
#[derive(Default)]
struct Model {
    /// By region and page: the page at which its mapping begins.
    pages: BTreeMap<(u8, u64), u64>,
    /// By region and first page.
    lengths: BTreeMap<(u8, u64), u64>,
}

impl Model {
    /// What the request must be answered; it is carried out if that is 0.
    fn answer(&mut self, step: &Step) -> i32 {
        if step.is_map {
            self.map(step)
        } else {
            self.unmap(step)
        }
    }

    fn map(&mut self, step: &Step) -> i32 {
        let is_whole = |offset: u64| offset.is_multiple_of(PAGE);
        if step.source == 4 || !is_whole(step.offset) || !is_whole(step.fd_offset) || step.len == 0
        {
            return EINVAL;
        }
        let Some((_, region)) = REGIONS.iter().find(|(shmid, _)| *shmid == step.shmid) else {
            return ENXIO;
        };
        let first = step.offset / PAGE;
        let range = first..first + step.len.div_ceil(PAGE);
        if range.end > *region {
            return ERANGE;
        }
        if range
            .clone()
            .any(|page| self.pages.contains_key(&(step.shmid, page)))
        {
            return EEXIST;
        }
        if step.source == 3 {
            return EBADF;
        }
        if step.fd_offset + step.len > FILE_PAGES * PAGE {
            return EOVERFLOW;
        }
        if step.writable && step.source != 0 {
            return EACCES;
        }
        for page in range {
            self.pages.insert((step.shmid, page), first);
        }
        self.lengths.insert((step.shmid, first), step.len);
        0
    }

    fn unmap(&mut self, step: &Step) -> i32 {
        if !step.offset.is_multiple_of(PAGE) || step.len == 0 {
            return EINVAL;
        }
        let Some((_, region)) = REGIONS.iter().find(|(shmid, _)| *shmid == step.shmid) else {
            return ENXIO;
        };
        let first = step.offset / PAGE;
        let pages = step.len.div_ceil(PAGE);
        if first + pages > *region {
            return ERANGE;
        }
        match self.lengths.get(&(step.shmid, first)) {
            Some(len) if step.len == *len || step.len == len.div_ceil(PAGE) * PAGE => {}
            _ => return ENOENT,
        }
        self.lengths.remove(&(step.shmid, first));
        for page in first..first + pages {
            self.pages.remove(&(step.shmid, page));
        }
        0
    }
}

/// Each eight bytes are one map or unmap.
///
/// After each the answer is the model's, and the service records what the model has.
///
/// # Panics
/// If one of these is not so.
pub fn server(data: &[u8]) {
    let sources = Sources::new();
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let handle = service.handle();
    let (id, memory) = handle
        .add_device(DeviceConfig::new("fuzz"))
        .expect("a device");
    // With a second device the service looks for commands after each packet, and need not be waited for.
    let _idle = handle
        .add_device(DeviceConfig::new("idle"))
        .expect("another device");
    for (place, (shmid, pages)) in (0..).zip(REGIONS) {
        let region = RegionConfig {
            shmid,
            guest_address: (1 << 32) + place * (1 << 20),
            len: pages * PAGE,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
    }
    let (_device, channel) =
        InProcessDevice::start(memory, Event::new().expect("an event")).expect("a worker");
    let mut client = FrontendClient::new(channel, true);
    let mut model = Model::default();
    for bytes in data.as_chunks().0.iter().take(MOST) {
        let step = Step::of(*bytes);
        let expected = model.answer(&step);
        let payload = MmapPayload {
            shmid: step.shmid,
            padding: [0; 7],
            fd_offset: step.fd_offset,
            shm_offset: step.offset,
            len: step.len,
            flags: u64::from(step.writable && step.is_map),
        };
        let request = if step.is_map {
            match sources.descriptor(&step) {
                Some(descriptor) => Outgoing::shmem_map(&payload, descriptor),
                None => Outgoing::raw(RequestCode::SHMEM_MAP, payload.as_bytes(), None)
                    .expect("forty bytes"),
            }
        } else {
            Outgoing::shmem_unmap(&payload)
        };
        let answered = match client.call(&request) {
            Ok(()) => 0,
            Err(error @ ClientError::Refused { .. }) => {
                error.errno().expect("a refusal has an errno").errno()
            }
            Err(error) => panic!("{step:?}: {error}"),
        };
        assert_eq!(answered, expected, "{step:?}");
        let recorded: BTreeMap<_, _> = handle
            .mappings()
            .iter()
            .map(|mapping| ((mapping.shmid, mapping.offset / PAGE), mapping.len))
            .collect();
        assert_eq!(recorded, model.lengths, "after {step:?}");
    }
}
