//! The settings of a run, each with its default and unit.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, SystemTime};

use super::arrivals::ArrivalProcess;
use super::faulted::Faults;
use super::profile::{RateStage, mean_rate};
use super::proxy_protocol::ProxyVersion;
use super::rank::Rank;
use super::report::{Mode, Threshold, check_stages};
use super::sizes::Sizes;
use super::sources::unpaired;
use crate::address::ScopedIp;
use crate::fault::{Fault, Kind};
use crate::socket_address::AnyAddress;

/// Maximum number of connections, far above what the ports and the memory of a machine allow.
const CONNECTIONS_MAX: u64 = 1 << 26;
/// Maximum number of bytes of a message, so that no position in a stream overflows.
const SIZE_MAX: usize = 1 << 30;
/// Maximum number of messages in flight, except in echo with a rate: the others keep 8 bytes for each.
const IN_FLIGHT_MAX: u64 = 1 << 27;
/// Maximum rate of messages or connects: one a nanosecond, the resolution of a run's clock.
const RATE_MAX: f64 = 1e9;
/// The rate of the last messages of [`Mode::Hold`], unless one is configured.
const RATE_OF_LAST_MESSAGES: f64 = 10_000.0;
/// Maximum rate of a Poisson process: the generator draws every event of all ranks.
const POISSON_RATE_MAX: f64 = 1e7;
/// Maximum number of stages: each has figures, which take 380 kB.
const STAGES_MAX: usize = 100;
/// The stages last at most 2^53 nanoseconds, about a hundred days.
const STAGES_SECONDS_MAX: f64 = 9e6;

/// The settings of a run.
///
/// Start from [`Config::new`] and assign.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The servers, each with its addresses, which are tried in order until one accepts. Connections rotate over all source/target
    /// pairs.
    pub targets: Vec<Vec<AnyAddress>>,
    /// Number of targets whose name did not resolve. 0. If there are any, nothing is connected, and the report has an error for each.
    pub unresolved: u32,
    /// Addresses to connect from; the run chooses their ports. Empty: the system chooses address and port. One that reaches no
    /// target is not used. Not with a Unix socket among the targets.
    pub sources: Vec<ScopedIp>,
    /// Number of open connections. 1.
    pub connections: u32,
    /// What each connection does. [`Mode::Echo`].
    pub mode: Mode,
    /// Connects a second. `None`: no limit. Not in [`Mode::Churn`], whose connections [`Config::rate`] paces.
    pub connect_rate: Option<f64>,
    /// Maximum number of connects in progress, and of closes in progress. 1000.
    pub max_connecting: u32,
    /// Timeout of a connect, until the handshake is complete. 5 s.
    pub connect_timeout: Duration,
    /// Timeout of a reply, from when the message was due. 10 s.
    pub timeout: Duration,
    /// Bytes of a message, at most 1 GiB. 64.
    pub size: usize,
    /// Bytes of the largest message, at most 1 GiB: sizes are uniform from [`Config::size`] to this, and seeded. `None`: every message has
    /// the same size.
    pub size_max: Option<usize>,
    /// Maximum number of messages in flight on a connection. `None`: no limit in [`Mode::Echo`] with a rate, else 1.
    pub pipeline: Option<u32>,
    /// Messages a second over all connections, in an open loop; in [`Mode::Churn`], connections a second. `None`: a closed loop. In
    /// [`Mode::Hold`], last messages a second; `None` is 10,000.
    pub rate: Option<f64>,
    /// Stages in which the rate changes, in place of [`Config::rate`] and [`Config::duration`]: the window is as long as they are
    /// together. Not in [`Mode::Hold`]. Empty: the rate is constant.
    pub stages: Vec<RateStage>,
    /// How messages of an open loop follow each other; in [`Mode::Churn`], connections. [`ArrivalProcess::Even`].
    pub arrivals: ArrivalProcess,
    /// Duration of the measured window. 10 s. [`Mode::Echo`] with [`Config::messages_per_connection`] ignores it.
    pub duration: Duration,
    /// Messages on each connection. `None`: no limit, and in [`Mode::Churn`] 1.
    pub messages_per_connection: Option<u64>,
    /// Opens a connection anew when it has ended, in the warm-up and the measured window, and reports the outages. Not in
    /// [`Mode::Churn`], nor with [`Config::messages_per_connection`]. Off.
    ///
    /// The first attempt begins at once, and the others 10 ms after a failed one, doubled up to 100 ms. Over all connections there is at
    /// most one attempt a millisecond after failures, [`Config::connect_rate`] in any case, and [`Config::max_connecting`] at a time.
    pub reconnect: bool,
    /// Rules by which connections misbehave: they are not measured, and the report has them apart. A rule is a
    /// [`Rate`](crate::fault::Effect::Rate), [`Stall`](crate::fault::Effect::Stall), [`Reset`](crate::fault::Effect::Reset) or
    /// [`Fin`](crate::fault::Effect::Fin), and chooses by the connection's number, the first being 1, and [`Config::seed`]. Not in
    /// [`Mode::Churn`]. Empty.
    pub faults: Vec<Fault>,
    /// Duration of the traffic before the measured window. 0.
    pub warmup: Duration,
    /// How a connection is closed. [`Close::Fin`], the only one for Unix sockets.
    pub close: Close,
    /// Begins each connection with a header of the PROXY protocol, from the connection's own address to the server's. It is no message,
    /// and the server must take it out of the stream. For a Unix socket it has no addresses. `None`.
    pub proxy_protocol: Option<ProxyVersion>,
    /// When to begin, so that generators on several machines begin together. `None`: now.
    pub start_at: Option<SystemTime>,
    /// Which of several generators this is. The connections, the rates, `max_connecting` and the sources are then those of all ranks, of
    /// which this one takes its share. `None`: the only one.
    pub rank: Option<Rank>,
    /// Seed of the payload, of sizes and of arrivals: two runs with the same seed send the same bytes. 1.
    pub seed: u64,
    /// Labels stored in the report.
    pub labels: BTreeMap<String, String>,
    /// Process ID of the server on this machine. If set, the report has its CPU time and memory.
    pub server_pid: Option<u32>,
    /// Bytes of each socket's receive buffer (`SO_RCVBUF`). `None`: the system's default.
    pub recv_buffer: Option<usize>,
    /// Bytes of each socket's send buffer (`SO_SNDBUF`). `None`: the system's default.
    pub send_buffer: Option<usize>,
    /// Sends small messages without delay (`TCP_NODELAY`), over TCP. On.
    pub nodelay: bool,
    /// Thresholds in addition to the default ones.
    pub thresholds: Vec<Threshold>,
}

impl Config {
    /// Returns the defaults, with a target at each address.
    #[must_use]
    pub fn new(targets: impl IntoIterator<Item = impl Into<AnyAddress>>) -> Self {
        Self {
            targets: targets.into_iter().map(|address| vec![address.into()]).collect(),
            unresolved: 0,
            sources: Vec::new(),
            connections: 1,
            mode: Mode::Echo,
            connect_rate: None,
            max_connecting: 1000,
            connect_timeout: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
            size: 64,
            size_max: None,
            pipeline: None,
            rate: None,
            stages: Vec::new(),
            arrivals: ArrivalProcess::Even,
            duration: Duration::from_secs(10),
            messages_per_connection: None,
            reconnect: false,
            faults: Vec::new(),
            warmup: Duration::ZERO,
            close: Close::Fin,
            proxy_protocol: None,
            start_at: None,
            rank: None,
            seed: 1,
            labels: BTreeMap::new(),
            server_pid: None,
            recv_buffer: None,
            send_buffer: None,
            nodelay: true,
            thresholds: Vec::new(),
        }
    }

    /// Returns the settings of this rank alone: its part of `connections` and `max_connecting`, its `sources`, and the label `rank`. The
    /// rates stay those of all ranks, of whose schedule each rank takes every Nth event.
    #[doc(hidden)]
    #[must_use]
    pub fn share(mut self) -> Self {
        let Some(rank) = self.rank.and_then(Rank::checked) else { return self };
        self.connections = rank.share(self.connections);
        self.max_connecting = rank.share(self.max_connecting).max(1);
        let (unused, _) = unpaired(&self.sources, &self.targets);
        let used: Vec<_> = self.sources.iter().copied().filter(|source| !unused.contains(source)).collect();
        if !used.is_empty() {
            let (index, count) = (rank.index as usize, rank.count as usize);
            // With fewer sources than ranks, several ranks share one.
            self.sources = used.iter().copied().skip(index % used.len()).step_by(count).collect();
        }
        self.labels.insert("rank".to_owned(), rank.index.to_string());
        self
    }

    /// Returns how many connections of all ranks are measured, because no rule of a fault chooses them.
    #[doc(hidden)]
    #[must_use]
    pub fn measured_connections(&self) -> u64 {
        let of_all = Self { rank: None, ..self.clone() };
        u64::from(of_all.connections) - Faults::new(&of_all).count_chosen(&of_all)
    }

    /// Returns the rank of this generator.
    pub(super) fn rank(&self) -> Rank {
        self.rank.unwrap_or(Rank::ALONE)
    }

    /// Returns this rank's part of a rate of all ranks.
    pub(super) fn share_of_rate(&self, rate: f64) -> f64 {
        rate / f64::from(self.rank().count)
    }

    /// Returns the rate of all ranks; of stages, the mean over the window.
    pub(super) fn mean_rate(&self) -> Option<f64> {
        self.rate.or_else(|| mean_rate(&self.stages))
    }

    /// Returns the rate of the last messages of [`Mode::Hold`], over all ranks.
    pub(super) fn rate_of_last_messages(&self) -> f64 {
        self.rate.unwrap_or(RATE_OF_LAST_MESSAGES)
    }

    /// Returns the duration of the measured window, unless a number of messages ends it.
    pub(super) fn window(&self) -> Duration {
        if self.stages.is_empty() { self.duration } else { self.stages.iter().map(|stage| stage.duration).sum() }
    }

    /// Returns how long the warm-up and the measured window last, or `None` if a number of messages ends the window.
    #[doc(hidden)]
    #[must_use]
    pub fn planned_time(&self) -> Option<Duration> {
        let is_timed = self.mode != Mode::Echo || self.messages_per_connection.is_none();
        is_timed.then(|| self.warmup.saturating_add(self.window()))
    }

    /// Returns whether messages, or in churn connections, are due on a schedule, whether or not replies come.
    pub(super) fn is_open_loop(&self) -> bool {
        self.mean_rate().is_some() && self.mode != Mode::Hold
    }

    /// Returns whether each message has its place in a schedule. In churn only the first one of a connection has.
    pub(super) fn is_scheduled(&self) -> bool {
        self.mean_rate().is_some() && self.mode == Mode::Echo
    }

    /// Returns the maximum number of messages in flight on a connection.
    pub(super) fn in_flight_max(&self) -> u64 {
        self.pipeline.map_or(if self.is_scheduled() { u64::MAX } else { 1 }, u64::from)
    }

    /// Returns how many due times a connection keeps: in an open loop they are computed from the schedule. `None`: as many as it has
    /// messages in flight, because those of a Poisson process are not.
    pub(super) fn due_times_max(&self) -> Option<usize> {
        match self.arrivals {
            ArrivalProcess::Poisson if self.is_scheduled() => None,
            _ if self.is_scheduled() => Some(1),
            _ => Some(usize::try_from(self.in_flight_max()).unwrap_or(usize::MAX)),
        }
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes::new(self.size as u64, self.size_max.unwrap_or(self.size) as u64, self.seed)
    }

    /// Checks the settings, as [`run`](super::run) does.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: a setting is out of its range, or two do not go together.
    pub fn validate(&self) -> io::Result<()> {
        let possible = |rate: Option<f64>| rate.is_none_or(|rate| rate > 0.0 && rate <= RATE_MAX);
        let in_flight = u64::from(self.connections) * u64::from(self.pipeline.unwrap_or(1));
        let reason = if self.rank().checked().is_none() {
            "a rank must be below the number of ranks"
        } else if self.connections == 0 || self.max_connecting == 0 {
            "connections and max_connecting must be at least 1"
        } else if self.connections < self.rank().count {
            "connections must be at least one for each rank"
        } else if u64::from(self.connections) > CONNECTIONS_MAX {
            "connections must be at most 2^26"
        } else if self.size == 0 || self.pipeline == Some(0) || self.messages_per_connection == Some(0) {
            "size, pipeline and messages_per_connection must be at least 1"
        } else if self.size.max(self.size_max.unwrap_or(0)) > SIZE_MAX {
            "size and size_max must be at most 1 GiB"
        } else if self.size_max.is_some_and(|most| most < self.size) {
            "size_max must be at least size"
        } else if !self.is_scheduled() && in_flight > IN_FLIGHT_MAX {
            "connections times pipeline must be at most 2^27 except in echo with a rate"
        } else if !possible(self.rate) || !possible(self.connect_rate) {
            "a rate must be above 0 and at most 1000M a second"
        } else if let Some(reason) = self.invalid_stages().or_else(|| self.invalid_arrivals()) {
            reason
        } else if self.duration.is_zero() || self.connect_timeout.is_zero() || self.timeout.is_zero() {
            "duration, connect_timeout and timeout must be above 0"
        } else if self.mode == Mode::Churn && self.connect_rate.is_some() {
            "connect_rate does not apply to churn: use rate"
        } else if self.reconnect && self.mode == Mode::Churn {
            "reconnect does not apply to churn, which replaces each connection that has ended"
        } else if self.reconnect && self.messages_per_connection.is_some() {
            "reconnect and messages_per_connection cannot be combined: outages are measured in a window of duration"
        } else if !self.faults.is_empty() && self.mode == Mode::Churn {
            "faults do not apply to churn, whose connections end by themselves"
        } else if let Some(reason) = self.invalid_unix() {
            reason
        } else {
            Faults::check(&self.faults).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            return self.validate_thresholds();
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
    }

    /// Returns why the settings do not go together with a Unix socket.
    fn invalid_unix(&self) -> Option<&'static str> {
        let is_reset = |fault: &Fault| fault.kind() == Kind::Reset;
        if !self.targets.iter().flatten().any(AnyAddress::is_unix) {
            None
        } else if self.close == Close::Rst {
            Some("a connection to a Unix socket cannot be closed with RST: TCP alone has it")
        } else if self.faults.iter().any(is_reset) {
            Some("the fault reset cannot be used with a Unix socket: TCP alone has RST; fin ends a connection")
        } else {
            None
        }
    }

    /// Returns why the stages are invalid.
    fn invalid_stages(&self) -> Option<&'static str> {
        let possible = |rate: f64| (0.0..=RATE_MAX).contains(&rate);
        if self.stages.is_empty() {
            None
        } else if self.mode == Mode::Hold {
            Some("stages do not apply to hold, which sends nothing in its window")
        } else if self.rate.is_some() || !self.warmup.is_zero() {
            Some("stages replace the rate and the warm-up: the first stage can be the warm-up")
        } else if self.mode == Mode::Echo && self.messages_per_connection.is_some() {
            Some("stages and messages_per_connection cannot be combined in echo: each ends the run")
        } else if self.stages.len() > STAGES_MAX {
            Some("a run has at most 100 stages")
        } else if !self.stages.iter().all(|stage| possible(stage.from) && possible(stage.to)) {
            Some("the rate of a stage must be from 0 to 1000M a second")
        } else if self.stages.iter().any(|stage| stage.duration.is_zero()) || self.mean_rate() <= Some(0.0) {
            Some("a stage must be longer than 0, and one must have a rate above 0")
        } else if self.stages.iter().map(|stage| stage.duration.as_secs_f64()).sum::<f64>() > STAGES_SECONDS_MAX {
            Some("the stages must last at most 2500 hours together")
        } else {
            None
        }
    }

    /// Returns why the arrivals are invalid.
    fn invalid_arrivals(&self) -> Option<&'static str> {
        let rates = self.rate.into_iter().chain(self.stages.iter().flat_map(|stage| [stage.from, stage.to]));
        if self.arrivals == ArrivalProcess::Even {
            None
        } else if !self.is_open_loop() {
            Some("arrivals need a rate, in echo or churn: in a closed loop a message is due when a reply arrives")
        } else if rates.fold(0.0, f64::max) > POISSON_RATE_MAX {
            Some("the rate of a Poisson process must be at most 10M a second")
        } else {
            None
        }
    }

    /// Checks that each threshold on a stage is on one that there is.
    fn validate_thresholds(&self) -> io::Result<()> {
        check_stages(&self.thresholds, self.stages.len())
    }
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// With FIN, and reads until the peer's.
    Fin,
    /// With RST.
    Rst,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_in_flight_have_no_limit_only_where_each_has_its_place_in_a_schedule() {
        for (mode, rate, is_unlimited) in [
            (Mode::Echo, Some(1.0), true),
            (Mode::Echo, None, false),
            // The rate is that of the connections.
            (Mode::Churn, Some(1.0), false),
            (Mode::Churn, None, false),
            (Mode::Hold, Some(1.0), false),
        ] {
            let mut config = Config { mode, rate, ..Config::new(Vec::<AnyAddress>::new()) };
            assert_eq!(config.in_flight_max(), if is_unlimited { u64::MAX } else { 1 }, "{mode:?} at {rate:?}");
            config.pipeline = Some(8);
            assert_eq!(config.in_flight_max(), 8);
            // Even messages have theirs in the schedule.
            assert_eq!(config.due_times_max(), Some(if is_unlimited { 1 } else { 8 }), "{mode:?} at {rate:?}");
            config.arrivals = ArrivalProcess::Poisson;
            assert_eq!(config.due_times_max(), (!is_unlimited).then_some(8), "{mode:?} at {rate:?}");
            config.arrivals = ArrivalProcess::Even;
            (config.connections, config.pipeline) = (1 << 20, Some(1 << 7));
            assert!(config.validate().is_ok(), "{mode:?} at {rate:?}");
            config.connections += 1;
            assert_eq!(config.validate().is_ok(), is_unlimited, "{mode:?} at {rate:?}");
        }
    }

    #[test]
    fn no_connection_is_too_few_with_or_without_ranks() {
        let refusal = |connections, rank| {
            let config = Config { connections, rank, ..Config::new(Vec::<AnyAddress>::new()) };
            config.validate().map_or_else(|error| error.to_string(), |()| String::new())
        };
        let rank = Some(Rank { index: 1, count: 2 });
        for rank in [None, rank] {
            assert_eq!(refusal(0, rank), "connections and max_connecting must be at least 1");
        }
        assert_eq!(refusal(1, rank), "connections must be at least one for each rank");
        assert_eq!(refusal(2, rank), "");
    }

    /// Returns why the defaults are refused after `change`, or an empty text if they are not.
    fn refusal(change: Change) -> String {
        let mut config = Config::new(Vec::<AnyAddress>::new());
        change(&mut config);
        config.validate().map_or_else(|error| error.to_string(), |()| String::new())
    }

    type Change = fn(&mut Config);

    fn stages(count: usize, duration: Duration, from: f64, to: f64) -> Vec<RateStage> {
        vec![RateStage { from, to, duration }; count]
    }

    #[test]
    fn a_setting_may_be_at_its_limit_and_not_beyond_it() {
        const S: Duration = Duration::from_secs(1);
        let cases: [(Change, Change, &str); 11] = [
            (
                |config| config.connections = 1 << 26,
                |config| config.connections = (1 << 26) + 1,
                "connections must be at most 2^26",
            ),
            (
                |config| config.size = 1 << 30,
                |config| config.size = (1 << 30) + 1,
                "size and size_max must be at most 1 GiB",
            ),
            (
                |config| config.size_max = Some(1 << 30),
                |config| config.size_max = Some((1 << 30) + 1),
                "size and size_max must be at most 1 GiB",
            ),
            (
                |config| config.size_max = Some(64),
                |config| config.size_max = Some(63),
                "size_max must be at least size",
            ),
            (
                |config| config.rate = Some(1e9),
                |config| config.rate = Some(1e9 + 1.0),
                "a rate must be above 0 and at most 1000M a second",
            ),
            (
                |config| config.rate = Some(f64::MIN_POSITIVE),
                |config| config.rate = Some(0.0),
                "a rate must be above 0 and at most 1000M a second",
            ),
            (
                |config| config.connect_rate = Some(1e9),
                |config| config.connect_rate = Some(0.0),
                "a rate must be above 0 and at most 1000M a second",
            ),
            (
                |config| config.stages = stages(100, S, 1.0, 1.0),
                |config| config.stages = stages(101, S, 1.0, 1.0),
                "a run has at most 100 stages",
            ),
            (
                |config| config.stages = stages(9, S * 1_000_000, 1.0, 1.0),
                |config| config.stages = stages(9, S * 1_000_001, 1.0, 1.0),
                "the stages must last at most 2500 hours together",
            ),
            (
                |config| config.stages = stages(1, S, 0.0, 1e9),
                |config| config.stages = stages(1, S, 0.0, 0.0),
                "a stage must be longer than 0, and one must have a rate above 0",
            ),
            (
                |config| (config.arrivals, config.rate) = (ArrivalProcess::Poisson, Some(1e7)),
                |config| (config.arrivals, config.rate) = (ArrivalProcess::Poisson, Some(1e7 + 1.0)),
                "the rate of a Poisson process must be at most 10M a second",
            ),
        ];
        for (at_limit, beyond, reason) in cases {
            assert_eq!((refusal(at_limit), refusal(beyond)), (String::new(), reason.to_owned()));
        }
    }

    #[test]
    fn each_setting_that_is_out_of_range_or_does_not_go_with_another_is_refused_alone() {
        const S: Duration = Duration::from_secs(1);
        let cases: [(&str, &[Change]); 6] = [
            ("connections and max_connecting must be at least 1", &[|config| config.max_connecting = 0]),
            (
                "size, pipeline and messages_per_connection must be at least 1",
                &[
                    |config| config.size = 0,
                    |config| config.pipeline = Some(0),
                    |config| config.messages_per_connection = Some(0),
                ],
            ),
            (
                "duration, connect_timeout and timeout must be above 0",
                &[
                    |config| config.duration = Duration::ZERO,
                    |config| config.connect_timeout = Duration::ZERO,
                    |config| config.timeout = Duration::ZERO,
                ],
            ),
            (
                "stages replace the rate and the warm-up: the first stage can be the warm-up",
                &[
                    |config| (config.stages, config.rate) = (stages(1, S, 1.0, 1.0), Some(1.0)),
                    |config| (config.stages, config.warmup) = (stages(1, S, 1.0, 1.0), S),
                ],
            ),
            (
                "stages and messages_per_connection cannot be combined in echo: each ends the run",
                &[|config| (config.stages, config.messages_per_connection) = (stages(1, S, 1.0, 1.0), Some(1))],
            ),
            (
                "the rate of a stage must be from 0 to 1000M a second",
                &[
                    |config| config.stages = stages(1, S, -1.0, 2.0),
                    |config| config.stages = stages(1, S, 2.0, -1.0),
                    |config| config.stages = stages(1, S, 1.0, 1e9 + 1.0),
                ],
            ),
        ];
        for (reason, changes) in cases {
            for (index, change) in changes.iter().enumerate() {
                assert_eq!(refusal(*change), reason, "change {index}");
            }
        }
        // In churn a connection ends after its messages, and the run with its stages.
        let churn: Change = |config| {
            (config.mode, config.stages) = (Mode::Churn, stages(1, S, 1.0, 1.0));
            config.messages_per_connection = Some(1);
        };
        assert_eq!(refusal(churn), "");
    }
}
