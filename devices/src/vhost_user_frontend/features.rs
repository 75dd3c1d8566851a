//! Which feature bits are negotiated: what the backend offers, what this crate serves, what the VMM wants.
//!
//! Never aliases a bit: an old peer's own shared memory bit is acknowledged only where the VMM has named it.

use crate::control::ConnectOptions;

/// Virtio feature: the backend speaks of protocol features.
pub const VHOST_USER_F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio feature: addresses go through an IOMMU.
pub const VIRTIO_F_ACCESS_PLATFORM: u64 = 1 << 33;
/// Virtio feature: packed rings.
pub const VIRTIO_F_RING_PACKED: u64 = 1 << 34;

/// Protocol feature: the backend says how many queues it has.
pub const MQ: u64 = 1 << 0;
/// Protocol feature: a request can ask for an ack.
pub const REPLY_ACK: u64 = 1 << 3;
/// Protocol feature: the backend takes a request channel.
pub const BACKEND_REQ: u64 = 1 << 5;
/// Protocol feature: configuration space goes through the main channel.
pub const CONFIG: u64 = 1 << 9;
/// Protocol feature: the backend sends descriptors on the request channel.
pub const BACKEND_SEND_FD: u64 = 1 << 10;
/// Protocol feature: a queue's doorbell can be a page of the backend's.
pub const HOST_NOTIFIER: u64 = 1 << 11;
/// Protocol feature: RESET_DEVICE.
pub const RESET_DEVICE: u64 = 1 << 13;
/// Protocol feature: calls and errors of queues can be messages.
pub const INBAND_NOTIFICATIONS: u64 = 1 << 14;
/// Protocol feature: SET_STATUS and GET_STATUS.
pub const STATUS: u64 = 1 << 16;
/// Protocol feature: objects that devices share.
pub const SHARED_OBJECT: u64 = 1 << 18;
/// Protocol feature: the backend's own state can be moved.
pub const DEVICE_STATE: u64 = 1 << 19;
/// Protocol feature: shared memory regions. Bit 22; the drafts' bits 20 and 21 mean other things today.
pub const SHMEM: u64 = 1 << 22;

/// The protocol features that this crate serves for every VMM.
pub const SUPPORTED: u64 = MQ
    | REPLY_ACK
    | BACKEND_REQ
    | CONFIG
    | BACKEND_SEND_FD
    | RESET_DEVICE
    | INBAND_NOTIFICATIONS
    | STATUS
    | DEVICE_STATE
    | SHMEM;

/// crosvm's own bit for shared memory regions, before there was a standard one.
pub(super) const CROSVM_SHARED_MEMORY_REGIONS: u8 = 31;

/// The protocol features to acknowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) bits: u64,
    /// The legacy bit, if it is among them.
    pub(super) legacy_shmem: Option<u8>,
}

/// Chooses from the protocol features `offered` by the backend.
///
/// The legacy bit is taken only if the standard one is not to be had.
pub(super) fn choose_protocol(offered: u64, options: &ConnectOptions) -> Choice {
    let bits = offered & supported(options) & options.protocol_features;
    let legacy_shmem = options.legacy_shmem_bit.filter(|bit| {
        let mask = 1_u64.checked_shl(u32::from(*bit)).unwrap_or(0);
        bits & SHMEM == 0 && offered & mask != 0
    });
    Choice {
        bits: bits | legacy_shmem.map_or(0, |bit| 1 << bit),
        legacy_shmem,
    }
}

/// The virtio features to offer to the driver, of those that the backend has.
pub(super) fn offer_virtio(backend: u64, options: &ConnectOptions) -> u64 {
    // Packed rings are not served, and addresses are not translated by a VMM that has no IOMMU.
    let withheld = VIRTIO_F_RING_PACKED
        | VHOST_USER_F_PROTOCOL_FEATURES
        | if_wanted(!options.iommu, VIRTIO_F_ACCESS_PLATFORM);
    backend & !withheld & options.virtio_features
}

/// What is served depends on what the VMM has at the other end.
fn supported(options: &ConnectOptions) -> u64 {
    SUPPORTED
        | if_wanted(options.notifier_region.is_some(), HOST_NOTIFIER)
        | if_wanted(options.shared_objects, SHARED_OBJECT)
}

fn if_wanted(wanted: bool, bit: u64) -> u64 {
    if wanted { bit } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(legacy_shmem_bit: Option<u8>) -> ConnectOptions {
        ConnectOptions {
            legacy_shmem_bit,
            ..ConnectOptions::default()
        }
    }

    #[test]
    fn choose_protocol_takes_the_standard_bit_only() {
        let offered = SHMEM | BACKEND_REQ | 1 << 20 | 1 << 21 | 1 << 31;
        assert_eq!(
            choose_protocol(offered, &options(Some(31))),
            Choice {
                bits: SHMEM | BACKEND_REQ,
                legacy_shmem: None
            }
        );
    }

    #[test]
    fn choose_protocol_without_the_standard_bit_takes_the_one_that_is_named() {
        let offered = BACKEND_REQ | 1 << 21 | 1 << 31;
        assert_eq!(
            choose_protocol(offered, &options(Some(31))),
            Choice {
                bits: BACKEND_REQ | 1 << 31,
                legacy_shmem: Some(31)
            }
        );
    }

    #[test]
    fn choose_protocol_does_not_guess_a_legacy_bit() {
        let offered = BACKEND_REQ | 1 << 20 | 1 << 21 | 1 << 31;
        assert_eq!(
            choose_protocol(offered, &options(None)),
            Choice {
                bits: BACKEND_REQ,
                legacy_shmem: None
            }
        );
    }

    #[test]
    fn choose_protocol_with_a_bit_beyond_64_takes_none() {
        assert_eq!(
            choose_protocol(u64::MAX, &options(Some(200))).legacy_shmem,
            None
        );
    }

    #[test]
    fn choose_protocol_keeps_to_what_the_vmm_wants() {
        let options = ConnectOptions {
            protocol_features: !CONFIG,
            ..ConnectOptions::default()
        };
        let choice = choose_protocol(CONFIG | MQ, &options);
        assert_eq!(choice.bits, MQ);
    }

    #[test]
    fn offer_virtio_withholds_packed_rings_and_the_iommu() {
        let backend = VIRTIO_F_RING_PACKED | VIRTIO_F_ACCESS_PLATFORM | 1 << 32 | 1 << 30 | 1;
        assert_eq!(offer_virtio(backend, &options(None)), 1 << 32 | 1);
    }

    #[test]
    fn what_needs_the_vmm_is_taken_only_if_the_vmm_has_it() {
        let offered = HOST_NOTIFIER | SHARED_OBJECT;
        assert_eq!(choose_protocol(offered, &options(None)).bits, 0);
        let options = ConnectOptions {
            iommu: true,
            shared_objects: true,
            notifier_region: Some(200),
            ..ConnectOptions::default()
        };
        assert_eq!(choose_protocol(offered, &options).bits, offered);
        assert_eq!(
            offer_virtio(VIRTIO_F_ACCESS_PLATFORM, &options),
            VIRTIO_F_ACCESS_PLATFORM
        );
    }
}
