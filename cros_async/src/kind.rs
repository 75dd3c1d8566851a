//! The two flavours of the executor, and the rule that io_uring is not for jails.

use std::fmt;
use std::io;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::Error;

/// Tells of the calling thread, "Seccomp" among other things.
const STATUS: &str = "/proc/thread-self/status";

/// What an executor waits with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecutorKind {
    /// epoll: everywhere, in jails as well.
    #[default]
    Epoll,
    /// io_uring: where the kernel has it, and never under a seccomp filter.
    Uring,
}

/// No name of an [`ExecutorKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such executor: it is \"epoll\" or \"uring\"")]
pub struct UnknownExecutorKind;

impl fmt::Display for ExecutorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Epoll => "epoll",
            Self::Uring => "uring",
        })
    }
}

impl FromStr for ExecutorKind {
    type Err = UnknownExecutorKind;

    fn from_str(name: &str) -> Result<Self, UnknownExecutorKind> {
        match name {
            "epoll" => Ok(Self::Epoll),
            "uring" => Ok(Self::Uring),
            _ => Err(UnknownExecutorKind),
        }
    }
}

/// Makes sure that no seccomp filter is on.
///
/// It looks before `io_uring_setup` is called, since a policy may kill for that. A jail's root is empty, and its policy
/// answers `openat` with an errno: then it can't be found out, which counts as yes.
///
/// # Errors
/// [`Error::Filtered`] or [`Error::Unknown`].
pub(crate) fn check_not_jailed() -> Result<(), Error> {
    is_filtered(std::fs::read_to_string(STATUS)).and_then(|filtered| match filtered {
        true => Err(Error::Filtered),
        false => Ok(()),
    })
}

fn is_filtered(status: io::Result<String>) -> Result<bool, Error> {
    let status = status.map_err(Error::Unknown)?;
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"))
        .ok_or_else(|| Error::Unknown(io::ErrorKind::InvalidData.into()))?;
    Ok(mode.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_what_they_are_printed_from() {
        for (kind, name) in [
            (ExecutorKind::Epoll, "epoll"),
            (ExecutorKind::Uring, "uring"),
        ] {
            assert_eq!(kind.to_string(), name);
            assert_eq!(name.parse(), Ok(kind));
        }
        assert_eq!("Epoll".parse::<ExecutorKind>(), Err(UnknownExecutorKind));
        assert_eq!(ExecutorKind::default(), ExecutorKind::Epoll);
    }

    #[test]
    fn filter_is_seen_and_a_status_that_does_not_tell_is_unknown() {
        let status = |mode: &str| Ok(format!("Name:\tx\nSeccomp:\t{mode}\nSeccomp_filters:\t1\n"));
        assert!(matches!(is_filtered(status("0")), Ok(false)));
        assert!(matches!(is_filtered(status("1")), Ok(true)));
        assert!(matches!(is_filtered(status("2")), Ok(true)));
        let silent = is_filtered(Ok("Name:\tx\nSeccomp_filters:\t1\n".to_owned()));
        assert!(
            matches!(silent, Err(Error::Unknown(error)) if error.kind() == io::ErrorKind::InvalidData)
        );
        let unreadable = is_filtered(Err(io::ErrorKind::NotFound.into()));
        assert!(
            matches!(unreadable, Err(Error::Unknown(error)) if error.kind() == io::ErrorKind::NotFound)
        );
    }
}
