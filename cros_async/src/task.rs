//! Tasks: the queue of those that can go on, and the handle of one.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use async_task::Runnable;

use crate::lock;
use crate::reactor::Reactor;

/// Where a task may run and be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Anywhere,
    OwnerOnly,
}

/// The tasks that can go on, and a way to reach all the others.
pub(crate) struct Queue {
    reactor: Arc<Reactor>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    runnable: VecDeque<Runnable<Place>>,
    /// Every task whose future lives.
    alive: HashMap<u64, (Place, Waker)>,
    next: u64,
    /// Set when there will be no more running.
    ended: Option<Ended>,
}

/// What happens to a task that becomes runnable after the executor's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// It is dropped.
    Drop,
    /// It is dropped, or leaked if it must not be dropped just anywhere: the executor did not end on its own thread.
    DropOrLeak,
}

impl Ended {
    fn dispose(self, runnable: Runnable<Place>) {
        match (self, *runnable.metadata()) {
            (Self::Drop, _) | (_, Place::Anywhere) => drop(runnable),
            (Self::DropOrLeak, Place::OwnerOnly) => std::mem::forget(runnable),
        }
    }
}

impl Queue {
    pub(crate) fn new(reactor: Arc<Reactor>) -> Self {
        Self {
            reactor,
            state: Mutex::default(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.state).runnable.is_empty()
    }

    /// How many tasks can go on now.
    pub(crate) fn len(&self) -> usize {
        lock(&self.state).runnable.len()
    }

    pub(crate) fn pop(&self) -> Option<Runnable<Place>> {
        lock(&self.state).runnable.pop_front()
    }

    /// Takes a task that can go on.
    pub(crate) fn push(&self, runnable: Runnable<Place>) {
        let mut state = lock(&self.state);
        match state.ended {
            None => {
                state.runnable.push_back(runnable);
                drop(state);
                self.reactor.notify();
            }
            Some(ended) => {
                drop(state);
                ended.dispose(runnable);
            }
        }
    }

    /// How many tasks live.
    pub(crate) fn alive(&self) -> usize {
        lock(&self.state).alive.len()
    }

    /// Takes a task into the list of those that live, until its `Alive` is dropped.
    pub(crate) fn enter(&self, id: u64, place: Place, waker: Waker) {
        lock(&self.state).alive.insert(id, (place, waker));
    }

    /// Returns a task's name in the list of those that live.
    pub(crate) fn next_id(&self) -> u64 {
        let mut state = lock(&self.state);
        state.next += 1;
        state.next
    }

    fn leave(&self, id: u64) {
        let waker = lock(&self.state).alive.remove(&id);
        drop(waker);
    }

    /// Drops every task. On a thread other than the owner's, those that must not be dropped there are leaked instead.
    pub(crate) fn end(&self, is_owner: bool) {
        let ended = match is_owner {
            true => Ended::Drop,
            false => Ended::DropOrLeak,
        };
        let mut state = lock(&self.state);
        // It can end twice; where local tasks were leaked once they stay so.
        let ended = match state.ended {
            Some(Ended::DropOrLeak) => Ended::DropOrLeak,
            _ => ended,
        };
        state.ended = Some(ended);
        let alive = std::mem::take(&mut state.alive);
        let runnable = std::mem::take(&mut state.runnable);
        drop(state);
        let mut leaked = 0;
        for runnable in runnable {
            ended.dispose(runnable);
        }
        for (place, waker) in alive.into_values() {
            match is_owner || place == Place::Anywhere {
                // That makes it runnable, and what is runnable is dropped.
                true => waker.wake(),
                false => {
                    leaked += 1;
                    std::mem::forget(waker);
                }
            }
        }
        if leaked > 0 {
            base::error!("{leaked} local tasks leak: their executor ended on another thread");
        }
    }
}

/// Takes its task out of the list of those that live when the future is dropped.
pub(crate) struct Alive {
    pub(crate) queue: Arc<Queue>,
    pub(crate) id: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.queue.leave(self.id);
    }
}

/// A task of an executor. Awaiting it gives the task's result; dropping it cancels the task.
///
/// A cancelled task's future is dropped by the executor, soon, and on the thread that runs it.
///
/// # Panics
/// Awaiting a task panics if the task panicked, or if the executor ended before it.
#[derive(Debug)]
#[must_use = "a task whose handle is dropped is cancelled"]
pub struct TaskHandle<R> {
    pub(crate) task: async_task::Task<R, Place>,
}

impl<R> TaskHandle<R> {
    /// Lets the task go on without its handle.
    pub fn detach(self) {
        self.task.detach();
    }

    /// Cancels the task and waits until its future is gone. Returns its result if it came in first.
    pub async fn cancel(self) -> Option<R> {
        self.task.cancel().await
    }

    /// Tells whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.task.is_finished()
    }
}

impl<R> Future for TaskHandle<R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R> {
        Pin::new(&mut self.task).poll(cx)
    }
}
