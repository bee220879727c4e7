//! Values of the command line: addresses, sizes, counts, rates; and options that subcommands share.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;
#[cfg(feature = "load")]
use std::time::SystemTime;

use clap::Args;
use ecoloop::address::ScopedIp;
#[cfg(feature = "load")]
use ecoloop::load::RateStage;
#[cfg(feature = "load")]
use ecoloop::transport::AnyAddress;
use ecoloop::transport::UnixAddress;
use ecoloop::units::{parse_count, parse_duration, parse_rate, parse_size};
use ecoloop::{IpNet, SourceLimit};

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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected IP:PORT, [IPv6]:PORT, NAME:PORT or :PORT";
        if text.starts_with(UNIX) {
            return Err("a Unix socket cannot be used here".to_owned());
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            // A server of bytes has no paths.
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            return Err(match host.parse::<Self>() {
                Ok(_) => format!("write {host} without {scheme}://"),
                Err(_) if !host.is_empty() && format!("{host}:1").parse::<Self>().is_ok() => {
                    format!("write {host}:PORT without {scheme}://")
                }
                Err(_) => EXPECTED.to_owned(),
            });
        }
        if text.contains(',') {
            return Err("write several addresses with spaces between them, not commas".to_owned());
        }
        if let Some(rest) = text.strip_prefix('[') {
            return bracketed(rest);
        }
        if is_ipv6(text) {
            // Its last group may be meant as the port.
            let (ip, port) = match text.rsplit_once(':') {
                Some((ip, port)) if is_ipv6(ip) && parse_port(port).is_ok() => (ip, port),
                _ => (text, "PORT"),
            };
            return Err(format!("an IPv6 address is written in brackets, with a port: [{ip}]:{port}"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(match text {
                _ if is_number(text) => format!("a port alone is written :{text}"),
                _ if is_name(text) => format!("the port is missing: {text}:PORT"),
                _ => EXPECTED.to_owned(),
            });
        };
        let port = parse_port(port)?;
        if is_ipv6(host) {
            return Err(format!("an IPv6 address with a port is written in brackets: [{host}]:{port}"));
        }
        if host.is_empty() {
            return Ok(Self::Port(port));
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Socket((ip, port).into()));
        }
        // RFC 1123, 2.1.
        let last_label = host.rsplit('.').next().unwrap_or_default();
        if is_number(last_label) {
            return Err(format!("{host} is not an IPv4 address, and no name ends in a number"));
        }
        if !host.is_ascii() {
            return Err(format!("write the name {host} in its ASCII form, which begins with xn--"));
        }
        if is_name(host) {
            return Ok(Self::Name(text.to_owned()));
        }
        Err(format!("{host} is not a name: it has characters other than letters, digits, hyphens and dots"))
    }
}

/// What the address of a Unix socket begins with.
const UNIX: &str = "unix:";

/// An address, or a Unix socket: `unix:/path`, `unix:@name`.
#[derive(Clone, Debug)]
pub(super) enum Endpoint {
    Ip(Address),
    Unix(UnixAddress),
}

impl Endpoint {
    /// Resolves to every address of a name; a bare port is a port of this machine.
    #[cfg(feature = "load")]
    pub(super) fn resolve(&self) -> io::Result<Vec<AnyAddress>> {
        match self {
            Self::Ip(address) => {
                Ok(address.resolve(Ipv4Addr::LOCALHOST.into())?.into_iter().map(AnyAddress::from).collect())
            }
            Self::Unix(address) => Ok(vec![address.clone().into()]),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Unix(address) => address.fmt(formatter),
        }
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(UNIX) {
            Some(path) => UnixAddress::new(path).map(Self::Unix).map_err(|error| error.to_string()),
            None => text.parse().map(Self::Ip),
        }
    }
}

/// Parses the mode of a file in octal digits: `0660`, `600`.
pub(super) fn mode(text: &str) -> Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| is_number(text) && mode <= 0o777);
    mode.ok_or("expected a mode such as 0660, from 0 to 0777")
}

/// Parses what follows the opening bracket of `[IPv6]:PORT`.
fn bracketed(rest: &str) -> Result<Address, String> {
    let Some((host, port)) = rest.split_once(']') else {
        return Err("the closing bracket is missing: expected [IPv6]:PORT".to_owned());
    };
    let ip = host.parse::<ScopedIp>()?;
    if ip.ip().is_ipv4() {
        return Err(format!("brackets are for IPv6: write {host}{port}"));
    }
    match port.strip_prefix(':') {
        Some(port) => Ok(Address::Socket(ip.with_port(parse_port(port)?))),
        None if port.is_empty() => Err(format!("the port is missing: [{host}]:PORT")),
        None => Err(format!("the port follows a colon: [{host}]:{port}")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|_| is_number(text));
    port.ok_or_else(|| "the port must be a number from 0 to 65535".to_owned())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether the text is an IPv6 address, with or without a zone.
fn is_ipv6(text: &str) -> bool {
    let (ip, zone) = text.split_once('%').unwrap_or((text, ""));
    ip.parse::<Ipv6Addr>().is_ok() && !zone.contains(':')
}

/// Returns whether the text can be the name of a host. The underscore exists in real zones.
fn is_name(text: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && !text.starts_with(['-', '.']) && text.bytes().all(is_valid)
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

/// Options of `load` and `doctor` for the addresses of a target.
#[cfg(feature = "load")]
#[derive(Args)]
pub(super) struct TargetArguments {
    /// Use only the IPv4 addresses of a name
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,

    /// Use only the IPv6 addresses of a name
    #[arg(short = '6', long)]
    ipv6: bool,

    /// Make every address of a name a target, not only the first
    #[arg(long)]
    all_addresses: bool,
}

#[cfg(feature = "load")]
impl TargetArguments {
    /// Resolves to targets, each with the addresses to try; a bare port is a port of this machine.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the address is of the excluded family.
    /// - The name does not resolve, or has no address of the family.
    pub(super) fn resolve(&self, endpoint: &Endpoint) -> io::Result<Vec<Vec<AnyAddress>>> {
        let address = match endpoint {
            Endpoint::Ip(address) => address,
            Endpoint::Unix(_) if self.ipv4 || self.ipv6 => return Err(self.not_of_family(endpoint)),
            Endpoint::Unix(address) => return Ok(vec![vec![address.clone().into()]]),
        };
        let localhost = if self.ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let mut addresses = address.resolve(localhost)?;
        addresses.retain(|address| if address.is_ipv4() { !self.ipv6 } else { !self.ipv4 });
        if addresses.is_empty() {
            return Err(match address {
                Address::Name(name) => io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("cannot resolve {name}: it has no {} address", self.family()),
                ),
                _ => self.not_of_family(address),
            });
        }
        let addresses = addresses.into_iter().map(AnyAddress::from);
        Ok(if self.all_addresses {
            addresses.map(|address| vec![address]).collect()
        } else {
            vec![addresses.collect()]
        })
    }

    /// Returns the name of the family that is not excluded.
    fn family(&self) -> &'static str {
        if self.ipv4 { "IPv4" } else { "IPv6" }
    }

    fn not_of_family(&self, address: impl fmt::Display) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is not an {} address", self.family()))
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
        help = "Kernel receive buffer (SO_RCVBUF) [default: set by the system]",
        value_name = "SIZE", value_parser = size)]
    pub(super) recv_buffer: Option<usize>,

    #[arg(
        long,
        help = "Kernel send buffer (SO_SNDBUF) [default: set by the system]",
        value_name = "SIZE", value_parser = size)]
    pub(super) send_buffer: Option<usize>,

    #[arg(long, help = "Enable Nagle's algorithm (leave TCP_NODELAY unset)")]
    pub(super) nagle: bool,
}

/// Parses a size in bytes, from 1 to 1 GiB: `1024`, `64KiB`.
pub(super) fn size(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text).ok_or_else(|| expected_size(text))?;
    match usize::try_from(bytes) {
        Ok(bytes @ 1..=0x4000_0000) => Ok(bytes),
        _ => Err("it must be from 1 to 1GiB".to_owned()),
    }
}

/// Returns what is wrong with a size. One in thousands, `4k` or `4KB`, may be meant in either way.
fn expected_size(text: &str) -> String {
    let units = [("k", "KiB", 1000_u64), ("m", "MiB", 1_000_000), ("g", "GiB", 1_000_000_000)];
    let lower = text.to_ascii_lowercase();
    let short = lower.trim_end_matches("ib").trim_end_matches('b').trim_end();
    let meant = units.iter().find_map(|(letter, unit, thousands)| {
        let digits = short.strip_suffix(letter)?.trim_end();
        let (binary, decimal) = (format!("{digits}{unit}"), parse_size(digits)?.checked_mul(*thousands)?);
        Some(format!("write {binary} ({} bytes) or {decimal}", parse_size(&binary)?))
    });
    meant.unwrap_or_else(|| "expected a size such as 1024 or 64KiB".to_owned())
}

/// Parses a size, or a range of sizes: `64..4KiB`.
#[cfg(feature = "load")]
pub(super) fn sizes(text: &str) -> Result<(usize, Option<usize>), String> {
    let Some((least, most)) = text.split_once("..") else { return Ok((size(text)?, None)) };
    match (size(least)?, size(most)?) {
        (least, most) if least <= most => Ok((least, Some(most))),
        _ => Err("the first size must be at most the second".to_owned()),
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

/// Parses a duration: `500us`, `5s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| {
        if is_number(text) {
            format!("the unit is missing: {text}s, or {text}ms")
        } else {
            "expected a number and us, ms, s, m or h, such as 500ms".to_owned()
        }
    })
}

/// Parses a duration above zero: `500us`, `5s`.
pub(super) fn timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be above zero".to_owned()),
        timeout => Ok(timeout),
    }
}

/// Parses an idle time of keep-alive, which the kernel counts in whole seconds: `30s`, `10m`.
pub(super) fn keepalive(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if (1..=32767).contains(&time.as_secs()) { Ok(time) } else { Err("it must be from 1s to 32767s".to_owned()) }
}

/// Parses a network: `10.0.0.0/8`, `2001:db8::/32`, or a single address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    let expected = |_| "expected a network such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7";
    let network = text.parse::<IpNet>().or_else(|_| address()).map_err(expected)?;
    let (address, truncated) = (network.addr(), network.trunc());
    if truncated != network {
        return Err(format!("{address} is one address of the network {truncated}: write {truncated} or {address}"));
    }
    Ok(network)
}

/// Parses a number of connections from one source, and the bits of a network that is one: `50`, `50/24`, `50/24:48`.
pub(super) fn source_limit(text: &str) -> Result<SourceLimit, String> {
    let (connections, prefixes) = text.split_once('/').map_or((text, None), |(count, rest)| (count, Some(rest)));
    let mut limit = SourceLimit::new(count(connections)?);
    if let Some(prefixes) = prefixes {
        let (ipv4, ipv6) = prefixes.split_once(':').map_or((prefixes, None), |(ipv4, ipv6)| (ipv4, Some(ipv6)));
        limit.ipv4_prefix = prefix_length(ipv4, "IPv4", 32)?;
        if let Some(ipv6) = ipv6 {
            limit.ipv6_prefix = prefix_length(ipv6, "IPv6", 128)?;
        }
    }
    Ok(limit)
}

fn prefix_length(text: &str, family: &str, most: u8) -> Result<u8, String> {
    let length = text.parse().ok().filter(|length| is_number(text) && *length <= most);
    length.ok_or_else(|| format!("the {family} network must have from 0 to {most} bits"))
}

/// Parses a time of RFC 3339, in UTC or with an offset: `2026-11-22T08:00:00Z`, `2026-11-22T09:00:00+01:00`.
#[cfg(feature = "load")]
pub(super) fn time(text: &str) -> Result<SystemTime, &'static str> {
    const EXPECTED: &str = "expected a time such as 2026-11-22T08:00:00Z or 2026-11-22T09:00:00+01:00";
    let parse = |utc: &str| humantime::parse_rfc3339(utc).map_err(|_| EXPECTED);
    let Some((local, offset)) = text.len().checked_sub("+00:00".len()).and_then(|at| text.split_at_checked(at)) else {
        return Err(EXPECTED);
    };
    let is_time = local.ends_with(|last: char| last.is_ascii_digit());
    let Some((hours, minutes)) = offset.get(1..).filter(|_| is_time).and_then(|offset| offset.split_once(':')) else {
        return parse(text);
    };
    let (Ok(hours @ 0..=23), Ok(minutes @ 0..=59)) = (hours.parse::<u64>(), minutes.parse::<u64>()) else {
        return parse(text);
    };
    let (time, offset) = (parse(&format!("{local}Z"))?, Duration::from_secs((hours * 60 + minutes) * 60));
    let utc = match text.as_bytes()[local.len()] {
        // East of Greenwich the clocks are ahead of UTC.
        b'+' => time.checked_sub(offset),
        b'-' => time.checked_add(offset),
        _ => return parse(text),
    };
    utc.ok_or(EXPECTED)
}

/// A rate of messages, the range of rates of a search, or stages in which the rate changes.
#[cfg(feature = "load")]
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rates {
    One(f64),
    Range(f64, f64),
    Stages(Vec<RateStage>),
}

#[cfg(feature = "load")]
impl FromStr for Rates {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(['@', ',']) {
            return text.split(',').map(stage).collect::<Result<_, _>>().map(Self::Stages);
        }
        let Some((low, high)) = text.split_once("..") else { return Ok(Self::One(rate(text)?)) };
        match (rate(low)?, rate(high)?) {
            (low, high) if low <= high => Ok(Self::Range(low, high)),
            _ => Err("the first rate must be at most the second".to_owned()),
        }
    }
}

/// Parses a stage of a rate: `0..10k@30s`, `10k@2m`.
#[cfg(feature = "load")]
fn stage(text: &str) -> Result<RateStage, String> {
    let missing = || format!("the length of stage {text:?} is missing: {text}@30s");
    let (rates, length) = text.split_once('@').ok_or_else(missing)?;
    let (from, to) = rates.split_once("..").unwrap_or((rates, rates));
    let rate = |rate: &str| {
        parse_rate(rate).ok_or_else(|| format!("the rate of stage {text:?} must be one such as 0, 2000, 10k or 0.5/s"))
    };
    let duration = timeout(length).map_err(|reason| format!("the length of stage {text:?}: {reason}"))?;
    Ok(RateStage { from: rate(from)?, to: rate(to)?, duration })
}

/// Parses a share in percent: `5%`, `0.5%`.
#[cfg(feature = "load")]
pub(super) fn percentage(text: &str) -> Result<f64, &'static str> {
    let percent = text.strip_suffix('%').and_then(parse_count).filter(|percent| (0.1..=100.0).contains(percent));
    percent.map(|percent| percent / 100.0).ok_or("expected a percentage from 0.1% to 100%")
}

/// Parses a number per second, above zero: `2000`, `10k/s`, `0.5/s`.
pub(super) fn rate(text: &str) -> Result<f64, &'static str> {
    match parse_rate(text) {
        Some(rate) if rate > 0.0 => Ok(rate),
        Some(_) => Err("it must be above zero"),
        None => Err("expected a rate such as 2000, 10k or 0.5/s"),
    }
}

/// Has every parser read the input: the target `values` of `tests/fuzz`. What a parser accepts is in its range, and an address or a
/// network is accepted again as it is written.
#[cfg(any(test, fuzzing))]
#[expect(clippy::unwrap_used, reason = "a target fails by panicking")]
pub(super) fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        assert_eq!(address.to_string().parse::<Address>().unwrap().to_string(), address.to_string(), "{text}");
    }
    let _ = text.parse::<Endpoint>();
    assert!(mode(text).unwrap_or_default() <= 0o777, "{text}");
    assert!((1..=1 << 30).contains(&size(text).unwrap_or(1)), "{text}");
    assert!(size(text).is_err() || text.ends_with("iB") || is_number(text), "{text}");
    assert!(count(text).unwrap_or(1) > 0, "{text}");
    let _ = duration(text);
    assert!(timeout(text) != Ok(Duration::ZERO), "{text}");
    assert!(keepalive(text).map_or(1, |time| time.as_secs()) > 0, "{text}");
    if let Ok(network) = network(text) {
        assert_eq!(self::network(&network.to_string()), Ok(network), "{text}");
    }
    if let Ok(limit) = source_limit(text) {
        assert!(limit.ipv4_prefix <= 32 && limit.ipv6_prefix <= 128, "{text}");
    }
    assert!(rate(text).unwrap_or(1.0).is_finite(), "{text}");
    #[cfg(feature = "load")]
    {
        if let Ok((least, Some(most))) = sizes(text) {
            assert!(least <= most, "{text}");
        }
        let _ = (time(text), text.parse::<Rates>());
        assert!((0.001..=1.0).contains(&percentage(text).unwrap_or(1.0)), "{text}");
    }
}

#[cfg(all(test, feature = "load"))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_corpus_of_the_fuzz_target_passes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/values");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!files.is_empty());
        for file in files {
            fuzz(&fs::read(file).unwrap());
        }
    }

    #[test]
    fn a_time_has_an_offset_or_is_utc() {
        let utc = humantime::parse_rfc3339("2026-11-22T08:00:00.5Z");
        for text in [
            "2026-11-22T08:00:00.5Z",
            "2026-11-22T08:00:00.5+00:00",
            "2026-11-22T09:00:00.5+01:00",
            "2026-11-22T02:30:00.5-05:30",
            "2026-11-23T07:00:00.5+23:00",
        ] {
            assert_eq!(time(text).ok(), utc.ok(), "{text}");
        }
        for text in [
            "",
            "noon",
            "2026-11-22",
            "2026-11-22T09:00:00",
            "2026-11-22T09:00:00+1:00",
            "2026-11-22T09:00:00+24:00",
            "2026-11-22T09:00:00é01:00",
            "2026-11-22T09:00:00Z+01:00",
            "é+01:00",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }
}
