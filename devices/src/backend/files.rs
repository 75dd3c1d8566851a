//! The files backend: maps the files of a directory into its shared memory region, and takes orders
//! through its configuration space.
//!
//! It serves one frontend after the other. Two threads: the caller's serves the main channel and
//! never waits for the frontend's answers; the other one maps. So no order of the two channels' messages can
//! make them wait for each other.

mod mapper;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;

use base::SafeDescriptor;
use remain::sorted;
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use self::mapper::Mapper;
use self::mapper::Task;
use super::channel::Channel;
use super::config_space::ConfigSpace;
use super::config_space::Contents;
use super::config_space::FileDescription;
use super::config_space::State;
use super::config_space::Status;
use super::layout::Layout;
use super::listen::Listening;
use super::probe::Probe;
use super::report::Report;
use super::serve::Device;
use super::serve::Profile;
use super::serve::lacks_for_mapping;
use super::serve::serve;
use super::walk::Root;

/// The backend could not start, or the socket failed later.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The directory could not be opened.
    #[error(transparent)]
    Directory(#[from] super::walk::Error),
    /// The socket can't be used.
    #[error(transparent)]
    Socket(#[from] super::listen::Error),
}

/// What a files backend is asked to be.
#[derive(Debug)]
pub struct Options {
    /// Where to listen. A dead socket of that name is replaced.
    pub socket: PathBuf,
    /// The directory whose files are mapped.
    pub directory: PathBuf,
    /// The region's size in bytes; by default the files fit, and it has 64 MiB at least.
    pub region_size: Option<u64>,
    /// Whether files are opened and mapped for writing.
    pub writable: bool,
    /// Whether to end when the first frontend goes.
    pub once: bool,
    /// One byte is written to it when the socket can be connected to.
    pub ready_descriptor: Option<OwnedFd>,
    /// Hostile requests to send after the files are mapped.
    pub probes: Vec<Probe>,
}

/// Where reports go; both threads use it.
type Reporter<'a> = Mutex<&'a mut (dyn FnMut(&Report<'_>) + Send)>;

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn say(reporter: &Reporter<'_>, report: &Report<'_>) {
    (lock(reporter))(report);
}

/// Serves frontends until an error, or with `once` until the first one goes.
///
/// A frontend that breaks the protocol is dropped with a line in the log and the next one is served.
///
/// # Errors
/// [`enum@Error`] if the directory or the socket can't be used.
pub fn run(options: Options, report: &mut (dyn FnMut(&Report<'_>) + Send)) -> Result<(), Error> {
    let root = Root::open(&options.directory)?;
    let page = base::page_size() as u64;
    let layout = Layout::new(root.walk(), options.region_size, page);
    let listener = Listening::bind(&options.socket)?;
    report(&Report::Listening {
        socket: &options.socket,
    });
    listener.tell(options.ready_descriptor)?;
    report(&Report::Layout {
        files: layout.files.len(),
        region_size: layout.region_size,
    });
    for skipped in &layout.skipped {
        report(&Report::Skipped {
            path: &skipped.path,
            reason: skipped.reason,
        });
    }
    let service = Service {
        root: &root,
        layout: &layout,
        writable: options.writable,
        probes: &options.probes,
        reporter: &Mutex::new(report),
    };
    loop {
        let stream = listener.accept()?;
        service.serve_frontend(stream);
        if options.once {
            return Ok(());
        }
    }
}

/// What stays the same from frontend to frontend.
#[derive(Clone, Copy)]
struct Service<'a, 'r> {
    root: &'a Root,
    layout: &'a Layout,
    writable: bool,
    probes: &'a [Probe],
    reporter: &'a Reporter<'r>,
}

impl Service<'_, '_> {
    fn serve_frontend(self, stream: UnixStream) {
        say(self.reporter, &Report::Connected);
        let status = Mutex::new(Status::default());
        let (tasks, queue) = mpsc::channel();
        let served = thread::scope(|scope| {
            let mapper = Mapper::new(self, &status);
            scope.spawn(move || mapper.run(&queue));
            let profile = Profile::mapping(vec![(0, self.layout.region_size)]);
            let mut device = FilesDevice {
                service: self,
                status: &status,
                tasks,
                config: ConfigSpace::default(),
                channel: None,
            };
            serve(stream, &profile, &mut device)
        });
        if let Err(error) = served {
            base::warn!("the frontend is dropped: {error}");
        }
        let mapped = lock(&status).mapped;
        say(self.reporter, &Report::Disconnected { mapped });
    }
}

/// The main channel's hold on the request channel that the mapper works with.
struct Hold {
    socket: SafeDescriptor,
    /// Tells the mapper that the end is no news.
    ended: Arc<AtomicBool>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Not connected any more is as good.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// The main channel's half of the backend.
struct FilesDevice<'a, 'r> {
    service: Service<'a, 'r>,
    status: &'a Mutex<Status>,
    /// Dropped with the device, which ends the mapper.
    tasks: mpsc::Sender<Task>,
    config: ConfigSpace,
    /// The request channel, to wake the mapper up when nobody will answer it.
    channel: Option<Hold>,
}

impl FilesDevice<'_, '_> {
    fn order(&self, task: Task) {
        lock(self.status).state = State::Busy;
        // The mapper ends after this sender does.
        let _ = self.tasks.send(task);
    }
}

impl Device for FilesDevice<'_, '_> {
    fn negotiated(&mut self, features: VhostUserProtocolFeatures) {
        if let Some(reason) = lacks_for_mapping(features) {
            lock(self.status).state = State::NoChannel;
            say(self.service.reporter, &Report::NoChannel { reason });
        }
    }

    fn channel(&mut self, channel: Channel) {
        let socket = match channel.try_clone_socket() {
            Ok(socket) => socket,
            Err(error) => return base::warn!("the request channel is not used: {error}"),
        };
        let ended = Arc::new(AtomicBool::new(false));
        let has_shmem = channel.has_shmem();
        self.channel = Some(Hold {
            socket,
            ended: Arc::clone(&ended),
        });
        if has_shmem {
            self.order(Task::Channel(channel, ended));
        }
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) -> io::Result<()> {
        let layout = self.service.layout;
        let selected = layout.files.get(self.config.selected() as usize);
        let contents = Contents {
            status: *lock(self.status),
            files: u32::try_from(layout.files.len()).unwrap_or(u32::MAX),
            region_size: layout.region_size,
            selected: selected.map(|placed| FileDescription {
                name: placed.file.path.as_os_str().as_bytes(),
                offset: placed.offset,
                len: placed.file.len,
            }),
        };
        self.config
            .read(offset, out, &contents)
            .map_err(io::Error::other)
    }

    fn write_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        match self.config.write(offset, bytes) {
            Ok(Some(order)) => self.order(Task::Order(order)),
            Ok(None) => {}
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.order(Task::Reset);
    }
}

#[cfg(test)]
mod tests;
