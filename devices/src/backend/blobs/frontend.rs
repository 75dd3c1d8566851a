//! The request channel of a backend that does not wait in a call: one request at a time.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use base::Error as Errno;
use base::SafeDescriptor;
use cros_async::Executor;
use cros_async::First;
use cros_async::IoSource;
use cros_async::TimerAsync;
use cros_async::first;
use rustix::net::Shutdown;
use rustix::net::shutdown;
use rustix::net::sockopt::Timeout;
use rustix::net::sockopt::set_socket_timeout;
use vmm_vhost::Ack;
use vmm_vhost::ClientError;
use vmm_vhost::FrontendClient;
use vmm_vhost::Outgoing;
use vmm_vhost::Reply;
use vmm_vhost::message::MmapPayload;

/// How long the frontend may take to answer. Then the channel is closed, which removes what is mapped: nobody knows
/// whether the request was granted.
pub const REPLY_DEADLINE: Duration = Duration::from_secs(10);

/// The only region.
pub const REGION: u8 = 0;

/// A part of the region, and what of a descriptor belongs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in the region.
    pub shm_offset: u64,
    /// Where in the descriptor; nothing to an unmap.
    pub fd_offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Whether the driver may write; nothing to an unmap.
    pub writable: bool,
}

impl Part {
    fn payload(&self) -> MmapPayload {
        MmapPayload {
            shmid: REGION,
            padding: [0; 7],
            fd_offset: self.fd_offset,
            shm_offset: self.shm_offset,
            len: self.len,
            flags: if self.writable {
                MmapPayload::WRITABLE
            } else {
                0
            },
        }
    }
}

/// The frontend, as far as it maps.
#[derive(Debug)]
pub struct FrontendChannel {
    /// A duplicate, to wait with.
    socket: IoSource<SafeDescriptor>,
    client: RefCell<FrontendClient>,
    ack: Ack,
    deadline: Duration,
}

impl FrontendChannel {
    /// Takes the socket that the frontend gave.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(
        ex: &Executor,
        socket: SafeDescriptor,
        has_replies: bool,
        deadline: Duration,
    ) -> Result<Self, Errno> {
        // The waiting is done elsewhere; these are for a frontend that sends a part of a reply.
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&socket, timeout, Some(deadline))?;
        }
        let duplicate = socket.try_clone()?;
        Ok(Self {
            socket: ex.async_from(duplicate),
            client: RefCell::new(FrontendClient::new(socket, has_replies)),
            ack: if has_replies {
                Ack::Wanted
            } else {
                Ack::Unwanted
            },
            deadline,
        })
    }

    /// Maps a part of `file`.
    ///
    /// # Errors
    /// The frontend's; `ETIMEDOUT`, or `ENOTCONN` for a channel that is no longer usable.
    pub async fn map(&self, ex: &Executor, file: BorrowedFd<'_>, part: Part) -> Result<(), Errno> {
        self.call(ex, &Outgoing::shmem_map(&part.payload(), file))
            .await
    }

    /// Unmaps what [`FrontendChannel::map`] mapped.
    ///
    /// # Errors
    /// As for [`FrontendChannel::map`].
    pub async fn unmap(&self, ex: &Executor, shm_offset: u64, len: u64) -> Result<(), Errno> {
        let part = Part {
            shm_offset,
            fd_offset: 0,
            len,
            writable: false,
        };
        self.call(ex, &Outgoing::shmem_unmap(&part.payload())).await
    }

    /// Ends the channel: who waits for an answer is told, and so is the frontend.
    pub fn close(&self) {
        // Not connected any more is as good.
        let _ = shutdown(self.socket.as_source(), Shutdown::Both);
    }

    async fn call(&self, ex: &Executor, request: &Outgoing<'_>) -> Result<(), Errno> {
        // An earlier call can have been given up: its reply is still to come.
        while self.pending() > 0 {
            self.reply(ex).await?;
        }
        let sent = self.client.borrow_mut().send(request, self.ack);
        sent.map_err(|error| self.broken(&error))?;
        if self.pending() == 0 {
            return Ok(());
        }
        let reply = self.reply(ex).await?;
        reply
            .check()
            .map_err(|error| error.errno().unwrap_or(Errno::new(libc::EIO)))
    }

    fn pending(&self) -> usize {
        self.client.borrow().pending()
    }

    async fn reply(&self, ex: &Executor) -> Result<Reply, Errno> {
        let readable = self.socket.wait_readable();
        let late = TimerAsync::sleep(ex, self.deadline);
        match first(readable, late).await {
            First::One(Ok(())) => {}
            First::One(Err(_)) => return Err(Errno::new(libc::ENOTCONN)),
            First::Other(_) => {
                base::warn!("the frontend did not answer in time: its channel is closed");
                self.close();
                return Err(Errno::new(libc::ETIMEDOUT));
            }
        }
        let reply = self.client.borrow_mut().read_reply();
        reply.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &ClientError) -> Errno {
        base::warn!("the request channel is closed: {error}");
        self.close();
        Errno::new(libc::ENOTCONN)
    }
}

impl Drop for FrontendChannel {
    fn drop(&mut self) {
        self.close();
    }
}
