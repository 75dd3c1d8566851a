//! The worker on a thread of the test, without a jail: a backend by hand at one end, the mapping service at the other.

mod alone;
mod ends;
mod hostile;
mod messages;

use std::io::Read;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use base::EventWaitResult;
use base::Tube;
use vm_control::RequestBatch;
use vm_control::ResponseBatch;
use vm_control::VmMemoryRequest;
use vm_control::VmMemoryResponse;
use vm_control::VmMemorySource;
use vmm_vhost::ChannelConfig;
use vmm_vhost::Negotiated;
use vmm_vhost::Peer;
use vmm_vhost::message::ProtocolFeatures;

use super::*;
use crate::control::ChannelClosed;
use crate::control::DeviceEvent;
use crate::testing::NEED_REPLY;
use crate::testing::TIMEOUT;
use crate::testing::crosvm_map;
use crate::testing::crosvm_unmap;
use crate::testing::file;
use crate::testing::message;
use crate::testing::mmap;
use crate::testing::read_reply;
use crate::testing::send;

const MAP: u32 = 9;
const UNMAP: u32 = 10;
const CROSVM_MAP: u32 = 1000;
const CROSVM_UNMAP: u32 = 1001;
const CONFIG_CHANGE: u32 = 2;

const PAGE: u64 = 4096;

/// The region in which the VMM wants doorbells.
const NOTIFIERS: u8 = 200;

/// A worker, and the ends of everything that it works with.
struct Bench {
    worker: WorkerHandle,
    memory: Tube,
    events: Tube,
    interrupt: Event,
    main_channel: UnixStream,
    hooks: Tube,
    exits: mpsc::Receiver<WorkerExit>,
}

/// Everything that can be negotiated.
fn negotiated() -> Negotiated {
    Negotiated {
        virtio_features: 1 << 33,
        protocol_features: ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::HOST_NOTIFIER
            | ProtocolFeatures::INBAND_NOTIFICATIONS
            | ProtocolFeatures::SHARED_OBJECT
            | ProtocolFeatures::SHMEM,
        legacy_shmem: false,
    }
}

impl Bench {
    fn new() -> Self {
        let (memory, theirs) = Tube::pair().unwrap();
        Self::with_memory(memory, theirs)
    }

    fn with_memory(memory: Tube, workers: Tube) -> Self {
        let (events, their_events) = Tube::pair().unwrap();
        let (hooks, their_hooks) = Tube::pair().unwrap();
        let (main_channel, backend) = UnixStream::pair().unwrap();
        let interrupt = Event::new().unwrap();
        memory.set_recv_timeout(Some(TIMEOUT)).unwrap();
        events.set_recv_timeout(Some(TIMEOUT)).unwrap();
        hooks.set_recv_timeout(Some(TIMEOUT)).unwrap();
        backend.set_read_timeout(Some(TIMEOUT)).unwrap();
        let worker = Worker::new(WorkerConfig {
            memory: workers,
            generation: Generation::default(),
            events: PacketTube::new(their_events),
            interrupt: interrupt.try_clone().unwrap(),
            main_channel: Some(SafeDescriptor::from(main_channel)),
            peer: Peer::Remote,
            hooks: Some(PacketTube::new(their_hooks)),
        })
        .unwrap();
        let (exit, exits) = mpsc::channel();
        let worker = WorkerHandle::start(worker, move |reason| {
            let _ = exit.send(*reason);
        })
        .unwrap();
        Self {
            worker,
            memory,
            events,
            interrupt,
            main_channel: backend,
            hooks,
            exits,
        }
    }

    /// Opens a request channel on which everything is negotiated that the worker serves; returns the backend's end.
    fn channel(&self) -> UnixStream {
        self.channel_with(|_| ())
    }

    /// The same, with what `send` sends there before the worker looks.
    fn channel_with(&self, send: impl FnOnce(&UnixStream)) -> UnixStream {
        let (ours, theirs) = channel_pair().unwrap();
        let theirs = UnixStream::from(OwnedFd::from(theirs));
        theirs.set_read_timeout(Some(TIMEOUT)).unwrap();
        let channel = RequestChannel::new(
            ours,
            ChannelConfig {
                negotiated: negotiated(),
                max_in_flight: MAX_IN_FLIGHT,
                peer: Peer::Remote,
                has_timeout: true,
                strict: false,
            },
        )
        .unwrap();
        send(&theirs);
        self.worker.open(channel, Some(NOTIFIERS)).unwrap();
        theirs
    }

    fn batch(&self) -> RequestBatch {
        self.memory.recv().expect("a batch for the service")
    }

    /// Answers requests with success until `count` are answered, and returns the lengths of the batches.
    fn grant(&self, count: usize) -> Vec<usize> {
        let mut batches = Vec::new();
        while batches.iter().sum::<usize>() < count {
            let batch = self.batch();
            batches.push(batch.requests.len());
            let responses = batch.requests.iter().map(|_| VmMemoryResponse::Ok);
            self.memory
                .send(&ResponseBatch {
                    responses: responses.collect(),
                })
                .unwrap();
        }
        batches
    }

    fn event(&self) -> DeviceEvent {
        self.events.recv().expect("an event")
    }

    fn exit(&self) -> WorkerExit {
        self.exits.recv_timeout(TIMEOUT).expect("the worker's end")
    }

    /// Stops the worker; fails if it does not stop.
    fn kill(self) -> WorkerExit {
        let Self { worker, exits, .. } = self;
        let stopper = std::thread::spawn(move || worker.stop());
        let exit = exits.recv_timeout(TIMEOUT).expect("the worker's end");
        assert_eq!(stopper.join().unwrap(), exit);
        exit
    }
}

fn send_map(backend: &UnixStream, offset: u64, flags: u32) {
    let file = file(PAGE);
    send(
        backend,
        MAP,
        flags,
        &mmap(0, offset, PAGE, 1),
        Some(file.as_fd()),
    );
}

#[test]
fn map_request_reaches_the_service_with_its_descriptor() {
    let bench = Bench::new();
    let backend = bench.channel();
    send_map(&backend, 0x3000, NEED_REPLY);

    let batch = bench.batch();
    assert_eq!(batch.generation, Generation(0));
    let [
        VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor { offset: 0, .. },
            dest,
            len,
            prot,
        },
    ] = batch.requests.as_slice()
    else {
        panic!("{batch:?}");
    };
    assert_eq!((dest.shmid, dest.offset, *len), (0, 0x3000, PAGE));
    assert_eq!(*prot, base::Protection::read_write());

    bench
        .memory
        .send(&ResponseBatch {
            responses: [VmMemoryResponse::Ok].into_iter().collect(),
        })
        .unwrap();
    assert_eq!(read_reply(&backend), (MAP, 0));
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.maps, stats.refused, stats.in_flight), (1, 0, 0));
}

#[test]
fn refusal_of_the_service_reaches_the_backend_and_the_vmm() {
    let bench = Bench::new();
    let backend = bench.channel();
    send(&backend, UNMAP, NEED_REPLY, &mmap(3, 0x1000, PAGE, 0), None);
    assert_eq!(bench.batch().requests.len(), 1);
    bench
        .memory
        .send(&ResponseBatch {
            responses: [VmMemoryResponse::Err(base::Error::new(libc::ENXIO))]
                .into_iter()
                .collect(),
        })
        .unwrap();
    assert_eq!(read_reply(&backend), (UNMAP, -i64::from(libc::ENXIO)));
    let refused = RefusedRequest {
        code: UNMAP,
        errno: base::Error::new(libc::ENXIO),
        shmid: 3,
        offset: 0x1000,
        len: PAGE,
    };
    assert_eq!(
        bench.event(),
        DeviceEvent::RequestRefused {
            refused,
            suppressed: 0
        }
    );
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.unmaps, stats.refused), (0, 1));
    assert_eq!(stats.last_refused, Some(refused));
}

#[test]
fn malformed_request_is_refused_without_the_service_and_counted() {
    let bench = Bench::new();
    let backend = bench.channel();
    // No descriptor, then a length of zero.
    send(&backend, MAP, NEED_REPLY, &mmap(0, 0, PAGE, 1), None);
    send(&backend, UNMAP, NEED_REPLY, &mmap(0, 0, 0, 0), None);
    assert_eq!(read_reply(&backend), (MAP, -i64::from(libc::EINVAL)));
    assert_eq!(read_reply(&backend), (UNMAP, -i64::from(libc::EINVAL)));
    assert_eq!(bench.worker.stats().unwrap().refused, 2);
    // The channel lives on.
    send_map(&backend, 0, NEED_REPLY);
    bench.grant(1);
    assert_eq!(read_reply(&backend), (MAP, 0));
}

#[test]
fn external_map_of_a_remote_backend_is_not_permitted() {
    let bench = Bench::new();
    let backend = bench.channel();
    let mut payload = vec![0; 8];
    for word in [0, PAGE, 0x1000_u64] {
        payload.extend_from_slice(&word.to_ne_bytes());
    }
    send(&backend, 1007, 0, &payload, None);
    assert_eq!(read_reply(&backend), (1007, -i64::from(libc::EPERM)));
}

#[test]
fn both_dialects_are_served_on_one_channel() {
    let bench = Bench::new();
    let backend = bench.channel();
    let file = file(PAGE);
    // The old dialect is always answered.
    send(
        &backend,
        CROSVM_MAP,
        0,
        &crosvm_map(0, 0, PAGE, 1),
        Some(file.as_fd()),
    );
    send_map(&backend, 0x1000, NEED_REPLY);
    send(&backend, CROSVM_UNMAP, 0, &crosvm_unmap(0, 0, PAGE), None);
    send(&backend, UNMAP, NEED_REPLY, &mmap(0, 0x1000, PAGE, 0), None);
    bench.grant(4);
    for code in [CROSVM_MAP, MAP, CROSVM_UNMAP, UNMAP] {
        assert_eq!(read_reply(&backend), (code, 0));
    }
}

#[test]
fn requests_sent_ahead_travel_together_and_are_answered_in_order() {
    const COUNT: u32 = 64;
    let bench = Bench::new();
    let backend = bench.channel_with(|backend| {
        for index in 0..COUNT {
            let offset = u64::from(index) * PAGE;
            send_map(backend, offset, if index % 2 == 0 { NEED_REPLY } else { 0 });
        }
    });
    let batches = bench.grant(64);
    assert!(batches.iter().all(|len| *len <= MAX_BATCH), "{batches:?}");
    assert!(batches.len() < 64, "{batches:?}");
    for _ in 0..COUNT / 2 {
        assert_eq!(read_reply(&backend), (MAP, 0));
    }
    let stats = bench.worker.stats().unwrap();
    assert_eq!((stats.maps, stats.in_flight), (64, 0));
}

#[test]
fn unacked_requests_are_not_answered() {
    let bench = Bench::new();
    let backend = bench.channel();
    send_map(&backend, 0, 0);
    send_map(&backend, 0x1000, NEED_REPLY);
    bench.grant(2);
    assert_eq!(read_reply(&backend), (MAP, 0));
    backend.set_nonblocking(true).unwrap();
    let error = (&backend).read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn stall_in_half_a_header_leaves_the_worker_responsive() {
    let bench = Bench::new();
    let backend = bench.channel();
    let whole = message(UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0));
    (&backend).write_all(&whole[..6]).unwrap();
    assert_eq!(bench.worker.stats().unwrap().requests, 0);
    // The rest, one byte at a time.
    for byte in &whole[6..] {
        (&backend).write_all(&[*byte]).unwrap();
    }
    bench.grant(1);
    assert_eq!(read_reply(&backend), (UNMAP, 0));
    (&backend).write_all(&whole[..20]).unwrap();
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn service_that_does_not_answer_leaves_the_worker_responsive() {
    let bench = Bench::new();
    let backend = bench.channel();
    backend.set_nonblocking(true).unwrap();
    // Until the socket is full: the worker has stopped reading it, and the tube is full as well.
    let unmap = message(UNMAP, NEED_REPLY, &mmap(0, 0, PAGE, 0));
    let mut sent = 0_u64;
    while sent < 1 << 20 && (&backend).write_all(&unmap).is_ok() {
        sent += 1;
        if sent.is_multiple_of(64) {
            // Lets the worker run; it answers although it has work that it can't do.
            bench.worker.stats().unwrap();
        }
    }
    let stats = bench.worker.stats().unwrap();
    assert!(
        stats.in_flight <= u32::try_from(MAX_IN_FLIGHT).unwrap(),
        "{stats:?}"
    );
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn backend_that_reads_no_replies_costs_bounded_memory() {
    let bench = Bench::new();
    let backend = bench.channel();
    backend.set_nonblocking(true).unwrap();
    // Refused by the channel itself, so that no service is in the way.
    let wrong = message(UNMAP, NEED_REPLY, &mmap(0, 0, 0, 0));
    let mut sent = 0_u64;
    while (&backend).write_all(&wrong).is_ok() {
        sent += 1;
        if sent.is_multiple_of(64) {
            bench.worker.stats().unwrap();
        }
    }
    let stats = bench.worker.stats().unwrap();
    assert!(stats.refused < sent, "{stats:?} of {sent}");
    assert_eq!(bench.kill(), WorkerExit::Killed);
}

#[test]
fn config_change_before_activation_is_delivered_at_activation() {
    let bench = Bench::new();
    let backend = bench.channel();
    for _ in 0..2 {
        send(&backend, CONFIG_CHANGE, NEED_REPLY, &[], None);
        assert_eq!(read_reply(&backend), (CONFIG_CHANGE, 0));
    }
    let not_yet = bench.interrupt.wait_timeout(Duration::ZERO);
    assert_eq!(not_yet, Ok(EventWaitResult::TimedOut));

    bench.worker.set_active(true).unwrap();
    let signalled = bench.interrupt.wait_timeout(TIMEOUT);
    assert_eq!(signalled, Ok(EventWaitResult::Signaled));
    assert_eq!(bench.event(), DeviceEvent::ConfigChanged);
    assert_eq!(bench.worker.stats().unwrap().config_changes, 2);
}

#[test]
fn config_change_while_active_is_delivered_at_once() {
    let bench = Bench::new();
    let backend = bench.channel();
    bench.worker.set_active(true).unwrap();
    send(&backend, CONFIG_CHANGE, 0, &[], None);
    let signalled = bench.interrupt.wait_timeout(TIMEOUT);
    assert_eq!(signalled, Ok(EventWaitResult::Signaled));
    assert_eq!(bench.event(), DeviceEvent::ConfigChanged);
}

#[test]
fn events_that_find_no_room_are_merged() {
    let bench = Bench::new();
    let backend = bench.channel();
    bench.worker.set_active(true).unwrap();
    // Nobody reads the events.
    const COUNT: u64 = 2000;
    for _ in 0..COUNT {
        send(&backend, CONFIG_CHANGE, NEED_REPLY, &[], None);
        assert_eq!(read_reply(&backend), (CONFIG_CHANGE, 0));
    }
    assert_eq!(bench.worker.stats().unwrap().config_changes, COUNT);
    drop(backend);
    // The end of the channel is not lost, however many others were.
    let mut events = 0;
    while bench.event() == DeviceEvent::ConfigChanged {
        events += 1;
    }
    assert!(events < COUNT, "{events}");
}
