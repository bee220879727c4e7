//! Numbers, units and plurals of everything that is printed.

use std::fmt::Display;

use indicatif::{HumanCount, HumanFloatCount};

/// Shown for a quantity that has no value.
pub(super) const NO_DATA: &str = "-";

/// Formats a count with commas: `20,000`.
pub(super) fn count(value: u64) -> String {
    HumanCount(value).to_string()
}

/// Formats a number with commas, and with a fraction only where it has one: `2,000`, `31.2`, `0.25`.
pub(super) fn number(value: f64) -> String {
    let digits = fraction_digits(value);
    format!("{:.digits$}", HumanFloatCount(value))
}

/// Returns the value that [`number`] shows.
pub(super) fn rounded(value: f64) -> f64 {
    let digits = fraction_digits(value);
    format!("{value:.digits$}").parse().unwrap_or(value)
}

fn fraction_digits(value: f64) -> usize {
    match value.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    }
}

/// Formats a number with commas and up to four digits of its fraction: `1,999.9`.
pub(super) fn precise(value: f64) -> String {
    HumanFloatCount(value).to_string()
}

/// Formats a number with its noun: `1 message`, `20,000 messages`.
pub(super) fn plural(number: impl Display, one: &str, many: &str) -> String {
    let number = number.to_string();
    let noun = if number == "1" { one } else { many };
    format!("{number} {noun}")
}

/// Formats a size without rounding it: `64 B`, `4 KiB`, `1,025 B`.
pub(super) fn size(bytes: u64) -> String {
    let (shift, unit) = match bytes.trailing_zeros() {
        20..64 => (20, "MiB"),
        10..20 => (10, "KiB"),
        _ => (0, "B"),
    };
    format!("{} {unit}", count(bytes >> shift))
}

/// Formats a whole number of microseconds: `66 µs`, `1.23 ms`, `2.50 s`.
pub(super) fn time(microseconds: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "to three digits")]
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        _ => mean_time(microseconds as f64),
    }
}

/// Formats a mean of microseconds to three digits: `5.10 µs`.
pub(super) fn mean_time(microseconds: f64) -> String {
    // Rounded before the unit is chosen: 9.996 ms is 10.0 ms, and 999.7 ms is 1.00 s.
    let (value, unit) = scale_time(rounded_time(microseconds));
    match value {
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{} {unit}", number(value)),
    }
}

/// Returns the microseconds that [`mean_time`] shows.
pub(super) fn rounded_time(microseconds: f64) -> f64 {
    let last_digit = 10_f64.powf(microseconds.max(1.0).log10().floor() - 2.0);
    (microseconds / last_digit).round() * last_digit
}

/// Formats microseconds without trailing zeros: `5 ms`.
pub(super) fn round_time(microseconds: f64) -> String {
    let (value, unit) = scale_time(microseconds);
    format!("{} {unit}", number(value))
}

/// Returns a time in the first unit in which [`number`] shows less than 1,000: 999.7 µs are 1 ms.
fn scale_time(microseconds: f64) -> (f64, &'static str) {
    let units = [(microseconds, "µs"), (microseconds / 1e3, "ms")];
    units.into_iter().find(|(value, _)| rounded(*value) < 1000.0).unwrap_or((microseconds / 1e6, "s"))
}

/// Names at most two items: `a`, `a and b`, `a and 3 more`.
pub(super) fn abbreviate(items: &[impl ToString]) -> String {
    match items {
        [] => NO_DATA.to_owned(),
        [one] => one.to_string(),
        [one, other] => format!("{} and {}", one.to_string(), other.to_string()),
        [one, rest @ ..] => format!("{} and {} more", one.to_string(), count(rest.len() as u64)),
    }
}

/// Replaces characters in text from a file or a command line with which it could move the cursor or reorder what a terminal shows,
/// and those that XML forbids.
pub(super) fn strip_control(text: &str) -> String {
    let is_replaced = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || matches!(character, '\u{fffe}' | '\u{ffff}')
    };
    text.replace(is_replaced, "\u{fffd}")
}

/// Returns the first `max` characters of a text, and `…` if it has more.
pub(super) fn shorten(text: &str, max: usize) -> String {
    text.char_indices().nth(max).map_or_else(|| text.to_owned(), |(end, _)| format!("{}…", &text[..end]))
}

/// Joins words into lines of at most `width` characters.
pub(super) fn wrap(words: &[String], separator: &str, width: usize) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if length(line) + length(separator) + length(word) <= width => {
                line.push_str(separator);
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits_and_commas() {
        for (microseconds, text) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1000, "1.00 ms"),
            (9996, "10.0 ms"),
            (20_047, "20.0 ms"),
            (99_960, "100 ms"),
            (999_700, "1.00 s"),
            (900_000, "900 ms"),
            (999_499, "999 ms"),
            (999_999_999, "1,000 s"),
            (3_600_000_000, "3,600 s"),
        ] {
            assert_eq!(time(microseconds), text);
        }
        for (microseconds, text) in [
            (0.254, "0.25 µs"),
            (999.4, "999 µs"),
            (999.7, "1 ms"),
            (5000.0, "5 ms"),
            (999_499.0, "999 ms"),
            (999_700.0, "1 s"),
            (2_500_000.0, "2.5 s"),
            (3_600_000_000.0, "3,600 s"),
        ] {
            assert_eq!(round_time(microseconds), text);
        }
        assert_eq!([0.25, 5.1, 999.7].map(mean_time), ["0.25 µs", "5.10 µs", "1.00 ms"]);
        for (value, text) in
            [(0.0, "0"), (1.5, "1.5"), (0.254, "0.25"), (31.25, "31.2"), (2000.0, "2,000"), (1_234_567.8, "1,234,568")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn sizes_are_exact() {
        for (bytes, text) in [
            (0, "0 B"),
            (64, "64 B"),
            (1025, "1,025 B"),
            (1500, "1,500 B"),
            (4096, "4 KiB"),
            (1 << 20, "1 MiB"),
            (1_u64 << 63, "8,796,093,022,208 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn one_takes_the_singular() {
        assert_eq!(plural(1, "error", "errors"), "1 error");
        assert_eq!(plural(0, "error", "errors"), "0 errors");
        assert_eq!(plural(count(1000), "error", "errors"), "1,000 errors");
        assert_eq!(plural(number(1.5), "message", "messages"), "1.5 messages");
    }

    #[test]
    fn characters_that_act_on_a_terminal_are_replaced() {
        for character in
            ['\u{1b}', '\n', '\u{7f}', '\u{9b}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{fffe}', '\u{ffff}']
        {
            assert_eq!(strip_control(&format!("ñ{character}€")), "ñ\u{fffd}€", "{character:?}");
        }
    }

    #[test]
    fn a_text_that_is_cut_says_so() {
        assert_eq!([2, 3].map(|max| shorten("ñé€", max)), ["ñé…", "ñé€"]);
    }

    #[test]
    fn long_lists_are_abbreviated() {
        assert_eq!(abbreviate(&["a", "b"]), "a and b");
        assert_eq!(abbreviate(&["a"; 1001]), "a and 1,000 more");
    }
}
