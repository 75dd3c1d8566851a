//! The request channel's bytes, cut anywhere, with descriptors anywhere.

use std::io::IoSlice;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use base::scm;
use base::scm::Wait;
use vmm_vhost::ChannelConfig;
use vmm_vhost::Negotiated;
use vmm_vhost::Peer;
use vmm_vhost::Received;
use vmm_vhost::RequestChannel;
use vmm_vhost::message::ProtocolFeatures;

use crate::leak::Sentinel;

/// Bytes of the stream that are looked at.
const MOST: usize = 4096;

/// What came of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Each request that was handed out.
    requests: Vec<String>,
    refused: u64,
    /// What the peer was answered.
    replies: Vec<u8>,
    end: Option<String>,
}

/// The first byte says after how many bytes the stream is cut each time, the second which of the first eight pieces carry
/// descriptors; the rest is the stream.
///
/// However it is cut, the same requests come out of it, the same are refused, and the peer is answered the same. Descriptors
/// are never leaked. At most as many requests are in flight as was configured.
///
/// # Panics
/// If one of these is not so.
pub fn wire(data: &[u8]) {
    let Some((&[cut, mask], stream)) = data.split_first_chunk() else {
        return;
    };
    let stream = &stream[..stream.len().min(MOST)];
    let cut = usize::from(cut).max(1);
    let whole = feed(stream, stream.len().max(1), 0);
    let pieces = feed(stream, cut, 0);
    assert_eq!(whole, pieces, "cut after each {cut} bytes");
    feed(stream, cut, mask);
}

fn feed(stream: &[u8], cut: usize, mask: u8) -> Outcome {
    let sentinel = Sentinel::new();
    let (ours, theirs) = scm::stream_pair().expect("a pair");
    let mut theirs = UnixStream::from(OwnedFd::from(theirs));
    let mut channel = RequestChannel::new(
        ours,
        ChannelConfig {
            negotiated: Negotiated {
                virtio_features: 1 << 33,
                protocol_features: ProtocolFeatures::all(),
                legacy_shmem: true,
            },
            max_in_flight: 16,
            peer: Peer::Remote,
            has_timeout: false,
            strict: true,
        },
    )
    .expect("a channel");
    let mut requests = Vec::new();
    let mut end = None;
    for (place, piece) in stream.chunks(cut).enumerate() {
        let carries = place < 8 && mask & (1 << place) != 0;
        let descriptors = vec![sentinel.descriptor(); if carries { place + 1 } else { 0 }];
        let sent = scm::send(
            theirs.as_fd(),
            &[IoSlice::new(piece)],
            &descriptors,
            Wait::Never,
        );
        assert_eq!(sent, Ok(piece.len()), "the socket has room");
        end = take(&mut channel, &mut requests);
        if end.is_some() {
            break;
        }
    }
    let refused = channel.stats().refused;
    drop(channel);
    let mut replies = Vec::new();
    // A reset follows where the channel had bytes left that it did not read; what was answered comes first.
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = theirs.read(&mut buffer) {
        replies.extend_from_slice(&buffer[..count]);
    }
    drop(theirs);
    sentinel.assert_not_leaked();
    Outcome {
        requests,
        refused,
        replies,
        end,
    }
}

/// Takes all requests that are there, completes each, and returns why the channel ended if it did.
fn take(channel: &mut RequestChannel, requests: &mut Vec<String>) -> Option<String> {
    loop {
        match channel.receive() {
            Ok(Received::Bytes(_) | Received::Full) => {}
            Ok(Received::WouldBlock) => return None,
            Err(error) => return Some(error.to_string()),
        }
        loop {
            match channel.next_request() {
                Ok(Some(incoming)) => {
                    assert!(channel.in_flight() <= 16);
                    requests.push(format!("{:?}", incoming.request));
                    channel.complete(incoming.ticket, Ok(0));
                }
                Ok(None) => break,
                Err(error) => {
                    // What was complete before it is answered.
                    let _ = channel.flush();
                    return Some(error.to_string());
                }
            }
            channel.flush().expect("the socket has room");
        }
        channel.flush().expect("the socket has room");
    }
}
