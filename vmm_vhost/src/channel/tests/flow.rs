//! The way of requests through the channel: order, limits, tickets, stalled and gone peers.

use base::Error as Errno;
use base::SafeDescriptor;

use crate::BackendRequest;
use crate::ChannelConfig;
use crate::ChannelError;
use crate::Flush;
use crate::Negotiated;
use crate::Peer;
use crate::Received;
use crate::Refusal;
use crate::Refused;
use crate::RequestChannel;
use crate::message::FramingError;
use crate::message::ProtocolFeatures;
use crate::message::RequestCode;
use crate::testing::Canary;
use crate::testing::RawPeer;
use crate::testing::channel_with;
use crate::testing::everything;
use crate::testing::limited_channel;
use crate::testing::message;
use crate::testing::refusal;
use crate::testing::reply;
use crate::testing::take_all;

const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 0x9, 0, 0, 0, 0, 0, 0, 0];
const CONFIG_CHANGE_UNACKED: [u8; 12] = [2, 0, 0, 0, 0x1, 0, 0, 0, 0, 0, 0, 0];

fn remote() -> (RawPeer, RequestChannel) {
    channel_with(everything(), Peer::Remote)
}

fn limited(max_in_flight: usize) -> (RawPeer, RequestChannel) {
    limited_channel(ChannelConfig {
        negotiated: everything(),
        max_in_flight,
        peer: Peer::Remote,
        has_timeout: false,
        strict: false,
    })
}

/// An unmap at this page with need_reply.
fn unmap(page: u8) -> Vec<u8> {
    let mut payload = [0; 40];
    payload[17] = page << 4;
    payload[24] = 1;
    message(10, 0x9, &payload)
}

#[test]
fn configuration_out_of_range_makes_no_channel() {
    for max in [0, 257] {
        let (socket, _peer) = base::scm::stream_pair().expect("socket pair");
        let config = ChannelConfig {
            max_in_flight: max,
            ..ChannelConfig::default()
        };
        assert!(matches!(
            RequestChannel::new(socket, config),
            Err(ChannelError::InFlight { max: got }) if got == max
        ));
    }
}

#[test]
fn requests_of_one_read_are_taken_and_answered_in_order() {
    let (peer, mut channel) = remote();
    peer.send(&[unmap(1), unmap(2), unmap(3)].concat(), &[]);
    assert!(matches!(channel.receive(), Ok(Received::Bytes(156))));
    let mut tickets = Vec::new();
    while let Some(incoming) = channel.next_request().expect("framing holds") {
        tickets.push(incoming.ticket);
    }
    assert_eq!(channel.in_flight(), 3);
    for (errno, ticket) in [libc::ENXIO, libc::ERANGE, libc::ENOENT]
        .into_iter()
        .zip(tickets)
        .rev()
    {
        channel.complete(ticket, Err(Errno::new(errno)));
    }
    assert_eq!(channel.in_flight(), 0);
    assert!(channel.wants_write());
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert!(!channel.wants_write());
    let answers = [
        refusal(10, libc::ENXIO),
        refusal(10, libc::ERANGE),
        refusal(10, libc::ENOENT),
    ];
    assert_eq!(peer.read_bytes(), answers.concat());
    assert_eq!(channel.stats().writes, 1);
    assert_eq!(channel.stats().reads, 1);
}

#[test]
fn reply_waits_for_the_replies_of_earlier_requests() {
    let (peer, mut channel) = remote();
    peer.send(&[unmap(1), unmap(2)].concat(), &[]);
    let mut taken = take_all(&mut channel);
    let second = taken.pop().expect("two requests");
    let first = taken.pop().expect("two requests");
    channel.complete(second.ticket, Ok(0));
    assert!(!channel.wants_write());
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert_eq!(peer.read_bytes(), [0u8; 0]);
    channel.complete(first.ticket, Err(Errno::new(libc::EEXIST)));
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert_eq!(
        peer.read_bytes(),
        [refusal(10, libc::EEXIST), reply(10, 0)].concat()
    );
}

#[test]
fn refusal_keeps_its_place_between_answers() {
    let (peer, mut channel) = remote();
    let unknown = message(11, 0x9, &[]);
    peer.send(&[unmap(1), unknown, unmap(2)].concat(), &[]);
    let taken = take_all(&mut channel);
    assert_eq!(taken.len(), 2);
    assert!(!channel.wants_write());
    for incoming in taken {
        channel.complete(incoming.ticket, Ok(0));
    }
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert_eq!(
        peer.read_bytes(),
        [reply(10, 0), refusal(11, libc::ENOSYS), reply(10, 0)].concat()
    );
}

#[test]
fn request_without_need_reply_is_carried_out_and_not_answered() {
    let (peer, mut channel) = remote();
    peer.send(&[CONFIG_CHANGE_UNACKED, CONFIG_CHANGE].concat(), &[]);
    for incoming in take_all(&mut channel) {
        channel.complete(incoming.ticket, Err(Errno::new(libc::ENOSYS)));
    }
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert_eq!(peer.read_bytes(), refusal(2, libc::ENOSYS));
    assert_eq!(channel.stats().messages, 2);
    assert_eq!(channel.stats().replies, 1);
}

#[test]
fn need_reply_without_reply_ack_is_not_answered() {
    let negotiated = Negotiated {
        protocol_features: ProtocolFeatures::CONFIG,
        ..Negotiated::default()
    };
    let (peer, mut channel) = channel_with(negotiated, Peer::Remote);
    peer.send(&CONFIG_CHANGE, &[]);
    for incoming in take_all(&mut channel) {
        channel.complete(incoming.ticket, Ok(0));
    }
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert_eq!(peer.read_bytes(), [0u8; 0]);
}

#[test]
fn features_that_arrive_later_open_the_gate() {
    let (peer, mut channel) = channel_with(Negotiated::default(), Peer::Remote);
    peer.send(&CONFIG_CHANGE, &[]);
    assert!(take_all(&mut channel).is_empty());
    channel.set_negotiated(everything());
    peer.send(&CONFIG_CHANGE, &[]);
    assert!(matches!(
        take_all(&mut channel)[..],
        [crate::Incoming {
            request: BackendRequest::ConfigChange,
            ..
        }]
    ));
}

#[test]
fn nothing_is_read_while_too_many_requests_are_in_flight() {
    let (peer, mut channel) = limited(2);
    peer.send(&[unmap(1), unmap(2), unmap(3)].concat(), &[]);
    let mut taken = take_all(&mut channel);
    assert_eq!(taken.len(), 2);
    assert!(!channel.wants_read());
    assert!(!channel.has_message());
    assert!(matches!(channel.receive(), Ok(Received::Full)));

    let first = taken.remove(0);
    channel.complete(first.ticket, Ok(0));
    assert!(!channel.wants_read());
    assert!(channel.wants_write());
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    assert!(channel.wants_read());
    assert!(channel.has_message());
    assert_eq!(take_all(&mut channel).len(), 1);
}

#[test]
fn peer_that_never_reads_stops_its_own_requests_and_costs_bounded_memory() {
    let (peer, mut channel) = limited(256);
    let mut answered = 0_usize;
    loop {
        while let Some(incoming) = channel.next_request().expect("framing holds") {
            channel.complete(incoming.ticket, Ok(0));
            answered += 1;
        }
        let flush = channel.flush().expect("the peer is there");
        if flush == Flush::Blocked && !channel.wants_read() {
            break;
        }
        if channel.receive().expect("the peer is there") == Received::WouldBlock {
            peer.send(&CONFIG_CHANGE, &[]);
        }
    }
    assert!(channel.wants_write());
    assert!(matches!(channel.receive(), Ok(Received::Full)));

    // What was kept goes out when the peer reads.
    let mut replies = Vec::new();
    while replies.len() < answered * 20 {
        replies.extend(peer.read_bytes());
        channel.flush().expect("the peer is there");
    }
    assert_eq!(replies, reply(2, 0).repeat(answered));
    assert!(channel.wants_read());
    assert!(!channel.wants_write());
}

#[test]
fn ticket_of_another_channel_completes_nothing() {
    let (peer, mut channel) = remote();
    let (other_peer, mut other) = remote();
    peer.send(&CONFIG_CHANGE, &[]);
    other_peer.send(&CONFIG_CHANGE, &[]);
    let taken = take_all(&mut channel);
    let foreign = take_all(&mut other);
    for incoming in foreign {
        channel.complete(incoming.ticket, Ok(0));
    }
    assert_eq!(channel.in_flight(), 1);
    assert!(!channel.wants_write());
    for incoming in taken {
        channel.complete(incoming.ticket, Ok(0));
    }
    assert!(channel.wants_write());
}

#[test]
fn descriptor_for_a_request_that_is_no_lookup_is_closed() {
    let (peer, mut channel) = remote();
    peer.send(&CONFIG_CHANGE, &[]);
    let mut canary = Canary::new();
    for incoming in take_all(&mut channel) {
        let descriptor = canary.fd().try_clone_to_owned().expect("a duplicate");
        channel.complete_with_descriptor(incoming.ticket, descriptor.into());
    }
    assert!(canary.is_closed_elsewhere());
    channel.flush().expect("the peer is there");
    assert_eq!(peer.read_bytes(), reply(2, 0));
}

#[test]
fn lookups_among_other_requests_keep_their_order_and_their_descriptors() {
    let (peer, mut channel) = remote();
    let lookup = message(8, 0x1, &[3; 16]);
    peer.send(&[unmap(1), lookup, unmap(2)].concat(), &[]);
    let canary = Canary::new();
    for incoming in take_all(&mut channel) {
        match incoming.request {
            BackendRequest::SharedObjectLookup(_) => {
                let found = canary.fd().try_clone_to_owned().expect("a duplicate");
                channel.complete_with_descriptor(incoming.ticket, SafeDescriptor::from(found));
            }
            _ => channel.complete(incoming.ticket, Ok(0)),
        }
    }
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    let (bytes, descriptors) = peer.read();
    assert_eq!(bytes, [reply(10, 0), reply(8, 0), reply(10, 0)].concat());
    assert_eq!(descriptors.len(), 1);
}

#[test]
fn last_refused_names_code_reason_and_answer() {
    let (peer, mut channel) = remote();
    assert_eq!(channel.last_refused(), None);
    peer.send(&message(11, 0x1, &[]), &[]);
    assert!(take_all(&mut channel).is_empty());
    assert_eq!(
        channel.last_refused(),
        Some(Refused {
            code: RequestCode(11),
            ordinal: 1,
            refusal: Refusal::UnknownCode,
            answered: false,
        })
    );
    peer.send(&unmap(1), &[]);
    for incoming in take_all(&mut channel) {
        channel.complete(incoming.ticket, Err(Errno::new(libc::ENOENT)));
    }
    let refused = channel.last_refused().expect("two were refused");
    assert_eq!(
        refused,
        Refused {
            code: RequestCode::SHMEM_UNMAP,
            ordinal: 2,
            refusal: Refusal::Handler(Errno::new(libc::ENOENT)),
            answered: true,
        }
    );
    assert_eq!(refused.errno(), Errno::new(libc::ENOENT));
    let stats = channel.stats();
    assert_eq!((stats.refused, stats.succeeded), (2, 0));
    assert_eq!(stats.refused_with(Errno::new(libc::ENOENT)), 1);
    assert_eq!(stats.received(RequestCode::SHMEM_UNMAP), 1);
}

#[test]
fn broken_header_ends_the_channel_after_the_requests_before_it() {
    let (peer, mut channel) = remote();
    let broken = [10, 0, 0, 0, 0x2, 0, 0, 0, 40, 0, 0, 0];
    peer.send(&[&unmap(1)[..], &broken].concat(), &[]);
    assert!(matches!(channel.receive(), Ok(Received::Bytes(64))));
    assert!(matches!(channel.next_request(), Ok(Some(_))));
    for _ in 0..2 {
        assert!(matches!(
            channel.next_request(),
            Err(ChannelError::Framing(FramingError::Version {
                code: RequestCode::SHMEM_UNMAP,
                flags: 2
            }))
        ));
    }
    assert!(!channel.wants_read());
    assert!(matches!(channel.receive(), Err(ChannelError::Framing(_))));
}

#[test]
fn peer_that_closes_is_reported_with_what_it_left_unfinished() {
    for (bytes, left) in [(0, 0), (5, 5), (30, 30)] {
        let (peer, mut channel) = remote();
        if bytes > 0 {
            peer.send(&unmap(1)[..bytes], &[]);
            assert!(take_all(&mut channel).is_empty());
        }
        drop(peer);
        assert!(matches!(
            channel.receive(),
            Err(ChannelError::Closed { unfinished }) if unfinished == left
        ));
        assert!(!channel.wants_read());
    }
}

#[test]
fn end_of_the_stream_reads_as_one_line() {
    let clean = ChannelError::Closed { unfinished: 0 };
    assert_eq!(clean.to_string(), "the backend closed the channel");
    let torn = ChannelError::Closed { unfinished: 5 };
    assert_eq!(
        torn.to_string(),
        "the backend closed the channel 5 bytes into a message"
    );
}

#[test]
fn urgent_byte_is_dropped_and_keeps_nobody_awake() {
    let (peer, mut channel) = remote();
    peer.send(&CONFIG_CHANGE, &[]);
    let urgent = rustix::net::send(&peer.socket, &[9], rustix::net::SendFlags::OOB);
    assert_eq!(urgent, Ok(1));
    peer.send(&CONFIG_CHANGE, &[]);
    assert_eq!(take_all(&mut channel).len(), 2);
    let mut ready = [rustix::event::PollFd::new(
        &channel,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec::default();
    assert_eq!(rustix::event::poll(&mut ready, Some(&now)), Ok(0));
}

#[test]
fn requests_of_a_peer_that_closed_are_still_taken() {
    let (peer, mut channel) = remote();
    peer.send(&unmap(1), &[]);
    drop(peer);
    assert!(matches!(channel.receive(), Ok(Received::Bytes(52))));
    let incoming = channel
        .next_request()
        .expect("framing holds")
        .expect("a request");
    channel.complete(incoming.ticket, Ok(0));
    assert!(matches!(
        channel.flush(),
        Err(ChannelError::Closed { unfinished: 0 })
    ));
}

#[test]
fn peer_that_closes_with_unread_replies_is_closed_and_no_failure() {
    let (peer, mut channel) = remote();
    peer.send(&CONFIG_CHANGE, &[]);
    for incoming in take_all(&mut channel) {
        channel.complete(incoming.ticket, Ok(0));
    }
    assert!(matches!(channel.flush(), Ok(Flush::Done)));
    drop(peer);
    assert!(matches!(
        channel.receive(),
        Err(ChannelError::Closed { unfinished: 0 })
    ));
}
