//! What a run answers: the JSON document `ecoloop.load/1`, field for field.
//!
//! A quantity without data is `null`, never zero.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::super::error::{ErrorName, Phase};

/// The schema that is written, and the only one that is read.
pub const SCHEMA: &str = "ecoloop.load/1";

/// What a run did and saw, or several that were merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: String,
    /// The version of this crate.
    pub version: String,
    /// Names this run among all. That of merged runs is theirs, joined by `+`.
    pub run_id: String,
    /// When the first connect began.
    #[serde(with = "rfc3339")]
    pub start: SystemTime,
    /// How the run came to its end.
    pub ended: Ended,
    /// Whether it passed.
    pub verdict: Verdict,
    /// What the connections did.
    pub mode: Mode,
    /// Whether messages waited for answers.
    pub r#loop: Loop,
    /// The settings that make runs comparable.
    pub config: Settings,
    /// Seconds that each phase took.
    pub phases_s: Phases,
    /// Connections asked for, and what became of them.
    pub connections: Connections,
    /// The outcomes of [`Mode::Hold`].
    pub hold: Option<Hold>,
    /// Messages of the measured window.
    pub messages: Messages,
    /// Messages verified in a second of the measured window.
    pub rate_per_s: Option<f64>,
    /// From when a message was due to its answer.
    pub latency_us: Summary,
    /// From the connect to the end of the handshake.
    pub connect_us: Summary,
    /// From when a message was due to when the loop noticed.
    pub lateness_us: Summary,
    /// Whether the messages went out when they were due.
    pub schedule: ScheduleReport,
    /// Failures, by phase and name.
    pub errors: Vec<ErrorCount>,
    /// What was wrong with the bytes that came back.
    pub verify: Verify,
    /// What the generator itself needed.
    pub generator: Generator,
    /// What the server's process needed, if it was named.
    pub server: Option<ServerSide>,
    /// What the kernel counted.
    pub sockstat: Option<Sockstat>,
    /// The run by the second.
    pub timeline: Vec<Sample>,
    /// What had to hold, and whether it did.
    pub thresholds: Vec<ThresholdResult>,
}

impl Report {
    /// Reads a report as [`Report::to_json`] writes it.
    ///
    /// # Errors
    ///
    /// - `InvalidData`: it is not JSON, not of this schema, or a field is missing or of another type.
    pub fn from_json(text: &str) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| invalid(format!("not a JSON document: {error}")))?;
        // Before the fields: those of another schema would fail as missing, which says nothing.
        match value.get("schema").and_then(serde_json::Value::as_str) {
            Some(SCHEMA) => {}
            Some(schema) => return Err(invalid(format!("its schema is {schema:?}, not {SCHEMA:?}"))),
            None => return Err(invalid(format!("not a report: it names no schema, such as {SCHEMA:?}"))),
        }
        serde_json::from_value(value).map_err(|error| invalid(format!("not a report: {error}")))
    }

    /// The report as one line of JSON.
    ///
    /// # Errors
    ///
    /// - `start` is before 1970 or after 9999, which RFC 3339 cannot say.
    pub fn to_json(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }
}

/// How a run came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It did all that was asked.
    Complete,
    /// It was told to end before.
    Interrupted,
}

/// Whether a run passed. The worst of several is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No threshold failed.
    Pass,
    /// A threshold failed.
    Fail,
    /// The run was interrupted.
    Interrupted,
}

/// What the connections do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Messages go and come back for the measured window.
    Echo,
    /// One message at the opening, silence for the window, and one at the end.
    Hold,
    /// Connect, some messages, close, and again.
    Churn,
}

/// Whether messages wait for answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loop {
    /// The next message goes when an answer comes.
    Closed,
    /// Each message is due at its time, whatever the answers do.
    Open,
}

/// The settings that make runs comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Settings {
    /// The servers.
    pub targets: Vec<SocketAddr>,
    /// The addresses connected from; none where the system chose.
    pub sources: Vec<IpAddr>,
    /// Bytes of a message.
    pub size: u64,
    /// Messages in flight on a connection at most; `None`: unlimited.
    pub pipeline: Option<u32>,
    /// Messages due in a second, over all connections, in an open loop.
    #[serde(serialize_with = "number")]
    pub rate: Option<f64>,
    /// What the bytes were made of; `None` where merged runs differ.
    pub seed: Option<u64>,
    /// Words of the user.
    pub labels: BTreeMap<String, String>,
}

/// Seconds that each phase took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Phases {
    /// Until the last connection was open and verified, or given up.
    pub connect: f64,
    /// Traffic that is not measured.
    pub warmup: f64,
    /// The measured window.
    pub measure: f64,
    /// The wait for the last answers.
    pub drain: f64,
    /// Until the last connection was closed.
    pub close: f64,
}

/// Connections asked for, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Connections {
    /// Asked for at once.
    pub requested: u64,
    /// The handshake was done.
    pub established: u64,
    /// At least one message came back right.
    pub verified: u64,
    /// Verified, and still open when the measurement ended.
    pub held: u64,
    /// All that were opened in the run.
    pub opened_total: u64,
}

/// The outcomes of [`Mode::Hold`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hold {
    /// The last message came back.
    pub alive: u64,
    /// It came back after more than a second.
    pub late: u64,
    /// The connection was reset.
    pub reset: u64,
    /// The other end closed.
    pub closed: u64,
    /// Nothing came.
    pub silent: u64,
}

/// Messages of the measured window: `due` is the sum of `unsent`, `verified`, `unanswered` and `failed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Messages {
    /// Whose time came.
    pub due: u64,
    /// That never went out.
    pub unsent: u64,
    /// That came back right.
    pub verified: u64,
    /// That did not come back in time.
    pub unanswered: u64,
    /// That came back wrong, or whose connection failed.
    pub failed: u64,
    /// That waited because the pipeline was reached or the socket was full.
    pub deferred: u64,
}

/// A distribution, in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Summary {
    /// Values recorded.
    pub count: u64,
    /// Values among them that are the age of what was never answered.
    pub censored: u64,
    /// Values among them beyond the hour that a histogram spans, recorded as an hour.
    pub clipped: u64,
    /// The arithmetic mean.
    pub mean: Option<f64>,
    /// The median.
    pub p50: Option<u64>,
    /// The 90th percentile.
    pub p90: Option<u64>,
    /// The 99th percentile.
    pub p99: Option<u64>,
    /// The 99.9th percentile.
    pub p99_9: Option<u64>,
    /// The 99.99th percentile.
    pub p99_99: Option<u64>,
    /// The largest value.
    pub max: Option<u64>,
    /// The whole histogram: `HdrHistogram` V2, compressed, in base64.
    pub hdr_v2: Option<String>,
}

/// Whether the messages went out when they were due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ScheduleReport {
    /// False over 1 ms of lateness at the 99th percentile, or with over 1 % unsent; `None` in a closed loop.
    pub kept: Option<bool>,
}

/// How often something failed in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ErrorCount {
    /// What was being done.
    pub phase: Phase,
    /// What went wrong.
    pub error: ErrorName,
    /// The system's name of it, where the system said so.
    pub errno: Option<String>,
    /// How often.
    pub count: u64,
}

/// What was wrong with the bytes that came back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verify {
    /// Bytes that were not what was sent.
    pub wrong_bytes: u64,
    /// Bytes that provably did not come.
    pub lost_bytes: u64,
    /// Bytes beyond what was sent.
    pub extra_bytes: u64,
    /// Connections with a finding.
    pub connections_failed: u64,
    /// The first finding of each of these connections.
    pub findings: Vec<Finding>,
}

/// Where the bytes of a connection first were wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// How they were wrong.
    pub kind: FindingKind,
    /// The connection's number in its run.
    pub connection: u64,
    /// Its own address.
    pub local: Option<SocketAddr>,
    /// The server's address.
    pub peer: SocketAddr,
    /// Bytes of the answer before the place.
    pub offset: u64,
}

/// How the bytes of a connection were wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// Bits changed.
    Flipped,
    /// Bytes missing, with later ones in their place.
    Lost,
    /// Bytes that had come before.
    Duplicated,
    /// Bytes in another order.
    Reordered,
    /// Bytes of another connection.
    Foreign,
    /// Bytes beyond what was sent.
    Extra,
    /// The end of the stream before all had come back.
    Truncated,
    /// Bytes that nothing explains.
    Unknown,
}

impl FindingKind {
    /// The name as it stands in the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flipped => "flipped",
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Foreign => "foreign",
            Self::Extra => "extra",
            Self::Truncated => "truncated",
            Self::Unknown => "unknown",
        }
    }
}

/// What the generator itself needed, in the measured window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Generator {
    /// CPU time a verified message.
    pub cpu_us_per_message: Option<f64>,
    /// CPU time, in percent of one core; of merged runs the sum. `None` for a window of less than 0.1 s.
    pub cpu_percent: Option<f64>,
    /// The 99th percentile of what one turn of the loop took.
    pub turn_us_p99: Option<u64>,
    /// Whether it needed over 90 % of a core, so that it may be itself what was measured.
    pub saturated: Option<bool>,
}

/// What the server's process needed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerSide {
    /// The process.
    pub pid: u32,
    /// CPU time a verified message, in the measured window.
    pub cpu_us_per_message: Option<f64>,
    /// Memory a held connection, against before connecting; `None` under 1,000 connections.
    pub rss_bytes_per_connection: Option<u64>,
}

/// What the kernel counted (`/proc/net/sockstat`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sockstat {
    /// Of [`Sockstat::tcp_inuse`], `namespace`: both ends are counted where both are in this network namespace, and everybody
    /// else's.
    pub scope: String,
    /// TCP sockets in use.
    pub tcp_inuse: u64,
    /// Pages of memory that TCP's buffers hold, in all namespaces.
    pub tcp_mem_pages: u64,
}

/// A second of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sample {
    /// Which second.
    pub t: u64,
    /// Messages verified a second.
    pub rate: u64,
    /// Connections open at its end.
    pub open: u64,
    /// Errors in it.
    pub errors: u64,
    /// The median latency, in microseconds.
    pub p50: Option<u64>,
    /// The 99th percentile of latency, in microseconds.
    pub p99: Option<u64>,
}

/// What had to hold, and whether it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThresholdResult {
    /// What makes the run fail.
    pub expr: String,
    /// Whether it stands unasked.
    pub default: bool,
    /// What was measured; times in microseconds.
    #[serde(serialize_with = "number")]
    pub value: Option<f64>,
    /// Whether the run failed by it.
    pub failed: bool,
}

/// Writes a whole number as one: 2000, not 2000.0.
#[expect(clippy::ref_option, reason = "the signature that serde asks for")]
fn number<S: serde::Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    match *value {
        #[expect(clippy::cast_possible_truncation, reason = "whole, and within the range that a float counts exactly")]
        Some(value) if value.fract() == 0.0 && value.abs() < 9e15 => serializer.serialize_i64(value as i64),
        value => value.serialize(serializer),
    }
}

/// A time as RFC 3339 with milliseconds, in UTC.
mod rfc3339 {
    use std::fmt::Write;
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        // Not `to_string`, which panics at a time that RFC 3339 cannot say.
        let mut text = String::new();
        write!(text, "{}", humantime::format_rfc3339_millis(*time)).map_err(ser::Error::custom)?;
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(|error| de::Error::custom(format!("{text:?} is no time: {error}")))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use super::*;

    /// The contract's example, made consistent.
    pub(in crate::load) const EXAMPLE: &str = include_str!("../../../tests/report.json");

    pub(in crate::load) fn example() -> Report {
        Report::from_json(EXAMPLE).unwrap()
    }

    #[test]
    fn every_field_is_written_as_the_contract_shows_it_and_in_its_order() {
        let mut report = example();
        report.errors.push(ErrorCount {
            phase: Phase::Connect,
            error: ErrorName::Refused,
            errno: Some("ECONNREFUSED".to_owned()),
            count: 1,
        });
        report.verify.findings.push(Finding {
            kind: FindingKind::Flipped,
            connection: 7,
            local: Some("127.0.0.1:40312".parse().unwrap()),
            peer: "127.0.0.1:5000".parse().unwrap(),
            offset: 5000,
        });
        let expected: String = EXAMPLE
            .lines()
            .map(str::trim)
            .collect::<String>()
            .replace(
                r#""errors":[],"#,
                r#""errors":[{"phase":"connect","error":"refused","errno":"ECONNREFUSED","count":1}],"#,
            )
            .replace(
                r#""findings":[]"#,
                r#""findings":[{"kind":"flipped","connection":7,"local":"127.0.0.1:40312","peer":"127.0.0.1:5000","offset":5000}]"#,
            );
        let json = report.to_json().unwrap();
        assert_eq!(json, expected);
        assert_eq!(Report::from_json(&json).unwrap(), report);
    }

    #[test]
    fn the_names_are_those_of_the_report() {
        let phases =
            [Phase::Resolve, Phase::Bind, Phase::Connect, Phase::Send, Phase::Receive, Phase::Verify, Phase::Close];
        for phase in phases {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
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
    fn what_is_no_report_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "not a JSON document: EOF while parsing a value at line 1 column 0"),
            ("{}", r#"not a report: it names no schema, such as "ecoloop.load/1""#),
            (r#"{"schema":"ecoloop.load/2"}"#, r#"its schema is "ecoloop.load/2", not "ecoloop.load/1""#),
            (r#"{"schema":"ecoloop.load/1"}"#, "not a report: missing field `version`"),
        ] {
            assert_eq!(Report::from_json(text).unwrap_err().to_string(), reason, "{text}");
        }
        let broken = EXAMPLE.replace("08:00:00.250Z", "noon");
        let error = Report::from_json(&broken).unwrap_err().to_string();
        assert!(error.starts_with("not a report: \"2026-11-22Tnoon\" is no time:"), "{error}");
    }
}
