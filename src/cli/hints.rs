//! What to do about an error, by what is known of this machine.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

/// Flags of an address whose duplicate address detection runs, and of one that another machine has (`linux/if_addr.h`).
const TENTATIVE: u32 = 0x40;
const DUPLICATE: u32 = 0x08;
/// The first unprivileged port where the system does not say.
const UNPRIVILEGED: u16 = 1024;

/// What to do when the process is out of descriptors.
pub(super) const DESCRIPTOR_HINT: &str = "raise the descriptor limit (ulimit -n, ulimit -Hn)";

/// Adds to an error what to do about it if the process is out of descriptors.
pub(super) fn with_descriptor_hint(error: io::Error) -> io::Error {
    let text = error.to_string();
    // The errno is the error's own, or its source's: the text ends with it in both.
    if text.ends_with(&io::Error::from(Errno::EMFILE).to_string()) {
        return io::Error::new(error.kind(), format!("{text}; {DESCRIPTOR_HINT}"));
    }
    error
}

/// Adds to the error of a server that cannot start on `addresses` what to do about it.
pub(super) fn with_bind_hint(error: io::Error, addresses: &[SocketAddr]) -> io::Error {
    let text = error.to_string();
    if error.kind() == io::ErrorKind::OutOfMemory {
        return io::Error::new(error.kind(), format!("{text}; choose a smaller --buffer-size"));
    }
    let is_named = |address: &&SocketAddr| text.starts_with(&format!("cannot listen on {address}: "));
    let Some(&address) = addresses.iter().find(is_named) else { return with_descriptor_hint(error) };
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => hint_of_port_in_use(address, addresses),
        io::ErrorKind::AddrNotAvailable => hint_of_address(address.ip()).to_owned(),
        io::ErrorKind::PermissionDenied => {
            let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(UNPRIVILEGED);
            hint_of_permission(address.port(), first)
        }
        _ => return with_descriptor_hint(error),
    };
    io::Error::new(error.kind(), format!("{text}; {hint}"))
}

fn hint_of_port_in_use(address: SocketAddr, addresses: &[SocketAddr]) -> String {
    let overlaps = |other: &&SocketAddr| {
        **other != address
            && other.port() == address.port()
            && other.is_ipv4() == address.is_ipv4()
            && (other.ip().is_unspecified() || address.ip().is_unspecified())
    };
    match addresses.iter().find(overlaps) {
        Some(other) => format!("it overlaps with {other}, which is given too: leave one of them out"),
        None => "end the other server, choose another port, or start both with --reuse-port".to_owned(),
    }
}

fn hint_of_permission(port: u16, first_unprivileged: u16) -> String {
    // The system chooses an unprivileged port for 0.
    if (1..first_unprivileged).contains(&port) {
        format!("choose a port from {first_unprivileged} up, or grant CAP_NET_BIND_SERVICE")
    } else {
        "the port needs no privilege: a security policy of this machine forbids it".to_owned()
    }
}

/// Returns what to do about an address that the system does not take for one of this machine.
pub(super) fn hint_of_address(ip: IpAddr) -> &'static str {
    let table = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    match flags(&table, ip) {
        Some(flags) if flags & DUPLICATE != 0 => {
            "another machine has this address: duplicate address detection has failed (see ip address)"
        }
        Some(flags) if flags & TENTATIVE != 0 => {
            "the address is tentative: try again once its duplicate address detection has ended (see ip address)"
        }
        _ => "no interface of this machine has this address (see ip address)",
    }
}

/// Returns the flags of an address in `/proc/net/if_inet6`.
fn flags(table: &str, ip: IpAddr) -> Option<u32> {
    let IpAddr::V6(ip) = ip else { return None };
    let digits = format!("{:032x}", ip.to_bits());
    let row = table.lines().find(|row| row.starts_with(&digits))?;
    u32::from_str_radix(row.split_ascii_whitespace().nth(4)?, 16).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_of_the_same_server_is_named() {
        let all = ["127.0.0.1:5", "0.0.0.0:6", "[::]:5", "0.0.0.0:5"].map(address);
        assert!(hint_of_port_in_use(all[0], &all).starts_with("it overlaps with 0.0.0.0:5,"));
        assert!(hint_of_port_in_use(all[3], &all).starts_with("it overlaps with 127.0.0.1:5,"));
        for other in [all[1], all[2]] {
            assert!(hint_of_port_in_use(other, &all).starts_with("end the other server"), "{other}");
        }
    }

    #[test]
    fn a_privilege_is_named_only_where_the_port_needs_it() {
        assert_eq!(hint_of_permission(79, 80), "choose a port from 80 up, or grant CAP_NET_BIND_SERVICE");
        assert!(hint_of_permission(80, 80).contains("security policy"));
    }

    #[test]
    fn the_flags_of_an_address_are_found() {
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     fd000000000000000000000000000005 02 40 00 c0     eth0\n";
        let flags = |ip: &str| flags(table, ip.parse().unwrap());
        assert_eq!((flags("::1"), flags("fd00::5"), flags("fd00::6")), (Some(0x80), Some(0xc0), None));
        assert_eq!(flags("127.0.0.1"), None);
    }
}
