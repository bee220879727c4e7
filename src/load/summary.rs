//! A run's end: what it has counted, as the report says it.

use std::time::{Duration, SystemTime};

use super::engine::Engine;
use super::progress::Step;
use super::report::{
    self, Connections, Ended, ErrorCount, Generator, Loop, Messages, Phases, Report, SCHEMA, Schedule, ServerSide,
    Sockstat, Verdict,
};
use super::sources::errno_name;
use super::thresholds::evaluate;
use crate::host::{Process, SocketStatistics};

/// Lateness at the 99th percentile, in microseconds, and percent unsent, from which on a schedule was not kept.
const LATENESS_US_MOST: u64 = 1000;
/// From so many connections on, a process's memory says something of one.
const CONNECTIONS_TO_WEIGH: u64 = 1000;
/// Seconds from which on CPU time is a share of them: a kernel accounts for it by slices of milliseconds.
const SECONDS_TO_WEIGH: f64 = 0.1;
/// Percent of a core from which on the generator may be itself what is measured.
const SATURATED_PERCENT: f64 = 90.0;

/// What was read of the machine for a window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readings {
    pub(super) cpu: CpuTimes,
    /// Bytes by which the server has grown since before the first connect.
    pub(super) memory: Option<u64>,
    pub(super) sockets: Option<SocketStatistics>,
}

/// CPU time of both sides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuTimes {
    own: Option<Duration>,
    server: Option<Duration>,
}

impl CpuTimes {
    pub(super) fn now(own: &Process, server: Option<&Process>) -> Self {
        Self { own: own.cpu_time(), server: server.and_then(Process::cpu_time) }
    }

    pub(super) fn since(self, before: Self) -> Self {
        let since = |now: Option<Duration>, before: Option<Duration>| Some(now?.saturating_sub(before?));
        Self { own: since(self.own, before.own), server: since(self.server, before.server) }
    }
}

/// Puts together what the engine has counted, and judges it.
pub(super) fn report(engine: &Engine, start: SystemTime, readings: Readings) -> Report {
    let Readings { cpu, memory, sockets } = readings;
    let (config, totals, counts) = (&engine.config, &engine.driver.totals, engine.driver.connector.counts);
    let phases = phases(engine);
    let lateness = totals.lateness.summary();
    let messages = totals.messages;
    let verified = totals.verified_in_window;
    let of_each = |time: Duration| (verified > 0).then(|| time.as_secs_f64() * 1e6 / float(verified));
    let cpu_percent =
        cpu.own.filter(|_| phases.measure >= SECONDS_TO_WEIGH).map(|time| time.as_secs_f64() * 100.0 / phases.measure);
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        run_id: run_id(start),
        start,
        ended: if engine.interrupted { Ended::Interrupted } else { Ended::Complete },
        verdict: Verdict::Pass,
        mode: config.mode,
        r#loop: if config.is_open_loop() { Loop::Open } else { Loop::Closed },
        config: report::Config {
            targets: config.targets.clone(),
            sources: config.sources.clone(),
            size: config.size as u64,
            pipeline: config.pipeline.or(if config.is_open_loop() { None } else { Some(1) }),
            rate: config.rate,
            seed: Some(config.seed),
            labels: config.labels.clone(),
        },
        phases_s: phases,
        connections: Connections {
            requested: config.connections.into(),
            established: counts.established,
            verified: counts.verified,
            held: counts.held,
            opened_total: counts.opened,
        },
        hold: engine.driver.workload.outcomes(&counts),
        messages,
        rate_per_s: (phases.measure > 0.0).then(|| float(verified) / phases.measure),
        latency_us: totals.latency.summary(),
        connect_us: totals.connect.summary(),
        schedule: Schedule { kept: lateness.p99.map(|p99| p99 <= LATENESS_US_MOST && is_mostly_sent(messages)) },
        lateness_us: lateness,
        errors: totals
            .errors()
            .map(|((phase, error, errno), count)| ErrorCount {
                phase,
                error,
                errno: errno.map(|errno| errno_name(errno).into_owned()),
                count,
            })
            .collect(),
        verify: totals.verify.clone(),
        generator: Generator {
            cpu_us_per_message: cpu.own.and_then(of_each),
            cpu_percent,
            turn_us_p99: engine.turn.quantile(0.99),
            saturated: cpu_percent.map(|percent| percent > SATURATED_PERCENT),
        },
        server: config.server_pid.map(|pid| ServerSide {
            pid,
            cpu_us_per_message: cpu.server.and_then(of_each),
            rss_bytes_per_connection: memory
                .filter(|_| counts.verified >= CONNECTIONS_TO_WEIGH)
                .map(|bytes| bytes.div_ceil(counts.verified)),
        }),
        sockstat: sockets.map(|sockets| Sockstat {
            scope: "namespace".to_owned(),
            tcp_inuse: sockets.tcp_inuse,
            tcp_mem_pages: sockets.tcp_mem_pages,
        }),
        timeline: engine.timeline.samples().to_vec(),
        thresholds: Vec::new(),
    };
    evaluate(&mut report, &config.thresholds);
    if engine.interrupted {
        report.verdict = Verdict::Interrupted;
    }
    report
}

fn phases(engine: &Engine) -> Phases {
    let seconds = |from: Step, to: Step| {
        let begun = engine.begun[from as usize];
        Duration::from_nanos(engine.begun[to as usize].saturating_sub(begun)).as_secs_f64()
    };
    Phases {
        connect: seconds(Step::Connect, Step::Warmup),
        warmup: seconds(Step::Warmup, Step::Measure),
        measure: seconds(Step::Measure, Step::Drain),
        drain: seconds(Step::Drain, Step::Idle),
        close: seconds(Step::Close, Step::Done),
    }
}

/// At most one in a hundred has stayed unsent.
fn is_mostly_sent(messages: Messages) -> bool {
    messages.unsent * 100 <= messages.due
}

/// Tells runs apart: when it began, and by which process.
fn run_id(start: SystemTime) -> String {
    let nanoseconds = start.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("{nanoseconds:x}-{:x}", std::process::id())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run are below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}
