//! The rate that was asked, over time.

use std::iter::once;
use std::ops::Range;

use ecoloop::load::Report;
use ecoloop::load::report::Loop;

/// Returns the rate that was asked at the ends of each stage, or of the window: seconds, and messages a second.
pub(super) fn asked(report: &Report) -> Vec<(f64, f64)> {
    // A file can have any number.
    let is_rate = |rate: f64| report.r#loop == Loop::Open && (0.0..=1e9).contains(&rate);
    let messages = report.messages_per_arrival();
    if report.stages.is_empty() {
        let rate = report.config.rate.map(|rate| rate * messages).filter(|&rate| is_rate(rate));
        return rate.map(|rate| [(f64::MIN, rate), (f64::MAX, rate)]).into_iter().flatten().collect();
    }
    let starts = once(0.0).chain(boundaries(report));
    let ends = starts.zip(&report.stages).flat_map(|(start, stage)| {
        [(start, stage.from * messages), (start + stage.seconds, stage.to * messages)]
            .into_iter()
            .filter(|&(_, rate)| is_rate(rate))
    });
    ends.collect()
}

/// Returns when each stage ends, in seconds from the start of the window.
pub(super) fn boundaries(report: &Report) -> Vec<f64> {
    let mut end = 0.0;
    let next_end = |seconds: f64| {
        end += seconds;
        end
    };
    report.stages.iter().map(|stage| stage.seconds).map(next_end).collect()
}

/// Returns the part of a line that is in a range of seconds.
pub(super) fn clip(line: &[(f64, f64)], range: Range<f64>) -> Vec<(f64, f64)> {
    let part = |pair: &[(f64, f64)]| {
        let [(start, from), (end, to)] = pair else { return Vec::new() };
        let value = |second: f64| {
            if end <= start { *to } else { from + (to - from) * (second - start) / (end - start) }
        };
        let (start, end) = (start.max(range.start), end.min(range.end));
        if start > end { Vec::new() } else { vec![(start, value(start)), (end, value(end))] }
    };
    line.windows(2).flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_the_edges_of_the_picture() {
        let ramp = [(0.0, 0.0), (10.0, 100.0), (10.0, 50.0), (20.0, 50.0)];
        assert_eq!(clip(&ramp, 0.0..4.0), [(0.0, 0.0), (4.0, 40.0)]);
        assert_eq!(clip(&ramp, 9.0..30.0)[..2], [(9.0, 90.0), (10.0, 100.0)]);
        assert_eq!(clip(&ramp, 9.0..30.0)[4..], [(10.0, 50.0), (20.0, 50.0)]);
        assert_eq!(clip(&[(f64::MIN, 7.0), (f64::MAX, 7.0)], 1.0..2.0), [(1.0, 7.0), (2.0, 7.0)]);
        assert_eq!(clip(&[], 0.0..1.0), []);
    }
}
