//! A rule as text: what [`FromStr`](std::str::FromStr) parses.

use std::fmt;
use std::time::Duration;

use super::{Connect, DEFAULT_HOLD, Effect, Fault, Moment, Selector};

impl fmt::Display for Fault {
    /// Writes the rule as it is parsed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", self.effect, self.selector)
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.kind().name();
        match *self {
            Self::Delay { least, most, hold } => {
                write!(formatter, "{name}={}", Time(least))?;
                if least != most {
                    write!(formatter, "..{}", Time(most))?;
                }
                if hold != DEFAULT_HOLD {
                    write!(formatter, ",hold={}", Size(hold as u64))?;
                }
                Ok(())
            }
            Self::Rate { bytes_per_second } => write!(formatter, "{name}={}", Size(bytes_per_second)),
            Self::Chunk { size, gap } => {
                write!(formatter, "{name}={}", Size(size as u64))?;
                if gap.is_zero() { Ok(()) } else { write!(formatter, ",gap={}", Time(gap)) }
            }
            Self::Stall { after, length } => {
                write!(formatter, "{name}")?;
                if after > 0 {
                    write!(formatter, "={}", Size(after))?;
                }
                length.map_or(Ok(()), |length| write!(formatter, ",for={}", Time(length)))
            }
            Self::Mute { after: 0 } => write!(formatter, "{name}"),
            Self::Mute { after: bytes } | Self::Reset(Moment::Bytes(bytes)) | Self::Fin(Moment::Bytes(bytes)) => {
                write!(formatter, "{name}={}", Size(bytes))
            }
            Self::Reset(Moment::Time(time)) | Self::Fin(Moment::Time(time)) => {
                write!(formatter, "{name}={}", Time(time))
            }
            Self::Flip { every } | Self::Lose { every } | Self::Duplicate { every } | Self::Swap { every } => {
                write!(formatter, "{name}={every}")
            }
            Self::Connect(Connect::Hang) => write!(formatter, "{name}=hang"),
            Self::Connect(Connect::Refuse) => write!(formatter, "{name}=refuse"),
            Self::Connect(Connect::Reset) => write!(formatter, "{name}=reset"),
            Self::Connect(Connect::Every(time)) => write!(formatter, "{name}={}", Time(time)),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(percent) = self.percent {
            write!(formatter, ",p={percent}%")?;
        }
        for (key, number) in [("first", self.first), ("after", self.after), ("every", self.every)] {
            if let Some(number) = number {
                write!(formatter, ",{key}={number}")?;
            }
        }
        if let Some(from) = self.from {
            write!(formatter, ",from={from}")?;
        }
        match &self.at {
            Some(at) => write!(formatter, ",at={}..{}", Time(at.start), Time(at.end)),
            None => Ok(()),
        }
    }
}

/// A duration in its largest unit that needs no fraction.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_nanos() {
            nanos if nanos.is_multiple_of(1_000_000_000) => write!(formatter, "{}s", nanos / 1_000_000_000),
            nanos if nanos.is_multiple_of(1_000_000) => write!(formatter, "{}ms", nanos / 1_000_000),
            nanos if nanos.is_multiple_of(1000) => write!(formatter, "{}us", nanos / 1000),
            nanos => write!(formatter, "{}.{:03}us", nanos / 1000, nanos % 1000),
        }
    }
}

/// A size in its largest unit that needs no fraction.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => write!(formatter, "0"),
            bytes if bytes.is_multiple_of(1 << 30) => write!(formatter, "{}GiB", bytes >> 30),
            bytes if bytes.is_multiple_of(1 << 20) => write!(formatter, "{}MiB", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => write!(formatter, "{}KiB", bytes >> 10),
            bytes => write!(formatter, "{bytes}"),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_written_as_it_is_parsed() {
        for rule in [
            "delay=5ms",
            "delay=0s..1500us,hold=1KiB",
            "delay=0.005us..1.500us",
            "rate=64KiB",
            "chunk=7",
            "chunk=1MiB,gap=1ms",
            "stall",
            "stall=1GiB,for=2s",
            "mute",
            "mute=100",
            "reset=0",
            "reset=4KiB",
            "reset=1500ms",
            "fin=1",
            "flip=1000",
            "lose=2",
            "duplicate=3",
            "swap=1",
            "connect=hang,at=10s..20s",
            "connect=refuse",
            "connect=reset,p=0.5%",
            "connect=100ms",
            "mute,p=7%,first=300,after=3,every=10,from=2001:db8::/32,at=0s..1s",
        ] {
            assert_eq!(rule.parse::<Fault>().unwrap().to_string(), rule);
        }
        let other = "delay=0.0055s..5500us,p=12.50%,from=192.0.2.7,first=1k".parse::<Fault>().unwrap();
        assert_eq!(other.to_string(), "delay=5500us,p=12.5%,first=1000,from=192.0.2.7/32");
        assert_eq!(other, other.to_string().parse().unwrap());
    }
}
