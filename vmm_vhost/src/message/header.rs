//! The 12-byte header of every message, and the checks that framing depends on.
//!
//! A header that fails [`Header::check`] can't be trusted for the length of its payload, so the
//! stream can't be followed past it. Everything else that can be wrong with a message leaves the
//! stream in step and is not looked at here.

use base::Error as Errno;
use thiserror::Error;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;
use zerocopy::KnownLayout;

use crate::message::RequestCode;

/// Bytes of a header.
pub const HEADER_SIZE: usize = 12;
/// The largest payload that any message of this channel may announce.
pub const MAX_PAYLOAD: usize = 256;
/// Bytes of a whole reply: a header and a `u64`.
pub const REPLY_SIZE: usize = HEADER_SIZE + 8;

const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const REPLY: u32 = 0x4;
const NEED_REPLY: u32 = 0x8;
const RESERVED: u32 = !0xf;

const _: () = assert!(size_of::<Header>() == HEADER_SIZE);

/// The start of a message.
///
/// # Source
/// vhost-user specification, "Message Specification", "Header".
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// What the message asks for.
    pub code: RequestCode,
    /// Version, reply and need_reply bits.
    pub flags: u32,
    /// Bytes of the payload that follows.
    pub size: u32,
}

/// What one end of the channel receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The frontend's end: requests of the backend.
    Requests,
    /// The backend's end: replies of the frontend.
    Replies,
}

/// Why a header can't be trusted for framing. The channel ends with it.
#[remain::sorted]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FramingError {
    /// A reply where requests are due.
    #[error("header of {code}: flags {flags:#x} mark a reply where a request is due")]
    IsReply {
        /// The header's code.
        code: RequestCode,
        /// The header's flags.
        flags: u32,
    },
    /// A request where replies are due.
    #[error("header of {code}: flags {flags:#x} mark a request where a reply is due")]
    NotReply {
        /// The header's code.
        code: RequestCode,
        /// The header's flags.
        flags: u32,
    },
    /// One of the bits 4 to 31 of the flags is set.
    #[error("header of {code}: reserved bits are set in the flags {flags:#x}")]
    ReservedFlags {
        /// The header's code.
        code: RequestCode,
        /// The header's flags.
        flags: u32,
    },
    /// The payload is larger than anything that is legal on this channel.
    #[error("header of {code}: a payload of {size} bytes, the most is {MAX_PAYLOAD}")]
    Size {
        /// The header's code.
        code: RequestCode,
        /// The header's payload size.
        size: u32,
    },
    /// The version is not 1.
    #[error("header of {code}: version {} in the flags {flags:#x}, expected {VERSION}", flags & VERSION_MASK)]
    Version {
        /// The header's code.
        code: RequestCode,
        /// The header's flags.
        flags: u32,
    },
}

impl Header {
    /// Makes the header of a request with `size` bytes of payload.
    pub const fn request(code: RequestCode, size: u32, need_reply: bool) -> Header {
        let flags = if need_reply {
            VERSION | NEED_REPLY
        } else {
            VERSION
        };
        Header { code, flags, size }
    }

    /// Makes the header of the reply to a request of this code.
    pub const fn reply(code: RequestCode) -> Header {
        Header {
            code,
            flags: VERSION | REPLY,
            size: 8,
        }
    }

    /// Tells whether the sender asks for an acknowledgement.
    pub const fn need_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }

    /// Checks what framing depends on: version, reserved bits, direction, size cap.
    ///
    /// # Errors
    /// The first of [`FramingError`]'s cases that holds, in the order version, reserved bits,
    /// direction, size.
    pub const fn check(&self, direction: Direction) -> Result<(), FramingError> {
        let Header { code, flags, size } = *self;
        if flags & VERSION_MASK != VERSION {
            return Err(FramingError::Version { code, flags });
        }
        if flags & RESERVED != 0 {
            return Err(FramingError::ReservedFlags { code, flags });
        }
        match (direction, flags & REPLY != 0) {
            (Direction::Requests, true) => return Err(FramingError::IsReply { code, flags }),
            (Direction::Replies, false) => return Err(FramingError::NotReply { code, flags }),
            _ => {}
        }
        // A u32 is never wider than a usize where Linux runs.
        if size as usize > MAX_PAYLOAD {
            return Err(FramingError::Size { code, size });
        }
        Ok(())
    }
}

/// Encodes a failure as the value of a reply: `-errno` in two's complement.
///
/// A number that would read as success or as no errno at all becomes EIO: a failure never leaves
/// as a zero.
pub fn failure_value(errno: Errno) -> u64 {
    let number = errno.errno();
    let number = if (1..=4095).contains(&number) {
        number
    } else {
        libc::EIO
    };
    i64::from(-number).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: RequestCode = RequestCode::SHMEM_MAP;

    #[test]
    fn request_header_has_golden_bytes() {
        assert_eq!(
            Header::request(CODE, 40, true).as_bytes(),
            [9, 0, 0, 0, 0x9, 0, 0, 0, 40, 0, 0, 0]
        );
        assert_eq!(
            Header::request(RequestCode::CROSVM_SHMEM_MAP, 32, false).as_bytes(),
            [0xe8, 3, 0, 0, 0x1, 0, 0, 0, 32, 0, 0, 0]
        );
    }

    #[test]
    fn reply_header_has_golden_bytes() {
        assert_eq!(
            Header::reply(CODE).as_bytes(),
            [9, 0, 0, 0, 0x5, 0, 0, 0, 8, 0, 0, 0]
        );
    }

    #[track_caller]
    fn check(flags: u32, size: u32, direction: Direction, want: Result<(), FramingError>) {
        let code = CODE;
        assert_eq!(Header { code, flags, size }.check(direction), want);
    }

    #[test]
    fn header_check_accepts_both_directions_up_to_the_cap() {
        check(0x1, 0, Direction::Requests, Ok(()));
        check(0x9, 256, Direction::Requests, Ok(()));
        check(0x5, 8, Direction::Replies, Ok(()));
    }

    #[test]
    fn header_check_names_what_breaks_the_framing() {
        let code = CODE;
        for flags in [0x0, 0x2, 0x3, 0x8, 0xb] {
            let want = Err(FramingError::Version { code, flags });
            check(flags, 40, Direction::Requests, want);
        }
        for flags in [0x11, 0x8000_0001] {
            let want = Err(FramingError::ReservedFlags { code, flags });
            check(flags, 40, Direction::Requests, want);
        }
        let flags = 0x5;
        let want = Err(FramingError::IsReply { code, flags });
        check(flags, 8, Direction::Requests, want);
        let flags = 0x1;
        let want = Err(FramingError::NotReply { code, flags });
        check(flags, 8, Direction::Replies, want);
        for size in [257, u32::MAX] {
            let want = Err(FramingError::Size { code, size });
            check(0x1, size, Direction::Requests, want);
        }
    }

    #[test]
    fn framing_error_reads_as_one_line() {
        let error = FramingError::Version {
            code: CODE,
            flags: 0x2,
        };
        assert_eq!(
            error.to_string(),
            "header of SHMEM_MAP (9): version 2 in the flags 0x2, expected 1"
        );
    }

    #[test]
    fn failure_value_is_the_negated_errno() {
        assert_eq!(
            failure_value(Errno::new(libc::EINVAL)),
            0xffff_ffff_ffff_ffea
        );
        assert_eq!(failure_value(Errno::new(libc::EPERM)), u64::MAX);
    }

    #[test]
    fn failure_value_of_no_errno_is_eio() {
        for number in [0, -1, 4096, i32::MIN, i32::MAX] {
            assert_eq!(failure_value(Errno::new(number)), 0xffff_ffff_ffff_fffb);
        }
    }
}
