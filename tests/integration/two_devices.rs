//! Two devices of one mapping service, each with a jailed process of its own.

use base::Event;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use fixture::RequestSocket;
use fixture::Script;
use fixture::ScriptedBackend;
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
use crate::rig::ENXIO;
use crate::rig::PAGE;
use crate::rig::REGION;

/// A device without a VMM: its process, the arena of its region, and its backend.
struct Device {
    process: DeviceProcess,
    id: DeviceId,
    arena: Arena,
    channel: RequestSocket,
    _backend: ScriptedBackend,
}

fn start(
    service: &ServiceHandle,
    spawner: &Spawner,
    directory: &std::path::Path,
    name: &str,
    shmid: u8,
) -> Device {
    let backend = ScriptedBackend::listen(directory, name, Script::regions(&[(shmid, REGION)]));
    let stream =
        std::os::unix::net::UnixStream::connect(backend.path()).expect("the backend listens");
    let (id, memory) = service
        .add_device(DeviceConfig::new(name))
        .expect("a device");
    let interrupt = Event::new().expect("an event");
    let mut config = DeviceProcessConfig::new(name, stream.into(), memory, interrupt);
    config.program = Some(BINARY.into());
    let mut process = DeviceProcess::spawn(spawner, config).expect("a device process");
    let info = process.connect().expect("the backend");
    assert_eq!(info.regions.len(), 1);
    let arena = Arena::new(REGION).expect("an arena");
    let region = RegionConfig {
        shmid,
        guest_address: (4 + u64::from(shmid)) << 30,
        len: REGION,
        arena: Some(arena.clone()),
    };
    service.add_region(id, region).expect("a region");
    process.start().expect("the request channel");
    Device {
        process,
        id,
        arena,
        channel: backend.request_socket(),
        _backend: backend,
    }
}

#[test]
fn devices_have_their_own_regions_and_fates() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
        .expect("a service");
    let handle = service.handle();
    let spawner = Spawner::start().expect("a spawner");
    let first = start(&handle, &spawner, dir.path(), "first", 1);
    let mut second = start(&handle, &spawner, dir.path(), "second", 2);
    let (ones, twos) = (fixture::memfd(&[1; 4096]), fixture::memfd(&[2; 4096]));

    assert_eq!(first.channel.map(1, 0, 0, PAGE, 0, &ones), 0);
    assert_eq!(second.channel.map(2, 0, 0, PAGE, 0, &twos), 0);
    assert_eq!(first.channel.map(2, PAGE, 0, PAGE, 0, &ones), ENXIO);
    assert_eq!(second.channel.map(1, PAGE, 0, PAGE, 0, &twos), ENXIO);
    assert_eq!(first.channel.unmap(2, 0, PAGE), ENXIO);
    let byte = |device: &Device| {
        let mut byte = [0];
        device.arena.read_at(0, &mut byte).map(|()| byte[0])
    };
    assert_eq!((byte(&first), byte(&second)), (Ok(1), Ok(2)));

    // The first device's backend stops in the middle of a message; the second is served all the same.
    first.channel.send(&[9, 0, 0, 0, 9], &[]);
    for index in 1..50 {
        assert_eq!(second.channel.map(2, index * PAGE, 0, PAGE, 0, &twos), 0);
    }
    second
        .process
        .reset(&handle, second.id)
        .expect("the second is reset");
    let left: Vec<_> = handle
        .mappings()
        .iter()
        .map(|mapping| (mapping.device.clone(), mapping.offset))
        .collect();
    assert_eq!(left, [("first".to_owned(), 0)]);

    // The first dies; the second is served.
    drop(first);
    assert_eq!(second.channel.map(2, 0, 0, PAGE, 0, &twos), 0);
    let report = second.process.shutdown().expect("an exit report");
    assert_eq!(report.end, jail::End::Exited { code: 0 }, "{report}");
}
