//! The protocol feature bits of the main channel that decide what is welcome on this one.

use bitflags::bitflags;

/// The virtio feature bit (number 33) that makes IOTLB messages welcome.
pub const VIRTIO_F_ACCESS_PLATFORM: u64 = 1 << 33;

bitflags! {
    /// Protocol features, as GET and SET_PROTOCOL_FEATURES carry them.
    ///
    /// SHMEM is bit 22. Drafts used 20 and then 21, which mean other things today: bits are
    /// never aliased here.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ProtocolFeatures: u64 {
        /// Several queues.
        const MQ = 1 << 0;
        /// The dirty log as a descriptor.
        const LOG_SHMFD = 1 << 1;
        /// RARP after a migration.
        const RARP = 1 << 2;
        /// The need_reply bit of a request is honoured.
        const REPLY_ACK = 1 << 3;
        /// The guest's MTU.
        const MTU = 1 << 4;
        /// The backend request channel exists.
        #[doc(alias = "SLAVE_REQ")]
        const BACKEND_REQ = 1 << 5;
        /// Rings of the other byte order.
        const CROSS_ENDIAN = 1 << 6;
        /// Sessions of a crypto device.
        const CRYPTO_SESSION = 1 << 7;
        /// Postcopy by page faults.
        const PAGEFAULT = 1 << 8;
        /// Config space access and CONFIG_CHANGE_MSG.
        const CONFIG = 1 << 9;
        /// Descriptors on the backend request channel.
        #[doc(alias = "SLAVE_SEND_FD")]
        const BACKEND_SEND_FD = 1 << 10;
        /// VRING_HOST_NOTIFIER_MSG.
        const HOST_NOTIFIER = 1 << 11;
        /// In-flight descriptors in shared memory.
        const INFLIGHT_SHMFD = 1 << 12;
        /// RESET_DEVICE.
        const RESET_DEVICE = 1 << 13;
        /// Kicks, calls and errors as messages.
        const INBAND_NOTIFICATIONS = 1 << 14;
        /// Memory regions one at a time.
        const CONFIGURE_MEM_SLOTS = 1 << 15;
        /// SET_STATUS and GET_STATUS.
        const STATUS = 1 << 16;
        /// Xen's way to map memory.
        const XEN_MMAP = 1 << 17;
        /// SHARED_OBJECT_ADD, REMOVE and LOOKUP.
        const SHARED_OBJECT = 1 << 18;
        /// The backend's state over a descriptor.
        const DEVICE_STATE = 1 << 19;
        /// GET_VRING_BASE with requests in flight.
        const GET_VRING_BASE_INFLIGHT = 1 << 20;
        /// Ring addresses are guest physical.
        const GPA_ADDRESSES = 1 << 21;
        /// SHMEM_MAP and SHMEM_UNMAP.
        const SHMEM = 1 << 22;
        /// crosvm's SHARED_MEMORY_REGIONS of before bit 22; not of the specification.
        #[doc(alias = "SHARED_MEMORY_REGIONS")]
        const LEGACY_SHMEM = 1 << 31;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_gate_messages_have_their_bits() {
        assert_eq!(ProtocolFeatures::REPLY_ACK.bits(), 0x8);
        assert_eq!(ProtocolFeatures::BACKEND_REQ.bits(), 0x20);
        assert_eq!(ProtocolFeatures::CONFIG.bits(), 0x200);
        assert_eq!(ProtocolFeatures::BACKEND_SEND_FD.bits(), 0x400);
        assert_eq!(ProtocolFeatures::HOST_NOTIFIER.bits(), 0x800);
        assert_eq!(ProtocolFeatures::INBAND_NOTIFICATIONS.bits(), 0x4000);
        assert_eq!(ProtocolFeatures::SHARED_OBJECT.bits(), 0x4_0000);
        assert_eq!(ProtocolFeatures::SHMEM.bits(), 0x40_0000);
        assert_eq!(ProtocolFeatures::LEGACY_SHMEM.bits(), 0x8000_0000);
        assert_eq!(VIRTIO_F_ACCESS_PLATFORM, 0x2_0000_0000);
    }
}
