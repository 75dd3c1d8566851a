//! `portcullis backend`'s arguments.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;
use clap::Subcommand;
use cros_async::ExecutorKind;
use devices::backend::probe::Probe;

use crate::cli::size::Size;

/// The reference backends.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Map the files of a folder into region 0 of whatever frontend connects.
    Files(FilesArguments),
    /// Be a virtio device whose driver asks for blobs of memory in region 0.
    Blobs(BlobsArguments),
}

/// `portcullis backend files`
#[derive(Debug, Args)]
pub struct FilesArguments {
    /// Listen on this socket.
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,

    /// The folder whose files are mapped.
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,

    /// The size of the region [default: as large as the files need, 64M at least].
    #[arg(long, value_name = "SIZE")]
    pub region_size: Option<Size>,

    /// Map the files for writing, too.
    #[arg(long)]
    pub writable: bool,

    /// End when the first frontend goes.
    #[arg(long)]
    pub once: bool,

    /// Write one byte to this inherited descriptor when the socket can be connected to.
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<RawFd>,

    /// Make these hostile requests once the files are mapped.
    #[arg(long, value_name = "NAME", value_delimiter = ',', hide = true)]
    pub probe: Vec<Probe>,

    /// Print one JSON object a line for each event instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `portcullis backend blobs`
#[derive(Debug, Args)]
pub struct BlobsArguments {
    /// Listen on this socket.
    #[arg(long, value_name = "SOCKET")]
    pub socket: PathBuf,

    /// The size of the region.
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    pub region_size: Size,

    /// How many blobs the driver can have.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_blobs: u32,

    /// How much memory the driver's blobs can have together.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub max_bytes: Size,

    /// What to wait with: epoll, or uring.
    #[arg(long, value_name = "KIND", default_value_t = ExecutorKind::Epoll)]
    pub executor: ExecutorKind,

    /// End when the first frontend goes.
    #[arg(long)]
    pub once: bool,

    /// Write one byte to this inherited descriptor when the socket can be connected to.
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<RawFd>,

    /// Print one JSON object a line for each event instead of text.
    #[arg(long)]
    pub json: bool,
}
