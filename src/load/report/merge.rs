//! Merges the reports of generators that ran at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::json;

use super::document::{
    ClosedAfter, Connections, Ended, ErrorCount, Figures, Generator, Hold, Messages, Mode, Phases, Report, SCHEMA,
    Sample, ScheduleReport, ServerSide, Settings, SourceFigures, TargetCount, TargetFigures,
};
use super::faults::FaultFigures;
use super::findings::{Finding, Verify};
use super::histogram::Histogram;
use super::outages::Outages;
use super::stages::{lengths, merge_stages};
use super::summary::Summary;
use super::thresholds::{self, Threshold};
use crate::socket_address::AnyAddress;

/// Share of the longest window that all windows must have in common.
const OVERLAP_MIN: f64 = 0.9;
/// Separates the identities of merged runs.
const RUN_ID_SEPARATOR: char = '+';

/// Merges the reports of runs that measured at the same time, each with the name of its file.
///
/// Adds the histograms and sums the counts. A value that cannot be merged is `None`: the percentiles of a second or of a turn, the
/// memory of the server, the counts of the kernel. Evaluates the default thresholds and those `requested` for the whole.
///
/// # Errors
///
/// - `InvalidInput`: there is no report; the mode, loop or size of one differs from the first; a run occurs twice; or the
///   measured windows have less than 90 % of the longest in common. The message names the file.
/// - `InvalidData`: a histogram is invalid, or the counts of all add up to over 2⁶³.
pub fn merge(runs: &[(String, Report)], requested: &[Threshold]) -> io::Result<Report> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let (first, _) = runs.split_first().ok_or_else(|| invalid("there is no report to merge".to_owned()))?;
    for (name, run) in runs {
        check_settings(run, first).map_err(|reason| invalid(format!("{name}: {reason}")))?;
    }
    check_run_ids(runs).map_err(invalid)?;
    check_overlap(runs).map_err(invalid)?;
    combine(runs, requested)
}

/// Merges the reports of ranks that began their windows together, whatever their clocks say: the windows are taken to begin with the
/// first one's.
///
/// # Errors
///
/// - Those of [`merge`], except that of windows that do not overlap.
pub fn merge_ranks(mut runs: Vec<(String, Report)>, requested: &[Threshold]) -> io::Result<Report> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let (first, others) = runs.split_first_mut().ok_or_else(|| invalid("there is no report to merge".to_owned()))?;
    // Added in floats, which no phase in a file can overflow.
    let before_window = |run: &Report| seconds_of(run.phases_s.connect + run.phases_s.warmup);
    let start = first.1.start.checked_add(before_window(&first.1)).unwrap_or(first.1.start);
    for (name, run) in others {
        check_settings(run, first).map_err(|reason| invalid(format!("{name}: {reason}")))?;
        run.start = start.checked_sub(before_window(run)).unwrap_or(run.start);
    }
    check_run_ids(&runs).map_err(invalid)?;
    combine(&runs, requested)
}

fn seconds_of(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// Merges reports of the same settings.
fn combine(runs: &[(String, Report)], requested: &[Threshold]) -> io::Result<Report> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let (_, first) = runs.first().ok_or_else(|| invalid("there is no report to merge".to_owned()))?;
    let reports: Vec<_> = runs.iter().map(|(_, report)| report).collect();
    let messages = messages(reports.iter().map(|run| &run.messages));
    let mut merged = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: reports.iter().map(|run| &run.run_id[..]).collect::<Vec<_>>().join(&RUN_ID_SEPARATOR.to_string()),
        start: reports.iter().map(|run| run.start).min().unwrap_or(first.start),
        ended: reports.iter().map(|run| run.ended).find(|&ended| ended != Ended::Complete).unwrap_or(Ended::Complete),
        config: settings(&reports),
        rank: if let [only] = &reports[..] { only.rank } else { None },
        origin: if let [only] = &reports[..] { only.origin.clone() } else { None },
        phases_s: phases(&reports),
        connections: connections(&reports),
        hold: hold(runs)?,
        outages: outages(runs)?,
        faults: faults(&reports),
        rate_per_s: sum_of(&reports, |run| run.rate_per_s),
        latency_us: summary(runs, "latency_us", |run| Some(&run.latency_us))?,
        connect_us: summary(runs, "connect_us", |run| Some(&run.connect_us))?,
        lateness_us: summary(runs, "lateness_us", |run| Some(&run.lateness_us))?,
        schedule: ScheduleReport {
            kept: reports.iter().filter_map(|run| run.schedule.kept).reduce(|all, kept| all && kept),
        },
        stages: merge_stages(runs)?,
        targets: targets(runs)?,
        sources: sources(runs)?,
        errors: merge_errors(&reports),
        verify: merge_verify(&reports),
        generator: generator(&reports),
        server: server(&reports),
        // The counts may be of several machines, or several times of one.
        sockstat: if let [only] = &reports[..] { only.sockstat.clone() } else { None },
        // Searches of several generators have no common rate.
        search: if let [only] = &reports[..] { only.search.clone() } else { None },
        timeline: timeline(&reports),
        messages,
        // Not a copy of the first report, which would hold all of it twice.
        schema: SCHEMA.to_owned(),
        verdict: first.verdict,
        mode: first.mode,
        r#loop: first.r#loop,
        thresholds: Vec::new(),
    };
    thresholds::check_stages(requested, merged.stages.len())?;
    thresholds::evaluate(&mut merged, requested);
    Ok(merged)
}

fn check_settings(run: &Report, (first_name, first): &(String, Report)) -> Result<(), String> {
    let words = |run: &Report| {
        [
            ("mode", json!(run.mode)),
            ("loop", json!(run.r#loop)),
            ("size", json!(run.config.size)),
            ("size_max", json!(run.config.size_max)),
            ("arrivals", json!(run.arrivals())),
            ("messages_per_connection", json!(run.config.messages_per_connection.filter(|_| run.mode == Mode::Churn))),
            ("length of the stages", lengths(&run.stages)),
        ]
    };
    for ((what, ours), (_, theirs)) in words(run).iter().zip(&words(first)) {
        if ours != theirs {
            return Err(format!("{what} is {ours}, and {theirs} in {first_name}"));
        }
    }
    Ok(())
}

fn check_run_ids(runs: &[(String, Report)]) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for (name, run) in runs {
        for id in run.run_id.split(RUN_ID_SEPARATOR) {
            if let Some(other) = seen.insert(id, name) {
                return Err(format!("{name}: run {id:?} is also in {other}"));
            }
        }
    }
    Ok(())
}

fn check_overlap(runs: &[(String, Report)]) -> Result<(), String> {
    let (mut start, mut end, mut longest) = (f64::NEG_INFINITY, f64::INFINITY, 0.0_f64);
    for (name, run) in runs {
        let window = TimeSpan::of(run);
        (start, end) = (start.max(window.start), end.min(window.end));
        longest = longest.max(window.end - window.start);
        let share = (end - start).max(0.0) / longest;
        if longest <= 0.0 {
            return Err(format!("{name}: the measured window is empty"));
        }
        if share < OVERLAP_MIN {
            let percent = share * 100.0;
            return Err(format!("{name}: the measured window overlaps the files before by {percent:.0} %, under 90 %"));
        }
    }
    Ok(())
}

/// The measured window of a run, in seconds since 1970.
struct TimeSpan {
    start: f64,
    end: f64,
}

impl TimeSpan {
    /// Adds in floats, which no phase in a file can overflow.
    fn of(run: &Report) -> Self {
        let start = seconds(run) + run.phases_s.connect + run.phases_s.warmup;
        Self { start, end: start + run.phases_s.measure }
    }
}

/// Returns the start of a run, in seconds since 1970.
fn seconds(run: &Report) -> f64 {
    run.start.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn settings(reports: &[&Report]) -> Settings {
    let mut merged = reports[0].config.clone();
    for Settings { targets, sources, pipeline, messages_per_connection, proxy_protocol, seed, labels, .. } in
        reports[1..].iter().map(|run| &run.config)
    {
        merged.targets.extend(targets.iter().cloned());
        merged.sources.extend(sources);
        // The deepest pipeline: `None` is unlimited.
        merged.pipeline = merged.pipeline.zip(*pipeline).map(|(ours, theirs)| ours.max(theirs));
        merged.messages_per_connection =
            merged.messages_per_connection.filter(|_| merged.messages_per_connection == *messages_per_connection);
        merged.proxy_protocol = merged.proxy_protocol.filter(|_| merged.proxy_protocol == *proxy_protocol);
        merged.seed = merged.seed.filter(|_| merged.seed == *seed);
        merged.labels.retain(|key, value| labels.get(key) == Some(value));
    }
    // The shares of ranks, such as thirds, add up to the rate that they were shares of.
    merged.rate = sum_of(reports, |run| run.config.rate).map(round_to_millionths);
    keep_first_of_each(&mut merged.targets);
    keep_first_of_each(&mut merged.sources);
    merged
}

fn keep_first_of_each<T: Ord + Clone>(items: &mut Vec<T>) {
    let mut seen = BTreeSet::new();
    items.retain(|item| seen.insert(item.clone()));
}

/// Returns phases that place the measured window from the first start to the last end.
fn phases(reports: &[&Report]) -> Phases {
    let most = |of: fn(&Report) -> f64| reports.iter().map(|run| of(run)).fold(f64::NEG_INFINITY, f64::max);
    let least = |of: fn(&Report) -> f64| reports.iter().map(|run| of(run)).fold(f64::INFINITY, f64::min);
    let window = TimeSpan { start: least(|run| TimeSpan::of(run).start), end: most(|run| TimeSpan::of(run).end) };
    let warmup = least(|run| run.phases_s.warmup);
    Phases {
        connect: round_to_millionths(window.start - least(seconds) - warmup),
        warmup,
        measure: round_to_millionths(window.end - window.start),
        drain: most(|run| run.phases_s.drain),
        close: most(|run| run.phases_s.close),
    }
}

/// Rounds off the noise of floats, such as of the difference of two dates.
pub(super) fn round_to_millionths(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

fn connections(reports: &[&Report]) -> Connections {
    let sum = |of: fn(&Connections) -> u64| total(reports.iter().map(|run| of(&run.connections)));
    Connections {
        requested: sum(|connections| connections.requested),
        established: sum(|connections| connections.established),
        verified: sum(|connections| connections.verified),
        held: sum(|connections| connections.held),
        opened_total: sum(|connections| connections.opened_total),
    }
}

fn hold(runs: &[(String, Report)]) -> io::Result<Option<Hold>> {
    let holds: Vec<_> = runs.iter().filter_map(|(_, run)| run.hold.as_ref()).collect();
    if holds.is_empty() {
        return Ok(None);
    }
    let sum = |of: fn(&Hold) -> u64| total(holds.iter().map(|hold| of(hold)));
    let closed_after = |one: ClosedAfter, other: ClosedAfter| ClosedAfter {
        min: one.min.min(other.min),
        p50: None,
        max: one.max.max(other.max),
    };
    Ok(Some(Hold {
        alive: sum(|hold| hold.alive),
        late: sum(|hold| hold.late),
        reset: sum(|hold| hold.reset),
        closed: sum(|hold| hold.closed),
        silent: sum(|hold| hold.silent),
        unasked: sum(|hold| hold.unasked),
        failed: sum(|hold| hold.failed),
        closed_after_s: holds.iter().filter_map(|hold| hold.closed_after_s).reduce(closed_after),
        first_us: summary(runs, "first_us", |run| run.hold.as_ref().map(|hold| &hold.first_us))?,
    }))
}

/// Adds the figures of each rule, in the order in which they first occur.
fn faults(reports: &[&Report]) -> Vec<FaultFigures> {
    let mut merged: Vec<FaultFigures> = Vec::new();
    let mut places = BTreeMap::new();
    for figures in reports.iter().flat_map(|run| &run.faults) {
        let place = *places.entry(&figures.rule).or_insert(merged.len());
        match merged.get_mut(place) {
            Some(earlier) => earlier.add(figures),
            None => merged.push(figures.clone()),
        }
    }
    merged
}

fn outages(runs: &[(String, Report)]) -> io::Result<Option<Outages>> {
    let outages: Vec<_> = runs.iter().filter_map(|(_, run)| run.outages.as_ref()).collect();
    let Some(longest_us) = outages.iter().map(|outages| outages.longest_us).max() else { return Ok(None) };
    let sum = |of: fn(&Outages) -> u64| total(outages.iter().map(|outages| of(outages)));
    Ok(Some(Outages {
        count: sum(|outages| outages.count),
        recovered: sum(|outages| outages.recovered),
        attempts: sum(|outages| outages.attempts),
        longest_us,
        recovery_us: summary(runs, "recovery_us", |run| run.outages.as_ref().map(|outages| &outages.recovery_us))?,
    }))
}

pub(super) fn messages<'a>(parts: impl Iterator<Item = &'a Messages>) -> Messages {
    let mut sum = Messages::default();
    for part in parts {
        sum += *part;
    }
    sum
}

pub(super) fn summary(
    runs: &[(String, Report)],
    field: &str,
    of: impl Fn(&Report) -> Option<&Summary>,
) -> io::Result<Summary> {
    sum_up(field, runs.iter().filter_map(|(name, run)| Some((&name[..], of(run)?))))
}

/// Adds up the histograms of a field, each with the name of its file.
fn sum_up<'a>(field: &str, summaries: impl Iterator<Item = (&'a str, &'a Summary)>) -> io::Result<Summary> {
    let mut merged = Histogram::new();
    for (name, summary) in summaries {
        let histogram = Histogram::from_summary(summary)
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {field}: {error}")))?;
        merged.add(&histogram);
        if merged.is_overflowing() {
            let reason = format!("{name}: {field}: the counts of the files add up to over 2^63");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
    }
    Ok(merged.summary())
}

fn targets(runs: &[(String, Report)]) -> io::Result<Vec<TargetFigures>> {
    let merged =
        figures(runs, "targets", |run| run.targets.iter().map(|of| (of.target.clone(), &of.figures)).collect())?;
    Ok(merged.into_iter().map(|(target, figures)| TargetFigures { target, figures }).collect())
}

fn sources(runs: &[(String, Report)]) -> io::Result<Vec<SourceFigures>> {
    let merged = figures(runs, "sources", |run| run.sources.iter().map(|of| (of.source, &of.figures)).collect())?;
    Ok(merged.into_iter().map(|(source, figures)| SourceFigures { source, figures }).collect())
}

/// Adds up the figures of each address. A run with only one has no figures, and then the whole has none.
fn figures<A: Clone + Ord>(
    runs: &[(String, Report)],
    field: &str,
    of: fn(&Report) -> Vec<(A, &Figures)>,
) -> io::Result<Vec<(A, Figures)>> {
    if runs.iter().any(|(_, run)| of(run).is_empty()) {
        return Ok(Vec::new());
    }
    let mut places = BTreeMap::new();
    let mut parts_of: Vec<(A, Vec<(&str, &Figures)>)> = Vec::new();
    for (name, run) in runs {
        for (address, figures) in of(run) {
            let place = *places.entry(address.clone()).or_insert(parts_of.len());
            match parts_of.get_mut(place) {
                Some((_, parts)) => parts.push((&name[..], figures)),
                None => parts_of.push((address, vec![(&name[..], figures)])),
            }
        }
    }
    let merge = |(address, parts): (A, Vec<(&str, &Figures)>)| {
        let sum = |of: fn(&Figures) -> u64| total(parts.iter().map(|(_, figures)| of(figures)));
        let latency_us = sum_up(field, parts.iter().map(|&(name, figures)| (name, &figures.latency_us)))?;
        let figures = Figures {
            connections: sum(|figures| figures.connections),
            messages: sum(|figures| figures.messages),
            errors: sum(|figures| figures.errors),
            p50: latency_us.p50,
            p99: latency_us.p99,
            latency_us,
        };
        Ok((address, figures))
    };
    parts_of.into_iter().map(merge).collect()
}

/// Returns what converts seconds from the start of a run to seconds from the start of the first run.
fn since_first(reports: &[&Report]) -> impl Fn(&Report, f64) -> f64 {
    let start = reports.iter().map(|run| seconds(run)).fold(f64::INFINITY, f64::min);
    move |run, time| {
        let shift = seconds(run) - start;
        // A file of one report keeps its digits.
        if shift > 0.0 { round_to_millionths(time + shift) } else { time }
    }
}

pub(in crate::load) fn merge_errors(reports: &[&Report]) -> Vec<ErrorCount> {
    let since_first = since_first(reports);
    let mut merged: BTreeMap<_, (ErrorCount, BTreeMap<AnyAddress, u64>)> = BTreeMap::new();
    for (run, error) in reports.iter().flat_map(|run| run.errors.iter().map(move |error| (run, error))) {
        let first_s = since_first(run, error.first_s);
        let new = || (ErrorCount { count: 0, first_s, ..error.clone() }, BTreeMap::new());
        let (sum, targets) = merged.entry((error.phase, error.error, &error.errno)).or_insert_with(new);
        sum.count = sum.count.saturating_add(error.count);
        sum.first_s = sum.first_s.min(first_s);
        for TargetCount { target, count } in &error.targets {
            let sum = targets.entry(target.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    let with_targets = |(error, targets): (ErrorCount, BTreeMap<AnyAddress, u64>)| ErrorCount {
        targets: targets.into_iter().map(|(target, count)| TargetCount { target, count }).collect(),
        ..error
    };
    merged.into_values().map(with_targets).collect()
}

pub(in crate::load) fn merge_verify(reports: &[&Report]) -> Verify {
    let since_first = &since_first(reports);
    let findings = reports.iter().flat_map(|run| {
        let shifted = move |finding: &Finding| Finding { at_s: since_first(run, finding.at_s), ..finding.clone() };
        run.verify.findings.iter().map(shifted)
    });
    let sum = |of: fn(&Verify) -> u64| total(reports.iter().map(|run| of(&run.verify)));
    Verify {
        wrong_bytes: sum(|verify| verify.wrong_bytes),
        lost_bytes: sum(|verify| verify.lost_bytes),
        extra_bytes: sum(|verify| verify.extra_bytes),
        connections_failed: sum(|verify| verify.connections_failed),
        findings: findings.collect(),
    }
}

fn generator(reports: &[&Report]) -> Generator {
    if let [only] = reports {
        return only.generator;
    }
    let saturated = reports.iter().map(|run| run.generator.saturated);
    Generator {
        cpu_us_per_message: sum_of(reports, |run| cpu_us(run, run.generator.cpu_us_per_message))
            .and_then(|cpu_us| per_message(cpu_us, reports)),
        cpu_percent: sum_of(reports, |run| run.generator.cpu_percent),
        turn_us_p99: None,
        longest_gap_us: reports.iter().filter_map(|run| run.generator.longest_gap_us).max(),
        // True if one is; unknown if none is and one is unknown.
        saturated: if saturated.clone().any(|one| one == Some(true)) { Some(true) } else { saturated.min().flatten() },
    }
}

/// Returns the server if all runs drove the same one. The process that a run reads did the work of all runs.
fn server(reports: &[&Report]) -> Option<ServerSide> {
    if let [only] = reports {
        return only.server;
    }
    let pid = reports.iter().find_map(|run| run.server)?.pid;
    let is_one = reports.iter().all(|run| {
        run.config.targets == reports[0].config.targets && run.server.is_none_or(|server| server.pid == pid)
    });
    let cpu_us = reports.iter().filter_map(|run| cpu_us(run, run.server?.cpu_us_per_message));
    let cpu_us_per_message = cpu_us.reduce(f64::max).and_then(|cpu_us| per_message(cpu_us, reports));
    is_one.then_some(ServerSide { pid, cpu_us_per_message, rss_bytes_per_connection: None })
}

fn cpu_us(run: &Report, per_message: Option<f64>) -> Option<f64> {
    Some(per_message? * arrived(run)?)
}

fn per_message(cpu_us: f64, reports: &[&Report]) -> Option<f64> {
    let messages = sum_of(reports, arrived).filter(|&messages| messages > 0.0)?;
    Some((cpu_us / messages * 1000.0).round() / 1000.0)
}

/// Returns how many replies arrived in the window, by which the CPU time of a run was divided.
fn arrived(run: &Report) -> Option<f64> {
    Some(run.rate_per_s? * run.phases_s.measure)
}

/// Adds up the samples of a second, which is counted from the start of the first window.
fn timeline(reports: &[&Report]) -> Vec<Sample> {
    let start = reports.iter().map(|run| TimeSpan::of(run).start).fold(f64::INFINITY, f64::min);
    let mut merged: BTreeMap<u64, Sample> = BTreeMap::new();
    for run in reports {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and it saturates")]
        let shift = (TimeSpan::of(run).start - start).round() as u64;
        for point in &run.timeline {
            let point = Sample { t: point.t.saturating_add(shift), ..*point };
            let add = |sum: &mut Sample| {
                sum.rate = sum.rate.saturating_add(point.rate);
                sum.open = sum.open.saturating_add(point.open);
                sum.errors = sum.errors.saturating_add(point.errors);
                // Percentiles cannot be merged, and a sample has no histogram.
                (sum.p50, sum.p99) = (None, None);
            };
            merged.entry(point.t).and_modify(add).or_insert(point);
        }
    }
    merged.into_values().collect()
}

pub(super) fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// Returns the sum if every report has a value.
fn sum_of(reports: &[&Report], of: fn(&Report) -> Option<f64>) -> Option<f64> {
    reports.iter().map(|run| of(run)).sum()
}

#[cfg(test)]
mod tests;
