//! How a jailed process ended.

use std::fmt;

use rustix::process::WaitIdStatus;
use serde::Serialize;

use crate::arch::Arch;
use crate::last_words::ABORT_CODE;
use crate::last_words::PANIC_CODE;
use crate::record::AbortCause;
use crate::record::Record;
use crate::record::ViolationRecord;
use crate::record::printable;
use crate::record::thread_name;

/// How a jailed process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExitReport {
    /// The device's name.
    pub name: String,
    /// The process's number, as its parent saw it.
    pub pid: u32,
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
}

/// How a process ended. Codes and signals are the kernel's word; what goes beyond them the process itself has said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "end")]
pub enum End {
    /// It ended itself.
    Exited {
        /// With this code.
        code: i32,
    },
    /// A signal ended it.
    Signaled {
        /// This one.
        signal: i32,
        /// The signal's name.
        signal_name: &'static str,
    },
    /// It made a call that its policy does not allow.
    Violation {
        /// The call; `None` if the process had no time to say (`--seccomp kill`).
        call: Option<ViolatingCall>,
    },
    /// Its main thread panicked.
    Panicked {
        /// The message, and where.
        message: String,
    },
    /// It aborted.
    Aborted {
        /// The thread that did.
        thread: String,
        /// The last panic before, if any.
        panic: Option<String>,
    },
    /// It aborted after an allocation had failed.
    OutOfMemory {
        /// The thread that did.
        thread: String,
        /// The size of the allocation in bytes.
        bytes: u64,
    },
    /// A thread ran out of stack.
    StackOverflow {
        /// The thread.
        thread: String,
    },
}

/// A call that a policy does not allow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ViolatingCall {
    /// The syscall's number.
    pub number: u32,
    /// Its name, `None` if the table has none.
    pub syscall: Option<&'static str>,
    /// The thread that made it.
    pub thread: String,
    /// The address after the instruction that made it.
    pub address: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl From<&ViolationRecord> for ViolatingCall {
    fn from(record: &ViolationRecord) -> Self {
        Self {
            number: record.number,
            syscall: Arch::NATIVE.name_of(record.number),
            thread: thread_name(&record.thread),
            address: record.address,
            arguments: record.arguments,
        }
    }
}

impl End {
    /// Puts the kernel's word and the process's last words together.
    pub(super) fn new(status: &WaitIdStatus, words: &[Record<'_>]) -> Self {
        if let Some(code) = status.exit_status() {
            return Self::exited(code, words);
        }
        let signal = status.terminating_signal().unwrap_or(0);
        if signal == libc::SIGSYS {
            let call = words.iter().rev().find_map(|word| match word {
                Record::Violation(violation) => Some(violation.into()),
                _ => None,
            });
            return Self::Violation { call };
        }
        let signal_name = signal_name(signal);
        Self::Signaled {
            signal,
            signal_name,
        }
    }

    fn exited(code: i32, words: &[Record<'_>]) -> Self {
        let panic = words.iter().rev().find_map(|word| match word {
            Record::Panic { text } => Some(printable(text)),
            _ => None,
        });
        let abort = words.iter().rev().find_map(|word| match word {
            Record::Abort { cause, thread } => Some((*cause, thread_name(thread))),
            _ => None,
        });
        match (code, abort, panic) {
            (ABORT_CODE, Some((AbortCause::Abort, thread)), panic) => {
                Self::Aborted { thread, panic }
            }
            (ABORT_CODE, Some((AbortCause::OutOfMemory(bytes), thread)), _) => {
                Self::OutOfMemory { thread, bytes }
            }
            (ABORT_CODE, Some((AbortCause::StackOverflow, thread)), _) => {
                Self::StackOverflow { thread }
            }
            (PANIC_CODE, _, Some(message)) => Self::Panicked { message },
            _ => Self::Exited { code },
        }
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} (pid {}) {}", self.name, self.pid, self.end)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code } => write!(f, "ended with code {code}"),
            Self::Signaled {
                signal,
                signal_name,
            } => write!(f, "was killed by signal {signal} ({signal_name})"),
            Self::Violation { call: None } => {
                f.write_str("made a syscall that its policy does not allow")
            }
            Self::Violation { call: Some(call) } => write!(
                f,
                "made a syscall that its policy does not allow: {} ({}) in thread {}, at {:#x}",
                call.number,
                call.syscall.unwrap_or("unknown"),
                call.thread,
                call.address
            ),
            Self::Panicked { message } => write!(f, "panicked: {message}"),
            Self::Aborted {
                thread,
                panic: None,
            } => write!(f, "aborted in thread {thread}"),
            Self::Aborted {
                thread,
                panic: Some(panic),
            } => write!(f, "aborted in thread {thread} after a panic: {panic}"),
            Self::OutOfMemory { thread, bytes } => write!(
                f,
                "ran out of memory in thread {thread}, with an allocation of {bytes} bytes"
            ),
            Self::StackOverflow { thread } => write!(f, "overflowed the stack of thread {thread}"),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGXFSZ => "SIGXFSZ",
        libc::SIGSYS => "SIGSYS",
        _ => "unnamed",
    }
}
