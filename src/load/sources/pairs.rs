//! Pairs of a source and a target address.

use std::net::{SocketAddr, UdpSocket};

use super::ranges::distinct;
use crate::address::ScopedIp;
use crate::error::ValueError;
use crate::socket_address::AnyAddress;

/// Returns the number of source/target pairs that are used at a time: each target with every source that can reach it. Without
/// sources, one for each target. A target is a list of addresses, of which one is used.
///
/// # Errors
///
/// - There is no target, or none that a source can reach.
/// - There are sources, and a target is a Unix socket.
pub fn count_pairs(sources: &[ScopedIp], targets: &[Vec<AnyAddress>]) -> Result<u32, ValueError> {
    let pairs = Pairs::new(sources, targets)?;
    let count = (0..pairs.count()).filter(|&pair| pairs.is_usable(pair)).count();
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Returns the sources and the targets that are left out because they have no counterpart.
#[must_use]
pub fn unpaired<'a>(
    sources: &'a [ScopedIp],
    targets: &'a [Vec<AnyAddress>],
) -> (Vec<ScopedIp>, Vec<&'a Vec<AnyAddress>>) {
    if sources.is_empty() {
        return Default::default();
    }
    let addresses = target_addresses(sources, targets);
    let is_unused = |source: &ScopedIp| !addresses.iter().any(|of| reaches(*source, of));
    let is_unreachable = |target: usize| {
        !addresses.iter().any(|of| of.target == target && sources.iter().any(|&source| reaches(source, of)))
    };
    (
        sources.iter().copied().filter(is_unused).collect(),
        targets.iter().enumerate().filter(|&(target, _)| is_unreachable(target)).map(|(_, target)| target).collect(),
    )
}

/// Every source with every target address of its family, and which address of each target is used.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    groups: Vec<Group>,
    targets: Vec<Target>,
}

/// Sources and target addresses of one family.
#[derive(Debug)]
struct Group {
    /// `None` if the system chooses.
    sources: Vec<Option<ScopedIp>>,
    addresses: Vec<TargetAddress>,
}

#[derive(Clone, Debug)]
struct TargetAddress {
    address: AnyAddress,
    /// Its target, and its place there.
    target: usize,
    place: usize,
    /// It is an address of this machine, as far as that matters: without a loopback source it does not.
    is_local: bool,
}

/// A server, of which the addresses are tried in order until one accepts.
#[derive(Debug)]
struct Target {
    addresses: Vec<AnyAddress>,
    /// The place of the address that new connections use.
    current: usize,
    /// The current address has accepted a connection.
    is_settled: bool,
}

impl Pairs {
    /// Pairs what can be paired. A source or a target address without a counterpart is left out.
    pub(super) fn new(sources: &[ScopedIp], targets: &[Vec<AnyAddress>]) -> Result<Self, String> {
        if !sources.is_empty() && targets.iter().flatten().any(AnyAddress::is_unix) {
            return Err("a connection to a Unix socket has no source address: leave out the sources".to_owned());
        }
        let targets = distinct(targets.iter().map(|target| distinct(target.iter().cloned())));
        let mut addresses = target_addresses(sources, &targets);
        addresses.retain(|of| sources.is_empty() || sources.iter().any(|&source| reaches(source, of)));
        if addresses.is_empty() {
            return Err("there is no target, or none that a source can reach".to_owned());
        }
        let mut paired: Vec<Target> = Vec::new();
        let mut last = None;
        for of in &mut addresses {
            if last.replace(of.target) != Some(of.target) {
                paired.push(Target { addresses: Vec::new(), current: 0, is_settled: false });
            }
            let target = paired.len() - 1;
            (of.target, of.place) = (target, paired[target].addresses.len());
            paired[target].addresses.push(of.address.clone());
        }
        let groups = if sources.is_empty() {
            vec![Group { sources: vec![None], addresses }]
        } else {
            let sources: Vec<_> = distinct(sources.iter().copied())
                .into_iter()
                .filter(|&source| addresses.iter().any(|of| reaches(source, of)))
                .collect();
            let of_family = |is_ipv4: bool| Group {
                sources: sources.iter().copied().filter(|source| source.ip().is_ipv4() == is_ipv4).map(Some).collect(),
                addresses: addresses.iter().filter(|of| of.is_ipv4() == is_ipv4).cloned().collect(),
            };
            [of_family(true), of_family(false)].into_iter().filter(|group| group.count() > 0).collect()
        };
        let pairs: usize = groups.iter().map(|group| group.sources.len() * group.addresses.len()).sum();
        u32::try_from(pairs).map_err(|_| format!("{pairs} source/target pairs are too many"))?;
        Ok(Self { groups, targets: paired })
    }

    pub(super) fn count(&self) -> u32 {
        self.groups.iter().map(Group::count).sum()
    }

    /// Returns the source and the target address of a pair. The source is `None` if the system chooses it.
    pub(super) fn pair(&self, pair: u32) -> (Option<ScopedIp>, &AnyAddress) {
        let (source, of) = self.find(pair);
        (source, &of.address)
    }

    /// Returns whether new connections use the pair: its source reaches the address, which is the current one of its target.
    pub(super) fn is_usable(&self, pair: u32) -> bool {
        let (source, of) = self.find(pair);
        self.targets[of.target].current == of.place && source.is_none_or(|source| reaches(source, of))
    }

    /// Keeps to the address of a pair that has accepted a connection.
    pub(super) fn settle(&mut self, pair: u32) {
        let TargetAddress { target, place, .. } = *self.find(pair).1;
        let target = &mut self.targets[target];
        if !target.is_settled {
            (target.current, target.is_settled) = (place, true);
        }
    }

    /// Returns a pair with the next address of the same target, after a connect to the address of `pair` has failed; `None` if all
    /// were tried, or the address has accepted a connection before.
    pub(super) fn next_address(&mut self, pair: u32) -> Option<u32> {
        let TargetAddress { target: index, place, .. } = *self.find(pair).1;
        let target = &mut self.targets[index];
        let next = if target.is_settled {
            Some(target.current).filter(|&current| current != place)
        } else {
            Some(place + 1).filter(|&next| next < target.addresses.len())
        };
        if !target.is_settled && target.current == place {
            // After the last address a new connection begins with the first one again.
            target.current = next.unwrap_or(0);
        }
        let mut first = 0;
        for group in &self.groups {
            let is_next = |other: &TargetAddress| other.target == index && Some(other.place) == next;
            if let Some(at) = group.addresses.iter().position(is_next) {
                let reaches_it =
                    |source: &Option<ScopedIp>| source.is_none_or(|source| reaches(source, &group.addresses[at]));
                let column = group.sources.iter().position(reaches_it)?;
                return Some(first + group.index(column, at));
            }
            first += group.count();
        }
        None
    }

    /// Returns the addresses in use: of a target of which none has accepted a connection, all.
    pub(super) fn target_addresses(&self) -> Vec<AnyAddress> {
        let addresses = self.targets.iter().flat_map(|target| match target {
            Target { addresses, current, is_settled: true } => &addresses[*current..=*current],
            Target { addresses, .. } => addresses,
        });
        distinct(addresses.cloned())
    }

    /// Returns the sources that have a target.
    pub(super) fn sources(&self) -> Vec<ScopedIp> {
        self.groups.iter().flat_map(|group| &group.sources).copied().flatten().collect()
    }

    fn find(&self, pair: u32) -> (Option<ScopedIp>, &TargetAddress) {
        let first = &self.groups[0];
        match pair.checked_sub(first.count()) {
            None => first.pair(pair),
            Some(pair) => self.groups[1].pair(pair),
        }
    }
}

impl TargetAddress {
    fn is_ipv4(&self) -> bool {
        self.address.tcp().is_some_and(|address| address.is_ipv4())
    }
}

impl Group {
    fn count(&self) -> u32 {
        u32::try_from(self.sources.len() * self.addresses.len()).unwrap_or(u32::MAX)
    }

    /// Returns pair `index`, diagonally, so that the first few connections use several sources and several targets.
    fn pair(&self, index: u32) -> (Option<ScopedIp>, &TargetAddress) {
        let (row, column) = (index as usize / self.sources.len(), index as usize % self.sources.len());
        (self.sources[column], &self.addresses[(row + column) % self.addresses.len()])
    }

    /// Returns the index of the pair of the source at `column` with the address at `at`.
    fn index(&self, column: usize, at: usize) -> u32 {
        let addresses = self.addresses.len();
        let row = (at + addresses - column % addresses) % addresses;
        u32::try_from(row * self.sources.len() + column).unwrap_or(u32::MAX)
    }
}

/// Returns the addresses of all targets in order.
fn target_addresses(sources: &[ScopedIp], targets: &[Vec<AnyAddress>]) -> Vec<TargetAddress> {
    let has_loopback = sources.iter().any(|source| source.ip().is_loopback());
    // A socket can be bound only to an address of this machine. A datagram socket takes no port of a connection.
    let is_local = |address: &AnyAddress| {
        address
            .tcp()
            .is_some_and(|address| address.ip().is_loopback() || UdpSocket::bind(with_port(address, 0)).is_ok())
    };
    let mut all = Vec::new();
    for (target, addresses) in targets.iter().enumerate() {
        all.extend(addresses.iter().enumerate().map(|(place, address)| TargetAddress {
            address: address.clone(),
            target,
            place,
            is_local: has_loopback && is_local(address),
        }));
    }
    all
}

fn with_port(mut address: SocketAddr, port: u16) -> SocketAddr {
    address.set_port(port);
    address
}

/// Returns whether a connection can have this source and this target.
fn reaches(source: ScopedIp, of: &TargetAddress) -> bool {
    let zone = |address: SocketAddr| match address {
        SocketAddr::V6(v6) => Some(v6.scope_id()).filter(|&zone| zone > 0),
        SocketAddr::V4(_) => None,
    };
    let Some(address) = of.address.tcp() else { return false };
    let zones = zone(source.with_port(0)).zip(zone(address));
    source.ip().is_ipv4() == address.is_ipv4()
        && (of.is_local || !source.ip().is_loopback())
        && zones.is_none_or(|(ours, theirs)| ours == theirs)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn sources(texts: &[&str]) -> Vec<ScopedIp> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    /// Returns targets, each with its addresses separated by spaces.
    fn targets(texts: &[&str]) -> Vec<Vec<AnyAddress>> {
        texts.iter().map(|text| text.split(' ').map(|address| address.parse().unwrap()).collect()).collect()
    }

    #[test]
    fn sources_pair_with_targets_of_their_family() {
        let all = targets(&["10.0.1.1:5", "10.0.1.1:6", "[::1]:5"]);
        let count = |of: &[&str], targets: &[Vec<AnyAddress>]| count_pairs(&sources(of), targets);
        assert_eq!(count(&["10.0.0.1", "10.0.0.2", "::2"], &all), Ok(5));
        assert_eq!(count(&["10.0.0.1"], &all[..2]), Ok(2));
        assert_eq!(count(&[], &all), Ok(3));
        assert_eq!(count(&[], &[all[0].clone(), all[0].clone()]), Ok(1), "a repeated target adds no ports");
        assert!(count(&["10.0.0.1"], &[]).is_err());
        // What has no counterpart is left out.
        assert_eq!(count(&["10.0.0.1", "10.0.0.2", "::2"], &all[..2]), Ok(4));
        assert_eq!(count(&["10.0.0.1"], &all), Ok(2));
        assert!(count(&["::2"], &all[..2]).is_err(), "nothing is left");
    }

    #[test]
    fn sources_pair_with_what_they_can_reach() {
        // TEST-NET-2 of RFC 5737: no machine has it.
        let far = targets(&["198.51.100.1:5", "127.0.0.1:5"]);
        let near = sources(&["127.0.0.2", "127.0.0.3"]);
        assert_eq!(count_pairs(&near, &far), Ok(2), "a loopback source reaches this machine only");
        assert!(count_pairs(&near, &far[..1]).is_err());
        assert_eq!(count_pairs(&sources(&["10.0.0.1"]), &far), Ok(2));
        assert_eq!(count_pairs(&sources(&["127.0.0.2", "10.0.0.1"]), &far), Ok(3));
        assert_eq!(unpaired(&near, &far), (vec![], vec![&far[0]]));
        assert_eq!(count_pairs(&near, &targets(&["0.0.0.0:5"])), Ok(2), "an address that can be bound is local");

        let links = targets(&["[fe80::1%7]:5", "[fe80::1%8]:5", "[fd00::1]:5"]);
        assert_eq!(count_pairs(&sources(&["fe80::2%7"]), &links), Ok(2), "another link is out of reach");
        assert_eq!(count_pairs(&sources(&["fd00::2"]), &links), Ok(3));
        assert_eq!(unpaired(&sources(&["fe80::2%7", "10.0.0.1"]), &links), (sources(&["10.0.0.1"]), vec![&links[1]]));
    }

    #[test]
    fn the_next_address_is_tried_from_a_source_that_reaches_it() {
        for near in [1, 2, 3, 4] {
            let near = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"].into_iter().take(near);
            let of = sources(&near.chain(["10.0.0.1", "10.0.0.2"]).collect::<Vec<_>>());
            let mut pairs = Pairs::new(&of, &targets(&["127.0.0.1:5 198.51.100.1:5", "127.0.0.1:6"])).unwrap();
            for pair in 0..pairs.count() {
                let (_, address) = pairs.pair(pair);
                if address.to_string() == "127.0.0.1:5" {
                    let next = pairs.next_address(pair).unwrap();
                    let expected = (Some("10.0.0.1".parse().unwrap()), &"198.51.100.1:5".parse().unwrap());
                    assert_eq!(pairs.pair(next), expected, "{of:?}");
                }
            }
        }
    }

    #[test]
    fn a_target_with_several_addresses_counts_once() {
        let name = targets(&["[::1]:5 127.0.0.1:5"]);
        assert_eq!(count_pairs(&[], &name), Ok(1));
        assert_eq!(count_pairs(&sources(&["127.0.0.2", "127.0.0.3"]), &name), Ok(2));
        assert_eq!(count_pairs(&sources(&["127.0.0.2", "127.0.0.3", "::1"]), &name), Ok(1));
    }

    #[test]
    fn the_addresses_of_a_target_are_tried_in_order_until_one_accepts() {
        let name = targets(&["10.0.0.1:5 10.0.0.2:5 10.0.0.3:5"]);
        let mut pairs = Pairs::new(&[], &name).unwrap();
        assert_eq!(pairs.next_address(0), Some(1));
        assert!(pairs.is_usable(1) && !pairs.is_usable(0), "new connections begin with the second");
        // Another connection, which was connecting at the same time, continues from where it was.
        assert_eq!(pairs.next_address(0), Some(1));
        assert_eq!((pairs.next_address(1), pairs.next_address(2)), (Some(2), None));
        assert!(pairs.is_usable(0), "after the last address, a new connection begins with the first");
        assert_eq!(pairs.target_addresses(), name[0]);

        pairs.settle(1);
        assert!(pairs.is_usable(1));
        assert_eq!(pairs.next_address(0), Some(1), "a connection to another address joins it");
        assert_eq!(pairs.next_address(1), None, "an address that has accepted once is kept");
        assert_eq!(pairs.target_addresses(), name[0][1..2]);
    }

    #[test]
    fn the_next_address_may_be_of_another_family() {
        let (v4, v6) = (("127.0.0.2", "127.0.0.1:5"), ("::1", "[::1]:5"));
        // The sources of IPv4 are two.
        for (first, next, usable) in [(v6, v4, 2), (v4, v6, 1)] {
            let target = targets(&[&format!("{} {}", first.1, next.1)]);
            let mut pairs = Pairs::new(&sources(&["127.0.0.2", "127.0.0.3", "::1"]), &target).unwrap();
            let pair = (0..pairs.count()).find(|&pair| pairs.is_usable(pair)).unwrap();
            assert_eq!(pairs.pair(pair).1.to_string(), first.1);
            let pair = pairs.next_address(pair).unwrap();
            assert_eq!(pairs.pair(pair), (Some(next.0.parse().unwrap()), &next.1.parse().unwrap()));
            assert_eq!((0..pairs.count()).filter(|&pair| pairs.is_usable(pair)).count(), usable);
        }
    }

    #[test]
    fn two_targets_may_have_an_address_in_common() {
        let mut pairs = Pairs::new(&[], &targets(&["127.0.0.1:5 [::1]:5", "127.0.0.1:5"])).unwrap();
        let failed: Vec<_> = (0..pairs.count()).filter(|&pair| pairs.is_usable(pair)).collect();
        let next: Vec<_> = failed.iter().map(|&pair| pairs.next_address(pair).is_some()).collect();
        assert_eq!(next, [true, false], "the second target has no other address");
    }
}
