//! The device process's main thread: control requests in, answers out.
//!
//! Knows nothing of jails or of how the process came to be, so that a test can run it on a thread.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use arrayvec::ArrayVec;
use base::Event;
use base::EventToken;
use base::SafeDescriptor;
use base::Tube;
use base::TubeError;
use base::WaitContext;
use base::error;
use remain::sorted;
use thiserror::Error;
use vm_control::Generation;
use vmm_vhost::ChannelConfig;
use vmm_vhost::ChannelError;
use vmm_vhost::Negotiated;
use vmm_vhost::Peer;

use vmm_vhost::RequestChannel;
use vmm_vhost::deviation::Deviation;
use vmm_vhost::message::ProtocolFeatures;

use crate::control::Activation;
use crate::control::ControlRequest;
use crate::control::ControlResponse;
use crate::control::Failure;
use crate::control::QueueSetup;
use crate::exit::Exit;
use crate::vhost_user_frontend;
use crate::vhost_user_frontend::VhostUserFrontend;
use crate::worker::Call;
use crate::worker::CommandError;
use crate::worker::MAX_IN_FLIGHT;
use crate::worker::WorkerExit;
use crate::worker::WorkerHandle;
use crate::worker::channel_pair;

/// How many request channels one process can open in its life. Their sockets are made before the filter is on.
pub const MAX_CHANNELS: usize = 4;

/// The length of the pieces in which a backend's state moves.
pub(super) const STATE_PIECE_BYTES: usize = 32 << 10;

/// Why a control request was not carried out.
#[sorted]
#[derive(Debug, Error)]
enum ServeError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Frontend(#[from] vhost_user_frontend::Error),
    #[error("the backend has had all {MAX_CHANNELS} request channels that one process can open")]
    NoChannelLeft,
    #[error("no move of the backend's state was begun")]
    NoTransfer,
    #[error("the main channel is not set up")]
    NotConnected,
    #[error("no reset was begun")]
    NotResetting,
    #[error("a reset was begun and not finished")]
    Resetting,
    #[error("the backend's state does not move")]
    Transfer(#[source] io::Error),
    #[error(transparent)]
    Worker(#[from] CommandError),
}

impl ServeError {
    fn fatal(&self) -> Option<Exit> {
        match self {
            Self::Frontend(error) => error.fatal(),
            _ => None,
        }
    }

    fn deviation(&self) -> Option<Deviation> {
        match self {
            Self::Frontend(error) => error.deviation(),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, EventToken)]
enum Token {
    Control,
    WorkerEnded,
}

/// The ends of a request channel that is not open yet: ours, the backend's.
type Pair = (SafeDescriptor, SafeDescriptor);

/// The main thread's state.
pub(super) struct Control {
    tube: Tube,
    wait: WaitContext<Token>,
    frontend: VhostUserFrontend,
    worker: WorkerHandle,
    worker_exit: Arc<Mutex<Option<WorkerExit>>>,
    spare_channels: ArrayVec<Pair, MAX_CHANNELS>,
    negotiated: Option<Negotiated>,
    notifier_region: Option<u8>,
    /// Our end of the pipe through which the backend's own state moves.
    transfer: Option<File>,
    resetting: bool,
    /// Whether the VMM wants to know what the backend does against the protocol.
    strict: bool,
    // Closed last, and after the wait context that it is in.
    _worker_ended: Event,
}

impl Control {
    /// `worker_ended` is signalled once `worker_exit` is filled.
    pub(super) fn new(
        tube: Tube,
        frontend: VhostUserFrontend,
        worker: WorkerHandle,
        worker_ended: Event,
        worker_exit: Arc<Mutex<Option<WorkerExit>>>,
    ) -> Result<Self, base::Error> {
        let wait = WaitContext::build_with(&[
            (&tube, Token::Control),
            (&worker_ended, Token::WorkerEnded),
        ])?;
        let mut spare_channels = ArrayVec::new();
        while !spare_channels.is_full() {
            spare_channels.push(channel_pair()?);
        }
        Ok(Self {
            tube,
            wait,
            frontend,
            worker,
            worker_exit,
            spare_channels,
            negotiated: None,
            notifier_region: None,
            transfer: None,
            resetting: false,
            strict: false,
            _worker_ended: worker_ended,
        })
    }

    /// Serves until the process has to end.
    pub(super) fn serve(mut self) -> Exit {
        loop {
            let events = match self.wait.wait() {
                Ok(events) => events,
                Err(error) => {
                    error!("cannot wait for control requests: {error}");
                    return Exit::Failed;
                }
            };
            for event in &events {
                let exit = match event.token {
                    Token::WorkerEnded => Some(self.worker_exit()),
                    Token::Control => self.serve_one(),
                };
                if let Some(exit) = exit {
                    return exit;
                }
            }
        }
    }

    fn worker_exit(&self) -> Exit {
        let exit = *self
            .worker_exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        exit.map_or(Exit::Failed, exit_of)
    }

    fn serve_one(&mut self) -> Option<Exit> {
        let request = match self.tube.recv() {
            Ok(request) => request,
            Err(TubeError::Disconnected) => return Some(Exit::VmmGone),
            Err(error) => {
                error!("control tube: {error}");
                return Some(Exit::ControlProtocol);
            }
        };
        let (response, exit) = match self.carry_out(request) {
            Ok(Some(response)) => (response, None),
            Ok(None) => (ControlResponse::Done, Some(Exit::Shutdown)),
            Err(error) => {
                let exit = error.fatal();
                let deviation = error.deviation().filter(|_| self.strict);
                let message = format!("{:#}", anyhow::Error::from(error));
                // The VMM decides what to make of the others; a guest may cause them as often as it likes.
                if exit.is_some() {
                    error!("{message}");
                }
                (
                    ControlResponse::Failed(Failure { message, deviation }),
                    exit,
                )
            }
        };
        match self.tube.send(&response) {
            Ok(()) => exit,
            Err(_) => exit.or(Some(Exit::VmmGone)),
        }
    }

    /// Returns the answer, or nothing if it was the request to end.
    fn carry_out(
        &mut self,
        request: ControlRequest,
    ) -> Result<Option<ControlResponse>, ServeError> {
        let response = match request {
            ControlRequest::Connect(options) => {
                self.strict = options.strict;
                let info = self.frontend.connect(&options)?;
                self.notifier_region = options.notifier_region;
                self.negotiated = Some(Negotiated {
                    virtio_features: self.frontend.transport_features(),
                    protocol_features: ProtocolFeatures::from_bits_retain(info.protocol_features),
                    legacy_shmem: info.legacy_shmem,
                });
                ControlResponse::Connected(info)
            }
            ControlRequest::Start => {
                self.open_channel()?;
                ControlResponse::Done
            }
            ControlRequest::Activate(activation) => {
                self.activate(activation)?;
                ControlResponse::Done
            }
            ControlRequest::Deactivate => {
                self.check_running()?;
                let bases = self.frontend.deactivate()?;
                self.worker.set_active(false)?;
                ControlResponse::Stopped(bases)
            }
            ControlRequest::ReadConfig { offset, len } => {
                self.check_connected()?;
                ControlResponse::Config(self.frontend.read_config(offset, len)?)
            }
            ControlRequest::WriteConfig { offset, data } => {
                self.check_connected()?;
                self.frontend.write_config(offset, &data)?;
                ControlResponse::Done
            }
            ControlRequest::Reset => {
                self.begin_reset()?;
                ControlResponse::Done
            }
            ControlRequest::Resume { generation } => {
                self.finish_reset(generation)?;
                ControlResponse::Done
            }
            ControlRequest::Stats => ControlResponse::Stats(self.worker.stats()?),
            ControlRequest::IotlbInvalidate { iova, size } => {
                self.check_connected()?;
                self.frontend.invalidate_iotlb(iova, size)?;
                ControlResponse::Done
            }
            ControlRequest::SharedObject(id) => {
                self.check_connected()?;
                ControlResponse::SharedObject(self.frontend.shared_object(id)?)
            }
            ControlRequest::BeginTransfer {
                direction,
                theirs,
                ours,
            } => {
                self.check_connected()?;
                let instead = self.frontend.begin_transfer(direction, theirs.into())?;
                self.transfer = Some(instead.map_or_else(|| ours.into(), File::from));
                ControlResponse::Done
            }
            ControlRequest::ReadState => ControlResponse::State(self.read_state()?),
            ControlRequest::WriteState(bytes) => {
                let pipe = self.transfer.as_mut().ok_or(ServeError::NoTransfer)?;
                pipe.write_all(&bytes).map_err(ServeError::Transfer)?;
                ControlResponse::Done
            }
            ControlRequest::EndTransfer => {
                // The backend sees the end of what it loads.
                self.transfer = None;
                self.frontend.end_transfer()?;
                ControlResponse::Done
            }
            ControlRequest::Shutdown => return Ok(None),
        };
        Ok(Some(response))
    }

    /// Gives the backend a request channel. The worker serves it before the backend knows of it.
    fn open_channel(&mut self) -> Result<(), ServeError> {
        let negotiated = self.negotiated.ok_or(ServeError::NotConnected)?;
        self.frontend.check_takes_channel()?;
        let (ours, theirs) = self.spare_channels.pop().ok_or(ServeError::NoChannelLeft)?;
        let channel = RequestChannel::new(
            ours,
            ChannelConfig {
                negotiated,
                max_in_flight: MAX_IN_FLIGHT,
                peer: Peer::Remote,
                has_timeout: true,
                strict: self.strict,
            },
        )?;
        self.worker.open(channel, self.notifier_region)?;
        Ok(self.frontend.open_request_channel(&theirs)?)
    }

    /// Starts the backend's queues. The worker knows them first: a backend may call at once.
    fn activate(&mut self, mut activation: Activation) -> Result<(), ServeError> {
        self.check_running()?;
        let mut negotiated = self.negotiated.ok_or(ServeError::NotConnected)?;
        negotiated.virtio_features = activation.features | self.frontend.transport_features();
        let take = |queue: &mut QueueSetup| Some((queue.index, Arc::new(queue.call.take()?)));
        let calls: Vec<Call> = activation.queues.iter_mut().filter_map(take).collect();
        self.worker.activate(negotiated, calls.clone())?;
        if let Err(error) = self.frontend.activate(&activation, &calls) {
            self.worker.set_active(false)?;
            return Err(error.into());
        }
        self.negotiated = Some(negotiated);
        Ok(self.worker.set_active(true)?)
    }

    fn read_state(&mut self) -> Result<Vec<u8>, ServeError> {
        let pipe = self.transfer.as_mut().ok_or(ServeError::NoTransfer)?;
        let mut bytes = vec![0; STATE_PIECE_BYTES];
        let len = pipe.read(&mut bytes).map_err(ServeError::Transfer)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Resets the backend. Whatever it asks until the reset is finished is refused, so that it never waits for us here.
    fn begin_reset(&mut self) -> Result<(), ServeError> {
        self.check_connected()?;
        self.worker.cancel()?;
        self.worker.set_active(false)?;
        self.resetting = true;
        // Even if the backend refuses: the VMM drops the mappings, and the worker waits until it has.
        let reset = self.frontend.reset();
        self.worker.hold()?;
        // The driver's features are gone with the rest.
        if let Some(negotiated) = &mut self.negotiated {
            negotiated.virtio_features = self.frontend.transport_features();
            self.worker.activate(*negotiated, Vec::new())?;
        }
        Ok(reset?)
    }

    fn finish_reset(&mut self, generation: Generation) -> Result<(), ServeError> {
        if !self.resetting {
            return Err(ServeError::NotResetting);
        }
        self.worker.resume(generation)?;
        self.resetting = false;
        Ok(())
    }

    fn check_connected(&self) -> Result<(), ServeError> {
        match self.negotiated {
            Some(_) => Ok(()),
            None => Err(ServeError::NotConnected),
        }
    }

    fn check_running(&self) -> Result<(), ServeError> {
        self.check_connected()?;
        if self.resetting {
            return Err(ServeError::Resetting);
        }
        Ok(())
    }
}

/// How the process ends because its worker ended.
pub(super) fn exit_of(exit: WorkerExit) -> Exit {
    match exit {
        WorkerExit::Killed => Exit::Shutdown,
        WorkerExit::MainChannelClosed => Exit::BackendGone,
        WorkerExit::ServiceGone => Exit::ServiceGone,
        WorkerExit::Failed(_) => Exit::Failed,
    }
}
