//! The rate limit of accepting.

use std::time::{Duration, Instant};

use super::config::TIMEOUT_MAX;

/// A token bucket: it fills at a rate, up to a tenth of a second's worth and at least 1.
#[derive(Debug)]
pub(super) struct TokenBucket {
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
}

impl TokenBucket {
    /// Returns a full one.
    pub(super) fn new(per_second: f64, now: Instant) -> Self {
        let mut bucket = Self { per_second, tokens: 0.0, filled_at: now };
        bucket.tokens = bucket.capacity();
        bucket
    }

    fn capacity(&self) -> f64 {
        (self.per_second / 10.0).max(1.0)
    }

    /// Returns the number of whole tokens at `now`.
    pub(super) fn fill(&mut self, now: Instant) -> usize {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = elapsed.mul_add(self.per_second, self.tokens).min(self.capacity());
        self.filled_at = now;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the whole part, never negative")]
        let whole = self.tokens as usize;
        whole
    }

    /// Takes a token, of which there must be one.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// Returns when there is a whole token.
    pub(super) fn next_at(&self) -> Instant {
        let seconds = (1.0 - self.tokens).max(0.0) / self.per_second;
        // Rounded up: at a time that is too early by a fraction of a nanosecond the caller would not wait, and find no token.
        let at = self.filled_at + Duration::from_nanos(1);
        at + Duration::try_from_secs_f64(seconds).map_or(TIMEOUT_MAX, |wait| wait.min(TIMEOUT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_tenth_of_a_second_and_at_least_one() {
        let start = Instant::now();
        for (per_second, capacity) in [(0.5, 1), (10.0, 1), (25.0, 2), (500.0, 50), (1e6, 100_000)] {
            let mut bucket = TokenBucket::new(per_second, start);
            assert_eq!(bucket.fill(start), capacity);
            for left in (0..capacity).rev() {
                bucket.take();
                assert_eq!(bucket.fill(start), left);
            }
            let next = bucket.next_at();
            assert!(next > start);
            assert_eq!(bucket.fill(next), 1);
            assert_eq!(bucket.fill(start + Duration::from_secs(3600)), capacity, "{per_second}");
        }
    }

    #[test]
    fn the_lowest_rate_is_in_the_range_of_the_clock() {
        let mut bucket = TokenBucket::new(f64::MIN_POSITIVE, Instant::now());
        bucket.take();
        assert!(bucket.next_at() > Instant::now());
    }
}
