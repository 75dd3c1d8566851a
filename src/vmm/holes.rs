//! The way of the guest's missteps from the vCPU's thread to the main loop.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use base::Event as Signal;
use base::RateLimit;

use super::events::Event;
use super::machine::FaultKind;
use super::machine::GuestFault;

/// How many missteps wait to be told; the guest can make more than anybody wants to read.
const QUEUE: usize = 16;

/// Missteps of the guest that wait to be told.
#[derive(Debug)]
pub(super) struct Holes {
    sender: SyncSender<GuestFault>,
    queue: Receiver<GuestFault>,
    ready: Arc<Signal>,
    limit: RateLimit,
}

impl Holes {
    /// Makes an empty queue.
    ///
    /// # Errors
    /// The system has no event left.
    pub(super) fn new() -> io::Result<Self> {
        let (sender, queue) = mpsc::sync_channel(QUEUE);
        Ok(Self {
            sender,
            queue,
            ready: Arc::new(Signal::new()?),
            limit: RateLimit::new(20, Duration::from_millis(200)),
        })
    }

    /// What the machine calls for each misstep.
    pub(super) fn reporter(&self) -> impl FnMut(&GuestFault) + Clone + Send + 'static {
        let sender = self.sender.clone();
        let ready = Arc::clone(&self.ready);
        move |fault: &GuestFault| {
            // A full queue drops it: others like it are waiting to be told.
            if sender.try_send(fault.clone()).is_ok() {
                let _ = ready.signal();
            }
        }
    }

    /// Becomes readable when there is something to tell.
    pub(super) fn ready(&self) -> &Signal {
        &self.ready
    }

    /// Takes everything there is to tell.
    pub(super) fn take(&mut self) -> Vec<Event> {
        let _ = self.ready.reset();
        let mut events = Vec::new();
        for fault in self.queue.try_iter() {
            if let Some(suppressed) = self.limit.permit() {
                events.push(event(&fault, suppressed));
            }
        }
        events
    }
}

fn event(fault: &GuestFault, suppressed: u64) -> Event {
    Event::Hole {
        region: fault.place.as_ref().map(|place| place.name.clone()),
        offset: fault
            .place
            .as_ref()
            .map_or(fault.guest_address, |place| place.offset),
        len: fault.len,
        write: fault.write,
        reason: match fault.kind {
            FaultKind::Missing => "missing",
            FaultKind::ReadOnly => "read-only",
            FaultKind::NoMemory => "no memory",
        }
        .to_owned(),
        suppressed,
    }
}
