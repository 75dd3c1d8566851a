//! Closing descriptors that may take for ever to close.
//!
//! To close a file of a user file system waits until its server has flushed it. A thread that serves others can't afford
//! that, so it hands such descriptors over.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::sync::mpsc::channel;
use std::thread::Builder;

use crate::IntoRawDescriptor;
use crate::SafeDescriptor;
use crate::Tube;
use crate::scm;

/// There is no thread to close descriptors on, and none could be started. The descriptor stays open until this process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no thread could be started to close a peer's descriptors")]
pub struct NoCloser;

/// Closes descriptors of one peer on a thread of their own, which starts with the first and is never waited for.
///
/// It takes all that it is given. Who gives it descriptors of a peer that it does not trust takes no more from that peer while
/// many are [waiting](Self::waiting), and sees by what was [closed](Self::closed) whether the thread is slow or stuck.
#[derive(Debug, Default)]
pub struct Closer {
    thread: Option<Thread>,
}

#[derive(Debug)]
struct Thread {
    queue: Sender<SafeDescriptor>,
    handed_over: u64,
    closed: Arc<AtomicU64>,
}

impl Closer {
    /// Hands `descriptor` over and returns at once.
    ///
    /// # Errors
    /// [`NoCloser`] if this was to be the thread's first and it does not start; the next call tries again. The peer should get no
    /// chance to send more: this descriptor is lost to this process.
    pub fn close(&mut self, descriptor: SafeDescriptor) -> Result<(), NoCloser> {
        self.close_with(descriptor, drop)
    }

    /// Closes a tube with all that its peer sent and nobody received: at once if there is nothing, else on the thread.
    ///
    /// # Errors
    /// As [`Self::close`].
    pub fn close_tube(&mut self, tube: Tube) -> Result<(), NoCloser> {
        if scm::has_unread(tube.as_fd()) {
            self.close(tube.into_descriptor())
        } else {
            Ok(())
        }
    }

    fn close_with(
        &mut self,
        descriptor: SafeDescriptor,
        close: fn(SafeDescriptor),
    ) -> Result<(), NoCloser> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => match Thread::start(close) {
                Ok(thread) => none.insert(thread),
                Err(_) => return Err(leave_open(descriptor)),
            },
        };
        thread.handed_over += 1;
        let sent = thread.queue.send(descriptor);
        sent.map_err(|unsent| leave_open(unsent.0))
    }

    /// How many were handed over and are not closed yet.
    pub fn waiting(&self) -> u64 {
        match &self.thread {
            Some(thread) => thread.handed_over - thread.closed.load(Ordering::Relaxed),
            None => 0,
        }
    }

    /// How many were closed so far.
    pub fn closed(&self) -> u64 {
        match &self.thread {
            Some(thread) => thread.closed.load(Ordering::Relaxed),
            None => 0,
        }
    }
}

impl Thread {
    /// Starts a thread that calls `close` with what comes out of the queue, until the queue's sender is dropped.
    fn start(close: fn(SafeDescriptor)) -> io::Result<Self> {
        let (queue, receiver): (_, Receiver<SafeDescriptor>) = channel();
        let closed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&closed);
        let close_all = move || {
            for descriptor in receiver {
                close(descriptor);
                count.fetch_add(1, Ordering::Relaxed);
            }
        };
        let _detached = Builder::new()
            .name(String::from("closer"))
            .spawn(close_all)?;
        Ok(Self {
            queue,
            handed_over: 0,
            closed,
        })
    }
}

/// To drop it would be to wait here after all.
fn leave_open(descriptor: SafeDescriptor) -> NoCloser {
    let _open_for_good = descriptor.into_raw_descriptor();
    NoCloser
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::WaitContext;

    /// How long a test waits before it fails.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Waits until the other end of `watch` is closed.
    #[track_caller]
    fn wait_closed(watch: &SafeDescriptor) {
        let context = WaitContext::build_with(&[(watch, ())]).expect("a set is made");
        let ready = context.wait_timeout(PATIENCE).expect("waits");
        assert!(ready.first().expect("the pipe's end is closed").is_hungup);
    }

    fn watched() -> (SafeDescriptor, SafeDescriptor) {
        let (watch, descriptor) = rustix::pipe::pipe().expect("a pipe is made");
        (watch.into(), descriptor.into())
    }

    #[test]
    fn descriptors_are_closed_elsewhere() {
        let mut closer = Closer::default();
        for _ in 0..3 {
            let (watch, descriptor) = watched();
            assert_eq!(closer.close(descriptor), Ok(()));
            wait_closed(&watch);
        }
    }

    #[test]
    fn tube_is_closed_with_what_lies_in_it() {
        let (watch, descriptor) = watched();
        let (tube, peer) = Tube::pair().expect("a tube is made");
        // A packet that reads like the end, and one behind it.
        scm::send(peer.as_fd(), &[], &[], scm::Wait::Never).expect("sends");
        peer.send(&descriptor).expect("sends");
        drop((peer, descriptor));
        let mut closer = Closer::default();
        assert_eq!(closer.close_tube(tube), Ok(()));
        assert!(closer.thread.is_some());
        wait_closed(&watch);
    }

    #[test]
    fn empty_tube_is_closed_without_a_thread() {
        let mut closer = Closer::default();
        let (tube, peer) = Tube::pair().expect("a tube is made");
        assert_eq!(closer.close_tube(tube), Ok(()));
        assert_eq!(peer.recv::<u8>(), Err(crate::TubeError::Disconnected));
        // A peer that is gone, and one that did not read.
        for sent in [0, 1] {
            let (tube, peer) = Tube::pair().expect("a tube is made");
            for number in 0..sent {
                tube.send(&number).expect("sends");
            }
            drop(peer);
            assert_eq!(closer.close_tube(tube), Ok(()));
        }
        assert!(closer.thread.is_none());
    }

    #[test]
    fn stuck_thread_is_seen_and_not_waited_for_and_closes_all_in_the_end() {
        let (reader, writer) = watched();
        // Blocks on a pipe's reading end while there is a writer, and fails at once on a writing end.
        let stall = |descriptor: SafeDescriptor| {
            let _ = rustix::io::read(&descriptor, &mut [0]);
        };
        let mut closer = Closer::default();
        assert_eq!((closer.waiting(), closer.closed()), (0, 0));
        assert_eq!(closer.close_with(reader, stall), Ok(()));
        let mut watches = Vec::new();
        for count in 2..=300 {
            let (watch, descriptor) = watched();
            assert_eq!(closer.close_with(descriptor, stall), Ok(()));
            assert_eq!((closer.waiting(), closer.closed()), (count, 0));
            watches.push(watch);
        }
        drop(writer);
        // The thread empties its queue although nobody holds the other end.
        drop(closer);
        watches.iter().for_each(wait_closed);
    }
}
