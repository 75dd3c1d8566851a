//! How a device process ends: one exit code a cause, the same on both sides.
//!
//! The device process returns one of these from `main`; the VMM reads it back out of the exit report. Codes 1 and 2
//! keep the meaning that they have for the whole command line (failed, wrong usage), 101 and everything from 128 on
//! belong to Rust's panics and to signals.

use std::fmt;

/// Why a device process ended of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The VMM asked for it.
    Shutdown,
    /// It could not start: a descriptor, an event, a thread.
    Failed,
    /// Its command line was wrong.
    Usage,
    /// The backend closed the main channel.
    BackendGone,
    /// The control tube was closed at the other end: there is no VMM any more.
    VmmGone,
    /// The backend broke the protocol on the main channel, which can't be trusted from then on.
    BackendProtocol,
    /// The mapping service closed the memory tube.
    ServiceGone,
    /// The VMM sent something on the control tube that this process does not understand.
    ControlProtocol,
    /// A step of the jail failed; the backend was not listened to.
    Jail,
}

impl Exit {
    const ALL: [Self; 9] = [
        Self::Shutdown,
        Self::Failed,
        Self::Usage,
        Self::BackendGone,
        Self::VmmGone,
        Self::BackendProtocol,
        Self::ServiceGone,
        Self::ControlProtocol,
        Self::Jail,
    ];

    /// Returns the exit code of the process.
    pub const fn code(self) -> i32 {
        match self {
            Self::Shutdown => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::BackendGone => 10,
            Self::VmmGone => 11,
            Self::BackendProtocol => 12,
            Self::ServiceGone => 13,
            Self::ControlProtocol => 14,
            Self::Jail => 15,
        }
    }

    /// Finds the cause that an exit code stands for, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.code() == code)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shut down by the VMM",
            Self::Failed => "could not start",
            Self::Usage => "wrong usage",
            Self::BackendGone => "the backend closed the main channel",
            Self::VmmGone => "the VMM is gone",
            Self::BackendProtocol => "the backend broke the protocol on the main channel",
            Self::ServiceGone => "the mapping service closed the memory tube",
            Self::ControlProtocol => "the VMM sent an unknown control message",
            Self::Jail => "the jail could not be set up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_each_exit_leads_back_to_it() {
        for exit in Exit::ALL {
            assert_eq!(Exit::from_code(exit.code()), Some(exit));
        }
    }

    #[test]
    fn from_code_of_a_panic_is_not_ours() {
        assert_eq!(Exit::from_code(101), None);
    }
}
