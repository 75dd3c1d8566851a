//! The real programs under the policies that are on before `main`, as minijail0 puts them on: each does its work, and ends in order.
//!
//! This program is `portcullis` itself where a policy is named in its environment, with a constructor that puts that policy on.

// UNSAFETY: a constructor of the program runs before `main`.
#![expect(unsafe_code, reason = "places a constructor")]

use std::env;
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::process::ExitCode;

use base::Event;
use base::Tube;
use devices::backend::blobs::protocol::Request;
use devices::backend::blobs::protocol::Response;
use devices::control::Activation;
use devices::control::ConnectOptions;
use devices::control::ControlRequest;
use devices::control::ControlResponse;
use devices::control::MemoryRegion;
use devices::control::QueueSetup;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use fixture::DriverMemory;
use fixture::DriverQueue;
use fixture::Process;
use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;
use fixture::run_tests;
use jail::Filters;
use jail::NotingAllocator;
use jail::Spawner;
use jail::Violation;
use rustix::io::FdFlags;
use rustix::process::Signal;
use vm_control::ArenaVm;
use vm_control::DeviceConfig;
use vm_control::MappingService;
use vm_control::RegionConfig;
use vm_control::ServiceConfig;

// As in the real program.
#[global_allocator]
static ALLOCATOR: NotingAllocator = NotingAllocator;

/// The policy that is put on before `main`.
const POLICY: &str = "PORTCULLIS_TEST_POLICY";

const PAGE: u64 = 4096;
const REGION: u64 = 16 << 20;

// SAFETY: the C library calls the functions in this section once, before `main`, without arguments that this one would look at.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    let Ok(policy) = env::var(POLICY) else {
        return;
    };
    let filters = Filters::for_process(&policy, None, Violation::Trap);
    for program in filters.expect("it is in order").programs() {
        seccompiler::apply_filter(program).expect("the kernel takes it");
    }
}

fn main() -> ExitCode {
    let is_device = env::args_os().nth(1).is_some_and(|first| first == "device");
    if is_device || env::var_os(POLICY).is_some() {
        return portcullis::cli::main();
    }
    run_tests(&[
        ("files_backend_serves_and_ends", &files_backend),
        ("blobs_backend_serves_and_ends", &blobs_backend),
        ("device_process_serves_and_ends", &device_process),
    ])
}

fn under(policy: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.env(POLICY, policy);
    command
}

fn files_backend() {
    let dir = tempfile::tempdir().expect("a folder");
    let (socket, files) = (dir.path().join("socket"), dir.path().join("files"));
    fs::create_dir_all(files.join("below")).expect("folders");
    for name in ["a", "b", "below/c"] {
        fs::write(files.join(name), name).expect("a file");
    }
    let mut command = under("backend");
    command
        .args(["backend", "files", "--json", "--socket"])
        .arg(&socket)
        .arg("--dir")
        .arg(&files);
    let mut backend = Process::spawn(command);
    backend.event("listening");
    for _ in 0..2 {
        let mut vm = TestVm::without_guest(env!("CARGO_BIN_EXE_portcullis"), &socket).start();
        vm.serving();
        assert_eq!(backend.event("ready")["mapped"], 3);
        let maps = vm.maps();
        assert_eq!(maps.len(), 3);
        assert_eq!(vm.peek(0, maps[0].1, 1), b"a");
        // The next frontend comes when this one has gone.
        vm.process.signal(Signal::TERM);
        vm.process.wait();
    }
    backend.signal(Signal::TERM);
    let status = backend.wait();
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}

fn blobs_backend() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("socket");
    let mut command = under("backend_blobs");
    command
        .args(["backend", "blobs", "--json", "--once", "--socket"])
        .arg(&socket);
    let mut backend = Process::spawn(command);
    backend.event("listening");
    let vm = Box::new(ArenaVm::new());
    let service = MappingService::start(vm, ServiceConfig::default()).expect("a service");
    let handle = service.handle();
    let (id, memory_tube) = handle
        .add_device(DeviceConfig::new("blobs"))
        .expect("a device");
    let spawner = Spawner::start().expect("a spawner");
    let main_channel = UnixStream::connect(&socket).expect("it listens");
    let interrupt = Event::new().expect("an event");
    let config = DeviceProcessConfig::new("blobs", main_channel.into(), memory_tube, interrupt);
    let mut device = DeviceProcess::spawn(&spawner, config).expect("a device process");
    let region = device.connect().expect("a backend").regions[0];
    handle
        .add_region(id, region_of(region.len))
        .expect("a region");
    device.start().expect("a request channel");
    let mut memory = DriverMemory::new(1 << 20);
    let mut queue = DriverQueue::new(&mut memory, 16);
    let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("a duplicate").into();
    let activation = Activation {
        // VIRTIO_F_VERSION_1.
        features: 1 << 32,
        memory: vec![MemoryRegion {
            guest_address: 0,
            len: memory.len(),
            offset: 0,
            descriptor: clone(memory.file()),
        }],
        queues: vec![QueueSetup {
            index: 0,
            size: queue.size(),
            descriptor_table: queue.descriptor_table(),
            available_ring: queue.available_ring(),
            used_ring: queue.used_ring(),
            base: 0,
            call: Some(clone(queue.call())),
            kick: clone(queue.kick()),
        }],
    };
    device.activate(activation).expect("queues");
    let mut call = |request: Request| {
        let answer = queue.exchange(&mut memory, &request.to_bytes(), 40);
        let response = Response::parse(answer.as_slice().try_into().expect("40 bytes"));
        assert_eq!(response.status, 0, "{request:?}");
        response
    };
    let blob = call(Request::Allocate { len: PAGE }).blob;
    call(Request::Fill {
        blob,
        pattern: 7,
        blob_offset: 0,
        len: PAGE,
    });
    call(Request::Map {
        blob,
        shm_offset: 0,
        blob_offset: 0,
        len: PAGE,
        writable: true,
    });
    assert_eq!(handle.mappings().len(), 1);
    call(Request::Resize {
        blob,
        len: 4 * PAGE,
    });
    call(Request::Unmap { blob });
    call(Request::Free { blob });
    device.reset(&handle, id).expect("a reset");
    device.shutdown().expect("it ends");
    let status = backend.wait();
    assert!(status.success(), "{status}");
}

/// Region 0.
fn region_of(len: u64) -> RegionConfig {
    RegionConfig {
        shmid: 0,
        guest_address: 1 << 32,
        len,
        arena: None,
        populate: 0,
    }
}

fn device_process() {
    let dir = tempfile::tempdir().expect("a folder");
    let backend = ScriptedBackend::listen(dir.path(), "backend", Script::one_region(REGION));
    let main_channel = UnixStream::connect(backend.path()).expect("it listens");
    let vm = Box::new(ArenaVm::new());
    let service = MappingService::start(vm, ServiceConfig::default()).expect("a service");
    let handle = service.handle();
    let (id, memory) = handle
        .add_device(DeviceConfig::new("device"))
        .expect("a device");
    let (control, their_control) = Tube::pair().expect("a tube");
    let (_events, their_events) = Tube::pair().expect("a tube");
    control
        .set_recv_timeout(Some(fixture::TIMEOUT))
        .expect("a tube");
    let interrupt = Event::new().expect("an event");
    let (mut report, their_report) = std::io::pipe().expect("a pipe");
    let mut command = under("device_minijail0");
    command.args(["device", "--sandbox", "none", "--name", "device"]);
    let named: [(&str, BorrowedFd<'_>); 6] = [
        ("--report-fd", their_report.as_fd()),
        ("--backend-fd", main_channel.as_fd()),
        ("--control-fd", their_control.as_fd()),
        ("--memory-fd", memory.as_fd()),
        ("--event-fd", their_events.as_fd()),
        ("--interrupt-fd", interrupt.as_fd()),
    ];
    for (name, descriptor) in named {
        // Nothing else is started meanwhile.
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty()).expect("a flag");
        command.args([name, &descriptor.as_raw_fd().to_string()]);
    }
    let mut device = Process::spawn(command);
    drop((
        main_channel,
        their_control,
        memory,
        their_events,
        their_report,
    ));
    let ask = |request| -> ControlResponse {
        control.send(&request).expect("it reads");
        control.recv().expect("it answers")
    };
    let done = |request| {
        let answer = ask(request);
        assert!(matches!(answer, ControlResponse::Done), "{answer:?}");
    };
    let info = ask(ControlRequest::Connect(ConnectOptions::default()));
    let ControlResponse::Connected(info) = info else {
        panic!("{info:?}");
    };
    assert_eq!(info.regions.len(), 1);
    handle.add_region(id, region_of(REGION)).expect("a region");
    done(ControlRequest::Start);
    let channel = backend.request_socket();
    let page = fixture::memfd(&[1; 4096]);
    assert_eq!(channel.map(0, 0, 0, PAGE, 0, &page), 0);
    assert_eq!(handle.mappings().len(), 1);
    assert_eq!(channel.unmap(0, 0, PAGE), 0);
    done(ControlRequest::Shutdown);
    let status = device.wait();
    assert!(status.success(), "{status}");
    // Its number, and that it is ready.
    let mut words = Vec::new();
    report.read_to_end(&mut words).expect("a pipe");
    assert!(!words.is_empty());
}
