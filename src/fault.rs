//! Faults on purpose: rules, the connections that they choose, and the stream on which they act.
//!
//! A [`Fault`] is an [`Effect`] and a [`Selector`]. It is written `KIND[=VALUE][,KEY=VALUE]...`, as `ecoloop serve --fault` takes it:
//!
//! ```
//! use std::time::Duration;
//!
//! use ecoloop::fault::{Effect, Fault};
//!
//! let fault: Fault = "delay=5ms..20ms,p=20%".parse()?;
//! assert_eq!(fault.selector.percent, Some(20.0));
//! assert!(matches!(fault.effect, Effect::Delay { most, .. } if most == Duration::from_millis(20)));
//! assert_eq!(fault.to_string(), "delay=5ms..20ms,p=20%");
//!
//! let error = "flip=8,hold=1KiB".parse::<Fault>().unwrap_err();
//! assert_eq!(error.to_string(), "hold is a key of delay: flip takes p, first, after, every, from and at");
//! # Ok::<(), ecoloop::fault::FaultError>(())
//! ```
//!
//! [`Config::faults`](crate::Config::faults) has the rules of a server. `docs/faults.md` shows what a client sees of each.

mod bytes;
mod display;
mod draw;
mod held;
mod pace;
mod parse;
mod stream;

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use crate::network;

pub(crate) use self::draw::{Drawn, Rules};
pub(crate) use self::stream::{End, FaultyStream};

/// Longest delay: the queue of delayed bytes stores times in 32 bits of microseconds.
const DELAY_MAX: Duration = Duration::from_secs(3600);
/// Longest time of a rule: times of the clock and their sums stay in range.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// Bytes that are held by `delay` without `hold=`.
const DEFAULT_HOLD: usize = 64 << 10;
const HOLD_MAX: usize = 1 << 30;

/// A rule: what happens to which connections.
///
/// Each connection draws its rules once, at its accept. Of each kind, the first rule that chooses the connection holds for its life.
/// Rules of different kinds add up.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// The connections that it happens to.
    pub selector: Selector,
}

/// What happens to a connection, or to the listening sockets.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// Each piece of the echo leaves later, by a uniform random time from `least` to `most`, at most an hour. While `hold` bytes are
    /// delayed, nothing is read.
    Delay {
        /// Shortest delay.
        least: Duration,
        /// Longest delay.
        most: Duration,
        /// Maximum number of bytes that are delayed at a time.
        hold: usize,
    },
    /// At most this many bytes a second come back, smoothly.
    Rate {
        /// Bytes per second.
        bytes_per_second: u64,
    },
    /// The echo comes in small writes.
    Chunk {
        /// Maximum bytes of a write.
        size: usize,
        /// Shortest time between two writes.
        gap: Duration,
    },
    /// Nothing is read and nothing written, so that the receive window closes.
    Stall {
        /// Bytes that are echoed before.
        after: u64,
        /// How long: `None` is for good.
        length: Option<Duration>,
    },
    /// Everything is read, and nothing comes back. The client's FIN is answered with FIN.
    Mute {
        /// Bytes that are echoed before.
        after: u64,
    },
    /// The connection is reset.
    Reset(Moment),
    /// The server sends FIN, and discards what it receives from then on.
    Fin(Moment),
    /// A bit of every Nth byte is turned.
    Flip {
        /// N: bytes N, 2N, 3N of the connection's input, counted from 1.
        every: u64,
    },
    /// Every Nth byte is left out.
    Lose {
        /// As in [`Effect::Flip`].
        every: u64,
    },
    /// Every Nth byte comes twice.
    Duplicate {
        /// As in [`Effect::Flip`].
        every: u64,
    },
    /// Every Nth byte is exchanged with the next. The last byte of the input has no next: it comes as it is.
    Swap {
        /// As in [`Effect::Flip`]. A byte that was exchanged is not exchanged again: 1 exchanges bytes 1 and 2, 3 and 4.
        every: u64,
    },
    /// Clients cannot connect as usual.
    Connect(Connect),
}

/// When [`Effect::Reset`] and [`Effect::Fin`] happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// When exactly this many bytes were echoed, without waiting for more input.
    Bytes(u64),
    /// This long after the accept.
    Time(Duration),
}

/// What [`Effect::Connect`] does to clients that connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Connect {
    /// Their connects time out: the listening socket drops every packet. Linux and Android only.
    Hang,
    /// Their connects are refused: the listening socket is closed.
    Refuse,
    /// They are reset right after the handshake.
    Reset,
    /// They are accepted one at a time, this long apart.
    Every(Duration),
}

/// Which connections a rule chooses: those for which every field that is set holds. The default chooses all.
///
/// An [`Effect::Connect`] has only `at`, and [`Connect::Reset`] also `percent`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Selector {
    /// This percentage of the connections, chosen by a hash of [`Config::fault_seed`](crate::Config::fault_seed), the rule's place and
    /// the connection's number: a run repeats, and rules choose independently of each other.
    pub percent: Option<f64>,
    /// The first connections, up to this number. The first connection of a server has the number 1.
    pub first: Option<u64>,
    /// The connections after this number.
    pub after: Option<u64>,
    /// The connections whose number is a multiple of this one.
    pub every: Option<u64>,
    /// Connections from this network. IPv4-mapped IPv6 counts as IPv4.
    pub from: Option<IpNet>,
    /// Connections that are accepted in this time since the server started.
    pub at: Option<Range<Duration>>,
}

/// The kind of a fault, without its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is documented where `Effect` has it")]
pub enum Kind {
    Delay,
    Rate,
    Chunk,
    Stall,
    Mute,
    Reset,
    Fin,
    Flip,
    Lose,
    Duplicate,
    Swap,
    Connect,
}

/// What is wrong with a rule, or with two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultError(pub(crate) String);

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Delay,
        Self::Rate,
        Self::Chunk,
        Self::Stall,
        Self::Mute,
        Self::Reset,
        Self::Fin,
        Self::Flip,
        Self::Lose,
        Self::Duplicate,
        Self::Swap,
        Self::Connect,
    ];

    /// Returns the word for it in a rule and in a report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Delay => "delay",
            Self::Rate => "rate",
            Self::Chunk => "chunk",
            Self::Stall => "stall",
            Self::Mute => "mute",
            Self::Reset => "reset",
            Self::Fin => "fin",
            Self::Flip => "flip",
            Self::Lose => "lose",
            Self::Duplicate => "duplicate",
            Self::Swap => "swap",
            Self::Connect => "connect",
        }
    }

    /// Returns whether it acts on single bytes: they are counted instead of connections.
    fn is_of_bytes(self) -> bool {
        matches!(self, Self::Flip | Self::Lose | Self::Duplicate | Self::Swap)
    }
}

impl Fault {
    /// Returns a rule that chooses every connection.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self { effect, selector: Selector::default() }
    }

    /// Returns its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.effect.kind()
    }

    /// Returns whether it closes the listening sockets, or has them drop packets: `connect=refuse` and `connect=hang`.
    #[must_use]
    pub fn changes_listeners(&self) -> bool {
        matches!(self.effect, Effect::Connect(Connect::Hang | Connect::Refuse))
    }

    /// Checks the values of each rule, and that rules which can meet on a connection add up.
    ///
    /// # Errors
    ///
    /// - A value is out of its range, or a selector does not apply to the rule's kind.
    /// - One rule prevents another: nothing that comes back after `mute` can be changed by `flip`.
    pub fn check_all(faults: &[Self]) -> Result<(), FaultError> {
        for (index, fault) in faults.iter().enumerate() {
            fault.effect.check()?;
            fault.selector.check(&fault.effect)?;
            for earlier in &faults[..index] {
                let prevents = earlier.prevents(fault) || fault.prevents(earlier);
                if prevents && earlier.selector.can_meet(&fault.selector) {
                    return Err(FaultError(format!(
                        "{earlier} and {fault} cannot act on one connection: choose different ones, for example with first=100 and \
                         after=100"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Returns whether `other` can never happen on a connection that this rule has.
    fn prevents(&self, other: &Self) -> bool {
        match (&self.effect, &other.effect) {
            (one, other) if one.kind() == other.kind() => false,
            (Effect::Mute { .. }, other) if other.kind().is_of_bytes() => true,
            (Effect::Reset(Moment::Bytes(_)), Effect::Fin(Moment::Bytes(_))) => true,
            (Effect::Reset(Moment::Time(reset)), Effect::Fin(Moment::Time(fin))) => reset <= fin,
            (_, other) => self.echoed_at_most().is_some_and(|most| most < other.needs_echoed()),
        }
    }

    /// Returns the limit that it sets to the bytes that come back.
    fn echoed_at_most(&self) -> Option<u64> {
        let Selector { at, percent, .. } = &self.selector;
        match self.effect {
            Effect::Stall { after, length: None } | Effect::Mute { after } => Some(after),
            Effect::Reset(Moment::Bytes(bytes)) | Effect::Fin(Moment::Bytes(bytes)) => Some(bytes),
            Effect::Connect(Connect::Hang | Connect::Refuse | Connect::Reset) if at.is_none() && percent.is_none() => {
                Some(0)
            }
            _ => None,
        }
    }
}

impl Effect {
    fn kind(&self) -> Kind {
        match self {
            Self::Delay { .. } => Kind::Delay,
            Self::Rate { .. } => Kind::Rate,
            Self::Chunk { .. } => Kind::Chunk,
            Self::Stall { .. } => Kind::Stall,
            Self::Mute { .. } => Kind::Mute,
            Self::Reset(_) => Kind::Reset,
            Self::Fin(_) => Kind::Fin,
            Self::Flip { .. } => Kind::Flip,
            Self::Lose { .. } => Kind::Lose,
            Self::Duplicate { .. } => Kind::Duplicate,
            Self::Swap { .. } => Kind::Swap,
            Self::Connect(_) => Kind::Connect,
        }
    }

    /// Returns how many bytes must come back for it to happen.
    fn needs_echoed(&self) -> u64 {
        match self {
            Self::Stall { after, .. } | Self::Mute { after } => *after,
            Self::Reset(Moment::Bytes(bytes)) | Self::Fin(Moment::Bytes(bytes)) => *bytes,
            Self::Reset(Moment::Time(_)) | Self::Fin(Moment::Time(_)) | Self::Connect(_) => 0,
            _ => 1,
        }
    }

    fn check(&self) -> Result<(), FaultError> {
        let name = self.kind().name();
        let in_range = |time: Duration| (Duration::from_nanos(1)..=TIME_MAX).contains(&time);
        let wrong = match *self {
            Self::Delay { least, most, .. } if least > most => "the range must begin with the shorter delay",
            Self::Delay { most, .. } if most.is_zero() || most > DELAY_MAX => {
                "the delay must be above zero, and at most 1h"
            }
            Self::Delay { hold, .. } if hold == 0 || hold > HOLD_MAX => "hold must be from 1 to 1GiB",
            Self::Rate { bytes_per_second: 0 } => "at least 1 byte a second must come back",
            Self::Chunk { size: 0, .. } => "the size must be at least 1",
            Self::Chunk { gap, .. } if gap > TIME_MAX => "gap must be at most 8760h",
            Self::Stall { length: Some(time), .. } if !in_range(time) => "for must be above zero, and at most 8760h",
            Self::Reset(Moment::Time(time)) | Self::Fin(Moment::Time(time)) if time > TIME_MAX => {
                "it must be at most 8760h"
            }
            Self::Flip { every: 0 }
            | Self::Lose { every: 0 }
            | Self::Duplicate { every: 0 }
            | Self::Swap { every: 0 } => "the number of bytes must be at least 1",
            Self::Connect(Connect::Every(time)) if !in_range(time) => "the time must be above zero, and at most 8760h",
            _ => return Ok(()),
        };
        Err(FaultError(format!("{name}: {wrong}")))
    }
}

impl Selector {
    fn check(&self, effect: &Effect) -> Result<(), FaultError> {
        if let Effect::Connect(connect) = effect {
            let is_reset = *connect == Connect::Reset;
            let given = [
                ("p", self.percent.is_some() && !is_reset),
                ("first", self.first.is_some()),
                ("after", self.after.is_some()),
                ("every", self.every.is_some()),
                ("from", self.from.is_some()),
            ];
            if let Some((key, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
                let keys = if is_reset { "p and at" } else { "at" };
                return Err(FaultError(format!("{key} does not apply to {effect}, which takes {keys}")));
            }
        }
        let wrong = match self {
            Self { percent: Some(percent), .. } if !(0.0..=100.0).contains(percent) => "p must be from 0% to 100%",
            Self { first: Some(0), .. } => "first must be at least 1: the first connection has the number 1",
            Self { every: Some(0), .. } => "every must be at least 1",
            Self { at: Some(at), .. } if at.is_empty() => "at must end after it begins",
            Self { at: Some(at), .. } if at.end > TIME_MAX => "at must end within 8760h",
            Self { first: Some(first), after: Some(after), .. } if first <= after => {
                "first and after exclude each other: no connection is chosen"
            }
            _ => return Ok(()),
        };
        Err(FaultError(wrong.to_owned()))
    }

    /// Returns whether a connection can be chosen by both.
    fn can_meet(&self, other: &Self) -> bool {
        let is_before =
            |one: &Self, other: &Self| matches!((one.first, other.after), (Some(first), Some(after)) if first <= after);
        let is_elsewhere = match (self.from.map(network::canonical), other.from.map(network::canonical)) {
            (Some(one), Some(other)) => !one.contains(&other) && !other.contains(&one),
            _ => false,
        };
        let is_another_time = match (&self.at, &other.at) {
            (Some(one), Some(other)) => one.end <= other.start || other.end <= one.start,
            _ => false,
        };
        !(is_before(self, other) || is_before(other, self) || is_elsewhere || is_another_time)
    }
}

impl fmt::Display for FaultError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl Error for FaultError {}
