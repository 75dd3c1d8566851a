//! The memory tube's packets, as a device process in foreign hands could send them.

use std::io::IoSlice;
use std::os::fd::AsFd;
use std::time::Duration;

use base::SharedMemory;
use base::Tube;
use base::TubeError;
use base::scm;
use base::scm::Wait;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::DeviceId;
use vm_control::Generation;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ResponseBatch;
use vm_control::ServiceConfig;
use vm_control::VmMemoryDestination;
use vm_control::VmMemorySource;
use vm_control::api::VmMemoryClient;

use crate::leak::Sentinel;

const PAGE: u64 = 4096;
const PAGES: u64 = 16;

/// The first byte says how many descriptors come along (a memfd and a pipe in turn, up to 40), the rest is one packet.
///
/// The service answers the packet or drops its sender. It serves another device afterwards, whose mappings the packet has not
/// touched; with its sender go all mappings and descriptors.
///
/// # Panics
/// If one of these is not so.
pub fn tube(data: &[u8]) {
    let Some((count, packet)) = data.split_first() else {
        return;
    };
    if packet.is_empty() {
        return;
    }
    let sentinel = Sentinel::new();
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let (hostile, tube) = add(&service, 0);
    let (other, others) = add(&service, 1);
    let mut others = VmMemoryClient::new(others, Generation::default());
    map(&mut others, 0);

    let memory = SharedMemory::new("fuzz", PAGES * PAGE).expect("a memfd");
    let descriptors: Vec<_> = (0..count % 41)
        .map(|place| match place % 2 {
            0 => memory.as_fd(),
            _ => sentinel.descriptor(),
        })
        .collect();
    let packet = &packet[..packet.len().min(4096)];
    scm::send(
        tube.as_fd(),
        &[IoSlice::new(packet)],
        &descriptors,
        Wait::Block,
    )
    .expect("sent");
    match tube.recv::<ResponseBatch>() {
        Ok(answers) => assert!(!answers.responses.is_empty()),
        Err(error) => assert_eq!(error, TubeError::Disconnected),
    }
    drop(tube);

    map(&mut others, 1);
    // It is gone already where it was dropped.
    let _ = service.handle().remove_device(hostile);
    let left = service.handle().mappings();
    let left: Vec<_> = left
        .iter()
        .map(|mapping| (mapping.device_id, mapping.offset))
        .collect();
    assert_eq!(left, [(other, 0), (other, PAGE)]);
    drop(service);
    sentinel.assert_not_leaked();
}

fn add(service: &MappingService, place: u64) -> (DeviceId, Tube) {
    let handle = service.handle();
    let (id, tube) = handle
        .add_device(DeviceConfig::new("fuzz"))
        .expect("a device");
    for shmid in [0, 3] {
        let region = RegionConfig {
            shmid,
            guest_address: (1 << 32) + (4 * place + u64::from(shmid)) * PAGES * PAGE,
            len: PAGES * PAGE,
            arena: None,
            populate: 0,
        };
        handle.add_region(id, region).expect("a region");
    }
    tube.set_recv_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    (id, tube)
}

fn map(client: &mut VmMemoryClient, page: u64) {
    let memory = SharedMemory::new("other", PAGE).expect("a memfd");
    let source = VmMemorySource::Descriptor {
        descriptor: memory.into(),
        offset: 0,
    };
    let dest = VmMemoryDestination {
        shmid: 0,
        offset: page * PAGE,
    };
    client
        .register_memory(source, dest, PAGE, base::Protection::read())
        .expect("the other device is served");
}
