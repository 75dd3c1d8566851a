//! The table of open descriptors is the same after a channel as before it, whatever came over it.
//!
//! One test alone in its process, since it counts what the whole process has open.

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::os::fd::BorrowedFd;

    use base::SafeDescriptor;
    use base::scm;
    use base::scm::Wait;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use vmm_vhost::ChannelConfig;
    use vmm_vhost::Negotiated;
    use vmm_vhost::Peer;
    use vmm_vhost::Received;
    use vmm_vhost::RequestChannel;
    use vmm_vhost::message::ProtocolFeatures;

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd")
            .expect("proc is mounted")
            .count()
    }

    #[derive(Clone, Debug)]
    struct Piece {
        code: u32,
        payload: usize,
        cut: usize,
        descriptors: usize,
        read: bool,
    }

    fn piece() -> impl Strategy<Value = Piece> {
        (
            prop::sample::select(vec![2, 3, 8, 9, 9, 9, 10, 1000, 1002, 1006, 1007, 11]),
            prop::sample::select(vec![0, 16, 24, 32, 40, 40, 64, 256]),
            0..=300_usize,
            prop::sample::select(vec![0, 1, 1, 1, 2, 8, 9, 253]),
            any::<bool>(),
        )
            .prop_map(|(code, payload, cut, descriptors, read)| Piece {
                code,
                payload,
                cut,
                descriptors,
                read,
            })
    }

    fn message(piece: &Piece) -> Vec<u8> {
        let size = u32::try_from(piece.payload).expect("small");
        let mut bytes: Vec<u8> = [piece.code, 0x9, size]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        bytes.resize(12 + piece.payload, 0);
        // A length of one page where maps of both dialects have it.
        for at in [12 + 24, 12 + 25] {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 0x10;
            }
        }
        bytes
    }

    fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        if !bytes.is_empty() {
            // A full socket takes nothing, which is as good as anything here.
            let _ = scm::send(socket, &[IoSlice::new(bytes)], descriptors, Wait::Never);
        }
    }

    fn run(pieces: &[Piece], sent: BorrowedFd<'_>) {
        let (ours, peer): (SafeDescriptor, SafeDescriptor) =
            scm::stream_pair().expect("socket pair");
        let config = ChannelConfig {
            negotiated: Negotiated {
                virtio_features: u64::MAX,
                protocol_features: ProtocolFeatures::all(),
                legacy_shmem: true,
            },
            max_in_flight: 8,
            peer: Peer::InProcess,
            has_timeout: false,
            strict: false,
        };
        let mut channel = RequestChannel::new(ours, config).expect("a valid configuration");
        let mut taken = Vec::new();
        for piece in pieces {
            let bytes = message(piece);
            let (first, rest) = bytes.split_at(piece.cut.min(bytes.len()));
            send(peer.as_fd(), first, &vec![sent; piece.descriptors]);
            send(peer.as_fd(), rest, &[]);
            if !piece.read {
                continue;
            }
            loop {
                while let Ok(Some(incoming)) = channel.next_request() {
                    taken.push(incoming);
                }
                match channel.receive() {
                    Ok(Received::Bytes(_)) => {}
                    _ => break,
                }
            }
            // Every other one is completed, the rest is lost with its ticket.
            if let Some(incoming) = taken.pop() {
                channel.complete(incoming.ticket, Ok(0));
            }
            let _ = channel.flush();
        }
    }

    #[test]
    fn channel_leaves_no_descriptor_open() {
        let sent = File::open("/proc/self/exe").expect("this program");
        let config = ProptestConfig {
            cases: 300,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        TestRunner::new(config)
            .run(&prop::collection::vec(piece(), 1..20), |pieces| {
                let before = open_descriptors();
                run(&pieces, sent.as_fd());
                prop_assert_eq!(open_descriptors(), before);
                Ok(())
            })
            .expect("no descriptor is left open");
    }
}
