//! The corruption of bytes that came back, as the report has it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::socket_address::AnyAddress;

/// Corruption of the bytes that came back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Verify {
    /// Bytes that differ from those sent.
    pub wrong_bytes: u64,
    /// Bytes that provably did not arrive.
    pub lost_bytes: u64,
    /// Bytes beyond what was sent.
    pub extra_bytes: u64,
    /// Number of connections with a finding.
    pub connections_failed: u64,
    /// The first finding of each of these connections, at most 1,000 per run.
    pub findings: Vec<Finding>,
}

/// The first corruption of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Finding {
    /// How the bytes are corrupted.
    pub kind: FindingKind,
    /// Number of the connection in its run.
    pub connection: u64,
    /// Its local address. A connection to a Unix socket has none.
    pub local: Option<SocketAddr>,
    /// The server's address.
    pub peer: AnyAddress,
    /// Offset of the first corrupted byte in the stream.
    pub offset: u64,
    /// When it was found, in seconds since the start of the run.
    pub at_s: f64,
    /// The bytes that were expected from the first corrupted one on, at most 16.
    pub expected: Excerpt,
    /// The bytes that came instead, at most 16.
    pub received: Excerpt,
}

/// Bytes of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Excerpt {
    /// Two hexadecimal digits for each byte.
    pub hex: String,
    /// A character for each byte: a point if it is not printable ASCII.
    pub text: String,
}

impl Excerpt {
    pub(in crate::load) fn new(bytes: &[u8]) -> Self {
        let printable = |&byte: &u8| if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '.' };
        Self {
            hex: bytes
                .iter()
                .flat_map(|byte| [byte >> 4, byte & 0xf])
                .filter_map(|digit| char::from_digit(digit.into(), 16))
                .collect(),
            text: bytes.iter().map(printable).collect(),
        }
    }
}

/// How the bytes of a connection are corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FindingKind {
    /// Bytes have changed.
    Flipped,
    /// Bytes are missing, with later ones in their place.
    Lost,
    /// Bytes came twice.
    Duplicated,
    /// Bytes came in another order.
    Reordered,
    /// Bytes of another connection came.
    Foreign,
    /// Bytes came that were not sent.
    Extra,
    /// The stream ended before all bytes came back.
    Truncated,
    /// None of these explains the bytes.
    Unknown,
}

impl FindingKind {
    /// Returns the name that the report has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flipped => "flipped",
            Self::Lost => "lost",
            Self::Duplicated => "duplicated",
            Self::Reordered => "reordered",
            Self::Foreign => "foreign",
            Self::Extra => "extra",
            Self::Truncated => "truncated",
            Self::Unknown => "unknown",
        }
    }
}
