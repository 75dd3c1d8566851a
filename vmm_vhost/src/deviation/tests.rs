//! Each rule, and the message that breaks it; what breaks none.

use std::os::fd::AsFd;

use super::*;
use crate::ChannelConfig;
use crate::ChannelError;
use crate::RequestChannel;

const PAGE: u64 = 4096;

/// What a strict channel notes of these bytes and this many descriptors, by rule.
fn noted(features: ProtocolFeatures, bytes: &[u8], descriptors: usize) -> Vec<(Rule, u64)> {
    let (ours, theirs) = base::scm::stream_pair().expect("a socket pair");
    let config = ChannelConfig {
        negotiated: Negotiated {
            virtio_features: u64::MAX,
            protocol_features: features,
            ..Negotiated::default()
        },
        strict: true,
        ..ChannelConfig::default()
    };
    let mut channel = RequestChannel::new(ours, config).expect("a channel");
    let with = vec![theirs.as_fd(); descriptors];
    let bytes = [std::io::IoSlice::new(bytes)];
    base::scm::send(theirs.as_fd(), &bytes, &with, base::scm::Wait::Never).expect("room");
    let served = channel.receive().map(drop).and_then(|()| {
        while let Some(incoming) = channel.next_request()? {
            channel.complete(incoming.ticket, Ok(0));
        }
        Ok::<_, ChannelError>(())
    });
    drop(served);
    std::iter::from_fn(|| channel.take_deviation())
        .map(|(deviation, count)| {
            assert_eq!(count, 1, "{deviation}");
            (deviation.rule, deviation.value)
        })
        .collect()
}

fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("small");
    let mut bytes: Vec<u8> = [code, flags, size].map(u32::to_ne_bytes).concat();
    bytes.extend(payload);
    bytes
}

/// A map or unmap of the standard dialect.
fn mmap(code: u32, words: [u64; 5]) -> Vec<u8> {
    let payload = words.map(u64::to_ne_bytes).concat();
    message(code, 9, &payload)
}

#[track_caller]
fn check(bytes: &[u8], descriptors: usize, want: &[(Rule, u64)]) {
    let features = ProtocolFeatures::REPLY_ACK | ProtocolFeatures::SHMEM | ProtocolFeatures::CONFIG;
    assert_eq!(noted(features, bytes, descriptors), want);
}

#[test]
fn exemplary_requests_are_no_deviation() {
    check(&mmap(9, [0, 0, 0, PAGE, 1]), 1, &[]);
    check(&mmap(10, [0, 0, 0, PAGE, 0]), 0, &[]);
    check(&message(2, 1, &[]), 0, &[]);
}

#[test]
fn headers_that_end_the_channel_are_deviations() {
    check(&message(2, 2, &[]), 0, &[(Rule::HeaderVersion, 2)]);
    check(&message(2, 0x11, &[]), 0, &[(Rule::HeaderReserved, 0x11)]);
    check(&message(2, 5, &[]), 0, &[(Rule::HeaderReply, 5)]);
    let header = [2, 1, 257].map(u32::to_ne_bytes).concat();
    check(&header, 0, &[(Rule::HeaderSize, 257)]);
}

#[test]
fn refused_requests_are_deviations_with_what_was_seen() {
    check(&message(11, 1, &[]), 0, &[(Rule::UnknownCode, 11)]);
    check(&message(1003, 1, &[0; 256]), 0, &[(Rule::DraftCode, 1003)]);
    check(&message(6, 1, &[0; 16]), 0, &[(Rule::NotNegotiated, 6)]);
    check(&message(9, 1, &[0; 39]), 1, &[(Rule::PayloadSize, 39)]);
    let map = mmap(9, [0, 0, 0, PAGE, 0]);
    check(&map, 0, &[(Rule::DescriptorCount, 0)]);
    check(&map, 2, &[(Rule::DescriptorCount, 2)]);
    check(&map, 9, &[(Rule::DescriptorLimit, 0)]);
    let map = |words| mmap(9, words);
    check(&map([0, 0, 0, PAGE, 6]), 1, &[(Rule::MapFlags, 6)]);
    check(&map([0, 0, 0, 0, 0]), 1, &[(Rule::ZeroLength, 0)]);
    check(&map([0, 0, 1, PAGE, 0]), 1, &[(Rule::RegionAlignment, 1)]);
    check(
        &map([0, 2, 0, PAGE, 0]),
        1,
        &[(Rule::DescriptorAlignment, 2)],
    );
    let external = [0, 0, PAGE, PAGE].map(u64::to_ne_bytes).concat();
    let want = [(Rule::CrosvmDialect, 1007), (Rule::Pointer, 0)];
    let got = noted(ProtocolFeatures::REPLY_ACK, &message(1007, 1, &external), 0);
    assert_eq!(got, want);
}

#[test]
fn requests_that_are_served_all_the_same_are_deviations() {
    // Bytes 1 to 7 of the payload.
    let padded = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 1, 2]);
    let want = [(Rule::Padding, 0x0102)];
    check(&mmap(9, [padded, 0, 0, PAGE, 0]), 1, &want);
    let unmap = [0, 0, PAGE].map(u64::to_ne_bytes).concat();
    check(&message(1001, 1, &unmap), 0, &[(Rule::CrosvmDialect, 1001)]);
    let got = noted(ProtocolFeatures::CONFIG, &message(2, 9, &[]), 0);
    assert_eq!(got, [(Rule::NeedReply, 9)]);
    let got = noted(ProtocolFeatures::SHARED_OBJECT, &message(8, 1, &[0; 16]), 1);
    assert_eq!(got, [(Rule::DescriptorCount, 1)]);
}

#[test]
fn fields_of_the_other_messages_are_looked_at() {
    let inband = ProtocolFeatures::INBAND_NOTIFICATIONS;
    let call = [0_u32, 3].map(u32::to_ne_bytes).concat();
    assert_eq!(
        noted(inband, &message(4, 1, &call), 0),
        [(Rule::VringNumber, 3)]
    );
    let mut miss = [0; 32];
    miss[24..].copy_from_slice(&[4, 1, 0, 0, 0, 0, 0, 0]);
    let got = noted(inband, &message(1, 1, &miss), 0);
    assert_eq!(got, [(Rule::IotlbFields, 4)]);
    miss[24..].copy_from_slice(&[1, 2, 0, 0, 0, 0, 0, 0]);
    let got = noted(inband, &message(1, 1, &miss), 0);
    assert_eq!(got, [(Rule::IotlbFields, 2)]);
    let notifier = [1 << 9, PAGE, 0].map(u64::to_ne_bytes).concat();
    let got = noted(
        ProtocolFeatures::HOST_NOTIFIER,
        &message(3, 1, &notifier),
        1,
    );
    assert_eq!(got, [(Rule::NotifierFields, 1 << 9)]);
}

#[test]
fn message_that_is_cut_off_is_a_deviation() {
    let (ours, theirs) = base::scm::stream_pair().expect("a socket pair");
    let config = ChannelConfig {
        strict: true,
        ..ChannelConfig::default()
    };
    let mut channel = RequestChannel::new(ours, config).expect("a channel");
    let bytes = [std::io::IoSlice::new(&[9, 0, 0])];
    base::scm::send(theirs.as_fd(), &bytes, &[], base::scm::Wait::Never).expect("room");
    drop(theirs);
    channel.receive().expect("three bytes");
    channel.receive().expect_err("the end");
    let (deviation, count) = channel.take_deviation().expect("a deviation");
    assert_eq!(
        (deviation.rule, deviation.value, count),
        (Rule::Unfinished, 3, 1)
    );
}

#[test]
fn errnos_of_the_handler_are_deviations_where_the_backend_is_at_fault() {
    let of = |code, errno| {
        Deviation::of_errno(
            RequestCode(code),
            base::Error::new(errno),
            7,
            0x1000,
            0x2000,
        )
        .map(|deviation| (deviation.rule, deviation.value))
    };
    for (errno, want) in [
        (libc::ENXIO, Some((Rule::UnknownRegion, 7))),
        (libc::ERANGE, Some((Rule::OutsideRegion, 0x1000))),
        (libc::EEXIST, Some((Rule::Overlap, 0x1000))),
        (libc::ENOENT, Some((Rule::UnmapWhole, 0x1000))),
        (libc::EBADF, Some((Rule::DescriptorKind, 0x1000))),
        (libc::EACCES, Some((Rule::DescriptorAccess, 0x1000))),
        (libc::EOVERFLOW, Some((Rule::DescriptorLength, 0x2000))),
        (libc::EDQUOT, None),
        (libc::ECANCELED, None),
    ] {
        for code in [9, 10, 1000, 1001, 1006, 1007] {
            assert_eq!(of(code, errno), want, "code {code}, errno {errno}");
        }
    }
    assert_eq!(of(4, libc::ENXIO), Some((Rule::QueueIndex, 0x1000)));
    assert_eq!(of(8, libc::ENOENT), None);
}

#[test]
fn kinds_are_counted_and_taken_once() {
    let deviation = |value| Deviation {
        rule: Rule::MapFlags,
        code: 9,
        value,
    };
    let mut deviations = Deviations::default();
    deviations.note(deviation(2), 1);
    deviations.note(deviation(4), 5);
    assert_eq!(deviations.take(), Some((deviation(2), 6)));
    assert_eq!(deviations.take(), None);
    deviations.note(deviation(8), 1);
    assert_eq!(deviations.take(), Some((deviation(2), 1)));
}

#[test]
fn deviation_says_message_field_value_and_rule() {
    let deviation = Deviation {
        rule: Rule::MapFlags,
        code: 9,
        value: 6,
    };
    assert_eq!(
        deviation.to_string(),
        "SHMEM_MAP with flags 0x6: the flags of a map have no bit but those specified"
    );
    let deviation = Deviation {
        rule: Rule::RegionCount,
        code: main_code("GET_SHMEM_CONFIG"),
        value: 3,
    };
    assert_eq!(deviation.message(), "GET_SHMEM_CONFIG");
}
