//! What `load` prints on standard error: warnings before a run, and advice after it.

use std::time::{Duration, SystemTime};

use ecoloop::host::{Plan, Purpose, warnings};
use ecoloop::load::report::{ErrorName, Phase, Report, Verdict};
use ecoloop::load::{Config, count_pairs, unpaired};

use super::descriptors;
use super::format::{abbreviate, plural, time};
use super::hints::{DESCRIPTOR_HINT, hint_of_address};
use super::{print_error, table};

/// Descriptors that a run opens in addition to its connections: its poll, its timer and its waker.
const RUN_DESCRIPTORS: u64 = 3;

/// Warns about sources that reach no target, and targets that no source reaches.
pub(super) fn warn_of_unpaired(config: &Config) {
    let (sources, targets) = unpaired(&config.sources, &config.targets);
    if !sources.is_empty() {
        print_error(&format!("no target can be reached from source {}: not used", abbreviate(&sources)));
    }
    for target in targets {
        print_error(&format!("no source can reach target {}: nothing connects to it", abbreviate(target)));
    }
}

/// Warns that a run was to start before now.
pub(super) fn warn_of_late_start(start_at: Option<SystemTime>) {
    if let Some(late) = start_at.and_then(|time| SystemTime::now().duration_since(time).ok()) {
        let late = humantime::format_duration(Duration::from_secs(late.as_secs().max(1))).to_string();
        let late = late.split(' ').take(2).collect::<Vec<_>>().join(" ");
        print_error(&format!("--start-at is {late} in the past: the run starts now"));
    }
}

/// Prints why a run failed, or why a search could not end, for a run without a table.
pub(super) fn print_failure(report: &Report) {
    if report.verdict == Verdict::Fail || table::is_limited_by_generator(report) {
        print_error(&table::verdict(report));
    }
}

/// Warns about system limits below what the run needs, whose connections `processes` share.
pub(super) fn warn_of_limits(config: &Config, processes: u32, descriptor_limit: Option<u64>) {
    let (unused, _) = unpaired(&config.sources, &config.targets);
    let used = config.sources.iter().filter(|source| !unused.contains(source));
    let mut plan = Plan::new(config.connections, Purpose::Load);
    plan.sources = used.map(|source| source.ip()).collect();
    plan.targets = config.targets.concat();
    plan.pairs = count_pairs(&config.sources, &config.targets).unwrap_or(1);
    plan.processes = processes;
    plan.other_descriptors = descriptor_limit.and_then(descriptors::count_open).map(|open| open + RUN_DESCRIPTORS);
    for warning in warnings(&plan) {
        print_error(&warning);
    }
}

/// Prints what restricts the figures, and a remedy for each error that has one.
pub(super) fn advise(report: &Report) {
    if report.schedule.kept == Some(false) {
        let lateness = report.lateness_us.p99.map(|lateness| format!(" p99 {}", time(lateness))).unwrap_or_default();
        print_error(&format!(
            "the schedule was not kept: lateness{lateness}, over 1 ms and a tenth of the latency; give the generator a free \
             core, lower --rate, or start it with chrt --fifo 10"
        ));
    }
    if report.generator.saturated == Some(true) {
        print_error(
            "this generator was saturated: it ran or waited for a CPU over 90 % of the time, so the figures may be its own limit, not the server's",
        );
    }
    for error in &report.errors {
        let remedy = match error.error {
            ErrorName::Other if error.errno.as_deref() == Some("ENOENT") => {
                "there is no such file; start the server first, or check the path"
            }
            ErrorName::Other if error.errno.as_deref() == Some("EACCES") => {
                "a client needs the permission to write to the file of the Unix socket (--unix-mode of serve), and to search its directories"
            }
            ErrorName::NoDescriptors => DESCRIPTOR_HINT,
            ErrorName::NoPorts if report.config.sources.is_empty() => {
                "name this machine's own address with --source, whose ports in TIME_WAIT can be used again; or add targets, or \
                 widen net.ipv4.ip_local_port_range"
            }
            ErrorName::NoPorts => "add --source addresses or targets, or widen net.ipv4.ip_local_port_range",
            ErrorName::NotLocal => match report.config.sources[..] {
                [only] => hint_of_address(only.ip()),
                _ => "use --source addresses that ip address lists, or add them with ip address add",
            },
            ErrorName::NoMemory => "check net.ipv4.tcp_mem and the free memory",
            ErrorName::Refused => "no server listens there, or a firewall rejects the connection",
            ErrorName::Timeout if error.phase == Phase::Connect => {
                "the server's backlog is full, or packets to or from it are lost"
            }
            _ => continue,
        };
        let times = plural(error.count, "time", "times");
        let name = match (error.error, &error.errno) {
            (ErrorName::Other, Some(errno)) => errno,
            (name, _) => name.name(),
        };
        print_error(&format!("{} {name} {times}: {remedy}", error.phase.name()));
    }
}
