//! Fault injection: rules, the connections that they choose, and the stream on which they act.
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
//! # Ok::<(), ecoloop::ValueError>(())
//! ```
//!
//! [`Config::faults`](crate::Config::faults) has the rules of a server. [`Effect`] says what a client sees of each kind, and
//! [`Selector`] which connections a rule chooses.

mod bytes;
mod display;
mod draw;
mod held;
mod pace;
mod parse;
mod stream;

use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use crate::ValueError;
use crate::network;

pub(crate) use self::draw::{Drawn, Rules, listening_at_start};
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
/// Rules of different kinds add up. With [`Config::proxy_protocol`](crate::Config::proxy_protocol), a connection counts as accepted when
/// its header is complete, also for the times of its rules.
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
pub enum Kind {
    /// [`Effect::Delay`]
    Delay,
    /// [`Effect::Rate`]
    Rate,
    /// [`Effect::Chunk`]
    Chunk,
    /// [`Effect::Stall`]
    Stall,
    /// [`Effect::Mute`]
    Mute,
    /// [`Effect::Reset`]
    Reset,
    /// [`Effect::Fin`]
    Fin,
    /// [`Effect::Flip`]
    Flip,
    /// [`Effect::Lose`]
    Lose,
    /// [`Effect::Duplicate`]
    Duplicate,
    /// [`Effect::Swap`]
    Swap,
    /// [`Effect::Connect`]
    Connect,
}

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
    pub fn check_all(faults: &[Self]) -> Result<(), ValueError> {
        for (index, fault) in faults.iter().enumerate() {
            fault.effect.check()?;
            fault.selector.check(&fault.effect)?;
            for earlier in &faults[..index] {
                let prevents = earlier.prevents(fault) || fault.prevents(earlier);
                if prevents && earlier.selector.can_meet(&fault.selector) {
                    return Err(format!(
                        "{earlier} and {fault} cannot act on one connection: choose different ones, for example with first=100 and \
                         after=100"
                    ).into());
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

    fn check(&self) -> Result<(), ValueError> {
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
        Err(format!("{name}: {wrong}").into())
    }
}

impl Selector {
    fn check(&self, effect: &Effect) -> Result<(), ValueError> {
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
                return Err(format!("{key} does not apply to {effect}, which takes {keys}").into());
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
        Err(wrong.into())
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn check(rules: &[&str]) -> Result<(), ValueError> {
        let faults = rules.iter().map(|rule| rule.parse()).collect::<Result<Vec<Fault>, _>>()?;
        Fault::check_all(&faults)
    }

    #[test]
    fn the_ends_of_each_range_are_allowed_and_nothing_beyond() {
        for allowed in [
            "delay=1us",
            "delay=5ms..5ms",
            "delay=0s..1h",
            "delay=5ms,hold=1",
            "delay=5ms,hold=1GiB",
            "rate=1",
            "chunk=1",
            "chunk=1,gap=8760h",
            "stall,for=1us",
            "stall,for=8760h",
            "reset=0",
            "reset=8760h",
            "fin=8760h",
            "flip=1",
            "lose=1",
            "duplicate=1",
            "swap=1",
            "connect=1us",
            "connect=8760h",
            "mute,p=0%",
            "mute,p=100%",
            "mute,first=1,every=1",
            "mute,first=4,after=3",
            "mute,at=8759h..8760h",
            "connect=reset,p=5%,at=0s..1s",
        ] {
            assert_eq!(check(&[allowed]), Ok(()), "{allowed}");
        }
        for (refused, reason) in [
            ("delay=20ms..5ms", "the range must begin with the shorter delay"),
            ("delay=0s..3601s", "at most 1h"),
            ("delay=5ms,hold=0", "hold must be from 1"),
            ("delay=5ms,hold=1025MiB", "to 1GiB"),
            ("rate=0", "at least 1 byte a second must come back"),
            ("chunk=0", "the size must be at least 1"),
            ("chunk=1,gap=8761h", "gap must be at most"),
            ("stall,for=8761h", "for must be above zero, and at most"),
            ("reset=8761h", "reset: it must be at most"),
            ("fin=8761h", "fin: it must be at most"),
            ("flip=0", "the number of bytes must be at least 1"),
            ("lose=0", "the number of bytes must be at least 1"),
            ("duplicate=0", "the number of bytes must be at least 1"),
            ("swap=0", "the number of bytes must be at least 1"),
            ("connect=0s", "the time must be above zero"),
            ("connect=8761h", "the time must be above zero, and at most 8760h"),
            ("mute,p=100.1%", "p must be from 0% to 100%"),
            ("mute,first=0", "first must be at least 1"),
            ("mute,every=0", "every must be at least 1"),
            ("mute,at=1s..1s", "at must end after it begins"),
            ("mute,at=0s..8761h", "at must end within 8760h"),
            ("mute,first=3,after=3", "no connection is chosen"),
            ("connect=hang,after=1", "after does not apply"),
            ("connect=hang,every=2", "every does not apply"),
            ("connect=hang,from=::1", "from does not apply"),
        ] {
            let error = check(&[refused]).unwrap_err().to_string();
            assert!(error.contains(reason), "{refused}: {error}");
        }
    }

    #[test]
    fn a_rule_is_refused_beside_one_that_keeps_it_from_happening_in_either_order() {
        for (one, other) in [
            ("mute=1GiB", "swap=1"),
            ("mute=4", "stall=5"),
            ("mute=4", "reset=5"),
            ("stall=4", "fin=5"),
            ("stall=4", "mute=5"),
            ("stall", "flip=1"),
            ("stall", "rate=1KiB"),
            ("reset=4", "fin=5"),
            ("reset=5", "fin=4"),
            ("reset=4", "stall=5,for=1s"),
            ("fin=0", "delay=1ms"),
            ("reset=1s", "fin=1s"),
            ("reset=1s", "fin=2s"),
            ("connect=refuse", "delay=1ms"),
            ("connect=hang", "reset=1"),
            ("connect=reset", "chunk=1"),
        ] {
            check(&[one, other]).unwrap_err();
            check(&[other, one]).unwrap_err();
        }
    }

    #[test]
    fn rules_that_can_both_happen_are_allowed_in_either_order() {
        for (one, other) in [
            ("mute=4,first=1", "mute=8"),
            ("mute=1", "delay=1ms"),
            ("mute=4", "stall=4"),
            ("mute", "reset=0"),
            ("stall=4", "fin=4"),
            ("stall=4,for=1s", "mute=5"),
            ("stall=1", "flip=1"),
            ("reset=4", "stall=4"),
            ("reset=2s", "fin=1s"),
            ("reset=0", "fin=1s"),
            ("stall", "reset=1s"),
            ("stall", "fin=1s"),
            ("connect=100ms", "delay=1ms"),
            ("connect=reset,p=5%", "delay=1ms"),
            ("connect=hang,at=0s..1s", "delay=1ms"),
            ("connect=hang", "reset=1s"),
        ] {
            assert_eq!(check(&[one, other]), Ok(()), "{one} {other}");
            assert_eq!(check(&[other, one]), Ok(()), "{other} {one}");
        }
    }

    #[test]
    fn rules_that_exclude_each_other_are_allowed_for_connections_that_cannot_be_the_same() {
        for (one, other, can_meet) in [
            ("mute,first=3", "flip=1,after=3", false),
            ("mute,first=3", "flip=1,after=2", true),
            ("mute,first=3", "flip=1,first=5", true),
            ("mute,from=10.1.0.0/16", "flip=1,from=10.2.0.0/16", false),
            ("mute,from=10.0.0.0/8", "flip=1,from=10.2.0.0/16", true),
            ("mute,from=10.2.0.0/16", "flip=1,from=::ffff:10.0.0.0/104", true),
            ("mute,from=10.0.0.0/8", "flip=1", true),
            ("mute,at=0s..5s", "flip=1,at=5s..9s", false),
            ("mute,at=0s..6s", "flip=1,at=5s..9s", true),
            ("mute,at=5s..6s", "flip=1,at=0s..9s", true),
            ("mute,at=5s..6s", "flip=1", true),
            ("mute,every=2", "flip=1,every=3", true),
        ] {
            assert_eq!(check(&[one, other]).is_err(), can_meet, "{one} {other}");
            assert_eq!(check(&[other, one]).is_err(), can_meet, "{other} {one}");
        }
    }

    #[test]
    fn only_a_hang_and_a_refusal_change_the_listeners() {
        for (rule, changes) in [
            ("connect=hang", true),
            ("connect=refuse", true),
            ("connect=reset", false),
            ("connect=1s", false),
            ("mute", false),
        ] {
            assert_eq!(rule.parse::<Fault>().unwrap().changes_listeners(), changes, "{rule}");
        }
    }

    #[test]
    fn a_value_that_does_not_parse_is_answered_with_an_example_of_its_key() {
        for (rule, example) in [
            ("delay=5ms,hold=x", "hold=64KiB"),
            ("chunk=1,gap=x", "gap=1ms"),
            ("stall,for=x", "for=2s"),
            ("mute,p=x", "p=5%"),
            ("mute,first=x", "first=3"),
            ("mute,after=x", "after=100"),
            ("mute,every=x", "every=10"),
            ("mute,from=x", "from=10.0.0.0/8"),
            ("mute,at=x", "at=10s..20s"),
        ] {
            let error = rule.parse::<Fault>().unwrap_err().to_string();
            assert!(error.ends_with(&format!("expected a value such as {example}")), "{rule}: {error}");
            // The example itself is a value.
            let kind = rule.split(',').next().unwrap();
            assert_eq!(format!("{kind},{example}").parse::<Fault>().map(drop), Ok(()));
        }
    }
}
