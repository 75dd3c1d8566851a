//! How often something may be logged that a peer can cause as often as it likes.

use std::time::Duration;
use std::time::Instant;

/// A bucket of permits that fills up with time; it counts what it did not permit.
#[derive(Clone, Debug)]
pub struct RateLimit {
    burst: u32,
    interval: Duration,
    permits: u32,
    /// Until when the time is turned into permits; `None` before the first request.
    counted_until: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    /// Makes a full bucket of `burst` permits, to which one is added every `interval`.
    ///
    /// # Panics
    /// If `interval` is zero.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        assert!(
            !interval.is_zero(),
            "a rate limit without an interval is none"
        );
        Self {
            burst,
            interval,
            permits: burst,
            counted_until: None,
            suppressed: 0,
        }
    }

    /// Takes a permit and returns how many requests were refused since the last one; `None` is a refusal.
    pub fn permit(&mut self) -> Option<u64> {
        self.permit_at(Instant::now())
    }

    fn permit_at(&mut self, now: Instant) -> Option<u64> {
        self.refill(now);
        match self.permits.checked_sub(1) {
            Some(left) => {
                self.permits = left;
                Some(std::mem::take(&mut self.suppressed))
            }
            None => {
                self.suppressed = self.suppressed.saturating_add(1);
                None
            }
        }
    }

    fn refill(&mut self, now: Instant) {
        let counted_until = *self.counted_until.get_or_insert(now);
        let elapsed = now.saturating_duration_since(counted_until).as_nanos();
        let earned = elapsed / self.interval.as_nanos();
        let room = self.burst - self.permits;
        match u32::try_from(earned) {
            Ok(earned) if earned < room => {
                self.permits += earned;
                self.counted_until = counted_until.checked_add(self.interval * earned);
            }
            _ => {
                self.permits = self.burst;
                self.counted_until = Some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_is_permitted_then_refused_and_counted() {
        let mut limit = RateLimit::new(2, SECOND);
        let start = Instant::now();
        let outcomes =
            [0, 0, 0, 999, 1000, 1000].map(|ms| limit.permit_at(start + SECOND * ms / 1000));
        assert_eq!(outcomes, [Some(0), Some(0), None, None, Some(2), None]);
    }

    #[test]
    fn fractions_of_an_interval_add_up() {
        let mut limit = RateLimit::new(2, SECOND);
        let start = Instant::now();
        let outcomes =
            [0, 0, 1500, 2000, 2500, 3000].map(|ms| limit.permit_at(start + SECOND * ms / 1000));
        let expected = [Some(0), Some(0), Some(0), Some(0), None, Some(1)];
        assert_eq!(outcomes, expected);
    }

    #[test]
    fn long_silence_fills_up_to_the_burst_only() {
        let mut limit = RateLimit::new(2, Duration::from_nanos(1));
        let start = Instant::now();
        assert_eq!(limit.permit_at(start), Some(0));
        let later = start + Duration::from_secs(3600);
        let outcomes = [later; 3].map(|now| limit.permit_at(now));
        assert_eq!(outcomes, [Some(0), Some(0), None]);
    }

    #[test]
    fn clock_that_steps_back_earns_nothing() {
        let mut limit = RateLimit::new(1, SECOND);
        let start = Instant::now() + SECOND;
        assert_eq!(limit.permit_at(start), Some(0));
        assert_eq!(limit.permit_at(start - SECOND), None);
        assert_eq!(limit.permit_at(start + SECOND), Some(1));
    }

    #[test]
    fn burst_of_zero_permits_nothing() {
        let mut limit = RateLimit::new(0, SECOND);
        assert_eq!(limit.permit(), None);
    }
}
