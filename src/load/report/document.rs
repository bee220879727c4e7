//! The JSON document `ecoloop.load/1`, field by field. A quantity without data is `null`, never 0.

use std::collections::BTreeMap;
use std::io;
use std::ops::AddAssign;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::faults::FaultFigures;
use super::fields::{labels, number, rfc3339};
use super::findings::Verify;
use super::origin::Origin;
use super::outages::Outages;
use super::search::SearchReport;
use super::stages::StageFigures;
use super::summary::Summary;
use crate::address::ScopedIp;
use crate::load::arrivals::ArrivalProcess;
use crate::load::error::{ErrorName, Phase};
use crate::load::proxy_protocol::ProxyVersion;
use crate::load::rank::Rank;
use crate::socket_address::AnyAddress;

/// The schema of the documents that are written and read.
pub const SCHEMA: &str = "ecoloop.load/1";

/// The field that identifies a [`Report`].
#[derive(Deserialize)]
struct Header {
    schema: Option<String>,
}

/// The results of a run, or of several merged runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: String,
    /// The version of this crate.
    pub version: String,
    /// Identity of the run; of merged runs theirs, joined by `+`.
    pub run_id: String,
    /// Time of the first connect. A time before 1970 is written as 1970.
    #[serde(with = "rfc3339")]
    pub start: SystemTime,
    /// How the run ended.
    pub ended: Ended,
    /// Whether the run passed.
    pub verdict: Verdict,
    /// What the connections did.
    pub mode: Mode,
    /// Whether messages waited for replies.
    pub r#loop: Loop,
    /// The settings that make runs comparable.
    pub config: Settings,
    /// Which of several generators made the report; `None` for the only one, and if merged.
    pub rank: Option<Rank>,
    /// How the report was made; `None` if merged.
    pub origin: Option<Origin>,
    /// Duration of each phase, in seconds.
    pub phases_s: Phases,
    /// Number of connections, by how far they got.
    pub connections: Connections,
    /// Outcomes of [`Mode::Hold`].
    pub hold: Option<Hold>,
    /// The outages of connections that were opened anew; `None` if the run does not reconnect.
    #[serde(default)]
    pub outages: Option<Outages>,
    /// The connections with faults, of each rule, in their order.
    #[serde(default)]
    pub faults: Vec<FaultFigures>,
    /// Number of messages of the measured window, by outcome.
    pub messages: Messages,
    /// Verified replies that arrived in the measured window, to messages of the warm-up too, per second. In [`Mode::Echo`], without those
    /// to the first message of a connection, which only verifies it.
    pub rate_per_s: Option<f64>,
    /// Time from when a message was due to its reply, of every message due; in [`Mode::Hold`] of the last messages alone.
    pub latency_us: Summary,
    /// Time from connect(2) to the end of the handshake; of a paced connect, from when it was due.
    pub connect_us: Summary,
    /// Time from when a message was due to the return of the write(2) that took its first byte, or to when it was found to wait because
    /// the pipeline or the socket was full. In [`Mode::Churn`], from when a connection was due to the return of connect(2), or to when
    /// it was found after the window's end.
    pub lateness_us: Summary,
    /// Whether messages were sent when they were due.
    pub schedule: ScheduleReport,
    /// The figures of each stage, if the rate has any.
    #[serde(default)]
    pub stages: Vec<StageFigures>,
    /// The figures of each target, if there are several, up to 100.
    #[serde(default)]
    pub targets: Vec<TargetFigures>,
    /// The figures of each source, if there are several, up to 100.
    #[serde(default)]
    pub sources: Vec<SourceFigures>,
    /// Number of errors, by phase and name.
    pub errors: Vec<ErrorCount>,
    /// Corruption of the bytes that came back.
    pub verify: Verify,
    /// Resources that the load generator used.
    pub generator: Generator,
    /// Resources that the server's process used, if its process id was given.
    pub server: Option<ServerSide>,
    /// Sockets counted by the kernel.
    pub sockstat: Option<Sockstat>,
    /// What a search for the highest rate found; the other fields are those of its last window.
    #[serde(default)]
    pub search: Option<SearchReport>,
    /// A sample for each second of the measured window.
    pub timeline: Vec<Sample>,
    /// The thresholds, and whether each failed.
    pub thresholds: Vec<ThresholdResult>,
}

impl Report {
    /// Parses a report that [`Report::to_json`] wrote.
    ///
    /// # Errors
    ///
    /// - `InvalidData`: `text` is not JSON, is not of this schema, or a field is missing or of another type.
    pub fn from_json(text: &str) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        // Before the other fields: another schema would fail with a missing field, which misleads. Unknown fields are skipped and not
        // kept, so that the memory is in proportion to the text.
        let header: Header = serde_json::from_str(text).map_err(|error| match error.classify() {
            Category::Data => invalid(format!("not a report: {error}")),
            _ => invalid(format!("not a JSON document: {error}")),
        })?;
        match header.schema.as_deref() {
            Some(SCHEMA) => {}
            Some(schema) => return Err(invalid(format!("schema is {schema:?}, expected {SCHEMA:?}"))),
            None => return Err(invalid("not a report: no field \"schema\"".to_owned())),
        }
        serde_json::from_str(text).map_err(|error| invalid(format!("not a report: {error}")))
    }

    /// Returns how messages follow each other. Documents of before do not tell, and are of even ones.
    pub(in crate::load) fn arrivals(&self) -> Option<ArrivalProcess> {
        (self.r#loop == Loop::Open).then(|| self.config.arrivals.unwrap_or_default())
    }

    /// Returns how many messages [`Settings::rate`] asks for at each of its times: in [`Mode::Churn`] the messages of a connection,
    /// and else 1.
    #[must_use]
    pub fn messages_per_arrival(&self) -> f64 {
        let messages = self.config.messages_per_connection.filter(|_| self.mode == Mode::Churn);
        #[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
        messages.map_or(1.0, |messages| messages as f64)
    }

    /// Returns the report as one line of JSON. It has [`start`](Self::start) in milliseconds, so the report that
    /// [`from_json`](Self::from_json) returns may differ.
    ///
    /// # Errors
    ///
    /// - `start` is after 9999, which RFC 3339 cannot express.
    pub fn to_json(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All that was requested was done.
    Complete,
    /// It was interrupted before.
    Interrupted,
}

/// Whether a run passed, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No threshold failed.
    Pass,
    /// No threshold failed, but the schedule was not kept or the generator was saturated.
    Inconclusive,
    /// A threshold failed.
    Fail,
    /// The run was interrupted, and no threshold was evaluated.
    Interrupted,
    /// The run has not ended; or it was killed, if this is what it left.
    Running,
}

/// What each connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Mode {
    /// Exchanges messages for the measured window.
    Echo,
    /// Sends one message at its opening, none in the measured window, and one after it.
    Hold,
    /// Sends its messages and closes, and another connection replaces it.
    Churn,
}

impl Mode {
    /// Returns the name that the command line and the report have for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Hold => "hold",
            Self::Churn => "churn",
        }
    }
}

/// Whether messages wait for replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loop {
    /// The next message is sent when a reply arrives.
    Closed,
    /// Each message is sent at its scheduled time, regardless of replies.
    Open,
}

/// The settings that make runs comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Settings {
    /// The servers: of each the address that accepted, or every address that was tried.
    pub targets: Vec<AnyAddress>,
    /// The source addresses that were used; empty if the system chose.
    pub sources: Vec<ScopedIp>,
    /// Message size in bytes; the smallest one if sizes differ.
    pub size: u64,
    /// The largest size, if sizes are uniform from [`Settings::size`] to it.
    #[serde(default)]
    pub size_max: Option<u64>,
    /// Maximum messages in flight per connection; `None` is unlimited.
    pub pipeline: Option<u32>,
    /// Messages due per second, over all connections, in an open loop; in [`Mode::Churn`], connections, and in [`Mode::Hold`], last
    /// messages. Of [`Report::stages`], the mean.
    #[serde(serialize_with = "number")]
    pub rate: Option<f64>,
    /// How messages follow each other in an open loop; in [`Mode::Churn`], connections.
    #[serde(default)]
    pub arrivals: Option<ArrivalProcess>,
    /// Messages of each connection, after which it ends; `None` without a limit, or if merged runs differ.
    #[serde(default)]
    pub messages_per_connection: Option<u64>,
    /// Version of the PROXY header that each connection began with; `None` without one, or if merged runs differ.
    pub proxy_protocol: Option<ProxyVersion>,
    /// Seed of the payload, of sizes and of arrivals; `None` if merged runs differ.
    pub seed: Option<u64>,
    /// Labels from the command line: at most 65,536 are read.
    #[serde(deserialize_with = "labels")]
    pub labels: BTreeMap<String, String>,
}

/// Duration of each phase, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Phases {
    /// Until every connection is verified or has failed.
    pub connect: f64,
    /// Traffic before the measured window.
    pub warmup: f64,
    /// The measured window.
    pub measure: f64,
    /// Until the last reply.
    pub drain: f64,
    /// Until the last connection is closed.
    pub close: f64,
}

/// Number of connections, by how far they got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connections {
    /// Requested to be open at the same time.
    pub requested: u64,
    /// The handshake completed.
    pub established: u64,
    /// At least one message came back intact.
    pub verified: u64,
    /// Verified, and still open when the measurement ended.
    pub held: u64,
    /// Connects that began or could not begin, established or not.
    pub opened_total: u64,
}

/// Outcomes of [`Mode::Hold`], in connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hold {
    /// The last message came back.
    pub alive: u64,
    /// It came back after more than 1 s.
    pub late: u64,
    /// The connection was reset.
    pub reset: u64,
    /// The server closed the connection.
    pub closed: u64,
    /// No reply came before the timeout.
    pub silent: u64,
    /// The run was interrupted before the reply to its last message.
    pub unasked: u64,
    /// It failed otherwise: with wrong bytes, or another error. 0 in a report of an older version.
    #[serde(default)]
    pub failed: u64,
    /// How long nothing had arrived on those reset or closed, in seconds; `None` if there are none.
    pub closed_after_s: Option<ClosedAfter>,
    /// Latency of the first messages; [`Report::latency_us`] is that of the last ones.
    pub first_us: Summary,
}

/// The times from the last bytes that arrived on a connection to its reset or FIN, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ClosedAfter {
    /// The shortest time.
    pub min: f64,
    /// The median; `None` if merged.
    pub p50: Option<f64>,
    /// The longest time.
    pub max: f64,
}

/// Number of messages of the measured window. `due` is the sum of `unsent`, `verified`, `unanswered` and `failed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Messages {
    /// Their scheduled time came.
    pub due: u64,
    /// Never sent.
    pub unsent: u64,
    /// Came back intact.
    pub verified: u64,
    /// Sent, and no full reply came before the timeout, an error such as a reset, or an interrupt.
    pub unanswered: u64,
    /// Sent, and the connection ended with a finding or the server's FIN.
    pub failed: u64,
    /// Waited because the pipeline or the socket was full, or in [`Mode::Churn`] the maximum of connections open. They are also counted by
    /// outcome.
    pub deferred: u64,
}

impl AddAssign for Messages {
    /// Adds each count. A sum above `u64::MAX` is `u64::MAX`.
    fn add_assign(&mut self, other: Self) {
        let Self { due, unsent, verified, unanswered, failed, deferred } = other;
        self.due = self.due.saturating_add(due);
        self.unsent = self.unsent.saturating_add(unsent);
        self.verified = self.verified.saturating_add(verified);
        self.unanswered = self.unanswered.saturating_add(unanswered);
        self.failed = self.failed.saturating_add(failed);
        self.deferred = self.deferred.saturating_add(deferred);
    }
}

/// The figures of one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TargetFigures {
    /// The server's address.
    pub target: AnyAddress,
    /// Those of its connections.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The figures of one source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceFigures {
    /// The address that connections came from.
    pub source: ScopedIp,
    /// Those of its connections.
    #[serde(flatten)]
    pub figures: Figures,
}

/// The figures of a part of the connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Figures {
    /// Verified connections.
    pub connections: u64,
    /// Verified messages of the measured window.
    pub messages: u64,
    /// Errors of these connections.
    pub errors: u64,
    /// The median latency, in microseconds.
    pub p50: Option<u64>,
    /// The 99th percentile of latency, in microseconds.
    pub p99: Option<u64>,
    /// Latency of the messages that a connection took; what is unsent because its connection had ended before is not in it.
    pub latency_us: Summary,
}

/// Whether messages were sent when they were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScheduleReport {
    /// False if lateness at the 99th percentile is over 1 ms and over a tenth of the latency; `None` if nothing was sent on a
    /// schedule.
    pub kept: Option<bool>,
}

/// Number of errors of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorCount {
    /// What the connection was doing.
    pub phase: Phase,
    /// What failed.
    pub error: ErrorName,
    /// The name of its errno, if it has one.
    pub errno: Option<String>,
    /// Number of errors.
    pub count: u64,
    /// When the first one occurred, in seconds since the start of the run.
    pub first_s: f64,
    /// Number of errors by target. A connect that could not begin has none.
    pub targets: Vec<TargetCount>,
}

/// Number of errors of one kind on connections to one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TargetCount {
    /// The server's address.
    pub target: AnyAddress,
    /// Number of errors.
    pub count: u64,
}

/// Resources that the load generator used, in the measured window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Generator {
    /// CPU time of its thread per verified reply, in microseconds.
    pub cpu_us_per_message: Option<f64>,
    /// CPU time of its thread, in percent of one core; the sum if merged. `None` if the window is shorter than 0.1 s.
    pub cpu_percent: Option<f64>,
    /// The 99th percentile of a turn of the loop in the measured window, from one return of the poll to its next call, in microseconds.
    pub turn_us_p99: Option<u64>,
    /// The longest time in which the generator was late at the poll, in microseconds: a turn, the making of a report meanwhile, or a wait
    /// that ended after its timeout because the process was stopped or had no CPU; the largest if merged.
    pub longest_gap_us: Option<u64>,
    /// Whether its thread ran or waited for a CPU for over 90 % of the window, so that it may be the bottleneck. It waits while other
    /// threads have the CPU, and while its control group has used up its quota.
    pub saturated: Option<bool>,
}

/// Resources that the server's process used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerSide {
    /// Its process id.
    pub pid: u32,
    /// CPU time per verified reply of the measured window, in microseconds.
    pub cpu_us_per_message: Option<f64>,
    /// Growth of its resident memory since before the first connect, per connection; `None` under 1,000 connections, and in
    /// [`Mode::Churn`], whose connections are never all open.
    pub rss_bytes_per_connection: Option<u64>,
}

/// Sockets counted by the kernel (`/proc/net/sockstat`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sockstat {
    /// Scope of [`Sockstat::tcp_inuse`]: `namespace` counts every socket of this network namespace, both ends of a connection
    /// within it.
    pub scope: String,
    /// Number of TCP sockets in use.
    pub tcp_inuse: u64,
    /// Pages of memory in TCP buffers, in all namespaces.
    pub tcp_mem_pages: u64,
}

/// A second of the measured window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// End of the second, in seconds since the start of the window.
    pub t: u64,
    /// Verified replies that arrived in it, per second; the last second may be cut short.
    pub rate: u64,
    /// Connections open at its end.
    pub open: u64,
    /// Number of errors in it.
    pub errors: u64,
    /// The median latency, in microseconds.
    pub p50: Option<u64>,
    /// The 99th percentile of latency, in microseconds.
    pub p99: Option<u64>,
}

/// The result of a threshold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThresholdResult {
    /// The condition that makes the run fail.
    pub expr: String,
    /// Whether it is a default threshold.
    pub default: bool,
    /// The measured value: a duration in microseconds, or a percentage if `expr` has one.
    #[serde(serialize_with = "number")]
    pub value: Option<f64>,
    /// Whether the condition is met, or there is no value.
    pub failed: bool,
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use super::super::fields::LABELS_MAX;
    use super::super::findings::{Excerpt, Finding, FindingKind};
    use super::*;

    /// A consistent example.
    pub(in crate::load) const EXAMPLE: &str = include_str!("../../../tests/report.json");

    pub(in crate::load) fn example() -> Report {
        Report::from_json(EXAMPLE).unwrap()
    }

    #[test]
    fn every_field_is_written_in_the_order_of_the_example() {
        let mut report = example();
        report.errors.push(ErrorCount {
            phase: Phase::Connect,
            error: ErrorName::Refused,
            errno: Some("ECONNREFUSED".to_owned()),
            count: 1,
            first_s: 0.5,
            targets: vec![TargetCount { target: "127.0.0.1:5000".parse().unwrap(), count: 1 }],
        });
        report.verify.findings.push(Finding {
            kind: FindingKind::Flipped,
            connection: 7,
            local: Some("127.0.0.1:40312".parse().unwrap()),
            peer: "127.0.0.1:5000".parse().unwrap(),
            offset: 5000,
            at_s: 1.5,
            expected: Excerpt::new(&[0x00, b'a', 0xff]),
            received: Excerpt::new(b"2 0"),
        });
        let expected: String = EXAMPLE
            .lines()
            .map(str::trim)
            .collect::<String>()
            .replace(
                r#""errors":[],"#,
                r#""errors":[{"phase":"connect","error":"refused","errno":"ECONNREFUSED","count":1,"first_s":0.5,"targets":[{"target":"127.0.0.1:5000","count":1}]}],"#,
            )
            .replace(
                r#""findings":[]"#,
                r#""findings":[{"kind":"flipped","connection":7,"local":"127.0.0.1:40312","peer":"127.0.0.1:5000","offset":5000,"at_s":1.5,"expected":{"hex":"0061ff","text":".a."},"received":{"hex":"322030","text":"2 0"}}]"#,
            );
        let json = report.to_json().unwrap();
        assert_eq!(json, expected);
        assert_eq!(Report::from_json(&json).unwrap(), report);
    }

    #[test]
    fn a_rate_keeps_its_value_with_a_fraction_and_beyond_the_integers() {
        for rate in [0.5, 1999.75, 1e20] {
            let mut report = example();
            report.config.rate = Some(rate);
            assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap().config.rate, Some(rate));
        }
    }

    #[test]
    fn a_clock_before_1970_is_written_as_1970() {
        let mut report = example();
        report.start = SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1);
        assert!(report.to_json().unwrap().contains(r#""start":"1970-01-01T00:00:00.000Z""#));
    }

    #[test]
    fn names_are_those_of_the_report() {
        let phases =
            [Phase::Resolve, Phase::Bind, Phase::Connect, Phase::Send, Phase::Receive, Phase::Verify, Phase::Close];
        for phase in phases {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
        for mode in [Mode::Echo, Mode::Hold, Mode::Churn] {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
        let names = "refused reset timeout unreachable not_local no_ports no_descriptors no_memory closed_early \
                     self_connect bad_bytes other";
        for name in names.split_whitespace() {
            let error: ErrorName = serde_json::from_value(name.into()).unwrap();
            assert_eq!(error.name(), name);
        }
        for name in "flipped lost duplicated reordered foreign extra truncated unknown".split(' ') {
            let kind: FindingKind = serde_json::from_value(name.into()).unwrap();
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn more_labels_than_a_command_line_has_are_rejected() {
        let with_labels = |count: usize| {
            let labels: Vec<_> = (0..count).map(|index| format!(r#""{index}":"v""#)).collect();
            let json = EXAMPLE.replace(r#"{"k":"v"}"#, &format!("{{{}}}", labels.join(",")));
            assert!(json.len() > EXAMPLE.len());
            Report::from_json(&json)
        };
        assert_eq!(with_labels(LABELS_MAX).unwrap().config.labels.len(), LABELS_MAX);
        let error = with_labels(LABELS_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("invalid length 65537, expected at most 65536 labels"), "{error}");
    }

    #[test]
    fn an_invalid_report_is_rejected_with_the_reason() {
        for (text, reason) in [
            ("", "not a JSON document: EOF while parsing a value at line 1 column 0"),
            ("{}", r#"not a report: no field "schema""#),
            (r#"{"schema":"ecoloop.load/2"}"#, r#"schema is "ecoloop.load/2", expected "ecoloop.load/1""#),
            (r#"{"schema":"ecoloop.load/1"}"#, "not a report: missing field `version` at line 1 column 27"),
            (r#"{"schema":7}"#, "not a report: invalid type: integer `7`, expected a string at line 1 column 11"),
        ] {
            assert_eq!(Report::from_json(text).unwrap_err().to_string(), reason, "{text}");
        }
        let broken = EXAMPLE.replace("08:00:00.250Z", "noon");
        let error = Report::from_json(&broken).unwrap_err().to_string();
        assert!(error.starts_with("not a report: \"2026-11-22Tnoon\" is not a time:"), "{error}");
    }
}
