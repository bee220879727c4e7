//! Which rate a search tries next.

use crate::load::report::LimitedBy;

/// Windows of one rate that the generator may spoil before it is the limit.
const INVALID_MAX: u32 = 3;
/// Windows of one rate that must fail in a row: something else on the machine can spoil one, and a window that fails is short.
const FAILURES: u32 = 2;
/// Windows that confirm a rate.
const CONFIRMATIONS: u32 = 3;

/// The state of a search.
#[derive(Debug)]
pub(super) struct Plan {
    low: f64,
    high: f64,
    tolerance: f64,
    /// The highest rate that has not failed. After a failed confirmation no window at it may have passed.
    candidate: Option<f64>,
    /// The lowest rate that has failed.
    failed: Option<f64>,
    /// The rates of the windows that passed.
    passed: Vec<f64>,
    /// Windows that have confirmed `candidate`.
    confirmations: u32,
    /// Windows in a row that failed at one rate.
    failures: u32,
    /// Windows in a row that the generator spoiled.
    invalid: u32,
}

/// What a window at the rate of [`Plan::next`] showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// The generator kept its schedule.
    pub(super) is_valid: bool,
    pub(super) passed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Next {
    Probe(f64),
    Confirm(f64),
    Done { found_rate: Option<f64>, limited_by: LimitedBy },
}

impl Plan {
    pub(super) fn new(low: f64, high: f64, tolerance: f64) -> Self {
        Self {
            low,
            high,
            tolerance,
            candidate: None,
            failed: None,
            passed: Vec::new(),
            confirmations: 0,
            failures: 0,
            invalid: 0,
        }
    }

    pub(super) fn next(&self) -> Next {
        if self.invalid >= INVALID_MAX {
            return Next::Done { found_rate: self.highest_passed(), limited_by: LimitedBy::Generator };
        }
        match (self.candidate, self.failed) {
            (None, None) => Next::Probe(self.low),
            (None, Some(_)) => Next::Done { found_rate: None, limited_by: LimitedBy::Server },
            (Some(candidate), None) if candidate < self.high => Next::Probe((candidate * 2.0).min(self.high)),
            // After a failed confirmation the step down is the tolerance, to which rounding must not add a probe.
            (Some(candidate), Some(failed)) if failed / candidate > (1.0 + self.tolerance) * 1.001 => {
                // Four digits are between the two: the tolerance is at least 0.1%.
                Next::Probe(round((candidate * failed).sqrt()))
            }
            (Some(candidate), _) if self.confirmations < CONFIRMATIONS => Next::Confirm(candidate),
            (Some(candidate), failed) => {
                let limited_by = if failed.is_some() { LimitedBy::Server } else { LimitedBy::Range };
                Next::Done { found_rate: Some(candidate), limited_by }
            }
        }
    }

    /// Returns the highest rate that passed and is below the lowest that failed.
    fn highest_passed(&self) -> Option<f64> {
        let has_failed = |rate: f64| self.failed.is_some_and(|failed| rate >= failed);
        self.passed.iter().copied().filter(|&rate| !has_failed(rate)).reduce(f64::max)
    }

    pub(super) fn record(&mut self, window: Window) {
        let next = self.next();
        if !window.is_valid {
            self.invalid += 1;
            return;
        }
        self.invalid = 0;
        match (next, window.passed) {
            (Next::Probe(rate), true) => {
                self.passed.push(rate);
                (self.candidate, self.failures) = (Some(rate), 0);
            }
            (Next::Probe(_), false) if self.failures + 1 < FAILURES => self.failures += 1,
            (Next::Probe(rate), false) => (self.failed, self.failures) = (Some(rate), 0),
            (Next::Confirm(rate), true) => {
                self.passed.push(rate);
                self.confirmations += 1;
            }
            (Next::Confirm(rate), false) => {
                self.failed = Some(rate);
                self.candidate = (rate > self.low).then(|| round(rate / (1.0 + self.tolerance)).max(self.low));
                self.confirmations = 0;
            }
            (Next::Done { .. }, _) => {}
        }
    }
}

/// Rounds to four significant digits.
fn round(rate: f64) -> f64 {
    let last_digit = 10_f64.powf(rate.log10().floor() - 3.0);
    (rate / last_digit).round() * last_digit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: Window = Window { is_valid: true, passed: true };

    /// Plays a search against a server that passes below `capacity`, and returns its end and the number of windows.
    fn play(mut plan: Plan, mut window: impl FnMut(f64) -> Window) -> (Option<f64>, LimitedBy, u32) {
        for windows in 0..1000 {
            match plan.next() {
                Next::Probe(rate) | Next::Confirm(rate) => plan.record(window(rate)),
                Next::Done { found_rate, limited_by } => return (found_rate, limited_by, windows),
            }
        }
        unreachable!("the search has not ended");
    }

    proptest! {
        #[test]
        fn a_capacity_within_the_range_is_found_within_the_tolerance(
            low in 1.0..1e4, factor in 1.01..1e4, position in 0.0..1.0, tolerance in 0.001..=1.0,
        ) {
            let capacity = low * f64::powf(factor, position);
            let window = |rate| Window { is_valid: true, passed: rate <= capacity };
            let (found, limited_by, windows) = play(Plan::new(low, low * factor, tolerance), window);
            let found = found.unwrap_or_default();
            prop_assert!(found <= capacity, "{found} of {capacity}");
            prop_assert!(capacity <= found * (1.0 + tolerance) * 1.001, "{found} of {capacity}");
            prop_assert_eq!(limited_by, LimitedBy::Server);
            prop_assert!(windows < 60);
        }
    }

    #[test]
    fn the_rate_doubles_and_is_then_bisected_in_the_logarithm() {
        let mut rates = Vec::new();
        let end = play(Plan::new(1000.0, 64_000.0, 0.05), |rate| {
            rates.push(rate);
            Window { is_valid: true, passed: rate < 5000.0 }
        });
        let doubled = [1000.0, 2000.0, 4000.0, 8000.0, 8000.0];
        assert_eq!(rates[..5], doubled, "a window that failed is repeated");
        assert_eq!(rates[5..11], [5657.0, 5657.0, 4757.0, 5188.0, 5188.0, 4968.0]);
        assert_eq!(rates[11..], [4968.0; 3]);
        assert_eq!((end.1, end.2), (LimitedBy::Server, 14));
    }

    #[test]
    fn the_range_and_the_generator_are_limits_too() {
        assert_eq!(play(Plan::new(100.0, 500.0, 0.05), |_| VALID), (Some(500.0), LimitedBy::Range, 7));
        let failed = Window { passed: false, ..VALID };
        assert_eq!(play(Plan::new(100.0, 500.0, 0.05), |_| failed), (None, LimitedBy::Server, 2));
        // One window that fails is repeated.
        let mut first = true;
        let end = play(Plan::new(100.0, 500.0, 0.05), |_| if std::mem::take(&mut first) { failed } else { VALID });
        assert_eq!(end, (Some(500.0), LimitedBy::Range, 8));
        let spoiled = Window { is_valid: false, passed: false };
        let end = play(Plan::new(100.0, 500.0, 0.05), |rate| if rate > 200.0 { spoiled } else { VALID });
        assert_eq!(end, (Some(200.0), LimitedBy::Generator, 5));
        // One spoiled window is repeated.
        let mut first = true;
        let end = play(Plan::new(100.0, 500.0, 0.05), |_| if std::mem::take(&mut first) { spoiled } else { VALID });
        assert_eq!(end, (Some(500.0), LimitedBy::Range, 8));
    }

    #[test]
    fn no_rate_is_found_if_the_lowest_is_not_confirmed() {
        // The first window at 100 passes, each at a higher rate is repeated, and then the first one that confirms 100 fails.
        let mut first = true;
        let end = play(Plan::new(100.0, 200.0, 0.1), |_| Window { passed: std::mem::take(&mut first), ..VALID });
        assert_eq!(end, (None, LimitedBy::Server, 1 + 2 * 4 + 1));
    }

    #[test]
    fn a_rate_that_is_not_confirmed_is_stepped_down() {
        let mut plan = Plan::new(100.0, 200.0, 0.1);
        for _ in 0..2 {
            plan.record(VALID);
        }
        assert_eq!(plan.next(), Next::Confirm(200.0));
        plan.record(VALID);
        plan.record(Window { passed: false, ..VALID });
        assert!(matches!(plan.next(), Next::Confirm(rate) if (rate - 181.8).abs() < 1e-9), "{:?}", plan.next());
        // A generator that spoils the windows there has not shown that rate.
        let mut spoiled = Plan { passed: plan.passed.clone(), ..plan };
        for _ in 0..INVALID_MAX {
            spoiled.record(Window { is_valid: false, passed: false });
        }
        assert_eq!(spoiled.next(), Next::Done { found_rate: Some(100.0), limited_by: LimitedBy::Generator });
        let failing_above = |rate| Window { is_valid: true, passed: rate < 150.0 };
        let (found, limited_by, _) = play(plan, failing_above);
        assert!(found.is_some_and(|found| found < 150.0 && found * 1.101 >= 150.0), "{found:?}");
        assert_eq!(limited_by, LimitedBy::Server);
    }
}
