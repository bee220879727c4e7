//! Every limit and socket option, its default and unit beside it.

use std::io;
use std::time::Duration;

/// How long accepting rests after a failure that is not one connection's own.
pub(super) const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How often, at most, the same failure is said.
pub(super) const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// While draining, how often silence is looked for.
pub(super) const DRAIN_SWEEP: Duration = Duration::from_millis(50);
/// While draining, how many sweeps in a row without a byte make a connection silent: 100 ms at least.
pub(super) const DRAIN_SWEEPS: u8 = 3;
/// How many sweeps there are in `idle_timeout`: one has outlived it after as many and one more.
pub(super) const IDLE_SWEEPS: u8 = 4;
/// Fewer connections than these leave little behind, and may come and go often.
pub(super) const PEAK_WORTH_A_TRIM: usize = 256;

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
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Bytes of the one buffer that every read goes through, and at most of what is pending on a connection. 1024, as in
    /// the notes. Limit: 1 GiB.
    pub buffer_size: usize,
    /// Connections that the kernel holds until they are accepted (listen(2)). 4096; the system cuts it to
    /// `net.core.somaxconn`. Limit: 2³¹ − 1.
    pub backlog: u32,
    /// Connections open at once; more wait in the backlog. 1,000,000, none of it allocated ahead.
    pub max_connections: usize,
    /// Reads of one connection in a turn, each after everybody else's before it. 16.
    pub reads_per_turn: usize,
    /// Attempts to accept from one listening socket in a turn. 64.
    pub accepts_per_turn: usize,
    /// Events taken from the poll in a turn. 1024.
    pub events_per_turn: usize,
    /// How long a turn polls without waiting, before it waits. 0: it waits at once.
    ///
    /// A wait that is never begun needs no wake-up, so the answer to a lone message goes out sooner; all that time the thread
    /// takes its core whole.
    pub spin: Duration,
    /// From the command to drain to the end of those that have not. 5 s.
    pub drain_timeout: Duration,
    /// Closes a connection on which no byte has moved for so long, and at most a quarter longer. None.
    ///
    /// The connections are looked at four times in that period.
    pub idle_timeout: Option<Duration>,
    /// Bytes of each connection's receive buffer in the kernel (`SO_RCVBUF`, socket(7), which doubles it). Left to the system.
    pub recv_buffer: Option<usize>,
    /// Bytes of each connection's send buffer in the kernel (`SO_SNDBUF`, socket(7), which doubles it). Left to the system.
    pub send_buffer: Option<usize>,
    /// Sends small answers at once (`TCP_NODELAY`, tcp(7)). On.
    pub nodelay: bool,
    /// Shares the port with other processes that ask for the same (`SO_REUSEPORT`, socket(7)). Off.
    pub reuse_port: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            buffer_size: 1024,
            backlog: 4096,
            max_connections: 1_000_000,
            reads_per_turn: 16,
            accepts_per_turn: 64,
            events_per_turn: 1024,
            spin: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
            idle_timeout: None,
            recv_buffer: None,
            send_buffer: None,
            nodelay: true,
            reuse_port: false,
        }
    }
}

impl Config {
    /// Refuses what cannot work: a zero, or more than the system's calls can say.
    pub(super) fn validate(&self) -> io::Result<()> {
        let limits = [
            ("buffer_size", self.buffer_size, 1 << 30),
            ("backlog", self.backlog as usize, i32::MAX as usize),
            ("max_connections", self.max_connections, usize::MAX),
            ("reads_per_turn", self.reads_per_turn, usize::MAX),
            ("accepts_per_turn", self.accepts_per_turn, usize::MAX),
            ("events_per_turn", self.events_per_turn, 1 << 20),
            ("recv_buffer", self.recv_buffer.unwrap_or(1), i32::MAX as usize),
            ("send_buffer", self.send_buffer.unwrap_or(1), i32::MAX as usize),
        ];
        for (name, value, most) in limits {
            if value == 0 || value > most {
                let reason = format!("{name} is {value}: it must be from 1 to {most}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
            }
        }
        if self.idle_timeout == Some(Duration::ZERO) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "idle_timeout is zero: it would close everyone"));
        }
        Ok(())
    }

    /// How often idleness is looked for, if it is limited.
    pub(super) fn idle_sweep(&self) -> Option<Duration> {
        Some(self.idle_timeout? / u32::from(IDLE_SWEEPS))
    }
}
