//! Which sources may connect.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net};

use super::accept::warn_rate_limited;
use super::config::Config;
use super::stats::RefusedCounters;

/// Decides which sources may connect, and counts and logs those that may not.
#[derive(Debug)]
pub(super) struct Admission {
    /// Empty: every source.
    allowed: Vec<IpNet>,
    not_allowed_logged_at: Option<Instant>,
}

impl Admission {
    pub(super) fn new(config: &Config) -> Self {
        let allowed = config.allow.iter().copied().map(canonical_network).collect();
        Self { allowed, not_allowed_logged_at: None }
    }

    /// Returns whether `address` may connect, and counts and logs it if not.
    pub(super) fn admit(&mut self, address: SocketAddr, refused: &RefusedCounters) -> bool {
        let ip = address.ip().to_canonical();
        if !self.allowed.is_empty() && !self.allowed.iter().any(|network| network.contains(&ip)) {
            refused.not_allowed.add(1);
            let message = format_args!("reset the connection from {address}: it is in no network that is allowed");
            warn_rate_limited(&mut self.not_allowed_logged_at, Instant::now(), message);
            return false;
        }
        true
    }
}

/// Returns a network of IPv4-mapped IPv6 addresses as one of IPv4: so are its addresses compared.
fn canonical_network(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(ip), Some(length)) if network.addr().is_ipv6() => {
            Ipv4Net::new(ip, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

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
}
