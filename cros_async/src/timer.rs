//! Timers, which need no descriptors: the executor's own wait ends in time for the next one.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;
use std::time::Instant;

use crate::AsyncResult;
use crate::Error;
use crate::Executor;
use crate::reactor::Reactor;
use crate::reactor::TimerKey;

/// A timer that expires once or again and again. A new one is not set and never expires.
pub struct TimerAsync {
    reactor: Arc<Reactor>,
    next: Option<Instant>,
    period: Option<Duration>,
}

impl TimerAsync {
    /// Makes a timer that is not set.
    pub fn new(ex: &Executor) -> Self {
        Self {
            reactor: ex.reactor(),
            next: None,
            period: None,
        }
    }

    /// Waits for `duration`, and not less.
    ///
    /// # Errors
    /// [`Error::Ended`] if the executor has.
    pub async fn sleep(ex: &Executor, duration: Duration) -> AsyncResult<()> {
        let mut timer = Self::new(ex);
        timer.reset_oneshot(duration);
        timer.wait().await.map(drop)
    }

    /// Makes a timer that expires each `period`, for the first time after one.
    ///
    /// # Errors
    /// [`Error::NoPeriod`] for zero.
    pub fn interval(ex: &Executor, period: Duration) -> AsyncResult<Self> {
        let mut timer = Self::new(ex);
        timer.reset_repeating(period)?;
        Ok(timer)
    }

    /// Sets it to expire once, `duration` from now. One that is so far off that no clock has it never comes.
    pub fn reset_oneshot(&mut self, duration: Duration) {
        self.next = Instant::now().checked_add(duration);
        self.period = None;
    }

    /// Sets it to expire each `period` from now on.
    ///
    /// # Errors
    /// [`Error::NoPeriod`] for zero; the timer stays as it was.
    pub fn reset_repeating(&mut self, period: Duration) -> AsyncResult<()> {
        if period.is_zero() {
            return Err(Error::NoPeriod);
        }
        self.next = Instant::now().checked_add(period);
        self.period = Some(period);
        Ok(())
    }

    /// Makes it a timer that is not set.
    pub fn clear(&mut self) {
        self.next = None;
        self.period = None;
    }

    /// Waits until it expires, and returns how many periods have passed since the last wait returned: more than one for a
    /// task that was slow. After its expiration a timer that does not repeat is not set.
    ///
    /// # Errors
    /// [`Error::Ended`] if the executor has.
    pub async fn wait(&mut self) -> AsyncResult<u64> {
        let Some(deadline) = self.next else {
            return std::future::pending().await;
        };
        let expiry = Expiry {
            reactor: &self.reactor,
            deadline,
            key: None,
        };
        expiry.await?;
        let Some(period) = self.period else {
            self.next = None;
            return Ok(1);
        };
        let late = Instant::now().saturating_duration_since(deadline);
        let missed = late.as_nanos() / period.as_nanos();
        let periods = u32::try_from(missed + 1).unwrap_or(u32::MAX);
        self.next = period
            .checked_mul(periods)
            .and_then(|passed| deadline.checked_add(passed));
        Ok(u64::from(periods))
    }
}

impl fmt::Debug for TimerAsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerAsync")
            .field("next", &self.next)
            .field("period", &self.period)
            .finish_non_exhaustive()
    }
}

/// One wait for one instant; dropping it gives it up.
struct Expiry<'a> {
    reactor: &'a Reactor,
    deadline: Instant,
    key: Option<TimerKey>,
}

impl Future for Expiry<'_> {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (reactor, deadline) = (self.reactor, self.deadline);
        reactor.poll_timer(deadline, &mut self.key, cx.waker())
    }
}

impl Drop for Expiry<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.reactor.abandon_timer(key);
        }
    }
}
