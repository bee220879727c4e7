//! The source addresses of connections, and the local ports chosen for them.
//!
//! A port that the kernel chooses for a bound socket is taken for every target. A port that is chosen here, with `SO_REUSEADDR`,
//! can be used once for each target, and again while its last connection is in `TIME_WAIT` (Linux compares timestamps, tcp(7)).

mod pairs;
mod ports;
mod ranges;
mod socket;

use std::io;

use mio::net::TcpStream;

use self::pairs::Pairs;
pub use self::pairs::{count_pairs, unpaired};
use self::ports::PairPorts;
pub use self::ranges::SourceRange;
pub(crate) use self::socket::{ConnectFailure, SocketOptions, connect_unix};
use self::socket::{NO_PORTS, bound_failure, open, open_unix, unbound_failure};
use super::error::{ErrorName, Phase};
use super::rank::Rank;
use crate::address::ScopedIp;
use crate::host::local_ports;
use crate::socket_address::AnyAddress;
use crate::splitmix::splitmix64;

/// A socket that is connecting or connected, or a Unix socket that is to connect.
#[derive(Debug)]
pub(crate) struct Connecting {
    pub(crate) stream: TcpStream,
    /// To be passed to [`Sources::release`] with `port` when the connection is closed.
    pub(crate) pair: u32,
    /// The local port; `None` if the system chose it.
    pub(crate) port: Option<u16>,
}

/// Connects from all source/target pairs in turn, and keeps the ports of each.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pairs: Pairs,
    /// The pair of the next connection.
    next: u32,
    seed: u64,
    /// The ports that each pair can use; empty if the system chooses.
    ports: Box<[u16]>,
    /// The ports of each pair up to the last one used: there may be more pairs than connections.
    used: Vec<PairPorts>,
}

impl Sources {
    /// Pairs `sources` with `targets`. Each rank begins with another pair, and with another port. Without sources, the system chooses
    /// the local address and port of each connection.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: there is no target, or none that a source can reach.
    /// - `Other`: the port range is empty.
    pub(crate) fn new(sources: &[ScopedIp], targets: &[Vec<AnyAddress>], seed: u64, rank: Rank) -> io::Result<Self> {
        let ports = if sources.is_empty() { Vec::new() } else { local_ports() };
        if !sources.is_empty() && ports.is_empty() {
            return Err(io::Error::other("net.ipv4.ip_local_port_range has no port that is not reserved"));
        }
        let mut sources = Self::with_ports(sources, targets, seed.wrapping_add(rank.index.into()), ports)?;
        // With few connections each, the ranks together use every pair.
        sources.next = rank.index % sources.pairs.count();
        Ok(sources)
    }

    fn with_ports(sources: &[ScopedIp], targets: &[Vec<AnyAddress>], seed: u64, ports: Vec<u16>) -> io::Result<Self> {
        let pairs =
            Pairs::new(sources, targets).map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
        Ok(Self { pairs, next: 0, seed, ports: ports.into(), used: Vec::new() })
    }

    /// Opens a non-blocking socket for the next pair with a free port, and starts to connect it. A Unix socket is only opened.
    ///
    /// Fails with `no_ports` if no pair has a free port.
    pub(crate) fn connect(&mut self, options: &SocketOptions) -> Result<Connecting, ConnectFailure> {
        let mut no_ports = None;
        for _ in 0..self.pairs.count() {
            let pair = self.next;
            self.next = (pair + 1) % self.pairs.count();
            if !self.pairs.is_usable(pair) {
                continue;
            }
            match self.connect_from(pair, options) {
                Err(failure) if failure.error == ErrorName::NoPorts => no_ports = Some(failure),
                result => return result,
            }
        }
        Err(no_ports.unwrap_or(NO_PORTS))
    }

    /// Opens a non-blocking socket for `pair`, or after a failure for the next address of its target, and starts to connect it.
    pub(crate) fn connect_from(
        &mut self,
        mut pair: u32,
        options: &SocketOptions,
    ) -> Result<Connecting, ConnectFailure> {
        loop {
            match self.connect_pair(pair, options) {
                Err(failure) if failure.phase == Phase::Connect => match self.next_address(pair, failure.error) {
                    Some(next) => pair = next,
                    None => return Err(failure),
                },
                result => return result,
            }
        }
    }

    /// Returns a pair with the next address of the same target after a connect has failed, if there is one to try.
    pub(crate) fn next_address(&mut self, pair: u32, error: ErrorName) -> Option<u32> {
        // A shortage of this machine is not the address's.
        let is_shortage = matches!(error, ErrorName::NoDescriptors | ErrorName::NoMemory | ErrorName::NoPorts);
        if is_shortage { None } else { self.pairs.next_address(pair) }
    }

    /// Keeps to the target's address of a connection that was accepted.
    pub(crate) fn settle(&mut self, pair: u32) {
        self.pairs.settle(pair);
    }

    /// Returns the target addresses in use: of a target of which none has accepted a connection, all.
    pub(crate) fn target_addresses(&self) -> Vec<AnyAddress> {
        self.pairs.target_addresses()
    }

    /// Returns the sources that have a target.
    pub(crate) fn sources(&self) -> Vec<ScopedIp> {
        self.pairs.sources()
    }

    /// Connects again from another port of the pair, on a new socket, after a connect has failed because `port` is taken.
    ///
    /// Fails with `no_ports` if every port of the pair has been tried.
    pub(crate) fn retry(
        &mut self,
        pair: u32,
        port: Option<u16>,
        options: &SocketOptions,
    ) -> Result<Connecting, ConnectFailure> {
        let ports = self.ports.len();
        let Some(port) = port else { return Err(NO_PORTS) };
        let Some(used) = self.used.get_mut(pair as usize) else { return Err(NO_PORTS) };
        used.free.push_back(port);
        used.taken_later += 1;
        if used.taken_later >= ports {
            return Err(NO_PORTS);
        }
        self.connect_from(pair, options)
    }

    /// Returns the port of a closed connection, to be used again after all others.
    pub(crate) fn release(&mut self, pair: u32, port: Option<u16>) {
        if let Some(port) = port
            && let Some(used) = self.used.get_mut(pair as usize)
        {
            used.free.push_back(port);
            used.exhausted = false;
            used.taken_later = 0;
        }
    }

    pub(crate) fn pair_count(&self) -> u32 {
        self.pairs.count()
    }

    /// Returns the source and the target of a pair. The source is `None` if the system chooses it.
    pub(crate) fn pair(&self, pair: u32) -> (Option<ScopedIp>, &AnyAddress) {
        self.pairs.pair(pair)
    }

    /// Returns whether the target of a pair is a Unix socket.
    pub(crate) fn is_unix(&self, pair: u32) -> bool {
        self.pair(pair).1.is_unix()
    }

    fn connect_pair(&mut self, pair: u32, options: &SocketOptions) -> Result<Connecting, ConnectFailure> {
        let (source, address) = self.pair(pair);
        let Some(peer) = address.tcp() else {
            return match open_unix(options) {
                Ok(stream) => Ok(Connecting { stream, pair, port: None }),
                Err(error) => Err(ConnectFailure::new(Phase::Connect, &error)),
            };
        };
        let Some(source) = source else {
            return match open(None, peer, options) {
                Ok(stream) => Ok(Connecting { stream, pair, port: None }),
                Err((phase, error)) => Err(unbound_failure(phase, &error, peer)),
            };
        };
        let used = self.pair_state(pair);
        // After a round without a free port each connect tries one port only, so that a burst of connects does not try all
        // ports each time.
        let tries = if used.exhausted { used.available().min(1) } else { used.available() };
        let mut failure = NO_PORTS;
        for _ in 0..tries {
            let Some(port) = self.take_port(pair) else { break };
            let local = source.with_port(port);
            if local == peer {
                self.used[pair as usize].free.push_back(port);
                continue;
            }
            match open(Some(local), peer, options) {
                Ok(stream) => {
                    self.used[pair as usize].exhausted = false;
                    return Ok(Connecting { stream, pair, port: Some(port) });
                }
                Err((phase, error)) => {
                    self.used[pair as usize].free.push_back(port);
                    match bound_failure(phase, &error) {
                        taken @ ConnectFailure { error: ErrorName::NoPorts, .. } => failure = taken,
                        other => return Err(other),
                    }
                }
            }
        }
        self.used[pair as usize].exhausted = true;
        Err(failure)
    }

    fn take_port(&mut self, pair: u32) -> Option<u16> {
        let Self { used, ports, .. } = self;
        used[pair as usize].take(ports)
    }

    fn pair_state(&mut self, pair: u32) -> &PairPorts {
        let (seed, ports) = (self.seed, self.ports.len());
        let missing = (self.used.len()..=pair as usize)
            .map(|pair| PairPorts::new(splitmix64(seed ^ splitmix64(pair as u64)), ports));
        self.used.extend(missing);
        &self.used[pair as usize]
    }
}

#[cfg(test)]
mod tests;
