//! Request codes, and one table with what is fixed about each: size, descriptors, gate, reply.
//!
//! The table is the whole of what differs between messages before their fields are looked at;
//! whoever adds a message adds a line here and an arm in `request.rs`.

use std::fmt;

use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::message::CrosvmMapPayload;
use crate::message::CrosvmUnmapPayload;
use crate::message::ExternalMapPayload;
use crate::message::FsPayload;
use crate::message::GpuMapPayload;
use crate::message::IotlbPayload;
use crate::message::MmapPayload;
use crate::message::ProtocolFeatures;
use crate::message::SharedObjectPayload;
use crate::message::VringAreaPayload;
use crate::message::VringStatePayload;

/// The code of a request from the backend. Open: any number can arrive.
#[doc(alias = "SlaveReq")]
#[doc(alias = "BackendReq")]
#[repr(transparent)]
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct RequestCode(pub u32);

impl RequestCode {
    /// A miss or an access failure in the backend's IOTLB.
    pub const IOTLB: RequestCode = RequestCode(1);
    /// The config space has changed.
    pub const CONFIG_CHANGE: RequestCode = RequestCode(2);
    /// A page of the backend's doorbell for one queue.
    pub const VRING_HOST_NOTIFIER: RequestCode = RequestCode(3);
    /// A queue's used buffers, in band.
    pub const VRING_CALL: RequestCode = RequestCode(4);
    /// A queue's error, in band.
    pub const VRING_ERR: RequestCode = RequestCode(5);
    /// A shared object is offered under a UUID.
    pub const SHARED_OBJECT_ADD: RequestCode = RequestCode(6);
    /// A shared object is withdrawn.
    pub const SHARED_OBJECT_REMOVE: RequestCode = RequestCode(7);
    /// The descriptor behind a UUID is asked for.
    pub const SHARED_OBJECT_LOOKUP: RequestCode = RequestCode(8);
    /// Map a descriptor into a shared memory region.
    pub const SHMEM_MAP: RequestCode = RequestCode(9);
    /// Remove a mapping.
    pub const SHMEM_UNMAP: RequestCode = RequestCode(10);
    /// SHMEM_MAP of crosvm until 2025.
    pub const CROSVM_SHMEM_MAP: RequestCode = RequestCode(1000);
    /// SHMEM_UNMAP of crosvm until 2025.
    pub const CROSVM_SHMEM_UNMAP: RequestCode = RequestCode(1001);
    /// FS_MAP of an abandoned draft.
    pub const FS_MAP: RequestCode = RequestCode(1002);
    /// FS_UNMAP of an abandoned draft.
    pub const FS_UNMAP: RequestCode = RequestCode(1003);
    /// FS_SYNC of an abandoned draft.
    pub const FS_SYNC: RequestCode = RequestCode(1004);
    /// FS_IO of an abandoned draft.
    pub const FS_IO: RequestCode = RequestCode(1005);
    /// Map a Vulkan allocation.
    pub const GPU_MAP: RequestCode = RequestCode(1006);
    /// Map memory of the VMM's own process.
    pub const EXTERNAL_MAP: RequestCode = RequestCode(1007);

    /// What is fixed about messages of this code; `None` for a code that nobody knows.
    pub fn rules(self) -> Option<&'static MessageRules> {
        self.index().and_then(|index| RULES.get(index))
    }

    /// The place of this code in [`CODES`]; `None` for a code that nobody knows.
    pub fn index(self) -> Option<usize> {
        let index = match self.0 {
            1..=10 => self.0 - 1,
            1000..=1007 => self.0 - 990,
            _ => return None,
        };
        usize::try_from(index).ok()
    }

    /// The name by the specification, without its prefix; `None` for a code that nobody knows.
    pub fn name(self) -> Option<&'static str> {
        self.rules().map(|rules| rules.name)
    }

    /// The dialect that a code belongs to. A code decides it alone: both are served at once.
    pub fn dialect(self) -> Dialect {
        if self.0 < 1000 {
            Dialect::Standard
        } else {
            Dialect::Crosvm
        }
    }

    /// When a request of this code gets a reply. An unknown code goes by the ack rule.
    pub fn reply_rule(self) -> ReplyRule {
        self.rules().map_or(ReplyRule::Ack, |rules| rules.reply)
    }
}

impl fmt::Display for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "unknown code {}", self.0),
        }
    }
}

impl fmt::Debug for RequestCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The two families of messages that share the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// The specification's codes, 1 to 10.
    Standard,
    /// crosvm's codes, 1000 to 1007.
    Crosvm,
}

/// When a request gets a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyRule {
    /// If and only if REPLY_ACK was negotiated and the request has need_reply set.
    Ack,
    /// In any case.
    Always,
}

/// What must hold for a code to be welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The driver acknowledged [`VIRTIO_F_ACCESS_PLATFORM`](crate::message::VIRTIO_F_ACCESS_PLATFORM).
    AccessPlatform,
    /// This protocol feature was negotiated.
    Feature(ProtocolFeatures),
    /// The backend lives in the VMM's own process.
    InProcess,
    /// Known, and served by nobody.
    Never,
    /// SHMEM or crosvm's old bit was negotiated.
    ShmemOrLegacy,
}

/// How many descriptors a message may carry, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorCount {
    /// The least.
    pub min: usize,
    /// The most.
    pub max: usize,
}

impl DescriptorCount {
    const NONE: DescriptorCount = DescriptorCount { min: 0, max: 0 };
    const ONE: DescriptorCount = DescriptorCount { min: 1, max: 1 };
    const OPTIONAL: DescriptorCount = DescriptorCount { min: 0, max: 1 };

    /// Tells whether `count` descriptors are in order.
    pub fn allows(&self, count: usize) -> bool {
        (self.min..=self.max).contains(&count)
    }
}

/// What is fixed about the messages of one code.
#[derive(Clone, Copy, Debug)]
pub struct MessageRules {
    /// The code.
    pub code: RequestCode,
    /// The name by the specification, without its prefix.
    pub name: &'static str,
    /// Bytes of the payload, exactly.
    pub payload: usize,
    /// How many descriptors.
    pub descriptors: DescriptorCount,
    /// What makes it welcome.
    pub gate: Gate,
    /// When it is answered.
    pub reply: ReplyRule,
}

/// Every known code, in the order of [`RequestCode::index`].
pub const CODES: [RequestCode; 18] = {
    let mut codes = [RequestCode(0); 18];
    let mut index = 0;
    while index < codes.len() {
        codes[index] = RULES[index].code;
        index += 1;
    }
    codes
};

const fn rules(
    code: RequestCode,
    name: &'static str,
    payload: usize,
    descriptors: DescriptorCount,
    gate: Gate,
) -> MessageRules {
    // Older crosvm, the two other maps and a lookup wait for an answer whatever was negotiated.
    let reply = match code {
        RequestCode::CROSVM_SHMEM_MAP
        | RequestCode::CROSVM_SHMEM_UNMAP
        | RequestCode::GPU_MAP
        | RequestCode::EXTERNAL_MAP
        | RequestCode::SHARED_OBJECT_LOOKUP => ReplyRule::Always,
        _ => ReplyRule::Ack,
    };
    MessageRules {
        code,
        name,
        payload,
        descriptors,
        gate,
        reply,
    }
}

const CONFIG: Gate = Gate::Feature(ProtocolFeatures::CONFIG);
const NOTIFIER: Gate = Gate::Feature(ProtocolFeatures::HOST_NOTIFIER);
const INBAND: Gate = Gate::Feature(ProtocolFeatures::INBAND_NOTIFICATIONS);
const OBJECT: Gate = Gate::Feature(ProtocolFeatures::SHARED_OBJECT);
const SHMEM: Gate = Gate::Feature(ProtocolFeatures::SHMEM);

const NONE: DescriptorCount = DescriptorCount::NONE;
const ONE: DescriptorCount = DescriptorCount::ONE;
const OPTIONAL: DescriptorCount = DescriptorCount::OPTIONAL;

const AREA_SIZE: usize = size_of::<VringAreaPayload>();
const STATE_SIZE: usize = size_of::<VringStatePayload>();
const OBJECT_SIZE: usize = size_of::<SharedObjectPayload>();
const MMAP_SIZE: usize = size_of::<MmapPayload>();
const FS_SIZE: usize = size_of::<FsPayload>();

type Code = RequestCode;

#[rustfmt::skip] // A table is read by its columns.
static RULES: [MessageRules; 18] = [
    rules(Code::IOTLB,                "IOTLB_MSG",               size_of::<IotlbPayload>(),       NONE,     Gate::AccessPlatform),
    rules(Code::CONFIG_CHANGE,        "CONFIG_CHANGE_MSG",       0,                               NONE,     CONFIG),
    rules(Code::VRING_HOST_NOTIFIER,  "VRING_HOST_NOTIFIER_MSG", AREA_SIZE,                       OPTIONAL, NOTIFIER),
    rules(Code::VRING_CALL,           "VRING_CALL",              STATE_SIZE,                      NONE,     INBAND),
    rules(Code::VRING_ERR,            "VRING_ERR",               STATE_SIZE,                      NONE,     INBAND),
    rules(Code::SHARED_OBJECT_ADD,    "SHARED_OBJECT_ADD",       OBJECT_SIZE,                     NONE,     OBJECT),
    rules(Code::SHARED_OBJECT_REMOVE, "SHARED_OBJECT_REMOVE",    OBJECT_SIZE,                     NONE,     OBJECT),
    // rust-vmm's crate sends a descriptor along; it is closed and ignored.
    rules(Code::SHARED_OBJECT_LOOKUP, "SHARED_OBJECT_LOOKUP",    OBJECT_SIZE,                     OPTIONAL, OBJECT),
    rules(Code::SHMEM_MAP,            "SHMEM_MAP",               MMAP_SIZE,                       ONE,      SHMEM),
    rules(Code::SHMEM_UNMAP,          "SHMEM_UNMAP",             MMAP_SIZE,                       NONE,     SHMEM),
    rules(Code::CROSVM_SHMEM_MAP,     "crosvm SHMEM_MAP",        size_of::<CrosvmMapPayload>(),   ONE,      Gate::ShmemOrLegacy),
    rules(Code::CROSVM_SHMEM_UNMAP,   "crosvm SHMEM_UNMAP",      size_of::<CrosvmUnmapPayload>(), NONE,     Gate::ShmemOrLegacy),
    rules(Code::FS_MAP,               "FS_MAP",                  FS_SIZE,                         OPTIONAL, Gate::Never),
    rules(Code::FS_UNMAP,             "FS_UNMAP",                FS_SIZE,                         OPTIONAL, Gate::Never),
    rules(Code::FS_SYNC,              "FS_SYNC",                 FS_SIZE,                         OPTIONAL, Gate::Never),
    rules(Code::FS_IO,                "FS_IO",                   FS_SIZE,                         OPTIONAL, Gate::Never),
    rules(Code::GPU_MAP,              "GPU_MAP",                 size_of::<GpuMapPayload>(),      ONE,      Gate::ShmemOrLegacy),
    rules(Code::EXTERNAL_MAP,         "EXTERNAL_MAP",            size_of::<ExternalMapPayload>(), NONE,     Gate::InProcess),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_finds_its_own_line_of_the_table() {
        for (index, code) in CODES.into_iter().enumerate() {
            assert_eq!(code.index(), Some(index));
            assert_eq!(code.rules().map(|rules| rules.code), Some(code));
        }
    }

    #[test]
    fn unknown_codes_have_no_rules_and_go_by_the_ack_rule() {
        for code in [0, 11, 12, 999, 1008, u32::MAX].map(RequestCode) {
            assert_eq!(code.index(), None);
            assert_eq!(code.name(), None);
            assert_eq!(code.reply_rule(), ReplyRule::Ack);
        }
        assert_eq!(RequestCode(11).to_string(), "unknown code 11");
    }

    #[test]
    fn exactly_five_codes_always_reply() {
        let always: Vec<u32> = CODES
            .into_iter()
            .filter(|code| code.reply_rule() == ReplyRule::Always)
            .map(|code| code.0)
            .collect();
        assert_eq!(always, [8, 1000, 1001, 1006, 1007]);
    }

    #[test]
    fn payload_sizes_are_those_of_the_protocol() {
        let sizes: Vec<(u32, usize)> = CODES
            .into_iter()
            .filter_map(|code| code.rules().map(|rules| (code.0, rules.payload)))
            .collect();
        assert_eq!(
            sizes,
            [
                (1, 32),
                (2, 0),
                (3, 24),
                (4, 8),
                (5, 8),
                (6, 16),
                (7, 16),
                (8, 16),
                (9, 40),
                (10, 40),
                (1000, 32),
                (1001, 24),
                (1002, 256),
                (1003, 256),
                (1004, 256),
                (1005, 256),
                (1006, 64),
                (1007, 32),
            ]
        );
    }

    #[test]
    fn dialect_follows_from_the_code() {
        assert_eq!(RequestCode::SHMEM_MAP.dialect(), Dialect::Standard);
        assert_eq!(RequestCode::CROSVM_SHMEM_MAP.dialect(), Dialect::Crosvm);
    }
}
