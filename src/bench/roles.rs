//! What the processes of a benchmark do. Each is this program again, with its socket as standard input.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::ValueEnum;
use rustix::fs::MemfdFlags;
use vhost::vhost_user::Backend;
use vhost::vhost_user::FrontendReqHandler;
use vhost::vhost_user::HandlerResult;
use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::VhostUserFrontendReqHandlerMut;
use vhost::vhost_user::message::VhostUserMMap;
use vhost::vhost_user::message::VhostUserMMapFlags;

use super::bare;
use super::bare::Range;
use super::limits;
use super::scale::backends;
use super::workload::Driver;
use super::workload::Measured;
use super::workload::REGION_BYTES;
use super::workload::Workload;

/// A process of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// The backend of the limits: the request channel is its standard input.
    Driver,
    /// The backend of Portcullis: its standard input is the main channel.
    BackendDriver,
    /// The backend of the crate `vhost`.
    VhostDriver,
    /// The device process of `limit2`.
    Middle,
    /// The device process of `limit2p`.
    ForwardingMiddle,
    /// The VMM of the limits.
    Mapper,
    /// The VMM of the crate `vhost`.
    VhostHandler,
    /// The VMM of Portcullis.
    Vmm,
    /// Many backends of Portcullis: their main channels come over its standard input, and then its orders.
    Backends,
}

impl Role {
    pub(super) fn name(self) -> String {
        self.to_possible_value()
            .expect("no role is hidden from the command line")
            .get_name()
            .to_owned()
    }
}

/// The command line of `portcullis bench-role`.
#[derive(Debug, Args)]
pub struct RoleArgs {
    /// What this process does.
    role: Role,
    /// Runs on this CPU only.
    #[arg(long)]
    cpu: Option<usize>,
    /// Runs with SCHED_FIFO 10.
    #[arg(long)]
    realtime: bool,
    /// What a driver does, as JSON.
    #[arg(long)]
    workload: Option<String>,
}

/// Runs a role to its end.
///
/// # Errors
/// If the peers do not do their part, or a system call fails.
pub fn run(arguments: &RoleArgs) -> Result<()> {
    bare::place(arguments.cpu, arguments.realtime).context("placement")?;
    let input = own(io::stdin())?;
    let output = || own(io::stdout());
    match arguments.role {
        Role::Driver => drive(arguments, || Ok(input)),
        Role::BackendDriver => drive(arguments, || {
            super::portcullis::request_channel(input, REGION_BYTES)
        }),
        Role::VhostDriver => drive_vhost(arguments, input),
        Role::Middle => Ok(limits::middle(&input, &output()?)?),
        Role::ForwardingMiddle => Ok(limits::forwarding_middle(input, output()?)?),
        Role::Mapper => on_a_thread(move || limits::mapper(&input)),
        Role::VhostHandler => vhost_handler(input),
        Role::Backends => backends::run(input),
        Role::Vmm => super::portcullis::vmm(input, arguments.cpu.filter(|_| !arguments.realtime)),
    }
}

fn own(stream: impl AsFd) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// Runs the VMM's part on a spawned thread, as a mapping service does: where its loop runs changes the cost of its calls.
fn on_a_thread(body: impl FnOnce() -> io::Result<()> + Send + 'static) -> Result<()> {
    let result = thread::Builder::new()
        .name("mapper".to_owned())
        .spawn(body)?
        .join()
        .map_err(|_| anyhow::anyhow!("the mapper panicked"))?;
    Ok(result?)
}

/// A memfd of `bytes`, none of which is there until it is touched.
pub(super) fn memfd(bytes: u64) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("bench", MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, bytes)?;
    Ok(file)
}

/// The driver's conversation with the benchmark: `warm`, a line, the measurement, a line.
struct Control {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Control {
    fn new() -> Result<Control> {
        let stream = UnixStream::from(own(io::stdout())?);
        Ok(Control {
            lines: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    fn warm(&mut self) -> Result<()> {
        self.stream.write_all(b"warm\n")?;
        self.wait()
    }

    fn measured(&mut self, measured: &Measured) -> Result<()> {
        let line = serde_json::to_string(measured)?;
        writeln!(self.stream, "{line}")?;
        self.wait()
    }

    fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(())
    }
}

fn workload(arguments: &RoleArgs) -> Result<Workload> {
    let text = arguments.workload.as_deref().context("no --workload")?;
    serde_json::from_str(text).context("--workload")
}

fn drive(arguments: &RoleArgs, channel: impl FnOnce() -> Result<OwnedFd>) -> Result<()> {
    let workload = workload(arguments)?;
    let mut control = Control::new()?;
    let mut driver = Driver::new(channel()?, memfd(REGION_BYTES)?, REGION_BYTES);
    driver.warm_up(&workload)?;
    control.warm()?;
    let measured = driver.run(&workload)?;
    control.measured(&measured)
}

/// The crate's own proxy, one at a time: it has no other way.
fn drive_vhost(arguments: &RoleArgs, input: OwnedFd) -> Result<()> {
    let workload = workload(arguments)?;
    let mut control = Control::new()?;
    let (_, channel) = bare::receive(input.as_fd(), &mut [0])?;
    let channel = channel.context("the handler sent no channel")?;
    let proxy = Backend::from_stream(UnixStream::from(channel));
    proxy.set_reply_ack_flag(true);
    proxy.set_shmem_flag(true);
    let file = memfd(REGION_BYTES)?;
    let pair = |slot: u64| -> Result<()> {
        let offset = slot % workload.slots * workload.len;
        let mut request = VhostUserMMap {
            fd_offset: offset,
            shm_offset: offset,
            len: workload.len,
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        };
        proxy.shmem_map(&request, &file)?;
        request.fd_offset = 0;
        request.flags = 0;
        proxy.shmem_unmap(&request)?;
        Ok(())
    };
    for slot in 0..u64::from(workload.warm_up) {
        pair(slot)?;
    }
    control.warm()?;
    let mut took = Vec::with_capacity(workload.pairs as usize);
    let start = Instant::now();
    for slot in 0..u64::from(workload.pairs) {
        let start = Instant::now();
        pair(slot)?;
        took.push(start.elapsed());
    }
    control.measured(&Measured::of(workload.pairs, start.elapsed(), took, 1))
}

/// Maps what the crate's handler hands over, with the same two calls as the limits.
struct Mapper {
    range: Range,
}

impl VhostUserFrontendReqHandlerMut for Mapper {
    fn shmem_map(&mut self, request: &VhostUserMMap, file: &dyn AsRawFd) -> HandlerResult<u64> {
        self.range.map_number(
            request.shm_offset,
            request.len,
            file.as_raw_fd(),
            request.fd_offset,
        )?;
        Ok(0)
    }

    fn shmem_unmap(&mut self, request: &VhostUserMMap) -> HandlerResult<u64> {
        self.range.unmap(request.shm_offset, request.len)?;
        Ok(0)
    }
}

fn vhost_handler(input: OwnedFd) -> Result<()> {
    let bytes = usize::try_from(REGION_BYTES)?;
    let mapper = Arc::new(Mutex::new(Mapper {
        range: Range::reserve(bytes)?,
    }));
    let mut handler = FrontendReqHandler::new(mapper)?;
    handler.set_reply_ack_flag(true);
    bare::send_number(input.as_fd(), &[0], Some(handler.get_tx_raw_fd()))?;
    // The handler holds both ends of its channel, so that the backend's end is seen on the standard input instead.
    thread::spawn(move || {
        let _ = bare::receive(input.as_fd(), &mut [0]);
        std::process::exit(0);
    });
    on_a_thread(move || {
        loop {
            handler.handle_request().map_err(io::Error::other)?;
        }
    })
}
