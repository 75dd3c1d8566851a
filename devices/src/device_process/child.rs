//! The device process itself: from its command line to its exit code.
//!
//! The order is what makes it safe. Descriptors are taken and checked and the filters compiled while the process can
//! still see the world; then come the namespaces; then everything that needs a system call which the policy lacks
//! (socket pairs for request channels, wait contexts, events, the worker's thread); then the filter, on all threads.
//! Only then is a byte of the backend looked at.
//!
//! The main thread serves the control tube, and it is the only one that ever waits for the backend. The worker sees the
//! memory tube and the backend's hang-up; where its end has to end the process while the main thread may be waiting, it
//! ends it from there.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use anyhow::Context;
use anyhow::bail;
use base::DescriptorKind;
use base::Event;
use base::SafeDescriptor;
use base::Tube;
use base::error;
use base::packet::PacketTube;
use rustix::net::AddressFamily;
use rustix::net::SocketType;
use rustix::net::sockopt;
use vm_control::Generation;
use vmm_vhost::Peer;

use super::args::DeviceArgs;
use super::serve::Control;
use crate::exit::Exit;
use crate::vhost_user_frontend::VhostUserFrontend;
use crate::worker::Worker;
use crate::worker::WorkerConfig;
use crate::worker::WorkerExit;
use crate::worker::WorkerHandle;

/// The name of the policy, without its extension.
const POLICY: &str = "device";

/// Descriptor numbers end here: an activation can bring two for each of 64 queues, and a backend can make us hold one for
/// each request of a batch.
const OPEN_FILES: u64 = 256;

/// How a step of the start can fail: with the exit code that tells of it.
struct StartError {
    exit: Exit,
    cause: anyhow::Error,
}

impl StartError {
    fn failed(cause: anyhow::Error) -> Self {
        Self {
            exit: Exit::Failed,
            cause,
        }
    }

    fn jail(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            exit: Exit::Jail,
            cause: cause.into(),
        }
    }
}

/// Runs a device process and returns its exit code. To be called first thing in `main`: no other thread may exist.
pub fn run(args: DeviceArgs) -> i32 {
    let name = args.name.clone();
    let exit = start(args).unwrap_or_else(|StartError { exit, cause }| {
        error!("device process {name}: {cause:#}");
        exit
    });
    exit.code()
}

fn start(args: DeviceArgs) -> Result<Exit, StartError> {
    let violation = args.sandbox.violation;
    let filters = jail::Filters::for_process(POLICY, args.sandbox.policy_dir.as_deref(), violation)
        .map_err(StartError::jail)?;
    let report = take_optional(args.report_fd).map_err(StartError::failed)?;
    let listener = take_optional(args.listener_fd).map_err(StartError::failed)?;
    let descriptors = Descriptors::take(&args).map_err(StartError::failed)?;
    let jail = jail::enter(jail::Sandbox {
        name: args.name,
        level: args.sandbox.level,
        report,
        listener,
        keep: descriptors.numbers(),
        limits: jail::Limits {
            open_files: OPEN_FILES,
            ..jail::Limits::default()
        },
    })
    .map_err(StartError::jail)?;
    let control = prepare(descriptors).map_err(StartError::failed)?;
    jail.lock_down(&filters).map_err(StartError::jail)?;
    Ok(control.serve())
}

/// Makes everything that the policy does not let us make later.
pub(super) fn prepare(descriptors: Descriptors) -> anyhow::Result<Control> {
    let ended = Event::new().context("event for the worker's end")?;
    let slot = Arc::new(Mutex::new(None));
    let main_channel = descriptors.backend.as_fd().try_clone_to_owned();
    let main_channel = main_channel.context("duplicate of the main channel")?;
    let worker = Worker::new(WorkerConfig {
        memory: descriptors.memory,
        generation: Generation::default(),
        events: PacketTube::new(descriptors.events),
        interrupt: descriptors.interrupt,
        main_channel: Some(main_channel.into()),
        peer: Peer::Remote,
        hooks: descriptors.hooks.map(PacketTube::new),
    })
    .context("worker")?;
    let worker = WorkerHandle::start(worker, note_exit(&ended, &slot)?).context("worker thread")?;
    let frontend = VhostUserFrontend::new(descriptors.backend)?;
    Ok(Control::new(
        descriptors.control,
        frontend,
        worker,
        ended,
        slot,
    )?)
}

type ExitSlot = Arc<Mutex<Option<WorkerExit>>>;

/// Makes what runs on the worker's thread when it ends.
fn note_exit(
    ended: &Event,
    slot: &ExitSlot,
) -> anyhow::Result<impl FnOnce(&WorkerExit) + Send + 'static> {
    let ended = ended.try_clone().context("event for the worker's end")?;
    let slot = slot.clone();
    Ok(move |exit: &WorkerExit| {
        // The main thread may be waiting for a backend that will never answer; it can't be told.
        if let WorkerExit::ServiceGone | WorkerExit::Failed(_) = exit {
            process::exit(super::serve::exit_of(*exit).code());
        }
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(*exit);
        if let Err(error) = ended.signal() {
            error!("cannot tell of the worker's end: {error}");
        }
    })
}

/// The descriptors of the command line, owned, each of the kind that it should be.
pub(super) struct Descriptors {
    pub(super) backend: UnixStream,
    pub(super) control: Tube,
    pub(super) memory: Tube,
    pub(super) events: Tube,
    pub(super) interrupt: Event,
    pub(super) hooks: Option<Tube>,
}

impl Descriptors {
    fn take(args: &DeviceArgs) -> anyhow::Result<Self> {
        Ok(Self {
            backend: take_stream(args.backend_fd).context("--backend-fd")?,
            control: take_tube(args.control_fd).context("--control-fd")?,
            memory: take_tube(args.memory_fd).context("--memory-fd")?,
            events: take_tube(args.event_fd).context("--event-fd")?,
            interrupt: take_event(args.interrupt_fd).context("--interrupt-fd")?,
            hooks: args
                .hook_fd
                .map(take_tube)
                .transpose()
                .context("--hook-fd")?,
        })
    }

    fn numbers(&self) -> Vec<RawFd> {
        let named = [
            self.backend.as_fd(),
            self.control.as_fd(),
            self.memory.as_fd(),
            self.events.as_fd(),
            self.interrupt.as_fd(),
        ];
        let hooks = self.hooks.as_ref().map(AsFd::as_fd);
        named.iter().chain(&hooks).map(AsRawFd::as_raw_fd).collect()
    }
}

fn take_optional(number: Option<RawFd>) -> anyhow::Result<Option<OwnedFd>> {
    Ok(number.map(jail::take_inherited).transpose()?)
}

fn take_stream(number: RawFd) -> anyhow::Result<UnixStream> {
    let descriptor = jail::take_inherited(number)?;
    let family = sockopt::socket_domain(&descriptor);
    let kind = sockopt::socket_type(&descriptor);
    if (family, kind) != (Ok(AddressFamily::UNIX), Ok(SocketType::STREAM)) {
        bail!("descriptor {number} is not a unix stream socket");
    }
    Ok(UnixStream::from(descriptor))
}

fn take_tube(number: RawFd) -> anyhow::Result<Tube> {
    let descriptor = SafeDescriptor::from(jail::take_inherited(number)?);
    Tube::from_descriptor(descriptor)
        .with_context(|| format!("descriptor {number} is not a tube (a unix seqpacket socket)"))
}

fn take_event(number: RawFd) -> anyhow::Result<Event> {
    let descriptor = jail::take_inherited(number)?;
    let info = base::inspect(descriptor.as_fd())?;
    if info.kind != DescriptorKind::Anonymous {
        bail!("descriptor {number} is not an eventfd but {:?}", info.kind);
    }
    Ok(Event::from(SafeDescriptor::from(descriptor)))
}
