//! The VMM's side of the control protocol.
//!
//! Nothing here waits: every socket is non-blocking, and the VMM's main loop calls in when one is ready. A client
//! has at most one request open, at most one reply unsent, and a bounded line; while either is pending, nothing more is
//! read from it. A client too many takes the place of the one that has been silent the longest. So a client that stalls,
//! floods or lies costs [`MAX_CLIENTS`] times a bounded amount of memory, and never holds up anybody.

use std::collections::BTreeMap;
use std::io;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use serde::Serialize;

use super::message::MAX_TRANSFER;
use super::message::Refusal;
use super::message::Reply;
use super::message::Request;

/// How many clients are served at once.
pub const MAX_CLIENTS: usize = 16;
/// The longest line that a client may send: a `poke` of the most bytes, with room for its other keys.
pub const MAX_LINE: usize = 2 * MAX_TRANSFER + 256;
/// How many connections wait in the kernel to be accepted.
const BACKLOG: i32 = 16;
/// How much is read from a client at once.
const READ_CHUNK: usize = 4096;

/// Names a client; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(pub u32);

/// What a client's socket has to be watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// There is room for more of a request.
    pub read: bool,
    /// There is a reply to send.
    pub write: bool,
}

impl Interest {
    /// The socket is left alone; only its end would be told.
    pub const NONE: Self = Self {
        read: false,
        write: false,
    };
}

/// What became of a client that was ready.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do yet.
    Idle,
    /// A request came in whole; it must be answered with [`Server::answer`].
    Request(Request),
    /// The client is gone and so is everything about it.
    Gone,
}

/// A listening control socket and its clients.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
    clients: BTreeMap<ClientId, Client>,
    next_id: u32,
    clock: u64,
}

/// Why a control socket can't be offered.
#[remain::sorted]
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A live process listens there.
    #[error("another process listens on it")]
    InUse,
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is something else at the path.
    #[error("there is a file that is no socket")]
    NotASocket,
}

impl Server {
    /// Listens on `path`, for its owner only. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`BindError::InUse`] and [`BindError::NotASocket`] if the path is taken; [`BindError::Io`] otherwise.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        remove_stale(path)?;
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(io::Error::from)?;
        // Linux gives the new file the mode of the socket, so that there is no moment at which others can connect.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(io::Error::from)?;
        let address = SocketAddrUnix::new(path).map_err(io::Error::from)?;
        rustix::net::bind(&socket, &address).map_err(io::Error::from)?;
        rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
        let metadata = std::fs::symlink_metadata(path)?;
        Ok(Self {
            listener: UnixListener::from(socket),
            path: path.to_owned(),
            inode: (metadata.dev(), metadata.ino()),
            clients: BTreeMap::new(),
            next_id: 0,
            clock: 0,
        })
    }

    /// The listening socket; readable when [`Server::accept`] has something to do.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Accepts one client, and names the one that had to go for it.
    ///
    /// `None` when nobody waits. A client's failure to connect is not the server's.
    ///
    /// # Errors
    /// The listener itself fails, for lack of descriptors for example.
    pub fn accept(&mut self) -> io::Result<Option<Accepted>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if is_passing(&e) => return Ok(None),
            Err(e) => return Err(e),
        };
        stream.set_nonblocking(true)?;
        let evicted = (self.clients.len() >= MAX_CLIENTS)
            .then(|| self.longest_silent())
            .flatten();
        let id = ClientId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        self.clock += 1;
        let client = Client {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            is_asking: false,
            is_closing: false,
            last_heard: self.clock,
        };
        let evicted = evicted.and_then(|id| self.remove(id));
        self.clients.insert(id, client);
        Ok(Some(Accepted { id, evicted }))
    }

    /// The socket of a client.
    pub fn stream(&self, id: ClientId) -> Option<&UnixStream> {
        self.clients.get(&id).map(|client| &client.stream)
    }

    /// What to watch a client's socket for; `None` if there is no such client.
    pub fn interest(&self, id: ClientId) -> Option<Interest> {
        self.clients.get(&id).map(Client::interest)
    }

    /// Sends and reads what can be sent and read now.
    ///
    /// At most one request comes back; what the client sent behind it waits for the answer.
    pub fn ready(&mut self, id: ClientId) -> Progress {
        self.clock += 1;
        let now = self.clock;
        let Some(client) = self.clients.get_mut(&id) else {
            return Progress::Idle;
        };
        client.last_heard = now;
        let progress = client.ready();
        if progress == Progress::Gone {
            self.clients.remove(&id);
        }
        progress
    }

    /// Answers a client's request, and sends as much as can be sent now. A client that has gone is no error.
    pub fn answer<T: Serialize>(&mut self, id: ClientId, result: Result<T, Refusal>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        client.queue(&match result {
            Ok(ok) => Reply::Done { ok },
            Err(refusal) => Reply::Refused(refusal),
        });
        client.is_asking = false;
        if client.flush().is_err() {
            self.clients.remove(&id);
        }
    }

    /// Forgets a client, and gives its socket back to be closed.
    pub fn remove(&mut self, id: ClientId) -> Option<UnixStream> {
        self.clients.remove(&id).map(|client| client.stream)
    }

    /// Forgets the client that has been silent the longest, for when the process is out of descriptors; whether there
    /// was one.
    pub fn make_room(&mut self) -> bool {
        self.longest_silent()
            .and_then(|id| self.remove(id))
            .is_some()
    }

    /// The client that has been silent the longest.
    fn longest_silent(&self) -> Option<ClientId> {
        self.clients
            .iter()
            .min_by_key(|(_, client)| client.last_heard)
            .map(|(&id, _)| id)
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only if it is still ours: another VMM may have taken the path since.
        let is_ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if is_ours && let Err(e) = std::fs::remove_file(&self.path) {
            tracing::warn!(
                "cannot remove the control socket {}: {e}",
                self.path.display()
            );
        }
    }
}

/// A client that has come.
#[derive(Debug)]
pub struct Accepted {
    /// Its name.
    pub id: ClientId,
    /// The socket of the client that had to go for it; closed when dropped.
    pub evicted: Option<UnixStream>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    /// A request is out and not answered.
    is_asking: bool,
    /// Nothing more is read; the client goes when its last reply is out.
    is_closing: bool,
    last_heard: u64,
}

impl Client {
    fn interest(&self) -> Interest {
        let write = self.sent < self.output.len();
        Interest {
            read: !self.is_asking && !self.is_closing && !write,
            write,
        }
    }

    fn ready(&mut self) -> Progress {
        if self.flush().is_err() {
            return Progress::Gone;
        }
        while self.interest().read {
            match self.next_line() {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => match serde_json::from_slice(&line) {
                    Ok(request) => {
                        self.is_asking = true;
                        return Progress::Request(request);
                    }
                    Err(e) => self.refuse(&format!("this is no request: {e}")),
                },
                Ok(None) => return Progress::Idle,
                Err(ReadEnd::TooLong) => {
                    self.refuse(&format!("a request is longer than {MAX_LINE} bytes"));
                    self.is_closing = true;
                }
                Err(ReadEnd::Closed) => return Progress::Gone,
            }
            if self.flush().is_err() {
                return Progress::Gone;
            }
        }
        if self.is_closing && !self.interest().write {
            return Progress::Gone;
        }
        Progress::Idle
    }

    /// Takes the next line out of the input, reading more where there is none yet.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, ReadEnd> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.input[searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            {
                let rest = self.input.split_off(searched + end + 1);
                return Ok(Some(std::mem::replace(&mut self.input, rest)));
            }
            if self.input.len() > MAX_LINE {
                return Err(ReadEnd::TooLong);
            }
            searched = self.input.len();
            let mut chunk = [0; READ_CHUNK];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ReadEnd::Closed),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(ReadEnd::Closed),
            }
        }
    }

    fn refuse(&mut self, error: &str) {
        self.queue(&Reply::<()>::Refused(
            Refusal::new(error).advise("see portcullis ctl --help for what can be asked"),
        ));
    }

    fn queue<T: Serialize>(&mut self, reply: &Reply<T>) {
        match serde_json::to_vec(reply) {
            Ok(mut line) => {
                line.push(b'\n');
                self.output.append(&mut line);
            }
            Err(e) => {
                tracing::error!("cannot encode an answer to a control client: {e}");
                self.is_closing = true;
            }
        }
    }

    /// Sends what can be sent now.
    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        // A large reply's buffer is not kept for the client's lifetime.
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

enum ReadEnd {
    Closed,
    TooLong,
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt as _;

    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket),
        Ok(_) => {}
    }
    match super::client::connect_now(path) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(BindError::from)
        }
        // Connected, or a full backlog: somebody is there.
        _ => Err(BindError::InUse),
    }
}

/// Whether a failed accept says nothing about the listener.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted
    )
}

#[cfg(test)]
mod tests;
