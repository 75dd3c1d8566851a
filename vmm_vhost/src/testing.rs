//! What the tests of this crate share: a peer that sends any bytes with any descriptors, and
//! descriptors that tell when they are closed.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::SafeDescriptor;
use base::scm;
use base::scm::DescriptorVec;
use base::scm::Wait;

use crate::ChannelConfig;
use crate::Incoming;
use crate::Negotiated;
use crate::Peer;
use crate::RequestChannel;
use crate::message::ProtocolFeatures;

/// A backend of raw bytes.
pub(crate) struct RawPeer {
    pub(crate) socket: SafeDescriptor,
}

impl RawPeer {
    /// Sends bytes in one piece, with descriptors on the first.
    #[track_caller]
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let sent = scm::send(
            self.socket.as_fd(),
            &[IoSlice::new(bytes)],
            descriptors,
            Wait::Never,
        );
        assert_eq!(sent, Ok(bytes.len()));
    }

    /// Reads what is there, and the descriptors of the last read that had any.
    pub(crate) fn read(&self) -> (Vec<u8>, Vec<SafeDescriptor>) {
        let mut bytes = vec![0; 8192];
        let mut end = 0;
        let mut last = Vec::new();
        loop {
            let mut descriptors: DescriptorVec<8> = DescriptorVec::new();
            let mut bufs = [IoSliceMut::new(&mut bytes[end..])];
            let received = scm::recv(
                self.socket.as_fd(),
                &mut bufs,
                &mut descriptors,
                Wait::Never,
            );
            match received {
                Ok(received) if received.bytes > 0 => {
                    end += received.bytes;
                    if !descriptors.is_empty() {
                        last = descriptors.into_iter().collect();
                    }
                }
                _ => break,
            }
        }
        bytes.truncate(end);
        (bytes, last)
    }

    /// Reads the bytes that are there.
    pub(crate) fn read_bytes(&self) -> Vec<u8> {
        self.read().0
    }
}

/// A descriptor to send, and the means to see whether every copy of it is closed.
pub(crate) struct Canary {
    sent: Option<SafeDescriptor>,
    watch: SafeDescriptor,
}

impl Canary {
    pub(crate) fn new() -> Canary {
        let (sent, watch) = scm::stream_pair().expect("socket pair");
        Canary {
            sent: Some(sent),
            watch,
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.sent.as_ref().expect("not released").as_fd()
    }

    /// Tells whether this descriptor is a copy of what was sent, by writing through it.
    pub(crate) fn hears(&self, descriptor: BorrowedFd<'_>, tag: u8) -> bool {
        let mut byte = [!tag];
        let sent = scm::send(descriptor, &[IoSlice::new(&[tag])], &[], Wait::Never);
        let mut none: DescriptorVec<1> = DescriptorVec::new();
        let received = scm::recv(
            self.watch.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut none,
            Wait::Never,
        );
        sent.is_ok() && received.is_ok() && byte == [tag]
    }

    /// Closes this side's copy and tells whether it was the last.
    pub(crate) fn is_closed_elsewhere(&mut self) -> bool {
        self.sent = None;
        let mut byte = [0];
        let mut none: DescriptorVec<1> = DescriptorVec::new();
        let received = scm::recv(
            self.watch.as_fd(),
            &mut [IoSliceMut::new(&mut byte)],
            &mut none,
            Wait::Never,
        );
        matches!(received, Ok(received) if received.bytes == 0)
    }
}

/// All that can be negotiated.
pub(crate) fn everything() -> Negotiated {
    Negotiated {
        virtio_features: u64::MAX,
        protocol_features: ProtocolFeatures::all(),
        legacy_shmem: true,
    }
}

/// A channel for which these protocol features were negotiated.
pub(crate) fn channel_with(negotiated: Negotiated, peer: Peer) -> (RawPeer, RequestChannel) {
    limited_channel(ChannelConfig {
        negotiated,
        max_in_flight: 128,
        peer,
        has_timeout: false,
        strict: false,
    })
}

/// A channel of this configuration.
pub(crate) fn limited_channel(config: ChannelConfig) -> (RawPeer, RequestChannel) {
    let (ours, theirs) = scm::stream_pair().expect("socket pair");
    let channel = RequestChannel::new(ours, config).expect("a valid configuration");
    (RawPeer { socket: theirs }, channel)
}

/// Receives what is there and takes what is welcome.
#[track_caller]
pub(crate) fn take_all(channel: &mut RequestChannel) -> Vec<Incoming> {
    let mut taken = Vec::new();
    loop {
        while let Some(incoming) = channel.next_request().expect("framing holds") {
            taken.push(incoming);
        }
        match channel.receive().expect("the peer is there") {
            crate::Received::Bytes(_) => {}
            crate::Received::Full | crate::Received::WouldBlock => return taken,
        }
    }
}

/// A message of these parts, in bytes.
pub(crate) fn message(code: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("a small payload");
    let mut bytes = Vec::new();
    for word in [code, flags, size] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// The reply of this code and value, in bytes.
pub(crate) fn reply(code: u32, value: u64) -> Vec<u8> {
    message(code, 0x5, &value.to_ne_bytes())
}

/// The reply that refuses with this errno, in bytes.
pub(crate) fn refusal(code: u32, errno: i32) -> Vec<u8> {
    reply(code, i64::from(-errno).cast_unsigned())
}
