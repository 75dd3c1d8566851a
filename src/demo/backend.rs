//! A reference backend as a process of its own, and what it reports.

use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context as _;
use anyhow::bail;
use serde::Deserialize;

/// How long a backend may take for all that it does; far more than it needs.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a backend reports, one JSON object a line.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line {
    /// Its socket can be connected.
    Listening,
    /// What it is going to map.
    Layout {
        /// How many files.
        files: u64,
    },
    /// A file that it does not map.
    Skipped {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file that it has mapped.
    Mapped {
        /// The file.
        path: String,
        /// Where in the region.
        offset: u64,
        /// How long.
        len: u64,
        /// From the request to the reply, in microseconds.
        map_us: f64,
    },
    /// A request of its own that was refused.
    Refused {
        /// The answer.
        errno: String,
    },
    /// A hostile request that was answered.
    Probe {
        /// Which one.
        case: String,
        /// The answer; none if it was granted.
        errno: Option<String>,
    },
    /// It has done everything.
    Ready,
    /// It gets no request channel.
    NoChannel {
        /// Why.
        reason: String,
    },
    /// The request channel has ended before everything was done.
    ChannelClosed {
        /// How.
        reason: String,
    },
    /// Something else.
    #[serde(other)]
    Other,
}

/// What a backend is to do.
#[derive(Debug)]
pub(super) struct Task<'a> {
    /// Where it listens.
    pub(super) socket: PathBuf,
    /// The folder whose files it maps.
    pub(super) directory: &'a Path,
    /// The hostile requests that it makes after that.
    pub(super) probes: &'a [&'a str],
}

/// A backend process; killed and reaped when dropped.
#[derive(Debug)]
pub(super) struct Backend {
    child: Child,
    lines: Receiver<std::io::Result<String>>,
    socket: PathBuf,
    started: Instant,
}

impl Backend {
    /// Starts a backend, and waits until it listens.
    pub(super) fn start(task: Task<'_>) -> anyhow::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["backend", "files", "--json", "--once", "--socket"])
            .arg(&task.socket)
            .arg("--dir")
            .arg(task.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        if !task.probes.is_empty() {
            command.args(["--probe", &task.probes.join(",")]);
        }
        let mut child = command.spawn().context("cannot start a backend process")?;
        let stdout = child.stdout.take().context("the backend has no output")?;
        let (sender, lines) = mpsc::channel();
        let reader = thread::Builder::new().name("backend".to_owned());
        let mut backend = Self {
            child,
            lines,
            socket: task.socket,
            started: Instant::now(),
        };
        reader.spawn(move || {
            for line in BufReader::new(stdout).lines() {
                if sender.send(line).is_err() {
                    break;
                }
            }
        })?;
        while !matches!(backend.next()?, Line::Listening) {}
        Ok(backend)
    }

    /// Its socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the next report.
    pub(super) fn next(&mut self) -> anyhow::Result<Line> {
        let left = DEADLINE.saturating_sub(self.started.elapsed());
        match self.lines.recv_timeout(left) {
            Ok(line) => {
                let line = line.context("cannot read the backend's reports")?;
                serde_json::from_str(&line)
                    .with_context(|| format!("a report of the backend makes no sense: {line}"))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("the backend did nothing for {} s", DEADLINE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().context("cannot wait for the backend")?;
                bail!("the backend ended early: {status}")
            }
        }
    }

    /// Kills the process, as an accident would.
    pub(super) fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}
