//! What a reference backend has to say, for people as a table or for programs as one JSON line an event.

use std::borrow::Cow;
use std::fmt::Display;
use std::io;
use std::io::Write;
use std::path::Path;

use base::Error as Errno;
use serde::Serialize;
use serde::Serializer;

use super::probe::Probe;
use super::walk::SkipReason;

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
    /// What will be mapped.
    Layout {
        /// How many files.
        files: usize,
        /// The size of region 0 in bytes.
        region_size: u64,
    },
    /// A path that is not mapped.
    Skipped {
        /// Its path from the directory.
        #[serde(serialize_with = "lossy")]
        path: &'a Path,
        /// Why.
        #[serde(serialize_with = "displayed")]
        reason: SkipReason,
    },
    /// A file was mapped.
    Mapped {
        /// Its place in the list of files.
        index: u32,
        /// Its path from the directory.
        #[serde(serialize_with = "lossy")]
        path: &'a Path,
        /// The region.
        shmid: u8,
        /// The offset in the region.
        offset: u64,
        /// Its length in bytes.
        len: u64,
        /// From the request to the reply, in microseconds.
        #[serde(rename = "map_us")]
        micros: f64,
    },
    /// The frontend refused a request.
    Refused {
        /// `map` or `unmap`.
        request: &'static str,
        /// The file's path.
        #[serde(serialize_with = "lossy")]
        path: &'a Path,
        /// The offset in the region.
        offset: u64,
        /// The answer.
        #[serde(serialize_with = "named")]
        errno: Errno,
    },
    /// A file was unmapped.
    Unmapped {
        /// Its place in the list of files.
        index: u32,
        /// Its path from the directory.
        #[serde(serialize_with = "lossy")]
        path: &'a Path,
    },
    /// A hostile request was answered.
    Probe {
        /// Which.
        #[serde(serialize_with = "displayed")]
        case: Probe,
        /// The answer; `None` if it was granted.
        #[serde(serialize_with = "named_option")]
        errno: Option<Errno>,
    },
    /// There is nothing left to do until the next order.
    Ready {
        /// How many files are mapped.
        mapped: u32,
        /// How many requests were refused since the frontend connected.
        refused: u32,
        /// What this took, in microseconds.
        #[serde(rename = "us")]
        micros: f64,
    },
    /// Nothing can be mapped for this frontend.
    NoChannel {
        /// Why.
        reason: &'static str,
    },
    /// The request channel has ended early.
    ChannelClosed {
        /// How.
        #[serde(serialize_with = "displayed")]
        reason: &'a super::channel::Error,
    },
    /// The frontend reset the device; its mappings are gone.
    Reset,
    /// The frontend is gone.
    Disconnected {
        /// How many files were mapped then.
        mapped: u32,
    },
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn displayed<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn named<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&errno_name(*errno))
}

fn named_option<S: Serializer>(errno: &Option<Errno>, serializer: S) -> Result<S::Ok, S::Error> {
    match errno {
        Some(errno) => named(errno, serializer),
        None => serializer.serialize_none(),
    }
}

fn errno_name(errno: Errno) -> Cow<'static, str> {
    errno
        .name()
        .map_or_else(|| format!("errno {}", errno.errno()).into(), Into::into)
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object a line.
    Json,
}

/// Writes events as they come.
#[derive(Debug)]
pub struct Printer<W> {
    out: W,
    format: Format,
    heading: bool,
}

impl<W: Write> Printer<W> {
    /// Makes a printer on `out`.
    pub fn new(out: W, format: Format) -> Self {
        Self {
            out,
            format,
            heading: true,
        }
    }

    /// Writes one event and flushes.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn print(&mut self, report: &Report<'_>) -> io::Result<()> {
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.out, report)?;
                self.out.write_all(b"\n")?;
            }
            Format::Table => self.row(report)?,
        }
        self.out.flush()
    }

    fn row(&mut self, report: &Report<'_>) -> io::Result<()> {
        let out = &mut self.out;
        match *report {
            Report::Listening { socket } => writeln!(out, "listening on {}", socket.display()),
            Report::Connected => {
                self.heading = true;
                writeln!(out, "a frontend has connected")
            }
            Report::Layout { files, region_size } => {
                writeln!(out, "{files} files for region 0, {region_size:#x} bytes")
            }
            Report::Skipped { path, reason } => {
                writeln!(out, "left out: {}: {reason}", path.display())
            }
            Report::Mapped {
                path,
                offset,
                len,
                micros,
                ..
            } => {
                if std::mem::take(&mut self.heading) {
                    writeln!(out, "{:>12} {:>12} {:>10}  file", "offset", "length", "us")?;
                }
                let path = path.display();
                writeln!(out, "{offset:>#12x} {len:>12} {micros:>10.1}  {path}")
            }
            Report::Refused {
                request,
                path,
                offset,
                errno,
            } => {
                let (path, errno) = (path.display(), errno_name(errno));
                writeln!(out, "refused: {request} {path} at {offset:#x}: {errno}")
            }
            Report::Unmapped { path, .. } => writeln!(out, "unmapped: {}", path.display()),
            Report::Probe { case, errno } => {
                let answer = errno.map_or("granted".into(), errno_name);
                writeln!(out, "hostile request {case}: {answer}")
            }
            Report::Ready {
                mapped,
                refused,
                micros,
            } => writeln!(
                out,
                "ready: {mapped} files mapped, {refused} requests refused, {:.1} ms",
                micros / 1000.0
            ),
            Report::NoChannel { reason } => writeln!(out, "nothing can be mapped: {reason}"),
            Report::ChannelClosed { reason } => {
                writeln!(out, "the request channel has ended: {reason}")
            }
            Report::Reset => {
                self.heading = true;
                writeln!(out, "the device was reset")
            }
            Report::Disconnected { mapped } => {
                writeln!(out, "the frontend is gone; {mapped} files were mapped")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped() -> Report<'static> {
        Report::Mapped {
            index: 3,
            path: Path::new("src/lib.rs"),
            shmid: 0,
            offset: 0x2000,
            len: 321,
            micros: 17.25,
        }
    }

    #[track_caller]
    fn check(format: Format, reports: &[Report<'_>], want: &str) {
        let mut printer = Printer::new(Vec::new(), format);
        for report in reports {
            printer.print(report).expect("a write to a vector");
        }
        assert_eq!(String::from_utf8_lossy(&printer.out), want);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let path = Path::new("src/lib.rs");
        let refused = Report::Refused {
            request: "map",
            path,
            offset: 0,
            errno: Errno::new(17),
        };
        let granted = Report::Probe {
            case: Probe::Overlap,
            errno: None,
        };
        let skipped = Report::Skipped {
            path,
            reason: SkipReason::Empty,
        };
        check(
            Format::Json,
            &[mapped(), refused, granted, skipped, Report::Connected],
            concat!(
                r#"{"event":"mapped","index":3,"path":"src/lib.rs","shmid":0,"offset":8192,"len":321,"map_us":17.25}"#,
                "\n",
                r#"{"event":"refused","request":"map","path":"src/lib.rs","offset":0,"errno":"EEXIST"}"#,
                "\n",
                r#"{"event":"probe","case":"overlap","errno":null}"#,
                "\n",
                r#"{"event":"skipped","path":"src/lib.rs","reason":"empty"}"#,
                "\n",
                r#"{"event":"connected"}"#,
                "\n",
            ),
        );
    }

    #[test]
    fn table_has_one_heading_for_the_files_of_a_connection() {
        check(
            Format::Table,
            &[mapped(), mapped()],
            concat!(
                "      offset       length         us  file\n",
                "      0x2000          321       17.2  src/lib.rs\n",
                "      0x2000          321       17.2  src/lib.rs\n",
            ),
        );
    }

    #[test]
    fn errno_without_a_name_is_shown_by_its_number() {
        check(
            Format::Table,
            &[Report::Probe {
                case: Probe::Overlap,
                errno: Some(Errno::new(4095)),
            }],
            "hostile request overlap: errno 4095\n",
        );
    }
}
