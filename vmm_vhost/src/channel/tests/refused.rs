//! Each reason to refuse a message, with its errno; the channel lives on after every one.

use base::Error as Errno;

use crate::Negotiated;
use crate::Peer;
use crate::Refusal;
use crate::message::CODES;
use crate::message::DescriptorCount;
use crate::message::Gate;
use crate::message::ProtocolFeatures;
use crate::message::RequestCode;
use crate::testing::Canary;
use crate::testing::channel_with;
use crate::testing::everything;
use crate::testing::message;
use crate::testing::refusal;
use crate::testing::reply;
use crate::testing::take_all;

/// One message that is to be refused.
struct Case<'a> {
    code: u32,
    payload: &'a [u8],
    descriptors: usize,
    want: Refusal,
    errno: i32,
}

impl Case<'_> {
    /// Sends the message with need_reply, and a config change after it. REPLY_ACK and CONFIG are
    /// negotiated in any case.
    #[track_caller]
    fn check_with(&self, mut negotiated: Negotiated, peer: Peer) {
        negotiated.protocol_features |= ProtocolFeatures::REPLY_ACK | ProtocolFeatures::CONFIG;
        let (backend, mut channel) = channel_with(negotiated, peer);
        let mut canaries: Vec<Canary> = (0..self.descriptors).map(|_| Canary::new()).collect();
        let descriptors: Vec<_> = canaries.iter().map(|canary| canary.fd()).collect();
        backend.send(&message(self.code, 0x9, self.payload), &descriptors);
        backend.send(&[2, 0, 0, 0, 0x9, 0, 0, 0, 0, 0, 0, 0], &[]);

        let mut taken = take_all(&mut channel);
        assert_eq!(taken.len(), 1, "the channel must live on");
        let refused = channel.last_refused().expect("a refused request");
        assert_eq!(refused.refusal, self.want);
        assert_eq!(refused.code, RequestCode(self.code));
        assert!(refused.answered);
        channel.complete(taken.remove(0).ticket, Ok(0));
        channel.flush().expect("the peer is there");
        assert_eq!(
            backend.read_bytes(),
            [refusal(self.code, self.errno), reply(2, 0)].concat()
        );
        for canary in &mut canaries {
            assert!(canary.is_closed_elsewhere());
        }
        assert_eq!(channel.stats().refused_with(Errno::new(self.errno)), 1);
    }

    #[track_caller]
    fn check(&self) {
        self.check_with(everything(), Peer::InProcess);
    }
}

/// A message that is to be refused with EINVAL.
#[track_caller]
fn malformed(code: u32, payload: &[u8], descriptors: usize, want: Refusal) {
    let errno = libc::EINVAL;
    Case {
        code,
        payload,
        descriptors,
        want,
        errno,
    }
    .check();
}

/// The codes whose messages are looked into.
fn served() -> impl Iterator<Item = RequestCode> {
    CODES
        .into_iter()
        .filter(|code| !(1002..=1005).contains(&code.0))
}

const PAGE: [u8; 8] = [0x00, 0x10, 0, 0, 0, 0, 0, 0];
const HALF_PAGE: [u8; 8] = [0x00, 0x08, 0, 0, 0, 0, 0, 0];
const ZERO: [u8; 8] = [0; 8];
const ONE: [u8; 8] = [1, 0, 0, 0, 0, 0, 0, 0];
const TWO: [u8; 8] = [2, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn unknown_codes_are_enosys() {
    for code in [0, 11, 12, 999, 1008, u32::MAX] {
        for (payload, descriptors) in [(&[][..], 0), (&[0; 256], 1)] {
            Case {
                code,
                payload,
                descriptors,
                want: Refusal::UnknownCode,
                errno: libc::ENOSYS,
            }
            .check();
        }
    }
}

#[test]
fn codes_of_the_abandoned_draft_are_enosys() {
    for code in 1002..=1005 {
        for (payload, descriptors) in [(&[][..], 0), (&[0; 256], 1)] {
            Case {
                code,
                payload,
                descriptors,
                want: Refusal::Unsupported,
                errno: libc::ENOSYS,
            }
            .check();
        }
    }
}

#[test]
fn codes_that_were_not_negotiated_are_enotsup() {
    // Code 2 is negotiated by the check itself, 1007 has no feature.
    for code in [1, 3, 4, 5, 6, 7, 8, 9, 10, 1000, 1001, 1006] {
        let rules = RequestCode(code).rules().expect("known");
        Case {
            code,
            payload: &vec![0; rules.payload],
            descriptors: rules.descriptors.max,
            want: Refusal::NotNegotiated(rules.gate),
            errno: libc::ENOTSUP,
        }
        .check_with(Negotiated::default(), Peer::Remote);
    }
}

#[test]
fn config_change_that_was_not_negotiated_is_enotsup() {
    let negotiated = Negotiated {
        protocol_features: ProtocolFeatures::REPLY_ACK,
        ..Negotiated::default()
    };
    let (backend, mut channel) = channel_with(negotiated, Peer::Remote);
    backend.send(&[2, 0, 0, 0, 0x9, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert!(take_all(&mut channel).is_empty());
    channel.flush().expect("the peer is there");
    assert_eq!(backend.read_bytes(), refusal(2, libc::ENOTSUP));
    assert_eq!(
        channel.last_refused().map(|refused| refused.refusal),
        Some(Refusal::NotNegotiated(Gate::Feature(
            ProtocolFeatures::CONFIG
        )))
    );
}

#[test]
fn external_map_of_a_remote_backend_is_eperm() {
    for payload in [&[0; 32][..], &[0; 31]] {
        Case {
            code: 1007,
            payload,
            descriptors: 0,
            want: Refusal::NotInProcess,
            errno: libc::EPERM,
        }
        .check_with(everything(), Peer::Remote);
    }
}

#[test]
fn wrong_payload_sizes_are_einval() {
    for code in served() {
        let rules = code.rules().expect("known");
        let want = rules.payload;
        let less = want.checked_sub(1);
        for got in [less, Some(want + 1), Some(0), Some(256)] {
            if let Some(got) = got.filter(|got| *got != want) {
                let refusal = Refusal::PayloadSize { want, got };
                malformed(code.0, &vec![0; got], rules.descriptors.min, refusal);
            }
        }
    }
}

#[test]
fn wrong_descriptor_counts_are_einval_and_close_every_one() {
    for code in served() {
        let rules = code.rules().expect("known");
        let want = rules.descriptors;
        for got in (0..=8).filter(|got| !want.allows(*got)) {
            let refusal = Refusal::DescriptorCount { want, got };
            malformed(code.0, &vec![0; rules.payload], got, refusal);
        }
    }
}

#[test]
fn more_descriptors_than_a_message_may_carry_are_einval_and_closed() {
    for got in [9, 10, 253] {
        malformed(9, &[0; 40], got, Refusal::DescriptorsTruncated);
    }
}

#[test]
fn map_with_reserved_flags_is_einval() {
    for flags in [TWO, [3, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0x80]] {
        let payload = [ZERO, ZERO, ZERO, PAGE, flags].concat();
        let want = Refusal::MapFlags {
            flags: u64::from_ne_bytes(flags),
        };
        malformed(9, &payload, 1, want);
        malformed(10, &payload, 0, want);
    }
}

#[test]
fn crosvm_map_with_no_access_or_reserved_flags_is_einval() {
    for flags in [0, 4, 7, 0xff] {
        let payload = [[flags, 0, 0, 0, 0, 0, 0, 0], ZERO, ZERO, PAGE].concat();
        let want = Refusal::MapFlags {
            flags: flags.into(),
        };
        malformed(1000, &payload, 1, want);
    }
}

#[test]
fn length_zero_is_einval() {
    let want = Refusal::ZeroLength;
    malformed(9, &[0; 40], 1, want);
    malformed(10, &[0; 40], 0, want);
    malformed(1000, &[ONE, ZERO, ZERO, ZERO].concat(), 1, want);
    malformed(1001, &[0; 24], 0, want);
    malformed(1006, &[0; 64], 1, want);
    malformed(1007, &[ZERO, ZERO, ZERO, PAGE].concat(), 0, want);
}

#[test]
fn misaligned_region_offset_is_einval() {
    let want = Refusal::MisalignedRegionOffset { offset: 0x800 };
    malformed(9, &[ZERO, ZERO, HALF_PAGE, PAGE, ZERO].concat(), 1, want);
    malformed(10, &[ZERO, ZERO, HALF_PAGE, PAGE, ZERO].concat(), 0, want);
    malformed(1000, &[ONE, HALF_PAGE, ZERO, PAGE].concat(), 1, want);
    malformed(1001, &[ZERO, HALF_PAGE, PAGE].concat(), 0, want);
    let gpu = [&[ZERO, HALF_PAGE, PAGE].concat()[..], &[0; 40]].concat();
    malformed(1006, &gpu, 1, want);
    malformed(1007, &[ZERO, HALF_PAGE, PAGE, PAGE].concat(), 0, want);
}

#[test]
fn misaligned_descriptor_offset_is_einval() {
    let want = Refusal::MisalignedDescriptorOffset { offset: 0x800 };
    malformed(9, &[ZERO, HALF_PAGE, ZERO, PAGE, ZERO].concat(), 1, want);
    malformed(1000, &[ONE, ZERO, HALF_PAGE, PAGE].concat(), 1, want);
    malformed(3, &[ZERO, PAGE, HALF_PAGE].concat(), 1, want);
}

#[test]
fn misaligned_pointer_is_einval() {
    let want = Refusal::MisalignedPointer { ptr: 0x800 };
    malformed(1007, &[ZERO, ZERO, PAGE, HALF_PAGE].concat(), 0, want);
}

#[test]
fn iotlb_message_that_no_backend_sends_is_einval() {
    for kind in [0, 2, 3, 5, 0xff] {
        let payload = [ZERO, ZERO, ZERO, [1, kind, 0, 0, 0, 0, 0, 0]].concat();
        malformed(1, &payload, 0, Refusal::IotlbKind { kind });
    }
    for permission in [0, 4, 0xff] {
        let payload = [ZERO, ZERO, ZERO, [permission, 1, 0, 0, 0, 0, 0, 0]].concat();
        malformed(1, &payload, 0, Refusal::IotlbPermission { permission });
    }
}

#[test]
fn host_notifier_that_contradicts_itself_is_einval() {
    let want = DescriptorCount { min: 0, max: 1 };
    let goes = [0, 1, 0, 0, 0, 0, 0, 0];
    let with = Refusal::DescriptorCount { want, got: 1 };
    malformed(3, &[goes, PAGE, ZERO].concat(), 1, with);
    let without = Refusal::DescriptorCount { want, got: 0 };
    malformed(3, &[ZERO, PAGE, ZERO].concat(), 0, without);
}

#[test]
fn host_notifier_of_another_size_than_a_page_is_einval() {
    for size in [ZERO, HALF_PAGE, [0, 0x20, 0, 0, 0, 0, 0, 0]] {
        let want = Refusal::NotifierSize {
            size: u64::from_ne_bytes(size),
        };
        malformed(3, &[ZERO, size, ZERO].concat(), 1, want);
    }
}

#[test]
fn host_notifier_with_reserved_bits_is_einval() {
    for index in [[0, 2, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]] {
        let want = Refusal::VringIndex {
            bits: u64::from_ne_bytes(index),
        };
        malformed(3, &[index, PAGE, ZERO].concat(), 1, want);
    }
}

#[test]
fn vring_state_with_a_number_is_einval() {
    for code in [4, 5] {
        let payload = [1, 0, 0, 0, 2, 0, 0, 0];
        malformed(code, &payload, 0, Refusal::VringNumber { num: 2 });
    }
}

#[test]
fn descriptors_on_a_body_are_einval_and_closed() {
    let (backend, mut channel) = channel_with(everything(), Peer::Remote);
    let map = message(9, 0x9, &[ZERO, ZERO, ZERO, PAGE, ZERO].concat());
    for cut in [1, 11, 12, 13, 51] {
        let mut canary = Canary::new();
        backend.send(&map[..cut], &[]);
        assert!(take_all(&mut channel).is_empty());
        backend.send(&map[cut..], &[canary.fd()]);
        assert!(take_all(&mut channel).is_empty());
        assert!(canary.is_closed_elsewhere());
        let refused = channel.last_refused().expect("a refused request");
        assert_eq!(refused.refusal, Refusal::DescriptorsMisplaced, "cut {cut}");
        channel.flush().expect("the peer is there");
        assert_eq!(backend.read_bytes(), refusal(9, libc::EINVAL));
    }
}

#[test]
fn refused_request_without_reply_ack_is_silent_but_for_codes_that_always_reply() {
    for code in CODES.into_iter().chain([RequestCode(11)]) {
        let (backend, mut channel) = channel_with(Negotiated::default(), Peer::Remote);
        backend.send(&message(code.0, 0x9, &[]), &[]);
        assert!(take_all(&mut channel).is_empty());
        channel.flush().expect("the peer is there");
        let want = match code.0 {
            8 | 1000 | 1001 | 1006 => refusal(code.0, libc::ENOTSUP),
            1007 => refusal(code.0, libc::EPERM),
            _ => Vec::new(),
        };
        assert_eq!(backend.read_bytes(), want, "{code}");
    }
}
