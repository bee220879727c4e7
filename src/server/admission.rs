//! Which sources may connect.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{Config, SourceLimit};
use super::observer::Peer;
use super::stats::RefusedCounters;
use crate::clock;
use crate::log_target::warn_rate_limited;
use crate::network;

/// Decides which sources may connect, and counts and logs the refused ones.
#[derive(Debug)]
pub(super) struct Admission {
    /// Empty: every source.
    allowed: Vec<IpNet>,
    limit: Option<SourceLimit>,
    /// Open connections of each source, if there is a limit.
    open: HashMap<IpNet, u32>,
    not_allowed_logged_at: Option<Instant>,
    per_source_logged_at: Option<Instant>,
}

impl Admission {
    pub(super) fn new(config: &Config) -> Self {
        let allowed = config.allow.iter().copied().map(network::canonical).collect();
        Self {
            allowed,
            limit: config.max_per_source,
            open: HashMap::new(),
            not_allowed_logged_at: None,
            per_source_logged_at: None,
        }
    }

    /// Returns whether `address` may connect, and counts and logs it if not. A peer without an address may.
    pub(super) fn admit(&mut self, address: SocketAddr, refused: &RefusedCounters) -> bool {
        if address == Peer::NO_ADDRESS {
            return true;
        }
        let ip = address.ip().to_canonical();
        if !self.allowed.is_empty() && !self.allowed.iter().any(|network| network.contains(&ip)) {
            refused.not_allowed.add(1);
            warn_rate_limited(
                &mut self.not_allowed_logged_at,
                clock::now(),
                format_args!("reset the connection from {address}: it is in no network that is allowed"),
            );
            return false;
        }
        if let (Some(source), Some(limit)) = (self.source_of(address), self.limit)
            && self.open.get(&source).is_some_and(|&open| open >= limit.connections)
        {
            refused.per_source.add(1);
            let most = limit.connections;
            warn_rate_limited(
                &mut self.per_source_logged_at,
                clock::now(),
                format_args!("reset the connection from {address}: {source} has {most} open, the maximum"),
            );
            return false;
        }
        true
    }

    /// Counts a connection that was admitted.
    pub(super) fn opened(&mut self, address: SocketAddr) {
        if let Some(source) = self.source_of(address) {
            *self.open.entry(source).or_default() += 1;
        }
    }

    /// Counts the close of one.
    pub(super) fn closed(&mut self, address: SocketAddr) {
        let Some(source) = self.source_of(address) else { return };
        if let Entry::Occupied(mut open) = self.open.entry(source) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    /// Returns the network that counts as one source with `address`, if sources are limited.
    fn source_of(&self, address: SocketAddr) -> Option<IpNet> {
        let limit = self.limit.filter(|_| address != Peer::NO_ADDRESS)?;
        let ip = address.ip().to_canonical();
        let network = match ip {
            IpAddr::V4(ip) => Ipv4Net::new(ip, limit.ipv4_prefix).map(IpNet::V4),
            IpAddr::V6(ip) => Ipv6Net::new(ip, limit.ipv6_prefix).map(IpNet::V6),
        };
        Some(network.map_or_else(|_| ip.into(), |network| network.trunc()))
    }

    /// Returns the memory of closed connections.
    pub(super) fn shrink_to_fit(&mut self) {
        self.open.shrink_to_fit();
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_network() {
        let default = SourceLimit::new(1);
        let wide = SourceLimit { ipv4_prefix: 24, ipv6_prefix: 48, ..default };
        for (limit, first, same, other) in [
            (default, "10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"),
            (default, "2001:db8::1", "2001:db8::ffff:0:0:2", "2001:db8:0:1::1"),
            (wide, "10.0.0.1", "::ffff:10.0.0.255", "10.0.1.1"),
            (wide, "2001:db8::1", "2001:db8:0:1::1", "2001:db8:1::1"),
        ] {
            let config = Config { max_per_source: Some(limit), ..Config::default() };
            let (mut admission, refused) = (Admission::new(&config), RefusedCounters::default());
            let address = |ip: &str| (ip.parse::<IpAddr>().unwrap(), 1).into();
            admission.opened(address(first));
            assert!(!admission.admit(address(same), &refused), "{same}");
            assert!(admission.admit(address(other), &refused), "{other}");
            admission.closed(address(first));
            assert!(admission.admit(address(same), &refused) && admission.open.is_empty(), "{first}");
        }
    }

    #[test]
    fn ipv4_mapped_ipv6_counts_as_ipv4() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.1.2.3", "11.0.0.1"),
            ("10.1.2.3/8", "::ffff:10.9.9.9", "::ffff:11.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.1"),
            ("192.0.2.7/32", "192.0.2.7", "192.0.2.8"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "::ffff:10.0.0.1"),
            ("0.0.0.0/0", "::ffff:10.0.0.1", "::1"),
        ] {
            let config = Config { allow: vec![network.parse().unwrap()], ..Config::default() };
            let (mut admission, refused) = (Admission::new(&config), RefusedCounters::default());
            let mut admit = |ip: &str| admission.admit((ip.parse::<IpAddr>().unwrap(), 1).into(), &refused);
            assert_eq!((admit(inside), admit(outside)), (true, false), "{network}");
        }
    }

    #[test]
    fn the_memory_of_closed_connections_is_returned() {
        let limit = SourceLimit::new(1);
        let mut admission = Admission::new(&Config { max_per_source: Some(limit), ..Config::default() });
        let addresses = || (1..1000_u16).map(|port| SocketAddr::from((Ipv4Addr::from_bits(port.into()), port)));
        addresses().for_each(|address| admission.opened(address));
        addresses().for_each(|address| admission.closed(address));
        admission.shrink_to_fit();
        assert_eq!(admission.open.capacity(), 0);
    }
}
