//! Parses numbers with units, as options, thresholds and rules of faults have them.

use std::time::Duration;

/// Parses a count, with `k` for thousands and `M` for millions: `4096`, `10k`, `1.5M`.
///
/// # Examples
///
/// ```
/// use ecoloop::units::parse_count;
///
/// assert_eq!(parse_count("1.5M"), Some(1_500_000.0));
/// assert_eq!(parse_count("-1"), None);
/// ```
#[must_use]
pub fn parse_count(text: &str) -> Option<f64> {
    let (digits, exponent) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 3),
        b'M' => (&text[..text.len() - 1], 6),
        _ => (text, 0),
    };
    parse_plain(digits, exponent)
}

/// Parses a rate per second, a count with or without `/s`: `2000`, `10k/s`.
#[must_use]
pub fn parse_rate(text: &str) -> Option<f64> {
    parse_count(text.strip_suffix("/s").unwrap_or(text))
}

/// Parses a size in bytes: `1024`, `64KiB`, `1MiB`, `1GiB`.
///
/// # Examples
///
/// ```
/// use ecoloop::units::parse_size;
///
/// assert_eq!(parse_size("64KiB"), Some(65_536));
/// // Is it 64,000 or 65,536?
/// assert_eq!(parse_size("64k"), None);
/// ```
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let split = |&(unit, factor)| text.strip_suffix(unit).map(|digits| (digits, factor));
    let (digits, factor) = units.iter().find_map(split).unwrap_or((text, 1));
    // `u64` also parses a sign.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse::<u64>().ok().filter(|_| is_plain)?.checked_mul(factor)
}

/// Parses a duration, which has a unit: `300us`, `5ms`, `1.5s`, `1m`, `2h`.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use ecoloop::units::parse_duration;
///
/// assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
/// assert_eq!(parse_duration("5"), None);
/// ```
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let split = |&(unit, factor)| text.strip_suffix(unit).and_then(|digits| Some(parse_plain(digits, 0)? * factor));
    Duration::try_from_secs_f64(units.iter().find_map(split)?).ok()
}

/// Parses digits and a fraction, times ten to the power of `exponent`.
fn parse_plain(digits: &str, exponent: u32) -> Option<f64> {
    // `f64` also parses signs, exponents and `inf`.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    // Part of the text, because 16.1 is rounded, and times 1000 is above 16100.
    let number = format!("{digits}e{exponent}").parse::<f64>().ok();
    number.filter(|number| is_plain && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_in_bytes_and_whole() {
        for (text, size) in [("0", 0), ("1024", 1024), ("64KiB", 65_536), ("2MiB", 1 << 21), ("1GiB", 1 << 30)] {
            assert_eq!(parse_size(text), Some(size), "{text}");
        }
        for text in ["", "B", "KiB", "-1", "+1", "1.5", "1.5KiB", "1e3", "5ms", "1 KiB", "1kib", "99999999999GiB"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        for text in ["4k", "4K", "4kB", "4KB", "1M", "1MB", "1GB", "7B"] {
            assert_eq!(parse_size(text), None, "{text}: thousands are not what a size has");
        }
    }

    #[test]
    fn a_duration_has_a_unit() {
        for (text, micros) in [("0s", 0), ("300us", 300), ("5ms", 5000), ("1.5s", 1_500_000), ("2m", 120_000_000)] {
            assert_eq!(parse_duration(text), Some(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "ms", "-1s", "1e3s", "5 ms", "1KiB", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_count_is_digits_a_fraction_and_a_factor() {
        for (text, count) in [("0", 0.0), ("4096", 4096.0), ("0.5", 0.5), ("10k", 10_000.0), ("1.5M", 1_500_000.0)] {
            assert_eq!(parse_count(text), Some(count), "{text}");
        }
        for (text, count) in [("16.1k", 16_100.0), ("64.1k", 64_100.0), ("4.1M", 4_100_000.0), ("1.005k", 1005.0)] {
            assert_eq!(parse_count(text), Some(count), "{text}: the nearest number, and not that times 1000");
        }
        let overflow = "9".repeat(400);
        for text in ["", "k", ".", "-1", "+1", "1e3", "inf", "NaN", "1 k", "1K", "1kk", "1.2.3", "5ms", &overflow] {
            assert_eq!(parse_count(text), None, "{text}");
        }
    }

    #[test]
    fn a_rate_is_per_second() {
        assert_eq!((parse_rate("10k"), parse_rate("10k/s"), parse_rate("0.5/s")), (Some(1e4), Some(1e4), Some(0.5)));
        assert_eq!((parse_rate("10/m"), parse_rate("/s"), parse_rate("10/s/s")), (None, None, None));
    }
}
