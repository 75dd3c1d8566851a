//! Closing descriptors that may take for ever to close.
//!
//! To close a file of a user file system waits until its server has flushed it. A thread that serves others can't afford
//! that, so it hands such descriptors over.

use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::TrySendError;
use std::sync::mpsc::sync_channel;
use std::thread::Builder;

use crate::IntoRawDescriptor;
use crate::SafeDescriptor;

/// How many descriptors wait for one that does not close: more than come at once.
const ROOM: usize = 128;

/// The closing thread is stuck, or there could be none. The descriptor stays open until this process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptors of a peer do not close")]
pub struct CloserStuck;

/// Closes descriptors of one peer on a thread of their own, which starts with the first and is never waited for.
#[derive(Debug, Default)]
pub struct Closer {
    queue: Option<SyncSender<SafeDescriptor>>,
}

impl Closer {
    /// Hands `descriptor` over and returns at once.
    ///
    /// # Errors
    /// [`CloserStuck`] if 128 others wait already. The peer should get no chance to send more: each of its descriptors
    /// from here on is lost to this process.
    pub fn close(&mut self, descriptor: SafeDescriptor) -> Result<(), CloserStuck> {
        self.close_with(descriptor, drop)
    }

    fn close_with(
        &mut self,
        descriptor: SafeDescriptor,
        close: fn(SafeDescriptor),
    ) -> Result<(), CloserStuck> {
        let queue = self.queue.get_or_insert_with(|| start(close));
        match queue.try_send(descriptor) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(descriptor) | TrySendError::Disconnected(descriptor)) => {
                // To drop it would be to wait here after all.
                let _open_for_good = descriptor.into_raw_descriptor();
                Err(CloserStuck)
            }
        }
    }
}

/// Starts a thread that calls `close` with what comes out of the queue, until the queue's sender is dropped.
fn start(close: fn(SafeDescriptor)) -> SyncSender<SafeDescriptor> {
    let (sender, receiver): (_, Receiver<SafeDescriptor>) = sync_channel(ROOM);
    // Without a thread the receiver is gone, which the sender reports.
    let _detached = Builder::new()
        .name(String::from("closer"))
        .spawn(move || receiver.into_iter().for_each(close));
    sender
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Event;
    use crate::WaitContext;

    /// How long a test waits before it fails.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn descriptors_are_closed_elsewhere() {
        let mut closer = Closer::default();
        for _ in 0..3 {
            let (watch, descriptor) = rustix::pipe::pipe().expect("a pipe is made");
            assert_eq!(closer.close(descriptor.into()), Ok(()));
            let context = WaitContext::build_with(&[(&watch, ())]).expect("a set is made");
            let ready = context.wait_timeout(PATIENCE).expect("waits");
            assert!(ready.first().expect("the pipe's end is closed").is_hungup);
        }
    }

    #[test]
    fn stuck_thread_is_reported_and_not_waited_for() {
        let event = Event::new().expect("an eventfd is made");
        let descriptor = || SafeDescriptor::from(event.try_clone().expect("duplicates"));
        // Waits for the event, and leaves it signalled, before it closes it.
        let stall = |descriptor: SafeDescriptor| {
            let context = WaitContext::build_with(&[(&descriptor, ())]).expect("a set is made");
            let ready = context.wait_timeout(PATIENCE).expect("waits");
            assert_eq!(ready.len(), 1);
        };
        let mut closer = Closer::default();
        let accepted = (0..ROOM + 3)
            .filter(|_| closer.close_with(descriptor(), stall).is_ok())
            .count();
        // The thread may have taken one out already.
        assert!((ROOM..=ROOM + 1).contains(&accepted), "{accepted}");
        event.signal().expect("signals");
    }
}
