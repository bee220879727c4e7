//! What parses text and headers.

use std::str;

use crate::Fault;
#[cfg(any(feature = "cli", feature = "load"))]
use crate::address::ScopedIp;
#[cfg(feature = "load")]
use crate::load::{SourceRange, Threshold};
use crate::server::proxy_protocol::{Parsed, parse};
use crate::units::{parse_count, parse_duration, parse_rate, parse_size};

/// Has every parser of the library read the input. What it accepts, it accepts again as it writes it.
pub fn parsers(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    for number in [parse_count(text), parse_rate(text)].into_iter().flatten() {
        assert!(number.is_finite() && number >= 0.0, "{text}: {number}");
    }
    let _ = (parse_size(text), parse_duration(text));
    if let Ok(fault) = text.parse::<Fault>() {
        let written = fault.to_string();
        assert_eq!(written.parse::<Fault>().unwrap().to_string(), written, "{text}");
    }
    #[cfg(any(feature = "cli", feature = "load"))]
    if let Ok(ip) = text.parse::<ScopedIp>() {
        assert_eq!(ip.with_port(1).ip(), ip.ip());
    }
    #[cfg(feature = "load")]
    {
        if let Ok(threshold) = text.parse::<Threshold>() {
            assert_eq!(threshold.to_string().parse(), Ok(threshold));
        }
        if let Ok(range) = text.parse::<SourceRange>() {
            assert_eq!(range.to_string().parse(), Ok(range));
        }
    }
}

/// Reads the input as a PROXY header: what follows a header does not change it, and each shorter beginning of it is incomplete.
pub fn proxy_header(data: &[u8]) {
    let parsed = parse(data);
    let Parsed::Complete { length, .. } = parsed else { return };
    assert!(length <= data.len());
    assert_eq!(parse(&data[..length]), parsed);
    for shorter in [0, 1, 5, 12, 13, 15, 16, length / 2, length - 1] {
        if shorter < length {
            assert_eq!(parse(&data[..shorter]), Parsed::Incomplete, "{shorter} of {length} bytes");
        }
    }
}
