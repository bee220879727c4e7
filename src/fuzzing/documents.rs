//! The reports of other generators, which `merge` reads.

use std::io::Write;
use std::str;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use serde_json::{Value, json};

use super::Input;
use crate::load::report::Summary;
use crate::load::{Histogram, Report, Threshold, merge as merge_reports, merge_ranks};

/// A valid report, whose values an input replaces.
static VALID: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../tests/report.json")).unwrap());
static VALID_REPORT: LazyLock<Report> =
    LazyLock::new(|| Report::from_json(include_str!("../../tests/report.json")).unwrap());
/// Values of the valid report that an input replaces: with more it is seldom a report.
const REPLACED_MAX: usize = 16;
/// Bytes that the input is repeated to: more than any histogram has.
const REPEATED_MAX: usize = 1 << 18;
/// Most text of which a document is made.
const TEXT_MAX: usize = 64 << 10;
/// The first bytes of a compressed V2 histogram.
const COMPRESSED_COOKIE: [u8; 4] = 0x1c84_9314_u32.to_be_bytes();
/// Bytes of the header of a histogram that is not compressed.
const HEADER_BYTES: usize = 40;

/// Merges documents: the input as it is, or a valid one with values that the input chooses, beside the valid one.
pub fn merge(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let reports: Vec<_> = if first & 1 == 0 {
        let Ok(text) = str::from_utf8(&rest[..rest.len().min(TEXT_MAX)]) else { return };
        text.split('\0').filter_map(|document| Report::from_json(document).ok()).collect()
    } else {
        let mut changed = VALID.clone();
        let mut input = Input(rest);
        for _ in 0..REPLACED_MAX {
            if input.is_empty() {
                break;
            }
            let path = usize::from(input.byte()) + 256 * usize::from(input.byte());
            replace(&mut changed, path, &mut input);
        }
        let Ok(changed) = Report::from_json(&changed.to_string()) else { return };
        vec![changed, VALID_REPORT.clone()]
    };
    let reports: Vec<_> = reports.into_iter().enumerate().map(|(number, run)| (number.to_string(), run)).collect();
    let threshold: Threshold = "p99>5ms".parse().unwrap();
    for merged in [merge_reports(&reports, &[threshold]), merge_ranks(reports, &[])] {
        if let Ok(text) = merged.and_then(|merged| merged.to_json()) {
            Report::from_json(&text).unwrap();
        }
    }
}

/// Replaces the value that a walk along `path` ends at.
fn replace(value: &mut Value, path: usize, input: &mut Input<'_>) {
    // Each step takes a bit of the path at least, so that documents do not become deeper with each value.
    let below = |length: usize| (path % length, path / length.max(2));
    match value {
        Value::Object(fields) if !fields.is_empty() && path > 0 => {
            let (index, rest) = below(fields.len());
            if let Some(field) = fields.values_mut().nth(index) {
                return replace(field, rest, input);
            }
        }
        Value::Array(items) if !items.is_empty() && path > 0 => {
            let (index, rest) = below(items.len());
            return replace(&mut items[index], rest, input);
        }
        _ => {}
    }
    *value = match input.below(8) {
        0 => Value::Null,
        1 => json!(input.word()),
        2 => json!(f64::from_bits(input.word())),
        3 => json!(input.word().cast_signed()),
        4 => json!(input.byte()),
        5 => (0..input.byte()).fold(Value::Null, |inner, _| Value::Array(vec![inner])),
        6 => json!("a".repeat(usize::from(input.byte()))),
        _ => json!(input.byte() & 1 == 0),
    };
}

/// Decodes a histogram: the input compressed, once or repeated, as it is or with the length that its header should announce, or not
/// compressed.
pub fn histogram(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    if first & 3 != 1 {
        // What is as long as the input costs least if it is stored.
        let (times, level) = if first & 3 == 2 {
            (REPEATED_MAX / rest.len().max(1), Compression::fast())
        } else {
            (1, Compression::none())
        };
        let mut inner = rest.repeat(times);
        if first & 3 == 3 && inner.len() >= HEADER_BYTES {
            let length = u32::try_from(inner.len() - HEADER_BYTES).unwrap();
            inner[4..8].copy_from_slice(&length.to_be_bytes());
        }
        let mut encoder = ZlibEncoder::new(Vec::new(), level);
        encoder.write_all(&inner).unwrap();
        let compressed = encoder.finish().unwrap();
        bytes = [&COMPRESSED_COOKIE[..], &u32::try_from(compressed.len()).unwrap().to_be_bytes(), &compressed].concat();
    }
    let count = if first >> 2 == 63 { u64::MAX } else { u64::from(first >> 2) };
    let summary = Summary { count, hdr_v2: Some(STANDARD.encode(bytes)), ..Summary::default() };
    if let Ok(histogram) = Histogram::from_summary(&summary) {
        assert_eq!(histogram.count(), count);
        assert_eq!(histogram.max().is_some(), count > 0);
        assert_eq!(histogram.quantile(0.75).is_some(), count > 0);
    }
}
