//! The phases in which a connection can fail, and the names of errors.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

/// What a connection was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// The name of a target was resolved (getaddrinfo(3)).
    Resolve,
    /// The socket was bound to a source address (bind(2)).
    Bind,
    /// The connection was opened (connect(2)), or waited to be.
    Connect,
    /// A message was sent (send(2)).
    Send,
    /// A reply was awaited or received (recv(2)).
    Receive,
    /// A reply was compared with what was sent.
    Verify,
    /// The connection was closed after the run.
    Close,
}

impl Phase {
    /// Returns the name that the report has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Bind => "bind",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Verify => "verify",
            Self::Close => "close",
        }
    }
}

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorName {
    /// Nothing listens on the port.
    Refused,
    /// The server, or a middlebox, reset the connection.
    Reset,
    /// Nothing arrived before the timeout.
    Timeout,
    /// There is no route.
    Unreachable,
    /// A source address is not local.
    NotLocal,
    /// No source port is left for that target.
    NoPorts,
    /// The process or the system has no descriptor left.
    NoDescriptors,
    /// The system has no memory left for sockets.
    NoMemory,
    /// The server closed the connection while replies were missing.
    ClosedEarly,
    /// The connection is connected to itself.
    SelfConnect,
    /// The bytes that came back are not those sent.
    BadBytes,
    /// Another error; see its errno.
    Other,
}

impl ErrorName {
    /// Returns the name that the report has for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::NotLocal => "not_local",
            Self::NoPorts => "no_ports",
            Self::NoDescriptors => "no_descriptors",
            Self::NoMemory => "no_memory",
            Self::ClosedEarly => "closed_early",
            Self::SelfConnect => "self_connect",
            Self::BadBytes => "bad_bytes",
            Self::Other => "other",
        }
    }
}

/// Returns the name of an error, in any phase.
///
/// `EADDRNOTAVAIL` is `no_ports` here. Only the caller of bind(2) knows that it means `not_local`.
pub(crate) fn classify(error: &io::Error) -> ErrorName {
    let Some(errno) = error.raw_os_error() else {
        return match error.kind() {
            io::ErrorKind::UnexpectedEof => ErrorName::ClosedEarly,
            io::ErrorKind::TimedOut => ErrorName::Timeout,
            _ => ErrorName::Other,
        };
    };
    match errno {
        libc::ECONNREFUSED => ErrorName::Refused,
        // EPIPE: the reset was reported before.
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => ErrorName::Reset,
        libc::ETIMEDOUT => ErrorName::Timeout,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => ErrorName::Unreachable,
        libc::EADDRNOTAVAIL | libc::EADDRINUSE => ErrorName::NoPorts,
        libc::EMFILE | libc::ENFILE => ErrorName::NoDescriptors,
        // ENOSPC: epoll_ctl(2), at `fs.epoll.max_user_watches`.
        libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => ErrorName::NoMemory,
        _ => ErrorName::Other,
    }
}

/// Returns the name of an errno, such as `ECONNREFUSED`, or `errno 123` if it is not in errno(3) for the calls used here.
pub(crate) fn errno_name(errno: i32) -> Cow<'static, str> {
    let name = match errno {
        libc::EACCES => "EACCES",
        libc::EADDRINUSE => "EADDRINUSE",
        libc::EADDRNOTAVAIL => "EADDRNOTAVAIL",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EAGAIN => "EAGAIN",
        libc::EALREADY => "EALREADY",
        libc::EBADF => "EBADF",
        libc::ECONNABORTED => "ECONNABORTED",
        libc::ECONNREFUSED => "ECONNREFUSED",
        libc::ECONNRESET => "ECONNRESET",
        libc::EHOSTDOWN => "EHOSTDOWN",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::EISCONN => "EISCONN",
        libc::EMFILE => "EMFILE",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENETRESET => "ENETRESET",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::ENFILE => "ENFILE",
        libc::ENOBUFS => "ENOBUFS",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::ENOPROTOOPT => "ENOPROTOOPT",
        libc::ENOSPC => "ENOSPC",
        libc::ENOTCONN => "ENOTCONN",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPERM => "EPERM",
        libc::EPIPE => "EPIPE",
        libc::EPROTO => "EPROTO",
        libc::EPROTONOSUPPORT => "EPROTONOSUPPORT",
        libc::ETIMEDOUT => "ETIMEDOUT",
        _ => return Cow::Owned(format!("errno {errno}")),
    };
    Cow::Borrowed(name)
}

/// Returns whether a failed connect may succeed from another port.
pub(crate) fn is_port_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_name_of_the_list() {
        for (errno, name, error) in [
            (libc::ECONNREFUSED, "ECONNREFUSED", ErrorName::Refused),
            (libc::ECONNRESET, "ECONNRESET", ErrorName::Reset),
            (libc::EPIPE, "EPIPE", ErrorName::Reset),
            (libc::ETIMEDOUT, "ETIMEDOUT", ErrorName::Timeout),
            (libc::ENETUNREACH, "ENETUNREACH", ErrorName::Unreachable),
            (libc::EHOSTUNREACH, "EHOSTUNREACH", ErrorName::Unreachable),
            (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL", ErrorName::NoPorts),
            (libc::EADDRINUSE, "EADDRINUSE", ErrorName::NoPorts),
            (libc::EMFILE, "EMFILE", ErrorName::NoDescriptors),
            (libc::ENFILE, "ENFILE", ErrorName::NoDescriptors),
            (libc::ENOBUFS, "ENOBUFS", ErrorName::NoMemory),
            (libc::ENOMEM, "ENOMEM", ErrorName::NoMemory),
            (libc::EACCES, "EACCES", ErrorName::Other),
            (9999, "errno 9999", ErrorName::Other),
        ] {
            assert_eq!(classify(&io::Error::from_raw_os_error(errno)), error, "{name}");
            assert_eq!(errno_name(errno), name);
        }
        assert_eq!(classify(&io::ErrorKind::UnexpectedEof.into()), ErrorName::ClosedEarly);
        assert_eq!(classify(&io::ErrorKind::InvalidData.into()), ErrorName::Other);
    }

    #[test]
    fn a_connection_that_was_ended_before_its_accept_was_reset() {
        assert_eq!(classify(&io::Error::from_raw_os_error(libc::ECONNABORTED)), ErrorName::Reset);
    }

    #[test]
    fn another_port_helps_only_where_the_address_is_in_use() {
        let is_taken = |errno| is_port_taken(&io::Error::from_raw_os_error(errno));
        assert_eq!([libc::EADDRINUSE, libc::EADDRNOTAVAIL].map(is_taken), [true; 2]);
        assert_eq!([libc::ECONNREFUSED, libc::ETIMEDOUT, libc::EACCES].map(is_taken), [false; 3]);
        assert!(!is_port_taken(&io::ErrorKind::AddrInUse.into()));
    }

    #[test]
    fn a_timeout_that_is_not_of_the_system_is_a_timeout() {
        assert_eq!(classify(&io::ErrorKind::TimedOut.into()), ErrorName::Timeout);
    }

    /// nix has the names of the system's header.
    #[cfg(feature = "cli")]
    #[test]
    fn each_errno_with_a_name_has_that_of_the_system() {
        let named: Vec<_> = (1..200).filter(|&errno| !errno_name(errno).starts_with("errno ")).collect();
        assert_eq!(named.len(), 34);
        for errno in named {
            assert_eq!(errno_name(errno), format!("{:?}", nix::errno::Errno::from_raw(errno)));
        }
    }
}
