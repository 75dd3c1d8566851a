//! The VMM's handle of a device process.
//!
//! Nothing that comes back is believed beyond its shape, and nothing is waited for longer than the deadline: a process
//! that misses it, or that answers what was not asked, is killed. What it had mapped goes with it, since the mapping
//! service sees the end of its tube.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use base::Event;
use base::GuardedTube;
use base::Tube;
use base::TubeError;
use jail::ExitReport;
use jail::JailedChild;
use jail::MissingCall;
use jail::Program;
use jail::SpawnRequest;
use jail::Spawner;
use jail::Stderr;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::io::Errno;
use vm_control::DeviceId;
use vm_control::Generation;
use vm_control::ServiceHandle;

use super::args::LOG;
use super::args::POLICY_DIR;
use super::args::SandboxOptions;
use super::calls::Answer;
use super::error::Error;
use super::log_level::LogLevel;
use crate::control::Activation;
use crate::control::BackendInfo;
use crate::control::ConnectOptions;
use crate::control::ControlRequest;
use crate::control::DeviceEvent;
use crate::control::MAX_CONFIG_BYTES;
use crate::control::RegionSource;
use crate::control::VringBase;
use crate::control::WorkerStats;
use crate::shmem_config;

/// How long a call waits for the device process, and so for the backend, before the process is killed.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a dropped handle waits for the end of the process that it has killed.
const KILL_PATIENCE: Duration = Duration::from_secs(1);

/// What a device process is started with.
#[derive(Debug)]
pub struct DeviceProcessConfig {
    /// The device's name, for logs and reports.
    pub name: String,
    /// The program that serves `device`; without one, the program that is running now.
    pub program: Option<PathBuf>,
    /// The main channel: a stream socket that is connected to the backend.
    pub backend: OwnedFd,
    /// The device's end of its tube to the mapping service.
    pub memory: Tube,
    /// Signalled when the device's configuration space has changed. Keep a clone.
    pub interrupt: Event,
    /// How it is jailed.
    pub sandbox: SandboxOptions,
    /// How much it logs, to this process's standard error.
    pub log: LogLevel,
    /// How the main channel is set up.
    pub connect: ConnectOptions,
    /// How long each call may take.
    pub deadline: Duration,
}

impl DeviceProcessConfig {
    /// Names what has no default: the full jail, this program and [`DEFAULT_DEADLINE`] are the others.
    pub fn new(name: impl Into<String>, backend: OwnedFd, memory: Tube, interrupt: Event) -> Self {
        Self {
            name: name.into(),
            program: None,
            backend,
            memory,
            interrupt,
            sandbox: SandboxOptions::default(),
            log: LogLevel::default(),
            connect: ConnectOptions::default(),
            deadline: DEFAULT_DEADLINE,
        }
    }
}

/// A running device process. Dropping it kills and reaps it.
#[derive(Debug)]
pub struct DeviceProcess {
    /// Taken by `drop` alone.
    child: Option<JailedChild>,
    pid: u32,
    pub(super) control: GuardedTube,
    events: GuardedTube,
    pub(super) hooks: Option<GuardedTube>,
    connect: ConnectOptions,
    pub(super) deadline: Duration,
    report: Option<ExitReport>,
}

impl DeviceProcess {
    /// Starts the process and returns once it is within its jail; the backend has not been spoken to.
    ///
    /// # Errors
    /// [`Error::Tube`]; [`Error::Spawn`], which says which step of the jail failed.
    pub fn spawn(spawner: &Spawner, config: DeviceProcessConfig) -> Result<Self, Error> {
        let (control, their_control) = Tube::pair().map_err(Error::Tube)?;
        let (events, their_events) = Tube::pair().map_err(Error::Tube)?;
        control
            .set_recv_timeout(Some(config.deadline))
            .map_err(Error::Tube)?;
        control
            .set_send_timeout(Some(config.deadline))
            .map_err(Error::Tube)?;
        let (hooks, their_hooks) = if config.connect.iommu || config.connect.shared_objects {
            let (ours, theirs) = Tube::pair().map_err(Error::Tube)?;
            (Some(GuardedTube::new(ours)), Some(theirs))
        } else {
            (None, None)
        };
        let mut descriptors = vec![
            ("backend", config.backend.as_fd()),
            ("control", their_control.as_fd()),
            ("memory", config.memory.as_fd()),
            ("event", their_events.as_fd()),
            ("interrupt", config.interrupt.as_fd()),
        ];
        descriptors.extend(their_hooks.as_ref().map(|tube| ("hook", tube.as_fd())));
        let mut arguments = vec![OsString::from("device")];
        if config.log != LogLevel::default() {
            arguments.extend([LOG, &config.log.to_string()].map(OsString::from));
        }
        if let Some(dir) = &config.sandbox.policy_dir {
            arguments.extend([OsString::from(POLICY_DIR), dir.clone().into_os_string()]);
        }
        let child = spawner
            .spawn(SpawnRequest {
                name: &config.name,
                program: match &config.program {
                    Some(path) => Program::Path(path),
                    None => Program::SelfExe,
                },
                arguments: &arguments,
                descriptors: &descriptors,
                level: config.sandbox.level,
                violation: config.sandbox.violation,
                environment: &[],
                stderr: Stderr::Forward,
            })
            .map_err(Error::Spawn)?;
        Ok(Self {
            pid: child.pid(),
            child: Some(child),
            control: GuardedTube::new(control),
            events: GuardedTube::new(events),
            hooks,
            connect: config.connect,
            deadline: config.deadline,
            report: None,
        })
    }

    /// Sets up the main channel and returns what the backend is like.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if the backend is not fit to be used; the fatal ones.
    pub fn connect(&mut self) -> Result<BackendInfo, Error> {
        const CALL: &str = "connect";
        let request = ControlRequest::Connect(self.connect.clone());
        match self.call(CALL, &request)? {
            Answer::Connected(info) => self.check_regions(info),
            _ => Err(self.unexpected(CALL)),
        }
    }

    /// Gives the backend its request channel, which is served from then on. The regions must be registered.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if the backend does not take it, or has had its last one; the fatal ones.
    pub fn start(&mut self) -> Result<(), Error> {
        self.call_done("start", &ControlRequest::Start)
    }

    /// Tells the backend that the driver is ready, with its features, memory and queues.
    ///
    /// A config change that came before is delivered now.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if a queue can't be, or the backend refuses; the fatal ones.
    pub fn activate(&mut self, activation: Activation) -> Result<(), Error> {
        self.call_done("activate", &ControlRequest::Activate(activation))
    }

    /// Stops the queues and returns where each of them stands. Mappings stay.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if the backend refuses; the fatal ones.
    pub fn deactivate(&mut self) -> Result<Vec<VringBase>, Error> {
        const CALL: &str = "deactivate";
        match self.call(CALL, &ControlRequest::Deactivate)? {
            Answer::Stopped(bases) => Ok(bases),
            _ => Err(self.unexpected(CALL)),
        }
    }

    /// Puts the device to sleep: its queues stop, its mappings stay, a config change is remembered.
    ///
    /// # Errors
    /// As [`Self::deactivate`].
    pub fn sleep(&mut self) -> Result<Vec<VringBase>, Error> {
        self.deactivate()
    }

    /// Wakes the device: `activation` is the one that it had, with the queues' bases that [`Self::sleep`] returned.
    ///
    /// # Errors
    /// As [`Self::activate`].
    pub fn wake(&mut self, activation: Activation) -> Result<(), Error> {
        self.activate(activation)
    }

    /// Resets the device and returns the generation that it is in from now on.
    ///
    /// When it returns, none of the device's mappings is left, whatever else went wrong, and no request of before will
    /// make one.
    ///
    /// # Errors
    /// [`Error::Service`] if the service does not know the device; [`Error::Unsuccessful`] if the backend did not follow
    /// (the mappings are gone all the same); the fatal ones.
    pub fn reset(
        &mut self,
        service: &ServiceHandle,
        device: DeviceId,
    ) -> Result<Generation, Error> {
        let reset = self.call_done("reset", &ControlRequest::Reset);
        let generation = service.reset_device(device).map_err(Error::Service)?;
        if let Err(error) = &reset
            && error.is_fatal()
        {
            return reset.map(|()| generation);
        }
        self.call_done("resume", &ControlRequest::Resume { generation })?;
        reset.map(|()| generation)
    }

    /// Reads `len` bytes of the device's configuration space.
    ///
    /// # Errors
    /// [`Error::Unsuccessful`] if the range can't be or the backend refuses; the fatal ones.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        const CALL: &str = "read config";
        match self.call(CALL, &ControlRequest::ReadConfig { offset, len })? {
            Answer::Config(bytes) if bytes.len() as u64 == u64::from(len) => Ok(bytes),
            _ => Err(self.unexpected(CALL)),
        }
    }

    /// Writes to the device's configuration space.
    ///
    /// # Errors
    /// [`Error::ConfigLength`]; [`Error::Unsuccessful`] if the range can't be or the backend refuses; the fatal ones.
    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() as u64 > u64::from(MAX_CONFIG_BYTES) {
            return Err(Error::ConfigLength { len: bytes.len() });
        }
        let request = ControlRequest::WriteConfig {
            offset,
            data: bytes.to_vec(),
        };
        self.call_done("write config", &request)
    }

    /// Returns the counters of the request channel.
    ///
    /// # Errors
    /// The fatal ones.
    pub fn stats(&mut self) -> Result<WorkerStats, Error> {
        const CALL: &str = "stats";
        match self.call(CALL, &ControlRequest::Stats)? {
            Answer::Stats(stats) => Ok(stats),
            _ => Err(self.unexpected(CALL)),
        }
    }

    /// Ends the process in good order, or kills it if it does not end within the deadline.
    ///
    /// # Errors
    /// As [`Self::kill`].
    pub fn shutdown(&mut self) -> io::Result<ExitReport> {
        // If the call fails the process is gone or going, and the report says how.
        let _ = self.call("shutdown", &ControlRequest::Shutdown);
        match self.reap() {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => self.kill(),
            result => result,
        }
    }

    /// Kills the process and waits for its end, no longer than the deadline.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] if the kernel can't end it now: it may be closing a descriptor of a file system that
    /// its backend serves. The service has to be told then to remove the device. Otherwise what killing or waiting for a
    /// process fails with.
    pub fn kill(&mut self) -> io::Result<ExitReport> {
        if self.exit_report().is_none() {
            self.child().kill()?;
        }
        self.reap()
    }

    /// Returns the process's id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns a descriptor that becomes readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.child().pidfd()
    }

    /// Returns how the process ended, if it has. Never waits.
    pub fn exit_report(&mut self) -> Option<&ExitReport> {
        if self.report.is_none() {
            let child = self.child.as_mut();
            self.report = child.and_then(|child| child.try_wait().ok().flatten());
        }
        self.report.as_ref()
    }

    /// Returns the names of the namespaces that the process has to itself, as it said before it met its backend.
    pub fn own_namespaces(&self) -> &[&'static str] {
        self.child().own_namespaces()
    }

    /// Returns the system calls that the policy lacked so far, where violations are only noted.
    pub fn missing_calls(&self) -> Vec<MissingCall> {
        self.child().missing()
    }

    /// Returns a descriptor that becomes readable when there is an event, or when the process is gone.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// Returns the next event, if there is one. Never waits.
    ///
    /// # Errors
    /// [`Error::Ended`] if there will be none any more; [`Error::Events`], upon which the process is killed.
    pub fn try_event(&mut self) -> Result<Option<DeviceEvent>, Error> {
        let pid = self.pid();
        match self.events.try_recv() {
            Ok(event) => Ok(Some(event)),
            Err(TubeError::WouldBlock) => Ok(None),
            Err(TubeError::Disconnected) => Err(Error::Ended { pid }),
            Err(TubeError::Recv(error)) if error.is_shortage() => Ok(None),
            Err(source) => Err(self.break_off(source)),
        }
    }

    pub(super) fn child(&self) -> &JailedChild {
        self.child.as_ref().expect("only drop takes it")
    }

    fn reap(&mut self) -> io::Result<ExitReport> {
        if !has_ended(self.pidfd(), self.deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let report = self.exit_report().cloned();
        report.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The list is what guest address space is made of: it is checked again on this side.
    fn check_regions(&mut self, info: BackendInfo) -> Result<BackendInfo, Error> {
        let page_size = base::page_size() as u64;
        let limits = &self.connect.shmem_limits;
        match shmem_config::from_list(info.regions.clone(), page_size, limits) {
            Ok(regions) => {
                if let RegionSource::Given(given) = &self.connect.regions
                    && (given.len() != regions.len()
                        || regions.iter().any(|region| !given.contains(region)))
                {
                    return Err(self.unexpected("connect"));
                }
                Ok(BackendInfo { regions, ..info })
            }
            Err(source) => {
                let pid = self.pid();
                self.kill_for_cause();
                Err(Error::ShmemConfig { pid, source })
            }
        }
    }
}

impl Drop for DeviceProcess {
    fn drop(&mut self) {
        if self.exit_report().is_some() {
            return;
        }
        let Some(mut child) = self.child.take() else {
            return;
        };
        let killed = child.kill();
        if killed.is_ok() && has_ended(child.pidfd(), KILL_PATIENCE).unwrap_or(true) {
            return;
        }
        // Whoever drops the handle must not wait for a backend. What is left waits on a thread of its own.
        base::error!("device process {} does not end when it is killed", self.pid);
        let reaper = thread::Builder::new().name("reaper".to_owned());
        let spawned = reaper.spawn(move || child.wait().map(drop));
        if let Err(error) = spawned {
            base::error!("no thread to wait for it: {error}");
        }
    }
}

/// Waits for the end of a process, no longer than `patience`.
fn has_ended(pidfd: BorrowedFd<'_>, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
