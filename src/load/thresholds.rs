//! What must hold for a run to succeed.

use std::str::FromStr;

use super::config::Mode;
use super::report::{self, Report, Verdict};

/// A condition that makes a run fail: `p99>5ms`.
///
/// # Examples
///
/// ```
/// let threshold: ecoloop::load::Threshold = "p99>5ms".parse()?;
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    metric: Metric,
    comparison: Comparison,
    /// Times in microseconds.
    bound: f64,
}

impl Threshold {
    /// One that stands unasked.
    fn standing(name: &str, metric: Metric, comparison: Comparison, bound: u64) -> Self {
        let text = format!("{name}{}{bound}", comparison.sign());
        #[expect(clippy::cast_precision_loss, reason = "exact as far as anybody counts")]
        Self { text, metric, comparison, bound: bound as f64 }
    }

    fn evaluate(&self, report: &Report, default: bool) -> report::Threshold {
        let value = self.metric.value(report);
        // What could not be measured cannot be told to hold.
        let failed = value.is_none_or(|value| self.comparison.holds(value, self.bound));
        report::Threshold { expr: self.text.clone(), default, value, failed }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
        let text = text.trim();
        let start = text.find(['<', '>']).ok_or(EXPECTED)?;
        let (name, rest) = text.split_at(start);
        let signs = [Comparison::AtMost, Comparison::AtLeast, Comparison::Less, Comparison::More];
        let found = signs.into_iter().find_map(|sign| Some((sign, rest.strip_prefix(sign.sign())?)));
        let (comparison, value) = found.ok_or(EXPECTED)?;
        let (metric, unit) = Metric::from_name(name.trim())?;
        let bound = unit.parse(value.trim()).ok_or_else(|| format!("{} takes {}", name.trim(), unit.expected()))?;
        Ok(Self { text: text.to_owned(), metric, comparison, bound })
    }
}

/// Fills in `thresholds` and `exit`: what stands unasked where no threshold of `asked` is on the same quantity, then `asked`.
pub(crate) fn evaluate(report: &mut Report, asked: &[Threshold]) {
    let standing = [
        Threshold::standing("connections", Metric::Connections, Comparison::Less, report.connections.requested),
        Threshold::standing("errors", Metric::Errors, Comparison::More, 0),
        Threshold::standing("unanswered", Metric::Unanswered, Comparison::More, 0),
        Threshold::standing("findings", Metric::Findings, Comparison::More, 0),
        Threshold::standing("verified", Metric::Verified, Comparison::Less, 1),
    ];
    let is_replaced = |threshold: &Threshold| asked.iter().any(|other| other.metric == threshold.metric);
    // In churn connections come and go: those between two are no failure.
    let is_without_meaning =
        |threshold: &Threshold| report.mode == Mode::Churn && threshold.metric == Metric::Connections;
    let standing = standing.iter().filter(|threshold| !is_replaced(threshold) && !is_without_meaning(threshold));
    let standing = standing.map(|threshold| threshold.evaluate(report, true));
    let thresholds: Vec<_> = standing.chain(asked.iter().map(|threshold| threshold.evaluate(report, false))).collect();
    report.verdict = if thresholds.iter().any(|threshold| threshold.failed) { Verdict::Fail } else { Verdict::Pass };
    report.thresholds = thresholds;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Metric {
    P50,
    P90,
    P99,
    P99_9,
    P99_99,
    Max,
    Mean,
    ConnectP99,
    LatenessP99,
    Rate,
    Connections,
    Errors,
    Unanswered,
    /// Not for the command line: no threshold can be put in its place.
    Findings,
    /// Neither.
    Verified,
}

impl Metric {
    fn from_name(name: &str) -> Result<(Self, Unit), String> {
        const NAMES: [(&str, Metric, Unit); 13] = [
            ("p50", Metric::P50, Unit::Duration),
            ("p90", Metric::P90, Unit::Duration),
            ("p99", Metric::P99, Unit::Duration),
            ("p99.9", Metric::P99_9, Unit::Duration),
            ("p99.99", Metric::P99_99, Unit::Duration),
            ("max", Metric::Max, Unit::Duration),
            ("mean", Metric::Mean, Unit::Duration),
            ("connect_p99", Metric::ConnectP99, Unit::Duration),
            ("lateness_p99", Metric::LatenessP99, Unit::Duration),
            ("rate", Metric::Rate, Unit::Rate),
            ("connections", Metric::Connections, Unit::Count),
            ("errors", Metric::Errors, Unit::Count),
            ("unanswered", Metric::Unanswered, Unit::Count),
        ];
        let found = NAMES.iter().find(|(known, ..)| *known == name);
        found.map(|&(_, metric, unit)| (metric, unit)).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
            format!("{name:?} is no metric; these are: {}", names.join(" "))
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "exact as far as anybody counts")]
    fn value(self, report: &Report) -> Option<f64> {
        let latency = &report.latency_us;
        let whole = match self {
            Self::Mean => return latency.mean,
            Self::Rate => return report.rate_per_s,
            Self::P50 => latency.p50?,
            Self::P90 => latency.p90?,
            Self::P99 => latency.p99?,
            Self::P99_9 => latency.p99_9?,
            Self::P99_99 => latency.p99_99?,
            Self::Max => latency.max?,
            Self::ConnectP99 => report.connect_us.p99?,
            Self::LatenessP99 => report.lateness_us.p99?,
            Self::Connections => report.connections.held,
            Self::Errors => report.errors.iter().fold(0, |sum, error| error.count.saturating_add(sum)),
            Self::Unanswered => report.messages.unanswered,
            Self::Findings => report.verify.connections_failed.max(report.verify.findings.len() as u64),
            Self::Verified => report.messages.verified,
        };
        Some(whole as f64)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    More,
    AtMost,
    AtLeast,
}

impl Comparison {
    fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::More => ">",
            Self::AtMost => "<=",
            Self::AtLeast => ">=",
        }
    }

    fn holds(self, value: f64, bound: f64) -> bool {
        match self {
            Self::Less => value < bound,
            Self::More => value > bound,
            Self::AtMost => value <= bound,
            Self::AtLeast => value >= bound,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Duration,
    Rate,
    Count,
}

impl Unit {
    fn expected(self) -> &'static str {
        match self {
            Self::Duration => "a duration such as 300us, 5ms or 1.5s",
            Self::Rate => "a rate such as 2000, 10k or 10k/s",
            Self::Count => "a count such as 0, 100 or 10k",
        }
    }

    /// Times in microseconds.
    fn parse(self, text: &str) -> Option<f64> {
        let text = if self == Self::Rate { text.strip_suffix("/s").unwrap_or(text) } else { text };
        let digits = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let factor = match (self, suffix) {
            (Self::Duration, "us") | (Self::Rate | Self::Count, "") => 1.0,
            (Self::Duration, "ms") | (Self::Rate | Self::Count, "k") => 1e3,
            (Self::Duration, "s") | (Self::Rate | Self::Count, "M") => 1e6,
            (Self::Duration, "m") => 60e6,
            (Self::Duration, "h") => 3600e6,
            _ => return None,
        };
        Some(number.parse::<f64>().ok()? * factor)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::report::tests::example;
    use super::super::report::{ErrorCount, ErrorName, Phase};
    use super::*;

    fn threshold(text: &str) -> Threshold {
        text.parse().unwrap()
    }

    /// The report with these thresholds judged: whether each failed, by its text.
    fn judged(mut report: Report, asked: &[&str]) -> (Verdict, Vec<(String, bool)>) {
        let asked: Vec<_> = asked.iter().map(|text| threshold(text)).collect();
        evaluate(&mut report, &asked);
        (report.verdict, report.thresholds.into_iter().map(|threshold| (threshold.expr, threshold.failed)).collect())
    }

    fn fallen(report: Report, asked: &[&str]) -> Vec<String> {
        let (verdict, thresholds) = judged(report, asked);
        let fallen: Vec<_> = thresholds.into_iter().filter(|(_, failed)| *failed).map(|(text, _)| text).collect();
        assert_eq!(verdict == Verdict::Pass, fallen.is_empty());
        fallen
    }

    #[test]
    fn every_metric_takes_its_unit() {
        for (text, metric, bound) in [
            ("p50>300us", Metric::P50, 300.0),
            ("p90 >= 5ms", Metric::P90, 5000.0),
            ("p99>1.5s", Metric::P99, 1.5e6),
            ("p99.9<2m", Metric::P99_9, 120e6),
            ("p99.99<=1h", Metric::P99_99, 3600e6),
            ("max>0us", Metric::Max, 0.0),
            (" mean>1ms ", Metric::Mean, 1000.0),
            ("connect_p99>1ms", Metric::ConnectP99, 1000.0),
            ("lateness_p99>1ms", Metric::LatenessP99, 1000.0),
            ("rate<2k/s", Metric::Rate, 2000.0),
            ("rate<1.5M", Metric::Rate, 1.5e6),
            ("connections<9.5k", Metric::Connections, 9500.0),
            ("errors>10", Metric::Errors, 10.0),
            ("unanswered>=1", Metric::Unanswered, 1.0),
        ] {
            let threshold = threshold(text);
            assert_eq!(
                (threshold.metric, threshold.bound, &threshold.text[..]),
                (metric, bound, text.trim()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_gate_is_refused_with_the_reason() {
        const FORM: &str = "expected METRIC, one of < > <= >=, and a value, such as p99>5ms";
        const DURATION: &str = "p99 takes a duration such as 300us, 5ms or 1.5s";
        for (text, reason) in [
            ("", FORM),
            ("p99", FORM),
            ("p99=5ms", FORM),
            ("p99>5", DURATION),
            ("p99>", DURATION),
            ("p99>ms", DURATION),
            ("p99>-5ms", DURATION),
            ("p99>1.2.3ms", DURATION),
            (
                "p99=>5ms",
                "\"p99=\" is no metric; these are: p50 p90 p99 p99.9 p99.99 max mean connect_p99 lateness_p99 rate connections errors unanswered",
            ),
            (
                "findings>3",
                "\"findings\" is no metric; these are: p50 p90 p99 p99.9 p99.99 max mean connect_p99 lateness_p99 rate connections errors unanswered",
            ),
            ("errors>5ms", "errors takes a count such as 0, 100 or 10k"),
            ("errors>5/s", "errors takes a count such as 0, 100 or 10k"),
            ("errors>inf", "errors takes a count such as 0, 100 or 10k"),
            ("rate<5k/m", "rate takes a rate such as 2000, 10k or 10k/s"),
        ] {
            assert_eq!(text.parse::<Threshold>().unwrap_err(), reason, "{text}");
        }
    }

    #[test]
    fn a_sound_run_passes_what_stands_unasked() {
        let (verdict, thresholds) = judged(example(), &[]);
        let thresholds: Vec<_> = thresholds.iter().map(|(text, failed)| (&text[..], *failed)).collect();
        let expected = ["connections<50", "errors>0", "unanswered>0", "findings>0", "verified<1"];
        assert_eq!((verdict, thresholds), (Verdict::Pass, expected.map(|text| (text, false)).to_vec()));
    }

    #[test]
    fn each_gate_falls_by_its_own_quantity() {
        let fallen_by = |change: fn(&mut Report)| {
            let mut report = example();
            change(&mut report);
            fallen(report, &[])
        };
        assert_eq!(fallen_by(|report| report.connections.held = 49), ["connections<50"]);
        assert_eq!(fallen_by(|report| report.messages.unanswered = 1), ["unanswered>0"]);
        assert_eq!(fallen_by(|report| report.messages.verified = 0), ["verified<1"]);
        assert_eq!(fallen_by(|report| report.verify.connections_failed = 1), ["findings>0"]);
        let error = |report: &mut Report| {
            let error = ErrorCount { phase: Phase::Connect, error: ErrorName::Refused, errno: None, count: 2 };
            report.errors = vec![error];
        };
        assert_eq!(fallen_by(error), ["errors>0"]);
    }

    #[test]
    fn asking_replaces_what_stands_on_the_same_quantity_but_never_the_findings() {
        let mut report = example();
        report.connections.held = 40;
        report.messages.unanswered = 3;
        report.verify.connections_failed = 1;
        assert_eq!(
            fallen(report.clone(), &["connections<40", "unanswered>2"]),
            ["findings>0", "unanswered>2"],
            "40 are enough here, 3 too many"
        );
        let (_, thresholds) = judged(report, &["unanswered>5"]);
        assert!(!thresholds.iter().any(|(text, _)| text == "unanswered>0"), "{thresholds:?}");
    }

    #[test]
    fn a_bound_is_met_as_its_sign_says() {
        let mut report = example();
        report.latency_us.p99 = Some(5000);
        let asked = ["p99>5ms", "p99>=5ms", "p99<5ms", "p99<=5ms", "p99>4999us", "rate<2k", "rate<=2k/s"];
        assert_eq!(fallen(report, &asked), ["p99>=5ms", "p99<=5ms", "p99>4999us", "rate<=2k/s"]);
    }

    #[test]
    fn a_gate_on_what_has_no_value_falls() {
        let mut report = example();
        report.rate_per_s = None;
        evaluate(&mut report, &[threshold("lateness_p99>1h"), threshold("mean>1h"), threshold("rate<0")]);
        let asked: Vec<_> = report.thresholds.iter().filter(|threshold| !threshold.default).collect();
        assert_eq!(asked.len(), 3);
        assert!(asked.iter().all(|threshold| threshold.failed && threshold.value.is_none()), "{asked:?}");
        assert_eq!(report.verdict, Verdict::Fail);
    }
}
