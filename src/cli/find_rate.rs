//! `ecoloop load --find-rate`: searches for the highest rate at which a goal holds.

use std::time::Duration;
use std::{io, mem};

use clap::Args;
use ecoloop::load::report::{LimitedBy, Probe, Report, SearchReport};
use ecoloop::load::{self, Config, Interrupt, ProgressCell, Search, Threshold};

use super::format::{NO_DATA, number, round_time, strip_control, time};
use super::load_options::LoadOptions;
use super::output;
use super::values::percentage;

const HEADING: &str = "Search";
pub(super) const FIND_RATE: &str = "goal";
/// The figures of a window.
pub(super) const HEADS: [&str; 5] = ["rate", "answers", "p50", "p99", "window"];

// The subcommand that flattens these arguments has a group of this name already.
#[derive(Args)]
#[group(skip)]
pub(super) struct Arguments {
    /// Find the highest rate of -r LOW..HIGH with EXPR, such as p99<5ms
    #[arg(long = "find-rate", id = FIND_RATE, help_heading = HEADING, value_name = "EXPR")]
    goal: Vec<Threshold>,

    /// Width of the interval in which the search ends
    #[arg(long, help_heading = HEADING, value_name = "PERCENT", default_value = "5%", value_parser = percentage, requires = FIND_RATE)]
    tolerance: f64,

    /// Length of a window; three of twice the length confirm
    #[arg(long, help_heading = HEADING, value_name = "DURATION", default_value = "5s", value_parser = super::values::timeout, requires = FIND_RATE)]
    window: Duration,
}

impl Arguments {
    pub(super) fn is_search(&self) -> bool {
        !self.goal.is_empty()
    }

    pub(super) fn goal(&self) -> &[Threshold] {
        &self.goal
    }

    /// Returns a usage error that the parser cannot see.
    pub(super) fn conflict(&self, load: &LoadOptions) -> Option<String> {
        if !self.is_search() {
            let needs = "--rate LOW..HIGH needs --find-rate";
            return load.rate_range().is_some().then(|| needs.to_owned());
        }
        if load.rate_range().is_none() {
            return Some("--find-rate needs --rate LOW..HIGH".to_owned());
        }
        load.not_searchable().map(|option| format!("--find-rate and {option} cannot be combined"))
    }

    /// Returns the search, if there is one.
    pub(super) fn search(&self, load: &LoadOptions) -> Option<Search> {
        let (low, high) = load.rate_range().filter(|_| self.is_search())?;
        let mut search = Search::new(self.goal.clone(), low, high);
        (search.tolerance, search.window) = (self.tolerance, self.window);
        Some(search)
    }
}

/// Searches, and prints each window if `prints` is set.
pub(super) fn run(
    config: Config,
    search: &Search,
    interrupt: &Interrupt,
    progress: &ProgressCell,
    prints: bool,
) -> io::Result<Report> {
    let mut is_first = true;
    let goal: Vec<_> = search.goal.iter().map(ToString::to_string).collect();
    load::find_rate(config, search, interrupt, progress, |probe| {
        let head = if mem::take(&mut is_first) { heading() } else { String::new() };
        if prints {
            // An error is that of the table too, at the end.
            let _ = output::print((head + &line(probe, &goal)).as_bytes());
        }
    })
}

fn heading() -> String {
    let [rate, answers, p50, p99, window] = HEADS;
    format!("{rate:>12}{answers:>12}{p50:>10}{p99:>10}{window:>10}\n")
}

/// Returns a window as a line.
fn line(probe: &Probe, goal: &[String]) -> String {
    let [rate, answers, p50, p99, window] = cells(probe);
    format!("{rate:>12}{answers:>12}{p50:>10}{p99:>10}{window:>10}  {}\n", outcome(probe, goal))
}

/// Returns the figures of a window, as [`HEADS`] names them.
pub(super) fn cells(probe: &Probe) -> [String; HEADS.len()] {
    let rate = |rate: Option<f64>| rate.map_or(NO_DATA.to_owned(), |rate| format!("{}/s", number(rate)));
    let value = |value: Option<u64>| value.map_or(NO_DATA.to_owned(), time);
    let window = round_time((probe.seconds * 100.0).round() * 1e4);
    [rate(Some(probe.rate)), rate(probe.rate_per_s), value(probe.p50_us), value(probe.p99_us), window]
}

/// Returns whether a window passed, and why not: which conditions of the goal it missed, and which default thresholds failed.
pub(super) fn outcome(probe: &Probe, goal: &[String]) -> String {
    match probe {
        Probe { schedule_kept: false, .. } => "does not count: the generator was too slow".to_owned(),
        Probe { passed: true, confirming: true, .. } => "confirmed".to_owned(),
        Probe { passed: true, .. } => "passed".to_owned(),
        Probe { failed, .. } => {
            let (missed, failed): (Vec<_>, Vec<_>) =
                failed.iter().cloned().partition(|condition| goal.contains(condition));
            let parts = [("missed ", missed), ("failed: ", failed)].into_iter().filter(|(_, list)| !list.is_empty());
            let parts = parts.map(|(word, list)| format!("{word}{}", strip_control(&list.join(", "))));
            parts.collect::<Vec<_>>().join("; ")
        }
    }
}

/// Returns whether the generator was fast enough in any window.
pub(super) fn has_counted(search: &SearchReport) -> bool {
    search.probes.iter().any(|probe| probe.schedule_kept)
}

/// Returns the result of a search.
pub(super) fn result(search: &SearchReport) -> String {
    let goal = strip_control(&search.goal.join(" and "));
    if search.server_gone {
        let when = search.probes.last().map(|probe| format!(" after the window at {}/s", number(probe.rate)));
        let when = when.unwrap_or_default();
        return format!("no rate with {goal}; THE SERVER IS GONE: no connection could be opened{when}");
    }
    let found = match search.found_rate {
        Some(rate) => format!("{}/s, the highest rate with {goal}", number(rate)),
        None if !has_counted(search) && search.limited_by == Some(LimitedBy::Generator) => {
            "no rate, because no window counted".to_owned()
        }
        None => format!("no rate with {goal}"),
    };
    let limit = match search.limited_by {
        Some(LimitedBy::Server) => "limited by the server",
        Some(LimitedBy::Generator) => "LIMITED BY THE GENERATOR: the server may take more",
        Some(LimitedBy::Range) => "limited by the range of --rate",
        None => "interrupted before the end of the search",
    };
    format!("{found}; {limit}")
}
