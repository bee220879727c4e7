//! The address of a TCP or Unix socket.

use std::fmt;
#[cfg(feature = "load")]
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;

#[cfg(feature = "load")]
use socket2::SockAddr;

use super::UnixAddress;
use crate::error::ValueError;

/// What the text of a Unix socket's address begins with.
pub(super) const UNIX: &str = "unix:";

/// The address of a TCP socket or of a Unix socket.
///
/// # Examples
///
/// ```
/// use ecoloop::transport::AnyAddress;
///
/// let address: AnyAddress = "unix:/run/echo.sock".parse()?;
/// assert!(address.is_unix());
/// assert_eq!(address.to_string(), "unix:/run/echo.sock");
///
/// let address: AnyAddress = "127.0.0.1:5000".parse()?;
/// assert_eq!(address.tcp(), Some(([127, 0, 0, 1], 5000).into()));
/// # Ok::<(), ecoloop::ValueError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AnyAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// A path, or a name of the abstract namespace.
    Unix(UnixAddress),
}

impl AnyAddress {
    /// Returns whether it is the address of a Unix socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Returns the IP address and the port, if it has them.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        if let Self::Tcp(address) = self { Some(*address) } else { None }
    }
}

#[cfg(feature = "load")]
impl AnyAddress {
    /// Returns the address as the system calls take it.
    pub(crate) fn socket_address(&self) -> io::Result<SockAddr> {
        match self {
            Self::Tcp(address) => Ok((*address).into()),
            Self::Unix(address) => address.socket_address(),
        }
    }
}

impl PartialEq<SocketAddr> for AnyAddress {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.tcp() == Some(*other)
    }
}

impl From<SocketAddr> for AnyAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<UnixAddress> for AnyAddress {
    fn from(address: UnixAddress) -> Self {
        Self::Unix(address)
    }
}

/// Parses `IP:PORT`, `[IPv6]:PORT`, `unix:PATH` or `unix:@NAME`, which is what `Display` writes.
impl FromStr for AnyAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.strip_prefix(UNIX) {
            Some(path) => UnixAddress::new(path).map(Self::Unix).map_err(|error| error.to_string().into()),
            None => text.parse().map(Self::Tcp).map_err(|_| format!("{text} is not an address").into()),
        }
    }
}

impl fmt::Display for AnyAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(address) => address.fmt(formatter),
        }
    }
}

#[cfg(feature = "load")]
impl serde::Serialize for AnyAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "load")]
impl<'de> serde::Deserialize<'de> for AnyAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
