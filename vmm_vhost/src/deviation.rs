//! What a backend did against the protocol, for whoever tests one.
//!
//! Nothing is parsed here: a deviation is made from what the channel has refused, from the framing error that ended it, and,
//! where a deviation is served all the same, from the message that was served. A channel keeps them only if it was made
//! [strict](crate::ChannelConfig::strict).

mod rule;

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

pub use self::rule::ChannelKind;
pub use self::rule::Rule;
pub use self::rule::RuleInfo;
pub use self::rule::Source;
use crate::channel::ChannelError;
use crate::connection::Frame;
use crate::gate::Negotiated;
use crate::message::Dialect;
use crate::message::FramingError;
use crate::message::Gate;
use crate::message::ProtocolFeatures;
use crate::message::RequestCode;
use crate::refusal::Refusal;

/// Messages of the main channel that a backend can answer wrongly.
///
/// # Source
/// vhost-user specification, "Front-end message types"; 1004 is crosvm's.
const MAIN_MESSAGES: [(u32, &str); 25] = [
    (1, "GET_FEATURES"),
    (2, "SET_FEATURES"),
    (3, "SET_OWNER"),
    (5, "SET_MEM_TABLE"),
    (8, "SET_VRING_NUM"),
    (9, "SET_VRING_ADDR"),
    (10, "SET_VRING_BASE"),
    (11, "GET_VRING_BASE"),
    (12, "SET_VRING_KICK"),
    (13, "SET_VRING_CALL"),
    (15, "GET_PROTOCOL_FEATURES"),
    (16, "SET_PROTOCOL_FEATURES"),
    (17, "GET_QUEUE_NUM"),
    (18, "SET_VRING_ENABLE"),
    (21, "SET_BACKEND_REQ_FD"),
    (22, "IOTLB_MSG"),
    (24, "GET_CONFIG"),
    (25, "SET_CONFIG"),
    (34, "RESET_DEVICE"),
    (39, "SET_STATUS"),
    (41, "GET_SHARED_OBJECT"),
    (42, "SET_DEVICE_STATE_FD"),
    (43, "CHECK_DEVICE_STATE"),
    (44, "GET_SHMEM_CONFIG"),
    (1004, "GET_SHARED_MEMORY_REGIONS"),
];

/// The code of a message of the main channel, by its name; 0, which no message has, for others.
pub fn main_code(name: &str) -> u32 {
    let known = MAIN_MESSAGES.iter().find(|(_, known)| *known == name);
    known.map_or(0, |(code, _)| *code)
}

/// One thing that a backend did against a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deviation {
    /// The rule.
    pub rule: Rule,
    /// The code of the message; 0 where there was none.
    pub code: u32,
    /// What the message had in the field that the rule is about.
    pub value: u64,
}

impl Deviation {
    /// What the channel refused; `None` for what the handler refused, which [`Self::of_errno`] knows more about.
    pub(crate) fn of_refusal(code: RequestCode, refusal: &Refusal) -> Option<Deviation> {
        let (rule, value) = match *refusal {
            Refusal::Handler(_) => return None,
            Refusal::DescriptorCount { got, .. } => (Rule::DescriptorCount, got as u64),
            Refusal::DescriptorsMisplaced => (Rule::DescriptorPlace, 0),
            Refusal::DescriptorsTruncated => (Rule::DescriptorLimit, 0),
            Refusal::IotlbKind { kind } => (Rule::IotlbFields, kind.into()),
            Refusal::IotlbPermission { permission } => (Rule::IotlbFields, permission.into()),
            Refusal::MapFlags { flags } => (Rule::MapFlags, flags),
            Refusal::MisalignedDescriptorOffset { offset } => (Rule::DescriptorAlignment, offset),
            Refusal::MisalignedPointer { ptr } => (Rule::Pointer, ptr),
            Refusal::MisalignedRegionOffset { offset } => (Rule::RegionAlignment, offset),
            Refusal::NotInProcess => (Rule::Pointer, 0),
            Refusal::NotifierSize { size } => (Rule::NotifierFields, size),
            Refusal::NotNegotiated(_) => (Rule::NotNegotiated, code.0.into()),
            Refusal::PayloadSize { got, .. } => (Rule::PayloadSize, got as u64),
            Refusal::UnknownCode => (Rule::UnknownCode, code.0.into()),
            Refusal::Unsupported => (Rule::DraftCode, code.0.into()),
            Refusal::VringIndex { bits } => (Rule::NotifierFields, bits),
            Refusal::VringNumber { num } => (Rule::VringNumber, num.into()),
            Refusal::ZeroLength => (Rule::ZeroLength, 0),
        };
        let code = code.0;
        Some(Deviation { rule, code, value })
    }

    /// What ended the channel.
    pub(crate) fn of_framing(error: &FramingError) -> Deviation {
        let (rule, code, value) = match *error {
            FramingError::IsReply { code, flags } | FramingError::NotReply { code, flags } => {
                (Rule::HeaderReply, code, flags)
            }
            FramingError::ReservedFlags { code, flags } => (Rule::HeaderReserved, code, flags),
            FramingError::Size { code, size } => (Rule::HeaderSize, code, size),
            FramingError::Version { code, flags } => (Rule::HeaderVersion, code, flags),
        };
        Deviation {
            rule,
            code: code.0,
            value: value.into(),
        }
    }

    /// What whoever carried a request out refused it for: a request for `len` bytes at `offset` of region `shmid`, or for the
    /// queue `offset`. `None` where that is nothing that the backend did wrong, such as a quota.
    pub fn of_errno(
        code: RequestCode,
        errno: base::Error,
        shmid: u8,
        offset: u64,
        len: u64,
    ) -> Option<Deviation> {
        let is_about_memory = matches!(
            code.rules()?.gate,
            Gate::Feature(ProtocolFeatures::SHMEM) | Gate::ShmemOrLegacy | Gate::InProcess
        );
        let is_call = code == RequestCode::VRING_CALL;
        let (rule, value) = match errno.errno() {
            libc::ENXIO if is_call => (Rule::QueueIndex, offset),
            _ if !is_about_memory => return None,
            libc::ENXIO => (Rule::UnknownRegion, shmid.into()),
            libc::ERANGE => (Rule::OutsideRegion, offset),
            libc::EEXIST => (Rule::Overlap, offset),
            libc::ENOENT => (Rule::UnmapWhole, offset),
            libc::EBADF => (Rule::DescriptorKind, offset),
            libc::EACCES => (Rule::DescriptorAccess, offset),
            libc::EOVERFLOW => (Rule::DescriptorLength, len),
            _ => return None,
        };
        let code = code.0;
        Some(Deviation { rule, code, value })
    }

    /// The name of the message by the specification, or its code.
    pub fn message(&self) -> String {
        let known = match self.rule.info().channel {
            ChannelKind::Request => RequestCode(self.code).name(),
            ChannelKind::Main => {
                let known = MAIN_MESSAGES.iter().find(|(code, _)| *code == self.code);
                known.map(|(_, name)| *name)
            }
        };
        known.map_or_else(|| format!("message {}", self.code), str::to_owned)
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.rule.info();
        let (message, value) = (self.message(), self.value);
        write!(f, "{message} with {} {value:#x}: {}", info.field, info.text)
    }
}

/// Deviations by rule: the first of each, and how many have not been taken yet.
///
/// Made once, never grown, whatever a backend does.
#[derive(Clone, Debug)]
pub struct Deviations {
    kinds: Vec<Option<(Deviation, u64)>>,
    /// Whether any have not been taken.
    is_pending: bool,
}

impl Default for Deviations {
    fn default() -> Deviations {
        Deviations {
            kinds: vec![None; Rule::ALL.len()],
            is_pending: false,
        }
    }
}

impl Deviations {
    /// Counts `count` deviations of one kind.
    pub fn note(&mut self, deviation: Deviation, count: u64) {
        if let Some(kind) = self.kinds.get_mut(deviation.rule as usize) {
            let (_, noted) = kind.get_or_insert((deviation, 0));
            *noted = noted.saturating_add(count);
            self.is_pending = true;
        }
    }

    /// Takes the next kind of which there is something new: its first deviation, and how many there were since it was last
    /// taken.
    pub fn take(&mut self) -> Option<(Deviation, u64)> {
        if !self.is_pending {
            return None;
        }
        let kind = self.kinds.iter_mut().flatten().find(|kind| kind.1 > 0);
        self.is_pending = kind.is_some();
        let (first, count) = kind?;
        Some((*first, std::mem::take(count)))
    }

    /// Notes what was wrong with the end of a channel.
    pub(crate) fn note_end(&mut self, error: &ChannelError) {
        match error {
            ChannelError::Framing(framing) => self.note(Deviation::of_framing(framing), 1),
            ChannelError::Closed { unfinished } if *unfinished > 0 => {
                let (rule, value) = (Rule::Unfinished, *unfinished as u64);
                let code = 0;
                self.note(Deviation { rule, code, value }, 1);
            }
            ChannelError::Closed { .. } | ChannelError::InFlight { .. } | ChannelError::Io(_) => {}
        }
    }

    /// Notes what is wrong with a message that may well be served.
    pub(crate) fn examine(&mut self, frame: &Frame<'_>, negotiated: &Negotiated) {
        let header = &frame.header;
        let code = header.code;
        let mut note = |rule, value: u64| {
            let code = code.0;
            self.note(Deviation { rule, code, value }, 1);
        };
        let acks = negotiated
            .protocol_features
            .contains(ProtocolFeatures::REPLY_ACK);
        if header.need_reply() && !acks {
            note(Rule::NeedReply, header.flags.into());
        }
        let Some(rules) = code.rules() else {
            return;
        };
        if code.dialect() == Dialect::Crosvm && rules.gate != Gate::Never {
            note(Rule::CrosvmDialect, code.0.into());
        }
        let padding = padding(code, frame.payload);
        if padding != 0 {
            note(Rule::Padding, padding);
        }
        if code == RequestCode::SHARED_OBJECT_LOOKUP && !frame.descriptors.is_empty() {
            note(Rule::DescriptorCount, frame.descriptors.len() as u64);
        }
    }
}

/// The padding of a message, as one number.
fn padding(code: RequestCode, payload: &[u8]) -> u64 {
    let range = match code {
        RequestCode::SHMEM_MAP
        | RequestCode::SHMEM_UNMAP
        | RequestCode::CROSVM_SHMEM_UNMAP
        | RequestCode::GPU_MAP
        | RequestCode::EXTERNAL_MAP => 1..8,
        RequestCode::CROSVM_SHMEM_MAP => 2..8,
        RequestCode::IOTLB => 26..32,
        _ => return 0,
    };
    let bytes = payload.get(range).unwrap_or_default();
    bytes
        .iter()
        .fold(0, |word, byte| word << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
