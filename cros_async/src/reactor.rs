//! Who waits for what: the wakers of descriptors and timers, over a poller.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::task::Waker;
use std::time::Duration;
use std::time::Instant;

use crate::Error;
use crate::lock;
use crate::poller::Armed;
use crate::poller::Interest;
use crate::poller::Poller;
use crate::poller::Ready;
use crate::poller::SourceId;

/// The longest wait; the executor wakes up for nothing once in so long, and a timeout of any length fits every call.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// One wait of one task.
pub(crate) type Ticket = u64;

/// When a timer expires; the ticket tells timers of one instant apart.
pub(crate) type TimerKey = (Instant, Ticket);

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// The tasks that wait for a source.
#[derive(Default)]
struct Source {
    readers: Vec<(Ticket, Waker)>,
    writers: Vec<(Ticket, Waker)>,
    /// A report came for one direction, and epoll has disarmed the other one with it.
    must_rearm: bool,
}

impl Source {
    fn waiters(&mut self, direction: Direction) -> &mut Vec<(Ticket, Waker)> {
        match direction {
            Direction::Read => &mut self.readers,
            Direction::Write => &mut self.writers,
        }
    }

    fn interest(&self) -> Interest {
        Interest {
            read: !self.readers.is_empty(),
            write: !self.writers.is_empty(),
        }
    }
}

#[derive(Default)]
struct State {
    /// The next source or ticket.
    next: u64,
    sources: HashMap<SourceId, Source>,
    timers: BTreeMap<TimerKey, Waker>,
}

impl State {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes out the waiters whom a report is for. Those of the other direction are woken to arm the source again.
    fn take_ready(&mut self, report: Ready, wakers: &mut Vec<Waker>) {
        let Some(source) = self.sources.get_mut(&report.source) else {
            return;
        };
        let ready = [
            (Direction::Read, report.interest.read),
            (Direction::Write, report.interest.write),
        ];
        source.must_rearm = true;
        for (direction, is_ready) in ready {
            let waiters = source.waiters(direction);
            wakers.extend(waiters.iter().map(|(_, waker)| waker.clone()));
            if is_ready {
                waiters.clear();
            }
        }
    }

    fn take_expired(&mut self, now: Instant, wakers: &mut Vec<Waker>) {
        while let Some(entry) = self.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            wakers.push(entry.remove());
        }
    }
}

pub(crate) struct Reactor {
    poller: Box<dyn Poller>,
    state: Mutex<State>,
    /// The running thread waits, or is about to: it must be notified.
    asleep: AtomicBool,
    ended: AtomicBool,
}

impl Reactor {
    pub(crate) fn new(poller: Box<dyn Poller>) -> Self {
        Self {
            poller,
            state: Mutex::default(),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// From now on nobody can begin to wait.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Refuses once it has ended.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.ended.load(Ordering::SeqCst) {
            true => Err(Error::Ended),
            false => Ok(()),
        }
    }

    /// Announces a wait: whatever is made ready after this call ends it. [`Reactor::awake`] takes it back.
    pub(crate) fn about_to_sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
    }

    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::SeqCst);
    }

    /// Ends the running thread's wait, if it waits.
    pub(crate) fn notify(&self) {
        if self.asleep.swap(false, Ordering::SeqCst) {
            self.poller.notify();
        }
    }

    /// Looks for what is ready, with `sleep` until there is something, and wakes who waits for it.
    pub(crate) fn turn(&self, sleep: bool) -> Result<(), Error> {
        let timeout = match sleep {
            false => Duration::ZERO,
            true => self.until_next_timer(),
        };
        let mut ready = Vec::new();
        self.poller
            .wait(Some(timeout), &mut ready)
            .map_err(Error::Wait)?;
        let mut wakers = Vec::new();
        let mut state = lock(&self.state);
        for report in ready {
            state.take_ready(report, &mut wakers);
        }
        state.take_expired(Instant::now(), &mut wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn until_next_timer(&self) -> Duration {
        let state = lock(&self.state);
        let next = state.timers.first_key_value();
        next.map_or(LONGEST_WAIT, |((instant, _), _)| {
            instant
                .saturating_duration_since(Instant::now())
                .min(LONGEST_WAIT)
        })
    }

    pub(crate) fn add_source(&self) -> SourceId {
        let mut state = lock(&self.state);
        let id = state.next();
        state.sources.insert(id, Source::default());
        id
    }

    /// Forgets a source; its descriptor must still be open.
    pub(crate) fn remove_source(&self, id: SourceId, descriptor: BorrowedFd<'_>) {
        let source = lock(&self.state).sources.remove(&id);
        self.poller.forget(id, descriptor);
        self.notify();
        // Wakers can hold tasks, and tasks sources: not under the lock.
        drop(source);
    }

    /// Begins or goes on to wait: `ticket` is none at first, and is set for as long as the task is to be woken.
    pub(crate) fn poll_source(
        &self,
        id: SourceId,
        descriptor: BorrowedFd<'_>,
        direction: Direction,
        ticket: &mut Option<Ticket>,
        waker: &Waker,
    ) -> Poll<Result<(), Error>> {
        self.check()?;
        let mut state = lock(&self.state);
        let fresh = state.next();
        let Some(source) = state.sources.get_mut(&id) else {
            return Poll::Ready(Err(Error::Ended));
        };
        let waiters = source.waiters(direction);
        let known = ticket.and_then(|ticket| place(waiters, ticket));
        match (known, *ticket) {
            (Some(place), _) => {
                waiters[place].1.clone_from(waker);
                if !source.must_rearm {
                    return Poll::Pending;
                }
            }
            (None, Some(_)) => {
                // It was taken out because the source was ready.
                *ticket = None;
                return Poll::Ready(Ok(()));
            }
            (None, None) => {
                waiters.push((fresh, waker.clone()));
                *ticket = Some(fresh);
            }
        }
        let armed = self.poller.arm(id, descriptor, source.interest());
        source.must_rearm = false;
        if matches!(armed, Ok(Armed::Waiting)) {
            drop(state);
            self.notify();
            return Poll::Pending;
        }
        drop(state);
        if let Some(ticket) = ticket.take() {
            self.abandon(id, direction, ticket);
        }
        Poll::Ready(match armed {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::Register {
                descriptor: descriptor.as_raw_fd(),
                source,
            }),
        })
    }

    /// Ends a wait that the task has given up.
    pub(crate) fn abandon(&self, id: SourceId, direction: Direction, ticket: Ticket) {
        let mut state = lock(&self.state);
        let Some(source) = state.sources.get_mut(&id) else {
            return;
        };
        let waiters = source.waiters(direction);
        let waker = place(waiters, ticket).map(|place| waiters.swap_remove(place));
        drop(state);
        drop(waker);
    }

    /// Begins or goes on to wait for a timer; ready once it has expired.
    pub(crate) fn poll_timer(
        &self,
        deadline: Instant,
        key: &mut Option<TimerKey>,
        waker: &Waker,
    ) -> Poll<Result<(), Error>> {
        self.check()?;
        if let Some(known) = *key {
            let mut state = lock(&self.state);
            return match state.timers.get_mut(&known) {
                Some(entry) => {
                    entry.clone_from(waker);
                    Poll::Pending
                }
                None => {
                    *key = None;
                    Poll::Ready(Ok(()))
                }
            };
        }
        if deadline <= Instant::now() {
            return Poll::Ready(Ok(()));
        }
        let mut state = lock(&self.state);
        let entry = (deadline, state.next());
        state.timers.insert(entry, waker.clone());
        *key = Some(entry);
        drop(state);
        self.notify();
        Poll::Pending
    }

    /// Tells how many timers are waited for.
    #[cfg(test)]
    pub(crate) fn timers(&self) -> usize {
        lock(&self.state).timers.len()
    }

    /// Ends a timer that the task has given up.
    pub(crate) fn abandon_timer(&self, key: TimerKey) {
        let waker = lock(&self.state).timers.remove(&key);
        drop(waker);
    }
}

fn place(waiters: &[(Ticket, Waker)], ticket: Ticket) -> Option<usize> {
    waiters.iter().position(|(known, _)| *known == ticket)
}
