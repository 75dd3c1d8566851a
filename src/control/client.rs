//! The asking side of the control protocol, with a deadline for everything.

use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use serde::de::DeserializeOwned;

use super::message::Refusal;
use super::message::Reply;
use super::message::Request;

/// How long a VMM may take for an answer. A reset waits for the device process, which has its own, shorter deadline.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Why a request got no result.
#[remain::sorted]
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The VMM closed the connection without an answer.
    #[error("the VMM closed the connection without an answer")]
    Closed,
    /// The socket can't be connected.
    #[error(transparent)]
    Connect(io::Error),
    /// The connection failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
    /// The answer is not of this protocol.
    #[error("the answer makes no sense")]
    NotUnderstood(#[source] serde_json::Error),
    /// The VMM refused the request.
    #[error("{}", .0.error)]
    Refused(Refusal),
    /// No answer came in time.
    #[error("no answer within {} s", ANSWER_DEADLINE.as_secs())]
    TimedOut,
}

impl ClientError {
    fn from_io(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// A connection to a VMM's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects; never waits for a VMM that does not accept.
    ///
    /// # Errors
    /// [`ClientError::Connect`]: nobody listens there, or the backlog is full.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = connect_now(path).map_err(ClientError::Connect)?;
        stream
            .set_nonblocking(false)
            .map_err(ClientError::Connect)?;
        stream
            .set_read_timeout(Some(ANSWER_DEADLINE))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_DEADLINE)))
            .map_err(ClientError::Connect)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the VMM's reason; the other variants where the connection or the VMM fails.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(request).map_err(ClientError::NotUnderstood)?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(ClientError::from_io)?;
        let mut answer = Vec::new();
        self.stream
            .read_until(b'\n', &mut answer)
            .map_err(ClientError::from_io)?;
        if answer.last() != Some(&b'\n') {
            return Err(ClientError::Closed);
        }
        match serde_json::from_slice(&answer).map_err(ClientError::NotUnderstood)? {
            Reply::Done { ok } => Ok(ok),
            Reply::Refused(refusal) => Err(ClientError::Refused(refusal)),
        }
    }

    /// Waits until the VMM closes the connection.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] if it does not.
    pub fn wait_for_end(mut self) -> Result<(), ClientError> {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(()),
            Err(e) => Err(ClientError::from_io(e)),
        }
    }
}

/// Connects to a unix stream socket without ever waiting; the result is non-blocking.
///
/// # Errors
/// What `connect` says; `WouldBlock` if the listener's backlog is full.
pub fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
