//! A device process that has been taken over: it is in the real jail, has the real tubes, and takes orders that nobody should
//! give. Whatever it tries, the VMM's service and the other device go on, and nothing of it is left.
//!
//! The same program plays the device process, which starts with a single thread; hence the `main` of its own. The attempts
//! against the jail itself are in the crate `jail`.

#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use arrayvec::ArrayVec;
use base::AsRawDescriptor;
use base::DescriptorFault;
use base::Event;
use base::Protection;
use base::SafeDescriptor;
use base::SharedMemory;
use base::Tube;
use base::TubeError;
use base::packet::PacketTube;
use base::scm;
use base::scm::DescriptorVec;
use base::scm::Wait;
use devices::device_process::DeviceArgs;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use devices::device_process::Error;
use fixture::lingering_socket;
use fixture::run_tests;
use jail::End;
use jail::Spawner;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::DeviceId;
use vm_control::Generation;
use vm_control::MAX_BATCH;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::RequestBatch;
use vm_control::ResponseBatch;
use vm_control::ServiceConfig;
use vm_control::VmMemoryDestination;
use vm_control::VmMemoryRequest;
use vm_control::VmMemoryResponse;
use vm_control::VmMemorySource;
use vm_control::api::VmMemoryClient;

const PAGE: u64 = 4096;
const REGION: u64 = 64 * PAGE;
/// After this a test has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the hostile process says with its exit code: the attempt failed, as it should.
const HELD: i32 = 40;
/// The attempt got through.
const BROKEN: i32 = 41;

/// An order, and whether the process ends by itself after it.
const ORDERS: [(&str, Order); 7] = [
    ("another_devices_region", name_every_region),
    ("external_pointer", name_a_pointer),
    ("older_generation", claim_another_generation),
    ("flood_without_reading", flood_without_reading),
    ("nonsense", send_nonsense),
    ("descriptors_by_the_thousand", send_descriptors),
    ("memory_without_end", take_memory),
];

/// What it may use: the memory tube, and descriptors that were made before the filter was on.
type Order = fn(&mut PacketTube, Vec<SafeDescriptor>) -> i32;

/// A process that stays, and what the VMM does with it.
type Stall = fn(Setup);

const STALLS: [(&str, Stall); 4] = [
    ("stalled_control_tube", stalled_control_tube),
    ("descriptor_with_an_answer", descriptor_with_an_answer),
    ("descriptor_with_an_event", descriptor_with_an_event),
    (
        "descriptors_left_in_the_tubes",
        descriptors_left_in_the_tubes,
    ),
];

/// What the process has.
struct Held {
    memory: PacketTube,
    control: Tube,
    events: Tube,
    main_channel: OwnedFd,
}

impl Held {
    /// Sends two sockets that its backend has made, which linger when they are closed: one with an answer to the VMM's first call,
    /// one with an event. Then it keeps none, and says so to the service.
    fn send_sockets(&mut self) {
        let mut byte = [0];
        let bufs = &mut [IoSliceMut::new(&mut byte)];
        let mut sockets = DescriptorVec::<2>::new();
        scm::recv(self.main_channel.as_fd(), bufs, &mut sockets, Wait::Block).expect("received");
        for (tube, socket) in [&self.control, &self.events].into_iter().zip(&sockets) {
            let bufs = [IoSlice::new(&[0])];
            scm::send(tube.as_fd(), &bufs, &[socket.as_fd()], Wait::Never).expect("sent");
        }
        drop(sockets);
        ask(&mut self.memory, &batch(0, VmMemoryRequest::UnregisterAll));
    }
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "device") {
        return obey(arguments.into_iter().skip(1));
    }
    let attempts = ORDERS.map(|(name, _)| (name, move || attempt(name)));
    let stalls = STALLS.map(|(name, stall)| (name, move || stall(Setup::new(name))));
    let mut tests: Vec<(&str, &dyn Fn())> = Vec::new();
    for (name, test) in &attempts {
        tests.push((name, test));
    }
    for (name, test) in &stalls {
        tests.push((name, test));
    }
    run_tests(&tests)
}

/// The hostile process: into the jail as a device process goes, and then what its name orders.
fn obey(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = DeviceArgs::parse(arguments).expect("arguments of a device process");
    let filters = jail::Filters::for_process("device", None, arguments.sandbox.violation)
        .expect("the device's own policy");
    let take = |number| jail::take_inherited(number).expect("an inherited descriptor");
    let report = arguments.report_fd.map(take);
    let memory = take(arguments.memory_fd);
    let keep = [
        arguments.backend_fd,
        arguments.control_fd,
        arguments.memory_fd,
        arguments.event_fd,
        arguments.interrupt_fd,
    ];
    let jail = jail::enter(jail::Sandbox {
        name: arguments.name.clone(),
        level: arguments.sandbox.level,
        report,
        listener: None,
        keep: keep.to_vec(),
        limits: jail::Limits::default(),
    })
    .expect("a jail");
    let tube = |number: OwnedFd| {
        Tube::from_descriptor(SafeDescriptor::from(number)).expect("an inherited tube")
    };
    let mut held = Held {
        memory: PacketTube::new(tube(memory)),
        control: tube(take(arguments.control_fd)),
        events: tube(take(arguments.event_fd)),
        main_channel: take(arguments.backend_fd),
    };
    let order = ORDERS.into_iter().find(|(name, _)| *name == arguments.name);
    let duplicate = |_| held.main_channel.try_clone().expect("a duplicate").into();
    let descriptors: Vec<SafeDescriptor> = (0..MAX_BATCH).map(duplicate).collect();
    jail.lock_down(&filters).expect("filters");
    let code = match order {
        Some((_, order)) => order(&mut held.memory, descriptors),
        None => {
            if arguments.name.starts_with("descriptor") {
                held.send_sockets();
            }
            // It stalls: no order, no answer, for as long as the VMM lets it.
            loop {
                let _ = held.memory.recv::<ResponseBatch>();
            }
        }
    };
    std::process::exit(code);
}

fn batch(generation: u32, request: VmMemoryRequest) -> RequestBatch {
    let mut requests = ArrayVec::new();
    requests.push(request);
    RequestBatch {
        generation: Generation(generation),
        requests,
    }
}

/// Asks one thing and returns the errno of the answer, 0 for success.
fn ask(tube: &mut PacketTube, batch: &RequestBatch) -> i32 {
    tube.send(batch).expect("sent");
    let answers: ResponseBatch = tube.recv().expect("answered");
    match answers.responses[..] {
        [VmMemoryResponse::Ok] => 0,
        [VmMemoryResponse::Err(error)] => error.errno(),
        _ => -1,
    }
}

fn held(all: bool) -> i32 {
    if all { HELD } else { BROKEN }
}

fn name_every_region(tube: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    // Its own region is 0; the other device's is 1.
    let all = (1..=255).all(|shmid| {
        let dest = VmMemoryDestination { shmid, offset: 0 };
        let unmap = VmMemoryRequest::UnregisterMemory { dest, len: PAGE };
        ask(tube, &batch(0, unmap)) == libc::ENXIO
    });
    held(all)
}

fn name_a_pointer(tube: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    let map = VmMemoryRequest::RegisterMemory {
        source: VmMemorySource::ExternalMapping { ptr: 0x1000 },
        dest: VmMemoryDestination {
            shmid: 0,
            offset: 0,
        },
        len: PAGE,
        prot: Protection::read_write(),
    };
    held(ask(tube, &batch(0, map)) == libc::EPERM)
}

fn claim_another_generation(tube: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    let all = [1, 7, u32::MAX].into_iter().all(|generation| {
        ask(tube, &batch(generation, VmMemoryRequest::UnregisterAll)) == libc::ECANCELED
    });
    held(all)
}

/// Sends until the service has had enough, and never reads an answer.
fn flood_without_reading(tube: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    let request = batch(0, VmMemoryRequest::UnregisterAll);
    loop {
        match tube.send(&request) {
            Ok(()) => {}
            Err(TubeError::Disconnected) => return HELD,
            Err(_) => return BROKEN,
        }
    }
}

fn send_nonsense(tube: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    if tube.send(&[0xffu8; 32]).is_err() {
        return BROKEN;
    }
    held(matches!(
        tube.recv::<ResponseBatch>(),
        Err(TubeError::Disconnected)
    ))
}

/// Thousands of descriptors that cannot be mapped: each is refused, and the VMM goes on.
fn send_descriptors(tube: &mut PacketTube, descriptors: Vec<SafeDescriptor>) -> i32 {
    let requests = descriptors
        .into_iter()
        .map(|descriptor| VmMemoryRequest::RegisterMemory {
            source: VmMemorySource::Descriptor {
                descriptor,
                offset: 0,
            },
            dest: VmMemoryDestination {
                shmid: 0,
                offset: 0,
            },
            len: PAGE,
            prot: Protection::read(),
        })
        .collect();
    let many = RequestBatch {
        generation: Generation(0),
        requests,
    };
    let refused = |answer: &VmMemoryResponse| match answer {
        VmMemoryResponse::Err(error) => error.errno() == libc::EBADF,
        VmMemoryResponse::Ok => false,
    };
    let all = (0..200).all(|_| {
        tube.send(&many).is_ok()
            && tube
                .recv::<ResponseBatch>()
                .is_ok_and(|answers| answers.responses.iter().all(refused))
    });
    held(all)
}

/// Takes memory until there is no more: its own limit comes first.
fn take_memory(_: &mut PacketTube, _: Vec<SafeDescriptor>) -> i32 {
    let mut taken = Vec::new();
    for _ in 0..64 {
        let mut block: Vec<u8> = Vec::new();
        if block.try_reserve_exact(64 << 20).is_err() {
            return HELD;
        }
        taken.push(block);
    }
    BROKEN
}

/// A VMM's service with a hostile device and one that has done no harm.
struct Setup {
    service: MappingService,
    hostile: DeviceId,
    process: DeviceProcess,
    other: VmMemoryClient,
    /// The hostile process's main channel leads here.
    backend: UnixStream,
    _spawner: Spawner,
}

impl Setup {
    fn new(order: &str) -> Self {
        let service = MappingService::start(Box::new(ArenaVm::new()), ServiceConfig::default())
            .expect("a service");
        let handle = service.handle();
        let add = |name: &str, shmid: u8| {
            let (id, tube) = handle
                .add_device(DeviceConfig::new(name))
                .expect("a device");
            let region = RegionConfig {
                shmid,
                guest_address: (u64::from(shmid) + 1) << 32,
                len: REGION,
                arena: None,
                populate: 0,
            };
            handle.add_region(id, region).expect("a region");
            (id, tube)
        };
        let (hostile, memory) = add(order, 0);
        let (_, other) = add("other", 1);
        let spawner = Spawner::start().expect("a spawner");
        let (backend, main_channel) = UnixStream::pair().expect("a main channel");
        let main_channel = OwnedFd::from(main_channel);
        let interrupt = Event::new().expect("an event");
        let config = DeviceProcessConfig {
            program: Some(std::env::current_exe().expect("this program")),
            deadline: Duration::from_millis(500),
            ..DeviceProcessConfig::new(order, main_channel, memory, interrupt)
        };
        Setup {
            process: DeviceProcess::spawn(&spawner, config).expect("a jailed process"),
            other: VmMemoryClient::new(other, Generation(0)),
            service,
            hostile,
            backend,
            _spawner: spawner,
        }
    }

    /// The other device maps and unmaps as ever.
    fn other_is_served(&mut self) {
        let memory = SharedMemory::new("other", PAGE).expect("a memfd");
        let descriptor = SafeDescriptor::try_from(&memory as &dyn AsRawDescriptor);
        let source = VmMemorySource::Descriptor {
            descriptor: descriptor.expect("a duplicate"),
            offset: 0,
        };
        let dest = VmMemoryDestination {
            shmid: 1,
            offset: 0,
        };
        self.other
            .register_memory(source, dest, PAGE, Protection::read_write())
            .expect("mapped");
        let devices: Vec<String> = self
            .service
            .handle()
            .mappings()
            .into_iter()
            .map(|mapping| mapping.device)
            .collect();
        assert_eq!(devices, ["other"]);
        self.other.unregister_memory(dest, PAGE).expect("unmapped");
    }

    /// Lets the process send sockets that do not close while their other ends live; returns those.
    fn with_sockets(self) -> (Self, [TcpStream; 2]) {
        let ((one, its_peer), (other, others_peer)) = (lingering_socket(), lingering_socket());
        let sockets = [one.as_fd(), other.as_fd()];
        let bufs = [IoSlice::new(&[0])];
        scm::send(self.backend.as_fd(), &bufs, &sockets, Wait::Never).expect("sent");
        drop((one, other));
        let batches = || {
            let all = self.service.handle().stats();
            let mut hostile = all.iter().filter(|device| device.device_id == self.hostile);
            hostile.next().expect("it is there").counters.batches
        };
        let begin = Instant::now();
        while batches() == 0 {
            assert!(begin.elapsed() < PATIENCE, "it does not send them");
            thread::yield_now();
        }
        (self, [its_peer, others_peer])
    }

    /// Waits for the hostile process's end.
    fn wait(&mut self) {
        let pidfd = self.process.pidfd();
        let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
        let timeout = Timespec::try_from(PATIENCE).expect("it is short");
        let ready = poll(&mut ended, Some(&timeout)).expect("a poll");
        assert_eq!(ready, 1, "the hostile process goes on and on");
    }
}

fn attempt(order: &str) {
    let mut setup = Setup::new(order);
    setup.other_is_served();
    setup.wait();
    let report = setup.process.exit_report().expect("it has ended");
    assert_eq!(report.end, End::Exited { code: HELD }, "{report}");
    setup.other_is_served();
    // It may have been dropped already; afterwards nothing of it is there.
    let _ = setup.service.handle().remove_device(setup.hostile);
    let left = setup.service.handle().stats();
    assert_eq!(left.len(), 1);
}

/// It answers nothing on its control tube: a call has a deadline, and then it is killed.
fn stalled_control_tube(mut setup: Setup) {
    let error = setup.process.connect().expect_err("no answer");
    assert!(error.is_fatal(), "{error}");
    setup.wait();
    setup.other_is_served();
}

/// An answer comes with a descriptor that does not close.
fn descriptor_with_an_answer(setup: Setup) {
    let (mut setup, _backend) = setup.with_sockets();
    let (error, mut setup) = in_time(move || (setup.process.connect(), setup));
    let error = error.expect_err("no answer has a descriptor");
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
    setup.wait();
    setup.other_is_served();
}

/// An event comes with a descriptor that does not close.
fn descriptor_with_an_event(setup: Setup) {
    let (mut setup, _backend) = setup.with_sockets();
    let (error, mut setup) = in_time(move || (setup.process.try_event(), setup));
    let error = error.expect_err("no event has a descriptor");
    let unused = TubeError::Descriptors(DescriptorFault::Unused { count: 1 });
    assert!(
        matches!(&error, Error::Events { source, .. } if *source == unused),
        "{error}"
    );
    setup.wait();
    setup.other_is_served();
}

/// The VMM drops a process that has sent descriptors which do not close, and which nobody has received.
fn descriptors_left_in_the_tubes(setup: Setup) {
    let (setup, _backend) = setup.with_sockets();
    in_time(move || drop(setup));
}

/// Does what must not wait for anybody on another thread.
fn in_time<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(action()));
    let done = receiver.recv_timeout(PATIENCE);
    done.expect("it waits for the hostile process")
}
