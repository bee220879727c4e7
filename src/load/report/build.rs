//! Builds the report of a run from what was measured.

use std::time::{Duration, SystemTime};

use super::document::{
    Connections, Ended, ErrorCount, Generator, Hold, Loop, Messages, Mode, Phases, Report, SCHEMA, Sample,
    ScheduleReport, ServerSide, Settings, Sockstat, SourceFigures, TargetFigures, Verdict,
};
use super::faults::FaultFigures;
use super::findings::Verify;
use super::histogram::Histogram;
use super::origin::Origin;
use super::outages::Outages;
use super::stages::StageFigures;
use super::thresholds::{Threshold, evaluate};
use crate::host::{Process, SocketStatistics, ThreadTime};
use crate::load::rank::Rank;

/// At the 99th percentile, the schedule is kept up to this lateness, in microseconds.
const LATENESS_US_MAX: u64 = 1000;
/// The schedule is also kept if the latency is at least this multiple of the lateness.
const LATENCY_PER_LATENESS_MIN: u64 = 10;
/// Below this number of connections, the memory of the process itself hides that of a connection.
const CONNECTIONS_MIN_FOR_MEMORY: u64 = 1000;
/// Below this number of seconds, CPU time is too coarse for a percentage: the kernel counts time slices of milliseconds.
const SECONDS_MIN_FOR_CPU: f64 = 0.1;
/// The generator is saturated if its thread ran or waited for a CPU for more than this percentage of the window.
const SATURATED_PERCENT: f64 = 90.0;

/// What was measured in a window.
pub(crate) struct Measured<'a> {
    /// Time of the first connect.
    pub(crate) start: SystemTime,
    pub(crate) ended: Ended,
    pub(crate) mode: Mode,
    pub(crate) r#loop: Loop,
    pub(crate) settings: Settings,
    pub(crate) rank: Option<Rank>,
    pub(crate) origin: Origin,
    pub(crate) phases_s: Phases,
    pub(crate) connections: Connections,
    pub(crate) hold: Option<Hold>,
    pub(crate) outages: Option<Outages>,
    pub(crate) faults: Vec<FaultFigures>,
    pub(crate) messages: Messages,
    /// Verified replies that arrived in the window.
    pub(crate) arrived_in_window: u64,
    pub(crate) latency: &'a Histogram,
    pub(crate) connect: &'a Histogram,
    pub(crate) lateness: &'a Histogram,
    pub(crate) turn: &'a Histogram,
    /// In nanoseconds; `None` without a window.
    pub(crate) longest_gap: Option<u64>,
    pub(crate) stages: Vec<StageFigures>,
    pub(crate) targets: Vec<TargetFigures>,
    pub(crate) sources: Vec<SourceFigures>,
    pub(crate) errors: Vec<ErrorCount>,
    pub(crate) verify: Verify,
    pub(crate) server_pid: Option<u32>,
    pub(crate) readings: Readings,
    pub(crate) timeline: Vec<Sample>,
}

/// What was read from the host for a window.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readings {
    pub(crate) cpu: CpuTimes,
    /// Growth of the server's resident memory since before the first connect, in bytes, and the connections that were open then.
    pub(crate) memory: Option<(u64, u64)>,
    pub(crate) sockets: Option<SocketStatistics>,
}

/// CPU time of the generator's thread and of the server's process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTimes {
    own: Option<ThreadTime>,
    server: Option<Duration>,
}

impl CpuTimes {
    /// Reads them on the generator's thread.
    pub(crate) fn now(server: Option<&Process>) -> Self {
        Self { own: ThreadTime::now(), server: server.and_then(Process::cpu_time) }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            // 0 means that the kernel does not count.
            own: self.own.zip(before.own).map(|(now, before)| now.since(before)).filter(|own| !own.run.is_zero()),
            server: self.server.zip(before.server).map(|(now, before)| now.saturating_sub(before)),
        }
    }
}

/// Builds the report, and evaluates the default thresholds and those `requested`.
pub(crate) fn build(measured: Measured<'_>, requested: &[Threshold]) -> Report {
    let Readings { cpu, memory, sockets } = measured.readings;
    let (arrived, seconds) = (measured.arrived_in_window, measured.phases_s.measure);
    let per_message = |time: Duration| (arrived > 0).then(|| time.as_secs_f64() * 1e6 / float(arrived));
    let percent = |time: Duration| time.as_secs_f64() * 100.0 / seconds;
    let own = cpu.own.filter(|_| seconds >= SECONDS_MIN_FOR_CPU);
    let (latency, lateness) = (measured.latency.summary(), measured.lateness.summary());
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: run_id(measured.start),
        start: measured.start,
        ended: measured.ended,
        verdict: Verdict::Pass,
        mode: measured.mode,
        r#loop: measured.r#loop,
        config: measured.settings,
        rank: measured.rank,
        origin: Some(measured.origin),
        phases_s: measured.phases_s,
        connections: measured.connections,
        hold: measured.hold,
        outages: measured.outages,
        faults: measured.faults,
        messages: measured.messages,
        rate_per_s: (seconds > 0.0).then(|| float(arrived) / seconds),
        connect_us: measured.connect.summary(),
        schedule: ScheduleReport { kept: lateness.p99.map(|lateness| is_kept(lateness, latency.p99)) },
        latency_us: latency,
        lateness_us: lateness,
        stages: measured.stages,
        targets: measured.targets,
        sources: measured.sources,
        errors: measured.errors,
        verify: measured.verify,
        generator: Generator {
            cpu_us_per_message: cpu.own.and_then(|own| per_message(own.run)),
            cpu_percent: own.map(|own| percent(own.run)),
            turn_us_p99: measured.turn.quantile(0.99),
            longest_gap_us: measured.longest_gap.map(|gap| gap.div_ceil(1000)),
            saturated: own.map(|own| percent(own.run + own.wait) > SATURATED_PERCENT),
        },
        server: measured.server_pid.map(|pid| ServerSide {
            pid,
            cpu_us_per_message: cpu.server.and_then(per_message),
            rss_bytes_per_connection: memory
                .filter(|&(_, open)| open >= CONNECTIONS_MIN_FOR_MEMORY && measured.mode != Mode::Churn)
                .map(|(bytes, open)| bytes.div_ceil(open)),
        }),
        sockstat: sockets.map(|sockets| Sockstat {
            scope: "namespace".to_owned(),
            tcp_inuse: sockets.tcp_inuse,
            tcp_mem_pages: sockets.tcp_mem_pages,
        }),
        search: None,
        timeline: measured.timeline,
        thresholds: Vec::new(),
    };
    evaluate(&mut report, requested);
    report
}

/// Returns whether a schedule is kept whose lateness and latency at the 99th percentile are these, in microseconds.
fn is_kept(lateness: u64, latency: Option<u64>) -> bool {
    lateness <= LATENESS_US_MAX || latency.is_some_and(|latency| latency >= lateness * LATENCY_PER_LATENESS_MIN)
}

/// Returns the identity of a run: when it began, and its process.
fn run_id(start: SystemTime) -> String {
    let nanoseconds = start.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{nanoseconds:x}-{:x}", std::process::id())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::super::document::tests::example;
    use super::*;
    use crate::load::config::Config;
    use crate::socket_address::AnyAddress;

    const S: Duration = Duration::from_secs(1);

    /// Builds the report of a window of 10 s, in which `arrived` replies came, after `change`.
    fn report(arrived: u64, cpu: CpuTimes, change: impl FnOnce(&mut Measured<'_>)) -> Report {
        let (example, empty) = (example(), Histogram::new());
        let readings = Readings { cpu, memory: Some((5001, 1000)), sockets: None };
        let mut measured = Measured {
            start: example.start,
            ended: example.ended,
            mode: example.mode,
            r#loop: example.r#loop,
            settings: example.config,
            rank: None,
            origin: Origin::of(&Config::new(Vec::<AnyAddress>::new())),
            phases_s: Phases { measure: 10.0, ..example.phases_s },
            connections: example.connections,
            hold: None,
            outages: None,
            faults: Vec::new(),
            messages: example.messages,
            arrived_in_window: arrived,
            latency: &empty,
            connect: &empty,
            lateness: &empty,
            turn: &empty,
            longest_gap: None,
            stages: Vec::new(),
            targets: Vec::new(),
            sources: Vec::new(),
            errors: Vec::new(),
            verify: example.verify,
            server_pid: Some(7),
            readings,
            timeline: Vec::new(),
        };
        change(&mut measured);
        build(measured, &[])
    }

    /// Returns CPU times of `run` and `wait` seconds, and of 5 s of the server.
    fn cpu_times(run: u32, wait: u32) -> CpuTimes {
        CpuTimes { own: Some(ThreadTime { run: S * run, wait: S * wait }), server: Some(S * 5) }
    }

    #[test]
    fn cpu_times_are_those_of_the_thread_and_the_process_in_the_window() {
        let process = Process::open(std::process::id()).ok();
        let now = CpuTimes::now(process.as_ref());
        assert_eq!(now.own.is_some(), ThreadTime::now().is_some());
        assert_eq!(now.server.is_some(), process.is_some_and(|process| process.cpu_time().is_some()));
        assert!(CpuTimes::now(None).server.is_none());

        let earlier = CpuTimes { server: Some(S), ..cpu_times(2, 1) };
        let CpuTimes { own, server } = cpu_times(5, 3).since(earlier);
        assert_eq!((own, server), (Some(ThreadTime { run: S * 3, wait: S * 2 }), Some(S * 4)));
        // A thread that has not run at all is one that the kernel does not count.
        assert_eq!(earlier.since(earlier).own, None);
    }

    #[test]
    fn cpu_is_reported_per_reply_and_in_percent_of_the_window() {
        let of_replies = report(1000, cpu_times(2, 0), |_| ());
        assert_eq!(of_replies.rate_per_s, Some(100.0));
        assert_eq!(
            (of_replies.generator.cpu_us_per_message, of_replies.generator.cpu_percent),
            (Some(2000.0), Some(20.0))
        );
        assert_eq!(of_replies.server.and_then(|server| server.cpu_us_per_message), Some(5000.0));
        // Without a reply, or without a window, there is nothing to divide by.
        let without_replies = report(0, cpu_times(2, 0), |_| ());
        assert_eq!((without_replies.rate_per_s, without_replies.generator.cpu_us_per_message), (Some(0.0), None));
        let without_window = report(0, cpu_times(2, 0), |measured| measured.phases_s.measure = 0.0);
        assert_eq!((without_window.rate_per_s, without_window.generator.cpu_percent), (None, None));
    }

    #[test]
    fn a_generator_is_saturated_above_nine_tenths_of_the_window() {
        for (run, wait, saturated) in [(1, 0, false), (5, 4, false), (5, 5, true), (10, 0, true), (0, 10, true)] {
            let report = report(1, cpu_times(run, wait), |_| ());
            assert_eq!(report.generator.saturated, Some(saturated), "{run} s and {wait} s");
        }
    }

    #[test]
    fn memory_per_connection_is_of_many_that_are_all_open() {
        let bytes = |change: fn(&mut Measured<'_>)| {
            report(1, CpuTimes::default(), change).server.and_then(|server| server.rss_bytes_per_connection)
        };
        // Rounded up.
        assert_eq!(bytes(|_| ()), Some(6));
        assert_eq!(bytes(|measured| measured.mode = Mode::Hold), Some(6));
        assert_eq!(bytes(|measured| measured.mode = Mode::Churn), None);
        assert_eq!(bytes(|measured| measured.readings.memory = Some((5001, 999))), None);
    }

    #[test]
    fn a_schedule_is_kept_unless_lateness_is_over_a_millisecond_and_a_tenth_of_the_latency() {
        for (lateness, latency, kept) in [
            (1000, Some(1), true),
            (1001, Some(10_009), false),
            (1001, Some(10_010), true),
            (5000, Some(50_000), true),
            (5000, Some(6000), false),
            (5000, None, false),
        ] {
            assert_eq!(is_kept(lateness, latency), kept, "{lateness} of {latency:?}");
        }
    }
}
