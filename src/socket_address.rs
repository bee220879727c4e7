//! The address of a TCP socket or of a Unix socket.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, io};

use socket2::SockAddr;

use crate::error::ValueError;

/// What the text of a Unix socket's address begins with.
const UNIX: &str = "unix:";

/// The address of a Unix socket: the path of a file, or `@` and a name of the abstract namespace, which has no file (unix(7)).
///
/// # Examples
///
/// ```
/// use ecoloop::transport::UnixAddress;
///
/// let address = UnixAddress::new("/run/echo.sock")?;
/// assert_eq!(address.to_string(), "unix:/run/echo.sock");
/// assert_eq!(address.path().unwrap().to_str(), Some("/run/echo.sock"));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixAddress(PathBuf);

impl UnixAddress {
    /// Returns the address of a `path`, or of a name if `path` begins with `@`. For a file of that kind write `./@name`.
    ///
    /// # Errors
    ///
    /// - `InvalidInput`: the path or the name is empty, has a NUL byte, or is longer than the 107 bytes that the system allows.
    /// - `Unsupported`: it is a name, and the system is not Linux.
    pub fn new(path: impl AsRef<Path>) -> io::Result<Self> {
        let this = Self(path.as_ref().to_owned());
        let bytes = this.0.as_os_str().as_bytes();
        if bytes.is_empty() || bytes == b"@" {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path or the name of the socket is empty"));
        }
        if bytes.contains(&0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path of a socket cannot have a NUL byte"));
        }
        if this.path().is_none() && !cfg!(any(target_os = "linux", target_os = "android")) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "names without a file (@NAME) need Linux"));
        }
        match this.socket_address() {
            Ok(_) => Ok(this),
            Err(error) => {
                let reason = format!("the path of a socket has at most 107 bytes, and this one {}", bytes.len());
                Err(io::Error::new(error.kind(), reason))
            }
        }
    }

    /// Returns the path of the file, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        (!self.0.as_os_str().as_bytes().starts_with(b"@")).then_some(&self.0)
    }

    /// Returns the address as the system calls take it.
    pub(crate) fn socket_address(&self) -> io::Result<SockAddr> {
        match self.0.as_os_str().as_bytes() {
            [b'@', name @ ..] => SockAddr::unix(OsStr::from_bytes(&[b"\0", name].concat())),
            _ => SockAddr::unix(&self.0),
        }
    }
}

impl fmt::Display for UnixAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{UNIX}{}", self.0.display())
    }
}

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
