//! The worker: the thread of a device process that serves the backend's request channel.
//!
//! It waits in one place for everything (the kill event, commands of the main thread, the request channel, the answers
//! of the mapping service, the hang-up of the main channel) and blocks on none of them. A backend that stalls, a VMM
//! that is stopped, a main thread that waits for the backend: none keeps it from the kill event, and what waits is
//! bounded: a number of requests, one unsent batch, one socket buffer of replies.
//!
//! A backend that waits for each answer leaves one thing that can come next: its request, or the service's answer to it. The
//! worker then receives that directly, for 2 ms (in whole ticks of the kernel, up to 8 at 250 Hz) and 64 times in a row at the
//! most, and asks the wait context in between.
//!
//! One thing it can't help: closing a descriptor of a file system that the backend itself serves (FUSE) waits for the
//! backend. That stalls this device and no other; the VMM's deadlines and its removal of the device do not depend on it.
//!
//! An accepted request costs no heap allocation and no line in the log. Requests that are ready together travel to the
//! service together; a request that comes alone leaves at once, and a backend that is seen to send ahead is read until
//! its socket is empty or a batch is full.
//!
//! A refused request is answered and the channel lives on. A header that can't be trusted for framing, the backend's
//! hang-up and a failing socket end the channel, not the worker: the device's mappings go, the VMM is told, and another
//! channel may be opened. The end of the main channel, of the memory tube or the kill event ends the worker.

mod command;
mod events;
mod hooks;
mod intake;
mod requests;
mod service;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::time::Duration;

use base::Event;
use base::EventToken;
use base::EventType;
use base::RateLimit;
use base::SafeDescriptor;
use base::Tube;
use base::WaitContext;
use base::packet::PacketTube;
use base::scm;
use vm_control::Generation;
use vm_control::MAX_BATCH;
use vm_control::api::BatchClient;
use vmm_vhost::Peer;
use vmm_vhost::RequestChannel;
use vmm_vhost::Ticket;

use self::command::Action;
use self::command::Command;
pub use self::command::CommandError;
pub use self::command::WorkerHandle;
use self::events::EventSender;
use self::hooks::Hooks;
use self::intake::Pace;
pub(crate) use self::requests::Call;
use crate::control::RefusedRequest;
use crate::control::WorkerStats;

/// The most requests that wait for the service's answers; beyond it the channel is not read.
pub const MAX_IN_FLIGHT: usize = 256;

/// How long the worker waits for what comes next while one request is under way at most, before it looks at everything else again.
const ANSWER_WAIT: Duration = Duration::from_millis(2);

/// Requests that come alone and are waited for in a row before everything else is looked at again.
const ALONE_IN_A_ROW: u32 = 64;

/// One report of a refused request to the VMM in this time; a few more at once.
const REFUSAL_PERIOD: Duration = Duration::from_millis(200);
const REFUSAL_BURST: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, EventToken)]
enum Token {
    Kill,
    Command,
    Channel,
    Memory,
    MainChannel,
    Events,
    Hooks,
}

/// Why a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerExit {
    /// It was told to.
    Killed,
    /// The backend closed the main channel.
    MainChannelClosed,
    /// The service closed the memory tube, or answered what was not asked.
    ServiceGone,
    /// A system call failed that can't fail.
    Failed(base::Error),
}

/// Makes a request channel's ends, the worker's and the backend's. A receive on the worker's waits for [`ANSWER_WAIT`] at most.
///
/// # Errors
/// Descriptors have run out.
pub(crate) fn channel_pair() -> Result<(SafeDescriptor, SafeDescriptor), base::Error> {
    let (ours, theirs) = scm::stream_pair()?;
    scm::set_recv_timeout(ours.as_fd(), Some(ANSWER_WAIT))?;
    Ok((ours, theirs))
}

/// What a worker works with.
pub struct WorkerConfig {
    /// The tube to the mapping service.
    pub memory: Tube,
    /// The generation that the service starts with.
    pub generation: Generation,
    /// The tube for what the worker tells the VMM of its own accord.
    pub events: PacketTube,
    /// Signalled when the device's configuration space has changed.
    pub interrupt: Event,
    /// A duplicate of the main channel's socket, if there is one: for its hang-up, and to send translations.
    pub main_channel: Option<SafeDescriptor>,
    /// Where the backend lives.
    pub peer: Peer,
    /// The tube for what only the VMM can answer, if it does.
    pub hooks: Option<PacketTube>,
}

/// What is done with requests that would change the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// They go to the service.
    Serve,
    /// They are answered with ECANCELED.
    Cancel,
    /// They are not read.
    Hold,
}

/// What the service was asked, in the order of its answers.
struct Waiting {
    /// Nobody waits for the answer to what the worker asks of its own accord.
    ticket: Option<Ticket>,
    what: What,
    request: RefusedRequest,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Map,
    Unmap,
    UnregisterAll,
    /// A queue's doorbell, by its bit.
    Notifier {
        bit: u128,
    },
    /// A doorbell that goes.
    NotifierRemoval {
        bit: u128,
    },
}

/// The worker's state. [`WorkerHandle::start`] gives it a thread.
pub struct Worker {
    wait: WaitContext<Token>,
    command_event: Event,
    channel: Option<RequestChannel>,
    channel_interest: Option<EventType>,
    channel_refusals: u64,
    pace: Pace,
    service: BatchClient,
    memory_interest: EventType,
    waiting: VecDeque<Waiting>,
    /// The device's mappings are to be dropped before anything else is asked of the service.
    unregister_all: bool,
    /// The generation of the requests to come, while those of the one before are still here.
    next_generation: Option<Generation>,
    intake: Intake,
    events: EventSender,
    events_interest: bool,
    interrupt: Event,
    active: bool,
    config_change_waits: bool,
    main_channel: Option<SafeDescriptor>,
    peer: Peer,
    hooks: Option<Hooks>,
    /// The queues that the backend may call by message.
    calls: Vec<Call>,
    /// The region in which doorbells are mapped, and the queues that have one there.
    notifier_region: Option<u8>,
    notifiers: u128,
    stats: WorkerStats,
}

impl Worker {
    /// Makes a worker with everything that it needs descriptors for.
    ///
    /// # Errors
    /// What creating an event or a wait context fails with.
    pub fn new(config: WorkerConfig) -> Result<Self, base::Error> {
        let command_event = Event::new()?;
        config
            .memory
            .set_recv_timeout(Some(ANSWER_WAIT))
            .map_err(|_| base::Error::last())?;
        let service = BatchClient::new(config.memory, config.generation);
        let wait = WaitContext::build_with(&[
            (&command_event, Token::Command),
            (&service, Token::Memory),
        ])?;
        let hooks = config.hooks.map(Hooks::new);
        if let Some(hooks) = &hooks {
            wait.add(hooks, Token::Hooks)?;
        }
        // Interest in nothing still reports a hang-up.
        if let Some(main_channel) = &config.main_channel {
            wait.add_for_event(main_channel, EventType::None, Token::MainChannel)?;
        }
        Ok(Self {
            wait,
            command_event,
            channel: None,
            channel_interest: None,
            channel_refusals: 0,
            pace: Pace::default(),
            service,
            memory_interest: EventType::Read,
            waiting: VecDeque::with_capacity(MAX_IN_FLIGHT + MAX_BATCH + 1),
            unregister_all: false,
            next_generation: None,
            intake: Intake::Serve,
            events: EventSender::new(config.events, RateLimit::new(REFUSAL_BURST, REFUSAL_PERIOD)),
            events_interest: false,
            interrupt: config.interrupt,
            active: false,
            config_change_waits: false,
            main_channel: config.main_channel,
            peer: config.peer,
            hooks,
            calls: Vec::new(),
            notifier_region: None,
            notifiers: 0,
            stats: WorkerStats::default(),
        })
    }

    fn command_event(&self) -> Result<Event, base::Error> {
        self.command_event.try_clone()
    }

    /// Serves until something ends it, and tells what is left to tell.
    fn run(mut self, kill: &Event, commands: &mpsc::Receiver<Command>) -> WorkerExit {
        let exit = self.serve(kill, commands);
        self.note_deviations();
        self.events.tell_deviations();
        exit
    }

    fn serve(&mut self, kill: &Event, commands: &mpsc::Receiver<Command>) -> WorkerExit {
        if let Err(error) = self.wait.add(kill, Token::Kill) {
            return WorkerExit::Failed(error);
        }
        loop {
            match self.wake(commands) {
                Ok(None) => {}
                Ok(Some(exit)) => return exit,
                Err(error) => return WorkerExit::Failed(error),
            }
        }
    }

    /// Waits once and does what there is to do.
    fn wake(
        &mut self,
        commands: &mpsc::Receiver<Command>,
    ) -> Result<Option<WorkerExit>, base::Error> {
        let mut channel_ready = false;
        let mut memory_ready = false;
        let mut command_ready = false;
        let mut hooks_ready = false;
        for event in &self.wait.wait()? {
            match event.token {
                Token::Kill => return Ok(Some(WorkerExit::Killed)),
                Token::MainChannel => return Ok(Some(WorkerExit::MainChannelClosed)),
                Token::Command => command_ready = true,
                Token::Memory => memory_ready |= event.is_readable || event.is_hungup,
                Token::Channel => channel_ready |= event.is_readable || event.is_hungup,
                Token::Events => self.events.flush(),
                Token::Hooks => hooks_ready = true,
            }
        }
        if memory_ready && let Some(exit) = self.take_answers() {
            return Ok(Some(exit));
        }
        if hooks_ready && let Some(exit) = self.take_hook_answers() {
            return Ok(Some(exit));
        }
        if command_ready {
            self.command_event.wait()?;
            while let Ok(command) = commands.try_recv() {
                self.carry_out(command)?;
            }
        }
        if channel_ready && self.intake != Intake::Hold {
            self.read_channel();
        } else {
            // The answers may have made room for requests that were read before.
            self.decode();
        }
        if let Some(exit) = self.pass_on() {
            return Ok(Some(exit));
        }
        for _ in 0..ALONE_IN_A_ROW {
            if !self.await_request() {
                break;
            }
            if let Some(exit) = self.pass_on() {
                return Ok(Some(exit));
            }
        }
        self.update_interest()?;
        Ok(None)
    }

    /// Asks the service what is to be asked and sends the replies that are ready.
    fn pass_on(&mut self) -> Option<WorkerExit> {
        if let Some(exit) = self.ask_service() {
            return Some(exit);
        }
        if let Some(exit) = self.await_answer() {
            return Some(exit);
        }
        self.flush_replies();
        None
    }

    fn carry_out(&mut self, command: Command) -> Result<(), base::Error> {
        match command.action {
            Action::Open(channel, notifier_region) => {
                self.notifier_region = notifier_region;
                self.open(*channel)?;
            }
            Action::Activate(negotiated, calls) => {
                self.calls = calls;
                if let Some(channel) = &mut self.channel {
                    channel.set_negotiated(negotiated);
                }
            }
            Action::SetActive(active) => self.set_active(active),
            Action::Cancel => self.intake = Intake::Cancel,
            Action::Hold => {
                self.intake = Intake::Cancel;
                self.drain();
                self.intake = Intake::Hold;
            }
            Action::Resume(generation) => {
                // The service has dropped all mappings, the doorbells among them.
                self.notifiers = 0;
                self.next_generation = Some(generation);
                self.settle();
                self.intake = Intake::Serve;
            }
            Action::Stats => self.events.tell_deviations(),
        }
        // The main thread may have given up on the answer, since it is ending.
        let _ = command.answer.send(self.stats());
        Ok(())
    }

    fn stats(&self) -> WorkerStats {
        WorkerStats {
            in_flight: u32::try_from(self.waiting.len()).unwrap_or(u32::MAX),
            channel_open: self.channel.is_some(),
            ..self.stats
        }
    }

    fn open(&mut self, channel: RequestChannel) -> Result<(), base::Error> {
        if self.channel.is_some() {
            self.drop_channel()?;
        }
        self.channel_refusals = 0;
        self.stats.channels = self.stats.channels.saturating_add(1);
        self.channel = Some(channel);
        Ok(())
    }

    fn set_active(&mut self, active: bool) {
        self.active = active;
        if !active {
            self.calls.clear();
        }
        if active && self.config_change_waits {
            self.deliver_config_change();
        }
    }
}

#[cfg(test)]
mod tests;
