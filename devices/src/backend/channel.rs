//! The backend's end of the request channel, for one request after the other.
//!
//! It blocks: on the frontend, which a reference backend trusts, and until somebody shuts the socket
//! down. It sends whatever it is told to, valid or not; that is what [`super::probe`] needs.

use std::io::IoSlice;
use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;

use base::AsRawDescriptor;
use base::Error as Errno;
use base::SafeDescriptor;
use base::scm;
use base::scm::DescriptorVec;
use base::scm::Wait;
use remain::sorted;
use thiserror::Error;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
const HEADER: usize = 12;

/// `REPLY_ACK` of the protocol features.
const REPLY_ACK: u64 = 1 << 3;
/// `CONFIG` of the protocol features.
const CONFIG: u64 = 1 << 9;
/// `SHMEM` of the protocol features.
const SHMEM: u64 = 1 << 22;

const CONFIG_CHANGE_MSG: u32 = 2;
const SHMEM_MAP: u32 = 9;
const SHMEM_UNMAP: u32 = 10;

/// The channel can't be used any more.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The frontend closed it.
    #[error("the frontend closed it")]
    Closed,
    /// What came is not the reply to the request.
    #[error("request {request}: no reply to it, but code {code}, flags {flags:#x}, size {size}")]
    Reply {
        /// What was asked.
        request: u32,
        /// The code that came.
        code: u32,
        /// Its flags.
        flags: u32,
        /// Its size.
        size: u32,
    },
    /// The system refused a call on the socket.
    #[error("{0}")]
    Socket(#[from] Errno),
}

/// A mapping of a descriptor into a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The region.
    pub shmid: u8,
    /// Where in the region.
    pub shm_offset: u64,
    /// Where in the file.
    pub fd_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// 0 read only, 1 read and write; other bits are reserved.
    pub flags: u64,
}

impl Mapping {
    fn payload(&self) -> [u8; 40] {
        let mut bytes = [0; 40];
        bytes[0] = self.shmid;
        bytes[8..16].copy_from_slice(&self.fd_offset.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.shm_offset.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.len.to_ne_bytes());
        bytes[32..40].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }
}

/// Whether a request's reply depends on what was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyRule {
    /// It does: one comes if `REPLY_ACK` was negotiated.
    Ack,
    /// One comes whatever was negotiated.
    Always,
}

/// What the frontend answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It did what was asked, or does not answer.
    Granted,
    /// It refused.
    Refused(Errno),
}

/// The request channel with what was agreed about it.
#[derive(Debug)]
pub struct Channel {
    socket: SafeDescriptor,
    protocol_features: u64,
}

impl Channel {
    /// Takes the socket that came with `SET_BACKEND_REQ_FD`.
    pub fn new(socket: SafeDescriptor, protocol_features: u64) -> Self {
        Self {
            socket,
            protocol_features,
        }
    }

    /// Tells whether the frontend maps at all.
    pub fn has_shmem(&self) -> bool {
        self.protocol_features & SHMEM != 0
    }

    /// Tells whether standard requests are answered.
    pub fn has_replies(&self) -> bool {
        self.protocol_features & REPLY_ACK != 0
    }

    /// Duplicates the socket, to shut it down from another thread.
    ///
    /// # Errors
    /// Those of the system.
    pub fn try_clone_socket(&self) -> Result<SafeDescriptor, Errno> {
        self.socket.try_clone()
    }

    /// Maps `file` and waits for the answer.
    ///
    /// # Errors
    /// [`Error`] when the channel is no longer usable; a refusal is an [`Answer`].
    pub fn map(&mut self, mapping: &Mapping, file: BorrowedFd<'_>) -> Result<Answer, Error> {
        self.request(SHMEM_MAP, &mapping.payload(), &[file], ReplyRule::Ack)
    }

    /// Unmaps what [`Channel::map`] mapped.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn unmap(&mut self, shmid: u8, shm_offset: u64, len: u64) -> Result<Answer, Error> {
        let mapping = Mapping {
            shmid,
            shm_offset,
            fd_offset: 0,
            len,
            flags: 0,
        };
        self.request(SHMEM_UNMAP, &mapping.payload(), &[], ReplyRule::Ack)
    }

    /// Says that the configuration space has changed, if that may be said.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn config_changed(&mut self) -> Result<Answer, Error> {
        if self.protocol_features & CONFIG == 0 {
            return Ok(Answer::Granted);
        }
        self.request(CONFIG_CHANGE_MSG, &[], &[], ReplyRule::Ack)
    }

    /// Sends any request and waits for its reply, if `rule` promises one.
    ///
    /// # Errors
    /// As for [`Channel::map`].
    pub fn request(
        &mut self,
        code: u32,
        payload: &[u8],
        descriptors: &[BorrowedFd<'_>],
        rule: ReplyRule,
    ) -> Result<Answer, Error> {
        let size = u32::try_from(payload.len()).map_err(|_| Errno::new(libc::EMSGSIZE))?;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&code.to_ne_bytes());
        header[4..8].copy_from_slice(&(VERSION | NEED_REPLY).to_ne_bytes());
        header[8..].copy_from_slice(&size.to_ne_bytes());
        let message = [&header, payload].concat();
        let mut descriptors = descriptors;
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            let sent = scm::send(
                self.socket_fd(),
                &[IoSlice::new(rest)],
                descriptors,
                Wait::Block,
            )
            .map_err(closed)?;
            descriptors = &[];
            rest = rest.get(sent..).unwrap_or_default();
        }
        if rule == ReplyRule::Ack && !self.has_replies() {
            return Ok(Answer::Granted);
        }
        self.reply(code)
    }

    fn reply(&self, request: u32) -> Result<Answer, Error> {
        let mut bytes = [0; HEADER + 8];
        let mut filled = 0;
        while filled < bytes.len() {
            let received = scm::recv(
                self.socket_fd(),
                &mut [IoSliceMut::new(&mut bytes[filled..])],
                &mut DescriptorVec::<1>::new(),
                Wait::Block,
            )
            .map_err(closed)?;
            if received.bytes == 0 {
                return Err(Error::Closed);
            }
            filled += received.bytes;
        }
        let word = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (code, flags, size) = (word(0), word(4), word(8));
        if code != request || flags & !NEED_REPLY != VERSION | REPLY || size != 8 {
            return Err(Error::Reply {
                request,
                code,
                flags,
                size,
            });
        }
        let value = i64::from_ne_bytes([
            bytes[12], bytes[13], bytes[14], bytes[15], bytes[16], bytes[17], bytes[18], bytes[19],
        ]);
        Ok(answer(value))
    }

    fn socket_fd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.socket.as_fd()
    }
}

impl AsRawDescriptor for Channel {
    fn as_raw_descriptor(&self) -> base::RawDescriptor {
        self.socket.as_raw_descriptor()
    }
}

fn closed(errno: Errno) -> Error {
    match errno.errno() {
        libc::EPIPE | libc::ECONNRESET => Error::Closed,
        _ => Error::Socket(errno),
    }
}

/// Reads a reply's value: `-errno` from most frontends, 1 from some.
fn answer(value: i64) -> Answer {
    match value {
        0 => Answer::Granted,
        -4095..0 => Answer::Refused(Errno::new(i32::try_from(-value).unwrap_or(libc::EIO))),
        _ => Answer::Refused(Errno::new(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// `SHMEM_MAP`, need_reply, 40 bytes: typed by hand from the specification.
    #[rustfmt::skip]
    const MAP: [u8; 52] = [
        9, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
        0, 0x20, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0x41, 1, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    const UNMAP: [u8; 52] = [
        10, 0, 0, 0,  9, 0, 0, 0,  40, 0, 0, 0,
        1, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0x41, 1, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ];
    const MAPPING: Mapping = Mapping {
        shmid: 1,
        shm_offset: 0x1000,
        fd_offset: 0x2000,
        len: 321,
        flags: 1,
    };

    fn pair(features: u64) -> (Channel, SafeDescriptor) {
        let (ours, theirs) = scm::stream_pair().expect("a socket pair");
        (Channel::new(ours, features), theirs)
    }

    fn reply(socket: &SafeDescriptor, code: u8, value: i64) {
        let mut bytes = [code, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0].to_vec();
        bytes.extend(value.to_le_bytes());
        let sent = scm::send(socket.as_fd(), &[IoSlice::new(&bytes)], &[], Wait::Never);
        assert_eq!(sent, Ok(20));
    }

    fn received(socket: &SafeDescriptor) -> (Vec<u8>, usize) {
        let mut bytes = vec![0; 100];
        let mut descriptors = DescriptorVec::<4>::new();
        let received = scm::recv(
            socket.as_fd(),
            &mut [IoSliceMut::new(&mut bytes)],
            &mut descriptors,
            Wait::Never,
        )
        .expect("a request");
        bytes.truncate(received.bytes);
        (bytes, descriptors.len())
    }

    #[test]
    fn map_and_unmap_are_the_specified_bytes() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        reply(&frontend, 9, 0);
        let file = frontend.as_fd();
        let answer = channel.map(&MAPPING, file).expect("an answer");
        assert_eq!(answer, Answer::Granted);
        assert_eq!(received(&frontend), (MAP.to_vec(), 1));
        reply(&frontend, 10, -2);
        let answer = channel.unmap(1, 0x1000, 321).expect("an answer");
        assert_eq!(answer, Answer::Refused(Errno::new(libc::ENOENT)));
        assert_eq!(received(&frontend), (UNMAP.to_vec(), 0));
    }

    #[test]
    fn refusal_without_an_errno_is_eio() {
        for value in [1, i64::MAX, i64::MIN, -4096] {
            assert_eq!(answer(value), Answer::Refused(Errno::new(libc::EIO)));
        }
        assert_eq!(answer(-4095), Answer::Refused(Errno::new(4095)));
    }

    #[test]
    fn request_without_reply_ack_waits_for_nothing() {
        let (mut channel, frontend) = pair(SHMEM | CONFIG);
        let answer = channel.map(&MAPPING, frontend.as_fd()).expect("no answer");
        assert_eq!(answer, Answer::Granted);
        let answer = channel.config_changed().expect("no answer");
        assert_eq!(answer, Answer::Granted);
        assert_eq!(received(&frontend), (MAP.to_vec(), 1));
        assert_eq!(
            received(&frontend),
            (vec![2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0], 0)
        );
    }

    #[test]
    fn reply_to_something_else_ends_the_channel() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        reply(&frontend, 10, 0);
        let result = channel.map(&MAPPING, frontend.as_fd());
        assert!(
            matches!(
                result,
                Err(Error::Reply {
                    request: 9,
                    code: 10,
                    flags: 5,
                    size: 8
                })
            ),
            "{result:?}"
        );
    }

    #[test]
    fn frontend_that_is_gone_is_closed() {
        let (mut channel, frontend) = pair(REPLY_ACK | SHMEM);
        drop(frontend);
        let result = channel.unmap(0, 0, 1);
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    }
}
