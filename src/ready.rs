//! What a source may be able to do, as a word of flags.

use std::fmt;
use std::ops::BitOr;

use mio::event::Event;

/// A read that returns less than it had room for has emptied a TCP socket: epoll(7), question 9. kqueue(2) makes no such promise.
///
/// The rule does not hold once the end of the stream or urgent data was reported. Data and FIN that arrive together are one edge,
/// and a read stops at urgent data.
pub(crate) const SHORT_READ_DRAINS: bool = cfg!(any(target_os = "linux", target_os = "android"));

/// What a source may be able to do now: a set of flags, combined with `|`.
///
/// Readiness is a hint: the result of `read` or `write` is the truth ([mio: "Readiness operations"]).
///
/// [mio: "Readiness operations"]: https://docs.rs/mio/latest/mio/struct.Poll.html#readiness-operations
///
/// # Examples
///
/// ```
/// use ecoloop::Ready;
///
/// let ready = Ready::READABLE | Ready::READ_CLOSED;
/// assert!(ready.is_readable() && ready.is_read_closed());
/// assert!(!ready.is_writable());
/// assert!(Ready::NONE.is_none());
/// ```
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Ready(u8);

impl Ready {
    /// Nothing is reported.
    pub const NONE: Self = Self(0);
    /// A read may return bytes, the end of the stream, or an error.
    pub const READABLE: Self = Self(1);
    /// A write may take bytes, or return an error.
    pub const WRITABLE: Self = Self(2);
    /// The peer has closed its direction: the end of the stream follows the bytes that are left.
    pub const READ_CLOSED: Self = Self(4);
    /// Urgent data is in the stream, and a read stops at it. Linux and Android alone report it.
    pub const PRIORITY: Self = Self(8);

    const NAMES: [(Self, &str); 4] = [
        (Self::READABLE, "READABLE"),
        (Self::WRITABLE, "WRITABLE"),
        (Self::READ_CLOSED, "READ_CLOSED"),
        (Self::PRIORITY, "PRIORITY"),
    ];

    /// Returns whether no flag is set.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Returns whether [`READABLE`](Self::READABLE) is set.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.contains(Self::READABLE)
    }

    /// Returns whether [`WRITABLE`](Self::WRITABLE) is set.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.contains(Self::WRITABLE)
    }

    /// Returns whether [`READ_CLOSED`](Self::READ_CLOSED) is set.
    #[must_use]
    pub const fn is_read_closed(self) -> bool {
        self.contains(Self::READ_CLOSED)
    }

    /// Returns whether [`PRIORITY`](Self::PRIORITY) is set.
    #[must_use]
    pub const fn is_priority(self) -> bool {
        self.contains(Self::PRIORITY)
    }

    /// Returns whether a short read may leave something behind: the end of the stream, or what follows urgent data.
    #[must_use]
    pub(crate) const fn outlasts_short_read(self) -> bool {
        self.0 & (Self::READ_CLOSED.0 | Self::PRIORITY.0) != 0
    }

    /// Returns the flags of an event that reports an error, a closed direction or urgent data.
    ///
    /// An error or a closed direction makes the source readable and writable: the call that follows returns which.
    #[cold]
    fn from_rare(event: &Event) -> Self {
        let readable = event.is_readable() || event.is_read_closed() || event.is_error();
        let writable = event.is_writable() || event.is_write_closed() || event.is_error();
        Self::READABLE.only_if(readable)
            | Self::WRITABLE.only_if(writable)
            | Self::READ_CLOSED.only_if(event.is_read_closed())
            | Self::PRIORITY.only_if(event.is_priority())
    }

    /// As `|`, in a constant.
    pub(crate) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    const fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
}

impl BitOr for Ready {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

impl From<&Event> for Ready {
    #[inline]
    fn from(event: &Event) -> Self {
        if event.is_error() || event.is_read_closed() || event.is_write_closed() || event.is_priority() {
            return Self::from_rare(event);
        }
        Self::READABLE.only_if(event.is_readable()) | Self::WRITABLE.only_if(event.is_writable())
    }
}

impl fmt::Debug for Ready {
    /// Writes the flags as they are combined: `READABLE | WRITABLE`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> =
            Self::NAMES.iter().filter(|(flag, _)| self.contains(*flag)).map(|&(_, name)| name).collect();
        formatter.write_str(if names.is_empty() { "NONE" } else { "" })?;
        formatter.write_str(&names.join(" | "))
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use mio::unix::pipe;
    use mio::{Events, Poll, Token};

    use super::*;
    use crate::INTEREST;

    #[test]
    fn a_hangup_without_input_makes_a_source_readable_and_writable() {
        let (sender, mut receiver) = pipe::new().unwrap();
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(1));
        poll.registry().register(&mut receiver, Token(0), INTEREST).unwrap();
        drop(sender);
        poll.poll(&mut events, Some(Duration::from_secs(20))).unwrap();
        let ready = Ready::from(events.iter().next().unwrap());
        assert_eq!(ready, Ready::READABLE | Ready::WRITABLE | Ready::READ_CLOSED);
    }
}
