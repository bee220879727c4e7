//! Networks of sources.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Returns a network of IPv4-mapped IPv6 addresses as one of IPv4: so are its addresses compared.
pub(crate) fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len().checked_sub(96)) {
        (IpAddr::V4(ip), Some(length)) if network.addr().is_ipv6() => {
            Ipv4Net::new(ip, length).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}
