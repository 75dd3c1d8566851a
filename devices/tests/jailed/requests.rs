//! Requests of the backend, all the way into the arena.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use base::EventWaitResult;
use devices::control::Activation;
use devices::control::ChannelClosed;
use devices::control::DeviceEvent;

use crate::bench::Bench;
use crate::bench::PAGE;
use crate::bench::script_with_channel;
use crate::bench::wait_readable;
use crate::runner::Skip;
use crate::runner::Test;
use crate::testing::NEED_REPLY;
use crate::testing::Script;
use crate::testing::TIMEOUT;
use crate::testing::crosvm_map;
use crate::testing::crosvm_unmap;
use crate::testing::mmap;
use crate::testing::read_reply;
use crate::testing::send;

pub(crate) const TESTS: &[Test] = &[
    ("map_shows_the_file_and_unmap_takes_it_away", map_shows),
    ("pipelined_64_are_answered_in_order", pipelined),
    ("refusals_have_their_own_errnos", refusals),
    ("both_dialects_on_one_channel", both_dialects),
    ("map_before_the_ack_of_the_channel_message", map_first),
    ("config_change_waits_for_activation", config_change),
    ("reset_drops_the_mappings_and_serves_on", reset),
    ("closed_channel_drops_the_mappings", closed_channel),
    ("broken_framing_is_reported", broken_framing),
];

fn file_with(byte: u8, len: u64) -> std::fs::File {
    let file = tempfile::tempfile().expect("file");
    let bytes = vec![byte; usize::try_from(len).expect("small")];
    file.write_all_at(&bytes, 0).expect("write");
    file
}

pub(crate) fn map(channel: &UnixStream, offset: u64, byte: u8) -> i64 {
    let file = file_with(byte, PAGE);
    let payload = mmap(0, offset, PAGE, 1);
    send(channel, 9, NEED_REPLY, &payload, Some(file.as_fd()));
    let (code, value) = read_reply(channel);
    assert_eq!(code, 9);
    value
}

fn unmap(channel: &UnixStream, offset: u64) -> i64 {
    send(channel, 10, NEED_REPLY, &mmap(0, offset, PAGE, 0), None);
    let (code, value) = read_reply(channel);
    assert_eq!(code, 10);
    value
}

fn map_shows() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0x3000, 0x5a), 0);
    let mut seen = [0; 16];
    bench.arena.read_at(0x3000, &mut seen).expect("mapped");
    assert_eq!(seen, [0x5a; 16]);
    assert_eq!(bench.mappings(), 1);
    assert_eq!(unmap(&channel, 0x3000), 0);
    let error = bench.arena.read_at(0x3000, &mut seen).expect_err("a hole");
    assert_eq!(error.errno(), libc::EFAULT);
    let stats = bench.device.stats().expect("stats");
    assert_eq!((stats.maps, stats.unmaps, stats.refused), (1, 1, 0));
    Ok(())
}

fn pipelined() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let file = file_with(1, PAGE);
    for index in 0..64 {
        let payload = mmap(0, index * PAGE, PAGE, 0);
        send(&channel, 9, NEED_REPLY, &payload, Some(file.as_fd()));
    }
    for _ in 0..64 {
        assert_eq!(read_reply(&channel), (9, 0));
    }
    assert_eq!(bench.mappings(), 64);
    let stats = bench.device.stats().expect("stats");
    assert_eq!((stats.maps, stats.in_flight), (64, 0));
    Ok(())
}

fn refusals() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    let page = file_with(2, PAGE);
    let attempt = |payload: Vec<u8>| {
        send(&channel, 9, NEED_REPLY, &payload, Some(page.as_fd()));
        read_reply(&channel).1
    };
    let refused = |errno: i32| -i64::from(errno);
    assert_eq!(attempt(mmap(0, 0, PAGE, 1)), refused(libc::EEXIST));
    assert_eq!(attempt(mmap(0, 1 << 20, PAGE, 1)), refused(libc::ERANGE));
    assert_eq!(
        attempt(mmap(0, PAGE, 2 * PAGE, 1)),
        refused(libc::EOVERFLOW)
    );
    assert_eq!(attempt(mmap(5, 0, PAGE, 1)), refused(libc::ENXIO));
    assert_eq!(attempt(mmap(0, 12, PAGE, 1)), refused(libc::EINVAL));
    assert_eq!(unmap(&channel, 0x8000), refused(libc::ENOENT));
    let stats = bench.device.stats().expect("stats");
    assert_eq!((stats.maps, stats.refused), (1, 6));
    wait_readable(&bench.device.events());
    let event = bench.device.try_event().expect("events").expect("one");
    let DeviceEvent::RequestRefused { refused, .. } = event else {
        panic!("{event:?}");
    };
    assert_eq!((refused.code, refused.errno.errno()), (9, libc::EEXIST));
    Ok(())
}

fn both_dialects() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    let file = file_with(3, PAGE);
    send(
        &channel,
        1000,
        0,
        &crosvm_map(0, 0, PAGE, 1),
        Some(file.as_fd()),
    );
    assert_eq!(read_reply(&channel), (1000, 0));
    assert_eq!(map(&channel, PAGE, 4), 0);
    // Each dialect removes what the other has mapped.
    assert_eq!(unmap(&channel, 0), 0);
    send(&channel, 1001, 0, &crosvm_unmap(0, PAGE, PAGE), None);
    assert_eq!(read_reply(&channel), (1001, 0));
    assert_eq!(bench.mappings(), 0);
    Ok(())
}

fn map_first() -> Result<(), Skip> {
    let (sender, results) = mpsc::channel();
    let mut bench = Bench::new(Script {
        shmem: (1, vec![(0, 1 << 20)]),
        on_channel: Box::new(move |channel| {
            channel.set_read_timeout(Some(TIMEOUT)).expect("timeout");
            sender.send((map(&channel, 0, 1), channel)).expect("test");
        }),
        ..Script::default()
    })?;
    bench.start();
    let (value, _channel) = results.recv_timeout(TIMEOUT).expect("result");
    assert_eq!(value, 0);
    assert_eq!(bench.mappings(), 1);
    Ok(())
}

fn config_change() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    send(&channel, 2, NEED_REPLY, &[], None);
    assert_eq!(read_reply(&channel), (2, 0));
    assert!(matches!(bench.device.try_event(), Ok(None)));
    bench
        .device
        .activate(Activation::default())
        .expect("activate");
    let signalled = bench.interrupt.wait_timeout(TIMEOUT).expect("wait");
    assert_eq!(signalled, EventWaitResult::Signaled);
    wait_readable(&bench.device.events());
    let event = bench.device.try_event().expect("events");
    assert_eq!(event, Some(DeviceEvent::ConfigChanged));
    Ok(())
}

fn reset() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    let service = bench.service.handle();
    let first = bench
        .device
        .reset(&service, bench.device_id)
        .expect("reset");
    assert_eq!(bench.mappings(), 0);
    assert_eq!(map(&channel, 0, 2), 0);
    assert_eq!(bench.mappings(), 1);
    let second = bench
        .device
        .reset(&service, bench.device_id)
        .expect("reset");
    assert!(second.0 > first.0, "{second:?} after {first:?}");
    assert_eq!(bench.mappings(), 0);
    Ok(())
}

fn closed_channel() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 1), 0);
    drop(channel);
    wait_readable(&bench.device.events());
    let event = bench.device.try_event().expect("events");
    assert_eq!(
        event,
        Some(DeviceEvent::ChannelClosed {
            reason: ChannelClosed::ByBackend
        })
    );
    // The process lives on, and another channel works: its first map finds the place free.
    bench.device.start().expect("start again");
    let channel = channels.recv_timeout(TIMEOUT).expect("channel");
    assert_eq!(map(&channel, 0, 2), 0);
    assert_eq!(bench.mappings(), 1);
    Ok(())
}

fn broken_framing() -> Result<(), Skip> {
    let (script, channels) = script_with_channel();
    let mut bench = Bench::new(script)?;
    bench.start();
    let mut channel = channels.recv_timeout(TIMEOUT).expect("channel");
    channel.write_all(&[0xff; 12]).expect("write");
    wait_readable(&bench.device.events());
    let event = bench.device.try_event().expect("events");
    assert!(
        matches!(
            event,
            Some(DeviceEvent::ChannelClosed {
                reason: ChannelClosed::BrokenFraming { .. }
            })
        ),
        "{event:?}"
    );
    assert!(!bench.device.stats().expect("stats").channel_open);
    Ok(())
}
