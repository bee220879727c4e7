//! Puts the results of generators that ran together into one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::UNIX_EPOCH;

use serde_json::json;

use super::histogram::Histogram;
use super::report::{
    Config, Connections, Ended, ErrorCount, Generator, Hold, Messages, Phases, Report, Sample, Schedule, ServerSide,
    Summary, Verify,
};
use super::thresholds::{self, Threshold};

/// How much of the longest window all must have in common.
const OVERLAP_MIN: f64 = 0.9;
/// What stands between the names of merged runs.
const RUN_ID_SEPARATOR: char = '+';

/// Puts the reports of runs that measured at the same time into one, each given with the name of its file.
///
/// Histograms are added and counts summed. What cannot be put together is `None`: the percentiles of a second or of a turn, the
/// server's memory, the kernel's counts. The thresholds are judged anew: `asked`, and those that stand unasked.
///
/// # Errors
///
/// - `InvalidInput`: there is nothing to merge; a mode, loop or size differs from the first's; a run occurs twice; or the
///   measured windows have less than 90 % of the longest in common. The text names the file.
/// - `InvalidData`: a histogram is broken.
pub fn merge(runs: &[(String, Report)], asked: &[Threshold]) -> io::Result<Report> {
    let refuse = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    let (first, _) = runs.split_first().ok_or_else(|| refuse("nothing to merge".to_owned()))?;
    for (name, run) in runs {
        check_likeness(run, first).map_err(|reason| refuse(format!("{name}: {reason}")))?;
    }
    check_identity(runs).map_err(refuse)?;
    check_overlap(runs).map_err(refuse)?;

    let (_, first) = first;
    let reports: Vec<_> = runs.iter().map(|(_, report)| report).collect();
    let messages = messages(&reports);
    let mut merged = Report {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: reports.iter().map(|run| &run.run_id[..]).collect::<Vec<_>>().join("+"),
        start: reports.iter().map(|run| run.start).min().unwrap_or(first.start),
        ended: reports.iter().map(|run| run.ended).find(|&ended| ended != Ended::Complete).unwrap_or(Ended::Complete),
        config: config(&reports),
        phases_s: phases(&reports),
        connections: connections(&reports),
        hold: hold(&reports),
        rate_per_s: sum_of(&reports, |run| run.rate_per_s),
        latency_us: summary(runs, "latency_us", |run| &run.latency_us)?,
        connect_us: summary(runs, "connect_us", |run| &run.connect_us)?,
        lateness_us: summary(runs, "lateness_us", |run| &run.lateness_us)?,
        schedule: Schedule { kept: reports.iter().filter_map(|run| run.schedule.kept).reduce(|all, kept| all && kept) },
        errors: errors(&reports),
        verify: verify(&reports),
        generator: generator(&reports, messages.verified),
        server: server(&reports, messages.verified),
        // Of several machines, or of one counted several times: that cannot be told.
        sockstat: if let [only] = &reports[..] { only.sockstat.clone() } else { None },
        timeline: timeline(&reports),
        messages,
        ..first.clone()
    };
    thresholds::evaluate(&mut merged, asked);
    Ok(merged)
}

fn check_likeness(run: &Report, (first_name, first): &(String, Report)) -> Result<(), String> {
    let words = |run: &Report| [json!(run.mode), json!(run.r#loop), json!(run.config.size)];
    for (what, (ours, theirs)) in ["mode", "loop", "size"].iter().zip(words(run).iter().zip(&words(first))) {
        if ours != theirs {
            return Err(format!("its {what} is {ours}, that of {first_name} {theirs}"));
        }
    }
    Ok(())
}

fn check_identity(runs: &[(String, Report)]) -> Result<(), String> {
    let mut seen = BTreeMap::new();
    for (name, run) in runs {
        for id in run.run_id.split(RUN_ID_SEPARATOR) {
            if let Some(other) = seen.insert(id, name) {
                return Err(format!("{name}: its run {id:?} is in {other} already"));
            }
        }
    }
    Ok(())
}

fn check_overlap(runs: &[(String, Report)]) -> Result<(), String> {
    let (mut start, mut end, mut longest) = (f64::NEG_INFINITY, f64::INFINITY, 0.0_f64);
    for (name, run) in runs {
        let window = Window::of(run);
        (start, end) = (start.max(window.start), end.min(window.end));
        longest = longest.max(window.end - window.start);
        let share = (end - start).max(0.0) / longest;
        if longest <= 0.0 {
            return Err(format!("{name}: nothing was measured, its window is empty"));
        }
        if share < OVERLAP_MIN {
            let percent = share * 100.0;
            return Err(format!("{name}: its window has {percent:.0} % in common with those before it, under 90 %"));
        }
    }
    Ok(())
}

/// The time in which a run measured, in seconds since 1970.
struct Window {
    start: f64,
    end: f64,
}

impl Window {
    /// In floats, where no phase that a file may name can overflow.
    fn of(run: &Report) -> Self {
        let start = seconds(run) + run.phases_s.connect + run.phases_s.warmup;
        Self { start, end: start + run.phases_s.measure }
    }
}

/// When a run began, in seconds since 1970.
fn seconds(run: &Report) -> f64 {
    run.start.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn config(reports: &[&Report]) -> Config {
    let mut merged = reports[0].config.clone();
    for Config { targets, sources, pipeline, seed, labels, .. } in reports[1..].iter().map(|run| &run.config) {
        merged.targets.extend(targets);
        merged.sources.extend(sources);
        // What the least bounded of them could have in flight.
        merged.pipeline = merged.pipeline.zip(*pipeline).map(|(ours, theirs)| ours.max(theirs));
        merged.seed = merged.seed.filter(|_| merged.seed == *seed);
        merged.labels.retain(|key, value| labels.get(key) == Some(value));
    }
    merged.rate = sum_of(reports, |run| run.config.rate);
    keep_first_of_each(&mut merged.targets);
    keep_first_of_each(&mut merged.sources);
    merged
}

fn keep_first_of_each<T: Ord + Copy>(items: &mut Vec<T>) {
    let mut seen = BTreeSet::new();
    items.retain(|&item| seen.insert(item));
}

/// From the first start to the last end, so that the merged window is where it was.
fn phases(reports: &[&Report]) -> Phases {
    let most = |of: fn(&Report) -> f64| reports.iter().map(|run| of(run)).fold(f64::NEG_INFINITY, f64::max);
    let least = |of: fn(&Report) -> f64| reports.iter().map(|run| of(run)).fold(f64::INFINITY, f64::min);
    let window = Window { start: least(|run| Window::of(run).start), end: most(|run| Window::of(run).end) };
    let warmup = least(|run| run.phases_s.warmup);
    Phases {
        connect: microseconds_of(window.start - least(seconds) - warmup),
        warmup,
        measure: microseconds_of(window.end - window.start),
        drain: most(|run| run.phases_s.drain),
        close: most(|run| run.phases_s.close),
    }
}

/// Without what the large numbers of a date leave behind in a small difference.
fn microseconds_of(seconds: f64) -> f64 {
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

fn hold(reports: &[&Report]) -> Option<Hold> {
    let holds: Vec<_> = reports.iter().filter_map(|run| run.hold).collect();
    let sum = |of: fn(&Hold) -> u64| total(holds.iter().map(of));
    (!holds.is_empty()).then(|| Hold {
        alive: sum(|hold| hold.alive),
        late: sum(|hold| hold.late),
        reset: sum(|hold| hold.reset),
        closed: sum(|hold| hold.closed),
        silent: sum(|hold| hold.silent),
    })
}

fn messages(reports: &[&Report]) -> Messages {
    let sum = |of: fn(&Messages) -> u64| total(reports.iter().map(|run| of(&run.messages)));
    Messages {
        due: sum(|messages| messages.due),
        unsent: sum(|messages| messages.unsent),
        verified: sum(|messages| messages.verified),
        unanswered: sum(|messages| messages.unanswered),
        failed: sum(|messages| messages.failed),
        deferred: sum(|messages| messages.deferred),
    }
}

fn summary(runs: &[(String, Report)], field: &str, of: fn(&Report) -> &Summary) -> io::Result<Summary> {
    let mut merged = Histogram::new();
    for (name, run) in runs {
        let histogram = Histogram::from_summary(of(run))
            .map_err(|error| io::Error::new(error.kind(), format!("{name}: {field}: {error}")))?;
        merged.add(&histogram);
    }
    Ok(merged.summary())
}

fn errors(reports: &[&Report]) -> Vec<ErrorCount> {
    let mut merged: Vec<ErrorCount> = Vec::new();
    for error in reports.iter().flat_map(|run| &run.errors) {
        let is_same = |other: &&mut ErrorCount| {
            (other.phase, other.error, &other.errno) == (error.phase, error.error, &error.errno)
        };
        match merged.iter_mut().find(is_same) {
            Some(same) => same.count = same.count.saturating_add(error.count),
            None => merged.push(error.clone()),
        }
    }
    merged.sort_by(|a, b| (a.phase, a.error, &a.errno).cmp(&(b.phase, b.error, &b.errno)));
    merged
}

fn verify(reports: &[&Report]) -> Verify {
    let sum = |of: fn(&Verify) -> u64| total(reports.iter().map(|run| of(&run.verify)));
    Verify {
        wrong_bytes: sum(|verify| verify.wrong_bytes),
        lost_bytes: sum(|verify| verify.lost_bytes),
        extra_bytes: sum(|verify| verify.extra_bytes),
        connections_failed: sum(|verify| verify.connections_failed),
        findings: reports.iter().flat_map(|run| run.verify.findings.iter().copied()).collect(),
    }
}

fn generator(reports: &[&Report], messages: u64) -> Generator {
    if let [only] = reports {
        return only.generator;
    }
    let saturated = reports.iter().map(|run| run.generator.saturated);
    Generator {
        cpu_us_per_message: sum_of(reports, |run| cpu_us(run, run.generator.cpu_us_per_message))
            .and_then(|cpu_us| per_message(cpu_us, messages)),
        cpu_percent: sum_of(reports, |run| run.generator.cpu_percent),
        turn_us_p99: None,
        // One that was makes it true; one that does not know leaves the others' no in doubt.
        saturated: if saturated.clone().any(|one| one == Some(true)) { Some(true) } else { saturated.min().flatten() },
    }
}

/// One server that all drove: whoever looked at its process saw the work for all.
fn server(reports: &[&Report], messages: u64) -> Option<ServerSide> {
    if let [only] = reports {
        return only.server;
    }
    let pid = reports.iter().find_map(|run| run.server)?.pid;
    let is_one = reports.iter().all(|run| {
        run.config.targets == reports[0].config.targets && run.server.is_none_or(|server| server.pid == pid)
    });
    let seen = reports.iter().filter_map(|run| cpu_us(run, run.server?.cpu_us_per_message));
    let cpu_us_per_message = seen.reduce(f64::max).and_then(|cpu_us| per_message(cpu_us, messages));
    is_one.then_some(ServerSide { pid, cpu_us_per_message, rss_bytes_per_connection: None })
}

#[expect(clippy::cast_precision_loss, reason = "exact as far as anybody counts")]
fn cpu_us(run: &Report, per_message: Option<f64>) -> Option<f64> {
    Some(per_message? * run.messages.verified as f64)
}

#[expect(clippy::cast_precision_loss, reason = "exact as far as anybody counts")]
fn per_message(cpu_us: f64, messages: u64) -> Option<f64> {
    (messages > 0).then(|| (cpu_us / messages as f64 * 1000.0).round() / 1000.0)
}

/// By the second of the first that measured.
fn timeline(reports: &[&Report]) -> Vec<Sample> {
    let start = reports.iter().map(|run| Window::of(run).start).fold(f64::INFINITY, f64::min);
    let mut merged: BTreeMap<u64, Sample> = BTreeMap::new();
    for run in reports {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and it saturates")]
        let shift = (Window::of(run).start - start).round() as u64;
        for point in &run.timeline {
            let point = Sample { t: point.t.saturating_add(shift), ..*point };
            let add = |sum: &mut Sample| {
                sum.rate = sum.rate.saturating_add(point.rate);
                sum.open = sum.open.saturating_add(point.open);
                sum.errors = sum.errors.saturating_add(point.errors);
                // Percentiles of parts say nothing of the whole, and a second has no histogram.
                (sum.p50, sum.p99) = (None, None);
            };
            merged.entry(point.t).and_modify(add).or_insert(point);
        }
    }
    merged.into_values().collect()
}

fn total(counts: impl Iterator<Item = u64>) -> u64 {
    counts.fold(0, u64::saturating_add)
}

/// The sum, if every report has a value.
fn sum_of(reports: &[&Report], of: fn(&Report) -> Option<f64>) -> Option<f64> {
    reports.iter().map(|run| of(run)).sum()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use super::super::config::Mode;
    use super::super::report::Verdict;
    use super::super::report::tests::example;
    use super::super::report::{ErrorName, Finding, FindingKind, Loop, Phase};
    use super::*;

    fn histogram(microseconds: impl Iterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::new();
        for value in microseconds {
            histogram.record(value * 1000);
        }
        histogram
    }

    /// A run of this name, beside the example's.
    fn run(name: &str, change: impl FnOnce(&mut Report)) -> (String, Report) {
        let mut report = example();
        name.clone_into(&mut report.run_id);
        change(&mut report);
        (format!("{name}.json"), report)
    }

    #[track_caller]
    fn refusal(runs: &[(String, Report)]) -> String {
        merge(runs, &[]).unwrap_err().to_string()
    }

    #[test]
    fn percentiles_are_those_of_all_values_and_no_average() {
        let a = run("a", |run| run.latency_us = histogram(1..=99).summary());
        let b = run("b", |run| run.latency_us = histogram(std::iter::once(1_000_000)).summary());
        let merged = merge(&[a, b], &[]).unwrap();
        assert_eq!(merged.latency_us, histogram((1..=99).chain([1_000_000])).summary());
        assert_eq!((merged.latency_us.p50, merged.latency_us.p99), (Some(50), Some(99)));
        assert_eq!(merged.connect_us, Summary::default());
    }

    #[test]
    fn counts_and_rates_are_summed() {
        let a = run("a", |run| run.messages.deferred = 5);
        let b = run("b", |run| run.messages.deferred = 6);
        let merged = merge(&[a, b], &[]).unwrap();
        let expected = Messages { due: 40000, verified: 40000, deferred: 11, ..Messages::default() };
        assert_eq!(merged.messages, expected);
        let all = Connections { requested: 100, established: 100, verified: 100, held: 100, opened_total: 100 };
        assert_eq!(merged.connections, all);
        assert_eq!((merged.rate_per_s, merged.config.rate), (Some(4000.0), Some(4000.0)));
        assert_eq!((merged.verdict, merged.run_id.as_str()), (Verdict::Pass, "a+b"));
        assert_eq!(merged.thresholds[0].expr, "connections<100");
    }

    #[test]
    fn errors_of_one_kind_are_one_line_and_findings_are_all_kept() {
        let error = |error, count| ErrorCount { phase: Phase::Connect, error, errno: None, count };
        let finding = |connection| Finding {
            kind: FindingKind::Lost,
            connection,
            local: None,
            peer: "127.0.0.1:5000".parse().unwrap(),
            offset: 0,
        };
        let a = run("a", |run| {
            run.errors = vec![error(ErrorName::Timeout, 1), error(ErrorName::Refused, 2)];
            run.verify.findings = vec![finding(1)];
        });
        let b = run("b", |run| {
            run.errors = vec![error(ErrorName::Refused, 3)];
            run.verify.findings = vec![finding(1)];
        });
        let merged = merge(&[a, b], &[]).unwrap();
        assert_eq!(merged.errors, [error(ErrorName::Refused, 5), error(ErrorName::Timeout, 1)]);
        assert_eq!(merged.verify.findings, [finding(1), finding(1)]);
        assert_eq!(merged.verdict, Verdict::Fail);
    }

    #[test]
    fn settings_are_united_and_what_differs_is_no_data() {
        let a = run("a", |run| run.config.pipeline = Some(4));
        let b = run("b", |run| {
            run.config.targets = vec!["127.0.0.1:5001".parse().unwrap(), "127.0.0.1:5000".parse().unwrap()];
            run.config.sources = vec!["10.0.0.1".parse().unwrap()];
            run.config.seed = Some(2);
            run.config.pipeline = Some(9);
            run.config.labels.insert("k".to_owned(), "other".to_owned());
        });
        let config = merge(&[a, b], &[]).unwrap().config;
        assert_eq!(config.targets, ["127.0.0.1:5000".parse().unwrap(), "127.0.0.1:5001".parse().unwrap()]);
        assert_eq!(config.sources, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!((config.seed, config.pipeline), (None, Some(9)));
        assert!(config.labels.is_empty());
    }

    #[test]
    fn what_cannot_be_put_together_is_no_data() {
        let merged = merge(&[run("a", |_| ()), run("b", |_| ())], &[]).unwrap();
        assert_eq!(merged.sockstat, None);
        let generator = Generator {
            cpu_us_per_message: Some(5.1),
            cpu_percent: Some(62.0),
            turn_us_p99: None,
            saturated: Some(false),
        };
        assert_eq!(merged.generator, generator);
        // Both saw the same process, which worked for both.
        let server = ServerSide { pid: 4711, cpu_us_per_message: Some(2.5), rss_bytes_per_connection: None };
        assert_eq!(merged.server, Some(server));
        let other = run("b", |run| run.server.as_mut().unwrap().pid = 1);
        assert_eq!(merge(&[run("a", |_| ()), other], &[]).unwrap().server, None);
    }

    #[test]
    fn seconds_are_added_by_when_they_were() {
        let point = |t, rate, p50| Sample { t, rate, open: 50, errors: 1, p50, p99: p50 };
        let a = run("a", |run| run.timeline = vec![point(1, 10, Some(1)), point(2, 20, Some(1))]);
        let b = run("b", |run| {
            run.start += Duration::from_secs(1);
            run.timeline = vec![point(1, 300, Some(2)), point(2, 400, Some(2))];
        });
        let merged = merge(&[a, b], &[]).unwrap();
        let both = Sample { t: 2, rate: 320, open: 100, errors: 2, p50: None, p99: None };
        assert_eq!(merged.timeline, [point(1, 10, Some(1)), both, point(3, 400, Some(2))]);
    }

    #[test]
    fn one_broken_schedule_breaks_that_of_all() {
        let kept = |schedules: [Option<bool>; 2]| {
            let runs: Vec<_> = ["a", "b"]
                .into_iter()
                .zip(schedules)
                .map(|(name, kept)| run(name, |run| run.schedule.kept = kept))
                .collect();
            merge(&runs, &[]).unwrap().schedule.kept
        };
        assert_eq!(kept([Some(true), Some(true)]), Some(true));
        assert_eq!(kept([Some(true), Some(false)]), Some(false));
        assert_eq!(kept([None, None]), None);
    }

    #[test]
    fn runs_that_are_not_alike_are_refused() {
        let a = run("a", |_| ());
        let refusal = |change: fn(&mut Report)| refusal(&[a.clone(), run("b", change)]);
        assert_eq!(refusal(|run| run.mode = Mode::Hold), "b.json: its mode is \"hold\", that of a.json \"echo\"");
        assert_eq!(refusal(|run| run.r#loop = Loop::Closed), "b.json: its loop is \"closed\", that of a.json \"open\"");
        assert_eq!(refusal(|run| run.config.size = 65), "b.json: its size is 65, that of a.json 64");
        assert_eq!(refusal(|run| run.latency_us.count = 1), "b.json: latency_us: count is 1, that of hdr_v2 0");
        assert_eq!(merge(&[], &[]).unwrap_err().to_string(), "nothing to merge");
    }

    #[test]
    fn a_run_counts_once_even_inside_a_merged_one() {
        let (a, b) = (run("a", |_| ()), run("b", |_| ()));
        assert_eq!(refusal(&[a.clone(), a.clone()]), "a.json: its run \"a\" is in a.json already");
        let ab = ("ab.json".to_owned(), merge(&[a, b.clone()], &[]).unwrap());
        assert_eq!(refusal(&[ab.clone(), b]), "b.json: its run \"b\" is in ab.json already");
        let c = run("c", |_| ());
        assert_eq!(merge(&[ab, c], &[]).unwrap().messages.due, 60000);
    }

    #[test]
    fn a_window_of_less_than_a_millisecond_stays_one() {
        let short = run("a", |run| run.phases_s.measure = 0.000_3);
        let merged = ("merged.json".to_owned(), merge(&[short], &[]).unwrap());
        assert!((merged.1.phases_s.measure - 0.000_3).abs() < 1e-9, "{:?}", merged.1.phases_s);
        assert!(merge(&[merged], &[]).is_ok());
    }

    #[test]
    fn windows_must_have_nine_tenths_in_common() {
        let later = |milliseconds| {
            run("b", move |run| {
                // The window opens by connecting as well as by starting.
                run.start += Duration::from_millis(milliseconds);
                run.phases_s.connect += 0.5;
            })
        };
        let merged = merge(&[run("a", |_| ()), later(400)], &[]).unwrap();
        let a = example();
        assert_eq!(merged.start, a.start);
        let phases = Phases { measure: 10.9, ..a.phases_s };
        assert_eq!(merged.phases_s, phases);
        let refused = refusal(&[run("a", |_| ()), later(600)]);
        assert_eq!(refused, "b.json: its window has 89 % in common with those before it, under 90 %");
        let short = run("b", |run| run.phases_s.measure = 5.0);
        let refused = refusal(&[run("a", |_| ()), short]);
        assert_eq!(refused, "b.json: its window has 50 % in common with those before it, under 90 %");
        let empty = run("a", |run| run.phases_s.measure = 0.0);
        assert_eq!(refusal(&[empty]), "a.json: nothing was measured, its window is empty");
    }

    #[test]
    fn gates_are_judged_on_the_whole() {
        let slow = |name| run(name, |run| run.latency_us = histogram(1..=100).summary());
        let asked = ["p99>98us".parse().unwrap(), "rate<4k".parse().unwrap()];
        let merged = merge(&[slow("a"), slow("b")], &asked).unwrap();
        let fallen: Vec<_> = merged
            .thresholds
            .iter()
            .filter(|threshold| threshold.failed)
            .map(|threshold| &threshold.expr[..])
            .collect();
        assert_eq!(fallen, ["p99>98us"]);
        assert_eq!(merged.verdict, Verdict::Fail);
    }
}
