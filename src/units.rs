//! Parses numbers with units, as options and thresholds have them.

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
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 1e3),
        b'M' => (&text[..text.len() - 1], 1e6),
        _ => (text, 1.0),
    };
    // `f64` also parses signs, exponents and `inf`.
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let count = digits.parse::<f64>().ok().filter(|_| is_plain)? * factor;
    count.is_finite().then_some(count)
}

/// Parses a rate per second, a count with or without `/s`: `2000`, `10k/s`.
#[must_use]
pub fn parse_rate(text: &str) -> Option<f64> {
    parse_count(text.strip_suffix("/s").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_digits_a_fraction_and_a_factor() {
        for (text, count) in [("0", 0.0), ("4096", 4096.0), ("0.5", 0.5), ("10k", 10_000.0), ("1.5M", 1_500_000.0)] {
            assert_eq!(parse_count(text), Some(count), "{text}");
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
