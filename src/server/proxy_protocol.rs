//! The header of the PROXY protocol, which announces the client of a connection that a proxy has opened.

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;

use proxy_header::{Error, ParseConfig, Protocol, ProxiedAddress, ProxyHeader};
use socket2::SockRef;

use super::observer::{CloseReason, Peer};
use crate::interrupted::retry_interrupted;
use crate::ready::Ready;
use crate::transport::Stream;

/// Why a connection with a bad or missing header is closed. No read and no write of a socket fails so.
pub(super) const BAD_HEADER: CloseReason = CloseReason::Failed(ErrorKind::InvalidData);

/// Longest header: nginx takes no longer one, and one without extensions has at most 232 bytes.
const HEADER_MAX: usize = 4096;
/// Longest header of version 1, with its CRLF (PROXY protocol, 2.1).
const V1_MAX: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The byte of version 2, behind its start, that says that the connection is the proxy's own.
const V2_LOCAL: u8 = 0x20;
/// Bytes of version 2 up to its length, which counts the rest.
const V2_FIXED: usize = 16;

/// A connection whose header has not arrived. Nothing of it was read.
#[derive(Debug)]
pub(super) struct AwaitingHeader<S> {
    pub(super) stream: S,
    /// The address that accept(2) returned.
    pub(super) address: SocketAddr,
    ticks: u8,
}

impl<S: Stream> AwaitingHeader<S> {
    pub(super) fn new(stream: S, address: SocketAddr) -> Self {
        Self { stream, address, ticks: 0 }
    }

    /// Takes the header out of the stream, and nothing that follows it. Returns the client's address, or `None` if the header is not
    /// complete.
    ///
    /// Bytes stay in the kernel until the header is complete, so a connection needs no buffer for it.
    pub(super) fn take_header(&mut self, ready: Ready) -> Result<Option<SocketAddr>, CloseReason> {
        let mut bytes = [0; HEADER_MAX];
        let received = match retry_interrupted(|| self.stream.peek(&mut bytes)) {
            Ok(0) => return Err(BAD_HEADER),
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.kind().into()),
        };
        match parse(&bytes[..received]) {
            // The address of a client without one, which no limit applies to.
            Parsed::Complete { source, .. } if source == Some(Peer::NO_ADDRESS) => Err(BAD_HEADER),
            Parsed::Complete { length, source } => {
                (&*SockRef::from(&self.stream)).read_exact(&mut bytes[..length]).map_err(|error| error.kind())?;
                Ok(Some(source.unwrap_or(self.address)))
            }
            Parsed::Incomplete if !ready.is_read_closed() => Ok(None),
            // What was peeked hides the reset that follows it.
            Parsed::Incomplete | Parsed::Bad => match SockRef::from(&self.stream).take_error() {
                Ok(Some(error)) => Err(error.kind().into()),
                _ => Err(BAD_HEADER),
            },
        }
    }
}

impl<S> AwaitingHeader<S> {
    /// Increments the number of visits and returns it.
    pub(super) fn tick(&mut self) -> u8 {
        self.ticks = self.ticks.saturating_add(1);
        self.ticks
    }
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// The beginning of a header.
    Incomplete,
    /// A header of `length` bytes. It announces no `source` if the connection is the proxy's own or its client's kind is unknown.
    Complete {
        length: usize,
        source: Option<SocketAddr>,
    },
    Bad,
}

pub(crate) fn parse(received: &[u8]) -> Parsed {
    let Some(length) = header_length(received) else { return Parsed::Bad };
    match received.get(..length) {
        None => Parsed::Incomplete,
        Some(header) => source(header).map_or(Parsed::Bad, |source| Parsed::Complete { length, source }),
    }
}

/// Returns the length of the header; while that is not known, a length that has not arrived. Returns `None` if the header is bad.
fn header_length(received: &[u8]) -> Option<usize> {
    if begins_as(received, V2_START) {
        let Some(&[high, low]) = received.get(V2_FIXED - 2..V2_FIXED) else { return Some(V2_FIXED) };
        let length = V2_FIXED + usize::from(u16::from_be_bytes([high, low]));
        return (length <= HEADER_MAX).then_some(length);
    }
    let line = &received[..received.len().min(V1_MAX)];
    if !begins_as(line, V1_START) {
        return None;
    }
    match line.iter().position(|&byte| byte == b'\n') {
        Some(end) => Some(end + 1),
        None => (line.len() < V1_MAX).then_some(line.len() + 1),
    }
}

/// Returns whether `received` begins with `start`, as far as it goes.
fn begins_as(received: &[u8], start: &[u8]) -> bool {
    let length = received.len().min(start.len());
    received[..length] == start[..length]
}

/// Returns the source that a complete header announces, if it announces one.
fn source(header: &[u8]) -> Result<Option<SocketAddr>, Error> {
    // Anything may follow, also what the crate does not know.
    if header.starts_with(V2_START) && header[V2_START.len()] == V2_LOCAL {
        return Ok(None);
    }
    let (parsed, length) = ProxyHeader::parse(header, ParseConfig::default())?;
    if length != header.len() {
        return Err(Error::Invalid);
    }
    let Some(ProxiedAddress { protocol: Protocol::Stream, source, destination }) = parsed.proxied_address() else {
        return Ok(None);
    };
    // The crate takes ports with a sign or leading zeros.
    let ports = format!(" {} {}\r\n", source.port(), destination.port());
    let is_exact = header.starts_with(V2_START) || header.ends_with(ports.as_bytes());
    if is_exact { Ok(Some(*source)) } else { Err(Error::Invalid) }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::io::Write;

    use mio::net::{TcpStream, UnixStream};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::transport::Socket;

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_START, &[command, family], &length, rest].concat()
    }

    fn v2_of(source: &str, extensions: &[u8]) -> Vec<u8> {
        let source: SocketAddr = source.parse().unwrap();
        let mut header = ProxyHeader::with_address(ProxiedAddress::stream(source, source));
        header.append_tlv(proxy_header::Tlv::UniqueId(extensions.into()));
        let mut bytes = Vec::new();
        header.encode_v2(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_header_is_complete_at_its_last_byte_and_has_a_source_or_none() {
        let longest_v1 =
            b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
        assert_eq!(longest_v1.len(), V1_MAX);
        let longest_v2 = v2_of("192.0.2.1:65535", &vec![b'\n'; HEADER_MAX - V2_FIXED - 12 - 3]);
        assert_eq!(longest_v2.len(), HEADER_MAX);
        for (header, source) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n".to_vec(), Some("192.0.2.1:1234")),
            (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n".to_vec(), Some("255.255.255.255:65535")),
            (b"PROXY TCP6 2001:db8::1 ::1 0 80\r\n".to_vec(), Some("[2001:db8::1]:0")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (longest_v1.to_vec(), None),
            (v2_of("192.0.2.1:1234", b""), Some("192.0.2.1:1234")),
            (v2_of("[2001:db8::1]:1234", b"\r\n"), Some("[2001:db8::1]:1234")),
            (longest_v2, Some("192.0.2.1:65535")),
            (v2(0x20, 0x00, b""), None),
            // Its family is ignored, and its addresses and extensions are skipped.
            (v2(0x20, 0x11, b""), None),
            (v2(0x20, 0xff, b"whatever"), None),
            (v2(0x21, 0x00, b""), None),
            // UDP, and Unix sockets.
            (v2(0x21, 0x12, &[1; 12]), None),
            (v2(0x21, 0x31, &[1; 216]), None),
        ] {
            for length in 1..header.len() {
                assert_eq!(parse(&header[..length]), Parsed::Incomplete, "{length} bytes of {header:?}");
            }
            let source = source.map(|source| source.parse().unwrap());
            for rest in ["", "hola", "PROXY UNKNOWN\r\n"] {
                let received = [&header, rest.as_bytes()].concat();
                assert_eq!(parse(&received), Parsed::Complete { length: header.len(), source }, "{header:?}, {rest}");
            }
        }
    }

    #[test]
    fn a_bad_header_is_found_at_its_first_wrong_byte_or_its_end() {
        let too_long = u16::try_from(HEADER_MAX - V2_FIXED + 1).unwrap().to_be_bytes();
        for bad in [
            b"G".to_vec(),
            b"PROXZ".to_vec(),
            b"PROXY\r".to_vec(),
            b"\r\nh".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1234\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 +80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 01234 80\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 65536\r\n".to_vec(),
            b"PROXY TCP4 192.0.2.01 198.51.100.2 1234 80\r\n".to_vec(),
            b"PROXY TCP4 2001:db8::1 ::1 1234 80\r\n".to_vec(),
            b"PROXY TCP6 192.0.2.1 198.51.100.2 1234 80\r\n".to_vec(),
            b"PROXY UDP4 192.0.2.1 198.51.100.2 1234 80\r\n".to_vec(),
            b"PROXY UNKNOWN\n".to_vec(),
            b"PROXY UNKNOWN a\rb\r\n".to_vec(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; V1_MAX - 14]].concat(),
            [b"PROXY UNKNOWN ".to_vec(), vec![b'a'; V1_MAX - 15], b"\r".to_vec()].concat(),
            [V2_START, &[0x21, 0x11], &too_long].concat(),
            v2(0x11, 0x11, &[1; 12]),
            v2(0x22, 0x11, &[1; 12]),
            v2(0x21, 0x11, &[1; 11]),
            v2(0x21, 0x21, &[1; 12]),
            v2(0x21, 0x41, &[1; 216]),
            v2(0x21, 0x13, &[1; 12]),
        ] {
            assert_eq!(parse(&bad), Parsed::Bad, "{bad:?}");
            assert_eq!(parse(&bad[..bad.len() - 1]), Parsed::Incomplete, "{bad:?}");
        }
    }

    #[test]
    fn a_header_is_awaited_until_it_arrives_or_the_stream_fails() {
        let (stream, mut client) = UnixStream::pair().unwrap();
        let mut awaiting = AwaitingHeader::new(Socket::new(stream), Peer::NO_ADDRESS);
        assert_eq!(awaiting.take_header(Ready::READABLE), Ok(None));
        client.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n").unwrap();
        assert_eq!(awaiting.take_header(Ready::READABLE), Ok(Some("192.0.2.1:1234".parse().unwrap())));

        let unconnected = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let stream = Socket::new(TcpStream::from_std(unconnected.into()));
        let failed = AwaitingHeader::new(stream, Peer::NO_ADDRESS).take_header(Ready::READABLE);
        assert_eq!(failed, Err(CloseReason::Failed(ErrorKind::NotConnected)));
    }

    fn parts() -> impl Strategy<Value = Vec<u8>> {
        let known: [&[u8]; 11] = [
            V1_START,
            V2_START,
            b"TCP4 ",
            b"TCP6 ",
            b"UNKNOWN",
            b"1.2.3.4 ",
            b"::1 ",
            b"80",
            b" ",
            b"\r\n",
            b"\x21\x11\0\x0c",
        ];
        prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec), 1 => vec(any::<u8>(), 0..20)]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn more_bytes_do_not_change_what_is_decided(start in 0..2_usize, parts in vec(parts(), 0..12)) {
            let bytes = [[V1_START, V2_START][start], &parts.concat()].concat();
            let mut before = Parsed::Incomplete;
            for received in 1..=bytes.len() {
                let parsed = parse(&bytes[..received]);
                prop_assert!(before == Parsed::Incomplete || before == parsed, "{:?}, then {:?}", before, parsed);
                before = parsed;
            }
        }
    }
}
