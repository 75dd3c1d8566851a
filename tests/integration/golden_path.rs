//! A backend maps, the VMM shows the bytes, the backend unmaps, everything ends in order.

use std::fs;

use fixture::Script;
use fixture::TestVm;
use serde_json::Value;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::Rig;
use crate::rig::files_backend;

#[test]
fn mapped_memory_is_seen_at_once_and_is_shared() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[0x11; 8192]);
    assert_eq!(rig.channel.map(0, PAGE, 0, 8192, 1, &memory), 0);
    assert_eq!(rig.vm.peek(0, PAGE, 4), [0x11; 4]);
    // Shared, not copied: what the backend writes later is seen, and the other way round.
    rustix::io::pwrite(&memory, b"later", 4096).expect("memory to write to");
    assert_eq!(rig.vm.peek(0, 2 * PAGE, 5), b"later");
    rig.vm
        .done(&json!({"command": "poke", "shmid": 0, "offset": PAGE + 8, "hex": "6869"}));
    let mut seen = [0; 2];
    rustix::io::pread(&memory, &mut seen, 8).expect("memory to read");
    assert_eq!(&seen, b"hi");
}

#[test]
fn maps_lists_each_live_mapping_with_the_documented_keys() {
    let rig = Rig::with(Script::one_region(1 << 20), |vm| {
        vm.arg("--device-type").arg("fs")
    });
    let file = fixture::file(&rig.dir.path().join("file"), &[7; 321]);
    assert_eq!(rig.channel.map(0, 0, 0, 321, 0, &file), 0);
    let memory = fixture::memfd(&[1; 8192]);
    assert_eq!(rig.channel.map(0, 4 * PAGE, PAGE, PAGE, 1, &memory), 0);
    let maps = rig.vm.done(&json!({"command": "maps"}));
    let want = json!([
        {"device": "fs", "shmid": 0, "offset": 0, "len": 321, "footprint": 4096, "prot": "r", "kind": "file"},
        {"device": "fs", "shmid": 0, "offset": 16384, "len": 4096, "footprint": 4096, "prot": "rw", "kind": "memfd"},
    ]);
    assert_eq!(maps, want);
    assert_eq!(rig.channel.unmap(0, 0, 321), 0);
    assert_eq!(rig.vm.maps(), [(0, 4 * PAGE)]);
}

#[test]
fn stop_ends_everything_in_order() {
    let mut rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    let device = fixture::pidfd(crate::rig::device_pid(&rig.vm.status()));
    rig.vm.done(&json!({"command": "stop"}));
    assert_eq!(rig.vm.process.event("stopped")["reason"], "ctl");
    assert!(rig.vm.process.wait().success());
    fixture::wait_readable(&device, "the end of the device process");
    rig.channel.wait_closed();
    assert!(!rig.vm.control_socket().exists());
}

#[test]
fn files_backend_maps_a_directory_and_every_byte_is_right() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("sub")).expect("directories");
    let contents: Vec<(&str, Vec<u8>)> = vec![
        ("a", b"short".to_vec()),
        ("sub/b", (0..=255).cycle().take(10_000).collect()),
        ("sub/c", vec![0xcc; 4096]),
    ];
    for (path, bytes) in &contents {
        fs::write(files.join(path), bytes).expect("a file");
    }
    let socket = dir.path().join("socket");
    let mut backend = files_backend(&socket, &files, &["--once"]);
    let mut vm = TestVm::without_guest(BINARY, &socket).start();
    vm.serving();
    for (path, bytes) in &contents {
        let mapped = backend.event("mapped");
        assert_eq!(mapped["path"], *path);
        let offset = mapped["offset"].as_u64().expect("an offset");
        let len = u64::try_from(bytes.len()).expect("a length");
        assert_eq!(mapped["len"], len);
        assert_eq!(vm.peek(0, offset, len), *bytes, "{path}");
    }
    let ready = backend.event("ready");
    assert_eq!(ready["mapped"], 3);
    assert_eq!(ready["refused"], 0);
    assert_eq!(vm.maps().len(), 3);
    vm.done(&json!({"command": "stop"}));
    assert!(vm.process.wait().success());
    backend.event("disconnected");
    assert!(backend.wait().success());
}

#[test]
fn reset_drops_the_mappings_and_the_backend_maps_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    fs::create_dir(&files).expect("a directory");
    fs::write(files.join("a"), "again").expect("a file");
    let socket = dir.path().join("socket");
    let mut backend = files_backend(&socket, &files, &[]);
    let mut vm = TestVm::without_guest(BINARY, &socket).start();
    vm.serving();
    backend.event("ready");
    let report = vm.done(&json!({"command": "reset"}));
    assert_eq!(report["dropped"], 1);
    backend.event("reset");
    assert_eq!(backend.event("ready")["mapped"], 1);
    assert_eq!(vm.peek(0, 0, 5), b"again");
    assert_eq!(
        vm.process.event("reset")["generation"],
        report["generation"]
    );
}

#[test]
fn config_change_reaches_the_vmm() {
    let mut rig = Rig::new();
    assert_eq!(rig.channel.request(2, &[], &[]), 0);
    let event = rig.vm.process.event("config_changed");
    assert_ne!(event["device"], Value::Null);
}
