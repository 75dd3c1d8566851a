//! How the device process's main thread steers the worker: a queue of commands, an event, and an answer to each.
//!
//! The worker never waits for anyone, so the main thread may wait for the worker.

use std::sync::mpsc;

use base::Event;
use base::WorkerThread;
use remain::sorted;
use thiserror::Error;
use vm_control::Generation;
use vmm_vhost::Negotiated;
use vmm_vhost::RequestChannel;

use super::Call;
use super::Worker;
use super::WorkerExit;
use crate::control::WorkerStats;

/// What the main thread can ask for.
pub(super) enum Action {
    /// Serve this channel, in the place of the one before; doorbells go into the region of this id.
    Open(Box<RequestChannel>, Option<u8>),
    /// The driver has acknowledged features, and these are its queues' calls.
    Activate(Negotiated, Vec<Call>),
    /// The driver is ready (or no longer): config changes are delivered (or remembered).
    SetActive(bool),
    /// Answer every map and unmap request with ECANCELED.
    Cancel,
    /// Cancel what has arrived by now, then let the rest wait.
    Hold,
    /// Serve again, in this generation.
    Resume(Generation),
    /// Only answer.
    Stats,
}

/// A command and where its answer goes.
pub(super) struct Command {
    pub(super) action: Action,
    pub(super) answer: mpsc::SyncSender<WorkerStats>,
}

/// Why a command was not carried out.
#[sorted]
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum CommandError {
    /// The worker has ended.
    #[error("the worker thread has ended")]
    Ended,
    /// The worker could not be woken.
    #[error("cannot wake the worker thread")]
    Wake(#[source] base::Error),
}

/// A running worker, as the main thread sees it. Dropping it stops the worker.
pub struct WorkerHandle {
    thread: WorkerThread<WorkerExit>,
    commands: mpsc::Sender<Command>,
    wake: Event,
}

impl WorkerHandle {
    /// Starts `worker` on a thread of its own and returns once that thread runs.
    ///
    /// `on_exit` runs on it when the worker ends, with the reason.
    ///
    /// # Errors
    /// Whatever the new thread's start fails with.
    pub fn start(
        worker: Worker,
        on_exit: impl FnOnce(&WorkerExit) + Send + 'static,
    ) -> Result<Self, base::Error> {
        let (commands, queue) = mpsc::channel();
        let wake = worker.command_event()?;
        let (started, running) = mpsc::sync_channel(1);
        let thread = WorkerThread::try_start("requests", move |kill| {
            jail::name_thread("requests");
            // The receiver waits for this, and for nothing else.
            let _ = started.send(());
            let exit = worker.run(&kill, &queue);
            // From here on a command finds its queue closed instead of waiting for an answer.
            drop(queue);
            on_exit(&exit);
            exit
        })?;
        running
            .recv()
            .map_err(|mpsc::RecvError| base::Error::new(libc::ESRCH))?;
        Ok(Self {
            thread,
            commands,
            wake,
        })
    }

    /// Lets the worker serve `channel`; one that is open is closed, and its mappings go.
    ///
    /// Doorbells of queues are mapped into the service's region `notifier_region`.
    ///
    /// # Errors
    /// [`CommandError`]; the channel is closed then.
    pub fn open(
        &self,
        channel: RequestChannel,
        notifier_region: Option<u8>,
    ) -> Result<(), CommandError> {
        self.command(Action::Open(Box::new(channel), notifier_region))
            .map(drop)
    }

    /// Tells what is in force from now on, and which eventfds stand for the calls of queues. To be followed by
    /// [`Self::set_active`] once the backend has its queues.
    ///
    /// # Errors
    /// [`CommandError`].
    pub(crate) fn activate(
        &self,
        negotiated: Negotiated,
        calls: Vec<Call>,
    ) -> Result<(), CommandError> {
        self.command(Action::Activate(negotiated, calls)).map(drop)
    }

    /// Says whether the driver is ready. A config change that was remembered is delivered with `true`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn set_active(&self, active: bool) -> Result<(), CommandError> {
        self.command(Action::SetActive(active)).map(drop)
    }

    /// Answers every further map or unmap request with ECANCELED, so that a backend that asks from within its reset
    /// handler gets on with it.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn cancel(&self) -> Result<(), CommandError> {
        self.command(Action::Cancel).map(drop)
    }

    /// Cancels what has arrived by now and leaves what comes later unread until [`Self::resume`].
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn hold(&self) -> Result<(), CommandError> {
        self.command(Action::Hold).map(drop)
    }

    /// Serves requests again, in `generation`.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn resume(&self, generation: Generation) -> Result<(), CommandError> {
        self.command(Action::Resume(generation)).map(drop)
    }

    /// Returns the counters.
    ///
    /// # Errors
    /// [`CommandError`].
    pub fn stats(&self) -> Result<WorkerStats, CommandError> {
        self.command(Action::Stats)
    }

    /// Ends the worker and returns why it ended, which may be another reason than this call.
    pub fn stop(self) -> WorkerExit {
        self.thread.stop()
    }

    fn command(&self, action: Action) -> Result<WorkerStats, CommandError> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.commands
            .send(Command { action, answer })
            .map_err(|mpsc::SendError(_)| CommandError::Ended)?;
        self.wake.signal().map_err(CommandError::Wake)?;
        answered
            .recv()
            .map_err(|mpsc::RecvError| CommandError::Ended)
    }
}
