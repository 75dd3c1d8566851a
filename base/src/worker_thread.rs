//! A thread that is told to stop by an event and joined when its owner lets go of it.

use std::panic::resume_unwind;
use std::thread::Builder;
use std::thread::JoinHandle;
use std::thread::Thread;

use crate::Event;
use crate::Result;

/// A running thread; on drop it is told to stop and joined.
#[derive(Debug)]
pub struct WorkerThread<T: Send + 'static> {
    kill: Event,
    /// `None` once the thread is joined.
    handle: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> WorkerThread<T> {
    /// Starts a thread named `name` that runs `work`, which must return soon after the event that it gets is signalled.
    ///
    /// # Panics
    /// If no thread or event can be made; [`WorkerThread::try_start`] returns that.
    pub fn start<F>(name: impl Into<String>, work: F) -> Self
    where
        F: FnOnce(Event) -> T + Send + 'static,
    {
        Self::try_start(name, work).expect("the process may have one more thread")
    }

    /// Starts a thread as [`WorkerThread::start`].
    ///
    /// # Errors
    /// `EMFILE` where there are too many descriptors, `EAGAIN` where there are too many threads.
    pub fn try_start<F>(name: impl Into<String>, work: F) -> Result<Self>
    where
        F: FnOnce(Event) -> T + Send + 'static,
    {
        let kill = Event::new()?;
        let workers_end = kill.try_clone()?;
        let handle = Builder::new()
            .name(name.into())
            .spawn(move || work(workers_end))?;
        Ok(Self {
            kill,
            handle: Some(handle),
        })
    }

    /// Tells the thread to stop, waits until it does and returns its result.
    ///
    /// # Panics
    /// With the thread's own panic.
    pub fn stop(mut self) -> T {
        self.signal();
        let handle = self
            .handle
            .take()
            .expect("only stop and drop join the thread");
        handle.join().unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Tells the thread to stop and does not wait.
    pub fn signal(&self) {
        self.kill
            .signal()
            .expect("an eventfd of our own takes a signal");
    }

    /// Returns the thread's handle.
    pub fn thread(&self) -> &Thread {
        self.handle
            .as_ref()
            .expect("only stop and drop join the thread")
            .thread()
    }

    /// Whether the thread has ended, by itself or because it was told to.
    pub fn is_finished(&self) -> bool {
        self.handle.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl<T: Send + 'static> Drop for WorkerThread<T> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.signal();
            // The thread's panic has been reported on standard error; to panic here could abort the process.
            let _result_or_panic = handle.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;
    use std::panic::catch_unwind;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn stop_signals_joins_and_returns_the_result() {
        let worker = WorkerThread::start("worker", |kill| {
            kill.wait().expect("waits");
            std::thread::current().name().map(String::from)
        });
        assert_eq!(worker.thread().name(), Some("worker"));
        assert!(!worker.is_finished());
        assert_eq!(worker.stop().as_deref(), Some("worker"));
    }

    #[test]
    fn drop_signals_and_joins() {
        let (sender, receiver) = channel();
        let worker = WorkerThread::start("worker", move |kill| {
            kill.wait().expect("waits");
            sender.send("done").expect("the test listens");
        });
        drop(worker);
        assert_eq!(receiver.try_recv(), Ok("done"));
    }

    #[test]
    fn signal_lets_the_thread_end_by_itself() {
        let (sender, receiver) = channel();
        let worker = WorkerThread::start("worker", move |kill| {
            kill.wait().expect("waits");
            sender.send("done").expect("the test listens");
        });
        worker.signal();
        assert_eq!(receiver.recv_timeout(Duration::from_secs(10)), Ok("done"));
        worker.stop();
    }

    #[test]
    fn panic_of_the_thread_comes_out_of_stop_and_not_of_drop() {
        let panicking = || WorkerThread::<()>::start("worker", |_kill| panic!("a test's panic"));
        drop(panicking());
        let stopped = catch_unwind(AssertUnwindSafe(|| panicking().stop()));
        let message = stopped.expect_err("stop panics");
        assert_eq!(message.downcast_ref(), Some(&"a test's panic"));
    }
}
