//! Messages over a tube, without waiting in a call.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::PoisonError;

use base::Tube;
use base::TubeError;
use base::TubeResult;
use base::packet::PacketTube;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Executor;
use crate::IoSource;
use crate::lock;

/// A tube on an executor. Both directions can be used at once; messages are not mixed, and each goes to one receiver.
#[derive(Debug)]
pub struct AsyncTube {
    source: IoSource<Shared>,
}

/// A tube that needs a buffer for the time of a call; the number is the same all the time.
#[derive(Debug)]
struct Shared {
    packets: Mutex<PacketTube>,
    /// The same socket, to wait with.
    socket: Tube,
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncTube {
    /// Takes `tube`.
    ///
    /// # Errors
    /// [`TubeError::Clone`] where there are too many descriptors.
    pub fn new(ex: &Executor, tube: Tube) -> TubeResult<Self> {
        let shared = Shared {
            socket: tube.try_clone()?,
            packets: Mutex::new(PacketTube::new(tube)),
        };
        let source = ex.async_from(shared);
        Ok(Self { source })
    }

    /// Waits for the next message.
    ///
    /// A call that is given up loses nothing.
    ///
    /// # Errors
    /// As [`Tube::recv`]. [`TubeError::Disconnected`] too if the executor has ended.
    pub async fn next<T: DeserializeOwned>(&self) -> TubeResult<T> {
        loop {
            let received = lock(&self.source.as_source().packets).try_recv();
            match received {
                Err(TubeError::WouldBlock) => {}
                result => return result,
            }
            self.source.wait_readable().await.map_err(unusable)?;
        }
    }

    /// Sends `message`, and waits for room to do so.
    ///
    /// A call that is given up has sent nothing.
    ///
    /// # Errors
    /// As [`Tube::send`]. [`TubeError::Disconnected`] too if the executor has ended.
    pub async fn send<T: Serialize>(&self, message: T) -> TubeResult<()> {
        loop {
            let sent = lock(&self.source.as_source().packets).try_send(&message);
            match sent {
                Err(TubeError::WouldBlock) => {}
                result => return result,
            }
            self.source.wait_writable().await.map_err(unusable)?;
        }
    }
}

/// A tube that nobody can wait for is as good as closed.
fn unusable(error: crate::Error) -> TubeError {
    base::debug!("tube: {error}");
    TubeError::Disconnected
}

impl From<AsyncTube> for Tube {
    fn from(tube: AsyncTube) -> Self {
        tube.source
            .into_source()
            .packets
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .into_tube()
    }
}
