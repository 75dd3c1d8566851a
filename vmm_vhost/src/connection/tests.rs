//! Framing and attribution, with reads cut at every byte.

use base::scm;

use super::*;
use crate::message::RequestCode;
use crate::testing::Canary;
use crate::testing::RawPeer;
use crate::testing::message;

fn connected() -> (RawPeer, Connection) {
    let (ours, theirs) = scm::stream_pair().expect("socket pair");
    (
        RawPeer { socket: theirs },
        Connection::new(ours, Direction::Requests),
    )
}

/// What a frame was: code, payload, number of descriptors, flaw.
type Seen = (u32, Vec<u8>, usize, Option<Flaw>);

/// Takes the frames that are here.
#[track_caller]
fn frames(connection: &mut Connection) -> Vec<Seen> {
    let mut seen = Vec::new();
    while let Some(frame) = connection.next_frame().expect("framing holds") {
        seen.push((
            frame.header.code.0,
            frame.payload.to_vec(),
            frame.descriptors.len(),
            frame.flaw,
        ));
    }
    seen
}

/// Receives and takes until nothing is left.
#[track_caller]
fn drain(connection: &mut Connection) -> Vec<Seen> {
    let mut seen = frames(connection);
    while let Received::Bytes(_) = connection.receive(Wait::Never).expect("the peer is there") {
        seen.extend(frames(connection));
    }
    seen
}

#[test]
fn message_cut_at_any_byte_is_whole_when_its_last_byte_is_in() {
    let bytes = message(9, 0x1, &[7; 40]);
    for cut in 1..bytes.len() {
        let (peer, mut connection) = connected();
        let canary = Canary::new();
        peer.send(&bytes[..cut], &[canary.fd()]);
        assert_eq!(drain(&mut connection), []);
        peer.send(&bytes[cut..], &[]);
        assert_eq!(drain(&mut connection), [(9, vec![7; 40], 1, None)]);
    }
}

#[test]
fn message_a_byte_at_a_time_is_whole_at_the_last() {
    let (peer, mut connection) = connected();
    let bytes = message(9, 0x1, &[7; 40]);
    let (last, rest) = bytes.split_last().expect("not empty");
    for byte in rest {
        peer.send(&[*byte], &[]);
        assert_eq!(drain(&mut connection), []);
    }
    peer.send(&[*last], &[]);
    assert_eq!(drain(&mut connection), [(9, vec![7; 40], 0, None)]);
}

#[test]
fn messages_without_descriptors_come_with_one_read() {
    let (peer, mut connection) = connected();
    for code in 1..=100 {
        peer.send(&message(code, 0x1, &[1; 40]), &[]);
    }
    assert!(matches!(
        connection.receive(Wait::Never),
        Ok(Received::Bytes(5200))
    ));
    let codes: Vec<u32> = frames(&mut connection).iter().map(|seen| seen.0).collect();
    assert_eq!(codes, (1..=100).collect::<Vec<u32>>());
}

#[test]
fn descriptors_go_with_the_last_message_begun_in_their_read() {
    let (peer, mut connection) = connected();
    let canary = Canary::new();
    peer.send(&message(1, 0x1, &[1; 40]), &[]);
    peer.send(&message(2, 0x1, &[2; 40]), &[canary.fd(), canary.fd()]);
    peer.send(&message(3, 0x1, &[3; 40]), &[]);
    peer.send(&message(4, 0x1, &[4; 40]), &[canary.fd()]);
    assert_eq!(
        drain(&mut connection),
        [
            (1, vec![1; 40], 0, None),
            (2, vec![2; 40], 2, None),
            (3, vec![3; 40], 0, None),
            (4, vec![4; 40], 1, None),
        ]
    );
}

#[test]
fn header_and_body_in_two_writes_keep_each_messages_descriptors_apart() {
    let (peer, mut connection) = connected();
    let canary = Canary::new();
    for (code, count) in [(1, 1), (2, 2)] {
        let bytes = message(code, 0x1, &[9; 40]);
        let descriptors = vec![canary.fd(); count];
        peer.send(&bytes[..12], &descriptors);
        peer.send(&bytes[12..], &[]);
    }
    assert_eq!(
        drain(&mut connection),
        [(1, vec![9; 40], 1, None), (2, vec![9; 40], 2, None)]
    );
}

#[test]
fn partial_header_takes_the_descriptors_of_its_first_byte() {
    let (peer, mut connection) = connected();
    let canary = Canary::new();
    let first = message(1, 0x1, &[1; 8]);
    let second = message(2, 0x1, &[2; 8]);
    // The first message and five bytes of the second's header, which carry a descriptor.
    peer.send(&first, &[]);
    peer.send(&second[..5], &[canary.fd()]);
    assert_eq!(drain(&mut connection), [(1, vec![1; 8], 0, None)]);
    peer.send(&second[5..], &[]);
    assert_eq!(drain(&mut connection), [(2, vec![2; 8], 1, None)]);
}

#[test]
fn descriptors_in_the_middle_of_a_message_spoil_it_alone() {
    let bytes = message(1, 0x1, &[1; 8]);
    for cut in 1..bytes.len() {
        let (peer, mut connection) = connected();
        let mut good = Canary::new();
        let mut bad = Canary::new();
        peer.send(&bytes[..cut], &[good.fd()]);
        assert_eq!(drain(&mut connection), []);
        peer.send(&bytes[cut..], &[bad.fd()]);
        peer.send(&message(2, 0x1, &[]), &[]);
        assert_eq!(
            drain(&mut connection),
            [
                (1, vec![1; 8], 0, Some(Flaw::Misplaced)),
                (2, vec![], 0, None)
            ]
        );
        assert!(good.is_closed_elsewhere());
        assert!(bad.is_closed_elsewhere());
    }
}

#[test]
fn descriptors_with_every_byte_are_closed_before_the_message_is_whole() {
    let (peer, mut connection) = connected();
    let bytes = message(1, 0x1, &[1; 8]);
    let (last, rest) = bytes.split_last().expect("not empty");
    let mut canaries = Vec::new();
    for byte in rest {
        let canary = Canary::new();
        peer.send(&[*byte], &[canary.fd()]);
        canaries.push(canary);
        assert_eq!(drain(&mut connection), []);
    }
    for canary in &mut canaries {
        assert!(canary.is_closed_elsewhere());
    }
    peer.send(&[*last], &[]);
    assert_eq!(
        drain(&mut connection),
        [(1, vec![1; 8], 0, Some(Flaw::Misplaced))]
    );
}

#[test]
fn second_read_of_a_message_can_carry_the_next_ones_descriptors() {
    let (peer, mut connection) = connected();
    let mut canary = Canary::new();
    let first = message(1, 0x1, &[1; 8]);
    let second = message(2, 0x1, &[2; 8]);
    peer.send(&first[..15], &[]);
    assert_eq!(drain(&mut connection), []);
    peer.send(&first[15..], &[]);
    peer.send(&second, &[canary.fd()]);
    assert!(matches!(
        connection.receive(Wait::Never),
        Ok(Received::Bytes(25))
    ));
    assert_eq!(
        frames(&mut connection),
        [(1, vec![1; 8], 0, None), (2, vec![2; 8], 1, None)]
    );
    assert!(canary.is_closed_elsewhere());
}

#[test]
fn too_many_descriptors_spoil_their_message_and_are_closed() {
    let (peer, mut connection) = connected();
    let mut canaries: Vec<Canary> = (0..9).map(|_| Canary::new()).collect();
    let descriptors: Vec<_> = canaries.iter().map(|canary| canary.fd()).collect();
    peer.send(&message(1, 0x1, &[]), &descriptors);
    peer.send(&message(2, 0x1, &[]), &[]);
    assert_eq!(
        drain(&mut connection),
        [(1, vec![], 0, Some(Flaw::Truncated)), (2, vec![], 0, None)]
    );
    for canary in &mut canaries {
        assert!(canary.is_closed_elsewhere());
    }
}

#[test]
fn nothing_is_read_before_what_is_here_is_taken() {
    let (peer, mut connection) = connected();
    peer.send(&message(1, 0x1, &[]), &[]);
    assert!(matches!(
        connection.receive(Wait::Never),
        Ok(Received::Bytes(12))
    ));
    peer.send(&message(2, 0x1, &[]), &[]);
    assert!(matches!(
        connection.receive(Wait::Never),
        Ok(Received::Full)
    ));
    assert_eq!(
        drain(&mut connection),
        [(1, vec![], 0, None), (2, vec![], 0, None)]
    );
    assert!(matches!(
        connection.receive(Wait::Never),
        Ok(Received::WouldBlock)
    ));
}

#[test]
fn more_than_the_buffer_holds_goes_through_it() {
    let (peer, mut connection) = connected();
    let mut bytes = Vec::new();
    for code in 0..200 {
        bytes.extend(message(code, 0x1, &[9; 200]));
    }
    peer.send(&bytes, &[]);
    let codes: Vec<u32> = drain(&mut connection).iter().map(|seen| seen.0).collect();
    assert_eq!(codes, (0..200).collect::<Vec<u32>>());
}

#[test]
fn broken_header_stays_and_closes_descriptors_with_the_connection() {
    let (peer, mut connection) = connected();
    let mut canary = Canary::new();
    peer.send(&message(1, 0x13, &[]), &[canary.fd()]);
    connection.receive(Wait::Never).expect("the peer is there");
    let want = FramingError::Version {
        code: RequestCode(1),
        flags: 0x13,
    };
    for _ in 0..2 {
        assert_eq!(connection.next_frame().map(|_| ()), Err(want));
        assert_eq!(connection.has_frame(), Err(want));
    }
    drop(connection);
    assert!(canary.is_closed_elsewhere());
}

#[test]
fn unread_descriptors_close_with_the_connection() {
    let (peer, connection) = connected();
    let mut canary = Canary::new();
    peer.send(&message(1, 0x1, &[]), &[canary.fd()]);
    drop(connection);
    assert!(canary.is_closed_elsewhere());
}

#[test]
fn held_descriptors_close_with_the_connection() {
    let (peer, mut connection) = connected();
    let mut canary = Canary::new();
    peer.send(&message(1, 0x1, &[1])[..12], &[canary.fd()]);
    assert_eq!(drain(&mut connection), []);
    drop(connection);
    assert!(canary.is_closed_elsewhere());
}
