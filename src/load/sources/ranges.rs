//! The addresses of `--source`.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// Maximum number of source addresses, over all `--source`.
const SOURCES_MAX: u32 = 1 << 16;

/// A range of source addresses: `IP`, `IP-IP` or `IPv4/LEN`, without the network and the broadcast address.
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
            _ => return Err("both ends of a range must be IPv4 or IPv6".to_owned()),
        };
        let steps = steps.ok_or("the last address is before the first")?;
        let Some(count) = u32::try_from(steps + 1).ok().filter(|&count| count <= SOURCES_MAX) else {
            return Err(too_many());
        };
        match [first, last].into_iter().find(|address| address.is_unspecified() || address.is_multicast()) {
            Some(address) => Err(format!("{address} cannot be a source")),
            None => Ok(Self { first, last, count }),
        }
    }

    fn network(address: Ipv4Addr, length: u32) -> Result<Self, String> {
        let host_bits = u32::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (address.to_bits() & !host_bits, address.to_bits() | host_bits);
        // RFC 3021: a network of two addresses has no network or broadcast address.
        let edge = u32::from(length < 31);
        Self::new(Ipv4Addr::from_bits(first + edge).into(), Ipv4Addr::from_bits(last - edge).into())
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (0..self.count).map(move |step| match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + step).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() + u128::from(step)).into(),
        })
    }

    /// Returns every address of `ranges` once, in order.
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

/// Returns each of `items` once, in order of its first occurrence.
pub(super) fn distinct<T: Copy + Eq + Hash>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = HashSet::new();
    items.into_iter().filter(|&item| seen.insert(item)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn expand(text: &str) -> Result<Vec<String>, String> {
        let addresses = SourceRange::expand(&[text.parse()?])?;
        Ok(addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn an_address_a_range_and_a_network_are_parsed() {
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
    fn an_invalid_source_is_rejected() {
        for text in ["", "-", "10.0.0.1-", "host", "10.0.0.1:80", "10.0.0", "1-2", "fd00::/64", "10.0.0.0/x", "/8"] {
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
        ] {
            let error = text.parse::<SourceRange>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn the_sum_of_ranges_is_limited_and_each_address_is_listed_once() {
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SourceRange>>();
        let addresses = SourceRange::expand(&ranges(&["10.0.0.2-10.0.0.3", "10.0.0.1-10.0.0.2"])).unwrap();
        assert_eq!(addresses, ["10.0.0.2", "10.0.0.3", "10.0.0.1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert!(SourceRange::expand(&ranges(&["10.1.0.0/16", "10.2.0.0/16"])).unwrap_err().contains("65536"));
    }
}
