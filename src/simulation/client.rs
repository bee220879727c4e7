//! A client of the modelled kernel.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::socket::Socket;
use crate::fault::Effect;
use crate::{CloseReason, Fault};

/// What a client sends first to a server that expects a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// It announces this source.
    V1(usize),
    V2(usize),
    /// It announces none.
    Local,
    Bad,
}

/// What becomes of a client at its accept, or when its PROXY header has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Served,
    NotAllowed,
    PerSource,
    Full,
    /// `connect=reset`
    Fault,
    /// The socket could not be registered.
    Dropped,
}

/// What the last read or write of a socket has returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    Nothing,
    EndOfStream,
    Failed(ErrorKind),
}

/// A client that has connected.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Client {
    pub(super) socket: Socket,
    pub(super) source: usize,
    pub(super) header: Header,
    pub(super) verdict: Option<Verdict>,
    /// The key under which it is registered.
    pub(super) token: Option<usize>,
    /// Its PROXY header was taken.
    pub(super) has_header: bool,
    /// What the server takes it from, and bytes that the last peek has returned, which are in there.
    pub(super) descriptor: Option<Rc<UnixStream>>,
    pub(super) peeked: usize,
    /// What the observer was told.
    pub(super) is_opened: bool,
    pub(super) has_ended: bool,
    pub(super) closed: Option<CloseReason>,
    pub(super) rules: Vec<Fault>,
    pub(super) last: Last,
    /// The server has sent FIN.
    pub(super) has_fin: bool,
    pub(super) accepted_at: Instant,
    /// When a byte was last moved, and the excess then.
    pub(super) moved_at: Instant,
    pub(super) excess: Duration,
    /// The server keeps output that a write has not taken.
    pub(super) is_kept: bool,
    /// When the oldest input that was not read arrived.
    pub(super) unread_since: Option<Instant>,
    /// Bytes that had arrived when a drain began.
    pub(super) sent_before_drain: u64,
    /// Reads in this turn, and turns in which it was not served though it had something to do.
    pub(super) reads: usize,
    pub(super) is_served: bool,
    pub(super) hungry_turns: usize,
    /// How many of them there may be: it depends on how many others wait.
    pub(super) hungry_turns_max: usize,
}

impl Client {
    /// Returns a client that waits in a backlog.
    pub(super) fn new(socket: Socket, source: usize, header: Header, now: Instant, excess: Duration) -> Self {
        Self {
            socket,
            source,
            header,
            verdict: None,
            token: None,
            has_header: false,
            descriptor: None,
            peeked: 0,
            is_opened: false,
            has_ended: false,
            closed: None,
            rules: Vec::new(),
            last: Last::Nothing,
            has_fin: false,
            accepted_at: now,
            moved_at: now,
            excess,
            is_kept: false,
            unread_since: None,
            sent_before_drain: 0,
            reads: 0,
            is_served: false,
            hungry_turns: 0,
            hungry_turns_max: 0,
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.rules.is_empty()
    }

    /// Returns whether no rule of its own changes, loses or withholds bytes for good.
    pub(super) fn is_delayed_at_most(&self) -> bool {
        self.rules.iter().all(|rule| match rule.effect {
            Effect::Delay { .. } | Effect::Rate { .. } | Effect::Chunk { .. } => true,
            Effect::Stall { length, .. } => length.is_some(),
            _ => false,
        })
    }

    pub(super) fn changes_bytes(&self) -> bool {
        let changes = |effect: &Effect| {
            matches!(effect, Effect::Flip { .. } | Effect::Lose { .. } | Effect::Duplicate { .. } | Effect::Swap { .. })
        };
        self.rules.iter().any(|rule| changes(&rule.effect))
    }

    /// Returns how many bytes the server has read, and must keep, unless a rule changes that.
    pub(super) fn pending(&self) -> u64 {
        let header = if self.has_header { self.socket.header.len() as u64 } else { 0 };
        if self.has_fin { 0 } else { self.socket.read - header - self.socket.written }
    }

    pub(super) fn has_whole_header(&self) -> bool {
        self.header != Header::Bad && self.socket.sent >= self.socket.header.len() as u64
    }
}
