//! The way of a process into its jail.
//!
//! Two steps, since seccomp binds threads and namespaces want a single one: [`enter`] early in `main`, before any thread or descriptor is
//! made, and [`Jail::lock_down`] after everything was prepared. What each level has:
//!
//! | | full | seccomp | none |
//! |---|---|---|---|
//! | only the named descriptors | x | x | |
//! | user, mount, pid, net, ipc, uts and cgroup namespaces, an empty read-only root | x | | |
//! | resource limits, no capabilities, no_new_privs, no writable code, not dumpable | x | x | |
//! | seccomp | x | x | |
//! | dies with its parent, says its last words | x | x | x |
//!
//! A step that the system does not allow ends the process with an error that says which step it was and what to do. Nothing falls back to
//! a weaker jail.

mod allocator;
mod limits;
mod namespaces;
mod parent;
mod privileges;
mod root;
mod step;
mod verify;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::process;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

pub use limits::Limits;
pub(crate) use namespaces::numbers_of_this_process;
pub use step::Step;
pub use step::StepError;

use crate::descriptors;
use crate::filter;
use crate::filter::Mode;
use crate::last_words;
use crate::log_mode;
use crate::policy::Filters;
use crate::record::Record;
use crate::violation::Violation;
use parent::Parent;
use step::At;

/// How strong a jail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxLevel {
    /// Everything.
    Full,
    /// No namespaces: for systems that do not allow them.
    Seccomp,
    /// Nothing: for debugging, and for processes that somebody else (`minijail0`) has jailed.
    None,
}

impl SandboxLevel {
    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Seccomp => "seccomp",
            Self::None => "none",
        }
    }
}

impl fmt::Display for SandboxLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text names no level.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown sandbox level: use full, seccomp or none")]
pub struct UnknownSandboxLevel;

impl FromStr for SandboxLevel {
    type Err = UnknownSandboxLevel;

    fn from_str(text: &str) -> Result<Self, UnknownSandboxLevel> {
        [Self::Full, Self::Seccomp, Self::None]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or(UnknownSandboxLevel)
    }
}

/// The jail that a process wants to be in.
#[derive(Debug)]
pub struct Sandbox {
    /// The device's name, for lines and reports.
    pub name: String,
    /// How strong it is.
    pub level: SandboxLevel,
    /// The pipe on which the parent is told how it goes (`--report-fd`).
    pub report: Option<OwnedFd>,
    /// The socket on which the parent wants the listener of log mode (`--listener-fd`).
    pub listener: Option<OwnedFd>,
    /// The descriptors that stay open, besides the standard ones and the two above.
    pub keep: Vec<RawFd>,
    /// Resource limits.
    pub limits: Limits,
}

/// Goes into the jail, all but seccomp. Call it first thing in `main`, after the command line was read.
///
/// At level [`SandboxLevel::Full`] it returns in another process than the one that called it: a child in the new pid namespace. If the
/// process was spawned with a report pipe, the calling process ends at once and the child is a child of its parent; else the calling
/// process waits for it and ends with its exit code.
///
/// # Errors
/// [`StepError`] names the step; the parent is told as well. The process is then in an undefined part of its jail and must end.
pub fn enter(sandbox: Sandbox) -> Result<Jail, StepError> {
    let Sandbox {
        name,
        level,
        report,
        listener,
        keep,
        limits,
    } = sandbox;
    let mut keep: BTreeSet<RawFd> = keep.into_iter().collect();
    keep.extend(report.iter().chain(&listener).map(AsRawFd::as_raw_fd));
    allocator::use_one_arena();
    last_words::install(&name, report).at(Step::Handlers)?;
    last_words::name_thread("main");
    let entered = enter_level(level, &keep, &limits);
    match &entered {
        Ok(()) => {
            // The thread's id has changed with the process.
            last_words::name_thread("main");
            if level != SandboxLevel::Full {
                last_words::say(&Record::Process { pid: process::id() });
            }
            last_words::say(&Record::Ready);
            last_words::never_wait();
        }
        Err(error) => last_words::say(&Record::Failed {
            text: Cow::Owned(error.to_string()),
        }),
    }
    entered.map(|()| Jail { level, listener })
}

fn enter_level(
    level: SandboxLevel,
    keep: &BTreeSet<RawFd>,
    limits: &Limits,
) -> Result<(), StepError> {
    if level == SandboxLevel::None {
        return match last_words::report() {
            Some(_) => Parent::of_this_process().die_with_it(),
            None => Ok(()),
        };
    }
    descriptors::close_all_but(keep).at(Step::CloseDescriptors)?;
    let parent = if level == SandboxLevel::Full {
        let parent = namespaces::enter()?;
        root::replace()?;
        parent
    } else {
        privileges::drop_bounding_set()?;
        privileges::become_nobody()?;
        Parent::of_this_process()
    };
    limits.set(level)?;
    privileges::drop_all()?;
    parent.die_with_it()?;
    if level == SandboxLevel::Full {
        verify::namespaces()?;
        verify::root()?;
    }
    verify::privileges()
}

/// A process that is in its jail but for seccomp.
#[derive(Debug)]
#[must_use = "seccomp is still off"]
pub struct Jail {
    level: SandboxLevel,
    listener: Option<OwnedFd>,
}

impl Jail {
    /// Puts the filters on all threads of the process, and forbids new threads.
    ///
    /// # Errors
    /// [`StepError`]; the process must end.
    pub fn lock_down(self, filters: &Filters) -> Result<(), StepError> {
        if self.level == SandboxLevel::None {
            return Ok(());
        }
        limits::forbid_threads()?;
        verify::privileges()?;
        let Some((main, errnos)) = filters.programs().split_last() else {
            return Ok(());
        };
        for program in errnos {
            filter::install(program, Mode::AllThreads).at(Step::Seccomp)?;
        }
        match (filters.violation(), self.listener) {
            (Violation::Log, Some(socket)) => log_mode::install(main, socket.as_fd()),
            (Violation::Log, None) => {
                eprintln!(
                    "portcullis: --seccomp log without a parent that listens: no filter is on"
                );
                Ok(())
            }
            (Violation::Trap | Violation::Kill, _) => {
                filter::install(main, Mode::AllThreads).at(Step::Seccomp)?;
                Ok(())
            }
        }
    }
}

/// Ends the process without running anything else of it.
fn exit_now(code: i32) -> ! {
    // Nothing is registered to run at exit this early, and standard output was not used.
    process::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_are_read_back() {
        for level in [
            SandboxLevel::Full,
            SandboxLevel::Seccomp,
            SandboxLevel::None,
        ] {
            assert_eq!(level.to_string().parse(), Ok(level));
        }
        assert_eq!("".parse::<SandboxLevel>(), Err(UnknownSandboxLevel));
    }
}
