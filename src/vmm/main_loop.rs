//! The loop that serves everything: signals, control clients, the backend's socket, the device process and its end.
//!
//! Nothing in it waits for anybody but the kernel. Calls on the device process and reads of guest memory, which can wait
//! for a backend, run [aside](super::aside).

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use base::EventToken;
use base::EventType;
use base::SignalFd;
use base::WaitContext;
use devices::control::BackendInfo;
use devices::control::WorkerStats;
use devices::device_process::DeviceProcess;
use vm_control::Generation;

use super::aside::Aside;
use super::clients::Accessed;
use super::config::Config;
use super::device;
use super::device::Death;
use super::device_state::Device;
use super::events::Event;
use super::events::Observer;
use super::holes::Holes;
use super::host;
use super::host::Host;
use super::machine::GuestFault;
use super::timer::Timer;
use crate::control::message::Refusal;
use crate::control::message::Request;
use crate::control::server::BindError;
use crate::control::server::ClientId;
use crate::control::server::Interest;
use crate::control::server::Progress;
use crate::control::server::Server;

/// What the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EventToken)]
pub(super) enum Token {
    /// SIGINT or SIGTERM.
    Signal,
    /// A client wants to connect.
    Control,
    /// A client's socket is ready.
    Client { id: u32 },
    /// Something happened in the folder of the backend's socket.
    Folder,
    /// It is time to try the backend's socket again.
    Retry,
    /// A call on the device process has come back.
    Call,
    /// An access to guest memory has come back.
    Access,
    /// The device process has something to tell.
    DeviceEvent,
    /// The device process may go on telling.
    DeviceHeed,
    /// The device process has ended.
    DeviceEnd,
    /// The process that listened on the backend's socket has ended.
    BackendEnd,
    /// The guest has met a hole.
    Hole,
}

/// Why a run of the VMM failed. What happens to a device later is told as an event and is no failure of the VMM.
#[remain::sorted]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The backend's socket can't be connected.
    #[error("cannot connect to the backend's socket {}", .path.display())]
    Backend {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The control socket can't be offered.
    #[error("cannot listen on the control socket {}", .path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: BindError,
    },
    /// The backend broke rules of the protocol, in a run that is to tell.
    #[error("the backend broke rules of the protocol: {rules} of them, {count} times in all")]
    Deviations {
        /// How many different rules.
        rules: usize,
        /// How often in all.
        count: u64,
    },
    /// The device did not start, or ended when the VMM was to end with it.
    #[error("{how}")]
    Device {
        /// How it ended.
        how: String,
    },
    /// The machine or the mapping service can't be made.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The loop itself failed: the system has no descriptor or no memory left.
    #[error("the main loop failed")]
    Loop(#[from] io::Error),
    /// The guest met a hole, and its policy is to stop.
    #[error("the guest has stopped: {0}")]
    Stopped(GuestFault),
}

/// A call on the device process that has come back.
pub(super) enum Returned {
    /// The process has been started.
    Spawned(Result<DeviceProcess, Death>),
    /// The main channel is set up.
    Connected(device::Returned<BackendInfo>),
    /// The request channel is served.
    Started(device::Returned<()>),
    /// A reset that a client asked for.
    Reset {
        client: ClientId,
        dropped: u64,
        result: device::Returned<Generation>,
    },
    /// The worker's counters for a client.
    Stats {
        client: ClientId,
        request: Request,
        result: device::Returned<WorkerStats>,
    },
}

/// The VMM while it runs.
pub(super) struct Vmm<'a> {
    pub(super) config: &'a Config,
    pub(super) observer: &'a mut dyn Observer,
    pub(super) host: Host,
    pub(super) device: Device,
    pub(super) calls: Aside<Returned>,
    pub(super) accesses: Aside<Accessed>,
    pub(super) wait: WaitContext<Token>,
    pub(super) ending: Option<Ending>,
    /// Requests of clients that wait until a call gives the device process back; one a client.
    pub(super) waiting: VecDeque<(ClientId, Request)>,
    control: Option<Server>,
    /// Clients that may have sent their next request along with the one just answered.
    revisit: Vec<ClientId>,
    /// Runs while the device process has told too much.
    pub(super) deafness: Timer,
    /// The listening socket is not watched: the process is out of descriptors.
    is_deaf: bool,
    signals: SignalFd,
    holes: Holes,
}

/// Why the loop ends.
pub(super) enum Ending {
    /// It was asked to.
    Asked(String),
    /// It can't go on.
    Failed(Error),
}

/// Blocks the signals that end the VMM, and makes them something to wait for. To be called before any thread starts.
///
/// # Errors
/// The system has no descriptor left.
pub fn signals() -> io::Result<SignalFd> {
    Ok(SignalFd::new(&[libc::SIGINT, libc::SIGTERM])?)
}

/// Runs a VMM until it is asked to stop, by a signal of `signals` among others.
///
/// # Errors
/// It could not start, with [`Config::once`] its device did not end well, or with
/// [`DeviceOptions::strict`](super::config::DeviceOptions::strict) the backend broke rules, which comes before the others.
pub fn run(config: &Config, signals: SignalFd, observer: &mut dyn Observer) -> Result<(), Error> {
    let mut vmm = Vmm::new(config, observer, signals)?;
    vmm.announce();
    vmm.begin();
    while vmm.ending.is_none() {
        if let Err(error) = vmm.turn() {
            vmm.ending = Some(Ending::Failed(Error::Loop(error)));
        }
    }
    vmm.finish()
}

impl<'a> Vmm<'a> {
    fn new(
        config: &'a Config,
        observer: &'a mut dyn Observer,
        signals: SignalFd,
    ) -> Result<Self, Error> {
        let control = config
            .control
            .as_deref()
            .map(|path| {
                Server::bind(path).map_err(|source| Error::Control {
                    path: path.to_owned(),
                    source,
                })
            })
            .transpose()?;
        let holes = Holes::new()?;
        let host = Host::new(config.guest, config.memory, config.holes, holes.reporter())?;
        let deafness = Timer::new()?;
        let calls = Aside::start("calls")?;
        let accesses = Aside::start("accesses")?;
        let wait = WaitContext::build_with(&[
            (&signals, Token::Signal),
            (calls.ready(), Token::Call),
            (accesses.ready(), Token::Access),
            (holes.ready(), Token::Hole),
            (&deafness.as_fd(), Token::DeviceHeed),
        ])
        .map_err(io::Error::from)?;
        if let Some(server) = &control {
            wait.add(server.listener(), Token::Control)
                .map_err(io::Error::from)?;
        }
        Ok(Self {
            config,
            observer,
            host,
            device: Device::default(),
            calls,
            accesses,
            wait,
            ending: None,
            waiting: VecDeque::new(),
            control,
            revisit: Vec::new(),
            deafness,
            is_deaf: false,
            signals,
            holes,
        })
    }

    fn announce(&mut self) {
        self.observer.event(Event::Started {
            pid: std::process::id(),
            guest: self.host.guest(),
            guest_reason: self.host.guest_reason().map(str::to_owned),
            sandbox: self.config.device.sandbox.level.to_string(),
            control: self.config.control.clone(),
        });
    }

    /// Waits once, and serves what is ready.
    fn turn(&mut self) -> io::Result<()> {
        let was_deaf = self.is_deaf;
        for event in self.wait.wait()? {
            match event.token {
                Token::Signal => self.signal()?,
                Token::Control => self.accept()?,
                Token::Client { id } => self.client(ClientId(id), event.is_hungup)?,
                Token::Folder | Token::Retry => self.connect_backend(),
                Token::Call => self.returned_calls(),
                Token::Access => self.returned_accesses(),
                Token::DeviceEvent => self.device_events(),
                Token::DeviceHeed => self.heed_device()?,
                Token::DeviceEnd => self.device_ended(),
                Token::BackendEnd => self.backend_ended(),
                Token::Hole => self.hole(),
            }
        }
        if was_deaf {
            // Something has happened, so there may be descriptors again.
            self.is_deaf = false;
            if let Some(server) = &self.control {
                self.wait
                    .modify(server.listener(), EventType::Read, Token::Control)?;
            }
        }
        // An answered client may have sent its next request before: its socket has nothing more to tell.
        while let Some(id) = self.revisit.pop() {
            self.client(id, false)?;
        }
        Ok(())
    }

    fn signal(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.read()? {
            let name = match signal {
                libc::SIGINT => "SIGINT",
                _ => "SIGTERM",
            };
            self.end(name);
        }
        Ok(())
    }

    /// Ends the loop because somebody asked for it.
    pub(super) fn end(&mut self, reason: &str) {
        if self.ending.is_none() {
            self.ending = Some(Ending::Asked(reason.to_owned()));
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let Some(server) = &mut self.control else {
            return Ok(());
        };
        loop {
            match server.accept() {
                Ok(Some(accepted)) => {
                    let Some(stream) = server.stream(accepted.id) else {
                        continue;
                    };
                    let token = Token::Client { id: accepted.id.0 };
                    self.wait.add(stream, token)?;
                }
                Ok(None) => return Ok(()),
                Err(error) => {
                    // Out of descriptors, most likely: whoever waits is not served until a client has gone.
                    tracing::warn!("cannot accept a control client: {error}");
                    if !server.make_room() {
                        self.is_deaf = true;
                        self.wait
                            .modify(server.listener(), EventType::None, Token::Control)?;
                    }
                    return Ok(());
                }
            }
        }
    }

    fn client(&mut self, id: ClientId, is_hungup: bool) -> io::Result<()> {
        let Some(server) = &mut self.control else {
            return Ok(());
        };
        match server.ready(id) {
            Progress::Request(request) => self.request(id, request),
            Progress::Idle if is_hungup && server.interest(id) == Some(Interest::NONE) => {
                // Nobody is there to read the answer that it waits for.
                server.remove(id);
            }
            Progress::Idle | Progress::Gone => {}
        }
        self.watch_client(id)
    }

    /// Answers a client.
    pub(super) fn answer<T: serde::Serialize>(&mut self, id: ClientId, result: Result<T, Refusal>) {
        if let Some(server) = &mut self.control {
            server.answer(id, result);
            self.revisit.push(id);
        }
    }

    fn watch_client(&self, id: ClientId) -> io::Result<()> {
        let Some((stream, interest)) = self
            .control
            .as_ref()
            .and_then(|server| Some((server.stream(id)?, server.interest(id)?)))
        else {
            return Ok(());
        };
        let event_type = match interest {
            Interest { read, write: true } if read => EventType::ReadWrite,
            Interest { write: true, .. } => EventType::Write,
            Interest { read: true, .. } => EventType::Read,
            Interest { .. } => EventType::None,
        };
        self.wait
            .modify(stream, event_type, Token::Client { id: id.0 })?;
        Ok(())
    }

    fn hole(&mut self) {
        for hole in self.holes.take() {
            self.observer.event(hole);
        }
        if let Some(fault) = self.host.machine().stopped() {
            self.fail(Error::Stopped(fault));
        }
    }
}
