//! A small executor with crosvm's names: tasks that wait for descriptors, events, timers and tubes.
//!
//! One thread runs an [`Executor`]; any thread can spawn on it and wake its tasks. What is below is well-kept crates: tasks
//! are `async-task`'s, the epoll flavour is `rustix`'s epoll, and the io_uring flavour waits by `IORING_OP_POLL_ADD` through
//! the crate `io-uring`. Both flavours wait for readiness only; bytes are moved by ordinary calls that do not wait. So a task
//! that is cancelled leaves nothing behind in the kernel that could still write to its memory.
//!
//! io_uring is for backends and tools. No process of Portcullis that is jailed uses this crate's io_uring flavour, no policy
//! has its calls, and [`Executor::with_executor_kind`] refuses it where a seccomp filter is on or can't be looked for.
//!
//! # Example
//! ```
//! use base::Event;
//! use cros_async::{EventAsync, Executor, ExecutorKind};
//!
//! let ex = Executor::with_executor_kind(ExecutorKind::Epoll)?;
//! let event = Event::new()?;
//! let waiting = EventAsync::new(event.try_clone()?, &ex);
//! let task = ex.spawn(async move { waiting.next_val().await });
//! event.signal()?;
//! assert_eq!(ex.run_until(task)??, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod event;
mod executor;
mod first;
mod io_source;
mod kind;
mod poller;
mod reactor;
mod task;
mod timer;
mod tube;

pub use error::AsyncResult;
pub use error::Error;
pub use event::EventAsync;
pub use executor::Executor;
pub use first::First;
pub use first::first;
pub use io_source::IoSource;
pub use kind::ExecutorKind;
pub use kind::UnknownExecutorKind;
pub use task::TaskHandle;
pub use timer::TimerAsync;
pub use tube::AsyncTube;

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

/// Locks `mutex`. What it guards is consistent between any two statements, so that a panic elsewhere doesn't matter.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
