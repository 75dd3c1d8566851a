//! The other messages and the device's own state, with the process in its jail.

use std::io::IoSliceMut;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use base::Event;
use base::EventWaitResult;
use base::Protection;
use base::scm;
use base::scm::DescriptorVec;
use devices::control::Activation;
use devices::control::HookRequest;
use devices::control::HookResponse;
use devices::control::IotlbEntry;
use devices::control::MemoryRegion;
use devices::control::ObjectId;
use devices::control::QueueSetup;
use devices::control::VringBase;
use devices::device_process::DeviceProcess;
use devices::device_process::Error;
use devices::shared_objects::SharedObjects;
use devices::snapshot::DeviceSnapshot;
use devices::snapshot::SavedMapping;
use vm_control::RegionConfig;

use crate::bench::Bench;
use crate::bench::PAGE;
use crate::bench::script_with_channel;
use crate::bench::wait_readable;
use crate::requests::map;
use crate::runner::Skip;
use crate::runner::Test;
use crate::testing::NEED_REPLY;
use crate::testing::Script;
use crate::testing::TIMEOUT;
use crate::testing::file;
use crate::testing::read_reply;
use crate::testing::send;

pub(crate) const TESTS: &[Test] = &[
    ("queues_run_sleep_and_wake", queues),
    ("state_is_saved_and_loaded", state),
    ("snapshot_names_the_mappings_that_are_missing", snapshot),
    ("shared_object_goes_from_backend_to_backend", shared_object),
    ("iotlb_miss_and_invalidation", iotlb),
    ("doorbell_is_mapped_where_the_vmm_wants_it", doorbell),
];

fn activation(features: u64, count: u16, calls: &[Event]) -> Activation {
    let queue = |index: u16| QueueSetup {
        index,
        size: 256,
        descriptor_table: 0x1000,
        available_ring: 0x2000,
        used_ring: 0x3000,
        base: 0,
        call: calls
            .get(usize::from(index))
            .map(|call| call.try_clone().expect("clone").into()),
        kick: Event::new().expect("event").into(),
    };
    Activation {
        features,
        memory: vec![MemoryRegion {
            guest_address: 0,
            len: 1 << 20,
            offset: 0,
            descriptor: file(1 << 20),
        }],
        queues: (0..count).map(queue).collect(),
    }
}

fn queues() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(Script {
        queues: 64,
        // INBAND_NOTIFICATIONS.
        protocol_features: script.protocol_features | 1 << 14,
        ..script
    })?;
    let info = bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let calls = [Event::new().expect("event"), Event::new().expect("event")];
    let features = info.virtio_features;
    bench
        .device
        .activate(activation(features, 2, &calls))
        .expect("activate");
    // The backend calls by message; the event is the driver's own.
    send(&channel, 4, NEED_REPLY, &[1, 0, 0, 0, 0, 0, 0, 0], None);
    assert_eq!(read_reply(&channel), (4, 0));
    let signalled = calls[1].wait_timeout(TIMEOUT).expect("wait");
    assert_eq!(signalled, EventWaitResult::Signaled);

    let base = |index| VringBase { index, base: 7 };
    assert_eq!(bench.device.sleep().expect("sleep"), [base(0), base(1)]);
    send(&channel, 4, NEED_REPLY, &[1, 0, 0, 0, 0, 0, 0, 0], None);
    assert_eq!(read_reply(&channel), (4, -i64::from(libc::ENXIO)));
    // Requests about memory are served all the same.
    assert_eq!(map(&channel, 0, 1), 0);
    bench
        .device
        .wake(activation(features, 2, &calls))
        .expect("wake");
    assert_eq!(bench.device.deactivate().expect("deactivate").len(), 2);
    // As many queues as there may be: two descriptors each.
    bench
        .device
        .activate(activation(features, 60, &[]))
        .expect("activate");
    Ok(())
}

fn state() -> Result<(), Skip> {
    let saved: Vec<u8> = (0..100_000_u32).map(|n| n.to_ne_bytes()[0]).collect();
    let (loads, loaded) = mpsc::channel();
    let mut bench = Bench::new(Script {
        state: saved.clone(),
        loads: Some(loads),
        ..Script::default()
    })?;
    bench.device.connect().expect("connect");
    assert!(bench.device.save_state().expect("save") == saved);
    bench.device.load_state(&saved).expect("load");
    assert!(loaded.recv_timeout(TIMEOUT).expect("a state") == saved);
    Ok(())
}

fn snapshot() -> Result<(), Skip> {
    let (loads, loaded) = mpsc::channel();
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(Script {
        state: vec![1, 2, 3],
        loads: Some(loads),
        ..script
    })?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    assert_eq!(map(&channel, PAGE, 1), 0);
    let service = bench.service.handle();
    let bases = bench.device.sleep().expect("sleep");
    let snapshot = DeviceSnapshot::take(
        &mut bench.device,
        &service,
        bench.device_id,
        1 << 32,
        bases,
        true,
    )
    .expect("snapshot");
    assert_eq!(snapshot.mappings.len(), 2);
    assert_eq!(snapshot.backend_state.as_deref(), Some(&[1, 2, 3][..]));

    bench
        .device
        .reset(&service, bench.device_id)
        .expect("reset");
    snapshot.restore_state(&mut bench.device).expect("restore");
    assert_eq!(loaded.recv_timeout(TIMEOUT).expect("a state"), [1, 2, 3]);
    // The backend maps one of them again.
    assert_eq!(map(&channel, PAGE, 1), 0);
    assert_eq!(
        snapshot.missing(&service, bench.device_id),
        [SavedMapping {
            shmid: 0,
            offset: 0,
            len: PAGE,
            writable: true
        }]
    );
    Ok(())
}

fn take_hook(device: &mut DeviceProcess) -> HookRequest {
    wait_readable(&device.hooks().expect("hooks"));
    device.try_hook().expect("hook tube").expect("a request")
}

fn shared_object() -> Result<(), Skip> {
    let start = |object| -> Result<(Bench, UnixStream), Skip> {
        let (script, channels) = script_with_channel();
        let script = Script { object, ..script };
        let mut bench = Bench::configured(script, |config| config.connect.shared_objects = true)?;
        bench.start();
        let channel = channels.recv_timeout(TIMEOUT).expect("channel");
        Ok((bench, channel))
    };
    let (mut owner, owners_channel) = start(Some(file(PAGE)))?;
    let (mut other, others_channel) = start(None)?;
    let mut table = SharedObjects::new();
    let id = ObjectId([9; 16]);

    send(&owners_channel, 6, NEED_REPLY, &id.0, None);
    assert_eq!(take_hook(&mut owner.device), HookRequest::ObjectAdd(id));
    table.add(&"owner", id).expect("a new object");
    owner.device.answer_hook(&HookResponse::Done).expect("sent");
    assert_eq!(read_reply(&owners_channel), (6, 0));

    send(&others_channel, 8, 0, &id.0, None);
    assert_eq!(take_hook(&mut other.device), HookRequest::ObjectLookup(id));
    assert_eq!(table.owner(id), Some(&"owner"));
    let object = owner.device.shared_object(id).expect("asked");
    let object = object.expect("the owner has it");
    let answer = HookResponse::Object(object);
    other.device.answer_hook(&answer).expect("sent");
    let mut reply = [0; 20];
    let mut descriptors = DescriptorVec::<1>::new();
    scm::recv(
        others_channel.as_fd(),
        &mut [IoSliceMut::new(&mut reply)],
        &mut descriptors,
        scm::Wait::Block,
    )
    .expect("a reply");
    assert_eq!(reply[12..], [0; 8]);
    let object = descriptors.pop().expect("the object");
    let info = base::inspect(object.as_fd()).expect("inspect");
    assert_eq!(info.size, Some(PAGE));

    // One that has nothing to share says so, and the process goes on.
    assert!(other.device.shared_object(id).expect("asked").is_none());
    other.device.stats().expect("alive");
    Ok(())
}

fn iotlb() -> Result<(), Skip> {
    let (main_channel, theirs) = UnixStream::pair().expect("main channel");
    let seen_by_backend = theirs.try_clone().expect("clone");
    let (script, channels) = script_with_channel();
    let script = Script {
        features: 1 << 33 | 1 << 32 | 1 << 30,
        ..script
    };
    let mut bench = Bench::with_backend(main_channel, script.serve(theirs), |config| {
        config.connect.iommu = true;
    })?;
    let info = bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let error = bench
        .device
        .invalidate_iotlb(0, PAGE)
        .expect_err("too early");
    assert!(matches!(error, Error::Unsuccessful { .. }), "{error}");
    bench
        .device
        .activate(activation(info.virtio_features, 1, &[]))
        .expect("activate");

    let mut miss = Vec::new();
    for word in [0x5000, PAGE, 0] {
        miss.extend_from_slice(&word.to_ne_bytes());
    }
    miss.extend_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0]);
    send(&channel, 1, NEED_REPLY, &miss, None);
    let request = take_hook(&mut bench.device);
    let access = Protection::read();
    assert_eq!(
        request,
        HookRequest::IotlbMiss {
            iova: 0x5000,
            size: PAGE,
            access
        }
    );
    let entry = IotlbEntry {
        iova: 0x5000,
        size: PAGE,
        guest_address: 0x9000,
        access,
    };
    let answer = HookResponse::Translation(entry);
    bench.device.answer_hook(&answer).expect("sent");
    assert_eq!(read_reply(&channel), (1, 0));
    bench
        .device
        .invalidate_iotlb(0x5000, PAGE)
        .expect("invalidate");
    // A reset takes the driver's features away, and misses with them.
    let service = bench.service.handle();
    bench
        .device
        .reset(&service, bench.device_id)
        .expect("reset");
    send(&channel, 1, NEED_REPLY, &miss, None);
    assert_eq!(read_reply(&channel), (1, -i64::from(libc::ENOTSUP)));
    bench.device.shutdown().expect("report");
    drop(seen_by_backend);
    let seen = bench.backend.join().expect("the backend's list");
    let kinds: Vec<_> = seen
        .iter()
        .filter(|message| message.code == 22)
        .map(|message| (message.payload[25], message.need_reply))
        .collect();
    assert_eq!(kinds, [(2, false), (3, true)]);
    Ok(())
}

fn doorbell() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::configured(script, |config| {
        config.connect.notifier_region = Some(200);
    })?;
    bench.start();
    let doorbells = vm_control::Arena::new(4 * PAGE).expect("arena");
    let region = RegionConfig {
        shmid: 200,
        guest_address: 1 << 33,
        len: 4 * PAGE,
        arena: Some(doorbells.clone()),
        populate: 0,
    };
    bench
        .service
        .handle()
        .add_region(bench.device_id, region)
        .expect("region");
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let page = file(PAGE);
    let mut payload = Vec::new();
    for word in [1, PAGE, 0] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    send(&channel, 3, NEED_REPLY, &payload, Some(page.as_fd()));
    assert_eq!(read_reply(&channel), (3, 0));
    doorbells.write_at(PAGE, &[0xab]).expect("mapped");
    let mut byte = [0];
    let mut page = std::fs::File::from(page);
    page.read_exact(&mut byte).expect("the backend's page");
    assert_eq!(byte, [0xab]);
    // A queue beyond the region.
    payload[0] = 9;
    let page = file(PAGE);
    send(&channel, 3, NEED_REPLY, &payload, Some(page.as_fd()));
    assert_eq!(read_reply(&channel), (3, -i64::from(libc::ERANGE)));
    Ok(())
}
