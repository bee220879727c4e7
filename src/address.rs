//! IP addresses with the zone that a link-local one needs.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};
use std::str::FromStr;

use crate::error::ValueError;

/// An IP address, with the zone of a link-local one (RFC 4007): `fe80::1%eth0`.
///
/// # Examples
///
/// ```
/// use ecoloop::address::ScopedIp;
///
/// let source: ScopedIp = "fe80::1%2".parse()?;
/// assert_eq!(source.with_port(5000).to_string(), "[fe80::1%2]:5000");
/// # Ok::<(), ecoloop::ValueError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScopedIp {
    ip: IpAddr,
    /// The index of the interface, or 0.
    scope_id: u32,
}

impl ScopedIp {
    /// Returns the address without its zone.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// Returns another address of the same zone.
    #[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
    pub(crate) fn with_ip(self, ip: IpAddr) -> Self {
        Self { ip, ..self }
    }

    /// Returns whether the zones are the same.
    #[cfg(all(feature = "load", any(target_os = "linux", target_os = "android")))]
    pub(crate) fn has_zone_of(self, other: Self) -> bool {
        self.scope_id == other.scope_id
    }

    /// Returns the socket address, with the zone.
    #[must_use]
    pub fn with_port(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V4(ip) => (ip, port).into(),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope_id).into(),
        }
    }
}

impl From<IpAddr> for ScopedIp {
    fn from(ip: IpAddr) -> Self {
        Self { ip, scope_id: 0 }
    }
}

impl FromStr for ScopedIp {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (ip, zone) = text.split_once('%').map_or((text, None), |(ip, zone)| (ip, Some(zone)));
        let ip = ip.parse::<IpAddr>().map_err(|_| format!("{ip} is not an IP address"))?;
        if let IpAddr::V6(v6) = ip
            && let Some(mapped) = v6.to_ipv4_mapped()
        {
            return Err(format!("{ip} is an IPv4 address in IPv6: write {mapped}").into());
        }
        let is_link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let reason = match zone {
            None if is_link_local => format!("the link-local address {ip} needs its interface: {ip}%eth0"),
            None => return Ok(ip.into()),
            Some(_) if !is_link_local => {
                format!("{ip} has no interface: only a link-local address (fe80::/10) has one")
            }
            Some(zone) => match interface_index(zone) {
                Some(scope_id) => return Ok(Self { ip, scope_id }),
                None => format!("there is no interface {zone:?}"),
            },
        };
        Err(reason.into())
    }
}

impl fmt::Display for ScopedIp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip.fmt(formatter)?;
        if self.scope_id == 0 { Ok(()) } else { write!(formatter, "%{}", self.scope_id) }
    }
}

/// Returns the index of an interface, by its name or its index.
fn interface_index(zone: &str) -> Option<u32> {
    if let Ok(index) = zone.parse() {
        return Some(index).filter(|&index| index > 0);
    }
    // The resolver looks it up, without a query: the address is numeric.
    let text = format!("{}%{zone}", Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));
    (&text[..], 0).to_socket_addrs().ok()?.find_map(|address| match address {
        SocketAddr::V6(v6) => Some(v6.scope_id()).filter(|&index| index > 0),
        SocketAddr::V4(_) => None,
    })
}

#[cfg(feature = "load")]
impl serde::Serialize for ScopedIp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "load")]
impl<'de> serde::Deserialize<'de> for ScopedIp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_is_the_name_or_the_index_of_an_interface() {
        let parse = |text: &str| text.parse::<ScopedIp>().map(|ip| (ip.to_string(), ip.with_port(5).to_string()));
        let owned = |ip: &str, address: &str| Ok((ip.to_owned(), address.to_owned()));
        assert_eq!(parse("10.0.0.1"), owned("10.0.0.1", "10.0.0.1:5"));
        assert_eq!(parse("fd00::1"), owned("fd00::1", "[fd00::1]:5"));
        assert_eq!(parse("fe80::1%7"), owned("fe80::1%7", "[fe80::1%7]:5"));
        assert_eq!(parse("fe80::1%lo"), owned("fe80::1%1", "[fe80::1%1]:5"), "lo is the first interface of Linux");
    }

    #[test]
    fn an_invalid_address_is_rejected_with_the_reason() {
        for (text, reason) in [
            ("", " is not an IP address"),
            ("host", "host is not an IP address"),
            ("[::1]", "[::1] is not an IP address"),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1 is an IPv4 address in IPv6: write 10.0.0.1"),
            ("fe80::1", "the link-local address fe80::1 needs its interface: fe80::1%eth0"),
            ("fe80::1%", r#"there is no interface """#),
            ("fe80::1%0", r#"there is no interface "0""#),
            ("fe80::1%nope", r#"there is no interface "nope""#),
            ("::1%lo", "::1 has no interface: only a link-local address (fe80::/10) has one"),
            ("10.0.0.1%lo", "10.0.0.1 has no interface: only a link-local address (fe80::/10) has one"),
        ] {
            assert_eq!(text.parse::<ScopedIp>(), Err(reason.into()), "{text}");
        }
    }
}
