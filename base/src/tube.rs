//! Tubes: typed messages between processes that trust each other unequally.
//!
//! A tube is a Unix sequential-packet socket. One packet is one message in postcard's encoding, of at most
//! [`MAX_PACKET`] bytes, with its descriptors beside it (see [`SafeDescriptor`]). A message that encodes to nothing, such
//! as `()`, travels as one zero byte, since an empty packet looks like the end.
//!
//! The receiver trusts nothing: a packet that is too long, that has bytes or descriptors left over, or too few, is an
//! error, its descriptors are closed, and the tube goes on with the next packet. Decoding allocates no more than the
//! packet's bytes can fill. Two rules are left to those who define messages: no list of elements that encode to nothing
//! (`Vec<()>`), since a few bytes can announce any number of them, and no type that contains itself, since a packet has
//! room for more levels than a stack.

mod codec;
mod directional;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use remain::sorted;
use rustix::fs::OFlags;
use rustix::fs::fcntl_getfl;
use rustix::fs::fcntl_setfl;
use rustix::net::AddressFamily;
use rustix::net::SocketType;
use rustix::net::sockopt;
use rustix::net::sockopt::Timeout;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::de;
use serde::de::DeserializeOwned;

pub use codec::Packet;
pub(crate) use codec::recv_message;
pub(crate) use codec::recv_packet;
pub(crate) use codec::send_message;
pub use directional::RecvTube;
pub use directional::SendTube;

use crate::AsRawDescriptor;
use crate::DescriptorFault;
use crate::Error;
use crate::IntoRawDescriptor;
use crate::RawDescriptor;
use crate::Result;
use crate::SafeDescriptor;
use crate::scm;
use crate::scm::Wait;

/// How long a packet may be, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// Why a tube did not do what it was asked to.
#[sorted]
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TubeError {
    /// The tube could not be duplicated.
    #[error("tube does not duplicate")]
    Clone(#[source] Error),
    /// The bytes of a packet are no message of the type asked for.
    #[error("tube message does not decode")]
    Decode(#[source] postcard::Error),
    /// The descriptors of a packet are not those of its message.
    #[error("descriptors are not those of the tube message")]
    Descriptors(#[source] DescriptorFault),
    /// The packet came with more descriptors than this process may have or than a packet carries.
    #[error("descriptors of a tube message were cut off")]
    DescriptorsTruncated,
    /// The other end is closed.
    #[error("other end of the tube is closed")]
    Disconnected,
    /// The message does not encode.
    #[error("tube message does not encode")]
    Encode(#[source] postcard::Error),
    /// The descriptor is no Unix sequential-packet socket.
    #[error("descriptor is no unix seqpacket socket")]
    NotATube,
    /// No pair of sockets could be made.
    #[error("no tube pair")]
    Pair(#[source] Error),
    /// The socket did not receive.
    #[error("tube does not receive")]
    Recv(#[source] Error),
    /// The socket did not send.
    #[error("tube does not send")]
    Send(#[source] Error),
    /// The timeout could not be set.
    #[error("tube does not take the timeout")]
    SetTimeout(#[source] Error),
    /// The tube's timeout passed.
    #[error("tube timed out")]
    TimedOut,
    /// The message, or the packet that came, is longer than [`MAX_PACKET`].
    #[error("tube message of more than {MAX_PACKET} bytes")]
    TooLong,
    /// The packet has bytes after the end of its message.
    #[error("{count} bytes after the end of a tube message")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// It would have to wait: nothing to receive, or no room to send.
    #[error("tube is not ready")]
    WouldBlock,
}

/// The result of a tube's operation.
pub type TubeResult<T> = std::result::Result<T, TubeError>;

/// Something to add to a wait context in order to learn when it can be read.
pub trait ReadNotifier {
    /// Returns the descriptor that is readable when there is something to receive.
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor;
}

/// One end of a connection that carries messages both ways; its calls wait.
///
/// [`PacketTube`](crate::packet::PacketTube) is the same without waiting and without heap.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Tube {
    socket: SafeDescriptor,
}

impl Tube {
    /// Makes two connected ends.
    ///
    /// # Errors
    /// [`TubeError::Pair`] where there are too many descriptors.
    pub fn pair() -> TubeResult<(Self, Self)> {
        let (one, other) = scm::seqpacket_pair().map_err(TubeError::Pair)?;
        Ok((Self { socket: one }, Self { socket: other }))
    }

    /// Takes a connected socket that was made elsewhere, and puts it into blocking mode.
    ///
    /// # Errors
    /// [`TubeError::NotATube`] if it is no Unix sequential-packet socket; it is closed.
    pub fn from_descriptor(socket: SafeDescriptor) -> TubeResult<Self> {
        let is_tube = sockopt::socket_type(&socket) == Ok(SocketType::SEQPACKET)
            && sockopt::socket_domain(&socket) == Ok(AddressFamily::UNIX);
        if !is_tube || set_blocking(&socket).is_err() {
            return Err(TubeError::NotATube);
        }
        Ok(Self { socket })
    }

    /// Gives up the socket.
    pub fn into_descriptor(self) -> SafeDescriptor {
        self.socket
    }

    /// Makes another handle of the same end.
    ///
    /// # Errors
    /// [`TubeError::Clone`] where there are too many descriptors.
    pub fn try_clone(&self) -> TubeResult<Self> {
        let socket = self.socket.try_clone().map_err(TubeError::Clone)?;
        Ok(Self { socket })
    }

    /// Sends `message`, and waits for room to do so, at most for the send timeout.
    ///
    /// On error nothing was sent. The message's descriptors are duplicated into the receiver; they must stay open for
    /// the duration of the call, so a `Serialize` implementation must not pass on one that it closes itself.
    ///
    /// # Errors
    /// [`TubeError::Disconnected`], [`TubeError::TimedOut`], [`TubeError::TooLong`], [`TubeError::Encode`],
    /// [`TubeError::Descriptors`], and [`TubeError::Send`] for any other errno.
    pub fn send<T: Serialize + ?Sized>(&self, message: &T) -> TubeResult<()> {
        with_scratch(|buffer| send_message(self.as_fd(), message, buffer, Wait::Block))
    }

    /// Waits for a message, at most for the receive timeout.
    ///
    /// # Errors
    /// [`TubeError::Disconnected`] after the last message of a peer that closed its end, [`TubeError::TimedOut`],
    /// [`TubeError::Recv`] for any other errno. A packet that is no `T` is dropped with its descriptors and is one of
    /// [`TubeError::Decode`], [`TubeError::Descriptors`], [`TubeError::DescriptorsTruncated`], [`TubeError::TooLong`],
    /// [`TubeError::TrailingBytes`].
    pub fn recv<T: DeserializeOwned>(&self) -> TubeResult<T> {
        with_scratch(|buffer| recv_message(self.as_fd(), buffer, Wait::Block))
    }

    /// Limits how long [`Tube::send`] waits; `None` is for ever, and how a tube starts. It holds for all handles of
    /// this end.
    ///
    /// # Errors
    /// [`TubeError::SetTimeout`] for a timeout of zero.
    pub fn set_send_timeout(&self, timeout: Option<Duration>) -> TubeResult<()> {
        self.set_timeout(Timeout::Send, timeout)
    }

    /// Limits how long [`Tube::recv`] waits; as [`Tube::set_send_timeout`].
    ///
    /// # Errors
    /// [`TubeError::SetTimeout`] for a timeout of zero.
    pub fn set_recv_timeout(&self, timeout: Option<Duration>) -> TubeResult<()> {
        self.set_timeout(Timeout::Recv, timeout)
    }

    fn set_timeout(&self, which: Timeout, timeout: Option<Duration>) -> TubeResult<()> {
        sockopt::set_socket_timeout(&self.socket, which, timeout)
            .map_err(|errno| TubeError::SetTimeout(errno.into()))
    }
}

fn set_blocking(socket: &SafeDescriptor) -> Result<()> {
    let flags = fcntl_getfl(socket)?;
    if flags.contains(OFlags::NONBLOCK) {
        fcntl_setfl(socket, flags - OFlags::NONBLOCK)?;
    }
    Ok(())
}

/// Calls `f` with a packet's worth of memory that the thread keeps for this purpose.
fn with_scratch<R>(f: impl FnOnce(&mut [u8]) -> R) -> R {
    thread_local! {
        static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    }
    let mut buffer = SCRATCH.take();
    buffer.resize(MAX_PACKET, 0);
    let result = f(&mut buffer);
    SCRATCH.set(buffer);
    result
}

impl TryFrom<SafeDescriptor> for Tube {
    type Error = TubeError;

    fn try_from(socket: SafeDescriptor) -> TubeResult<Self> {
        Self::from_descriptor(socket)
    }
}

/// A tube within a tube message; a descriptor that is no tube does not deserialise.
impl<'de> Deserialize<'de> for Tube {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::from_descriptor(SafeDescriptor::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl AsRawDescriptor for Tube {
    fn as_raw_descriptor(&self) -> RawDescriptor {
        self.socket.as_raw_descriptor()
    }
}

impl IntoRawDescriptor for Tube {
    fn into_raw_descriptor(self) -> RawDescriptor {
        self.socket.into_raw_descriptor()
    }
}

impl AsFd for Tube {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ReadNotifier for Tube {
    fn get_read_notifier(&self) -> &dyn AsRawDescriptor {
        &self.socket
    }
}
