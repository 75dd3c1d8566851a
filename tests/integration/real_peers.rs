//! Backends that other people wrote: those of the crates `vhost` and `vhost-user-backend`.

use std::os::fd::OwnedFd;

use fixture::TestVm;
use fixture::VhostCrateBackend;
use serde_json::json;
use vhost::vhost_user::Backend;
use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::message::VhostUserMMapFlags;

use crate::daemon;
use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::REGION;

fn mapping(shm_offset: u64, len: u64) -> VhostUserMMap {
    VhostUserMMap {
        shmid: 0,
        padding: [0; 7],
        fd_offset: 0,
        shm_offset,
        len,
        flags: VhostUserMMapFlags::WRITABLE.bits(),
    }
}

/// The proxy makes one error of every refusal; what it was is in the VMM's status.
#[track_caller]
fn assert_refused(vm: &TestVm, proxy: &Backend, map: &VhostUserMMap, file: &OwnedFd, errno: &str) {
    let result = proxy.shmem_map(map, file);
    assert!(
        matches!(&result, Err(error) if error.to_string().contains("internal error")),
        "{result:?}"
    );
    assert_eq!(vm.status()["last_refused"]["errno"], errno);
}

#[test]
fn backend_on_the_vhost_crate_maps_and_unmaps_through_its_own_proxy() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backend = VhostCrateBackend::listen(dir.path(), "backend", &[(0, REGION), (5, PAGE)]);
    let mut vm = TestVm::without_guest(BINARY, backend.path()).start();
    vm.serving();
    let proxy = backend.request_proxy();
    let memory = fixture::memfd(&[0x21; 8192]);
    assert_eq!(proxy.shmem_map(&mapping(0, PAGE), &memory).ok(), Some(0));
    assert_eq!(proxy.shmem_map(&mapping(PAGE, 8192), &memory).ok(), Some(0));
    assert_eq!(vm.peek(0, PAGE, 4), [0x21; 4]);
    assert_refused(&vm, &proxy, &mapping(0, PAGE), &memory, "EEXIST");
    assert_refused(&vm, &proxy, &mapping(REGION, PAGE), &memory, "ERANGE");
    assert_eq!(proxy.shmem_unmap(&mapping(PAGE, 8192)).ok(), Some(0));
    assert_eq!(vm.maps(), [(0, 0)]);
    vm.done(&json!({"command": "reset"}));
    backend.wait_reset();
    assert_eq!(vm.maps(), []);
    assert_eq!(proxy.shmem_map(&mapping(0, PAGE), &memory).ok(), Some(0));
    drop(backend);
    vm.process.event("device_ended");
    assert_eq!(vm.maps(), []);
}

#[test]
fn backend_on_the_vhost_user_backend_crate_maps_and_unmaps() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("backend");
    let (mut daemon, proxies, mut listener) = daemon::start(&socket);
    let mut vm = TestVm::without_guest(BINARY, &socket).start();
    daemon.start(&mut listener).expect("a frontend");
    vm.serving();
    let proxy = proxies
        .recv_timeout(fixture::TIMEOUT)
        .expect("a request channel");
    let memory = fixture::memfd(&[0x42; 4096]);
    assert_eq!(proxy.shmem_map(&mapping(0, PAGE), &memory).ok(), Some(0));
    assert_eq!(vm.peek(0, 0, 4), [0x42; 4]);
    assert_eq!(proxy.shmem_unmap(&mapping(0, PAGE)).ok(), Some(0));
    assert_eq!(vm.maps(), []);
    assert_eq!(proxy.shmem_map(&mapping(PAGE, PAGE), &memory).ok(), Some(0));
    vm.done(&json!({"command": "stop"}));
    assert!(vm.process.wait().success());
    // The main channel is closed: the daemon's thread ends with an error that says so.
    let _ = daemon.wait();
}
