//! A jailed process dies with its parent.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::event::poll;
use rustix::process::Signal;
use rustix::process::set_parent_process_death_signal;

use super::exit_now;
use super::step::At;
use super::step::Step;
use super::step::StepError;
use crate::last_words;

/// What shows that the parent is still there.
#[derive(Debug)]
pub(super) enum Parent {
    /// The report pipe breaks when it is gone; without one, nobody asked to be followed.
    ReportPipe,
    /// A pidfd becomes readable when it is gone.
    Process(OwnedFd),
}

impl Parent {
    pub(super) fn of_this_process() -> Self {
        Self::ReportPipe
    }

    pub(super) fn process(pidfd: OwnedFd) -> Self {
        Self::Process(pidfd)
    }

    /// From here on, the process dies with its parent. Later changes of credentials would undo that.
    pub(super) fn die_with_it(self) -> Result<(), StepError> {
        set_parent_process_death_signal(Some(Signal::KILL)).at(Step::ParentDeath)?;
        // The signal is for what happens from now on; the parent may have died before. Numbers don't tell: it has none in here.
        let gone = match &self {
            Self::ReportPipe => match last_words::report() {
                Some(report) => is_ready(report, PollFlags::empty())?,
                None => false,
            },
            Self::Process(pidfd) => is_ready(pidfd.as_fd(), PollFlags::IN)?,
        };
        if gone {
            exit_now(1);
        }
        Ok(())
    }
}

/// True if any of `events`, a hang-up or an error is there.
fn is_ready(descriptor: BorrowedFd<'_>, events: PollFlags) -> Result<bool, StepError> {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor, events)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let ready = poll(&mut descriptors, Some(&now)).at(Step::ParentDeath)?;
    Ok(ready > 0)
}
