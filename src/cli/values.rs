//! Values of the command line: addresses, sizes, counts, rates; and options that subcommands share.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use bytesize::ByteSize;
use clap::Args;
use ecoloop::units::parse_count;
#[cfg(feature = "load")]
use ecoloop::units::parse_rate;

/// An address: `IP:PORT`, `[IPv6]:PORT`, `NAME:PORT` or `:PORT`.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Socket(SocketAddr),
    Name(String),
    Port(u16),
}

impl Address {
    /// Resolves to every address of a name; a bare port is a port of `any`.
    pub(super) fn resolve(&self, any: IpAddr) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::Socket(address) => Ok(vec![*address]),
            Self::Port(port) => Ok(vec![SocketAddr::new(any, *port)]),
            Self::Name(name) => match name.to_socket_addrs() {
                Ok(addresses) => Ok(addresses.collect()),
                Err(error) => Err(io::Error::new(error.kind(), format!("cannot resolve {name}: {error}"))),
            },
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected IP:PORT, [IPv6]:PORT, NAME:PORT or :PORT";
        if let Ok(address) = text.parse() {
            return Ok(Self::Socket(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let port = port.parse().map_err(|_| "the port must be a number from 0 to 65535")?;
        if host.is_empty() {
            return Ok(Self::Port(port));
        }
        if host.contains(':') {
            return Err("an IPv6 address with a port is written [IPv6]:PORT");
        }
        // RFC 1123, 2.1, and the underscore, which exists in real zones.
        let last_label = host.rsplit('.').next().unwrap_or_default();
        if !last_label.is_empty() && last_label.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("not an IPv4 address, and no name ends in a number");
        }
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if is_name && !host.starts_with(['-', '.']) { Ok(Self::Name(text.to_owned())) } else { Err(EXPECTED) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(formatter),
            Self::Name(name) => name.fmt(formatter),
            Self::Port(port) => write!(formatter, ":{port}"),
        }
    }
}

/// The heading of socket options in the help.
pub(super) const SOCKETS: &str = "Sockets";

/// Options of `serve` and `load` for each socket.
#[derive(Args)]
#[command(next_help_heading = SOCKETS)]
pub(super) struct SocketArguments {
    #[arg(
        long,
        help = "Kernel receive buffer of each connection (SO_RCVBUF) [default: set by the system]",
        value_name = "SIZE", value_parser = size)]
    pub(super) recv_buffer: Option<usize>,

    #[arg(
        long,
        help = "Kernel send buffer of each connection (SO_SNDBUF) [default: set by the system]",
        value_name = "SIZE", value_parser = size)]
    pub(super) send_buffer: Option<usize>,

    #[arg(long, help = "Enable Nagle's algorithm (leave TCP_NODELAY unset)")]
    pub(super) nagle: bool,
}

/// Parses a size in bytes, from 1 to 1 GiB: `1024`, `64KiB`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let bytes = text.parse::<ByteSize>().map_err(|_| "expected a size such as 1024 or 64KiB")?.as_u64();
    match usize::try_from(bytes) {
        Ok(bytes @ 1..=0x4000_0000) => Ok(bytes),
        _ => Err("it must be from 1 to 1GiB".to_owned()),
    }
}

/// Parses a count from 1 up to the largest that listen(2) takes: `4096`, `10k`, `1.5M`.
pub(super) fn count(text: &str) -> Result<u32, String> {
    let value = parse_count(text).ok_or("expected a count such as 4096, 10k or 1M")?;
    if value.fract() != 0.0 {
        return Err("it must be a whole number".to_owned());
    }
    if !(1.0..=f64::from(i32::MAX)).contains(&value) {
        return Err(format!("it must be from 1 to {}", i32::MAX));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and within range")]
    Ok(value as u32)
}

/// Parses a number per second, above zero: `2000`, `10k/s`, `0.5/s`.
#[cfg(feature = "load")]
pub(super) fn rate(text: &str) -> Result<f64, &'static str> {
    match parse_rate(text) {
        Some(rate) if rate > 0.0 => Ok(rate),
        Some(_) => Err("it must be above zero"),
        None => Err("expected a rate such as 2000, 10k or 0.5/s"),
    }
}
