//! A thread for calls that may take a while, so that the main loop never does.
//!
//! A call on a device process has a deadline, but until then it can wait for a backend that does not answer. A read of
//! guest memory can wait for the pages of a file whose server is the hostile backend itself. Both run here, one after
//! the other, and their results come back through a queue and an event.

use std::io;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;

use base::Event;

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// A thread that runs jobs with results of type `T`.
///
/// When it is dropped, the thread ends after the job that it is at; nobody waits for it.
#[derive(Debug)]
pub(super) struct Aside<T> {
    jobs: Sender<Job<T>>,
    results: Receiver<T>,
    ready: Event,
    pending: usize,
}

impl<T: Send + 'static> Aside<T> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no event or no thread left.
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let (jobs, job_queue) = mpsc::channel::<Job<T>>();
        let (result_queue, results) = mpsc::channel();
        let ready = Event::new()?;
        let signal = ready.try_clone()?;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                for job in job_queue {
                    if result_queue.send(job()).is_err() || signal.signal().is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            jobs,
            results,
            ready,
            pending: 0,
        })
    }

    /// Queues a job.
    pub(super) fn run(&mut self, job: impl FnOnce() -> T + Send + 'static) {
        if self.jobs.send(Box::new(job)).is_ok() {
            self.pending += 1;
        }
    }

    /// Becomes readable when a result is there.
    pub(super) fn ready(&self) -> &Event {
        &self.ready
    }

    /// How many jobs are queued or at work.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Takes the next result, if there is one. Call it until there is none once [`Aside::ready`] was readable.
    pub(super) fn take(&mut self) -> Option<T> {
        // Reset before looking: a result that comes in between signals again.
        let _ = self.ready.reset();
        let result = self.results.try_recv().ok()?;
        self.pending = self.pending.saturating_sub(1);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// How long a test waits for what must come.
    const TIMEOUT: Duration = Duration::from_secs(10);

    #[test]
    fn results_come_in_the_order_of_their_jobs() {
        let mut aside = Aside::start("aside").expect("starts");
        aside.run(|| 1);
        aside.run(|| 2);
        let mut results = Vec::new();
        while results.len() < 2 {
            aside.ready().wait_timeout(TIMEOUT).expect("waits");
            results.extend(std::iter::from_fn(|| aside.take()));
        }
        assert_eq!(results, [1, 2]);
        assert_eq!(aside.pending(), 0);
    }

    #[test]
    fn job_that_never_ends_does_not_hold_up_the_owner() {
        let (_release, gate) = mpsc::channel::<()>();
        let mut aside = Aside::start("aside").expect("starts");
        aside.run(move || gate.recv().is_ok());
        assert_eq!(aside.take(), None);
        assert_eq!(aside.pending(), 1);
        drop(aside);
    }
}
