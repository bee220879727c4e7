//! Every setting of a run, its default and unit beside it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::thresholds::Threshold;

/// Connections whose bytes can be told apart in one run.
pub(super) const CONNECTIONS_MOST: u64 = 1 << 26;
/// Messages in flight at once in a closed loop, which keeps 8 bytes for each.
const IN_FLIGHT_MOST: u64 = 1 << 27;
/// Of messages or connects in a second: one in each nanosecond, which is how fine a run counts time.
const RATE_MOST: f64 = 1e9;

/// Every setting of a run.
///
/// Start from [`Config::new`] and assign.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The servers; several are dealt with the sources.
    pub targets: Vec<SocketAddr>,
    /// Targets by a name that did not resolve. 0. With any, nothing is connected: the report has an error for each.
    pub unresolved: u32,
    /// The addresses to connect from, with ports chosen here. None: the system chooses.
    pub sources: Vec<IpAddr>,
    /// Connections at once. 1.
    pub connections: u32,
    /// What the connections do. [`Mode::Echo`].
    pub mode: Mode,
    /// Connects begun in a second. As fast as it goes.
    pub connect_rate: Option<f64>,
    /// Connects outstanding at most, and at the end closes. 1000.
    pub max_connecting: u32,
    /// From the connect to the end of the handshake. 5 s.
    pub connect_timeout: Duration,
    /// From when a message was due to its answer. 10 s.
    pub timeout: Duration,
    /// Bytes of a message. 64.
    pub size: usize,
    /// Messages in flight on a connection. 1 in a closed loop, unlimited in an open one.
    pub pipeline: Option<u32>,
    /// Messages due in a second, over all connections. Present: an open loop.
    pub rate: Option<f64>,
    /// The measured window. 10 s. Without effect in an echo of [`Config::messages_per_connection`].
    pub duration: Duration,
    /// Messages of each connection, which then ends. In churn 1.
    pub messages_per_connection: Option<u64>,
    /// Traffic before the measured window. None.
    pub warmup: Duration,
    /// How a connection is closed. [`Close::Fin`].
    pub close: Close,
    /// When to begin, so that generators on several machines begin together. At once.
    pub start_at: Option<SystemTime>,
    /// What the bytes are made of: two runs of one seed send the same. 1.
    pub seed: u64,
    /// Words that stand in the report.
    pub labels: BTreeMap<String, String>,
    /// The server's process, where it runs on this machine: its CPU and memory are reported.
    pub server_pid: Option<u32>,
    /// Bytes of each receive buffer in the kernel. Left to the system.
    pub recv_buffer: Option<usize>,
    /// Bytes of each send buffer in the kernel. Left to the system.
    pub send_buffer: Option<usize>,
    /// Sends small messages at once (`TCP_NODELAY`). On.
    pub nodelay: bool,
    /// What else must hold for the run to succeed.
    pub thresholds: Vec<Threshold>,
}

impl Config {
    /// The defaults, against `targets`.
    #[must_use]
    pub fn new(targets: Vec<SocketAddr>) -> Self {
        Self {
            targets,
            unresolved: 0,
            sources: Vec::new(),
            connections: 1,
            mode: Mode::Echo,
            connect_rate: None,
            max_connecting: 1000,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            size: 64,
            pipeline: None,
            rate: None,
            duration: Duration::from_secs(10),
            messages_per_connection: None,
            warmup: Duration::ZERO,
            close: Close::Fin,
            start_at: None,
            seed: 1,
            labels: BTreeMap::new(),
            server_pid: None,
            recv_buffer: None,
            send_buffer: None,
            nodelay: true,
            thresholds: Vec::new(),
        }
    }

    /// Messages wait for nobody.
    pub(super) fn is_open_loop(&self) -> bool {
        self.rate.is_some() && self.mode != Mode::Hold
    }

    /// Returns the maximum number of messages in flight on a connection.
    pub(super) fn in_flight_max(&self) -> u64 {
        self.pipeline.map_or(if self.is_open_loop() { u64::MAX } else { 1 }, u64::from)
    }

    /// Refuses what cannot work, before [`run`](super::run) does.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a setting is out of its range, or two do not go together.
    pub fn validate(&self) -> io::Result<()> {
        let possible = |rate: Option<f64>| rate.is_none_or(|rate| rate > 0.0 && rate <= RATE_MOST);
        let in_flight = u64::from(self.connections) * u64::from(self.pipeline.unwrap_or(1));
        let reason = if self.connections == 0 || self.max_connecting == 0 {
            "there must be at least one connection"
        } else if u64::from(self.connections) > CONNECTIONS_MOST {
            "a run tells apart 2^26 connections"
        } else if self.size == 0 || self.pipeline == Some(0) || self.messages_per_connection == Some(0) {
            "a message, its pipeline and its number must be at least 1"
        } else if !self.is_open_loop() && in_flight > IN_FLIGHT_MOST {
            "a closed loop has at most 2^27 messages in flight, connections times pipeline"
        } else if !possible(self.rate) || !possible(self.connect_rate) {
            "a rate must be above zero, and at most 1000M a second"
        } else if self.duration.is_zero() || self.connect_timeout.is_zero() || self.timeout.is_zero() {
            "the window and the timeouts must be above zero"
        } else if self.mode == Mode::Churn && self.rate.is_some() {
            "churn has no rate of messages: it has a rate of connects"
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }
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

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// With FIN, and a read to the other's.
    Fin,
    /// With RST.
    Rst,
}
