//! What a blobs backend tells while it runs, for people (`Display`) and for programs (`Serialize`).

use std::fmt;
use std::path::Path;

use base::Error as Errno;
use serde::Serialize;
use serde::Serializer;

use super::protocol::BlobId;

/// One event.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report<'a> {
    /// The socket can be connected to.
    Listening {
        /// Its path.
        #[serde(serialize_with = "lossy")]
        socket: &'a Path,
    },
    /// A frontend has connected.
    Connected,
    /// The request channel can be used.
    Channel,
    /// There will be no mappings.
    NoChannel {
        /// Why.
        reason: &'a str,
    },
    /// The driver's queue runs.
    QueueStarted,
    /// The driver's queue runs no longer.
    QueueStopped,
    /// A blob was made.
    Allocated {
        /// Its name.
        blob: BlobId,
        /// How many bytes it has.
        bytes: u64,
    },
    /// A blob was given up.
    Freed {
        /// Its name.
        blob: BlobId,
    },
    /// A blob was mapped, anew if it was resized.
    Mapped {
        /// Its name.
        blob: BlobId,
        /// Where in the region.
        shm_offset: u64,
        /// How many bytes.
        len: u64,
        /// Whether the driver may write.
        writable: bool,
    },
    /// A blob was unmapped.
    Unmapped {
        /// Its name.
        blob: BlobId,
    },
    /// A part of a blob was filled.
    Filled {
        /// Its name.
        blob: BlobId,
        /// How many bytes.
        bytes: u64,
    },
    /// A request was refused, by the device or by the frontend.
    Refused {
        /// What was asked for.
        request: &'a str,
        /// The blob that it was about; 0 for none.
        blob: BlobId,
        /// Why.
        #[serde(serialize_with = "named")]
        errno: Errno,
    },
    /// The device was reset: there are no blobs.
    Reset,
    /// The frontend is gone.
    Disconnected {
        /// How many requests it sent.
        requests: u64,
    },
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn named<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Named(*errno))
}

/// An errno by its name.
struct Named(Errno);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0.errno()),
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Listening { socket } => write!(f, "listening on {}", socket.display()),
            Self::Connected => f.write_str("a frontend has connected"),
            Self::Channel => f.write_str("the request channel is open"),
            Self::NoChannel { reason } => write!(f, "nothing will be mapped: {reason}"),
            Self::QueueStarted => f.write_str("the queue runs"),
            Self::QueueStopped => f.write_str("the queue is stopped"),
            Self::Allocated { blob, bytes } => write!(f, "blob {blob}: {bytes} bytes"),
            Self::Freed { blob } => write!(f, "blob {blob}: freed"),
            Self::Mapped {
                blob,
                shm_offset,
                len,
                writable,
            } => {
                let how = if writable { "read-write" } else { "read-only" };
                write!(
                    f,
                    "blob {blob}: {len} bytes mapped at {shm_offset:#x}, {how}"
                )
            }
            Self::Unmapped { blob } => write!(f, "blob {blob}: unmapped"),
            Self::Filled { blob, bytes } => write!(f, "blob {blob}: {bytes} bytes filled"),
            Self::Refused {
                request,
                blob,
                errno,
            } => write!(f, "blob {blob}: {request} refused: {}", Named(errno)),
            Self::Reset => f.write_str("the device was reset"),
            Self::Disconnected { requests } => {
                write!(f, "the frontend is gone after {requests} requests")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(report: &Report<'_>, json: &str, text: &str) {
        let written = serde_json::to_string(report).expect("it is written");
        assert_eq!(written, json);
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn reports_are_written_as_lines_for_programs_and_people() {
        check(
            &Report::Listening {
                socket: Path::new("/run/blobs"),
            },
            r#"{"event":"listening","socket":"/run/blobs"}"#,
            "listening on /run/blobs",
        );
        check(
            &Report::Mapped {
                blob: 1,
                shm_offset: 0x2000,
                len: 5,
                writable: false,
            },
            r#"{"event":"mapped","blob":1,"shm_offset":8192,"len":5,"writable":false}"#,
            "blob 1: 5 bytes mapped at 0x2000, read-only",
        );
        check(
            &Report::Refused {
                request: "map",
                blob: 3,
                errno: Errno::new(libc::EEXIST),
            },
            r#"{"event":"refused","request":"map","blob":3,"errno":"EEXIST"}"#,
            "blob 3: map refused: EEXIST",
        );
        check(
            &Report::Disconnected { requests: 2 },
            r#"{"event":"disconnected","requests":2}"#,
            "the frontend is gone after 2 requests",
        );
    }
}
