//! The demo's temporary folder, which goes even when the demo is interrupted.

use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::thread;

use anyhow::Context as _;
use base::SignalFd;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use tempfile::TempDir;

/// What a shell adds to the number of the signal that ended a process.
const SIGNALLED: i32 = 128;

/// A temporary folder that is removed on drop, and on SIGINT and SIGTERM.
#[derive(Debug)]
pub(super) struct Scratch {
    folder: TempDir,
}

impl Scratch {
    /// Makes the folder, and a thread that waits for `signals`.
    ///
    /// On a signal the folder goes, and then the process; its children follow, since each ends when the other end of its
    /// socket does, or with the process that started it.
    pub(super) fn new(signals: SignalFd) -> anyhow::Result<Self> {
        let folder =
            TempDir::with_prefix("portcullis-demo-").context("cannot make a temporary folder")?;
        let path = folder.path().to_owned();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || end_on_signal(&signals, &path))
            .context("cannot start a thread")?;
        Ok(Self { folder })
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in it.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn end_on_signal(signals: &SignalFd, folder: &Path) {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        if rustix::event::poll(&mut fds, None).is_err() {
            continue;
        }
        if let Ok(Some(signal)) = signals.read() {
            // There is nobody to tell: the process ends here.
            let _ = std::fs::remove_dir_all(folder);
            process::exit(SIGNALLED + signal);
        }
    }
}
