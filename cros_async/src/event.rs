//! Waiting for an event.

use std::io;
use std::io::IoSliceMut;

use base::Event;
use rustix::io::ReadWriteFlags;
use rustix::io::preadv2;
use rustix::io::retry_on_intr;

use crate::AsyncResult;
use crate::Error;
use crate::Executor;
use crate::IoSource;

/// The offset that stands for the current position, the only one that an eventfd has.
const WHERE_IT_IS: u64 = u64::MAX;

/// An event whose signals a task takes.
#[derive(Debug)]
pub struct EventAsync {
    source: IoSource<Event>,
}

impl EventAsync {
    /// Takes `event`.
    pub fn new(event: Event, ex: &Executor) -> Self {
        let source = IoSource::new(event, ex);
        Self { source }
    }

    /// Waits for the next signal, takes it, and returns the event's count: how many signals were taken together.
    ///
    /// It never waits otherwise, not even for an event that is shared with somebody who takes its signals.
    ///
    /// # Errors
    /// [`Error::Read`] for a descriptor that is no eventfd; as [`IoSource::wait_readable`].
    pub async fn next_val(&self) -> AsyncResult<u64> {
        loop {
            match take(self.source.as_source()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map_err(Error::Read),
            }
            self.source.wait_readable().await?;
        }
    }

    /// Returns the event, to signal it, say.
    pub fn event(&self) -> &Event {
        self.source.as_source()
    }
}

impl From<EventAsync> for Event {
    fn from(event: EventAsync) -> Self {
        event.source.into_source()
    }
}

/// Takes the signal if there is one.
fn take(event: &Event) -> io::Result<u64> {
    let mut count = [0; 8];
    let taken = retry_on_intr(|| {
        let mut bufs = [IoSliceMut::new(&mut count)];
        preadv2(event, &mut bufs, WHERE_IT_IS, ReadWriteFlags::NOWAIT)
    })?;
    match taken == count.len() {
        true => Ok(u64::from_ne_bytes(count)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
