//! A report in a few lines, as a failed assertion prints it.

use std::fmt;

use super::document::{Report, Verdict};
use super::summary::Summary;

impl Report {
    /// Returns whether no threshold failed in a run that ended by itself, and the figures can be trusted: the verdict is
    /// [`Verdict::Pass`].
    #[must_use]
    pub fn passed(&self) -> bool {
        self.verdict == Verdict::Pass
    }

    /// Returns whether a threshold failed. On a busy machine a run may neither pass nor fail: [`Verdict::Inconclusive`].
    #[must_use]
    pub fn failed(&self) -> bool {
        self.verdict == Verdict::Fail
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Inconclusive => "INCONCLUSIVE",
            Verdict::Fail => "FAIL",
            Verdict::Interrupted => "INTERRUPTED",
            Verdict::Running => "RUNNING",
        };
        let connections = &self.connections;
        write!(
            formatter,
            "{verdict}: {}, {} of {} connections",
            self.mode.name(),
            connections.held,
            connections.requested
        )?;
        let targets: Vec<_> = self.config.targets.iter().map(ToString::to_string).collect();
        write!(formatter, " to {}", targets.join(", "))?;
        let messages = &self.messages;
        write!(
            formatter,
            "\nmessages: {} due, {} verified, {} unsent, {} unanswered, {} failed",
            messages.due, messages.verified, messages.unsent, messages.unanswered, messages.failed
        )?;
        let Summary { p50, p99, max, .. } = self.latency_us;
        if let (Some(p50), Some(p99), Some(max)) = (p50, p99, max) {
            write!(formatter, "\nlatency: p50 {p50} µs, p99 {p99} µs, max {max} µs")?;
        }
        for error in &self.errors {
            let errno = error.errno.as_ref().map_or(String::new(), |errno| format!(" ({errno})"));
            write!(formatter, "\nerror: {} {}{errno}: {}", error.phase.name(), error.error.name(), error.count)?;
        }
        if !self.verify.findings.is_empty() {
            write!(formatter, "\nverify: findings of corruption: {}", self.verify.findings.len())?;
        }
        for threshold in self.thresholds.iter().filter(|threshold| threshold.failed) {
            write!(formatter, "\nfailed: {}", threshold.expr)?;
            match threshold.value {
                Some(value) if threshold.is_time() => write!(formatter, " ({value} µs)")?,
                Some(value) if threshold.expr.ends_with('%') => write!(formatter, " ({value} %)")?,
                Some(value) => write!(formatter, " ({value})")?,
                None => write!(formatter, " (no value)")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::document::tests::example;
    use super::super::document::{ErrorCount, Mode, ThresholdResult};
    use super::super::findings::{Excerpt, Finding, FindingKind};
    use super::*;
    use crate::load::error::{ErrorName, Phase};

    #[test]
    fn a_report_is_printed_with_what_failed_and_without_what_did_not() {
        let mut report = example();
        let messages = "messages: 20000 due, 20000 verified, 0 unsent, 0 unanswered, 0 failed";
        let passed = format!("PASS: echo, 50 of 50 connections to 127.0.0.1:5000\n{messages}");
        assert_eq!(report.to_string(), passed);
        report.mode = Mode::Hold;
        report.connections.held = 49;
        report.errors = vec![ErrorCount {
            phase: Phase::Receive,
            error: ErrorName::Reset,
            errno: Some("ECONNRESET".to_owned()),
            count: 2,
            first_s: 0.5,
            targets: Vec::new(),
        }];
        report.verify.findings = vec![Finding {
            kind: FindingKind::Lost,
            connection: 7,
            local: None,
            peer: "127.0.0.1:5000".parse().unwrap(),
            offset: 0,
            at_s: 0.0,
            expected: Excerpt::default(),
            received: Excerpt::default(),
        }];
        let failed = ThresholdResult { expr: "errors>0".to_owned(), default: true, value: Some(2.0), failed: true };
        (report.verdict, report.thresholds) = (Verdict::Fail, vec![failed]);
        let expected = format!(
            "FAIL: hold, 49 of 50 connections to 127.0.0.1:5000\n{messages}\n\
             error: receive reset (ECONNRESET): 2\n\
             verify: findings of corruption: 1\n\
             failed: errors>0 (2)"
        );
        assert_eq!(report.to_string(), expected);
    }

    #[test]
    fn only_one_verdict_passes_and_only_one_fails() {
        use Verdict::{Fail, Inconclusive, Interrupted, Pass, Running};
        for verdict in [Pass, Fail, Inconclusive, Interrupted, Running] {
            let report = Report { verdict, ..example() };
            assert_eq!((report.passed(), report.failed()), (verdict == Pass, verdict == Fail), "{verdict:?}");
        }
    }
}
