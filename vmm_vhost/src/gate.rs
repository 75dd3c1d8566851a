//! What the two ends agreed on, and what follows from it: which codes are welcome, which requests
//! are answered.

use crate::message::Gate;
use crate::message::Header;
use crate::message::MessageRules;
use crate::message::ProtocolFeatures;
use crate::message::ReplyRule;
use crate::message::VIRTIO_F_ACCESS_PLATFORM;
use crate::refusal::Refusal;

/// Where the backend lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peer {
    /// In a process of its own: a pointer of it means nothing here.
    #[default]
    Remote,
    /// On a thread of the VMM's process.
    InProcess,
}

/// What was negotiated on the main channel.
///
/// BACKEND_SEND_FD is not asked for: crosvm's backends don't offer it and send descriptors all
/// the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// The virtio features that the driver acknowledged.
    pub virtio_features: u64,
    /// The protocol features that the frontend set.
    pub protocol_features: ProtocolFeatures,
    /// A device option named another bit as crosvm's old shared memory feature, and the peer has
    /// it. Opens what bit 31 opens: 1000, 1001 and 1006.
    pub legacy_shmem: bool,
}

impl Negotiated {
    /// Tells whether a request with this header gets a reply.
    pub fn reply_due(&self, header: &Header) -> bool {
        match header.code.reply_rule() {
            ReplyRule::Always => true,
            ReplyRule::Ack => {
                header.need_reply() && self.protocol_features.contains(ProtocolFeatures::REPLY_ACK)
            }
        }
    }

    /// Checks that messages with these rules are welcome from this peer.
    ///
    /// # Errors
    /// [`Refusal::NotNegotiated`], [`Refusal::NotInProcess`] or [`Refusal::Unsupported`], by the
    /// gate.
    pub fn admit(&self, rules: &MessageRules, peer: Peer) -> Result<(), Refusal> {
        let protocol = self.protocol_features;
        let open = match rules.gate {
            Gate::AccessPlatform => self.virtio_features & VIRTIO_F_ACCESS_PLATFORM != 0,
            Gate::Feature(feature) => protocol.contains(feature),
            Gate::ShmemOrLegacy => {
                self.legacy_shmem
                    || protocol.intersects(ProtocolFeatures::SHMEM | ProtocolFeatures::LEGACY_SHMEM)
            }
            Gate::InProcess => {
                return match peer {
                    Peer::InProcess => Ok(()),
                    Peer::Remote => Err(Refusal::NotInProcess),
                };
            }
            Gate::Never => return Err(Refusal::Unsupported),
        };
        if open {
            Ok(())
        } else {
            Err(Refusal::NotNegotiated(rules.gate))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::CODES;
    use crate::message::RequestCode;

    fn negotiated(protocol_features: ProtocolFeatures) -> Negotiated {
        Negotiated {
            protocol_features,
            ..Negotiated::default()
        }
    }

    /// The codes that are welcome from a peer.
    fn welcome(negotiated: Negotiated, peer: Peer) -> Vec<u32> {
        CODES
            .into_iter()
            .filter(|code| {
                let rules = code.rules().expect("a code of the table has rules");
                negotiated.admit(rules, peer) == Ok(())
            })
            .map(|code| code.0)
            .collect()
    }

    #[test]
    fn nothing_negotiated_welcomes_nothing() {
        assert_eq!(
            welcome(Negotiated::default(), Peer::Remote),
            Vec::<u32>::new()
        );
    }

    #[test]
    fn each_feature_opens_its_own_codes() {
        for (feature, codes) in [
            (ProtocolFeatures::CONFIG, &[2][..]),
            (ProtocolFeatures::HOST_NOTIFIER, &[3]),
            (ProtocolFeatures::INBAND_NOTIFICATIONS, &[4, 5]),
            (ProtocolFeatures::SHARED_OBJECT, &[6, 7, 8]),
            (ProtocolFeatures::SHMEM, &[9, 10, 1000, 1001, 1006]),
            (ProtocolFeatures::LEGACY_SHMEM, &[1000, 1001, 1006]),
            (ProtocolFeatures::BACKEND_SEND_FD, &[]),
            (ProtocolFeatures::REPLY_ACK, &[]),
        ] {
            assert_eq!(welcome(negotiated(feature), Peer::Remote), codes);
        }
    }

    #[test]
    fn draft_bits_of_shmem_open_nothing() {
        let drafts = ProtocolFeatures::GET_VRING_BASE_INFLIGHT | ProtocolFeatures::GPA_ADDRESSES;
        assert_eq!(welcome(negotiated(drafts), Peer::Remote), Vec::<u32>::new());
    }

    #[test]
    fn legacy_option_opens_what_bit_31_opens() {
        let legacy = Negotiated {
            legacy_shmem: true,
            ..Negotiated::default()
        };
        assert_eq!(welcome(legacy, Peer::Remote), [1000, 1001, 1006]);
    }

    #[test]
    fn access_platform_opens_iotlb() {
        let platform = Negotiated {
            virtio_features: 1 << 33,
            ..Negotiated::default()
        };
        assert_eq!(welcome(platform, Peer::Remote), [1]);
    }

    #[test]
    fn external_map_is_for_in_process_backends_whatever_was_negotiated() {
        assert_eq!(welcome(Negotiated::default(), Peer::InProcess), [1007]);
        let rules = RequestCode::EXTERNAL_MAP.rules().expect("known");
        assert_eq!(
            negotiated(ProtocolFeatures::all()).admit(rules, Peer::Remote),
            Err(Refusal::NotInProcess)
        );
    }

    #[test]
    fn draft_codes_are_never_welcome() {
        let all = Negotiated {
            virtio_features: u64::MAX,
            protocol_features: ProtocolFeatures::all(),
            legacy_shmem: true,
        };
        assert_eq!(
            welcome(all, Peer::InProcess),
            [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1000, 1001, 1006, 1007]
        );
    }

    #[test]
    fn reply_is_due_by_the_ack_rule_or_always() {
        let acks = negotiated(ProtocolFeatures::REPLY_ACK);
        let none = Negotiated::default();
        let due = |negotiated: Negotiated, code: RequestCode, need_reply: bool| {
            negotiated.reply_due(&Header::request(code, 0, need_reply))
        };
        assert!(due(acks, RequestCode::SHMEM_MAP, true));
        assert!(!due(acks, RequestCode::SHMEM_MAP, false));
        assert!(!due(none, RequestCode::SHMEM_MAP, true));
        assert!(due(acks, RequestCode(11), true));
        assert!(!due(acks, RequestCode(11), false));
        for code in [8, 1000, 1001, 1006, 1007].map(RequestCode) {
            assert!(due(none, code, false));
        }
    }
}
