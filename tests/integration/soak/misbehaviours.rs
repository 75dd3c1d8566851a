//! What a peer does wrong, by name: what the channel survives, and what ends the device.

use std::os::fd::AsFd;

use fixture::Message;
use rustix::process::Signal;
use serde_json::json;

use super::hostile::HostileDevice;
use crate::rig::EACCES;
use crate::rig::EBADF;
use crate::rig::EINVAL;
use crate::rig::ENOENT;
use crate::rig::ENOTSUP;
use crate::rig::ENXIO;
use crate::rig::EOVERFLOW;
use crate::rig::EPERM;
use crate::rig::ERANGE;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::device_pid;

const ENOSYS: i64 = -38;

/// A place that no other operation maps.
const APART: u64 = REGION / 2;

type Misbehaviour = (&'static str, fn(&mut HostileDevice));

/// Each is answered as it must be, and the device lives on.
pub(super) const MISBEHAVIOURS: &[Misbehaviour] = &[
    ("map without a descriptor", |device| {
        let value = device.rig.channel.request(9, &map_payload(APART), &[]);
        assert_eq!(value, EINVAL);
    }),
    ("map with 32 descriptors", |device| {
        let fds = [device.memory().as_fd(); 32];
        let value = device.rig.channel.request(9, &map_payload(APART), &fds);
        assert_eq!(value, EINVAL);
    }),
    ("unmap with a descriptor", |device| {
        let fds = [device.memory().as_fd()];
        let value = device.rig.channel.request(10, &map_payload(APART), &fds);
        assert_eq!(value, EINVAL);
    }),
    ("payload too short", |device| {
        let fds = [device.memory().as_fd()];
        assert_eq!(device.rig.channel.request(9, &[0; 39], &fds), EINVAL);
    }),
    ("payload too long", |device| {
        assert_eq!(device.rig.channel.request(2, &[0; 256], &[]), EINVAL);
    }),
    ("unknown code", |device| {
        assert_eq!(device.rig.channel.request(4711, &[0; 16], &[]), ENOSYS);
    }),
    ("code of an abandoned draft", |device| {
        assert_eq!(device.rig.channel.request(1003, &[0; 256], &[]), ENOSYS);
    }),
    ("code that was not negotiated", |device| {
        assert_eq!(device.rig.channel.request(6, &[0; 16], &[]), ENOTSUP);
    }),
    ("pointer of another process", |device| {
        let mut payload = vec![0; 8];
        for word in [APART, PAGE, 0x7000_0000_0000] {
            payload.extend(word.to_ne_bytes());
        }
        assert_eq!(device.rig.channel.request(1007, &payload, &[]), EPERM);
    }),
    ("misaligned offset", |device| {
        refuses(device, APART + 1, 0, PAGE, 0, EINVAL);
    }),
    ("length of zero", |device| {
        refuses(device, APART, 0, 0, 0, EINVAL);
    }),
    ("reserved map flags", |device| {
        refuses(device, APART, 0, PAGE, 6, EINVAL);
    }),
    ("range over the region's end", |device| {
        refuses(device, REGION - PAGE, 0, 2 * PAGE, 0, ERANGE);
    }),
    ("range over the file's end", |device| {
        refuses(device, APART, 1 << 40, PAGE, 0, EOVERFLOW);
    }),
    ("region that is not there", |device| {
        let channel = &device.rig.channel;
        assert_eq!(channel.map(9, 0, 0, PAGE, 0, device.memory()), ENXIO);
    }),
    ("unmap of a hole", |device| {
        assert_eq!(device.rig.channel.unmap(0, APART, PAGE), ENOENT);
    }),
    ("pipe in place of memory", |device| {
        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let value = device.rig.channel.map(0, APART, 0, PAGE, 0, &reader);
        assert_eq!(value, EBADF);
    }),
    ("file opened for reading, mapped for writing", |device| {
        let file = fixture::file(&device.rig.dir.path().join("file"), &[0; 4096]);
        let value = device.rig.channel.map(0, APART, 0, PAGE, 1, &file);
        assert_eq!(value, EACCES);
    }),
    ("memory truncated while it is mapped", truncate),
    ("message a byte at a time", dribble),
    ("replies left unread", leave_unread),
    ("flood of refused requests", flood),
    ("reset in the middle of a message", |device| {
        let message = Message::bytes(9, 9, &map_payload(APART));
        let fds = [device.memory().as_fd()];
        device.rig.channel.send(&message[..30], &fds);
        device.rig.vm.done(&json!({"command": "reset"}));
        device.forget_mappings();
        device.rig.channel.send(&message[30..], &[]);
        // Sent before the reset or after it, as the device process sees it.
        match device.rig.channel.reply(9) {
            0 => assert_eq!(device.rig.channel.unmap(0, APART, PAGE), 0),
            value => assert_eq!(value, -125, "ECANCELED"),
        }
    }),
    ("VMM stopped for a while", |device| {
        device.rig.vm.process.signal(Signal::STOP);
        send_maps(device, 8);
        device.rig.vm.process.signal(Signal::CONT);
        undo_maps(device, 8);
    }),
    ("device process stopped for a while", |device| {
        let pid = device_pid(&device.rig.vm.status());
        fixture::signal_pid(pid, Signal::STOP);
        send_maps(device, 8);
        // Some may have been carried out before it stopped; the VMM answers without it.
        device.rig.vm.maps();
        fixture::signal_pid(pid, Signal::CONT);
        undo_maps(device, 8);
    }),
];

/// Each ends the device, and the VMM begins its next life.
pub(super) const ENDINGS: &[Misbehaviour] = &[
    ("device process killed", kill),
    ("device process killed under load", |device| {
        send_maps(device, 50);
        kill(device);
    }),
    (
        "device process killed in the middle of a message",
        |device| {
            let message = Message::bytes(9, 9, &map_payload(APART));
            let fds = [device.memory().as_fd()];
            device.rig.channel.send(&message[..30], &fds);
            kill(device);
        },
    ),
    ("main channel closed", |device| device.rig.backend.hang_up()),
    ("main channel closed under load", |device| {
        send_maps(device, 50);
        device.rig.backend.hang_up();
    }),
    ("main channel closed within a header", |device| {
        device.rig.channel.send(&[9, 0, 0], &[]);
        device.rig.backend.hang_up();
    }),
    ("request channel closed alone", |device| {
        rustix::net::shutdown(&device.rig.channel, rustix::net::Shutdown::Both).expect("a socket");
        channel_is_lost(device);
    }),
    ("version 2 in a header", |device| {
        device.rig.channel.send_message(2, 2, &[], &[]);
        channel_is_lost(device);
    }),
    ("reserved bits in a header", |device| {
        device.rig.channel.send_message(2, 0x11, &[], &[]);
        channel_is_lost(device);
    }),
    ("reply in place of a request", |device| {
        device.rig.channel.send_message(2, 5, &[0; 8], &[]);
        channel_is_lost(device);
    }),
    ("size that is larger than anything", |device| {
        let header = [9, 1, u32::MAX].map(u32::to_ne_bytes);
        device.rig.channel.send(header.as_flattened(), &[]);
        channel_is_lost(device);
    }),
];

fn map_payload(offset: u64) -> [u8; 40] {
    let mut payload = [0; 40];
    payload[16..24].copy_from_slice(&offset.to_ne_bytes());
    payload[24..32].copy_from_slice(&PAGE.to_ne_bytes());
    payload
}

#[track_caller]
fn refuses(device: &HostileDevice, at: u64, from: u64, len: u64, flags: u64, errno: i64) {
    let value = device
        .rig
        .channel
        .map(0, at, from, len, flags, device.memory());
    assert_eq!(value, errno);
}

fn kill(device: &mut HostileDevice) {
    fixture::signal_pid(device_pid(&device.rig.vm.status()), Signal::KILL);
}

/// The device process goes on without a channel, and without mappings, until the main channel goes, too.
fn channel_is_lost(device: &mut HostileDevice) {
    device.rig.vm.process.event("channel_closed");
    device.rig.vm.wait_no_maps();
    device.rig.backend.hang_up();
}

/// Sends requests to map one page each, apart from the others, and reads no reply.
fn send_maps(device: &HostileDevice, count: u64) {
    for index in 0..count {
        let payload = map_payload(APART + index * PAGE);
        let fds = [device.memory().as_fd()];
        device.rig.channel.send_message(9, 9, &payload, &fds);
    }
}

#[track_caller]
fn undo_maps(device: &HostileDevice, count: u64) {
    for _ in 0..count {
        assert_eq!(device.rig.channel.reply(9), 0);
    }
    for index in 0..count {
        let offset = APART + index * PAGE;
        assert_eq!(device.rig.channel.unmap(0, offset, PAGE), 0);
    }
}

/// The guest's pages are gone, an access says so, and the VMM lives.
fn truncate(device: &mut HostileDevice) {
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(device.rig.channel.map(0, APART, 0, PAGE, 0, &memory), 0);
    rustix::fs::ftruncate(&memory, 0).expect("a memfd");
    let peek = json!({"command": "peek", "shmid": 0, "offset": APART, "len": 8});
    let reply = device.rig.vm.ask(&peek);
    assert!(reply["error"].is_string(), "{reply}");
    assert_eq!(device.rig.channel.unmap(0, APART, PAGE), 0);
}

fn dribble(device: &mut HostileDevice) {
    let memory = device.memory().as_fd();
    for (index, byte) in Message::bytes(9, 9, &map_payload(APART)).iter().enumerate() {
        let fds = [memory];
        let with = if index == 0 { &fds[..] } else { &[] };
        device.rig.channel.send(&[*byte], with);
    }
    undo_maps(device, 1);
}

fn leave_unread(device: &mut HostileDevice) {
    for _ in 0..200 {
        device
            .rig
            .channel
            .send_message(10, 9, &map_payload(APART), &[]);
    }
    device.assert_mappings();
    for _ in 0..200 {
        assert_eq!(device.rig.channel.reply(10), ENOENT);
    }
}

/// Without need_reply: nothing but the last request is answered.
fn flood(device: &mut HostileDevice) {
    let unknown = Message::bytes(4711, 1, &[0; 8]).repeat(1000);
    device.rig.channel.send(&unknown, &[]);
    assert_eq!(device.rig.channel.request(2, &[], &[]), 0);
}
