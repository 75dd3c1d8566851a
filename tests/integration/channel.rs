//! The request channel from end to end, byte by byte: both dialects at once, each refusal with its errno.

use std::os::fd::AsFd;

use fixture::Script;

use crate::rig::EACCES;
use crate::rig::EBADF;
use crate::rig::EEXIST;
use crate::rig::EINVAL;
use crate::rig::ENOENT;
use crate::rig::ENOTSUP;
use crate::rig::ENXIO;
use crate::rig::EOVERFLOW;
use crate::rig::EPERM;
use crate::rig::ERANGE;
use crate::rig::PAGE;
use crate::rig::REGION;
use crate::rig::Rig;

#[test]
#[rustfmt::skip]
fn both_dialects_are_served_on_one_channel() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[0x5a; 8192]);
    // Standard SHMEM_MAP: shmid 0, fd_offset 0, shm_offset 0x1000, len 0x1000, flags 0.
    rig.channel.send(&[
        9, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ], &[memory.as_fd()]);
    assert_eq!(rig.channel.reply(9), 0);
    // crosvm's: flags 3, shmid 0, shm_offset 0x3000, fd_offset 0x1000, len 0x1000. No need_reply, and a reply all the same.
    rig.channel.send(&[
        0xe8, 3, 0, 0,  1, 0, 0, 0,  32, 0, 0, 0,
        3, 0, 0, 0, 0, 0, 0, 0,
        0, 0x30, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
    ], &[memory.as_fd()]);
    assert_eq!(rig.channel.reply(1000), 0);
    assert_eq!(rig.vm.maps(), [(0, 0x1000), (0, 0x3000)]);
    // Each dialect's unmap removes what the other mapped.
    rig.channel.send(&[
        0xe9, 3, 0, 0,  1, 0, 0, 0,  24, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
    ], &[]);
    assert_eq!(rig.channel.reply(1001), 0);
    rig.channel.send(&[
        10, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x30, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ], &[]);
    assert_eq!(rig.channel.reply(10), 0);
    assert_eq!(rig.vm.maps(), []);
}

#[test]
fn every_refusal_has_its_errno_and_the_channel_lives_on() {
    let rig = Rig::new();
    let page = fixture::memfd(&[0; 4096]);
    let channel = &rig.channel;
    assert_eq!(channel.map(0, 0, 0, PAGE, 0, &page), 0);
    let map = |shm, fd, len, flags| channel.map(0, shm, fd, len, flags, &page);
    assert_eq!(map(0, 0, PAGE, 0), EEXIST, "overlap");
    assert_eq!(map(REGION, 0, PAGE, 0), ERANGE, "behind the end");
    assert_eq!(map(REGION - PAGE, 0, 2 * PAGE, 0), ERANGE, "over the end");
    assert_eq!(map(u64::MAX - 4095, 0, PAGE, 0), ERANGE, "overflow");
    assert_eq!(map(PAGE, PAGE, PAGE, 0), EOVERFLOW, "a short file");
    assert_eq!(map(PAGE + 1, 0, PAGE, 0), EINVAL, "a misaligned offset");
    assert_eq!(map(PAGE, 1, PAGE, 0), EINVAL, "a misaligned file offset");
    assert_eq!(map(PAGE, 0, 0, 0), EINVAL, "no length");
    assert_eq!(map(PAGE, 0, PAGE, 2), EINVAL, "reserved flags");
    assert_eq!(
        channel.map(7, 0, 0, PAGE, 0, &page),
        ENXIO,
        "another region"
    );
    assert_eq!(channel.unmap(0, PAGE, PAGE), ENOENT, "a hole");
    assert_eq!(channel.unmap(0, 0, 2 * PAGE), ENOENT, "more than a mapping");
    let file = fixture::file(&rig.dir.path().join("file"), &[0; 4096]);
    assert_eq!(channel.map(0, PAGE, 0, PAGE, 1, &file), EACCES, "read only");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    assert_eq!(channel.map(0, PAGE, 0, PAGE, 0, &reader), EBADF, "a pipe");
    let directory = std::fs::File::open("/").expect("the root");
    assert_eq!(
        channel.map(0, PAGE, 0, PAGE, 0, &directory),
        EBADF,
        "a directory"
    );
    // EXTERNAL_MAP: shmid 0 at PAGE, one page at an address of the backend's.
    let mut external = vec![0; 8];
    for word in [PAGE, PAGE, 0x7000_0000_0000] {
        external.extend(word.to_ne_bytes());
    }
    assert_eq!(channel.request(1007, &external, &[]), EPERM, "a pointer");
    assert_eq!(rig.vm.maps(), [(0, 0)]);
    rig.assert_serves(PAGE);
    let status = rig.vm.status();
    assert_eq!(status["state"], "serving");
}

#[test]
fn malformed_requests_are_answered_in_step() {
    let rig = Rig::new();
    let page = fixture::memfd(&[0; 4096]);
    let (channel, fd) = (&rig.channel, page.as_fd());
    assert_eq!(channel.request(9, &[0; 40], &[]), EINVAL, "no descriptor");
    assert_eq!(
        channel.request(9, &[0; 40], &[fd, fd]),
        EINVAL,
        "two descriptors"
    );
    assert_eq!(
        channel.request(10, &[0; 40], &[fd]),
        EINVAL,
        "a descriptor with an unmap"
    );
    assert_eq!(
        channel.request(9, &[0; 39], &[fd]),
        EINVAL,
        "a short payload"
    );
    assert_eq!(
        channel.request(9, &[0; 41], &[fd]),
        EINVAL,
        "a long payload"
    );
    assert_eq!(
        channel.request(2, &[0; 1], &[]),
        EINVAL,
        "a payload with none due"
    );
    let unknown = channel.request(11, &[], &[]);
    assert!(unknown < 0, "an unknown code: {unknown}");
    let draft = channel.request(1002, &[0; 256], &[]);
    assert!(draft < 0, "an abandoned code: {draft}");
    assert_eq!(channel.request(7, &[0; 16], &[]), ENOTSUP, "not negotiated");
    rig.assert_serves(0);
}

#[test]
fn requests_without_need_reply_are_carried_out_in_order() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[3; 4096]);
    for index in 0..100_u64 {
        let mut payload = [0; 40];
        payload[16..24].copy_from_slice(&(index * PAGE).to_ne_bytes());
        payload[24..32].copy_from_slice(&PAGE.to_ne_bytes());
        rig.channel.send_message(9, 1, &payload, &[memory.as_fd()]);
    }
    // The one reply is that of the last request, which is refused since the first 100 came before it.
    assert_eq!(rig.channel.map(0, 99 * PAGE, 0, PAGE, 0, &memory), EEXIST);
    assert_eq!(rig.vm.maps().len(), 100);
}

#[test]
fn broken_framing_closes_the_channel_and_drops_the_mappings() {
    let headers: [(&str, [u8; 12]); 4] = [
        ("version 2", [9, 0, 0, 0, 10, 0, 0, 0, 40, 0, 0, 0]),
        ("reserved bits", [9, 0, 0, 0, 0x19, 0, 0, 0, 40, 0, 0, 0]),
        ("a reply", [9, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0]),
        ("a size over the cap", [9, 0, 0, 0, 9, 0, 0, 0, 1, 1, 0, 0]),
    ];
    for (what, header) in headers {
        let mut rig = Rig::new();
        let memory = fixture::memfd(&[1; 4096]);
        assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), 0);
        rig.channel.send(&header, &[]);
        rig.channel.wait_closed();
        rig.vm.process.event("channel_closed");
        rig.vm.wait_no_maps();
        assert_eq!(
            rig.vm.status()["pids"]["vmm"],
            rig.vm.process.pid(),
            "{what}"
        );
    }
}

#[test]
fn descriptors_on_a_body_are_refused_and_closed() {
    let rig = Rig::new();
    let memory = fixture::memfd(&[1; 4096]);
    let mut payload = [0; 40];
    payload[24..32].copy_from_slice(&PAGE.to_ne_bytes());
    let message = fixture::Message::bytes(9, 9, &payload);
    // The kernel tells the body's descriptors from the header's only if the header was read on its own. The answer to
    // a request that goes in one piece with the header says that it was.
    let change = fixture::Message::bytes(2, 9, &[]);
    rig.channel.send(&[&change, &message[..12]].concat(), &[]);
    assert_eq!(rig.channel.reply(2), 0);
    rig.channel.send(&message[12..], &[memory.as_fd()]);
    assert_eq!(rig.channel.reply(9), EINVAL);
    rig.assert_serves(0);
}

#[test]
fn descriptors_of_refused_messages_do_not_pile_up() {
    let rig = Rig::new();
    let device = crate::rig::device_pid(&rig.vm.status());
    let memory = fixture::memfd(&[1; 4096]);
    let fds = [memory.as_fd(); 32];
    let before = (
        fixture::Leftovers::of(rig.vm.process.pid()),
        fixture::Leftovers::of(device),
    );
    for _ in 0..50 {
        assert_eq!(rig.channel.request(2, &[], &fds), EINVAL);
        assert_eq!(rig.channel.request(9, &[0; 40], &fds), EINVAL);
        assert_eq!(rig.channel.map(9, 0, 0, PAGE, 0, &memory), ENXIO);
    }
    fixture::Leftovers::settle(rig.vm.process.pid(), &before.0, || {
        rig.vm.status();
    });
    fixture::Leftovers::settle(device, &before.1, || {
        rig.vm.status();
    });
}

#[test]
fn gates_of_features_that_were_not_offered_stay_shut() {
    let mut script = Script::one_region(REGION);
    // No SHMEM: GET_SHMEM_CONFIG can't be asked for, the region comes from the command line.
    script.protocol_features &= !(1 << 22);
    let rig = Rig::with(script, |vm| vm.arg("--region").arg("0=1M"));
    let memory = fixture::memfd(&[1; 4096]);
    assert_eq!(rig.channel.map(0, 0, 0, PAGE, 0, &memory), ENOTSUP);
    assert_eq!(rig.channel.crosvm_map(0, 0, 0, PAGE, 1, &memory), ENOTSUP);
    assert_eq!(rig.channel.crosvm_unmap(0, 0, PAGE), ENOTSUP);
    assert_eq!(rig.channel.request(2, &[], &[]), 0);
}
