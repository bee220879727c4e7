//! The addresses of `--source`.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use crate::address::ScopedIp;
use crate::error::ValueError;

/// Maximum number of source addresses, over all `--source`.
const SOURCES_MAX: u32 = 1 << 16;

/// A range of source addresses: `IP`, `IP-IP` or `IPv4/LEN`, without the network and the broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRange {
    first: ScopedIp,
    last: ScopedIp,
    count: u32,
}

impl SourceRange {
    fn new(first: ScopedIp, last: ScopedIp) -> Result<Self, ValueError> {
        let steps = match (first.ip(), last.ip()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => u128::from(last.to_bits()).checked_sub(first.to_bits().into()),
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits().checked_sub(first.to_bits()),
            _ => return Err("both ends of a range must be IPv4 or IPv6".into()),
        };
        if !first.has_zone_of(last) {
            return Err("both ends of a range must be on one interface".into());
        }
        let steps = steps.ok_or("the last address is before the first")?;
        let Some(count) = steps.checked_add(1).filter(|&count| count <= SOURCES_MAX.into()) else {
            return Err(too_many());
        };
        match [first, last].into_iter().find(|address| !is_unicast(address.ip())) {
            Some(address) => Err(format!("{address} cannot be a source").into()),
            None => Ok(Self { first, last, count: u32::try_from(count).map_err(|_| too_many())? }),
        }
    }

    fn network(address: Ipv4Addr, length: u32) -> Result<Self, ValueError> {
        let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (address.to_bits() & !host_bits, address.to_bits() | host_bits);
        // RFC 3021: a network of two addresses has no network or broadcast address.
        let edge = u32::from(length < 31);
        let [first, last] = [first + edge, last - edge].map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)).into());
        Self::new(first, last)
    }

    fn addresses(self) -> impl Iterator<Item = ScopedIp> {
        (0..self.count).map(move |step| {
            self.first.with_ip(match self.first.ip() {
                IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + step).into(),
                IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(step)).into(),
            })
        })
    }

    /// Returns every address of `ranges` once, in order.
    ///
    /// # Errors
    ///
    /// - There are more than 65,536.
    pub fn expand(ranges: &[Self]) -> Result<Vec<ScopedIp>, ValueError> {
        let count = ranges.iter().try_fold(0_u32, |count, range| count.checked_add(range.count));
        if count.is_none_or(|count| count > SOURCES_MAX) {
            return Err(too_many());
        }
        Ok(distinct(ranges.iter().flat_map(|range| range.addresses())))
    }
}

impl FromStr for SourceRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Some((address, length)) = text.split_once('/') {
            let address =
                address.parse().map_err(|_| format!("only a network of IPv4 is written IPv4/LEN: {address}"))?;
            return match length.parse() {
                Ok(length @ 0..=32) => Self::network(address, length),
                _ => Err("LEN must be a number from 0 to 32".into()),
            };
        }
        if text.contains(',') {
            return Err("write each address with its own --source, not with commas".into());
        }
        if text.parse::<SocketAddr>().is_ok() {
            return Err("a source has no port: its ports are chosen".into());
        }
        // The name of an interface may have a hyphen, too.
        let mut splits = text.match_indices('-').map(|(at, _)| (&text[..at], &text[at + 1..]));
        let is_ip = |text: &str| text.split('%').next().is_some_and(|ip| ip.parse::<IpAddr>().is_ok());
        let (first, last) = splits.find(|&(_, last)| is_ip(last)).unwrap_or((text, text));
        Self::new(first.parse()?, last.parse()?)
    }
}

impl fmt::Display for SourceRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(formatter, "{}", self.first)
        } else {
            write!(formatter, "{}-{}", self.first, self.last)
        }
    }
}

/// Returns whether connections can have the address.
fn is_unicast(ip: IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST))
}

fn too_many() -> ValueError {
    format!("there can be at most {SOURCES_MAX} source addresses").into()
}

/// Returns each of `items` once, in order of its first occurrence.
pub(super) fn distinct<T: Clone + Eq + Hash>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn expand(text: &str) -> Result<Vec<String>, ValueError> {
        let addresses = SourceRange::expand(&[text.parse()?])?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_address_a_range_and_a_network_are_parsed() {
        assert_eq!(expand("127.0.0.1").unwrap(), ["127.0.0.1"]);
        assert_eq!(expand("10.0.0.254-10.0.1.1").unwrap(), ["10.0.0.254", "10.0.0.255", "10.0.1.0", "10.0.1.1"]);
        assert_eq!(expand("::1").unwrap(), ["::1"]);
        assert_eq!(expand("fd00::fffe-fd00::1:0").unwrap(), ["fd00::fffe", "fd00::ffff", "fd00::1:0"]);
        assert_eq!(expand("fe80::1%7-fe80::2%7").unwrap(), ["fe80::1%7", "fe80::2%7"]);
        assert_eq!(expand("10.1.2.7/30").unwrap(), ["10.1.2.5", "10.1.2.6"]);
        assert_eq!(expand("10.1.2.6/31").unwrap(), ["10.1.2.6", "10.1.2.7"]);
        assert_eq!(expand("10.1.2.6/32").unwrap(), ["10.1.2.6"]);
        assert_eq!(expand("10.1.0.0/16").unwrap().len(), 65_534);
        assert_eq!(expand("10.1.0.0-10.1.255.255").unwrap().len(), 65_536);
    }

    #[test]
    fn an_invalid_source_is_rejected() {
        for text in ["", "-", "10.0.0.1-", "-10.0.0.1", "host", "10.0.0", "1-2", "10.0.0.0/x", "/8"] {
            assert!(text.parse::<SourceRange>().is_err(), "{text}");
        }
        for (text, why) in [
            ("10.0.0.2-10.0.0.1", "before the first"),
            ("10.0.0.1-::1", "must be IPv4 or IPv6"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/15", "65536"),
            ("0.0.0.0/0", "65536"),
            ("10.0.0.0-10.1.0.0", "65536"),
            ("::1-ffff::1", "65536"),
            ("0.0.0.0", "0.0.0.0"),
            ("::", "::"),
            ("239.255.0.1", "239.255.0.1"),
            ("255.255.255.255", "255.255.255.255 cannot be a source"),
            ("255.255.255.254-255.255.255.255", "255.255.255.255 cannot be a source"),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "65536"),
            ("10.0.0.1:80", "no port"),
            ("[::1]:80", "no port"),
            ("10.0.0.1,10.0.0.2", "its own --source"),
            ("fd00::/64", "only a network of IPv4"),
            ("::ffff:10.0.0.1", "write 10.0.0.1"),
            ("fe80::1", "needs its interface"),
            ("fe80::1%no-interface", r#"no interface "no-interface""#),
            ("10.0.0.1-host", "10.0.0.1-host is not an IP address"),
            ("fe80::1%1-fe80::2%2", "on one interface"),
        ] {
            let error = text.parse::<SourceRange>().unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_sum_of_ranges_is_limited_and_each_address_is_listed_once() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SourceRange>>();
        let addresses = SourceRange::expand(&ranges(&["10.0.0.2-10.0.0.3", "10.0.0.1-10.0.0.2"])).unwrap();
        assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "10.0.0.1"].map(|text| text.parse().unwrap()));
        assert!(
            SourceRange::expand(&ranges(&["10.1.0.0/16", "10.2.0.0/16"])).unwrap_err().to_string().contains("65536")
        );
    }
}
