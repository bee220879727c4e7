//! What the ranks of a run say to each other: one JSON document a line.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use ecoloop::load::report::Messages;
use ecoloop::load::{Config, Rank, Report};
use humantime::format_duration;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use socket2::{SockRef, TcpKeepalive};

/// Maximum bytes of a greeting, which strangers can send too.
pub(super) const GREETING_MAX: usize = 16 << 10;
/// Maximum bytes of a report.
pub(super) const REPORT_MAX: usize = 64 << 20;
/// Probes without a reply after which a machine is lost.
const KEEPALIVE_PROBES: u32 = 3;

/// What a rank says first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// The version of ecoloop.
    pub(super) ecoloop: String,
    pub(super) rank: Rank,
    /// The settings in which all ranks must agree.
    #[serde(default)]
    pub(super) settings: BTreeMap<String, String>,
}

/// What a rank says to rank 0 after its greeting.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromRank {
    /// Its connections are established.
    Ready,
    /// Its progress, if rank 0 wants it.
    Progress(Counts),
    /// It has ended.
    Report(Box<Report>),
    /// It cannot run, for this reason.
    Failed(String),
}

/// The progress of a rank, as far as that of several adds up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) open: u64,
    pub(super) opened: u64,
    pub(super) messages: Messages,
    pub(super) rate: Option<u64>,
    pub(super) errors: u64,
}

/// What rank 0 says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FromRankZero {
    Welcome {
        wants_progress: bool,
    },
    /// The rank does not belong to this run, for this reason.
    Refused(String),
    /// Begin the warm-up.
    Start,
    /// End the run, for this reason, and report.
    End {
        reason: String,
        is_fault: bool,
    },
    /// Every result is written.
    Done,
}

/// Returns the settings in which all ranks must agree.
pub(super) fn settings(config: &Config) -> BTreeMap<String, String> {
    let stages: Vec<_> = config.stages.iter().map(ToString::to_string).collect();
    [
        ("--mode", json!(config.mode)),
        ("--connections", json!(config.connections)),
        ("--size", config.size_max.map_or(json!(config.size), |most| json!(format!("{}..{most}", config.size)))),
        ("--pipeline", json!(config.pipeline)),
        ("--rate", if config.stages.is_empty() { json!(config.rate) } else { json!(stages.join(",")) }),
        ("--arrivals", json!(config.arrivals)),
        ("--duration", json!(format_duration(config.duration).to_string())),
        ("--messages-per-connection", json!(config.messages_per_connection)),
        ("--warmup", json!(format_duration(config.warmup).to_string())),
        ("--seed", json!(config.seed)),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    .into()
}

/// A connection between rank 0 and another rank.
#[derive(Debug)]
pub(super) struct Line {
    reader: BufReader<TcpStream>,
}

impl Line {
    /// Has the kernel find out within `timeout` that the other machine is gone, without a packet of this program.
    pub(super) fn new(stream: TcpStream, timeout: Duration) -> io::Result<Self> {
        let part = (timeout / (KEEPALIVE_PROBES + 1)).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(part).with_interval(part).with_retries(KEEPALIVE_PROBES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    pub(super) fn writer(&self) -> io::Result<TcpStream> {
        self.reader.get_ref().try_clone()
    }

    /// Reads one message of at most `max_bytes`, until `deadline` if there is one. Returns `None` at the end of the stream.
    pub(super) fn read<T: DeserializeOwned>(
        &mut self,
        max_bytes: usize,
        deadline: Option<Instant>,
    ) -> io::Result<Option<T>> {
        let Some(line) = self.read_line(max_bytes, deadline)? else { return Ok(None) };
        let invalid = |_| {
            let begin = String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned();
            io::Error::new(io::ErrorKind::InvalidData, format!("it said {begin:?}, which is no message of ecoloop"))
        };
        serde_json::from_slice(&line).map(Some).map_err(invalid)
    }

    fn read_line(&mut self, max_bytes: usize, deadline: Option<Instant>) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        loop {
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it says nothing"));
            }
            self.reader.get_ref().set_read_timeout(timeout)?;
            let data = match self.reader.fill_buf() {
                Ok(data) => data,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            if data.is_empty() {
                return Ok(None);
            }
            let end = data.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(data.len(), |end| end + 1);
            line.extend_from_slice(&data[..used]);
            self.reader.consume(used);
            if line.len() > max_bytes {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it said over {max_bytes} bytes")));
            }
            if end.is_some() {
                return Ok(Some(line));
            }
        }
    }
}

/// Writes one message.
pub(super) fn write<T: Serialize>(mut stream: &TcpStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}
