//! Peers that stop in the middle of something. Nobody waits for them.

use std::os::fd::AsFd;

use fixture::Message;
use fixture::TestVm;
use rustix::process::Signal;
use serde_json::json;

use crate::rig::BINARY;
use crate::rig::PAGE;
use crate::rig::Rig;
use crate::rig::device_pid;
use crate::rig::files_backend;

/// The VMM answers, and the device process ends when it is told to, whatever its peer has left unfinished.
#[track_caller]
fn assert_kill_is_served(mut rig: Rig) {
    assert_eq!(rig.vm.status()["state"], "serving");
    let device = fixture::pidfd(device_pid(&rig.vm.status()));
    rig.vm.done(&json!({"command": "stop"}));
    fixture::wait_readable(&device, "the end of the device process");
    assert!(rig.vm.process.wait().success());
}

fn map_message(offset: u64) -> Vec<u8> {
    let mut payload = [0; 40];
    payload[16..24].copy_from_slice(&offset.to_ne_bytes());
    payload[24..32].copy_from_slice(&PAGE.to_ne_bytes());
    Message::bytes(9, 9, &payload)
}

#[test]
fn half_a_header_stalls_nobody() {
    let rig = Rig::new();
    rig.channel.send(&map_message(0)[..6], &[]);
    assert_kill_is_served(rig);
}

#[test]
fn header_with_a_descriptor_and_no_body_stalls_nobody() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    rig.channel.send(&map_message(0)[..12], &[memory.as_fd()]);
    assert_kill_is_served(rig);
}

#[test]
fn reset_is_served_in_the_middle_of_a_message() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    rig.channel.send(&map_message(0)[..30], &[memory.as_fd()]);
    rig.vm.done(&json!({"command": "reset"}));
    rig.channel.send(&map_message(0)[30..], &[]);
    // It was sent before the reset or after it, as the device process sees it: in step in either case.
    let value = rig.channel.reply(9);
    assert!(value == 0 || value == -125, "{value}");
    rig.assert_serves(PAGE);
}

#[test]
fn message_that_comes_a_byte_at_a_time_is_served() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[0x77; 4096]);
    let message = map_message(0);
    for (index, byte) in message.iter().enumerate() {
        let descriptors = [memory.as_fd()];
        let with = if index == 0 { &descriptors[..] } else { &[] };
        rig.channel.send(&[*byte], with);
        if index.is_multiple_of(13) {
            // In between, the VMM is there for others.
            assert_eq!(rig.vm.maps(), []);
        }
    }
    assert_eq!(rig.channel.reply(9), 0);
    assert_eq!(rig.vm.peek(0, 0, 2), [0x77; 2]);
    assert_kill_is_served(rig);
}

#[test]
fn peer_that_never_reads_replies_stalls_nobody_and_costs_little() {
    let rig = Rig::new();
    let device = device_pid(&rig.vm.status());
    rustix::io::ioctl_fionbio(&rig.channel, true).expect("a socket");
    // Unmaps of what is not mapped: they go to the service and back. Send until nothing more fits anywhere on the way.
    let mut payload = [0; 40];
    payload[24..32].copy_from_slice(&PAGE.to_ne_bytes());
    let message = Message::bytes(10, 9, &payload);
    let mut sent = 0_u64;
    let mut refused = 0;
    while refused < 3 {
        match rustix::net::send(&rig.channel, &message, rustix::net::SendFlags::NOSIGNAL) {
            Ok(len) => {
                assert_eq!(len, message.len(), "a message goes whole or not at all");
                sent += 1;
                refused = 0;
            }
            Err(rustix::io::Errno::AGAIN) => {
                // A round trip, in which the device process has time to take more.
                rig.vm.done(&json!({"command": "stats"}));
                refused += 1;
            }
            Err(errno) => panic!("send: {errno}"),
        }
        assert!(
            sent < 10_000_000,
            "the device process takes requests without end"
        );
    }
    let status = std::fs::read_to_string(format!("/proc/{device}/status")).expect("a process");
    let resident: u64 = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?
                .strip_suffix("kB")?
                .trim()
                .parse()
                .ok()
        })
        .expect("VmRSS");
    assert!(
        resident < 64 << 10,
        "{resident} KiB resident after {sent} requests"
    );
    assert_kill_is_served(rig);
}

#[test]
fn config_changes_without_end_end_nothing() {
    let mut rig = Rig::new();
    let device = device_pid(&rig.vm.status());
    let changes = Message::bytes(2, 9, &[]).repeat(64);
    for _ in 0..100 {
        rig.channel.send(&changes, &[]);
        for _ in 0..64 {
            assert_eq!(rig.channel.reply(2), 0);
        }
    }
    rig.vm.process.event("config_changed");
    rig.assert_serves(0);
    assert_eq!(device_pid(&rig.vm.status()), device, "the same process");
    // News that comes once is told after a flood, too.
    rustix::net::shutdown(&rig.channel, rustix::net::Shutdown::Both).expect("a socket");
    rig.vm.process.event("channel_closed");
}

#[test]
fn requests_that_were_sent_to_a_stopped_vmm_are_answered_when_it_goes_on() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    rig.vm.process.signal(Signal::STOP);
    for index in 0..16 {
        rig.channel
            .send(&map_message(index * PAGE), &[memory.as_fd()]);
    }
    rig.vm.process.signal(Signal::CONT);
    for _ in 0..16 {
        assert_eq!(rig.channel.reply(9), 0);
    }
    assert_eq!(rig.vm.maps().len(), 16);
}

#[test]
fn device_process_ends_with_a_vmm_that_was_stopped() {
    let mut rig = Rig::new();
    let device = fixture::pidfd(device_pid(&rig.vm.status()));
    let memory = fixture::memfd(&[1; 4096]);
    rig.vm.process.signal(Signal::STOP);
    rig.channel.send(&map_message(0), &[memory.as_fd()]);
    rig.vm.process.signal(Signal::KILL);
    rig.vm.process.wait();
    fixture::wait_readable(&device, "the end of the device process");
    rig.channel.wait_closed();
}

#[test]
fn stopped_backend_stalls_nobody() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let files = dir.path().join("files");
    std::fs::create_dir(&files).expect("a directory");
    std::fs::write(files.join("a"), "still here").expect("a file");
    let socket = dir.path().join("socket");
    let mut backend = files_backend(&socket, &files, &[]);
    let mut vm = TestVm::without_guest(BINARY, &socket).start();
    vm.serving();
    backend.event("ready");
    backend.signal(Signal::STOP);
    assert_eq!(vm.peek(0, 0, 5), b"still");
    assert_eq!(vm.maps(), [(0, 0)]);
    assert_eq!(vm.status()["state"], "serving");
    vm.done(&json!({"command": "stop"}));
    assert!(vm.process.wait().success());
}
