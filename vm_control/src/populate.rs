//! Fills in the pages of new mappings ahead of the guest, on a thread of its own.
//!
//! Not by `MAP_POPULATE` in the service's thread: it would allocate what a backend's sparse file lacks, read what was swapped out, and
//! wait for as long as the backend punches holes into the file, while all other devices wait for it. Here they wait for
//! [`STEP`] bytes at the most, during which the kernel holds the lock of the address space.
//!
//! It is a hint throughout: what there is no room for in the queue, and what is gone or replaced by the time that it is looked
//! at, is left to the guest's own faults.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::SyncSender;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use base::Error;

use crate::Arena;

/// Mappings that wait for the thread.
const QUEUE: usize = 64;
/// Bytes of one system call.
const STEP: u64 = 256 << 10;

/// A range of an arena.
struct Job {
    arena: Arena,
    offset: u64,
    len: u64,
}

/// The thread. Dropping this ends it before its next step, and does not wait for that.
#[derive(Debug)]
pub(crate) struct Populator {
    jobs: SyncSender<Job>,
    _alive: Arc<()>,
    _thread: JoinHandle<()>,
}

impl Populator {
    /// Starts the thread.
    ///
    /// # Errors
    /// `EAGAIN` where there can't be one more.
    pub(crate) fn start() -> Result<Self, Error> {
        let (jobs, receiver) = sync_channel(QUEUE);
        let alive = Arc::new(());
        let watched = Arc::downgrade(&alive);
        let thread = std::thread::Builder::new()
            .name("populate".to_owned())
            .spawn(move || run(&receiver, &watched))?;
        Ok(Self {
            jobs,
            _alive: alive,
            _thread: thread,
        })
    }

    /// Has the pages of `len` bytes at `offset` filled in, both page aligned; false if the queue is full.
    pub(crate) fn populate(&self, arena: &Arena, offset: u64, len: u64) -> bool {
        let arena = arena.clone();
        let job = Job { arena, offset, len };
        self.jobs.try_send(job).is_ok()
    }

    /// Waits until all that is in the queue is done.
    #[cfg(test)]
    fn finish(self) {
        let Self {
            jobs,
            _alive: alive,
            _thread: thread,
        } = self;
        drop(jobs);
        thread.join().expect("it does not panic");
        drop(alive);
    }
}

fn run(jobs: &Receiver<Job>, alive: &Weak<()>) {
    while let Ok(Job { arena, offset, len }) = jobs.recv() {
        let end = offset + len;
        let mut from = offset;
        while from < end && alive.strong_count() > 0 {
            let len = STEP.min(end - from);
            // The mapping may be gone, or its file too short by now.
            if arena.populate(from, len).is_err() {
                break;
            }
            from += len;
        }
    }
}

/// What a region may still have filled in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance(u64);

impl Allowance {
    /// Bytes for as long as the region is there.
    pub(crate) fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_spent(self) -> bool {
        self.0 == 0
    }

    /// How much of a mapping of `len` bytes there is left for, in whole pages.
    pub(crate) fn of(self, len: u64, page_size: u64) -> u64 {
        let footprint = len.checked_next_multiple_of(page_size).unwrap_or(len);
        let bytes = footprint.min(self.0);
        bytes - bytes % page_size
    }

    /// Spends bytes, whatever was there before: who asked may keep the file that they are in.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.0 -= bytes;
    }
}

#[cfg(test)]
mod tests;
