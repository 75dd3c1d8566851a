//! Tests of the socket calls, with both ends in one process.

use std::fs::File;
use std::os::fd::AsFd;

use super::*;
use crate::AsRawDescriptor;

fn null() -> File {
    File::open("/dev/null").expect("/dev/null opens")
}

fn receive<const N: usize>(
    socket: &SafeDescriptor,
    room: usize,
    wait: Wait,
) -> Result<(Received, Vec<u8>, DescriptorVec<N>)> {
    let mut buffer = vec![0; room];
    let mut descriptors = DescriptorVec::new();
    let bufs = &mut [IoSliceMut::new(&mut buffer)];
    let received = recv(socket.as_fd(), bufs, &mut descriptors, wait)?;
    buffer.truncate(received.bytes);
    Ok((received, buffer, descriptors))
}

#[test]
fn bytes_and_descriptors_arrive_together() {
    let (near, far) = stream_pair().expect("a pair is made");
    let file = null();
    let bufs = [IoSlice::new(b"he"), IoSlice::new(b"llo")];
    let sent = send(
        near.as_fd(),
        &bufs,
        &[file.as_fd(), near.as_fd()],
        Wait::Block,
    );
    assert_eq!(sent, Ok(5));

    let (received, bytes, descriptors) = receive::<8>(&far, 64, Wait::Block).expect("receives");
    assert_eq!(
        received,
        Received {
            bytes: 5,
            truncated: false,
            descriptors_truncated: false
        }
    );
    assert_eq!(bytes, b"hello");
    assert_eq!(descriptors.len(), 2);
    for descriptor in &descriptors {
        let flags = rustix::io::fcntl_getfd(descriptor).expect("it is open");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
}

#[test]
fn empty_socket_is_eagain_without_waiting() {
    let (near, _far) = stream_pair().expect("a pair is made");
    let outcome = receive::<1>(&near, 8, Wait::Never);
    assert_eq!(outcome.map(|_| ()), Err(Error::new(libc::EAGAIN)));
}

#[test]
fn full_socket_is_eagain_without_waiting() {
    let (near, _far) = seqpacket_pair().expect("a pair is made");
    let refusal = loop {
        if let Err(error) = send(near.as_fd(), &[IoSlice::new(&[0; 4096])], &[], Wait::Never) {
            break error;
        }
    };
    assert_eq!(refusal, Error::new(libc::EAGAIN));
}

#[test]
fn closed_peer_is_zero_bytes_for_recv_and_epipe_for_send() {
    let (near, far) = stream_pair().expect("a pair is made");
    drop(far);
    let (received, _, _) = receive::<1>(&near, 8, Wait::Block).expect("receives");
    assert_eq!(received.bytes, 0);
    let sent = send(near.as_fd(), &[IoSlice::new(b"x")], &[], Wait::Block);
    assert_eq!(sent, Err(Error::new(libc::EPIPE)));
}

#[test]
fn packet_longer_than_the_buffers_is_truncated() {
    let (near, far) = seqpacket_pair().expect("a pair is made");
    let sent = send(near.as_fd(), &[IoSlice::new(b"hello")], &[], Wait::Block);
    assert_eq!(sent, Ok(5));
    let (received, bytes, _) = receive::<1>(&far, 2, Wait::Block).expect("receives");
    assert!(received.truncated);
    assert_eq!(bytes, b"he");
}

/// Sends as many descriptors as `sent` to a vector of `N` and returns how many arrived, and whether more are reported.
fn received_of<const N: usize>(sent: usize) -> (usize, bool) {
    let (near, far) = stream_pair().expect("a pair is made");
    let file = null();
    let descriptors = vec![file.as_fd(); sent];
    let outcome = send(
        near.as_fd(),
        &[IoSlice::new(b"x")],
        &descriptors,
        Wait::Block,
    );
    assert_eq!(outcome, Ok(1));
    let (received, _, kept) = receive::<N>(&far, 8, Wait::Block).expect("receives");
    (kept.len(), received.descriptors_truncated)
}

#[test]
fn surplus_descriptors_are_reported() {
    assert_eq!(received_of::<0>(0), (0, false));
    assert_eq!(received_of::<0>(1), (0, true));
    assert_eq!(received_of::<1>(1), (1, false));
    assert_eq!(received_of::<1>(2), (1, true));
    assert_eq!(received_of::<2>(3), (2, true));
    assert_eq!(received_of::<8>(253), (8, true));
    assert_eq!(received_of::<253>(253), (253, false));
}

#[test]
fn surplus_descriptors_are_closed() {
    let (end, other_end) = rustix::pipe::pipe().expect("a pipe is made");
    let (near, far) = stream_pair().expect("a pair is made");
    let descriptors = [other_end.as_fd(), other_end.as_fd(), other_end.as_fd()];
    let sent = send(
        near.as_fd(),
        &[IoSlice::new(b"x")],
        &descriptors,
        Wait::Block,
    );
    assert_eq!(sent, Ok(1));
    let (_, _, kept) = receive::<1>(&far, 8, Wait::Block).expect("receives");
    drop((kept, other_end));
    // The end of file comes when the last writing end is closed.
    assert_eq!(rustix::io::read(&end, &mut [0; 1]), Ok(0));
}

#[test]
fn too_many_descriptors_to_send_are_einval() {
    let (near, _far) = stream_pair().expect("a pair is made");
    let file = null();
    let descriptors = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    let sent = send(
        near.as_fd(),
        &[IoSlice::new(b"x")],
        &descriptors,
        Wait::Block,
    );
    assert_eq!(sent, Err(Error::new(libc::EINVAL)));
}

#[test]
fn descriptors_are_appended() {
    let (near, far) = stream_pair().expect("a pair is made");
    let file = null();
    let mut kept = DescriptorVec::<2>::new();
    kept.push(file.try_clone().expect("duplicates").into());
    let first = kept[0].as_raw_descriptor();
    let sent = send(
        near.as_fd(),
        &[IoSlice::new(b"x")],
        &[file.as_fd()],
        Wait::Block,
    );
    assert_eq!(sent, Ok(1));
    let mut buffer = [0; 1];
    let bufs = &mut [IoSliceMut::new(&mut buffer)];
    let received = recv(far.as_fd(), bufs, &mut kept, Wait::Block).expect("receives");
    assert!(!received.descriptors_truncated);
    assert_eq!(kept.len(), 2);
    assert_eq!(kept[0].as_raw_descriptor(), first);
}
