//! Micro-benchmarks of the pieces of the request path: decoding, the tube, the region table, the service.

use std::os::fd::AsFd;

use arrayvec::ArrayVec;
use base::Protection;
use base::SafeDescriptor;
use base::SharedMemory;
use base::Tube;
use base::packet::PacketTube;
use divan::Bencher;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::Generation;
use vm_control::Limits;
use vm_control::MappingKind;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::RegionTable;
use vm_control::RequestBatch;
use vm_control::ServiceConfig;
use vm_control::UnmapRule;
use vm_control::VmMemoryDestination;
use vm_control::VmMemoryRequest;
use vm_control::VmMemorySource;
use vm_control::api::VmMemoryClient;

const PAGE: u64 = 4096;

fn main() {
    divan::main();
}

/// A map and an unmap of one page among this many live mappings.
#[divan::bench(args = [0, 1_000, 30_000])]
fn region_table_pair(bencher: Bencher<'_, '_>, live: u64) {
    let mut table = RegionTable::new(1 << 40, PAGE);
    for index in 0..live {
        let place = table.vacancy(index * 2 * PAGE, PAGE).expect("free");
        table.insert(place, Protection::read(), MappingKind::Memfd);
    }
    let hole = live * PAGE / 2 * 2 + PAGE;
    bencher.bench_local(|| {
        let place = table.vacancy(hole, PAGE).expect("free");
        table.insert(place, Protection::read(), MappingKind::Memfd);
        let found = table.find(hole, PAGE, UnmapRule::Exact);
        table.remove(&found.expect("a mapping"));
    });
}

/// A batch of this many maps, with their descriptors, through a tube.
#[divan::bench(args = [1, 8, 32])]
fn tube_batch(bencher: Bencher<'_, '_>, requests: usize) {
    let (near, far) = Tube::pair().expect("a pair");
    let (mut near, mut far) = (PacketTube::new(near), PacketTube::new(far));
    let batch = RequestBatch {
        generation: Generation(0),
        requests: (0..requests).map(|_| map(0)).collect::<ArrayVec<_, 32>>(),
    };
    bencher.bench_local(|| {
        near.try_send(&batch).expect("sent");
        far.try_recv::<RequestBatch>().expect("received")
    });
}

/// A map and an unmap of one page, asked of the service through its tube.
#[divan::bench]
fn service_pair(bencher: Bencher<'_, '_>) {
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let (id, tube) = service
        .handle()
        .add_device(DeviceConfig {
            limits: Limits::default(),
            ..DeviceConfig::new("bench")
        })
        .expect("a device");
    service
        .handle()
        .add_region(
            id,
            RegionConfig {
                shmid: 0,
                guest_address: 1 << 32,
                len: 1 << 20,
                arena: None,
                populate: 0,
            },
        )
        .expect("a region");
    let mut client = VmMemoryClient::new(tube, Generation(0));
    let file = memfd();
    let dest = VmMemoryDestination {
        shmid: 0,
        offset: 0,
    };
    bencher.bench_local(|| {
        let source = VmMemorySource::Descriptor {
            descriptor: file.try_clone().expect("a duplicate"),
            offset: 0,
        };
        client
            .register_memory(source, dest, PAGE, Protection::read())
            .expect("mapped");
        client.unregister_memory(dest, PAGE).expect("unmapped");
    });
}

/// What the kernel says of a descriptor.
#[divan::bench]
fn inspect(bencher: Bencher<'_, '_>) {
    let file = memfd();
    bencher.bench_local(|| base::inspect(file.as_fd()));
}

fn memfd() -> SafeDescriptor {
    let memory = SharedMemory::new("bench", PAGE).expect("a memfd");
    SafeDescriptor::try_from(&memory as &dyn base::AsRawDescriptor).expect("a duplicate")
}

fn map(offset: u64) -> VmMemoryRequest {
    VmMemoryRequest::RegisterMemory {
        source: VmMemorySource::Descriptor {
            descriptor: memfd(),
            offset: 0,
        },
        dest: VmMemoryDestination { shmid: 0, offset },
        len: PAGE,
        prot: Protection::read(),
    }
}
