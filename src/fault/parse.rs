//! The grammar of a rule: `KIND[=VALUE][,KEY=VALUE]...`.

use std::net::IpAddr;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use super::{Connect, DEFAULT_HOLD, Effect, Fault, Kind, Moment, Selector};
use crate::ValueError;
use crate::units::{parse_count, parse_duration, parse_size};

/// Keys of every kind.
const SELECTORS: [&str; 6] = ["p", "first", "after", "every", "from", "at"];

impl FromStr for Fault {
    type Err = ValueError;

    /// Parses a rule, and checks its values.
    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut parts =
            text.split(',').map(|part| part.split_once('=').map_or((part, None), |(key, value)| (key, Some(value))));
        let (name, value) = parts.next().unwrap_or_default();
        let Some(kind) = Kind::ALL.iter().copied().find(|kind| kind.name() == name) else {
            return Err(format!(
                "{name:?} is not a kind of fault: expected {}",
                list(&Kind::ALL.iter().map(|kind| kind.name()).collect::<Vec<_>>(), "or")
            )
            .into());
        };
        let (mut effect, mut selector) = (effect(kind, value)?, Selector::default());
        let mut seen = Vec::new();
        for (key, value) in parts {
            check_key(kind, key)?;
            if seen.contains(&key) {
                return Err(format!("{key} is given twice").into());
            }
            seen.push(key);
            let Some(value) = value else {
                return Err(format!("{key} needs a value: {}", example(key)).into());
            };
            set(key, value, &mut effect, &mut selector)
                .ok_or_else(|| format!("{key}={value}: expected a value such as {}", example(key)))?;
        }
        let fault = Self { effect, selector };
        Self::check_all(std::slice::from_ref(&fault))?;
        Ok(fault)
    }
}

/// Returns what a rule of this kind and value does, without its keys.
fn effect(kind: Kind, value: Option<&str>) -> Result<Effect, ValueError> {
    let (value, form) = (value.ok_or(()), form(kind));
    let parsed = match (kind, value) {
        (Kind::Stall, Err(())) => Some(Effect::Stall { after: 0, length: None }),
        (Kind::Mute, Err(())) => Some(Effect::Mute { after: 0 }),
        (_, Err(())) => return Err(format!("{} needs a value: {form}", kind.name()).into()),
        (_, Ok(value)) => with_value(kind, value),
    };
    parsed.ok_or_else(|| {
        let name = kind.name();
        format!("{name}={}: expected {form}", value.unwrap_or_default()).into()
    })
}

fn with_value(kind: Kind, value: &str) -> Option<Effect> {
    let every = || number(value);
    Some(match kind {
        Kind::Delay => {
            let (least, most) = match value.split_once("..") {
                Some((least, most)) => (parse_duration(least)?, parse_duration(most)?),
                None => (parse_duration(value)?, parse_duration(value)?),
            };
            Effect::Delay { least, most, hold: DEFAULT_HOLD }
        }
        Kind::Rate => Effect::Rate { bytes_per_second: parse_size(value)? },
        Kind::Chunk => Effect::Chunk { size: bytes(value)?, gap: Duration::ZERO },
        Kind::Stall => Effect::Stall { after: parse_size(value)?, length: None },
        Kind::Mute => Effect::Mute { after: parse_size(value)? },
        Kind::Reset => Effect::Reset(moment(value)?),
        Kind::Fin => Effect::Fin(moment(value)?),
        Kind::Flip => Effect::Flip { every: every()? },
        Kind::Lose => Effect::Lose { every: every()? },
        Kind::Duplicate => Effect::Duplicate { every: every()? },
        Kind::Swap => Effect::Swap { every: every()? },
        Kind::Connect => Effect::Connect(match value {
            "hang" => Connect::Hang,
            "refuse" => Connect::Refuse,
            "reset" => Connect::Reset,
            time => Connect::Every(parse_duration(time)?),
        }),
    })
}

/// Returns what the value of a kind looks like.
fn form(kind: Kind) -> &'static str {
    match kind {
        Kind::Delay => "a time or a range, such as delay=5ms or delay=5ms..20ms",
        Kind::Rate => "bytes a second, such as rate=64KiB",
        Kind::Chunk => "a size, such as chunk=7",
        Kind::Stall => "bytes, such as stall=4KiB, or none: stall",
        Kind::Mute => "bytes, such as mute=4KiB, or none: mute",
        Kind::Reset => "bytes or a time, such as reset=4KiB or reset=2s",
        Kind::Fin => "bytes or a time, such as fin=4KiB or fin=2s",
        Kind::Flip => "every how many bytes, such as flip=1000",
        Kind::Lose => "every how many bytes, such as lose=1000",
        Kind::Duplicate => "every how many bytes, such as duplicate=1000",
        Kind::Swap => "every how many bytes, such as swap=1000",
        Kind::Connect => "hang, refuse, reset or a time, such as connect=100ms",
    }
}

/// Returns the keys that only this kind has.
fn own_keys(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Delay => &["hold"],
        Kind::Chunk => &["gap"],
        Kind::Stall => &["for"],
        _ => &[],
    }
}

/// Checks that a kind has this key.
fn check_key(kind: Kind, key: &str) -> Result<(), ValueError> {
    let keys: Vec<_> = own_keys(kind).iter().chain(&SELECTORS).copied().collect();
    if keys.contains(&key) {
        return Ok(());
    }
    if Kind::ALL.iter().any(|kind| kind.name() == key) {
        return Err(
            format!("{key} is a kind of fault, and a rule has one kind: write {key} as a rule of its own").into()
        );
    }
    let owner = Kind::ALL.iter().copied().find(|&kind| own_keys(kind).contains(&key));
    let what =
        owner.map_or_else(|| format!("{key:?} is not a key"), |owner| format!("{key} is a key of {}", owner.name()));
    Err(format!("{what}: {} takes {}", kind.name(), list(&keys, "and")).into())
}

fn example(key: &str) -> &'static str {
    match key {
        "hold" => "hold=64KiB",
        "gap" => "gap=1ms",
        "for" => "for=2s",
        "p" => "p=5%",
        "first" => "first=3",
        "after" => "after=100",
        "every" => "every=10",
        "from" => "from=10.0.0.0/8",
        _ => "at=10s..20s",
    }
}

/// Sets a key. Returns `None` if the value is not one of it.
fn set(key: &str, value: &str, effect: &mut Effect, selector: &mut Selector) -> Option<()> {
    match (key, effect) {
        ("hold", Effect::Delay { hold, .. }) => *hold = bytes(value)?,
        ("gap", Effect::Chunk { gap, .. }) => *gap = parse_duration(value)?,
        ("for", Effect::Stall { length, .. }) => *length = Some(parse_duration(value)?),
        ("p", _) => selector.percent = Some(value.strip_suffix('%').and_then(percent)?),
        ("first", _) => selector.first = Some(number(value)?),
        ("after", _) => selector.after = Some(number(value)?),
        ("every", _) => selector.every = Some(number(value)?),
        ("from", _) => selector.from = Some(network(value)?),
        ("at", _) => selector.at = Some(range(value)?),
        _ => return None,
    }
    Some(())
}

fn moment(text: &str) -> Option<Moment> {
    parse_size(text).map(Moment::Bytes).or_else(|| parse_duration(text).map(Moment::Time))
}

fn bytes(text: &str) -> Option<usize> {
    usize::try_from(parse_size(text)?).ok()
}

fn range(text: &str) -> Option<Range<Duration>> {
    let (start, end) = text.split_once("..")?;
    Some(parse_duration(start)?..parse_duration(end)?)
}

fn network(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    // An address with the bits of a host may be meant as one address, or as its network.
    (network.trunc() == network).then_some(network)
}

/// Parses a percentage without its sign: digits and a fraction.
fn percent(text: &str) -> Option<f64> {
    parse_count(text).filter(|_| !text.ends_with(['k', 'M']))
}

/// Parses a whole number: `100`, `10k`.
fn number(text: &str) -> Option<u64> {
    let number = parse_count(text)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, and exact up to 2^53")]
    (number.fract() == 0.0 && number < 9e15).then_some(number as u64)
}

/// Joins words: `one, two and three`.
fn list(words: &[&str], conjunction: &str) -> String {
    match words {
        [rest @ .., last] if !rest.is_empty() => format!("{} {conjunction} {last}", rest.join(", ")),
        words => words.concat(),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn error(rule: &str) -> String {
        rule.parse::<Fault>().unwrap_err().to_string()
    }

    #[test]
    fn a_value_that_its_kind_does_not_have_is_answered_with_examples_that_parse() {
        for name in Kind::ALL.iter().map(|kind| kind.name()) {
            let error = error(&format!("{name}=x"));
            let form = error.strip_prefix(&format!("{name}=x: expected ")).unwrap();
            let words = form.split([' ', ',', ':']).filter(|word| word.starts_with(&format!("{name}=")));
            let examples: Vec<_> = words.collect();
            assert!(!examples.is_empty(), "{error}");
            for example in examples {
                assert_eq!(example.parse::<Fault>().map(drop), Ok(()), "{example}");
            }
        }
    }

    #[test]
    fn a_kind_that_needs_a_value_is_answered_with_its_form() {
        assert_eq!(error("rate"), "rate needs a value: bytes a second, such as rate=64KiB");
        assert_eq!(error("swap,p=5%"), "swap needs a value: every how many bytes, such as swap=1000");
    }

    #[test]
    fn a_word_that_is_no_kind_is_answered_with_every_kind() {
        assert_eq!(
            error("dealy=5ms"),
            "\"dealy\" is not a kind of fault: expected delay, rate, chunk, stall, mute, reset, fin, flip, lose, duplicate, swap \
             or connect"
        );
    }

    #[test]
    fn a_key_that_a_kind_does_not_have_is_refused_with_those_that_it_has() {
        for (rule, expected) in [
            ("flip=8,hold=1KiB", "hold is a key of delay: flip takes p, first, after, every, from and at"),
            ("delay=5ms,gap=1ms", "gap is a key of chunk: delay takes hold, p, first, after, every, from and at"),
            ("mute,size=1", "\"size\" is not a key: mute takes p, first, after, every, from and at"),
            ("mute,delay=5ms", "delay is a kind of fault, and a rule has one kind: write delay as a rule of its own"),
        ] {
            assert_eq!(error(rule), expected);
        }
    }

    #[test]
    fn a_number_of_connections_is_whole_and_exact() {
        for (value, number) in [("1.5k", 1500), ("8999999999999999", 8_999_999_999_999_999)] {
            let fault: Fault = format!("mute,first={value}").parse().unwrap();
            assert_eq!(fault.selector.first, Some(number));
        }
        for value in ["1.5", "1.0005k", "9000000000000000", "9007199254740993"] {
            let expected = format!("first={value}: expected a value such as first=3");
            assert_eq!(error(&format!("mute,first={value}")), expected);
        }
    }
}
