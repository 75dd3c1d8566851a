//! The rules that a backend can break, and whose they are.

use serde::Deserialize;
use serde::Serialize;

/// Whose rule it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The vhost-user specification.
    Spec,
    /// A decision of this project where the specification is silent.
    Portcullis,
}

impl Source {
    /// The word in every output.
    pub fn name(self) -> &'static str {
        match self {
            Source::Spec => "spec",
            Source::Portcullis => "portcullis",
        }
    }
}

/// On which of a device's two sockets a rule holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelKind {
    /// The main channel: the frontend asks, the backend answers.
    Main,
    /// The backend request channel.
    Request,
}

impl ChannelKind {
    /// The word in every output.
    pub fn name(self) -> &'static str {
        match self {
            ChannelKind::Main => "main",
            ChannelKind::Request => "request",
        }
    }
}

/// What is known of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its name in every output.
    pub name: &'static str,
    /// Whose it is.
    pub source: Source,
    /// Where it holds.
    pub channel: ChannelKind,
    /// The part of a message that it is about.
    pub field: &'static str,
    /// What it asks for.
    pub text: &'static str,
}

const fn info(
    source: Source,
    channel: ChannelKind,
    [name, field, text]: [&'static str; 3],
) -> RuleInfo {
    RuleInfo {
        name,
        source,
        channel,
        field,
        text,
    }
}

const fn spec(words: [&'static str; 3]) -> RuleInfo {
    info(Source::Spec, ChannelKind::Request, words)
}

const fn ours(words: [&'static str; 3]) -> RuleInfo {
    info(Source::Portcullis, ChannelKind::Request, words)
}

const fn main(words: [&'static str; 3]) -> RuleInfo {
    info(Source::Spec, ChannelKind::Main, words)
}

/// Makes the enum, the list of its variants and the table of what is known of each.
macro_rules! rules {
    ($($variant:ident = $info:expr;)*) => {
        /// A rule of the protocol that a backend can break.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[expect(missing_docs, reason = "each has its text")]
        pub enum Rule { $($variant,)* }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Rule] = &[$(Rule::$variant,)*];

            /// What is known of it.
            pub fn info(self) -> &'static RuleInfo {
                match self { $(Rule::$variant => const { &$info },)* }
            }
        }
    };
}

rules! {
    HeaderVersion = spec(["header-version", "flags", "the version in bits 0 and 1 is 1"]);
    HeaderReserved = spec(["header-reserved", "flags", "the bits from 4 on are reserved and zero"]);
    HeaderReply = spec(["header-reply", "flags", "a backend sends requests here, and no replies"]);
    HeaderSize = ours(["header-size", "size", "no message of this channel has more than 256 bytes"]);
    Unfinished = ours(["unfinished", "bytes", "a message is sent whole before the channel is closed"]);
    NeedReply = spec(["need-reply", "flags", "need_reply is set only where REPLY_ACK was negotiated"]);
    UnknownCode = spec(["unknown-code", "code", "the code is one that is specified"]);
    DraftCode = spec(["draft-code", "code", "codes of drafts that were given up are not used"]);
    CrosvmDialect = spec(["crosvm-dialect", "code", "codes from 1000 on are crosvm's own and not specified"]);
    NotNegotiated = spec(["not-negotiated", "code", "a message is sent only with the feature behind it negotiated"]);
    PayloadSize = spec(["payload-size", "size", "the payload is as long as its message demands"]);
    DescriptorCount = spec(["descriptor-count", "descriptors", "a message has the descriptors that it demands and no more"]);
    DescriptorPlace = ours(["descriptor-place", "descriptors", "descriptors come with a message's first byte"]);
    DescriptorLimit = spec(["descriptor-limit", "descriptors", "a message has 8 descriptors at most"]);
    Padding = ours(["padding", "padding", "padding is zero"]);
    MapFlags = spec(["map-flags", "flags", "the flags of a map have no bit but those specified"]);
    ZeroLength = ours(["zero-length", "len", "a range is not empty"]);
    RegionAlignment = ours(["region-alignment", "shm_offset", "the offset in a region is a multiple of the page size"]);
    DescriptorAlignment = ours(["descriptor-alignment", "fd_offset", "the offset in a descriptor is a multiple of the page size"]);
    Pointer = ours(["pointer", "ptr", "pointers are sent only within the VMM's process, and to whole pages"]);
    IotlbFields = spec(["iotlb-fields", "type or perm", "an IOTLB message is a miss or an access failure, of an access"]);
    NotifierFields = spec(["notifier-fields", "u64 or size", "a host notifier is one page, and its index has no reserved bits"]);
    VringNumber = spec(["vring-number", "num", "the number beside a queue's index is zero"]);
    QueueIndex = spec(["queue-index", "index", "a queue that is called was set up"]);
    UnknownRegion = spec(["unknown-region", "shmid", "the region is one that the device has"]);
    OutsideRegion = spec(["outside-region", "shm_offset", "the range is inside the region"]);
    Overlap = spec(["overlap", "shm_offset", "a mapping does not meet another one"]);
    UnmapWhole = spec(["unmap-whole", "shm_offset", "an unmap names the whole of one mapping"]);
    DescriptorKind = ours(["descriptor-kind", "shm_offset", "only files, memfds and dma-bufs are mapped"]);
    DescriptorAccess = ours(["descriptor-access", "shm_offset", "a descriptor is open for what its mapping allows"]);
    DescriptorLength = ours(["descriptor-length", "len", "a descriptor is as long as what is mapped of it"]);
    MainReply = main(["main-reply", "header", "a reply has its request's code, version 1 and the reply bit, and no other bits"]);
    MainReplySize = main(["main-reply-size", "size", "a reply is as long as its request demands"]);
    ConfigReply = main(["config-reply", "offset", "configuration space is answered for the range that was asked for"]);
    RegionCount = main(["region-count", "nregions", "the number of regions is that of the sizes that are not zero"]);
    RegionSize = main(["region-size", "size", "the size of a region is a multiple of the page size"]);
    RegionList = main(["region-list", "count", "a list of regions has each region once, with a size"]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_names_of_their_own() {
        for (index, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, index, "{rule:?}");
            let name = rule.info().name;
            let plain = |c: char| c.is_ascii_lowercase() || c == '-';
            assert!(name.chars().all(plain), "{name}");
            let twin = Rule::ALL[..index].iter().find(|r| r.info().name == name);
            assert_eq!(twin, None, "{name}");
        }
    }
}
