//! The life of the VMM's device, as the main loop steers it: socket, process, regions, channel, end, and the next life.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use std::time::Instant;

use base::Event as InterruptEvent;
use base::EventType;
use devices::control::BackendInfo;
use devices::control::ConnectOptions;
use devices::control::RegionSource;
use devices::device_process::DeviceProcess;
use devices::device_process::DeviceProcessConfig;
use jail::Violation;
use rustix::process::PidfdFlags;
use rustix::process::Signal;

use super::backend_socket::Attempt;
use super::backend_socket::BackendSocket;
use super::config::Restart;
use super::device;
use super::device::Death;
use super::device_state::Backend;
use super::device_state::Watch;
use super::events::Event;
use super::main_loop::Ending;
use super::main_loop::Error;
use super::main_loop::Returned;
use super::main_loop::Token;
use super::main_loop::Vmm;
use super::proof::Proof;
use crate::control::message::DeviceState;
use crate::text::causes;

/// The pause where there was no life at all, or can be none as things are.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// How long the end of the VMM waits for a call that has lost its process.
const LAST_CALL: Duration = Duration::from_secs(5);

impl Vmm<'_> {
    /// Starts the device's first life.
    pub(super) fn begin(&mut self) {
        if let Err(error) = self.prepare_socket() {
            self.fail(Error::Loop(error));
            return;
        }
        self.connect_backend();
    }

    /// Starts the device's next life, after a pause where one is due.
    fn begin_again(&mut self, was_alive: bool) {
        let pause = if was_alive {
            self.device.pause()
        } else {
            LONG_PAUSE
        };
        self.device.restarts += 1;
        self.observer.event(Event::Restarting {
            device: self.config.device.name.clone(),
            restarts: self.device.restarts,
        });
        if let Err(error) = self.prepare_socket() {
            return self.fail(Error::Loop(error));
        }
        if pause.is_zero() {
            self.connect_backend();
        } else {
            self.rest(pause);
        }
    }

    /// Tells that the device waits, unless that is known.
    fn now_waiting(&mut self) {
        if self.device.state != DeviceState::Waiting {
            self.device.state = DeviceState::Waiting;
            self.observer.event(Event::Waiting {
                backend: self.config.backend.clone(),
            });
        }
    }

    /// Lets the device wait before the next attempt to connect.
    fn rest(&mut self, pause: Duration) {
        self.now_waiting();
        if let Some(socket) = &mut self.device.socket
            && let Err(error) = socket.rest(pause)
        {
            self.fail(Error::Loop(error));
        }
    }

    /// Ends the VMM for this reason, if it is not ending already.
    pub(super) fn fail(&mut self, error: Error) {
        if self.ending.is_none() {
            self.ending = Some(Ending::Failed(error));
        }
    }

    fn prepare_socket(&mut self) -> io::Result<()> {
        let socket = BackendSocket::new(&self.config.backend)?;
        if let Some(folder) = socket.watch() {
            self.wait.add(&folder, Token::Folder)?;
        }
        self.wait.add(&socket.timer(), Token::Retry)?;
        self.device.socket = Some(socket);
        Ok(())
    }

    /// Tries to connect to the backend.
    pub(super) fn connect_backend(&mut self) {
        let is_first = self.device.restarts == 0 && self.device.state != DeviceState::Waiting;
        let Some(socket) = &mut self.device.socket else {
            return;
        };
        match socket.is_resting() {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => return self.fail(Error::Loop(error)),
        }
        match socket.attempt() {
            Ok(Attempt::Connected(stream)) => {
                // Both descriptors leave the wait context as they are closed.
                self.device.socket = None;
                if let Err(error) = self.backend_connected(stream) {
                    self.died(Death::unborn(causes(&error)));
                }
            }
            Ok(Attempt::NotYet(source)) if is_first && !self.config.wait => {
                self.fail(Error::Backend {
                    path: self.config.backend.clone(),
                    source,
                });
            }
            Ok(Attempt::NotYet(_)) => self.now_waiting(),
            Err(source) if self.device.restarts == 0 => self.fail(Error::Backend {
                path: self.config.backend.clone(),
                source,
            }),
            Err(error) => {
                tracing::warn!(
                    "cannot connect to {}: {error}",
                    self.config.backend.display()
                );
                self.rest(LONG_PAUSE);
            }
        }
    }

    fn backend_connected(&mut self, stream: UnixStream) -> Result<(), Error> {
        self.device.bear();
        self.watch_backend(&stream)?;
        self.observer.event(Event::Connected {
            backend: self.config.backend.clone(),
            backend_pid: self.device.backend.as_ref().map(|backend| backend.pid),
        });
        // The device process's main thread is the one that may wait for the backend.
        stream.set_nonblocking(false)?;
        let options = &self.config.device;
        let interrupt = InterruptEvent::new().map_err(io::Error::from)?;
        let (id, memory) = self.host.add_device(options)?;
        self.device.id = Some(id);
        let mut config = DeviceProcessConfig::new(
            &options.name,
            stream.into(),
            memory,
            interrupt.try_clone().map_err(io::Error::from)?,
        );
        config.sandbox = options.sandbox.clone();
        config.log = options.log;
        config.connect = ConnectOptions {
            legacy_shmem_bit: options.legacy_shmem_bit,
            regions: match options.regions.as_slice() {
                [] => RegionSource::Backend,
                regions => RegionSource::Given(regions.to_vec()),
            },
            strict: options.strict,
            ..ConnectOptions::default()
        };
        self.device.interrupt = Some(interrupt);
        let spawner = self.host.spawner();
        self.calls
            .run(move || Returned::Spawned(device::spawn(&spawner, config)));
        Ok(())
    }

    /// Watches the process that listened on the backend's socket, where the system says which one that was.
    fn watch_backend(&mut self, stream: &UnixStream) -> Result<(), Error> {
        let Ok(peer) = rustix::net::sockopt::socket_peercred(stream) else {
            return Ok(());
        };
        // It may be gone already, and another process may hold the socket: that is no failure.
        let Ok(pidfd) = rustix::process::pidfd_open(peer.pid, PidfdFlags::empty()) else {
            return Ok(());
        };
        self.wait
            .add(&pidfd, Token::BackendEnd)
            .map_err(io::Error::from)?;
        self.device.backend = Some(Backend {
            pid: peer.pid.as_raw_nonzero().get().unsigned_abs(),
            _pidfd: pidfd,
        });
        Ok(())
    }

    /// Takes what came back from the device process.
    pub(super) fn returned_calls(&mut self) {
        while let Some(returned) = self.calls.take() {
            match returned {
                Returned::Spawned(result) => self.spawned(result),
                Returned::Connected(result) => self.connected(result),
                Returned::Started(result) => {
                    if let Some(()) = self.keep_or_end(result) {
                        self.serving();
                    }
                }
                Returned::Reset {
                    client,
                    dropped,
                    result,
                } => self.was_reset(client, dropped, result),
                Returned::Stats {
                    client,
                    request,
                    result,
                } => {
                    let stats = self.keep(result).and_then(Result::ok);
                    // What was counted by now is told by now.
                    self.device_events();
                    self.report(client, &request, stats.as_ref());
                }
            }
            // With the process back, or gone for good, clients that waited for it have their turn.
            self.serve_waiting();
        }
    }

    fn spawned(&mut self, result: Result<DeviceProcess, Death>) {
        let process = match result {
            Ok(process) => process,
            Err(death) => return self.died(death),
        };
        match Watch::new(&process) {
            Ok(watch) => self.device.watch = Some(watch),
            Err(error) => return self.fail(Error::Loop(error)),
        }
        if let Some(watch) = &self.device.watch
            && let Err(error) = self
                .wait
                .add(&watch.pidfd, Token::DeviceEnd)
                .and_then(|()| self.wait.add(&watch.events, Token::DeviceEvent))
        {
            return self.fail(Error::Loop(error.into()));
        }
        self.calls
            .run(move || Returned::Connected(device::call(process, DeviceProcess::connect)));
    }

    fn connected(&mut self, result: device::Returned<BackendInfo>) {
        let Some(info) = self.keep_or_end(result) else {
            return;
        };
        let (Some(id), Some(process)) = (self.device.id, self.device.process.take()) else {
            return;
        };
        match self
            .host
            .add_regions(id, &self.config.device, &info.regions)
        {
            Ok(regions) => self.device.regions = regions,
            Err(error) => return self.died(device::end(process, &causes(&error))),
        }
        self.device.info = Some(info);
        self.calls
            .run(move || Returned::Started(device::call(process, device::start)));
    }

    /// Takes back the process from a call, and returns what the call gave; tells the end of a process that did not survive.
    pub(super) fn keep<T>(&mut self, result: device::Returned<T>) -> Option<Result<T, String>> {
        match result {
            Ok((process, value)) => {
                self.device.process = Some(process);
                let value = value.map_err(|failed| self.note_failed(failed));
                // It may have told something, or ended, while the call was out.
                self.device.heed_events(&self.wait, EventType::Read);
                self.device_ended();
                self.device.process.is_some().then_some(value)
            }
            Err(death) => {
                self.died(death);
                None
            }
        }
    }

    /// As [`Self::keep`], for calls that the device can't go on without.
    fn keep_or_end<T>(&mut self, result: device::Returned<T>) -> Option<T> {
        match self.keep(result)? {
            Ok(value) => Some(value),
            Err(reason) => {
                self.end_process(&reason);
                None
            }
        }
    }
}

impl Vmm<'_> {
    fn serving(&mut self) {
        let (Some(process), Some(info)) = (&self.device.process, &self.device.info) else {
            return;
        };
        let device_pid = process.pid();
        self.device.state = DeviceState::Serving;
        self.observer.event(Event::Serving {
            device: self.config.device.name.clone(),
            device_pid,
            features: format!("{:#x}", info.virtio_features),
            protocol_features: format!("{:#x}", info.protocol_features),
            channel: info.has_channel,
            regions: self.device.region_reports(),
            jail: Proof::of(process).ok(),
        });
    }

    /// Ends the device process for a reason, if no call has it.
    fn end_process(&mut self, reason: &str) {
        if let Some(process) = self.device.process.take() {
            self.died(device::end(process, reason));
        }
    }

    /// Finds out how the device process ended, if it has.
    pub(super) fn device_ended(&mut self) {
        let Some(process) = &mut self.device.process else {
            // The call that has the process fails, and tells.
            if let Some(watch) = &self.device.watch {
                let _ = self.wait.delete(&watch.pidfd);
            }
            return;
        };
        if let Some(death) = device::ended(process) {
            self.device.process = None;
            self.died(death);
        }
    }

    /// The process that listened on the backend's socket has ended.
    pub(super) fn backend_ended(&mut self) {
        // The descriptor leaves the wait context as it is closed.
        if let Some(Backend { pid, .. }) = self.device.backend.take() {
            self.observer.event(Event::BackendEnded { pid });
        }
    }

    /// Removes everything of a device whose process is gone, and starts its next life where one is due.
    fn died(&mut self, death: Death) {
        let dropped = self.clean_up();
        let Death {
            pid,
            how,
            is_orderly,
            missing,
            deviations,
        } = death;
        for (first, count) in deviations {
            self.deviated(first, count);
        }
        let is_logging = self.config.device.sandbox.violation == Violation::Log;
        if is_logging && pid.is_some() {
            self.observer.event(Event::PolicyLacks {
                device: self.config.device.name.clone(),
                calls: missing,
            });
        }
        self.observer.event(Event::DeviceEnded {
            device: self.config.device.name.clone(),
            pid,
            how: how.clone(),
            dropped,
        });
        self.device.state = DeviceState::Ended;
        let never_lived = pid.is_none() && self.device.restarts == 0;
        self.device.ended = Some(how.clone());
        if self.ending.is_some() {
            return;
        }
        if self.config.restart == Restart::OnFailure && !never_lived {
            self.begin_again(pid.is_some());
        } else if self.config.once && is_orderly {
            self.end("once");
        } else if self.config.once || never_lived {
            self.fail(Error::Device { how });
        }
    }

    /// Removes the device from the service and its regions from the machine; the number of mappings that went.
    fn clean_up(&mut self) -> u64 {
        let dropped = match self.device.id.take() {
            Some(id) => self.host.remove_device(id),
            None => 0,
        };
        self.device.forget_life(&self.wait);
        dropped
    }

    /// Kills the device process, whoever has it.
    fn kill(&mut self) {
        if let Some(watch) = &self.device.watch {
            // It may be gone already.
            let _ = rustix::process::pidfd_send_signal(&watch.pidfd, Signal::KILL);
        }
    }

    /// Ends the device and everything else, in the order in which they need each other.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        if let Some(process) = self.device.process.take() {
            let death = device::shut_down(process);
            self.died(death);
        }
        self.kill();
        let deadline = Instant::now() + LAST_CALL;
        while self.calls.pending() > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.calls.ready().wait_timeout(left).is_err() {
                break;
            }
            self.returned_calls();
            self.kill();
        }
        if self.device.id.is_some() {
            self.clean_up();
        }
        if let Some(error) = self.sum_up_deviations() {
            self.ending = Some(Ending::Failed(error));
        }
        match self.ending.take() {
            Some(Ending::Failed(error)) => {
                let reason = causes(&error);
                self.observer.event(Event::Stopped { reason });
                Err(error)
            }
            Some(Ending::Asked(reason)) => {
                self.observer.event(Event::Stopped { reason });
                Ok(())
            }
            None => Ok(()),
        }
    }
}
