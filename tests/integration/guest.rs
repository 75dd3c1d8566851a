//! With a KVM guest: what a backend maps is what the guest's processor reads.

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;

use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::REGION;

/// Whether there is a usable KVM; says so if not.
pub(crate) fn has_kvm() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            fixture::skip(&format!("/dev/kvm: {error}"));
            false
        }
    }
}

struct Guest {
    vm: TestVm,
    channel: fixture::RequestSocket,
    _backend: ScriptedBackend,
    _dir: tempfile::TempDir,
}

fn guest() -> Guest {
    guest_with_holes("all-ones")
}

fn guest_with_holes(policy: &str) -> Guest {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let backend = ScriptedBackend::listen(dir.path(), "backend", Script::one_region(REGION));
    let mut vm = TestVm::with_guest(BINARY, backend.path(), "kvm")
        .arg("--holes")
        .arg(policy)
        .start();
    vm.serving();
    let channel = backend.request_socket();
    Guest {
        vm,
        channel,
        _backend: backend,
        _dir: dir,
    }
}

#[test]
fn guest_sees_each_page_that_takes_anothers_place() {
    if !has_kvm() {
        return;
    }
    let guest = guest();
    for round in 1..=20_u8 {
        let memory = fixture::memfd(&[round; 4096]);
        assert_eq!(guest.channel.map(0, PAGE, 0, PAGE, 1, &memory), 0);
        let peek = guest
            .vm
            .done(&json!({"command": "peek", "shmid": 0, "offset": PAGE, "len": 2}));
        assert_eq!(peek["seen_by"], "guest");
        assert_eq!(peek["hex"], format!("{round:02x}{round:02x}"));
        assert_eq!(guest.channel.unmap(0, PAGE, PAGE), 0);
    }
}

#[test]
fn guest_writes_reach_the_backend() {
    if !has_kvm() {
        return;
    }
    let guest = guest();
    let memory = fixture::memfd(&[0; 4096]);
    assert_eq!(guest.channel.map(0, 0, 0, PAGE, 1, &memory), 0);
    let poke = guest
        .vm
        .done(&json!({"command": "poke", "shmid": 0, "offset": 100, "hex": "cafe"}));
    assert_eq!(poke["seen_by"], "guest");
    let mut seen = [0; 2];
    rustix::io::pread(&memory, &mut seen, 100).expect("memory to read");
    assert_eq!(seen, [0xca, 0xfe]);
}

#[test]
fn guest_access_to_a_hole_or_a_truncated_file_ends_nothing() {
    if !has_kvm() {
        return;
    }
    let guest = guest();
    let hole = json!({"command": "peek", "shmid": 0, "offset": 8 * PAGE, "len": 8});
    guest.vm.ask(&hole);
    let memory = fixture::memfd(&[1; 8192]);
    assert_eq!(guest.channel.map(0, 0, 0, 8192, 1, &memory), 0);
    rustix::fs::ftruncate(&memory, 0).expect("a memfd");
    guest
        .vm
        .ask(&json!({"command": "peek", "shmid": 0, "offset": 0, "len": 8}));
    assert_eq!(guest.channel.unmap(0, 0, 8192), 0);
    let again = fixture::memfd(&[9; 4096]);
    assert_eq!(guest.channel.map(0, 0, 0, PAGE, 1, &again), 0);
    assert_eq!(guest.vm.peek(0, 0, 2), [9, 9]);
}

#[test]
fn guest_write_to_a_read_only_mapping_ends_nothing() {
    if !has_kvm() {
        return;
    }
    let guest = guest();
    let memory = fixture::memfd(&[5; 4096]);
    assert_eq!(guest.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    guest
        .vm
        .ask(&json!({"command": "poke", "shmid": 0, "offset": 0, "hex": "ff"}));
    assert_eq!(guest.vm.peek(0, 0, 1), [5]);
    let mut seen = [0; 1];
    rustix::io::pread(&memory, &mut seen, 0).expect("memory to read");
    assert_eq!(seen, [5]);
}

#[test]
fn hole_with_scratch_memory_keeps_what_the_guest_writes() {
    if !has_kvm() {
        return;
    }
    let guest = guest_with_holes("scratch=4096");
    guest
        .vm
        .done(&json!({"command": "poke", "shmid": 0, "offset": PAGE, "hex": "cafe"}));
    assert_eq!(guest.vm.peek(0, PAGE, 3), [0xca, 0xfe, 0]);
    // There is no second page of it.
    let refused = guest
        .vm
        .ask(&json!({"command": "poke", "shmid": 0, "offset": 2 * PAGE, "hex": "cafe"}));
    assert!(refused["ok"].is_null(), "{refused}");
}

#[test]
fn hole_that_stops_the_guest_ends_the_vmm_with_the_place() {
    if !has_kvm() {
        return;
    }
    let mut guest = guest_with_holes("stop");
    let hole = json!({"command": "peek", "shmid": 0, "offset": 8 * PAGE, "len": 8});
    // It may end before it answers.
    let mut client = UnixStream::connect(guest.vm.control_socket()).expect("the control socket");
    writeln!(client, "{hole}").expect("the VMM reads");
    assert_eq!(guest.vm.process.wait().code(), Some(1));
    let log = guest.vm.process.whole_log().join("\n");
    assert!(log.contains("the guest has stopped"), "{log}");
    assert!(log.contains("offset 0x8000"), "{log}");
}
