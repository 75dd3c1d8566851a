//! The blobs backend driven from a real guest, through the jailed device process and the mapping service.

use std::io::Read;
use std::path::Path;
use std::thread::JoinHandle;

use cros_async::Executor;
use cros_async::ExecutorKind;
use devices::backend::blobs;
use devices::backend::blobs::Options;
use devices::backend::blobs::protocol::Request;
use devices::backend::blobs::protocol::Response;
use portcullis::vmm::machine::GuestDriver;

use crate::guest_driver::PAGE;
use crate::guest_driver::Vm;

const REGION_PAGES: u64 = 16;

/// Runs the backend for one frontend on a thread of its own; it ends with its reports.
fn start_backend(socket: &Path, executor: ExecutorKind) -> JoinHandle<Vec<String>> {
    let (mut ready, ready_descriptor) = std::io::pipe().unwrap();
    let mut options = Options::new(socket.to_owned());
    options.region_size = REGION_PAGES * PAGE;
    options.executor = executor;
    options.once = true;
    options.ready_descriptor = Some(ready_descriptor.into());
    let backend = std::thread::spawn(move || {
        let mut reports = Vec::new();
        blobs::run(options, &mut |report| reports.push(report.to_string())).unwrap();
        reports
    });
    ready.read_exact(&mut [0]).unwrap();
    backend
}

fn call(driver: &GuestDriver<'_>, request: Request) -> Response {
    let answer = driver.request(0, &request.to_bytes(), 40).unwrap();
    Response::parse(&answer.try_into().unwrap())
}

fn map(blob: u32, page: u64, pages: u64) -> Request {
    Request::Map {
        blob,
        shm_offset: page * PAGE,
        blob_offset: 0,
        len: pages * PAGE,
        writable: true,
    }
}

fn drive(executor: ExecutorKind) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("blobs");
    let backend = start_backend(&socket, executor);
    let Some(vm) = Vm::start(&socket) else { return };
    let driver = vm.driver();
    driver.start().unwrap();
    let window = driver.shared_memory(0).unwrap().unwrap();
    assert_eq!(window.len, REGION_PAGES * PAGE);
    // The configuration space: the region's size, as the driver reads it.
    assert_eq!(driver.read_register(0x100).unwrap(), 0x10000);

    let blob = call(&driver, Request::Allocate { len: 2 * PAGE }).blob;
    let filled = Request::Fill {
        blob,
        blob_offset: PAGE,
        len: PAGE,
        pattern: u32::from_le_bytes(*b"blob"),
    };
    assert_eq!(call(&driver, filled).status, 0);
    assert_eq!(call(&driver, map(blob, 3, 2)).status, 0);
    assert_eq!(vm.mapped(), [3]);
    assert_eq!(
        (vm.peek(3, 4), vm.peek(4, 4)),
        (vec![0; 4], b"blob".to_vec())
    );

    let other = call(&driver, Request::Allocate { len: PAGE }).blob;
    let refused = call(&driver, map(other, 4, 1));
    assert_eq!(refused.status, libc::EEXIST.unsigned_abs());
    let far = call(&driver, map(other, REGION_PAGES, 1));
    assert_eq!(far.status, libc::ERANGE.unsigned_abs());
    let resized = call(&driver, Request::Resize { blob, len: PAGE });
    assert_eq!((resized.status, resized.mapped), (0, PAGE));
    assert_eq!(call(&driver, map(other, 4, 1)).status, 0);
    assert_eq!((vm.mapped(), vm.peek(4, 4)), (vec![3, 4], vec![0; 4]));
    assert_eq!(call(&driver, Request::Unmap { blob }).status, 0);
    assert_eq!((vm.mapped(), vm.peek(3, 4)), (vec![4], vec![0xff; 4]));

    driver.reset().unwrap();
    assert_eq!(vm.mapped(), [0; 0]);
    driver.start().unwrap();
    assert_eq!(call(&driver, Request::Info { blob: 0 }).blobs, 0);
    let blob = call(&driver, Request::Allocate { len: PAGE }).blob;
    assert_eq!(call(&driver, map(blob, 15, 1)).status, 0);
    assert_eq!(vm.mapped(), [15]);
    drop(driver);
    drop(vm);
    let reports = backend.join().unwrap();
    assert!(
        reports.contains(&"blob 2: map refused: EEXIST".to_owned()),
        "{reports:?}"
    );
    assert!(
        reports.contains(&"the device was reset".to_owned()),
        "{reports:?}"
    );
}

#[test]
fn guest_has_blobs_mapped_by_a_backend_on_epoll() {
    drive(ExecutorKind::Epoll);
}

#[test]
fn guest_has_blobs_mapped_by_a_backend_on_io_uring() {
    match Executor::with_executor_kind(ExecutorKind::Uring) {
        Ok(_) => drive(ExecutorKind::Uring),
        Err(error) => fixture::skip(&error.to_string()),
    }
}
