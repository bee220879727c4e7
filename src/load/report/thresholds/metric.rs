//! The metrics that a threshold is on, and their values in a report.

use super::super::document::{Hold, Loop, Report};
use super::super::histogram::Histogram;
use super::super::stages::StageFigures;
use super::super::summary::Summary;
use super::{SCHEDULE, float};
use crate::units::{parse_count, parse_duration, parse_rate};

/// The metrics, in the words of a message.
pub(super) const METRICS: &str = "p50 (any percentile: p99.99), mean and max, each also with connect_ or lateness_ before it, rate, \
                       connections, errors, unanswered, unsent, deferred, schedule, server_cpu, found_rate, outages, longest_outage, hold_alive, hold_late, hold_reset, \
                       hold_closed, hold_silent, hold_unasked";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) enum Metric {
    Duration(Distribution, Statistic),
    Rate,
    Connections,
    Errors,
    Unanswered,
    Unsent,
    Deferred,
    /// 1 if the schedule was kept, or 0.
    Schedule,
    /// CPU time of the server's process a message, in microseconds.
    ServerCpu,
    /// What a search found.
    FoundRate,
    Outages,
    LongestOutage,
    Hold(HoldOutcome),
    /// Has no name on the command line, so that its default cannot be replaced.
    Findings,
    /// Has no name on the command line either.
    Verified,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Distribution {
    Latency,
    Connect,
    Lateness,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::load) enum Statistic {
    /// A share of the values, from 0 to 1.
    Quantile(f64),
    Max,
    Mean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum HoldOutcome {
    Alive,
    Late,
    Reset,
    Closed,
    Silent,
    Unasked,
}

impl Metric {
    pub(super) fn from_name(name: &str) -> Result<Self, String> {
        let metric = match name {
            "rate" => Self::Rate,
            "connections" => Self::Connections,
            "errors" => Self::Errors,
            "unanswered" => Self::Unanswered,
            "unsent" => Self::Unsent,
            "deferred" => Self::Deferred,
            SCHEDULE => Self::Schedule,
            "server_cpu" => Self::ServerCpu,
            "found_rate" => Self::FoundRate,
            "outages" => Self::Outages,
            "longest_outage" => Self::LongestOutage,
            "hold_alive" => Self::Hold(HoldOutcome::Alive),
            "hold_late" => Self::Hold(HoldOutcome::Late),
            "hold_reset" => Self::Hold(HoldOutcome::Reset),
            "hold_closed" => Self::Hold(HoldOutcome::Closed),
            "hold_silent" => Self::Hold(HoldOutcome::Silent),
            "hold_unasked" => Self::Hold(HoldOutcome::Unasked),
            _ => {
                let (distribution, word) = match name.split_once('_') {
                    Some(("connect", word)) => (Distribution::Connect, word),
                    Some(("lateness", word)) => (Distribution::Lateness, word),
                    _ => (Distribution::Latency, name),
                };
                let unknown = || match Statistic::with_point(word) {
                    Some(meant) => format!("unknown metric {name:?}: did you mean {}?", name.replace(word, &meant)),
                    None => format!("unknown metric {name:?}; the metrics are {METRICS}"),
                };
                Self::Duration(distribution, Statistic::from_name(word).ok_or_else(unknown)?)
            }
        };
        Ok(metric)
    }

    pub(super) fn unit(self) -> Unit {
        match self {
            Self::Duration(..) | Self::ServerCpu | Self::LongestOutage => Unit::Duration,
            Self::Rate | Self::FoundRate => Unit::Rate,
            _ => Unit::Count,
        }
    }

    /// Returns whether the metric is part of a whole.
    pub(super) fn has_percentage(self) -> bool {
        !matches!(
            self,
            Self::Duration(..)
                | Self::Schedule
                | Self::ServerCpu
                | Self::FoundRate
                | Self::LongestOutage
                | Self::Findings
                | Self::Verified
        )
    }

    /// Returns whether a stage has the metric too.
    pub(super) fn has_stages(self) -> bool {
        matches!(
            self,
            Self::Duration(Distribution::Latency | Distribution::Lateness, _)
                | Self::Rate
                | Self::Errors
                | Self::Unanswered
                | Self::Unsent
                | Self::Deferred
        )
    }

    pub(super) fn value(self, report: &Report) -> Option<f64> {
        let whole = match self {
            Self::Duration(distribution, statistic) => return statistic.of(distribution.of(report)),
            Self::Rate => return report.rate_per_s,
            Self::FoundRate => return report.search.as_ref()?.found_rate,
            Self::ServerCpu => return report.server?.cpu_us_per_message,
            Self::Connections => report.connections.held,
            Self::Errors => report.errors.iter().fold(0, |sum, error| error.count.saturating_add(sum)),
            Self::Unanswered => report.messages.unanswered,
            Self::Unsent => report.messages.unsent,
            Self::Deferred => report.messages.deferred,
            Self::Schedule => report.schedule.kept?.into(),
            Self::Outages => report.outages.as_ref()?.count,
            Self::LongestOutage => report.outages.as_ref()?.longest_us,
            Self::Hold(outcome) => outcome.of(report.hold.as_ref()?),
            Self::Findings => report.verify.connections_failed.max(report.verify.findings.len() as u64),
            Self::Verified => report.messages.verified,
        };
        Some(float(whole))
    }

    pub(super) fn value_of_stage(self, stage: &StageFigures) -> Option<f64> {
        match self {
            Self::Duration(Distribution::Latency, statistic) => statistic.of(&stage.latency_us),
            Self::Duration(Distribution::Lateness, statistic) => statistic.of(&stage.lateness_us),
            Self::Rate => stage.rate_per_s,
            Self::Errors => Some(float(stage.errors)),
            Self::Unanswered => Some(float(stage.messages.unanswered)),
            Self::Unsent => Some(float(stage.messages.unsent)),
            Self::Deferred => Some(float(stage.messages.deferred)),
            _ => None,
        }
    }

    /// Returns whether the metric is of whole microseconds.
    pub(in crate::load) fn is_whole(self) -> bool {
        matches!(self, Self::Duration(_, Statistic::Quantile(_) | Statistic::Max))
    }

    /// Returns whether the metric is of connects, which all windows of a session have in common.
    pub(in crate::load) fn is_of_connects(self) -> bool {
        matches!(self, Self::Duration(Distribution::Connect, _))
    }

    /// Returns whether a higher value is a better one.
    pub(in crate::load) fn is_better_higher(self) -> bool {
        matches!(self, Self::Rate | Self::Connections)
    }

    /// Returns whether the ratio of two values says how much faster one of two servers is.
    pub(in crate::load) fn has_ratio(self) -> bool {
        matches!(self, Self::Duration(..) | Self::Rate | Self::ServerCpu)
    }

    /// Returns what a percentage is of: what was asked of the run, the connects, or what was due.
    pub(super) fn whole(self, report: &Report) -> Option<f64> {
        let whole = match self {
            Self::Rate => report.config.rate.filter(|_| report.r#loop == Loop::Open)? * report.messages_per_arrival(),
            Self::Errors => float(report.connections.opened_total),
            Self::Unanswered | Self::Unsent | Self::Deferred => float(report.messages.due),
            _ => float(report.connections.requested),
        };
        Some(whole)
    }

    pub(super) fn whole_of_stage(self, stage: &StageFigures, report: &Report) -> f64 {
        match self {
            Self::Rate => f64::midpoint(stage.from, stage.to) * report.messages_per_arrival(),
            Self::Errors => float(report.connections.opened_total),
            _ => float(stage.messages.due),
        }
    }
}

impl Distribution {
    fn of(self, report: &Report) -> &Summary {
        match self {
            Self::Latency => &report.latency_us,
            Self::Connect => &report.connect_us,
            Self::Lateness => &report.lateness_us,
        }
    }
}

impl Statistic {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "max" => return Some(Self::Max),
            "mean" => return Some(Self::Mean),
            _ => {}
        }
        let percentile = name.strip_prefix('p')?;
        let (whole, fraction) = percentile.split_once('.').unwrap_or((percentile, "0"));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        // The point is moved in the text: 99.9 divided by 100 is more than 0.999.
        let quantile = format!("0.{whole:0>2}{fraction}").parse().ok();
        quantile
            .filter(|&quantile| whole.len() <= 2 && is_number(whole) && is_number(fraction) && quantile > 0.0)
            .map(Self::Quantile)
    }

    /// Returns a percentile that was written without its point: `p99.9` for `p999`.
    fn with_point(name: &str) -> Option<String> {
        let digits = name.strip_prefix('p').filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))?;
        let (whole, fraction) = digits.split_at_checked(2).filter(|(_, fraction)| !fraction.is_empty())?;
        let meant = format!("p{whole}.{fraction}");
        // p100 has none.
        whole.starts_with('9').then_some(meant)
    }

    /// Returns the statistic in microseconds.
    fn of(self, summary: &Summary) -> Option<f64> {
        let quantile = match self {
            Self::Mean => return summary.mean,
            Self::Max => return summary.max.map(float),
            Self::Quantile(quantile) => quantile,
        };
        let known = summary.percentiles().into_iter().find(|known| known.0.to_bits() == quantile.to_bits());
        let value = match known {
            Some((.., value)) => value,
            None => Histogram::from_summary(summary).ok()?.quantile(quantile),
        };
        value.map(float)
    }
}

impl HoldOutcome {
    fn of(self, hold: &Hold) -> u64 {
        match self {
            Self::Alive => hold.alive,
            Self::Late => hold.late,
            Self::Reset => hold.reset,
            Self::Closed => hold.closed,
            Self::Silent => hold.silent,
            Self::Unasked => hold.unasked,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Duration,
    Rate,
    Count,
}

impl Unit {
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Duration => "a duration such as 300us, 5ms or 1.5s",
            Self::Rate => "a rate such as 2000, 10k or 10k/s",
            Self::Count => "a count such as 0, 100 or 10k",
        }
    }

    /// Returns durations in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "exact below a hundred days")]
    pub(super) fn parse(self, text: &str) -> Option<f64> {
        match self {
            Self::Duration => Some(parse_duration(text)?.as_nanos() as f64 / 1000.0),
            Self::Rate => parse_rate(text),
            Self::Count => parse_count(text),
        }
    }
}
