//! The frontend's end of a backend request channel, without anybody who carries requests out.
//!
//! Decodes what the backend sends, refuses what is malformed or not welcome, and hands out the
//! rest with a [`Ticket`] each. Whoever carries a request out completes its ticket when it likes;
//! replies leave in request order. Nothing here waits.
//!
//! # What a bad message leads to
//!
//! A message that is well framed is answered, where an answer is due, and the channel lives on.
//! It is looked at in this order: is the code known (ENOSYS), is it welcome (ENOTSUP, EPERM,
//! ENOSYS), did its descriptors come as they should, has it the right size and count of
//! descriptors, are its fields in order (EINVAL). A header that can't be trusted for framing ends
//! the channel; requests that came before it are not affected.
//!
//! # How to drive it
//!
//! Wait for readability while [`wants_read`](RequestChannel::wants_read), for writability while
//! [`wants_write`](RequestChannel::wants_write), level-triggered. After
//! [`receive`](RequestChannel::receive), take requests until `None`. After completions, call
//! [`flush`](RequestChannel::flush) and take requests again: messages that are already here don't
//! make the socket readable.

use std::io::IoSlice;
use std::mem;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::AsRawDescriptor;
use base::Error as Errno;
use base::RateLimit;
use base::RawDescriptor;
use base::ReadNotifier;
use base::SafeDescriptor;
use base::scm::Wait;
use thiserror::Error;

use crate::connection::Connection;
use crate::connection::ConnectionError;
use crate::connection::Flaw;
use crate::connection::Frame;
use crate::connection::Received;
use crate::connection::Unfinished;
use crate::deviation::Deviation;
use crate::deviation::Deviations;
use crate::gate::Negotiated;
use crate::gate::Peer;
use crate::message::Direction;
use crate::message::FramingError;
use crate::message::RequestCode;
use crate::message::failure_value;
use crate::refusal::Refusal;
use crate::refusal::Refused;
use crate::replies::MAX_SLOTS;
use crate::replies::ReplyBytes;
use crate::replies::ReplyQueue;
use crate::request::BackendRequest;
use crate::request::decode;
use crate::stats::ChannelStats;

/// Why a channel can't go on, or could not be made.
#[remain::sorted]
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer closed.
    #[error("the backend closed the channel{}", Unfinished(*unfinished))]
    Closed {
        /// How many bytes of an incomplete message were there; 0 for a clean end.
        unfinished: usize,
    },
    /// The stream can't be followed any more.
    #[error("the backend broke the framing: {0}")]
    Framing(#[from] FramingError),
    /// The configured number of requests in flight is out of range.
    #[error("{max} requests in flight, expected 1 to {MAX_SLOTS}")]
    InFlight {
        /// The number.
        max: usize,
    },
    /// The socket failed.
    #[error("the channel's socket failed: {0}")]
    Io(Errno),
}

impl From<ConnectionError> for ChannelError {
    fn from(error: ConnectionError) -> ChannelError {
        match error {
            ConnectionError::Closed { unfinished } => ChannelError::Closed { unfinished },
            ConnectionError::Framing(framing) => ChannelError::Framing(framing),
            ConnectionError::Io(errno) => ChannelError::Io(errno),
        }
    }
}

/// What a channel is made with.
#[derive(Clone, Copy, Debug)]
pub struct ChannelConfig {
    /// What was negotiated so far.
    pub negotiated: Negotiated,
    /// How many requests can be taken and not yet answered, 1 to 256. At this number nothing more
    /// is read.
    pub max_in_flight: usize,
    /// Where the backend lives.
    pub peer: Peer,
    /// The socket blocks, and has a receive timeout (`SO_RCVTIMEO`): [`RequestChannel::receive_within_timeout`] may wait.
    pub has_timeout: bool,
    /// Keep what the backend does against the protocol: [`RequestChannel::take_deviation`].
    pub strict: bool,
}

impl Default for ChannelConfig {
    fn default() -> ChannelConfig {
        ChannelConfig {
            negotiated: Negotiated::default(),
            max_in_flight: 128,
            peer: Peer::Remote,
            has_timeout: false,
            strict: false,
        }
    }
}

/// The right to complete one request, once.
///
/// A ticket that is dropped holds up all later replies: complete every one.
#[must_use = "a request whose ticket is not completed holds up all later replies"]
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    channel: u32,
    number: u64,
}

/// One request of the backend.
#[derive(Debug)]
pub struct Incoming {
    /// What completes it.
    pub ticket: Ticket,
    /// What it asks for.
    pub request: BackendRequest,
}

/// How a flush ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The socket takes no more now.
    Blocked,
    /// Every reply that could go out has gone.
    Done,
}

/// The frontend's end of a backend request channel.
#[derive(Debug)]
pub struct RequestChannel {
    connection: Connection,
    negotiated: Negotiated,
    peer: Peer,
    has_timeout: bool,
    replies: ReplyQueue,
    /// Tells this channel's tickets from those of others.
    id: u32,
    broken: bool,
    stats: ChannelStats,
    last_refused: Option<Refused>,
    log_limit: RateLimit,
    /// Only of a strict channel.
    deviations: Option<Box<Deviations>>,
}

/// How many refusals in a row are logged, and how often one more.
const LOG_BURST: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(1);

static NEXT_ID: AtomicU32 = AtomicU32::new(0);

impl RequestChannel {
    /// Takes over a connected stream socket. It may block or not: no call here waits, but for
    /// [`receive_within_timeout`](Self::receive_within_timeout).
    ///
    /// # Errors
    /// [`ChannelError::InFlight`] if the configured number is out of range.
    pub fn new(
        socket: SafeDescriptor,
        config: ChannelConfig,
    ) -> Result<RequestChannel, ChannelError> {
        let max = config.max_in_flight;
        if !(1..=MAX_SLOTS).contains(&max) {
            return Err(ChannelError::InFlight { max });
        }
        Ok(RequestChannel {
            connection: Connection::new(socket, Direction::Requests),
            negotiated: config.negotiated,
            peer: config.peer,
            has_timeout: config.has_timeout,
            replies: ReplyQueue::new(max),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            broken: false,
            stats: ChannelStats::default(),
            last_refused: None,
            log_limit: RateLimit::new(LOG_BURST, LOG_INTERVAL),
            deviations: config.strict.then(Box::default),
        })
    }

    /// Changes what was negotiated, for the messages that are taken from now on.
    pub fn set_negotiated(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
    }

    /// Receives once, as much as there is.
    ///
    /// [`Received::Full`] means that nothing was read, because messages that are already here
    /// must be taken first or too many requests are in flight.
    ///
    /// # Errors
    /// The channel can't go on: the peer is gone, broke the framing, or the socket failed.
    pub fn receive(&mut self) -> Result<Received, ChannelError> {
        self.receive_waiting(Wait::Never)
    }

    /// Receives as [`receive`](Self::receive) does, but waits for the first byte as long as the socket's timeout says.
    ///
    /// For when nothing else is expected: a wait context would only add a system call to it. It does not wait on a channel
    /// that was made without [`ChannelConfig::has_timeout`].
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn receive_within_timeout(&mut self) -> Result<Received, ChannelError> {
        self.receive_waiting(if self.has_timeout {
            Wait::Block
        } else {
            Wait::Never
        })
    }

    fn receive_waiting(&mut self, wait: Wait) -> Result<Received, ChannelError> {
        if self.replies.is_full() {
            return Ok(Received::Full);
        }
        let received = self.connection.receive(wait);
        if let Ok(Received::Bytes(bytes)) = received {
            self.stats.reads += 1;
            self.stats.bytes += bytes as u64;
        }
        received.map_err(|error| self.give_up(error))
    }

    /// Notes that the channel can't go on, and why.
    fn give_up(&mut self, error: impl Into<ChannelError>) -> ChannelError {
        let error = error.into();
        let was_broken = mem::replace(&mut self.broken, true);
        if !was_broken && let Some(deviations) = &mut self.deviations {
            deviations.note_end(&error);
        }
        error
    }

    /// Takes the next request that is whole, well formed and welcome. Others before it are refused
    /// on the way. `None` when there is none, or too many are in flight.
    ///
    /// # Errors
    /// [`ChannelError::Framing`] when the next header is broken; from then on always.
    pub fn next_request(&mut self) -> Result<Option<Incoming>, ChannelError> {
        while !self.replies.is_full() {
            let frame = match self.connection.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(framing) => return Err(self.give_up(framing)),
            };
            let code = frame.header.code;
            let due = self.negotiated.reply_due(&frame.header);
            if let Some(deviations) = &mut self.deviations {
                deviations.examine(&frame, &self.negotiated);
            }
            let request = examine(frame, &self.negotiated, self.peer);
            self.stats.count_received(code);
            match request {
                Ok(request) => {
                    let ticket = Ticket {
                        channel: self.id,
                        number: self.replies.open(code, due),
                    };
                    return Ok(Some(Incoming { ticket, request }));
                }
                Err(refusal) => {
                    self.note_refused(code, refusal, due);
                    if due {
                        self.stats.replies += 1;
                        self.replies.open_done(code, failure_value(refusal.errno()));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Completes a request. `Ok` carries the value of the reply: 0 is success to every backend.
    ///
    /// A lookup that succeeded needs [`complete_with_descriptor`](Self::complete_with_descriptor)
    /// and is answered ENOENT here. A ticket of another channel is ignored.
    pub fn complete(&mut self, ticket: Ticket, result: Result<u64, Errno>) {
        self.finish(&ticket, result, None);
    }

    /// Completes a lookup with what was found.
    ///
    /// The reply to any other request carries no descriptor: it is closed, and the reply is 0.
    pub fn complete_with_descriptor(&mut self, ticket: Ticket, descriptor: SafeDescriptor) {
        self.finish(&ticket, Ok(0), Some(descriptor));
    }

    fn finish(
        &mut self,
        ticket: &Ticket,
        result: Result<u64, Errno>,
        descriptor: Option<SafeDescriptor>,
    ) {
        if ticket.channel != self.id {
            return;
        }
        let Some(opened) = self.replies.waiting_in(ticket.number) else {
            return;
        };
        let is_lookup = opened.code == RequestCode::SHARED_OBJECT_LOOKUP;
        let descriptor = descriptor.filter(|_| is_lookup);
        let result = match result {
            Ok(_) if is_lookup && descriptor.is_none() => Err(Errno::new(libc::ENOENT)),
            result => result,
        };
        let value = match result {
            Ok(value) => {
                self.stats.succeeded += 1;
                value
            }
            Err(errno) => {
                self.note_refused(opened.code, Refusal::Handler(errno), opened.due);
                failure_value(errno)
            }
        };
        self.stats.replies += u64::from(opened.due);
        self.replies.finish(ticket.number, value, descriptor);
    }

    /// Sends the replies that can go out, many in one call.
    ///
    /// # Errors
    /// The channel can't go on: the peer is gone or the socket failed.
    pub fn flush(&mut self) -> Result<Flush, ChannelError> {
        let mut bytes = ReplyBytes::new();
        while self.replies.is_ready() {
            let descriptor = self.replies.gather(&mut bytes);
            let with_descriptor = descriptor.is_some();
            let sent =
                self.connection
                    .send(&[IoSlice::new(&bytes)], descriptor.as_slice(), Wait::Never);
            match sent {
                Ok(count) => {
                    self.stats.writes += 1;
                    self.replies.advance(count);
                }
                Err(errno) => match errno.errno() {
                    libc::EAGAIN => return Ok(Flush::Blocked),
                    _ if errno.is_shortage() => return Ok(Flush::Blocked),
                    // The peer can refuse descriptors, or let too many of ours wait unread: that
                    // is no reason to end the channel.
                    libc::EPERM | libc::ETOOMANYREFS if with_descriptor => {
                        self.replies.fail_front(failure_value(errno));
                    }
                    _ => return Err(self.give_up(Connection::send_failure(errno))),
                },
            }
        }
        Ok(Flush::Done)
    }

    /// Tells whether to wait for the socket to be readable: not while too many requests are in
    /// flight or their replies have not gone out, and not after an error.
    pub fn wants_read(&self) -> bool {
        !self.broken && !self.replies.is_full()
    }

    /// Tells whether replies are left that could go out.
    pub fn wants_write(&self) -> bool {
        !self.broken && self.replies.is_ready()
    }

    /// Tells whether [`next_request`](Self::next_request) has something to look at now.
    pub fn has_message(&self) -> bool {
        !self.replies.is_full() && self.connection.has_frame().unwrap_or(true)
    }

    /// How many requests were taken and are not completed.
    pub fn in_flight(&self) -> usize {
        self.replies.waiting()
    }

    /// The last request that was refused, here or when it was carried out.
    pub fn last_refused(&self) -> Option<Refused> {
        self.last_refused
    }

    /// Takes the next kind of deviation of which there is something new: the first one of the kind, and how many there were
    /// since it was last taken. Always `None` on a channel that is not [strict](ChannelConfig::strict).
    pub fn take_deviation(&mut self) -> Option<(Deviation, u64)> {
        self.deviations.as_mut()?.take()
    }

    /// Tells whether deviations are kept.
    pub fn is_strict(&self) -> bool {
        self.deviations.is_some()
    }

    /// The counters.
    pub fn stats(&self) -> ChannelStats {
        self.stats
    }

    fn note_refused(&mut self, code: RequestCode, refusal: Refusal, answered: bool) {
        let errno = refusal.errno();
        self.stats.count_refused(errno);
        if let Some(deviations) = &mut self.deviations
            && let Some(deviation) = Deviation::of_refusal(code, &refusal)
        {
            deviations.note(deviation, 1);
        }
        if let Some(unsaid) = self.log_limit.permit() {
            base::warn!(errno = errno.errno(), unsaid, "refused {code}: {refusal}");
        }
        self.last_refused = Some(Refused {
            code,
            ordinal: self.stats.refused,
            refusal,
            answered,
        });
    }
}

/// Decides about one message. Its descriptors end in the request or are closed.
fn examine(
    frame: Frame<'_>,
    negotiated: &Negotiated,
    peer: Peer,
) -> Result<BackendRequest, Refusal> {
    let rules = frame.header.code.rules().ok_or(Refusal::UnknownCode)?;
    negotiated.admit(rules, peer)?;
    match frame.flaw {
        Some(Flaw::Misplaced) => return Err(Refusal::DescriptorsMisplaced),
        Some(Flaw::Truncated) => return Err(Refusal::DescriptorsTruncated),
        None => {}
    }
    decode(rules, frame.payload, frame.descriptors)
}

impl AsFd for RequestChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl AsRawDescriptor for RequestChannel {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.connection.as_raw_descriptor()
    }
}

impl ReadNotifier for RequestChannel {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        self
    }
}

#[cfg(test)]
mod tests;
