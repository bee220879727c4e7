//! Where connections come from: the addresses of `--source`, and the ports that are chosen for them.
//!
//! A kernel that chooses the port of a bound socket takes it from every target at once. Chosen here, with `SO_REUSEADDR`, one port
//! serves each target, and one that waits in `TIME_WAIT` serves again at once (Linux looks at the peer's timestamps, tcp(7)).

mod pairs;
mod ports;
mod ranges;
mod socket;

use std::io;
use std::net::{IpAddr, SocketAddr};

use mio::net::TcpStream;

pub use self::pairs::count_pairs;
use self::pairs::{Group, pair_up};
use self::ports::PairPorts;
pub use self::ranges::SourceRange;
pub(crate) use self::socket::{ConnectFailure, SocketOptions};
use self::socket::{NO_PORTS, bound_failure, open, unbound_failure};
use super::error::ErrorName;
use super::pattern::splitmix64;
use crate::host::local_ports;

/// A socket that connects, or has connected already.
#[derive(Debug)]
pub(crate) struct Connecting {
    pub(crate) stream: TcpStream,
    /// To be given back with `port` when the connection has ended.
    pub(crate) pair: u32,
    /// `None`: the system chose it.
    pub(crate) port: Option<u16>,
}

/// Deals connections to the source-target pairs, and keeps the ports of each.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    groups: Vec<Group>,
    pairs: u32,
    /// Whose turn it is.
    next: u32,
    seed: u64,
    /// What every pair chooses from; empty where the system chooses.
    ports: Box<[u16]>,
    /// Of the pairs that have been used: there may be more pairs than connections.
    used: Vec<PairPorts>,
}

impl Sources {
    /// Without sources, the system chooses each connection's address and port.
    ///
    /// # Errors
    ///
    /// - There is no target, an address that has nothing to pair with, or no port that connections may use.
    pub(crate) fn new(sources: &[IpAddr], targets: &[SocketAddr], seed: u64) -> io::Result<Self> {
        let ports = if sources.is_empty() { Vec::new() } else { local_ports() };
        if !sources.is_empty() && ports.is_empty() {
            return Err(io::Error::other("net.ipv4.ip_local_port_range leaves no port to connect from"));
        }
        Self::with_ports(sources, targets, seed, ports)
    }

    fn with_ports(sources: &[IpAddr], targets: &[SocketAddr], seed: u64, ports: Vec<u16>) -> io::Result<Self> {
        let groups = pair_up(sources, targets).map_err(|words| io::Error::new(io::ErrorKind::InvalidInput, words))?;
        let pairs = groups.iter().map(Group::pairs).sum();
        Ok(Self { groups, pairs, next: 0, seed, ports: ports.into(), used: Vec::new() })
    }

    /// Opens a non-blocking socket for the next pair that has a port, and starts to connect it.
    ///
    /// The pairs take turns. One whose ports are all in use is passed over; when all are, it is `no_ports`.
    pub(crate) fn connect(&mut self, options: &SocketOptions) -> Result<Connecting, ConnectFailure> {
        let mut no_ports = None;
        for _ in 0..self.pairs {
            let pair = self.next;
            self.next = (pair + 1) % self.pairs;
            match self.connect_pair(pair, options) {
                Err(failure) if failure.error == ErrorName::NoPorts => no_ports = Some(failure),
                result => return result,
            }
        }
        Err(no_ports.unwrap_or(NO_PORTS))
    }

    /// The connect of this port has failed later, with an error that [`is_port_taken`]: gives the port back, and tries another
    /// of the same pair on a new socket, within one round of the ports.
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
        self.connect_pair(pair, options)
    }

    /// The connection has ended: its port may be used again, after all others.
    pub(crate) fn release(&mut self, pair: u32, port: Option<u16>) {
        if let Some(port) = port
            && let Some(used) = self.used.get_mut(pair as usize)
        {
            used.free.push_back(port);
            used.exhausted = false;
            used.taken_later = 0;
        }
    }

    /// The two ends of a pair; `None` where the system chooses the address.
    pub(crate) fn pair(&self, pair: u32) -> (Option<IpAddr>, SocketAddr) {
        let first = &self.groups[0];
        if pair < first.pairs() { first.pair(pair) } else { self.groups[1].pair(pair - first.pairs()) }
    }

    fn connect_pair(&mut self, pair: u32, options: &SocketOptions) -> Result<Connecting, ConnectFailure> {
        let (source, peer) = self.pair(pair);
        let Some(source) = source else {
            return match open(None, peer, options) {
                Ok(stream) => Ok(Connecting { stream, pair, port: None }),
                Err((phase, error)) => Err(unbound_failure(phase, &error, peer)),
            };
        };
        let used = self.pair_state(pair);
        // After a round that found none, one port for each connection goes on with the next round: a storm of connections
        // shall not try every port each time.
        let tries = if used.exhausted { used.available().min(1) } else { used.available() };
        let mut failure = NO_PORTS;
        for _ in 0..tries {
            let Some(port) = self.take_port(pair) else { break };
            let local = SocketAddr::new(source, port);
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
