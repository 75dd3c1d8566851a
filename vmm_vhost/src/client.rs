//! The backend's end of the channel: a stub that sends requests and waits for their replies.
//!
//! It waits, so it belongs into backends and tests and nowhere else. Requests can be sent ahead of
//! their replies; replies come in request order. A backend with several threads shares a client
//! behind a lock of its own.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::Error as Errno;
use base::SafeDescriptor;
use base::scm::Wait;
use thiserror::Error;

use crate::connection::Connection;
use crate::connection::ConnectionError;
use crate::connection::Frame;
use crate::connection::Received;
use crate::message::Direction;
use crate::message::FramingError;
use crate::message::ReplyRule;
use crate::message::RequestCode;

mod messages;
mod outgoing;

pub use outgoing::Outgoing;

/// Replies that can be on their way before the note of them needs memory.
const USUAL_PENDING: usize = 256;

/// Why a client's call failed.
#[remain::sorted]
#[derive(Debug, Error)]
pub enum ClientError {
    /// The channel can't be used any more.
    #[error("the channel to the frontend: {0}")]
    Connection(#[from] ConnectionError),
    /// A reply is read and none is due.
    #[error("no reply is due")]
    NothingPending,
    /// The frontend refused the request.
    #[error("{code} was refused with the value {value:#x}")]
    Refused {
        /// The request's code.
        code: RequestCode,
        /// The value of the reply: `-errno` from this frontend and some others, 1 from QEMU.
        value: u64,
    },
    /// A call would read a reply that belongs to an earlier request.
    #[error("{count} replies of earlier requests must be read first")]
    RepliesPending {
        /// How many.
        count: usize,
    },
    /// A reply carries descriptors that it should not, or lacks one.
    #[error("reply to {code}: {got} descriptors")]
    ReplyDescriptors {
        /// The request's code.
        code: RequestCode,
        /// How many came.
        got: usize,
    },
    /// A reply of another size than a `u64`.
    #[error("reply to {code}: {got} bytes, expected 8")]
    ReplySize {
        /// The request's code.
        code: RequestCode,
        /// The size.
        got: usize,
    },
    /// The socket does not wait any longer.
    #[error("no reply came within the socket's timeout")]
    TimedOut,
    /// A reply to another request than the oldest that waits for one.
    #[error("reply to {got}, expected one to {want}")]
    UnexpectedReply {
        /// The request that waits.
        want: RequestCode,
        /// The reply that came.
        got: RequestCode,
    },
}

impl From<FramingError> for ClientError {
    fn from(error: FramingError) -> ClientError {
        ClientError::Connection(error.into())
    }
}

impl ClientError {
    /// The errno of a refusal, where the frontend says one.
    pub fn errno(&self) -> Option<Errno> {
        let ClientError::Refused { value, .. } = self else {
            return None;
        };
        let errno = i32::try_from(value.cast_signed().checked_neg()?).ok()?;
        (1..=4095).contains(&errno).then(|| Errno::new(errno))
    }
}

/// Whether a request asks for an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// It does not; codes that always reply do so all the same.
    Unwanted,
    /// It does; a reply comes where REPLY_ACK was negotiated.
    Wanted,
}

/// One reply.
#[derive(Debug)]
pub struct Reply {
    /// The request's code.
    pub code: RequestCode,
    /// 0 for success.
    pub value: u64,
    /// What a lookup found.
    pub descriptor: Option<SafeDescriptor>,
}

impl Reply {
    /// Turns a failure into an error.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the value is not 0.
    pub fn check(&self) -> Result<(), ClientError> {
        match self.value {
            0 => Ok(()),
            value => Err(ClientError::Refused {
                code: self.code,
                value,
            }),
        }
    }
}

/// The backend's end of the channel.
///
/// The socket must be a blocking one; its timeouts hold.
#[doc(alias = "Slave")]
#[doc(alias = "Backend")]
#[doc(alias = "SlaveFsCacheReq")]
#[derive(Debug)]
pub struct FrontendClient {
    connection: Connection,
    reply_ack: bool,
    /// The requests whose replies are on their way, the oldest first.
    pending: VecDeque<RequestCode>,
}

impl AsFd for FrontendClient {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl FrontendClient {
    /// Takes over the socket that the frontend gave with SET_BACKEND_REQ_FD. `reply_ack` tells
    /// whether REPLY_ACK was negotiated.
    pub fn new(socket: SafeDescriptor, reply_ack: bool) -> FrontendClient {
        FrontendClient {
            connection: Connection::new(socket, Direction::Replies),
            reply_ack,
            pending: VecDeque::with_capacity(USUAL_PENDING),
        }
    }

    /// Tells whether REPLY_ACK is negotiated from now on.
    pub fn set_reply_ack(&mut self, reply_ack: bool) {
        self.reply_ack = reply_ack;
    }

    /// How many replies are on their way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Sends a request and doesn't wait for its reply, which [`read_reply`](Self::read_reply)
    /// reads.
    ///
    /// The frontend stops reading when too many replies wait to be read, so a backend that sends
    /// hundreds of requests before it reads can block here for good.
    ///
    /// # Errors
    /// [`ClientError::Connection`] if the frontend is gone or the socket fails;
    /// [`ClientError::TimedOut`]. A request that went out in part leaves the channel unusable.
    pub fn send(&mut self, request: &Outgoing<'_>, ack: Ack) -> Result<(), ClientError> {
        let bytes = request.encode(ack);
        let mut rest = bytes.as_slice();
        let mut descriptor = request.descriptor();
        while !rest.is_empty() {
            let sent =
                self.connection
                    .send(&[IoSlice::new(rest)], descriptor.as_slice(), Wait::Block);
            let count = sent.map_err(|errno| match errno.errno() {
                libc::EAGAIN => ClientError::TimedOut,
                _ => Connection::send_failure(errno).into(),
            })?;
            descriptor = None;
            rest = rest.get(count..).unwrap_or_default();
        }
        let code = request.code();
        let replies = match code.reply_rule() {
            ReplyRule::Always => true,
            ReplyRule::Ack => self.reply_ack && ack == Ack::Wanted,
        };
        if replies {
            self.pending.push_back(code);
        }
        Ok(())
    }

    /// Waits for the reply to the oldest request that gets one. A refusal is a reply.
    ///
    /// # Errors
    /// [`ClientError::NothingPending`]; what is wrong with the reply or the channel otherwise.
    pub fn read_reply(&mut self) -> Result<Reply, ClientError> {
        let want = *self.pending.front().ok_or(ClientError::NothingPending)?;
        loop {
            if let Some(frame) = self.connection.next_frame()? {
                let reply = examine(frame, want)?;
                self.pending.pop_front();
                return Ok(reply);
            }
            if self.connection.receive(Wait::Block)? == Received::WouldBlock {
                return Err(ClientError::TimedOut);
            }
        }
    }

    /// Waits for the next `count` replies and reads them all.
    ///
    /// # Errors
    /// The first refusal, after all are read; what is wrong with a reply or the channel, at once.
    pub fn read_replies(&mut self, count: usize) -> Result<(), ClientError> {
        let mut result = Ok(());
        for _ in 0..count {
            let reply = self.read_reply()?;
            result = result.and_then(|()| reply.check());
        }
        result
    }

    /// Sends a request and waits for its reply, where it gets one; otherwise returns at once.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the frontend refused it; [`ClientError::RepliesPending`] if
    /// earlier replies were not read, and then nothing was sent; as [`send`](Self::send) and
    /// [`read_reply`](Self::read_reply) otherwise.
    pub fn call(&mut self, request: &Outgoing<'_>) -> Result<(), ClientError> {
        self.exchange(request)?
            .map_or(Ok(()), |reply| reply.check())
    }

    fn exchange(&mut self, request: &Outgoing<'_>) -> Result<Option<Reply>, ClientError> {
        match self.pending.len() {
            0 => {}
            count => return Err(ClientError::RepliesPending { count }),
        }
        let ack = if self.reply_ack {
            Ack::Wanted
        } else {
            Ack::Unwanted
        };
        self.send(request, ack)?;
        if self.pending.is_empty() {
            return Ok(None);
        }
        self.read_reply().map(Some)
    }
}

/// Checks a reply to a request of this code.
fn examine(frame: Frame<'_>, want: RequestCode) -> Result<Reply, ClientError> {
    let got = frame.header.code;
    if got != want {
        return Err(ClientError::UnexpectedReply { want, got });
    }
    let value: [u8; 8] = frame
        .payload
        .try_into()
        .map_err(|_| ClientError::ReplySize {
            code: want,
            got: frame.payload.len(),
        })?;
    let value = u64::from_ne_bytes(value);
    let mut descriptors = frame.descriptors;
    let expected = usize::from(want == RequestCode::SHARED_OBJECT_LOOKUP && value == 0);
    if frame.flaw.is_some() || descriptors.len() != expected {
        return Err(ClientError::ReplyDescriptors {
            code: want,
            got: descriptors.len(),
        });
    }
    Ok(Reply {
        code: want,
        value,
        descriptor: descriptors.pop(),
    })
}

#[cfg(test)]
mod tests;
