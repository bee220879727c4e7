//! Where connections come from: the addresses of `--source`, and the ports that are chosen for them.
//!
//! A kernel that chooses the port of a bound socket takes it from every target at once. Chosen here, with `SO_REUSEADDR`, one port
//! serves each target, and one that waits in `TIME_WAIT` serves again at once (Linux looks at the peer's timestamps, tcp(7)).

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::{ErrorName, Phase, classify};
use crate::host::local_ports;

/// Addresses to connect from, at most, over all `--source`.
const SOURCES_MAX: u32 = 1 << 16;

/// Addresses to connect from: `IP`, `IP-IP` or `IPv4/LEN`, which leaves out the network's own and its broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    first: IpAddr,
    last: IpAddr,
    count: u32,
}

impl SourceRange {
    fn new(first: IpAddr, last: IpAddr) -> Result<Self, String> {
        let steps = match (first, last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(last.to_bits()).checked_sub(first.to_bits().into()),
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => return Err("a range is of IPv4 or of IPv6 addresses, not of both".to_owned()),
        };
        let steps = steps.ok_or("the range ends before it begins")?;
        let Some(count) = u32::try_from(steps + 1).ok().filter(|&count| count <= SOURCES_MAX) else {
            return Err(too_many());
        };
        match [first, last].into_iter().find(|address| address.is_unspecified() || address.is_multicast()) {
            Some(address) => Err(format!("nothing can connect from {address}")),
            None => Ok(Self { first, last, count }),
        }
    }

    fn network(address: Ipv4Addr, length: u32) -> Result<Self, String> {
        let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (address.to_bits() & !host_bits, address.to_bits() | host_bits);
        // RFC 3021: of two addresses, neither is the network's own.
        let edge = u32::from(length < 31);
        Self::new(Ipv4Addr::from_bits(first + edge).into(), Ipv4Addr::from_bits(last - edge).into())
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (0..self.count).map(move |step| match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + step).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(step)).into(),
        })
    }

    /// Every address of `ranges` once, in their order.
    ///
    /// # Errors
    ///
    /// - There are more than 65,536.
    pub fn expand(ranges: &[Self]) -> Result<Vec<IpAddr>, String> {
        let count = ranges.iter().try_fold(0_u32, |count, range| count.checked_add(range.count));
        if count.is_none_or(|count| count > SOURCES_MAX) {
            return Err(too_many());
        }
        Ok(distinct(ranges.iter().flat_map(|range| range.addresses())))
    }
}

impl FromStr for SourceRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected IP, IP-IP or IPv4/LEN";
        if let Some((address, length)) = text.split_once('/') {
            let address = address.parse().map_err(|_| EXPECTED)?;
            return match length.parse() {
                Ok(length @ 0..=32) => Self::network(address, length),
                _ => Err("LEN must be a number from 0 to 32".to_owned()),
            };
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(first.parse().map_err(|_| EXPECTED)?, last.parse().map_err(|_| EXPECTED)?)
    }
}

impl fmt::Display for SourceRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            self.first.fmt(formatter)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

fn too_many() -> String {
    format!("there can be at most {SOURCES_MAX} source addresses")
}

/// Each of `items` once, where it stood first.
fn distinct<T: Copy + Eq + Hash>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.into_iter().filter(|&item| seen.insert(item)).collect()
}

/// How many source-target pairs there are: of IPv4 with IPv4, and of IPv6 with IPv6. Without sources, one for each target.
///
/// # Errors
///
/// - There is no target, or an address that has nothing to pair with.
pub fn count_pairs(sources: &[IpAddr], targets: &[SocketAddr]) -> Result<u32, String> {
    let groups = pair_up(sources, targets)?;
    Ok(groups.iter().map(Group::pairs).sum())
}

/// Sources and targets that can reach each other.
#[derive(Debug)]
struct Group {
    /// `None`: the system's choice.
    sources: Vec<Option<IpAddr>>,
    targets: Vec<SocketAddr>,
}

fn pair_up(sources: &[IpAddr], targets: &[SocketAddr]) -> Result<Vec<Group>, String> {
    let targets = distinct(targets.iter().copied());
    if targets.is_empty() {
        return Err("there is no target".to_owned());
    }
    let groups = if sources.is_empty() {
        vec![Group { sources: vec![None], targets }]
    } else {
        let sources = distinct(sources.iter().copied());
        let of_family = |is_ipv4: bool| Group {
            sources: sources.iter().copied().filter(|source| source.is_ipv4() == is_ipv4).map(Some).collect(),
            targets: targets.iter().copied().filter(|target| target.is_ipv4() == is_ipv4).collect(),
        };
        vec![of_family(true), of_family(false)]
    };
    for group in &groups {
        match (&group.sources[..], &group.targets[..]) {
            ([Some(source), ..], []) => return Err(format!("there is no target that {source} could connect to")),
            ([], [target, ..]) => return Err(format!("there is no source that could connect to {target}")),
            _ => {}
        }
    }
    let pairs: usize = groups.iter().map(|group| group.sources.len() * group.targets.len()).sum();
    u32::try_from(pairs).map_err(|_| format!("{pairs} pairs of a source and a target are too many"))?;
    Ok(groups)
}

impl Group {
    fn pairs(&self) -> u32 {
        u32::try_from(self.sources.len() * self.targets.len()).unwrap_or(u32::MAX)
    }

    /// Diagonally, so that a few connections already come from several sources to several targets.
    fn pair(&self, index: u32) -> (Option<IpAddr>, SocketAddr) {
        let (row, column) = (index as usize / self.sources.len(), index as usize % self.sources.len());
        (self.sources[column], self.targets[(row + column) % self.targets.len()])
    }
}

/// What every socket is to have before it connects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SocketOptions {
    pub(crate) nodelay: bool,
    pub(crate) recv_buffer: Option<usize>,
    pub(crate) send_buffer: Option<usize>,
}

/// A socket that connects, or has connected already.
#[derive(Debug)]
pub(crate) struct Connecting {
    pub(crate) stream: TcpStream,
    /// To be given back with `port` when the connection has ended.
    pub(crate) pair: u32,
    /// `None`: the system chose it.
    pub(crate) port: Option<u16>,
}

/// A connection that could not be begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectFailure {
    pub(crate) phase: Phase,
    pub(crate) error: ErrorName,
    pub(crate) errno: Option<i32>,
}

impl ConnectFailure {
    fn new(phase: Phase, error: &io::Error) -> Self {
        Self { phase, error: classify(error), errno: error.raw_os_error() }
    }
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
    used: Vec<Pair>,
}

/// The ports of one pair. Those that are neither untried nor free are in use.
#[derive(Debug)]
struct Pair {
    /// The next port that was never used, as an index.
    next: usize,
    untried: usize,
    /// Used before, the longest ago first.
    free: VecDeque<u16>,
    /// A full round of the ports has found none.
    exhausted: bool,
    /// Connects that have failed later because their port was taken.
    taken_later: usize,
}

impl Pair {
    fn new(random: u64, ports: usize) -> Self {
        let next = usize::try_from(random % (ports.max(1) as u64)).unwrap_or(0);
        Self { next, untried: ports, free: VecDeque::new(), exhausted: false, taken_later: 0 }
    }

    /// How many ports there are to try.
    fn available(&self) -> usize {
        self.untried + self.free.len()
    }

    /// The port that was used least recently.
    fn take(&mut self, ports: &[u16]) -> Option<u16> {
        if self.untried == 0 {
            return self.free.pop_front();
        }
        let port = ports.get(self.next).copied();
        self.untried -= 1;
        self.next = (self.next + 1) % ports.len();
        port
    }
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

    fn pair_state(&mut self, pair: u32) -> &Pair {
        let (seed, ports) = (self.seed, self.ports.len());
        let missing = (self.used.len()..=pair as usize).map(|pair| Pair::new(mix(seed ^ mix(pair as u64)), ports));
        self.used.extend(missing);
        &self.used[pair as usize]
    }
}

/// All ports are in use by connections of this run: the system was not even asked.
const NO_PORTS: ConnectFailure = ConnectFailure { phase: Phase::Bind, error: ErrorName::NoPorts, errno: None };

/// Opens a socket and starts to connect it; a failure is with its phase.
fn open(local: Option<SocketAddr>, peer: SocketAddr, options: &SocketOptions) -> Result<TcpStream, (Phase, io::Error)> {
    let socket = prepare(peer, options).map_err(|error| (Phase::Connect, error))?;
    if let Some(local) = local {
        socket.bind(&local.into()).map_err(|error| (Phase::Bind, error))?;
    }
    match socket.connect(&peer.into()) {
        // POSIX: an interrupted connect goes on like one of a non-blocking socket.
        Err(error) if !matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR)) => {
            Err((Phase::Connect, error))
        }
        _ => Ok(TcpStream::from_std(socket.into())),
    }
}

fn prepare(peer: SocketAddr, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Not only for a bind of its own: it stays with the port in TIME_WAIT, and lets a later run with sources bind it.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(options.nodelay)?;
    // Before the handshake, which fixes the window scale (tcp(7)).
    if let Some(bytes) = options.recv_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes)?;
    }
    Ok(socket)
}

/// Where the address was given: it is not this machine's, or the port is taken.
fn bound_failure(phase: Phase, error: &io::Error) -> ConnectFailure {
    let failure = ConnectFailure::new(phase, error);
    if phase == Phase::Bind && failure.errno == Some(libc::EADDRNOTAVAIL) {
        return ConnectFailure { error: ErrorName::NotLocal, ..failure };
    }
    failure
}

/// Where the system chose the address: EADDRNOTAVAIL means that it has no port left for this target, or no address to begin with
/// (IPv6 turned off). A datagram socket tells the two apart, since it needs the address alone.
fn unbound_failure(phase: Phase, error: &io::Error, peer: SocketAddr) -> ConnectFailure {
    let failure = ConnectFailure::new(phase, error);
    if failure.errno == Some(libc::EADDRNOTAVAIL) {
        let probe = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))
            .and_then(|socket| socket.connect(&peer.into()));
        if probe.is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL)) {
            return ConnectFailure { error: ErrorName::Unreachable, ..failure };
        }
    }
    failure
}

/// A random number of `value`, the same each time: the finalizer of `SplitMix64`.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

    use std::net::{TcpListener, TcpStream as StdStream};
    use std::process::Command;
    use std::sync::atomic::{AtomicU8, Ordering};

    use proptest::prelude::*;

    use super::*;

    const OPTIONS: SocketOptions = SocketOptions { nodelay: true, recv_buffer: None, send_buffer: None };

    fn expand(text: &str) -> Result<Vec<String>, String> {
        let addresses = SourceRange::expand(&[text.parse()?])?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    /// Addresses of loopback that no other test uses.
    fn loopback<const N: u8>() -> Vec<IpAddr> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let first = NEXT.fetch_add(N, Ordering::Relaxed);
        (first..first + N).map(|last| Ipv4Addr::new(127, 81, 44, last).into()).collect()
    }

    /// So many ports in a row that nobody has on `sources`, outside of those that the system gives out.
    fn free_ports(sources: &[IpAddr], count: u16) -> Vec<u16> {
        let is_free = |port| sources.iter().all(|&source| TcpListener::bind((source, port)).is_ok());
        let block = (0..100).map(|block| (20_000 + block * count..).take(count.into()).collect::<Vec<_>>());
        block.into_iter().find(|block| block.iter().copied().all(is_free)).unwrap()
    }

    /// Servers on a port each of one address.
    fn servers(address: IpAddr, count: usize) -> (Vec<TcpListener>, Vec<SocketAddr>) {
        let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind((address, 0)).unwrap()).collect();
        let targets = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        (listeners, targets)
    }

    /// Both ends of a connection.
    struct Held {
        client: Connecting,
        server: StdStream,
    }

    /// Connects and accepts until all are held or one cannot be.
    fn hold(sources: &mut Sources, servers: &[TcpListener], count: usize) -> (Vec<Held>, Option<ConnectFailure>) {
        let mut held = Vec::new();
        while held.len() < count {
            let client = match sources.connect(&OPTIONS) {
                Ok(client) => client,
                Err(failure) => return (held, Some(failure)),
            };
            let (source, target) = sources.pair(client.pair);
            let is_target = |server: &&TcpListener| server.local_addr().unwrap() == target;
            let (server, address) = servers.iter().find(is_target).unwrap().accept().unwrap();
            assert_eq!(client.stream.local_addr().unwrap(), address);
            assert_eq!(client.port, Some(address.port()));
            assert_eq!(source, Some(address.ip()));
            held.push(Held { client, server });
        }
        (held, None)
    }

    #[test]
    fn a_source_is_an_address_a_range_or_a_network() {
        assert_eq!(expand("127.0.0.1").unwrap(), ["127.0.0.1"]);
        assert_eq!(expand("10.0.0.254-10.0.1.1").unwrap(), ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]);
        assert_eq!(expand("::1").unwrap(), ["::1"]);
        assert_eq!(expand("fd00::fffe-fd00::1:0").unwrap(), ["fd00::fffe", "fd00::ffff", "fd00::1:0"]);
        assert_eq!(expand("10.1.2.7/30").unwrap(), ["10.1.2.5", "10.1.2.6"]);
        assert_eq!(expand("10.1.2.6/31").unwrap(), ["10.1.2.6", "10.1.2.7"]);
        assert_eq!(expand("10.1.2.6/32").unwrap(), ["10.1.2.6"]);
        assert_eq!(expand("10.1.0.0/16").unwrap().len(), 65_534);
        assert_eq!(expand("10.1.0.0-10.1.255.255").unwrap().len(), 65_536);
    }

    #[test]
    fn a_source_that_is_none_is_refused() {
        for text in ["", "-", "10.0.0.1-", "host", "10.0.0.1:80", "10.0.0", "1-2", "fd00::/64", "10.0.0.0/x", "/8"] {
            assert!(text.parse::<SourceRange>().is_err(), "{text}");
        }
        for (text, why) in [
            ("10.0.0.2-10.0.0.1", "before"),
            ("10.0.0.1-::1", "not of both"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/15", "65536"),
            ("0.0.0.0/0", "65536"),
            ("10.0.0.0-10.1.0.0", "65536"),
            ("::1-ffff::1", "65536"),
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
            ("239.255.0.1", "239.255.0.1"),
        ] {
            let error = text.parse::<SourceRange>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn all_sources_together_are_bounded_and_each_stands_once() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SourceRange>>();
        let addresses = SourceRange::expand(&ranges(&["10.0.0.2-10.0.0.3", "10.0.0.1-10.0.0.2"])).unwrap();
        assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "10.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert!(SourceRange::expand(&ranges(&["10.1.0.0/16", "10.2.0.0/16"])).unwrap_err().contains("65536"));
    }

    #[test]
    fn sources_pair_with_targets_of_their_family() {
        let sources = ["10.0.0.1", "10.0.0.2", "::2"].map(|text| text.parse().unwrap());
        let targets = ["10.0.1.1:5", "10.0.1.1:6", "[::1]:5"].map(|text| text.parse().unwrap());
        assert_eq!(count_pairs(&sources, &targets), Ok(5));
        assert_eq!(count_pairs(&sources[..1], &targets[..2]), Ok(2));
        assert_eq!(count_pairs(&[], &targets), Ok(3));
        assert_eq!(count_pairs(&[], &[targets[0], targets[0]]), Ok(1), "the same ports would be counted twice");
        assert!(count_pairs(&sources, &[]).is_err());
        assert_eq!(count_pairs(&sources, &targets[..2]).unwrap_err(), "there is no target that ::2 could connect to");
        assert!(count_pairs(&sources[..2], &targets).unwrap_err().ends_with("connect to [::1]:5"));
        assert!(Sources::new(&sources, &targets[..2], 1).is_err());
    }

    #[test]
    fn every_pair_is_used_evenly() {
        let (servers, targets) = servers(loopback::<1>()[0], 2);
        let addresses = loopback::<3>();
        let ports = free_ports(&addresses, 10);
        let mut sources = Sources::with_ports(&addresses, &targets, 7, ports).unwrap();
        let (held, failure) = hold(&mut sources, &servers, 15);
        assert_eq!(failure, None);
        let uses = |from: usize, to: usize| {
            let ends = held[from..to]
                .iter()
                .map(|held| (held.server.peer_addr().unwrap().ip(), held.server.local_addr().unwrap()));
            distinct(ends).len()
        };
        assert_eq!((uses(0, 6), uses(6, 12), uses(12, 15)), (6, 6, 3));
        let first = held[..3].iter().map(|held| held.server.local_addr().unwrap());
        assert_eq!(distinct(first).len(), 2, "the first few go to both targets");
    }

    #[test]
    fn pairs_hold_as_many_as_there_are_ports_of_each() {
        for (sources_count, targets_count) in [(3, 1), (1, 2), (2, 2)] {
            let (servers, targets) = servers(loopback::<1>()[0], targets_count);
            let addresses = &loopback::<3>()[..sources_count];
            let ports = free_ports(addresses, 20);
            let all = 20 * sources_count * targets_count;
            let mut sources = Sources::with_ports(addresses, &targets, 3, ports).unwrap();
            let (mut held, failure) = hold(&mut sources, &servers, all + 1);
            assert_eq!((held.len(), failure), (all, Some(NO_PORTS)));

            let closed = held.swap_remove(11).client;
            drop(closed.stream);
            sources.release(closed.pair, closed.port);
            let (again, failure) = hold(&mut sources, &servers, 2);
            assert_eq!((again.len(), failure), (1, Some(NO_PORTS)), "the port that came free is found");
            assert_eq!((again[0].client.pair, again[0].client.port), (closed.pair, closed.port));
        }
    }

    #[test]
    fn ports_that_came_free_are_taken_in_the_order_they_did() {
        let (servers, targets) = servers(loopback::<1>()[0], 1);
        let addresses = loopback::<1>();
        let ports = free_ports(&addresses, 5);
        let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
        let (mut held, _) = hold(&mut sources, &servers, 5);
        let mut freed = Vec::new();
        for index in [3, 0, 1] {
            let Held { client, server } = held.remove(index);
            // Closed first, the server's end is the one that lingers.
            drop(server);
            drop(client.stream);
            sources.release(client.pair, client.port);
            freed.push(client.port);
        }
        let (again, failure) = hold(&mut sources, &servers, 4);
        assert_eq!(again.iter().map(|held| held.client.port).collect::<Vec<_>>(), freed);
        assert_eq!(failure, Some(NO_PORTS));
    }

    #[test]
    fn a_taken_port_is_passed_over_and_found_again_when_it_comes_free() {
        let (servers, targets) = servers(loopback::<1>()[0], 1);
        let addresses = loopback::<1>();
        let ports = free_ports(&addresses, 10);
        let others: Vec<_> = [2, 3, 7].map(|n| TcpListener::bind((addresses[0], ports[n])).unwrap()).into();
        let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
        let (held, failure) = hold(&mut sources, &servers, 10);
        let in_use = ConnectFailure { phase: Phase::Bind, error: ErrorName::NoPorts, errno: Some(libc::EADDRINUSE) };
        assert_eq!((held.len(), failure), (7, Some(in_use)));
        drop(others);
        let (held, failure) = hold(&mut sources, &servers, 4);
        assert_eq!((held.len(), failure), (3, Some(NO_PORTS)));
    }

    #[test]
    fn a_connection_never_comes_from_the_address_it_goes_to() {
        let addresses = loopback::<1>();
        let ports = free_ports(&addresses, 3);
        // Nobody listens: a connect from the target's own address would meet itself and succeed.
        let target = SocketAddr::new(addresses[0], ports[1]);
        let mut sources = Sources::with_ports(&addresses, &[target], 3, ports.clone()).unwrap();
        let begun: Vec<_> = (0..9).map_while(|_| sources.connect(&OPTIONS).ok()).collect();
        let mut from: Vec<_> = begun.iter().filter_map(|begun| begun.port).collect();
        from.sort_unstable();
        assert_eq!(from, [ports[0], ports[2]]);
    }

    #[test]
    fn a_source_that_is_not_local_is_said_to_be() {
        // RFC 5737: for documentation, on no machine.
        let addresses = ["192.0.2.1".parse().unwrap()];
        let target = "127.0.0.1:9".parse().unwrap();
        let mut sources = Sources::with_ports(&addresses, &[target], 3, vec![20_000, 20_001]).unwrap();
        let not_local =
            ConnectFailure { phase: Phase::Bind, error: ErrorName::NotLocal, errno: Some(libc::EADDRNOTAVAIL) };
        for _ in 0..3 {
            assert_eq!(sources.connect(&OPTIONS).unwrap_err(), not_local);
        }
    }

    #[test]
    fn a_port_that_is_taken_later_is_replaced_within_one_round() {
        let (_servers, targets) = servers(loopback::<1>()[0], 1);
        let addresses = loopback::<1>();
        let ports = free_ports(&addresses, 5);
        let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
        let mut connecting = sources.connect(&OPTIONS).unwrap();
        let mut tried = vec![connecting.port];
        let failure = loop {
            match sources.retry(connecting.pair, connecting.port, &OPTIONS) {
                Ok(next) => connecting = next,
                Err(failure) => break failure,
            }
            tried.push(connecting.port);
        };
        assert_eq!(failure, NO_PORTS);
        assert_eq!((tried.len(), distinct(tried).len()), (5, 5));
    }

    #[test]
    fn without_sources_the_system_chooses() {
        let (servers, targets) = servers(loopback::<1>()[0], 2);
        let mut sources = Sources::new(&[], &targets, 3).unwrap();
        for server in [0, 1, 0, 1] {
            let client = sources.connect(&OPTIONS).unwrap();
            assert_eq!((client.pair, client.port), (server, None));
            let (_, address) = servers[server as usize].accept().unwrap();
            assert_eq!(client.stream.local_addr().unwrap(), address);
            sources.release(client.pair, client.port);
        }
    }

    #[test]
    fn a_socket_has_the_options_before_it_connects() {
        let (_servers, targets) = servers(loopback::<1>()[0], 1);
        let mut sources = Sources::new(&[], &targets, 3).unwrap();
        let options = SocketOptions { nodelay: true, recv_buffer: Some(8192), send_buffer: Some(16384) };
        let stream = sources.connect(&options).unwrap().stream;
        let socket = socket2::SockRef::from(&stream);
        // socket(7): the kernel doubles them.
        assert_eq!((socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap()), (16384, 32768));
        assert!(stream.nodelay().unwrap() && socket.reuse_address().unwrap());
        let stream = sources.connect(&SocketOptions::default()).unwrap().stream;
        assert!(!stream.nodelay().unwrap());
    }

    proptest! {
        /// Whatever is taken and given back: no port twice at once, each that is not in use can be had, and of those the one
        /// that was used least recently.
        #[test]
        fn the_port_used_least_recently_is_taken(random: u64, takes in prop::collection::vec(any::<Option<u8>>(), 1..200)) {
            let ports: Vec<u16> = (100..107).collect();
            let mut pair = Pair::new(random, ports.len());
            let mut in_use: Vec<u16> = Vec::new();
            // A port that was never used was used at time 0.
            let mut used_at = [0; 7];
            for (now, given_back) in (1..).zip(takes) {
                match given_back {
                    Some(index) if !in_use.is_empty() => {
                        let port = in_use.remove(usize::from(index) % in_use.len());
                        used_at[usize::from(port) - 100] = now;
                        pair.free.push_back(port);
                    }
                    _ => {
                        prop_assert_eq!(pair.available(), ports.len() - in_use.len());
                        let oldest = ports.iter().filter(|port| !in_use.contains(port)).map(|&port| used_at[usize::from(port) - 100]).min();
                        let port = pair.take(&ports);
                        prop_assert_eq!(port.map(|port| used_at[usize::from(port) - 100]), oldest);
                        prop_assert!(port.is_none_or(|port| !in_use.contains(&port)));
                        in_use.extend(port);
                    }
                }
            }
        }
    }

    /// Runs `test` of this file in a network namespace of its own, where the port range is 2000, and answers whether this is
    /// already that run.
    fn is_in_namespace(test: &str) -> bool {
        const MARK: &str = "ECOLOOP_TEST_NAMESPACE";
        if std::env::var_os(MARK).is_some() {
            return true;
        }
        let namespace = format!("ecoloop-{}-{test}", std::process::id());
        let ip = |arguments: &[&str]| Command::new("ip").args(arguments).status().unwrap().success();
        assert!(ip(&["netns", "add", &namespace]));
        let script = "ip link set lo up && echo 20000 21999 >/proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"";
        let inner = Command::new("ip")
            .args(["netns", "exec", &namespace, "sh", "-c", script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture", &format!("load::sources::tests::{test}")])
            .env(MARK, "1")
            .output();
        assert!(ip(&["netns", "delete", &namespace]));
        let inner = inner.unwrap();
        let said = String::from_utf8_lossy(&inner.stdout);
        assert!(
            inner.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&inner.stderr)
        );
        false
    }

    #[test]
    #[ignore = "needs root, for a network namespace with a port range of 2000, and 14,100 descriptors"]
    fn a_port_range_of_2000_holds_what_its_pairs_allow() {
        if !is_in_namespace("a_port_range_of_2000_holds_what_its_pairs_allow") {
            return;
        }
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        for (sources_count, targets_count, asked, held_most) in
            [(3, 1, 5500, 5500), (1, 2, 3500, 3500), (2, 2, 7000, 7000), (1, 1, 2500, 2000)]
        {
            let (servers, targets) = servers(loopback::<1>()[0], targets_count);
            // No servers' ports: those are of another address.
            let addresses = loopback::<3>()[..sources_count].to_vec();
            let mut sources = Sources::new(&addresses, &targets, 5).unwrap();
            let (held, failure) = hold(&mut sources, &servers, asked);
            assert_eq!(held.len(), held_most, "{sources_count} sources, {targets_count} targets");
            assert_eq!(failure, (held_most < asked).then_some(NO_PORTS));
        }
    }

    #[test]
    #[ignore = "needs root, for a network namespace with a port range of 2000"]
    fn ports_in_time_wait_serve_again() {
        if !is_in_namespace("ports_in_time_wait_serve_again") {
            return;
        }
        let (servers, targets) = servers(loopback::<1>()[0], 1);
        let mut sources = Sources::new(&loopback::<1>(), &targets, 5).unwrap();
        for round in 0..20_000 {
            let (held, failure) = hold(&mut sources, &servers, 1);
            assert_eq!(failure, None, "connection {round}");
            for Held { client, server } in held {
                // Closed first, it is the client's end that stays in TIME_WAIT.
                drop(client.stream);
                sources.release(client.pair, client.port);
                drop(server);
            }
        }
        let sockets = std::fs::read_to_string("/proc/net/sockstat").unwrap();
        let waiting = sockets.split_once(" tw ").unwrap().1.split_once(' ').unwrap().0.parse::<u32>().unwrap();
        assert!(waiting > 1000, "{waiting} in TIME_WAIT: this has shown nothing");
    }

    #[test]
    #[ignore = "needs root, for a network namespace with a port range of 2000, and 4,100 descriptors"]
    fn the_system_runs_out_of_ports_in_its_own_choice() {
        if !is_in_namespace("the_system_runs_out_of_ports_in_its_own_choice") {
            return;
        }
        rlimit::increase_nofile_limit(u64::MAX).unwrap();
        let server = TcpListener::bind("127.0.0.1:5000").unwrap();
        let mut sources = Sources::new(&[], &[server.local_addr().unwrap()], 5).unwrap();
        let mut held = Vec::new();
        let failure = loop {
            match sources.connect(&OPTIONS) {
                Ok(client) => held.push((client, server.accept().unwrap())),
                Err(failure) => break failure,
            }
        };
        assert_eq!((failure.phase, failure.error), (Phase::Connect, ErrorName::NoPorts));
        assert_eq!(held.len(), 2000);

        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
        let mut sources = Sources::new(&[], &["[::1]:5000".parse().unwrap()], 5).unwrap();
        let failure = sources.connect(&OPTIONS).unwrap_err();
        let unreachable =
            ConnectFailure { phase: Phase::Connect, error: ErrorName::Unreachable, errno: Some(libc::EADDRNOTAVAIL) };
        assert_eq!(failure, unreachable, "no address is not for want of ports");
    }
}
