//! Why an executor, or something that waits on it, failed.

use std::io;

use remain::sorted;
use thiserror::Error;

use crate::ExecutorKind;

/// Why an operation of this crate failed.
#[sorted]
#[derive(Debug, Error)]
pub enum Error {
    /// The executor is shut down or gone, so nothing would ever wake the waiting task.
    #[error("the executor has ended")]
    Ended,
    /// io_uring was asked for and a seccomp filter is on; jailed processes do not get it.
    #[error("io_uring is not used under a seccomp filter: use the epoll executor")]
    Filtered,
    /// The kernel, or who configured it, has no such executor for this process.
    #[error("the kernel gives no {kind} executor to this process{}", advice(*kind))]
    Kernel {
        /// The flavour that was asked for.
        kind: ExecutorKind,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A timer that repeats was given no time between two expirations.
    #[error("a period of zero")]
    NoPeriod,
    /// The event could not be read.
    #[error("read an event")]
    Read(#[source] io::Error),
    /// The kernel does not tell when the descriptor is ready.
    #[error("wait for descriptor {descriptor}")]
    Register {
        /// The descriptor's number.
        descriptor: base::RawDescriptor,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The executor runs already.
    #[error("the executor runs already")]
    Running,
    /// io_uring was asked for, and whether a seccomp filter is on can't be found out: that is how it is in a jail.
    #[error(
        "io_uring is not used where /proc/thread-self/status does not tell that there is no seccomp filter"
    )]
    Unknown(#[source] io::Error),
    /// The kernel does not wait.
    #[error("wait for any descriptor")]
    Wait(#[source] io::Error),
    /// Another thread runs this executor, or spawned tasks that must stay on it.
    #[error("the executor belongs to another thread")]
    WrongThread,
}

fn advice(kind: ExecutorKind) -> &'static str {
    match kind {
        ExecutorKind::Epoll => "",
        ExecutorKind::Uring => {
            " (see /proc/sys/kernel/io_uring_disabled; the epoll executor does the same)"
        }
    }
}

/// The result of an operation of this crate.
pub type AsyncResult<T> = Result<T, Error>;
