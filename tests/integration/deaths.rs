//! The death of each process at each stage, and what is left over: nothing.

use std::os::fd::AsFd;

use fixture::Leftovers;
use fixture::Message;
use fixture::Script;
use fixture::ScriptedBackend;
use fixture::TestVm;
use rustix::process::Signal;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;
use crate::rig::device_pid;
use crate::rig::files_backend;

const GET_FEATURES: u32 = 1;
const SET_BACKEND_REQ_FD: u32 = 21;
const GET_SHMEM_CONFIG: u32 = 44;

/// A VMM that starts its device again, so that two lives can be compared.
fn restarting(script: Script) -> Rig {
    Rig::with(script, |vm| vm.arg("--restart").arg("on-failure"))
}

/// Kills the device process, waits for the next life, and takes its channel.
#[track_caller]
fn kill_device(rig: &mut Rig, dropped: u64) {
    fixture::signal_pid(device_pid(&rig.vm.status()), Signal::KILL);
    let ended = rig.vm.process.event("device_ended");
    assert_eq!(ended["dropped"], dropped, "{ended}");
    rig.channel.wait_closed();
    rig.vm.serving();
    rig.channel = rig.backend.request_socket();
}

#[test]
fn device_process_that_dies_again_and_again_leaves_nothing_in_the_vmm() {
    let mut rig = restarting(Script::one_region(REGION));
    let vmm = rig.vm.process.pid();
    kill_device(&mut rig, 0);
    let before = Leftovers::at_rest(vmm, || drop(rig.vm.status()));
    let memory = fixture::memfd(&[1; 4096]);
    for _ in 0..5 {
        for index in 0..20 {
            assert_eq!(rig.channel.map(0, index * 2 * PAGE, 0, PAGE, 1, &memory), 0);
        }
        // One more is on its way, half of it.
        let message = Message::bytes(9, 9, &[0; 40]);
        rig.channel.send(&message[..30], &[memory.as_fd()]);
        kill_device(&mut rig, 20);
        assert_eq!(rig.vm.maps(), []);
    }
    Leftovers::settle(vmm, &before, || {
        rig.vm.status();
    });
    rig.assert_serves(0);
}

#[test]
fn death_of_the_device_process_is_told_and_the_vmm_lives() {
    let mut rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    let device = device_pid(&rig.vm.status());
    fixture::signal_pid(device, Signal::KILL);
    let ended = rig.vm.process.event("device_ended");
    assert_eq!(ended["pid"], device);
    assert_eq!(ended["dropped"], 1);
    let how = ended["how"].as_str().expect("words");
    assert!(how.contains("SIGKILL"), "{how}");
    assert_eq!(rig.vm.maps(), []);
    let status = rig.vm.status();
    assert_eq!(status["state"], "ended");
    assert_eq!(status["pids"]["device"], json!(null));
}

#[test]
fn backend_that_hangs_up_drops_its_mappings() {
    let mut rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    rig.backend.hang_up();
    let ended = rig.vm.process.event("device_ended");
    assert_eq!(ended["dropped"], 1, "{ended}");
    rig.channel.wait_closed();
    assert_eq!(rig.vm.maps(), []);
}

#[test]
fn killed_backend_is_noticed_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    std::fs::create_dir(&files).expect("a directory");
    std::fs::write(files.join("a"), "a").expect("a file");
    let socket = dir.path().join("socket");
    let mut backend = files_backend(&socket, &files, &[]);
    let mut vm = TestVm::without_guest(BINARY, &socket)
        .arg("--restart")
        .arg("on-failure")
        .start();
    let mut before = None;
    for _ in 0..3 {
        vm.serving();
        assert_eq!(backend.event("ready")["mapped"], 1);
        assert_eq!(vm.maps(), [(0, 0)]);
        backend.signal(Signal::KILL);
        backend.wait();
        // With the device, or with its request channel, whose end it may have met first.
        vm.process.event("device_ended");
        assert_eq!(vm.maps(), []);
        let vmm = vm.process.pid();
        if let Some(before) = &before {
            Leftovers::settle(vmm, before, || {
                vm.status();
            });
        }
        // The first life has warmed everything up; count from the second on, while the VMM waits for a backend.
        vm.process.event("waiting");
        before = Some(Leftovers::at_rest(vmm, || drop(vm.status())));
        std::fs::remove_file(&socket).expect("the dead socket");
        backend = files_backend(&socket, &files, &[]);
    }
    vm.serving();
}

/// The backend goes when it has been asked `code`, and has not answered.
#[track_caller]
fn backend_goes_at(code: u32) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut script = Script::one_region(REGION);
    script.silent.push(code);
    let backend = ScriptedBackend::listen(dir.path(), "backend", script);
    let mut vm = TestVm::without_guest(BINARY, backend.path()).start();
    backend.expect(code);
    // While the device process waits for the answer, the VMM is there.
    assert_eq!(vm.status()["state"], "starting");
    backend.hang_up();
    let ended = vm.process.event("device_ended");
    assert_eq!(ended["dropped"], 0);
    assert_eq!(vm.status()["state"], "ended");
    assert_eq!(vm.status()["pids"]["device"], json!(null));
}

#[test]
fn backend_that_goes_in_the_negotiation_ends_the_device_and_not_the_vmm() {
    for code in [GET_FEATURES, GET_SHMEM_CONFIG] {
        backend_goes_at(code);
    }
}

#[test]
fn device_process_that_is_killed_in_the_negotiation_is_told() {
    for code in [GET_FEATURES, GET_SHMEM_CONFIG, SET_BACKEND_REQ_FD] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut script = Script::one_region(REGION);
        script.silent.push(code);
        let backend = ScriptedBackend::listen(dir.path(), "backend", script);
        let mut vm = TestVm::without_guest(BINARY, backend.path()).start();
        backend.expect(code);
        fixture::signal_pid(device_pid(&vm.status()), Signal::KILL);
        let how = vm.process.event("device_ended")["how"].clone();
        assert!(
            how.as_str().is_some_and(|how| how.contains("SIGKILL")),
            "{how}"
        );
        assert_eq!(vm.status()["state"], "ended");
    }
}

#[test]
fn stop_is_served_while_the_device_process_waits_for_the_backend() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut script = Script::one_region(REGION);
    script.silent.push(GET_FEATURES);
    let backend = ScriptedBackend::listen(dir.path(), "backend", script);
    let mut vm = TestVm::without_guest(BINARY, backend.path()).start();
    backend.expect(GET_FEATURES);
    let device = fixture::pidfd(device_pid(&vm.status()));
    vm.done(&json!({"command": "stop"}));
    fixture::wait_readable(&device, "the end of the device process");
    vm.process.wait();
}

#[test]
fn killed_vmm_takes_its_device_process_along() {
    let mut rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    let device = fixture::pidfd(device_pid(&rig.vm.status()));
    rig.vm.process.signal(Signal::KILL);
    rig.vm.process.wait();
    fixture::wait_readable(&device, "the end of the device process");
    rig.channel.wait_closed();
}

#[test]
fn request_channel_that_closes_alone_drops_the_mappings_and_the_device_lives() {
    let mut rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
    rustix::net::shutdown(&rig.channel, rustix::net::Shutdown::Both).expect("a socket");
    rig.vm.process.event("channel_closed");
    rig.vm.wait_no_maps();
    let status = rig.vm.status();
    assert_ne!(status["state"], "ended", "{status}");
    device_pid(&status);
}

#[test]
fn maps_and_unmaps_at_new_offsets_leave_no_areas() {
    let rig = Rig::new();
    let vmm = rig.vm.process.pid();
    let memory = fixture::memfd(&[1; 4096]);
    rig.assert_serves(0);
    let before = Leftovers::of(vmm);
    for index in 0..500 {
        let offset = index * 2 * PAGE;
        assert_eq!(rig.channel.map(0, offset, 0, PAGE, 1, &memory), 0);
        assert_eq!(rig.channel.unmap(0, offset, PAGE), 0);
    }
    Leftovers::settle(vmm, &before, || {
        rig.vm.status();
    });
}
