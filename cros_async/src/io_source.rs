//! Waiting for any descriptor.

use std::fmt;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;

use crate::AsyncResult;
use crate::Error;
use crate::Executor;
use crate::poller::SourceId;
use crate::reactor::Direction;
use crate::reactor::Reactor;
use crate::reactor::Ticket;

/// Something with a descriptor, on an executor that tells when it is ready.
///
/// Ready is a hint: somebody else who has the descriptor may come first, so what is called next must not wait, and one
/// waits again if it would have. Several tasks may wait at once; all are woken. A descriptor that is always ready, such as a
/// file, is. A hang-up or an error is ready for everything.
#[doc(alias = "AsyncReady")]
pub struct IoSource<F: AsFd> {
    /// None only within [`IoSource::into_source`] and the drop.
    inner: Option<F>,
    reactor: Arc<Reactor>,
    id: SourceId,
}

impl<F: AsFd> IoSource<F> {
    /// Takes `inner`. Its `as_fd` must always return the same descriptor.
    pub fn new(inner: F, ex: &Executor) -> Self {
        let reactor = ex.reactor();
        Self {
            inner: Some(inner),
            id: reactor.add_source(),
            reactor,
        }
    }

    /// Returns what waits.
    pub fn as_source(&self) -> &F {
        self.inner.as_ref().expect("it is there until the end")
    }

    /// Gives it back.
    pub fn into_source(mut self) -> F {
        self.remove();
        self.inner.take().expect("it is there until the end")
    }

    /// Waits until there is something to read, an end or an error included.
    ///
    /// # Errors
    /// [`Error::Ended`] if the executor has, [`Error::Register`] for a descriptor that can't be waited for.
    pub fn wait_readable(&self) -> impl Future<Output = AsyncResult<()>> {
        Ready::new(self, Direction::Read)
    }

    /// Waits until there is room to write, or an error.
    ///
    /// # Errors
    /// As [`IoSource::wait_readable`].
    pub fn wait_writable(&self) -> impl Future<Output = AsyncResult<()>> {
        Ready::new(self, Direction::Write)
    }

    /// Calls `operation`, which must not wait, until it says something else than [`io::ErrorKind::WouldBlock`]; waits until
    /// the descriptor is readable in between.
    ///
    /// # Errors
    /// Those of `operation`, and as [`IoSource::wait_readable`] in the form of an [`io::Error`].
    pub async fn read_with<T>(
        &self,
        mut operation: impl FnMut(&F) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            match operation(self.as_source()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
            self.wait_readable().await.map_err(io::Error::other)?;
        }
    }

    fn remove(&mut self) {
        if let Some(inner) = &self.inner {
            self.reactor.remove_source(self.id, inner.as_fd());
        }
    }
}

impl<F: AsFd> Drop for IoSource<F> {
    fn drop(&mut self) {
        self.remove();
    }
}

impl<F: AsFd + fmt::Debug> fmt::Debug for IoSource<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoSource").field(&self.inner).finish()
    }
}

/// One wait; dropping it gives it up.
struct Ready<'a, F: AsFd> {
    source: &'a IoSource<F>,
    direction: Direction,
    ticket: Option<Ticket>,
}

impl<'a, F: AsFd> Ready<'a, F> {
    fn new(source: &'a IoSource<F>, direction: Direction) -> Self {
        Self {
            source,
            direction,
            ticket: None,
        }
    }
}

impl<F: AsFd> Future for Ready<'_, F> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let source = self.source;
        let direction = self.direction;
        source.reactor.poll_source(
            source.id,
            source.as_source().as_fd(),
            direction,
            &mut self.ticket,
            cx.waker(),
        )
    }
}

impl<F: AsFd> Drop for Ready<'_, F> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.source
                .reactor
                .abandon(self.source.id, self.direction, ticket);
        }
    }
}
