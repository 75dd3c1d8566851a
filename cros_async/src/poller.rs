//! What the two flavours have in common: they are armed for a source, and tell once when it is ready.
//!
//! "Once" is the point: a poller reports a direction one time for each time that it was armed. A source that is ready when
//! it is armed is reported at once, so nothing is lost between looking and waiting.

mod epoll;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use crate::Error;
use crate::ExecutorKind;

/// A source's name; never used twice.
pub(crate) type SourceId = u64;

/// What a source can be waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// How a source was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Armed {
    /// It will be reported.
    Waiting,
    /// It is of a kind that is always ready, such as a file, and will not be.
    AlwaysReady,
}

/// A source that is ready. An error or a hang-up is ready for everything that was armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    pub(crate) source: SourceId,
    pub(crate) interest: Interest,
}

/// A flavour. Arming, forgetting and notifying are for any thread, waiting for one at a time.
pub(crate) trait Poller: Send + Sync {
    /// Reports `source` once when it is ready for what `interest` says, which takes the place of what was armed before for
    /// epoll and adds to it for io_uring; a report that nobody waits for any more does no harm.
    fn arm(
        &self,
        source: SourceId,
        descriptor: BorrowedFd<'_>,
        interest: Interest,
    ) -> io::Result<Armed>;

    /// Forgets `source`, whose descriptor is still open but may not be for long.
    fn forget(&self, source: SourceId, descriptor: BorrowedFd<'_>);

    /// Waits for reports, [`Poller::notify`] or the end of `timeout` (none: for ever), and appends the reports.
    fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()>;

    /// Ends a wait, the present one or the next.
    fn notify(&self);
}

/// Makes the poller of a flavour.
///
/// # Errors
/// [`Error::Kernel`]; for io_uring [`Error::Filtered`] and [`Error::Unknown`] as well.
pub(crate) fn open(kind: ExecutorKind) -> Result<Box<dyn Poller>, Error> {
    let poller: io::Result<Box<dyn Poller>> = match kind {
        ExecutorKind::Epoll => epoll::Epoll::new().map(|poller| Box::new(poller) as _),
        ExecutorKind::Uring => {
            crate::kind::check_not_jailed()?;
            uring::Uring::new().map(|poller| Box::new(poller) as _)
        }
    };
    poller.map_err(|source| Error::Kernel { kind, source })
}
