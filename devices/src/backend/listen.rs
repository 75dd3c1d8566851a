//! The socket that a reference backend listens on, whose file goes with it.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use remain::sorted;
use thiserror::Error;

/// The socket could not be made, or failed later.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// A connection could not be accepted.
    #[error("accept a frontend on {}", path.display())]
    Accept {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Somebody listens on the socket.
    #[error("{}: another backend listens on this socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The one who waits for this backend is gone.
    #[error("write to the ready descriptor")]
    Ready(#[source] io::Error),
}

/// A bound socket.
#[derive(Debug)]
pub struct Listening<'a> {
    listener: UnixListener,
    path: &'a Path,
}

impl<'a> Listening<'a> {
    /// Listens on `path`; a dead socket of that name is replaced.
    ///
    /// # Errors
    /// [`Error::InUse`] if somebody listens there, [`Error::Listen`] otherwise.
    pub fn bind(path: &'a Path) -> Result<Self, Error> {
        let failed = |source| Error::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    let path = path.to_owned();
                    return Err(Error::InUse { path });
                }
                std::fs::remove_file(path).map_err(failed)?;
                UnixListener::bind(path)
            }
            bound => bound,
        }
        .map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Tells the one who waits for this backend that it can be connected to, by one byte.
    ///
    /// # Errors
    /// [`Error::Ready`].
    pub fn tell(&self, ready: Option<OwnedFd>) -> Result<(), Error> {
        match ready {
            Some(ready) => File::from(ready).write_all(&[1]).map_err(Error::Ready),
            None => Ok(()),
        }
    }

    /// Waits for a frontend.
    ///
    /// # Errors
    /// [`Error::Accept`].
    pub fn accept(&self) -> Result<UnixStream, Error> {
        let (stream, _) = self.listener.accept().map_err(|source| Error::Accept {
            path: self.path.to_owned(),
            source,
        })?;
        Ok(stream)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        // It may be gone already; there is nobody to tell.
        let _ = std::fs::remove_file(self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_dead_backend_is_replaced_and_of_a_live_one_is_not() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).expect("a socket"));
        let live = Listening::bind(&path).expect("a dead socket is replaced");
        let second = Listening::bind(&path).map(|_| ());
        assert!(matches!(second, Err(Error::InUse { .. })), "{second:?}");
        drop(live);
        assert!(!path.exists());
    }
}
