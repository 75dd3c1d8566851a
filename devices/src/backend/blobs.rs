//! The blobs backend: a virtio device with one queue, whose driver asks for blobs of memory in its shared memory region.
//!
//! A blob is a memfd, sealed against shrinking. The driver allocates it, has it mapped at an offset of region 0 that the
//! driver chooses, changes how much of the region it uses, has it filled, and asks about it. It is built on `cros_async`,
//! with either of its executors.
//!
//! It serves one frontend after the other. Two threads: the caller's serves the main channel; the other one serves the
//! queue and the request channel, and takes commands over a tube. A frontend that answers no map request for ten seconds
//! loses the request channel.
//!
//! # What driver and device say
//!
//! All numbers are little endian. A request is a chain of exactly 40 bytes for the device to read, and at least 40 for it
//! to write, in whatever pieces.
//!
//! | offset | request | response |
//! |---|---|---|
//! | 0 | operation, u32 | status, u32: 0 or an errno of Linux |
//! | 4 | flags, u32 | blob, u32 |
//! | 8 | blob, u32 | number of blobs, u32 |
//! | 12 | pattern, u32 | flags, u32: 1 if mapped writable |
//! | 16 | offset in the region, u64 | bytes of the blob, u64 |
//! | 24 | offset in the blob, u64 | offset in the region, u64; all ones if not mapped |
//! | 32 | length, u64 | bytes of the region in use, u64 |
//!
//! What an operation does not use is not looked at, except for flags, which must be zero.
//!
//! | operation | uses | does |
//! |---|---|---|
//! | 1 ALLOCATE | length | makes a blob of zeros; its name, 1 or more, is in the response |
//! | 2 FREE | blob | gives up a blob; EBUSY if it is mapped |
//! | 3 MAP | flags (1: writable), blob, offsets, length | maps a part of a blob; EBUSY if one is, ERANGE outside of the blob |
//! | 4 UNMAP | blob | unmaps it; ENXIO if it is not mapped |
//! | 5 RESIZE | blob, length | maps it anew at the same place, with another length; the blob grows where it must |
//! | 6 FILL | blob, pattern, offset in the blob, length | fills a part with the pattern, again and again |
//! | 7 INFO | blob | describes a blob, or with 0 all: their bytes, and the bytes of the region in use |
//!
//! Other errnos: ENOENT no such blob; EINVAL a length of zero, unknown flags, a request of another size; EDQUOT a limit;
//! EOPNOTSUPP another operation; ENOTCONN no request channel; ETIMEDOUT the frontend does not answer; any other is the
//! frontend's own. A chain without room for a response is used with length 0 and has no effect. A refused RESIZE leaves the
//! mapping as it was, though it was gone for a moment; the blob may have grown.
//!
//! The configuration space is read-only: bytes of region 0, u64; the page size, u32, of which offsets are multiples; how many
//! blobs there can be, u32; how many bytes they can have together, u64. What is read behind that is zero.
//!
//! A reset of the device drops all blobs. A new request channel finds the blobs unmapped.

pub mod frontend;
mod main_channel;
pub mod protocol;
pub mod report;
pub mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use base::RateLimit;
use base::Tube;
use base::TubeError;
use cros_async::Executor;
use cros_async::ExecutorKind;
use remain::sorted;
use thiserror::Error;

pub use report::Report;
pub use table::Limits;

use self::main_channel::MainChannel;
use self::protocol::Config;
use self::table::Table;
use self::worker::Worker;
use super::listen::Listening;
use super::serve::serve;

/// The backend could not start, or the socket failed later.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// There is no executor of the flavour that was asked for.
    #[error(transparent)]
    Executor(#[from] cros_async::Error),
    /// The region is no region.
    #[error("a region of {bytes} bytes: it must be a multiple of {page}, and not zero")]
    Region {
        /// The size that was asked for.
        bytes: u64,
        /// The size of a page.
        page: u64,
    },
    /// The socket can't be used.
    #[error(transparent)]
    Socket(#[from] super::listen::Error),
    /// The two threads can't speak to each other.
    #[error("a tube between the threads")]
    Tube(#[from] TubeError),
}

/// What a blobs backend is asked to be.
#[derive(Debug)]
pub struct Options {
    /// Where to listen. A dead socket of that name is replaced.
    pub socket: PathBuf,
    /// The size of region 0 in bytes.
    pub region_size: u64,
    /// How much a driver can have.
    pub limits: Limits,
    /// What to wait with.
    pub executor: ExecutorKind,
    /// Whether to end when the first frontend goes.
    pub once: bool,
    /// One byte is written to it when the socket can be connected to.
    pub ready_descriptor: Option<OwnedFd>,
}

impl Options {
    /// A region of 256 MiB, 256 blobs of 1 GiB together, epoll; it serves until it is stopped.
    pub fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            region_size: 256 << 20,
            limits: Limits {
                max_blobs: 256,
                max_bytes: 1 << 30,
            },
            executor: ExecutorKind::Epoll,
            once: false,
            ready_descriptor: None,
        }
    }
}

/// How often a driver's mistakes are logged.
const LOG_BURST: u32 = 10;
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// Where reports go; both threads use it.
type Reporter<'a> = Mutex<&'a mut (dyn FnMut(&Report<'_>) + Send)>;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn say(reporter: &Reporter<'_>, report: &Report<'_>) {
    (lock(reporter))(report);
}

/// Serves frontends until an error, or with `once` until the first one goes.
///
/// A frontend that breaks the protocol is dropped with a line in the log and the next one is served.
///
/// # Errors
/// [`enum@Error`] if the executor, the region or the socket can't be had.
pub fn run(options: Options, report: &mut (dyn FnMut(&Report<'_>) + Send)) -> Result<(), Error> {
    let service = Service::new(&options)?;
    let listener = Listening::bind(&options.socket)?;
    report(&Report::Listening {
        socket: &options.socket,
    });
    listener.tell(options.ready_descriptor)?;
    let reporter = Mutex::new(report);
    loop {
        let stream = listener.accept()?;
        service.serve_frontend(stream, &reporter)?;
        if options.once {
            return Ok(());
        }
    }
}

/// What stays the same from frontend to frontend.
#[derive(Clone, Copy, Debug)]
struct Service {
    config: Config,
    limits: Limits,
    executor: ExecutorKind,
    reply_deadline: Duration,
}

impl Service {
    fn new(options: &Options) -> Result<Self, Error> {
        let page = base::page_size();
        let bytes = options.region_size;
        if bytes == 0 || !bytes.is_multiple_of(page as u64) {
            let page = page as u64;
            return Err(Error::Region { bytes, page });
        }
        // Whether there is one is better said now than to the first frontend.
        drop(Executor::with_executor_kind(options.executor)?);
        Ok(Self {
            config: Config {
                region_bytes: bytes,
                page_bytes: u32::try_from(page).unwrap_or(u32::MAX),
                max_blobs: options.limits.max_blobs,
                max_bytes: options.limits.max_bytes,
            },
            limits: options.limits,
            executor: options.executor,
            reply_deadline: frontend::REPLY_DEADLINE,
        })
    }

    /// Serves one frontend until it goes.
    fn serve_frontend(&self, stream: UnixStream, reporter: &Reporter<'_>) -> Result<(), Error> {
        say(reporter, &Report::Connected);
        let slot = Mutex::new(None);
        let (orders, commands) = Tube::pair()?;
        let requests = thread::scope(|scope| {
            let worker = scope.spawn(|| self.work(commands, &slot, reporter));
            let mut device = MainChannel {
                orders,
                slot: &slot,
                config: self.config,
                reporter,
            };
            if let Err(error) = serve(stream, &device.profile(), &mut device) {
                base::warn!("the frontend is dropped: {error}");
            }
            // That ends the worker.
            drop(device);
            worker.join()
        });
        let requests = match requests {
            Ok(Ok(requests)) => requests,
            Ok(Err(error)) => {
                base::error!("the queue was not served to the end: {error}");
                0
            }
            Err(panic) => std::panic::resume_unwind(panic),
        };
        say(reporter, &Report::Disconnected { requests });
        Ok(())
    }

    fn work(
        &self,
        commands: Tube,
        slot: &worker::Slot,
        reporter: &Reporter<'_>,
    ) -> Result<u64, worker::Error> {
        let worker = Worker {
            ex: Executor::with_executor_kind(self.executor)?,
            slot,
            reporter,
            table: Table::new(self.limits).into(),
            reply_deadline: self.reply_deadline,
            frontend: None.into(),
            stopping: false.into(),
            requests: 0.into(),
            complaints: RateLimit::new(LOG_BURST, LOG_INTERVAL).into(),
        };
        worker.run(commands)
    }
}
