//! What a pair of map and unmap costs in the region table, and through a tube in the whole service, by the number of mappings that
//! are live meanwhile.
//!
//! `cargo bench -p vm_control`. The service's figures contain two wake-ups a request, which the scheduler makes long or short:
//! pin to one processor (`taskset -c 0`) to compare them.

use arrayvec::ArrayVec;
use base::Protection;
use base::SafeDescriptor;
use base::SharedMemory;
use base::packet::PacketTube;
use divan::Bencher;
use divan::counter::ItemsCount;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::Generation;
use vm_control::Limits;
use vm_control::MAX_BATCH;
use vm_control::MappingKind;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::RegionTable;
use vm_control::RequestBatch;
use vm_control::ResponseBatch;
use vm_control::ServiceConfig;
use vm_control::UnmapRule;
use vm_control::VmMemoryDestination;
use vm_control::VmMemoryRequest;
use vm_control::VmMemorySource;

const PAGE: u64 = 4096;
/// The places that pairs rotate over; the live mappings lie behind them.
const SLOTS: u64 = 4096;
/// A slot and a hole.
const STRIDE: u64 = 2 * PAGE;
const LIVE: [u64; 3] = [0, 1000, 29_000];

fn main() {
    divan::main();
}

fn region_len() -> u64 {
    (SLOTS + 30_000) * STRIDE
}

#[divan::bench(args = LIVE)]
fn region_table_pair(bencher: Bencher<'_, '_>, live: u64) {
    let mut table = RegionTable::new(region_len(), PAGE);
    let map = |table: &mut RegionTable, slot: u64| {
        let vacancy = table.vacancy(slot * STRIDE, PAGE).expect("it is free");
        table.insert(vacancy, Protection::read(), MappingKind::Memfd);
    };
    for slot in SLOTS..SLOTS + live {
        map(&mut table, slot);
    }
    let mut slot = 0;
    bencher.bench_local(|| {
        slot = (slot + 1) % SLOTS;
        map(&mut table, slot);
        let found = table.find(slot * STRIDE, PAGE, UnmapRule::Exact);
        table.remove(&found.expect("it is live"));
    });
}

/// A service and the device's end of a tube.
struct Setup {
    _service: MappingService,
    tube: PacketTube,
    memory: SafeDescriptor,
}

impl Setup {
    fn new(live: u64) -> Self {
        let vm = Box::new(ArenaVm::new());
        let service = MappingService::start(vm, ServiceConfig::default()).expect("it starts");
        let limits = Limits {
            max_mappings: u32::MAX,
            ..Limits::default()
        };
        let config = DeviceConfig {
            limits,
            ..DeviceConfig::new("bench")
        };
        let (id, tube) = service.handle().add_device(config).expect("a device");
        let region = RegionConfig {
            shmid: 0,
            guest_address: 1 << 32,
            len: region_len(),
            arena: None,
            populate: 0,
        };
        service.handle().add_region(id, region).expect("a region");
        let memory = SharedMemory::new("bench", region_len()).expect("memory");
        let mut setup = Self {
            _service: service,
            tube: PacketTube::new(tube),
            memory: memory.into(),
        };
        for slot in SLOTS..SLOTS + live {
            setup.exchange([setup.map(slot)]);
        }
        setup
    }

    fn map(&self, slot: u64) -> VmMemoryRequest {
        let offset = slot * STRIDE;
        VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor: self.memory.try_clone().expect("a duplicate"),
                offset,
            },
            dest: VmMemoryDestination { shmid: 0, offset },
            len: PAGE,
            prot: Protection::read_write(),
        }
    }

    fn unmap(slot: u64) -> VmMemoryRequest {
        VmMemoryRequest::UnregisterMemory {
            dest: VmMemoryDestination {
                shmid: 0,
                offset: slot * STRIDE,
            },
            len: PAGE,
        }
    }

    fn exchange<const N: usize>(&mut self, requests: [VmMemoryRequest; N]) {
        let batch = RequestBatch {
            generation: Generation::default(),
            requests: requests.into_iter().collect::<ArrayVec<_, MAX_BATCH>>(),
        };
        self.tube.send(&batch).expect("sent");
        let answers: ResponseBatch = self.tube.recv().expect("answered");
        assert_eq!(answers.responses.len(), N);
        let refused = answers.responses.iter().find_map(|answer| match answer {
            vm_control::VmMemoryResponse::Ok => None,
            vm_control::VmMemoryResponse::Err(error) => Some(error),
        });
        assert_eq!(refused, None);
    }
}

#[divan::bench(args = LIVE)]
fn service_pair(bencher: Bencher<'_, '_>, live: u64) {
    let mut setup = Setup::new(live);
    let mut slot = 0;
    bencher.bench_local(|| {
        slot = (slot + 1) % SLOTS;
        setup.exchange([setup.map(slot)]);
        setup.exchange([Setup::unmap(slot)]);
    });
}

#[divan::bench(args = LIVE)]
fn service_pairs_in_batches(bencher: Bencher<'_, '_>, live: u64) {
    let mut setup = Setup::new(live);
    let mut first = 0;
    bencher.counter(ItemsCount::new(MAX_BATCH)).bench_local(|| {
        first = (first + MAX_BATCH as u64) % SLOTS;
        let slots: [u64; MAX_BATCH] = std::array::from_fn(|nth| first + nth as u64);
        setup.exchange(slots.map(|slot| setup.map(slot)));
        setup.exchange(slots.map(Setup::unmap));
    });
}
