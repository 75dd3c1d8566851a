//! IOTLB messages of the main channel: what the frontend tells the backend of translations.
//!
//! # Source
//! vhost-user specification, "An IOTLB message", "VHOST_USER_IOTLB_MSG".

use base::Protection;

use crate::control::IotlbEntry;

/// The code of an IOTLB message on the main channel.
pub(crate) const IOTLB_MSG: u32 = 22;

const VERSION: u32 = 1;
const PAYLOAD_BYTES: u32 = 32;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// A whole message that gives the backend a translation and asks for no ack.
pub(crate) fn update(entry: &IotlbEntry) -> [u8; 44] {
    let mut message = [0; 44];
    let (header, rest) = message.split_at_mut(12);
    let words = [IOTLB_MSG, VERSION, PAYLOAD_BYTES];
    for (bytes, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *bytes = word.to_ne_bytes();
    }
    let access = permission(entry.access);
    rest.copy_from_slice(&payload(
        entry.iova,
        entry.size,
        entry.guest_address,
        access,
        UPDATE,
    ));
    message
}

/// The payload of a message that takes translations away.
pub(crate) fn invalidation(iova: u64, size: u64) -> [u8; 32] {
    payload(iova, size, 0, 0, INVALIDATE)
}

fn payload(iova: u64, size: u64, address: u64, permission: u8, kind: u8) -> [u8; 32] {
    let mut payload = [0; 32];
    let (words, rest) = payload.split_at_mut(24);
    let values = [iova, size, address];
    for (bytes, value) in words.as_chunks_mut::<8>().0.iter_mut().zip(values) {
        *bytes = value.to_ne_bytes();
    }
    rest[0] = permission;
    rest[1] = kind;
    payload
}

fn permission(access: Protection) -> u8 {
    let read = u8::from(access.allows(&Protection::read()));
    let write = u8::from(access.allows(&Protection::write()));
    read | write << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn update_has_the_bytes_of_the_specification() {
        let message = update(&IotlbEntry {
            iova: 0x1000,
            size: 0x2000,
            guest_address: 0x3000,
            access: Protection::read_write(),
        });
        let want = [
            22, 0, 0, 0, 1, 0, 0, 0, 32, 0, 0, 0, // header
            0, 0x10, 0, 0, 0, 0, 0, 0, // iova
            0, 0x20, 0, 0, 0, 0, 0, 0, // size
            0, 0x30, 0, 0, 0, 0, 0, 0, // address
            3, 2, 0, 0, 0, 0, 0, 0, // permission, type, padding
        ];
        assert_eq!(message, want);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn invalidation_has_the_bytes_of_the_specification() {
        let want = [
            0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, // iova, size
            0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, // address, permission, type
        ];
        assert_eq!(invalidation(0x1000, 0x2000), want);
    }

    #[test]
    fn permission_tells_read_from_write() {
        assert_eq!(permission(Protection::read()), 1);
        assert_eq!(permission(Protection::read_write()), 3);
    }
}
