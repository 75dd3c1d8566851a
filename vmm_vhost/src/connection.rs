//! Messages in and bytes out over one stream socket: framing that can stop and go on at any byte.
//!
//! One receive takes as much as there is, so a header may be cut anywhere and many messages may
//! come at once; what is incomplete is kept, and nobody waits for the rest. What a message means
//! is not known here.
//!
//! # Whose are the descriptors
//!
//! Linux ends a read after the first piece that carries descriptors, so all descriptors that a
//! read returned belong to one piece, and that piece starts with the *last header begun in that
//! read* if its sender keeps to the protocol. In stream positions: the descriptors of a read
//! `[s, e)` go with the message `[p, q)` for which `p < e <= q`, and they sit on its header only
//! if `s <= p`. Otherwise no header began in the read, they came with a body, and the message is
//! marked [`Flaw::Misplaced`]. A sender that writes two messages in one piece, with the first's
//! descriptors, can't be told from one that gave them to the second, and the second gets them.
//!
//! Between two reads at most one message is incomplete, so two sets of descriptors are the most
//! that is ever held.

use std::fmt;
use std::io::IoSlice;
use std::io::IoSliceMut;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;

use base::AsRawDescriptor;
use base::Error as Errno;
use base::RawDescriptor;
use base::SafeDescriptor;
use base::scm;
use base::scm::DescriptorVec;
use base::scm::Wait;
use thiserror::Error;
use zerocopy::FromBytes;

use crate::message::Direction;
use crate::message::FramingError;
use crate::message::HEADER_SIZE;
use crate::message::Header;
use crate::message::MAX_DESCRIPTORS;

/// Bytes of the receive buffer: some 150 requests without descriptors.
const BUFFER_SIZE: usize = 8192;

/// Why a connection can't go on.
#[remain::sorted]
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// The peer closed.
    #[error("the peer closed the channel{}", Unfinished(*unfinished))]
    Closed {
        /// How many bytes of an incomplete message were there; 0 for a clean end.
        unfinished: usize,
    },
    /// The stream can't be followed any more.
    #[error("the peer broke the framing: {0}")]
    Framing(#[from] FramingError),
    /// The socket failed.
    #[error("the channel's socket failed: {0}")]
    Io(Errno),
}

impl ConnectionError {
    /// Sorts a failure of the socket: a peer that is gone shows in several ways.
    fn of_socket(errno: Errno, unfinished: usize) -> ConnectionError {
        match errno.errno() {
            libc::ECONNRESET | libc::EPIPE => ConnectionError::Closed { unfinished },
            _ => ConnectionError::Io(errno),
        }
    }
}

/// Says how far into a message a stream ended, and nothing where it ended between two.
pub(crate) struct Unfinished(pub(crate) usize);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            bytes => write!(f, " {bytes} bytes into a message"),
        }
    }
}

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes, at least one.
    Bytes(usize),
    /// Nothing was read: messages that are already here must be taken first.
    Full,
    /// Nothing is there, or the kernel had no memory to hand it over.
    WouldBlock,
}

/// What was wrong with the way a message's descriptors came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Some came with a later byte than the first.
    Misplaced,
    /// The kernel could not hand over all.
    Truncated,
}

/// Descriptors that go with one message.
#[derive(Debug, Default)]
struct Attachment {
    descriptors: DescriptorVec<MAX_DESCRIPTORS>,
    flaw: Option<Flaw>,
}

impl Attachment {
    /// Closes the descriptors and notes why.
    fn spoil(&mut self, flaw: Flaw) {
        self.descriptors.clear();
        self.flaw = Some(flaw);
    }
}

/// Descriptors of the latest read, whose message is not known yet.
#[derive(Debug)]
struct Arrival {
    attachment: Attachment,
    /// Stream position of the read's first byte.
    begin: u64,
    /// Stream position after the read's last byte.
    end: u64,
}

/// One whole message.
#[derive(Debug)]
pub struct Frame<'a> {
    /// Its header, checked for framing.
    pub header: Header,
    /// Its payload, as long as the header says.
    pub payload: &'a [u8],
    /// Its descriptors. Empty where there is a flaw: they are closed already.
    pub descriptors: DescriptorVec<MAX_DESCRIPTORS>,
    /// What was wrong with the way they came.
    pub flaw: Option<Flaw>,
}

/// One end of a channel.
pub struct Connection {
    socket: SafeDescriptor,
    direction: Direction,
    buffer: Box<[u8]>,
    /// The bytes in `start..end` of the buffer are received and not yet taken.
    start: usize,
    end: usize,
    /// Stream position of the byte at `start`.
    position: u64,
    /// What goes with the incomplete message at `start`.
    held: Attachment,
    /// What came with the latest read and waits for its message.
    fresh: Option<Arrival>,
}

/// What is at the front of the buffer.
enum Front {
    Whole { header: Header, len: usize },
    Partial,
}

impl Connection {
    /// Takes over a connected stream socket that receives what `direction` says.
    pub fn new(socket: SafeDescriptor, direction: Direction) -> Connection {
        Connection {
            socket,
            direction,
            buffer: vec![0; BUFFER_SIZE].into_boxed_slice(),
            start: 0,
            end: 0,
            position: 0,
            held: Attachment::default(),
            fresh: None,
        }
    }

    /// Receives once, as much as there is.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] when the peer is gone, [`ConnectionError::Framing`] when a
    /// header that is already here is broken, [`ConnectionError::Io`] when the socket fails.
    pub fn receive(&mut self, wait: Wait) -> Result<Received, ConnectionError> {
        if self.has_frame()? {
            return Ok(Received::Full);
        }
        self.settle();
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;

        let mut attachment = Attachment::default();
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let received = scm::recv(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(room)],
            &mut attachment.descriptors,
            wait,
        );
        let received = match received {
            Ok(received) => received,
            Err(errno) if errno.errno() == libc::EAGAIN || errno.is_shortage() => {
                return Ok(Received::WouldBlock);
            }
            Err(errno) => return Err(ConnectionError::of_socket(errno, self.end)),
        };
        if received.bytes == 0 {
            return Err(ConnectionError::Closed {
                unfinished: self.end,
            });
        }
        if received.descriptors_truncated {
            attachment.spoil(Flaw::Truncated);
        }
        let begin = self.position + self.end as u64;
        self.end += received.bytes;
        if attachment.flaw.is_some() || !attachment.descriptors.is_empty() {
            self.fresh = Some(Arrival {
                attachment,
                begin,
                end: begin + received.bytes as u64,
            });
        }
        Ok(Received::Bytes(received.bytes))
    }

    /// Takes the next whole message; `None` when more bytes must come first.
    ///
    /// # Errors
    /// The next header is broken. It stays where it is: every later call says the same.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FramingError> {
        let (header, len) = match self.front()? {
            Front::Whole { header, len } => (header, len),
            Front::Partial => {
                self.settle();
                return Ok(None);
            }
        };
        let first = self.position;
        let past = first + len as u64;
        let mut attachment = mem::take(&mut self.held);
        if let Some(arrival) = self.fresh.take_if(|arrival| arrival.end <= past) {
            attach(&mut attachment, arrival, first);
        }
        let payload_start = self.start + HEADER_SIZE;
        self.start += len;
        self.position = past;
        Ok(Some(Frame {
            header,
            payload: self
                .buffer
                .get(payload_start..self.start)
                .unwrap_or_default(),
            descriptors: attachment.descriptors,
            flaw: attachment.flaw,
        }))
    }

    /// Tells whether a whole message is here.
    ///
    /// # Errors
    /// The next header is broken.
    pub fn has_frame(&self) -> Result<bool, FramingError> {
        self.front()
            .map(|front| matches!(front, Front::Whole { .. }))
    }

    /// Sends bytes, with the descriptors on the first, and returns how many went.
    ///
    /// # Errors
    /// The errno of the send; EAGAIN where it would have to wait and must not.
    pub fn send(
        &self,
        bytes: &[IoSlice<'_>],
        descriptors: &[BorrowedFd<'_>],
        wait: Wait,
    ) -> Result<usize, Errno> {
        scm::send(self.socket.as_fd(), bytes, descriptors, wait)
    }

    /// Sorts a failure of [`send`](Self::send).
    pub(crate) fn send_failure(errno: Errno) -> ConnectionError {
        ConnectionError::of_socket(errno, 0)
    }

    /// Looks at the front of the buffer without taking anything.
    fn front(&self) -> Result<Front, FramingError> {
        let bytes = self.buffer.get(self.start..self.end).unwrap_or_default();
        let Ok((header, payload)) = Header::read_from_prefix(bytes) else {
            return Ok(Front::Partial);
        };
        header.check(self.direction)?;
        // The check bounds the size, and a u32 is never wider than a usize where Linux runs.
        let size = header.size as usize;
        if payload.len() < size {
            return Ok(Front::Partial);
        }
        Ok(Front::Whole {
            header,
            len: HEADER_SIZE + size,
        })
    }

    /// Gives the latest read's descriptors to the message that is incomplete at its end.
    ///
    /// Only called when no whole message is left, so what was not claimed is that message's.
    fn settle(&mut self) {
        if let Some(arrival) = self.fresh.take() {
            attach(&mut self.held, arrival, self.position);
        }
    }
}

/// Adds the descriptors of a read to those of the message that begins at `first` and holds the
/// read's last byte.
fn attach(attachment: &mut Attachment, arrival: Arrival, first: u64) {
    if arrival.begin <= first {
        // The message began in this read, so nothing can be attached to it yet.
        *attachment = arrival.attachment;
    } else {
        attachment.spoil(Flaw::Misplaced);
    }
}

/// Without the buffer, which would fill pages.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("socket", &self.socket)
            .field("direction", &self.direction)
            .field("buffered", &(self.end - self.start))
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawDescriptor for Connection {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.socket.as_raw_descriptor()
    }
}

#[cfg(test)]
mod tests;
