//! The worker's other half: what the service answers, how that reaches the backend, and how a channel ends.

use base::EventType;
use base::TubeError;
use base::error;
use vm_control::ResponseBatch;
use vm_control::VmMemoryRequest;
use vm_control::VmMemoryResponse;
use vmm_vhost::ChannelError;
use vmm_vhost::Flush;
use vmm_vhost::RequestChannel;
use vmm_vhost::Ticket;
use vmm_vhost::deviation::Deviation;
use vmm_vhost::message::RequestCode;

use super::Intake;
use super::MAX_IN_FLIGHT;
use super::Token;
use super::Waiting;
use super::What;
use super::Worker;
use super::WorkerExit;
use super::requests::place;
use crate::control::ChannelClosed;
use crate::control::RefusedRequest;

impl Worker {
    /// Takes the service's answers that are there and completes the requests that they belong to.
    pub(super) fn take_answers(&mut self) -> Option<WorkerExit> {
        loop {
            match self.service.try_recv() {
                Ok(Some(batch)) => {
                    if let Some(exit) = self.finish_all(batch) {
                        return Some(exit);
                    }
                }
                Ok(None) => return None,
                Err(error) => return Some(service_gone(&error)),
            }
            // The last answer is there: nothing more can come, and no call is spent to hear so.
            if self.waiting.is_empty() {
                return None;
            }
        }
    }

    /// Waits a little for the answer where exactly one request is under way and its backend waits, too.
    ///
    /// The wait context would say the same with one more system call. The wait is over after [`ANSWER_WAIT`](super::ANSWER_WAIT)
    /// at the latest, so that a VMM which stands still holds up nothing else for longer.
    pub(super) fn await_answer(&mut self) -> Option<WorkerExit> {
        if !self.pace.is_steady() || self.waiting.len() != 1 || !self.service.is_empty() {
            return None;
        }
        let received = self.service.recv_within_timeout();
        self.pace.waited(!matches!(received, Ok(Some(_))));
        match received {
            Ok(Some(batch)) => self.finish_all(batch),
            Ok(None) => None,
            Err(error) => Some(service_gone(&error)),
        }
    }

    fn finish_all(&mut self, batch: ResponseBatch) -> Option<WorkerExit> {
        for response in batch.responses {
            let Some(waiting) = self.waiting.pop_front() else {
                error!("the mapping service answers what was not asked");
                return Some(WorkerExit::ServiceGone);
            };
            self.finish(waiting, &response);
        }
        None
    }

    fn finish(&mut self, waiting: Waiting, response: &VmMemoryResponse) {
        // The channel that asked may be closed by now, and another one open: it ignores the ticket.
        let ticket = waiting.ticket;
        match response {
            VmMemoryResponse::Ok => {
                match waiting.what {
                    What::Map => self.stats.maps += 1,
                    What::Unmap => self.stats.unmaps += 1,
                    What::Notifier { bit } => self.notifiers |= bit,
                    What::NotifierRemoval { .. } | What::UnregisterAll => {}
                }
                if let Some(ticket) = ticket {
                    self.complete(ticket, Ok(0));
                }
            }
            // The service has dropped them already, with a reset, or its account of this device.
            VmMemoryResponse::Err(_) if waiting.what == What::UnregisterAll => {}
            VmMemoryResponse::Err(error) => {
                if let What::NotifierRemoval { bit } = waiting.what {
                    // It is still there.
                    self.notifiers |= bit;
                }
                self.refuse(ticket, waiting.request, error.errno());
            }
        }
    }

    /// Sends what was collected for the service, unless the last message to it still waits for room.
    pub(super) fn ask_service(&mut self) -> Option<WorkerExit> {
        loop {
            self.settle();
            if self.service.is_empty() {
                return None;
            }
            match self.send_batch() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(service_gone(&error)),
            }
        }
    }

    /// Returns whether there was room for the message. One that the kernel does not take, though there is room (as while this
    /// user has too many descriptors under way), is refused in the service's place.
    pub(super) fn send_batch(&mut self) -> Result<bool, TubeError> {
        let error = match self.service.try_send() {
            Ok(sent) => {
                self.stats.batches += u64::from(sent);
                return Ok(sent);
            }
            Err(TubeError::Send(error)) => error,
            Err(error) => return Err(error),
        };
        // What was collected was asked last, and waits behind everything that has left.
        let refused = self.service.discard();
        let first = self.waiting.len().saturating_sub(refused);
        let last = self.waiting.back();
        let is_only_the_order =
            refused == 1 && last.is_some_and(|waiting| waiting.what == What::UnregisterAll);
        while self.waiting.len() > first
            && let Some(waiting) = self.waiting.pop_back()
        {
            if waiting.what == What::UnregisterAll {
                self.unregister_all = true;
            } else {
                self.finish(waiting, &VmMemoryResponse::Err(error));
            }
        }
        if is_only_the_order {
            // The mappings must go: with the tube, if not by this.
            return Err(TubeError::Send(error));
        }
        Ok(true)
    }

    /// Does what must come before any further request to the service, as far as there is room for it: the step into another
    /// generation, once what belongs to the old one has left, and the order to drop all mappings.
    pub(super) fn settle(&mut self) {
        if let Some(generation) = self.next_generation
            && self.service.is_empty()
        {
            self.service.set_generation(generation);
            self.next_generation = None;
        }
        if self.unregister_all
            && self.next_generation.is_none()
            && !self.service.is_full()
            && self.service.push(VmMemoryRequest::UnregisterAll).is_ok()
        {
            self.unregister_all = false;
            self.waiting.push_back(Waiting {
                ticket: None,
                what: What::UnregisterAll,
                request: place(0, 0, 0, 0),
            });
        }
    }

    /// Whether nothing has to come before further requests to the service.
    pub(super) fn is_settled(&self) -> bool {
        !self.unregister_all && self.next_generation.is_none()
    }

    /// Answers a request with an error, where an answer is due, and reports it.
    pub(super) fn refuse(&mut self, ticket: Option<Ticket>, at: RefusedRequest, errno: i32) {
        let errno = base::Error::new(errno);
        if let Some(ticket) = ticket {
            self.complete(ticket, Err(errno));
        }
        if self.channel.as_ref().is_some_and(RequestChannel::is_strict)
            && let Some(deviation) =
                Deviation::of_errno(RequestCode(at.code), errno, at.shmid, at.offset, at.len)
        {
            self.events.deviated(deviation, 1);
        }
        self.report_refusal(RefusedRequest { errno, ..at });
    }

    /// Passes on what the channel has seen against the protocol since the last look.
    pub(super) fn note_deviations(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        while let Some((first, count)) = channel.take_deviation() {
            self.events.deviated(first, count);
        }
    }

    /// Notes the requests that the channel itself has refused since the last look.
    pub(super) fn note_refusals(&mut self) {
        let last = self.channel.as_ref().and_then(RequestChannel::last_refused);
        let Some(last) = last.filter(|last| last.ordinal != self.channel_refusals) else {
            return;
        };
        let unseen = last.ordinal - self.channel_refusals - 1;
        self.channel_refusals = last.ordinal;
        self.stats.refused += unseen;
        self.report_refusal(RefusedRequest {
            errno: last.errno(),
            ..place(last.code.0, 0, 0, 0)
        });
    }

    /// The channel has logged it.
    fn report_refusal(&mut self, refused: RefusedRequest) {
        self.stats.refused += 1;
        self.stats.last_refused = Some(refused);
        self.events.refused(refused);
    }

    pub(super) fn deliver_config_change(&mut self) {
        self.config_change_waits = false;
        if let Err(error) = self.interrupt.signal() {
            error!("cannot signal the config change interrupt: {error}");
        }
        self.events.config_changed();
    }

    pub(super) fn complete(&mut self, ticket: Ticket, result: Result<u64, base::Error>) {
        if let Some(channel) = &mut self.channel {
            channel.complete(ticket, result);
            if result.is_err() {
                // The channel counts this one as well; it is reported by who refused it.
                self.channel_refusals = channel.stats().refused;
            }
        }
    }

    pub(super) fn flush_replies(&mut self) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        match channel.flush() {
            Ok(Flush::Done | Flush::Blocked) => {}
            Err(error) => self.close_channel(&error),
        }
    }

    /// Ends the channel for a reason that the backend gave, says so, and drops the mappings.
    pub(super) fn close_channel(&mut self, error: &ChannelError) {
        if self.channel.is_none() {
            // What it had left to say has ended it already.
            return;
        }
        self.note_deviations();
        let reason = closed_reason(error);
        match &reason {
            ChannelClosed::BrokenFraming { detail } => {
                error!("request channel closed: {detail}");
            }
            ChannelClosed::Failed { errno } => error!("request channel failed: {errno}"),
            ChannelClosed::ByBackend => {}
        }
        if let Err(error) = self.drop_channel() {
            error!("request channel: {error}");
        }
        self.events.channel_closed(reason);
    }

    pub(super) fn drop_channel(&mut self) -> Result<(), base::Error> {
        let Some(channel) = self.channel.take() else {
            return Ok(());
        };
        self.unregister_all = true;
        self.notifiers = 0;
        self.settle();
        if self.channel_interest.take().is_some() {
            self.wait.delete(&channel)?;
        }
        Ok(())
    }

    /// Tells the wait context what the worker wants to hear of next.
    pub(super) fn update_interest(&mut self) -> Result<(), base::Error> {
        let room = self.waiting.len() < MAX_IN_FLIGHT && !self.service.is_full();
        let read = match self.intake {
            Intake::Serve => room && self.is_settled(),
            Intake::Cancel => true,
            Intake::Hold => false,
        };
        if let Some(channel) = &self.channel {
            let wanted = interest(read && channel.wants_read(), channel.wants_write());
            // A channel that nothing is wanted from is taken out: its hang-up would be reported over and over.
            match (self.channel_interest, wanted) {
                (None, Some(wanted)) => {
                    self.wait.add_for_event(channel, wanted, Token::Channel)?;
                }
                (Some(_), None) => self.wait.delete(channel)?,
                (Some(now), Some(wanted)) if now != wanted => {
                    self.wait.modify(channel, wanted, Token::Channel)?;
                }
                _ => {}
            }
            self.channel_interest = wanted;
        }
        let memory = if self.service.is_empty() {
            EventType::Read
        } else {
            EventType::ReadWrite
        };
        if memory != self.memory_interest {
            self.wait.modify(&self.service, memory, Token::Memory)?;
            self.memory_interest = memory;
        }
        let events = self.events.wants_write();
        if events != self.events_interest {
            if events {
                self.wait
                    .add_for_event(&self.events, EventType::Write, Token::Events)?;
            } else {
                self.wait.delete(&self.events)?;
            }
            self.events_interest = events;
        }
        Ok(())
    }
}

fn interest(read: bool, write: bool) -> Option<EventType> {
    match (read, write) {
        (true, true) => Some(EventType::ReadWrite),
        (true, false) => Some(EventType::Read),
        (false, true) => Some(EventType::Write),
        (false, false) => None,
    }
}

fn service_gone(error: &TubeError) -> WorkerExit {
    if !matches!(error, TubeError::Disconnected) {
        error!("memory tube: {error}");
    }
    WorkerExit::ServiceGone
}

fn closed_reason(error: &ChannelError) -> ChannelClosed {
    match error {
        ChannelError::Closed { .. } => ChannelClosed::ByBackend,
        ChannelError::Io(errno) => ChannelClosed::Failed { errno: *errno },
        framing => ChannelClosed::BrokenFraming {
            detail: framing.to_string(),
        },
    }
}
