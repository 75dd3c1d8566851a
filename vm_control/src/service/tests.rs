//! The service over real tubes and descriptors.

use std::fs::File;
use std::os::fd::OwnedFd;

use base::Protection;
use base::SafeDescriptor;
use base::SharedMemory;
use base::Tube;

use super::*;
use crate::ArenaVm;
use crate::VmMemoryDestination;
use crate::VmMemorySource;
use crate::api::ClientError;
use crate::api::VmMemoryClient;

const PAGE: u64 = 4096;
const REGION: u64 = 256 * PAGE;

struct Setup {
    service: MappingService,
    id: DeviceId,
    client: VmMemoryClient,
    arena: Arena,
}

fn setup(config: DeviceConfig) -> Setup {
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let handle = service.handle();
    let (id, tube) = handle.add_device(config).expect("a device");
    let arena = Arena::new(REGION).expect("an arena");
    handle.add_region(id, region(0, &arena)).expect("a region");
    let client = VmMemoryClient::new(tube, Generation(0));
    Setup {
        service,
        id,
        client,
        arena,
    }
}

fn region(shmid: u8, arena: &Arena) -> RegionConfig {
    RegionConfig {
        shmid,
        guest_address: 1 << 32,
        len: REGION,
        arena: Some(arena.clone()),
    }
}

fn memfd(bytes: u64) -> SafeDescriptor {
    let memory = SharedMemory::new("test", bytes).expect("a memfd");
    SafeDescriptor::try_from(&memory as &dyn AsRawDescriptor).expect("a duplicate")
}

fn source(descriptor: impl Into<OwnedFd>, offset: u64) -> VmMemorySource {
    VmMemorySource::Descriptor {
        descriptor: descriptor.into().into(),
        offset,
    }
}

fn at(offset: u64) -> VmMemoryDestination {
    VmMemoryDestination { shmid: 0, offset }
}

fn errno(result: Result<(), ClientError>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(ClientError::Refused(error)) => error.errno(),
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn mapped_bytes_are_seen_in_the_arena_until_they_are_unmapped() {
    let mut setup = setup(DeviceConfig::new("fs"));
    let file = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_at(&file, b"gate", 0).expect("a write");
    file.set_len(PAGE).expect("a length");
    setup
        .client
        .register_memory(source(file, 0), at(PAGE), PAGE, Protection::read())
        .expect("mapped");
    let mut seen = [0; 4];
    setup.arena.read_at(PAGE, &mut seen).expect("readable");
    assert_eq!(&seen, b"gate");
    let mappings = setup.service.handle().mappings();
    assert_eq!(
        mappings,
        [MappingInfo {
            device: "fs".to_owned(),
            device_id: setup.id,
            shmid: 0,
            offset: PAGE,
            len: PAGE,
            footprint: PAGE,
            protection: Protection::read(),
            kind: crate::MappingKind::File,
            guest_address: (1 << 32) + PAGE,
        }]
    );
    setup
        .client
        .unregister_memory(at(PAGE), PAGE)
        .expect("unmapped");
    let error = setup.arena.read_at(PAGE, &mut seen).expect_err("a hole");
    assert_eq!(error.errno(), libc::EFAULT);
    assert_eq!(setup.service.handle().mappings(), []);
}

#[test]
fn each_bad_source_is_refused_with_its_errno() {
    let mut setup = setup(DeviceConfig::new("fs"));
    let (pipe, _writer) = std::io::pipe().expect("a pipe");
    let directory = File::open("/").expect("a directory");
    let null = File::open("/dev/null").expect("/dev/null");
    let path = tempfile::NamedTempFile::new().expect("a file");
    path.as_file().set_len(PAGE).expect("a length");
    let read_only = || File::open(path.path()).expect("opens");
    let write_only = File::options()
        .write(true)
        .open(path.path())
        .expect("opens");
    let both = Protection::read_write();
    let read = Protection::read();
    let mut map = |source, len, protection| {
        errno(setup.client.register_memory(source, at(0), len, protection))
    };
    assert_eq!(map(source(pipe, 0), PAGE, read), libc::EBADF);
    assert_eq!(map(source(directory, 0), PAGE, read), libc::EBADF);
    assert_eq!(map(source(null, 0), PAGE, read), libc::EBADF);
    assert_eq!(map(source(read_only(), 0), PAGE, both), libc::EACCES);
    assert_eq!(map(source(write_only, 0), PAGE, read), libc::EACCES);
    assert_eq!(map(source(read_only(), 0), PAGE + 1, read), libc::EOVERFLOW);
    assert_eq!(map(source(read_only(), PAGE), 1, read), libc::EOVERFLOW);
    assert_eq!(map(source(read_only(), 1), 1, read), libc::EINVAL);
    assert_eq!(
        map(source(read_only(), 0), PAGE, Protection::write()),
        libc::EINVAL
    );
    assert_eq!(
        map(VmMemorySource::ExternalMapping { ptr: 0 }, PAGE, read),
        libc::EPERM
    );
    assert_eq!(map(source(read_only(), 0), PAGE, read), 0);
    let stats = setup.service.handle().stats();
    assert_eq!(stats[0].counters.maps, 1);
    assert_eq!(stats[0].counters.refused_total(), 10);
}

#[test]
fn device_cannot_name_the_region_of_another() {
    let mut setup = setup(DeviceConfig::new("fs"));
    let handle = setup.service.handle();
    let (other, _tube) = handle
        .add_device(DeviceConfig::new("gpu"))
        .expect("a device");
    let arena = Arena::new(REGION).expect("an arena");
    handle
        .add_region(other, region(1, &arena))
        .expect("a region");
    let dest = VmMemoryDestination {
        shmid: 1,
        offset: 0,
    };
    let result =
        setup
            .client
            .register_memory(source(memfd(PAGE), 0), dest, PAGE, Protection::read());
    assert_eq!(errno(result), libc::ENXIO);
    assert_eq!(
        errno(setup.client.unregister_memory(dest, PAGE)),
        libc::ENXIO
    );
}

#[test]
fn quota_is_kept_and_given_back() {
    let mut setup = setup(DeviceConfig {
        limits: Limits {
            max_mappings: 2,
            max_bytes: 3 * PAGE,
        },
        ..DeviceConfig::new("fs")
    });
    let map = |client: &mut VmMemoryClient, page: u64, pages: u64| {
        let source = source(memfd(pages * PAGE), 0);
        errno(client.register_memory(source, at(page * PAGE), pages * PAGE, Protection::read()))
    };
    assert_eq!(map(&mut setup.client, 0, 4), libc::EDQUOT);
    assert_eq!(map(&mut setup.client, 0, 1), 0);
    assert_eq!(map(&mut setup.client, 10, 3), libc::EDQUOT);
    assert_eq!(map(&mut setup.client, 10, 2), 0);
    assert_eq!(map(&mut setup.client, 20, 1), libc::EDQUOT);
    assert_eq!(errno(setup.client.unregister_memory(at(0), PAGE)), 0);
    assert_eq!(map(&mut setup.client, 20, 1), 0);
}

#[test]
fn mappings_go_when_the_tube_closes_and_the_vmm_is_told() {
    let mut setup = setup(DeviceConfig::new("fs"));
    let events = setup.service.take_events().expect("the first reader");
    setup
        .client
        .register_memory(source(memfd(PAGE), 0), at(0), PAGE, Protection::read())
        .expect("mapped");
    drop(setup.client);
    let wait = base::WaitContext::build_with(&[(&events, 0u64)]).expect("a wait context");
    wait.wait().expect("an event");
    let Some(ServiceEvent::DeviceGone {
        device_id,
        device,
        reason,
        mappings,
    }) = events.try_next().expect("readable")
    else {
        panic!("no event");
    };
    assert_eq!((device_id, device.as_str(), mappings), (setup.id, "fs", 1));
    assert!(matches!(reason, GoneReason::Closed), "{reason:?}");
    assert_eq!(
        setup
            .arena
            .read_at(0, &mut [0])
            .expect_err("a hole")
            .errno(),
        libc::EFAULT
    );
    assert!(setup.service.handle().stats().is_empty());
}

#[test]
fn reset_drops_the_mappings_and_cancels_the_older_generation() {
    let mut setup = setup(DeviceConfig::new("fs"));
    let map = |client: &mut VmMemoryClient| {
        let source = source(memfd(PAGE), 0);
        errno(client.register_memory(source, at(0), PAGE, Protection::read()))
    };
    assert_eq!(map(&mut setup.client), 0);
    let handle = setup.service.handle();
    let generation = handle.reset_device(setup.id).expect("a reset");
    assert_eq!(generation, Generation(1));
    assert_eq!(handle.mappings(), []);
    assert_eq!(map(&mut setup.client), libc::ECANCELED);
    setup.client.set_generation(generation);
    assert_eq!(map(&mut setup.client), 0);
}

#[test]
fn packet_that_is_no_batch_costs_the_device_its_place() {
    let mut service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let events = service.take_events().expect("the first reader");
    let (_, tube): (_, Tube) = service
        .handle()
        .add_device(DeviceConfig::new("fs"))
        .expect("a device");
    tube.send(&[0xffu8; 32]).expect("sent");
    let wait = base::WaitContext::build_with(&[(&events, 0u64)]).expect("a wait context");
    wait.wait().expect("an event");
    let event = events.try_next().expect("readable");
    assert!(
        matches!(
            event,
            Some(ServiceEvent::DeviceGone {
                reason: GoneReason::Protocol(_),
                ..
            })
        ),
        "{event:?}"
    );
}
