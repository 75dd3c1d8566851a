//! Connecting to a backend's socket, without ever waiting inside a call.
//!
//! A socket that is not there yet is waited for with inotify on its folder. Between a backend's `bind` and its
//! `listen` there is nothing that the system would tell, so a refused connection is tried again on a timer.

use std::ffi::OsStr;
use std::io;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify;

use super::timer::Timer;
use crate::control::client::connect_now;

/// The first pause after a refused connection.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause: a backend that comes back is found within this time.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// A backend's socket that is about to be connected.
#[derive(Debug)]
pub(super) struct BackendSocket {
    path: PathBuf,
    watch: Option<OwnedFd>,
    timer: Timer,
    pause: Duration,
    is_resting: bool,
}

/// What came of an attempt to connect.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Connected; the stream is non-blocking.
    Connected(UnixStream),
    /// Nobody listens there yet. One of the descriptors becomes readable when it is worth another attempt.
    NotYet(io::Error),
}

impl BackendSocket {
    /// Prepares to connect to `path`.
    ///
    /// # Errors
    /// The system has no timer or no inotify instance left.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            watch: watch_folder(path)?,
            timer: Timer::new()?,
            pause: FIRST_PAUSE,
            is_resting: false,
        })
    }

    /// Becomes readable when something happened in the socket's folder; `None` if the folder can't be watched.
    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    /// Becomes readable when the pause after a refused connection is over.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Tries to connect now.
    ///
    /// # Errors
    /// The path can't be connected, whatever anybody does: no permission, too long, and so on.
    pub(super) fn attempt(&mut self) -> io::Result<Attempt> {
        let changed = self.drain_watch();
        if changed {
            self.pause = FIRST_PAUSE;
        }
        match connect_now(&self.path) {
            Ok(stream) => {
                self.timer.start(Duration::ZERO)?;
                Ok(Attempt::Connected(stream))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // The folder may be missing, too: then only the timer can tell.
                let pause = match self.watch {
                    Some(_) => Duration::ZERO,
                    None => LONGEST_PAUSE,
                };
                self.timer.start(pause)?;
                Ok(Attempt::NotYet(e))
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::WouldBlock
                ) =>
            {
                self.timer.start(self.pause)?;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Ok(Attempt::NotYet(e))
            }
            Err(e) => Err(e),
        }
    }

    /// Does not try before `pause` is over, whatever happens in the folder.
    ///
    /// # Errors
    /// What the system says to a timer; none is known.
    pub(super) fn rest(&mut self, pause: Duration) -> io::Result<()> {
        self.is_resting = true;
        self.timer.start(pause)
    }

    /// Whether a pause is on and goes on; to be asked when a descriptor is readable, before an attempt.
    pub(super) fn is_resting(&mut self) -> io::Result<bool> {
        if self.is_resting {
            self.drain_watch();
            self.is_resting = !self.timer.take()?;
        }
        Ok(self.is_resting)
    }

    /// Takes all notices; whether one named the socket.
    fn drain_watch(&self) -> bool {
        let Some(watch) = &self.watch else {
            return false;
        };
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        let name = self.path.file_name();
        let mut changed = false;
        while let Ok(notice) = reader.next() {
            let file = notice.file_name().map(|name| {
                use std::os::unix::ffi::OsStrExt as _;
                OsStr::from_bytes(name.to_bytes())
            });
            changed |= file == name;
        }
        changed
    }
}

/// Watches the folder of `path` for new files; `None` if there is no such folder, or it may not be read.
fn watch_folder(path: &Path) -> io::Result<Option<OwnedFd>> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
    let interest = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::ONLYDIR;
    match inotify::add_watch(&watch, folder, interest) {
        Ok(_) => Ok(Some(watch)),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::event::PollFd;
    use rustix::event::PollFlags;
    use rustix::time::Timespec;
    use tempfile::TempDir;

    use super::*;

    /// How long a test waits for what must come.
    const TIMEOUT: Timespec = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };

    #[track_caller]
    fn wait_readable(descriptor: BorrowedFd<'_>) {
        let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
        let ready = rustix::event::poll(&mut fds, Some(&TIMEOUT)).expect("poll");
        assert_eq!(ready, 1, "nothing came");
    }

    #[test]
    fn socket_that_is_missing_is_found_when_it_appears() {
        let dir = TempDir::new().expect("a temporary folder");
        let path = dir.path().join("backend");
        let mut socket = BackendSocket::new(&path).expect("prepared");
        assert!(matches!(
            socket.attempt().expect("tries"),
            Attempt::NotYet(e) if e.kind() == ErrorKind::NotFound
        ));
        let _listener = UnixListener::bind(&path).expect("binds");
        wait_readable(socket.watch().expect("watched"));
        assert!(matches!(
            socket.attempt().expect("tries"),
            Attempt::Connected(_)
        ));
    }

    #[test]
    fn socket_that_nobody_listens_on_is_tried_again_on_the_timer() {
        let dir = TempDir::new().expect("a temporary folder");
        let path = dir.path().join("backend");
        drop(UnixListener::bind(&path).expect("binds"));
        let mut socket = BackendSocket::new(&path).expect("prepared");
        for _ in 0..3 {
            assert!(matches!(
                socket.attempt().expect("tries"),
                Attempt::NotYet(e) if e.kind() == ErrorKind::ConnectionRefused
            ));
            wait_readable(socket.timer());
        }
        std::fs::remove_file(&path).expect("removes");
        let _listener = UnixListener::bind(&path).expect("binds");
        assert!(matches!(
            socket.attempt().expect("tries"),
            Attempt::Connected(_)
        ));
    }

    #[test]
    fn listener_with_a_full_backlog_does_not_hold_up_the_attempt() {
        let dir = TempDir::new().expect("a temporary folder");
        let path = dir.path().join("backend");
        let listener = UnixListener::bind(&path).expect("binds");
        rustix::net::listen(&listener, 0).expect("a small backlog");
        let _first = connect_now(&path).expect("one fits");
        let mut socket = BackendSocket::new(&path).expect("prepared");
        assert!(matches!(
            socket.attempt().expect("tries"),
            Attempt::NotYet(e) if e.kind() == ErrorKind::WouldBlock
        ));
    }

    #[test]
    fn socket_in_a_folder_that_is_missing_is_waited_for_on_the_timer() {
        let dir = TempDir::new().expect("a temporary folder");
        let mut socket = BackendSocket::new(&dir.path().join("a/b")).expect("prepared");
        assert!(socket.watch().is_none());
        assert!(matches!(
            socket.attempt().expect("tries"),
            Attempt::NotYet(_)
        ));
        wait_readable(socket.timer());
    }

    #[test]
    fn path_that_is_too_long_is_an_error_at_once() {
        let path = PathBuf::from("/".to_owned() + &"x".repeat(200));
        let mut socket = BackendSocket::new(&path).expect("prepared");
        let error = socket.attempt().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::InvalidFilename);
    }
}
