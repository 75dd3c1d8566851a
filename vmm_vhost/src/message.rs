//! What travels on the wire: header, request codes, payload layouts, protocol feature bits.
//!
//! Only layouts and constants live here; nothing in this module reads a socket or decides what is
//! welcome. All integers are in the host's byte order, as the vhost-user specification demands.
//! Section "Communication" and "Back-end message types" of the vhost-user specification for the
//! standard dialect; codes from 1000 on are crosvm's.

mod code;
mod crosvm;
mod features;
mod header;
mod standard;

pub use code::CODES;
pub use code::DescriptorCount;
pub use code::Dialect;
pub use code::Gate;
pub use code::MessageRules;
pub use code::ReplyRule;
pub use code::RequestCode;
pub use crosvm::CrosvmMapPayload;
pub use crosvm::CrosvmUnmapPayload;
pub use crosvm::ExternalMapPayload;
pub use crosvm::FsPayload;
pub use crosvm::GpuMapPayload;
pub use features::ProtocolFeatures;
pub use features::VIRTIO_F_ACCESS_PLATFORM;
pub use header::Direction;
pub use header::FramingError;
pub use header::HEADER_SIZE;
pub use header::Header;
pub use header::MAX_PAYLOAD;
pub use header::REPLY_SIZE;
pub use header::failure_value;
pub use standard::IotlbPayload;
pub use standard::MmapPayload;
pub use standard::SharedObjectPayload;
pub use standard::VringAreaPayload;
pub use standard::VringStatePayload;

/// The most descriptors that one message may carry by the specification.
pub const MAX_DESCRIPTORS: usize = 8;
