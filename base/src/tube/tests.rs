//! Tests of messages, descriptors and hostile packets over both ends of a tube.

use std::io::IoSlice;
use std::os::fd::OwnedFd;

use proptest::prelude::any;
use proptest::proptest;

use super::*;
use crate::Event;

/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Map {
        offset: u64,
        descriptor: SafeDescriptor,
    },
    Many(Vec<SafeDescriptor>),
    Words(Vec<u64>),
    Text(String),
}

fn pair() -> (Tube, Tube) {
    let (near, far) = Tube::pair().expect("a pair is made");
    for tube in [&near, &far] {
        tube.set_recv_timeout(Some(PATIENCE))
            .expect("takes a timeout");
    }
    (near, far)
}

/// A descriptor to send, and the reading end that sees when the last copy of it is closed.
fn watched() -> (OwnedFd, SafeDescriptor) {
    let (watch, descriptor) = rustix::pipe::pipe().expect("a pipe is made");
    (watch, descriptor.into())
}

/// Asserts that no copy of the descriptor is open any more; an open one would make this `EAGAIN`.
#[track_caller]
fn assert_closed(watch: &OwnedFd) {
    rustix::io::ioctl_fionbio(watch, true).expect("it is open");
    assert_eq!(rustix::io::read(watch, &mut [0; 1]), Ok(0));
}

/// Sends `packet` as it is with `count` copies of a descriptor, and returns what becomes of it at the other end.
#[track_caller]
fn receive_raw<T: DeserializeOwned>(packet: &[u8], count: usize) -> TubeResult<T> {
    let (near, far) = pair();
    let (watch, descriptor) = watched();
    let copies = vec![descriptor.as_fd(); count];
    let sent = scm::send(near.as_fd(), &[IoSlice::new(packet)], &copies, Wait::Block);
    assert_eq!(sent, Ok(packet.len()));
    drop(descriptor);
    let outcome = far.recv::<T>();
    if outcome.is_err() {
        assert_closed(&watch);
    }
    outcome
}

#[test]
fn message_with_descriptor_has_these_bytes() {
    let (near, far) = pair();
    let (_watch, descriptor) = watched();
    near.send(&Request::Map {
        offset: 300,
        descriptor,
    })
    .expect("sends");
    let mut buffer = [0xff; 16];
    let bufs = &mut [std::io::IoSliceMut::new(&mut buffer)];
    let mut descriptors = scm::DescriptorVec::<2>::new();
    let received = scm::recv(far.as_fd(), bufs, &mut descriptors, Wait::Never).expect("receives");
    // The variant, 300 in groups of seven bits, the index of the descriptor.
    assert_eq!(buffer[..received.bytes], [0, 0xac, 0x02, 0]);
    assert_eq!(descriptors.len(), 1);
}

#[test]
fn received_descriptor_is_the_one_that_was_sent() {
    let (near, far) = pair();
    let event = Event::new().expect("an eventfd is made");
    near.send(&event).expect("sends");
    let received = far.recv::<Event>().expect("a message");
    received.signal().expect("signals");
    assert_eq!(
        event.wait_timeout(PATIENCE),
        Ok(crate::EventWaitResult::Signaled)
    );
}

#[test]
fn sending_keeps_the_senders_descriptor_open() {
    let (near, far) = pair();
    let (watch, descriptor) = watched();
    let message = Request::Many(vec![descriptor]);
    near.send(&message).expect("sends");
    drop(far.recv::<Request>().expect("a message"));
    let Request::Many(descriptors) = message else {
        unreachable!("made above")
    };
    rustix::io::write(&descriptors[0], b"x").expect("it is open");
    assert_eq!(rustix::io::read(&watch, &mut [0; 1]), Ok(1));
}

#[test]
fn tube_travels_in_a_tube() {
    let (near, far) = pair();
    let (one, other) = pair();
    near.send(&other).expect("sends");
    let other = far.recv::<Tube>().expect("a tube");
    one.send("hello").expect("sends");
    assert_eq!(other.recv::<String>().expect("a message"), "hello");
}

#[test]
fn descriptor_of_another_kind_is_no_tube() {
    let outcome = receive_raw::<Tube>(&[0], 1);
    assert!(matches!(outcome, Err(TubeError::Decode(_))), "{outcome:?}");

    let (stream, _other) = scm::stream_pair().expect("a pair is made");
    let outcome = Tube::from_descriptor(stream);
    assert!(matches!(outcome, Err(TubeError::NotATube)), "{outcome:?}");
}

#[test]
fn nonblocking_socket_becomes_a_blocking_tube() {
    let (near, _far) = scm::seqpacket_pair().expect("a pair is made");
    fcntl_setfl(&near, OFlags::NONBLOCK).expect("it is open");
    let tube = Tube::try_from(near).expect("it is a tube");
    let flags = fcntl_getfl(&tube).expect("it is open");
    assert!(!flags.contains(OFlags::NONBLOCK));
}

#[test]
fn empty_message_is_not_the_end() {
    let (near, far) = pair();
    near.send(&()).expect("sends");
    near.send(&0u8).expect("sends");
    far.recv::<()>().expect("a message");
    assert_eq!(far.recv::<u8>().expect("a message"), 0);
    drop(near);
    let outcome = far.recv::<()>();
    assert!(
        matches!(outcome, Err(TubeError::Disconnected)),
        "{outcome:?}"
    );
}

#[test]
fn silence_is_a_timeout() {
    let (near, _far) = pair();
    near.set_recv_timeout(Some(Duration::from_millis(1)))
        .expect("takes a timeout");
    let outcome = near.recv::<u32>();
    assert!(matches!(outcome, Err(TubeError::TimedOut)), "{outcome:?}");
}

#[test]
fn peer_that_does_not_read_is_a_timeout() {
    let (near, _far) = pair();
    near.set_send_timeout(Some(Duration::from_millis(1)))
        .expect("takes a timeout");
    let refusal = loop {
        if let Err(error) = near.send(&[0u8; 32]) {
            break error;
        }
    };
    assert!(matches!(refusal, TubeError::TimedOut), "{refusal:?}");
}

#[test]
fn zero_timeout_is_refused() {
    let (near, _far) = pair();
    let outcome = near.set_recv_timeout(Some(Duration::ZERO));
    assert!(
        matches!(outcome, Err(TubeError::SetTimeout(_))),
        "{outcome:?}"
    );
}

#[test]
fn directional_ends_carry_messages_one_way() {
    let (sender, receiver) = Tube::directional_pair().expect("a pair is made");
    sender.send(&7u32).expect("sends");
    assert_eq!(receiver.recv::<u32>().expect("a message"), 7);

    let (near, far) = pair();
    let (sender, receiver) = near.split_to_send_recv().expect("splits");
    sender.send(&8u32).expect("sends");
    assert_eq!(far.recv::<u32>().expect("a message"), 8);
    far.send(&9u32).expect("sends");
    assert_eq!(receiver.recv::<u32>().expect("a message"), 9);
    drop((sender, receiver));
    let outcome = far.recv::<u32>();
    assert!(
        matches!(outcome, Err(TubeError::Disconnected)),
        "{outcome:?}"
    );
}

#[test]
fn longest_packet_passes_and_a_longer_message_is_too_long() {
    let (near, far) = pair();
    // Three bytes of length and one of variant go before the text.
    let text = "x".repeat(MAX_PACKET - 4);
    near.send(&Request::Text(text.clone())).expect("sends");
    let received = far.recv::<Request>().expect("a message");
    assert!(matches!(received, Request::Text(received) if received == text));
    let outcome = near.send(&Request::Text(text + "x"));
    assert!(matches!(outcome, Err(TubeError::TooLong)), "{outcome:?}");
}

#[test]
fn packet_longer_than_the_limit_is_too_long() {
    let outcome = receive_raw::<Request>(&vec![0; MAX_PACKET + 1], 1);
    assert!(matches!(outcome, Err(TubeError::TooLong)), "{outcome:?}");
}

#[test]
fn bytes_after_the_message_are_refused() {
    let outcome = receive_raw::<u8>(&[1, 2, 3], 0);
    assert!(
        matches!(outcome, Err(TubeError::TrailingBytes { count: 2 })),
        "{outcome:?}"
    );
}

#[test]
fn message_cut_short_is_refused_and_its_descriptor_closed() {
    let outcome = receive_raw::<Request>(&[0, 0xac], 1);
    assert!(matches!(outcome, Err(TubeError::Decode(_))), "{outcome:?}");
}

#[track_caller]
fn check_fault(packet: &[u8], descriptors: usize, expected: DescriptorFault) {
    let outcome = receive_raw::<Request>(packet, descriptors);
    assert!(
        matches!(outcome, Err(TubeError::Descriptors(fault)) if fault == expected),
        "{outcome:?}"
    );
}

#[test]
fn missing_descriptor_is_refused() {
    check_fault(
        &[0, 0, 0],
        0,
        DescriptorFault::Missing { index: 0, count: 0 },
    );
    check_fault(
        &[1, 2, 0, 9],
        2,
        DescriptorFault::Missing { index: 9, count: 2 },
    );
    check_fault(
        &[1, 1, 255],
        1,
        DescriptorFault::Missing {
            index: 255,
            count: 1,
        },
    );
}

#[test]
fn descriptor_used_twice_is_refused() {
    check_fault(&[1, 2, 0, 0], 2, DescriptorFault::Reused { index: 0 });
}

#[test]
fn unused_descriptors_are_refused() {
    check_fault(&[1, 1, 1], 3, DescriptorFault::Unused { count: 2 });
    check_fault(&[2, 0], 253, DescriptorFault::Unused { count: 253 });
}

#[test]
fn descriptors_in_any_order_are_accepted() {
    let message = receive_raw::<Request>(&[1, 2, 1, 0], 2).expect("a message");
    assert!(matches!(message, Request::Many(descriptors) if descriptors.len() == 2));
}

#[test]
fn as_many_descriptors_as_a_packet_carries_pass_and_one_more_is_refused() {
    let (near, far) = pair();
    let (_watch, descriptor) = watched();
    let copies = |count| -> Vec<SafeDescriptor> {
        (0..count)
            .map(|_| descriptor.try_clone().expect("duplicates"))
            .collect()
    };
    near.send(&copies(253)).expect("sends");
    assert_eq!(
        far.recv::<Vec<SafeDescriptor>>().expect("a message").len(),
        253
    );
    let outcome = near.send(&copies(254));
    assert!(
        matches!(
            outcome,
            Err(TubeError::Descriptors(DescriptorFault::TooMany))
        ),
        "{outcome:?}"
    );
}

#[test]
fn descriptor_outside_a_tube_does_not_serialise_or_deserialise() {
    let (_watch, descriptor) = watched();
    let encoded = postcard::to_slice(&descriptor, &mut [0; 8]).map(|_| ());
    assert_eq!(encoded, Err(postcard::Error::SerdeSerCustom));
    let decoded = postcard::from_bytes::<SafeDescriptor>(&[0]).map(|_| ());
    assert_eq!(decoded, Err(postcard::Error::SerdeDeCustom));
}

#[test]
fn announced_length_beyond_the_packet_is_refused_without_allocation() {
    // A list of 2^62 words, and a text of 2^62 bytes.
    for variant in [2, 3] {
        let packet = [
            variant, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40,
        ];
        let outcome = receive_raw::<Request>(&packet, 0);
        assert!(matches!(outcome, Err(TubeError::Decode(_))), "{outcome:?}");
    }
}

#[test]
fn tube_goes_on_after_a_packet_that_it_refused() {
    let (near, far) = pair();
    near.send(&[9u8; 3]).expect("sends");
    near.send(&Request::Words(vec![1])).expect("sends");
    let outcome = far.recv::<Request>();
    assert!(matches!(outcome, Err(TubeError::Decode(_))), "{outcome:?}");
    let message = far.recv::<Request>().expect("a message");
    assert!(matches!(message, Request::Words(words) if words == [1]));
}

/// Sends a message of its own while it is being encoded.
struct Inside<'a>(&'a Tube);

impl Serialize for Inside<'_> {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let outcome = self.0.send(&1u8);
        assert!(
            matches!(
                outcome,
                Err(TubeError::Descriptors(DescriptorFault::Nested))
            ),
            "{outcome:?}"
        );
        serializer.serialize_u8(2)
    }
}

#[test]
fn message_inside_a_message_is_refused() {
    let (near, far) = pair();
    near.send(&Inside(&near)).expect("sends");
    assert_eq!(far.recv::<u8>().expect("a message"), 2);
}

proptest! {
    #[test]
    fn any_packet_is_a_message_or_an_error(packet in proptest::collection::vec(any::<u8>(), 1..64), count in 0usize..4) {
        drop(receive_raw::<Request>(&packet, count));
    }
}
