//! The header of the PROXY protocol that a connection begins with.

use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;

use proxy_header::{ProxiedAddress, ProxyHeader};
use serde::{Deserialize, Serialize};

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyVersion {
    /// Text.
    V1,
    /// Binary.
    V2,
}

impl ProxyVersion {
    /// Returns the name that the report has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }

    /// Returns the header of a connection with the addresses of its ends, the local one first. Without addresses, the header says that
    /// the connection is the proxy's own.
    pub(super) fn header(self, ends: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
        let header = match ends {
            Some((local, peer)) => ProxyHeader::with_address(ProxiedAddress::stream(local, peer)),
            None => ProxyHeader::with_local(),
        };
        let mut bytes = Vec::new();
        // Fails only if the addresses are of two families.
        let _ = match self {
            Self::V1 => header.encode_v1(&mut bytes),
            Self::V2 => header.encode_v2(&mut bytes),
        };
        bytes
    }
}

/// Writes what is left of a header, and removes what was written. Returns whether nothing is left: if not, the stream has blocked.
pub(super) fn send(header: &mut Vec<u8>, stream: &mut impl Write) -> io::Result<bool> {
    while !header.is_empty() {
        match stream.write(header) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => drop(header.drain(..n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    *header = Vec::new();
    Ok(true)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// A stream whose writes have these results.
    struct Script {
        results: VecDeque<Result<usize, ErrorKind>>,
        written: Vec<u8>,
    }

    impl Write for Script {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let n = self.results.pop_front().unwrap()?;
            self.written.extend(&data[..n]);
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_header_has_the_addresses_of_the_connection() {
        let [v4, v6] = ["192.0.2.1:1234", "[2001:db8::1]:1234"].map(|address| address.parse().unwrap());
        let [to_v4, to_v6] = ["198.51.100.2:80", "[::1]:80"].map(|address| address.parse().unwrap());
        assert_eq!(ProxyVersion::V1.header(Some((v4, to_v4))), b"PROXY TCP4 192.0.2.1 198.51.100.2 1234 80\r\n");
        assert_eq!(ProxyVersion::V1.header(Some((v6, to_v6))), b"PROXY TCP6 2001:db8::1 ::1 1234 80\r\n");
        let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc6\x33\x64\x02\x04\xd2\0\x50";
        assert_eq!(ProxyVersion::V2.header(Some((v4, to_v4))), binary);
        let ipv6 = ProxyVersion::V2.header(Some((v6, to_v6)));
        assert_eq!((ipv6.len(), &ipv6[13..20]), (52, &b"\x21\0\x24\x20\x01\x0d\xb8"[..]));
        assert_eq!(ProxyVersion::V1.header(None), b"PROXY UNKNOWN\r\n");
        assert_eq!(ProxyVersion::V2.header(None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }

    #[test]
    fn a_header_is_sent_whole_whatever_the_stream_takes() {
        let results = [Ok(1), Err(ErrorKind::WouldBlock), Err(ErrorKind::Interrupted), Ok(2), Ok(3)].into();
        let (mut header, mut stream) = (b"header".to_vec(), Script { results, written: Vec::new() });
        assert!(!send(&mut header, &mut stream).unwrap());
        assert_eq!(header, b"eader");
        assert!(send(&mut header, &mut stream).unwrap());
        assert_eq!((&stream.written[..], header.capacity()), (&b"header"[..], 0));

        for (result, kind) in [(Ok(0), ErrorKind::WriteZero), (Err(ErrorKind::BrokenPipe), ErrorKind::BrokenPipe)] {
            let mut stream = Script { results: [result].into(), written: Vec::new() };
            assert_eq!(send(&mut b"header".to_vec(), &mut stream).unwrap_err().kind(), kind);
        }
    }
}
