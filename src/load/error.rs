//! How an operation of a run failed: its phase and the name of its error.

use std::borrow::Cow;
use std::io;

use serde::{Deserialize, Serialize};

/// What was being done when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is its name")]
pub enum Phase {
    Resolve,
    Bind,
    Connect,
    Send,
    Receive,
    Verify,
    Close,
}

impl Phase {
    /// The name as it stands in the report.
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

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorName {
    /// Nobody listens there.
    Refused,
    /// The other end, or something between, ended the connection abruptly.
    Reset,
    /// Nothing came in time.
    Timeout,
    /// No way leads there.
    Unreachable,
    /// A source address is not this machine's.
    NotLocal,
    /// No source port is left for that target.
    NoPorts,
    /// The process or the system is out of descriptors.
    NoDescriptors,
    /// The system is out of memory for sockets.
    NoMemory,
    /// The other end closed while answers were missing.
    ClosedEarly,
    /// The connection's own address was its peer's.
    SelfConnect,
    /// What came back was not what was sent.
    BadBytes,
    /// Something else, which the errno tells.
    Other,
}

impl ErrorName {
    /// The name as it stands in the report.
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

/// The name of what went wrong, in any phase. A port or an address that cannot be had counts as `no_ports` here; whether a
/// source is not local is known where it is bound.
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
        // EPIPE: a reset that was taken note of before.
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => ErrorName::Reset,
        libc::ETIMEDOUT => ErrorName::Timeout,
        libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => ErrorName::Unreachable,
        libc::EADDRNOTAVAIL | libc::EADDRINUSE => ErrorName::NoPorts,
        libc::EMFILE | libc::ENFILE => ErrorName::NoDescriptors,
        // ENOSPC: epoll_ctl(2) bounds its share of the kernel's memory by `max_user_watches`.
        libc::ENOBUFS | libc::ENOMEM | libc::ENOSPC => ErrorName::NoMemory,
        _ => ErrorName::Other,
    }
}

/// `ECONNREFUSED`, as errno(3) has it; `errno 123` for those that no call here is known to answer.
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

/// Whether a connect that failed may succeed from another port.
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
}
