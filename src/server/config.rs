//! Every limit and socket option, its default and unit beside it.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use crate::fault::Fault;
use crate::reactor::EVENTS_MAX;

/// How long accepting backs off after a failure that is not one connection's own.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long the hand takes for a round while a server drains.
pub(super) const DRAIN_PERIOD: Duration = Duration::from_millis(50);
/// How long a connection may take to send its PROXY header: the protocol's specification asks for at least 3 s (2.), so that a lost
/// segment can be sent again.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How late a round of the hand may end without delaying the next: mio rounds a timeout up to a millisecond.
pub(super) const LATENESS: Duration = Duration::from_millis(2);
/// Shortest time of a round of the hand. The poll waits no less: shorter rounds would be made up without a wait.
pub(super) const PERIOD_MIN: Duration = Duration::from_millis(1);
/// Visits without a byte after which a connection is silent in a drain: they span at least 100 ms.
pub(super) const DRAIN_TICKS: u64 = 4;
/// Rounds of the hand, at the fewest, in which a timeout expires: so it expires at most an eighth late. A short one has fewer, because
/// of [`PERIOD_MIN`].
pub(super) const TIMEOUT_ROUNDS: u8 = 32;

/// A century: times of the clock and their sums stay in range.
pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Fewest connections in a peak whose memory is returned to the system: a smaller one leaves little, and may recur often.
pub(super) const TRIM_THRESHOLD: usize = 256;
/// The kernel counts the idle time of keep-alive in whole seconds (`MAX_TCP_KEEPIDLE` of Linux).
const KEEPALIVE_SECONDS: RangeInclusive<u64> = 1..=32767;

/// Every limit and socket option of a [`Server`](crate::Server).
///
/// Start from the default and assign.
///
/// # Examples
///
/// ```
/// let mut config = ecoloop::Config::default();
/// config.buffer_size = 64 * 1024;
/// config.max_connections = 100;
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Bytes of the one buffer that every read goes through: the most that is pending on a connection. Default 1024, as in the notes.
    /// Limit: 1 GiB.
    pub buffer_size: usize,
    /// Connections that the kernel holds until they are accepted (listen(2)). Default 4096; the system cuts it to
    /// `net.core.somaxconn`. Limit: 2³¹ − 1.
    pub backlog: u32,
    /// Maximum number of open connections. Default 1,000,000, not allocated ahead.
    pub max_connections: usize,
    /// What becomes of further clients at `max_connections`. Default: they wait in the backlog.
    pub when_full: WhenFull,
    /// Networks whose clients are served; others are reset at their accept. IPv4-mapped IPv6 counts as IPv4. A client without an
    /// address, of a Unix socket, is served. Default empty: all.
    pub allow: Vec<IpNet>,
    /// Maximum number of open connections from one source; further ones are reset at their accept. Clients without an address, of a
    /// Unix socket, are not limited. Default none.
    pub max_per_source: Option<SourceLimit>,
    /// Connections accepted per second; more wait in the backlog. A burst is a tenth of a second's worth, and at least 1.
    /// Default: unlimited.
    pub accept_rate: Option<f64>,
    /// Maximum reads of one connection in a turn. Every other ready connection is served between two of them. Default 16.
    pub reads_per_turn: usize,
    /// Maximum calls of accept(2) on one listening socket in a turn. Default 64.
    pub accepts_per_turn: usize,
    /// Maximum events taken from the poll in a turn. Default 1024. Limit: 1,048,576.
    pub events_per_turn: usize,
    /// How long each turn busy-polls before it blocks: lower latency at low load, more CPU. Default 0.
    pub spin: Duration,
    /// Grace period after a drain begins; connections still open after it are closed. Default 5 s.
    pub drain_timeout: Duration,
    /// Closes a connection on which no byte has moved for this long, at most an eighth (or 10 ms) later. Default none.
    pub idle_timeout: Option<Duration>,
    /// Resets a connection whose pending output has not shrunk for this long, at most an eighth (or 10 ms) later: its peer does not read.
    /// Sets `TCP_USER_TIMEOUT` (tcp(7)) where the system has it, so that data in flight to a peer that has vanished fails as late. It does
    /// not apply during a drain, which has its own timeout. Default none.
    pub stall_timeout: Option<Duration>,
    /// Probes a connection on which nothing was received for this long, in whole seconds (`SO_KEEPALIVE`, tcp(7)): a peer that has
    /// vanished is found. Probes follow in the same interval, at most 75 s, and nine without a reply close the connection, or as
    /// many as fit in `TCP_USER_TIMEOUT`. Limits: 1 s and 32,767 s. Default: off.
    pub keepalive: Option<Duration>,
    /// Bytes of each connection's receive buffer in the kernel (`SO_RCVBUF`, socket(7), which doubles it). Default: the system's.
    pub recv_buffer: Option<usize>,
    /// Bytes of each connection's send buffer in the kernel (`SO_SNDBUF`, socket(7), which doubles it). Default: the system's.
    pub send_buffer: Option<usize>,
    /// Sends small segments without delay (`TCP_NODELAY`, tcp(7)). Default on.
    pub nodelay: bool,
    /// Rules of fault injection: see [`fault`](crate::fault). Default none.
    pub faults: Vec<Fault>,
    /// Determines which connections a rule with a percentage chooses, and what is random in faults. Default 1.
    pub fault_seed: u64,
    /// Shares the port with other processes that set this (`SO_REUSEPORT`, socket(7)). Default off.
    pub reuse_port: bool,
    /// Mode of the file of a Unix socket, such as `0o660`: to connect, a client needs the permission to write. Default: what umask(2)
    /// leaves of `0o777`.
    pub unix_mode: Option<u32>,
    /// Takes a header of the PROXY protocol, version 1 or 2, out of the beginning of each connection. Its source address is the
    /// client's for [`allow`](Self::allow), [`max_per_source`](Self::max_per_source) and the observer; a header without one (`LOCAL`,
    /// `UNKNOWN`) leaves the connection's own. A bad header, one of more than 4096 bytes, and one that has not arrived after 5 s, at
    /// most an eighth later, reset the connection. A client that reaches the port can announce any address. Default off.
    pub proxy_protocol: bool,
}

/// What becomes of further clients at [`Config::max_connections`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// They wait in the backlog until a connection closes.
    Wait,
    /// They are reset at their accept, and counted in [`RefusedStats`](crate::RefusedStats).
    Reset,
}

/// A number of open connections from one source: from one IPv4 address and one IPv6 network of 64 bits, which a host owns, or from
/// larger or smaller networks. IPv4-mapped IPv6 counts as IPv4.
///
/// The server keeps a table of the sources that have open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLimit {
    /// Maximum number of open connections.
    pub connections: u32,
    /// Bits of an IPv4 network that counts as one source. Default 32: each address.
    pub ipv4_prefix: u8,
    /// Bits of an IPv6 network that counts as one source. Default 64.
    pub ipv6_prefix: u8,
}

impl SourceLimit {
    /// Returns a limit of `connections` from each IPv4 address and each IPv6 network of 64 bits.
    #[must_use]
    pub fn new(connections: u32) -> Self {
        Self { connections, ipv4_prefix: 32, ipv6_prefix: 64 }
    }

    fn is_valid(self) -> bool {
        self.connections > 0 && self.ipv4_prefix <= 32 && self.ipv6_prefix <= 128
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            buffer_size: 1024,
            backlog: 4096,
            max_connections: 1_000_000,
            when_full: WhenFull::Wait,
            allow: Vec::new(),
            max_per_source: None,
            accept_rate: None,
            reads_per_turn: 16,
            accepts_per_turn: 64,
            events_per_turn: 1024,
            spin: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
            idle_timeout: None,
            stall_timeout: None,
            keepalive: None,
            recv_buffer: None,
            send_buffer: None,
            nodelay: true,
            faults: Vec::new(),
            fault_seed: 1,
            reuse_port: false,
            unix_mode: None,
            proxy_protocol: false,
        }
    }
}

impl Config {
    /// Refuses a zero, and more than the system calls take.
    pub(super) fn validate(&self) -> io::Result<()> {
        let limits = [
            ("buffer_size", self.buffer_size, 1 << 30),
            ("backlog", self.backlog as usize, i32::MAX as usize),
            ("max_connections", self.max_connections, usize::MAX),
            ("reads_per_turn", self.reads_per_turn, usize::MAX),
            ("accepts_per_turn", self.accepts_per_turn, usize::MAX),
            ("events_per_turn", self.events_per_turn, EVENTS_MAX),
            ("recv_buffer", self.recv_buffer.unwrap_or(1), i32::MAX as usize),
            ("send_buffer", self.send_buffer.unwrap_or(1), i32::MAX as usize),
        ];
        for (name, value, most) in limits {
            if value == 0 || value > most {
                let reason = format!("{name} is {value}: it must be from 1 to {most}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
        }
        for (name, timeout) in [("idle_timeout", self.idle_timeout), ("stall_timeout", self.stall_timeout)] {
            if timeout == Some(Duration::ZERO) {
                let reason = format!("{name} is 0: it must be above 0, or None");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
        }
        if let Some(limit) = self.max_per_source.filter(|limit| !limit.is_valid()) {
            let reason =
                format!("max_per_source is {limit:?}: it needs 1 connection, and prefixes up to 32 and 128 bits");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        if let Some(rate) = self.accept_rate.filter(|rate| !(rate.is_normal() && *rate > 0.0)) {
            let reason = format!("accept_rate is {rate}: it must be a number above 0");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        if let Some(time) = self.keepalive.filter(|time| !KEEPALIVE_SECONDS.contains(&time.as_secs())) {
            let (least, most) = KEEPALIVE_SECONDS.into_inner();
            let reason = format!("keepalive is {time:?}: it must be from {least} s to {most} s");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        if let Some(mode) = self.unix_mode.filter(|&mode| mode > 0o777) {
            let reason = format!("unix_mode is {mode:o}: it must be from 0 to 777, in octal digits");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        if self.faults.iter().any(|fault| fault.effect == crate::fault::Effect::Connect(crate::fault::Connect::Hang)) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "connect=hang needs Linux"));
        }
        Fault::check_all(&self.faults).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn is_valid(change: impl FnOnce(&mut Config)) -> bool {
        let mut config = Config::default();
        change(&mut config);
        match config.validate() {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                false
            }
        }
    }

    #[test]
    fn the_ends_of_each_range_are_valid_and_nothing_beyond() {
        assert!(is_valid(|_| ()));
        assert!(!is_valid(|config| config.buffer_size = 0));
        assert!(is_valid(|config| config.buffer_size = 1));
        assert!(is_valid(|config| config.buffer_size = 1 << 30));
        assert!(!is_valid(|config| config.buffer_size = (1 << 30) + 1));
        assert!(!is_valid(|config| config.max_connections = 0));
        assert!(is_valid(|config| config.max_connections = usize::MAX));
        assert!(is_valid(|config| config.recv_buffer = Some(1)));
        assert!(!is_valid(|config| config.recv_buffer = Some(0)));
        assert!(!is_valid(|config| config.send_buffer = Some(1 << 31)));
        assert!(!is_valid(|config| config.idle_timeout = Some(Duration::ZERO)));
        assert!(is_valid(|config| config.stall_timeout = Some(Duration::from_nanos(1))));
        assert!(!is_valid(|config| config.accept_rate = Some(0.0)));
        assert!(!is_valid(|config| config.accept_rate = Some(-1.0)));
        assert!(!is_valid(|config| config.accept_rate = Some(f64::NAN)));
        assert!(!is_valid(|config| config.accept_rate = Some(f64::INFINITY)));
        assert!(is_valid(|config| config.accept_rate = Some(0.001)));
        assert!(!is_valid(|config| config.keepalive = Some(Duration::from_millis(999))));
        assert!(is_valid(|config| config.keepalive = Some(Duration::from_secs(1))));
        assert!(is_valid(|config| config.keepalive = Some(Duration::from_secs(32767))));
        assert!(!is_valid(|config| config.keepalive = Some(Duration::from_secs(32768))));
        assert!(is_valid(|config| config.unix_mode = Some(0)));
        assert!(is_valid(|config| config.unix_mode = Some(0o777)));
        assert!(!is_valid(|config| config.unix_mode = Some(0o1000)));
    }

    #[test]
    fn a_limit_of_a_source_takes_connections_and_the_prefixes_of_its_addresses() {
        let limit = |connections, ipv4_prefix, ipv6_prefix| {
            is_valid(|config| config.max_per_source = Some(SourceLimit { connections, ipv4_prefix, ipv6_prefix }))
        };
        assert!(limit(1, 0, 0));
        assert!(limit(1, 32, 128));
        assert!(!limit(0, 32, 64));
        assert!(!limit(1, 33, 64));
        assert!(!limit(1, 32, 129));
    }

    #[test]
    fn rules_of_faults_that_exclude_each_other_are_invalid() {
        let rules = |rules: &[&str]| rules.iter().filter_map(|rule| rule.parse().ok()).collect();
        assert!(is_valid(|config| config.faults = rules(&["mute=1", "delay=1ms"])));
        assert!(!is_valid(|config| config.faults = rules(&["mute=1", "flip=1"])));
    }
}
