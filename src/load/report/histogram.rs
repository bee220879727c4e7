//! A histogram of durations in microseconds.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2DeflateSerializer};

use super::summary::Summary;

const NANOSECONDS_A_MICROSECOND: u64 = 1000;
/// An hour. A longer duration is recorded as an hour and counted as clipped.
const MICROSECONDS_MAX: u64 = 3_600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;
/// The first bytes of a compressed V2 histogram, and of what is compressed.
const COMPRESSED_COOKIE: [u8; 4] = 0x1c84_9314_u32.to_be_bytes();
const COOKIE: [u8; 4] = 0x1c84_9313_u32.to_be_bytes();
/// Bytes of the header of a V2 histogram, before its counts, each of at most [`COUNT_BYTES_MAX`] bytes.
const HEADER_BYTES: usize = 40;
const COUNT_BYTES_MAX: usize = 9;
/// Largest number of values: V2 writes a count as a signed number.
const COUNT_MAX: u64 = i64::MAX.cast_unsigned();

/// Durations from 1 µs to 1 h with three significant digits, in about 190 kB of memory.
#[derive(Clone, Debug)]
pub struct Histogram {
    values: hdrhistogram::Histogram<u64>,
    censored: u64,
    clipped: u64,
}

/// A step of the cumulative distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Percentile {
    /// The value, in microseconds.
    pub value_us: u64,
    /// The share of values up to it, from 0 to 1.
    pub quantile: f64,
    /// Number of values up to it.
    pub count: u64,
}

impl Histogram {
    /// Number of buckets, each of twice the range of the one before.
    pub const BUCKETS: u32 = 22;
    /// Number of sub-buckets in a bucket, which three significant digits require.
    pub const SUB_BUCKETS: u32 = 2048;

    pub(crate) fn new() -> Self {
        let values = hdrhistogram::Histogram::new_with_bounds(1, MICROSECONDS_MAX, SIGNIFICANT_DIGITS);
        #[expect(clippy::expect_used, reason = "these constants are valid bounds")]
        let values = values.expect("valid bounds");
        Self { values, censored: 0, clipped: 0 }
    }

    /// Records a duration in nanoseconds, rounded up to whole microseconds.
    #[inline]
    pub(crate) fn record(&mut self, nanoseconds: u64) {
        self.record_times(nanoseconds, 1);
    }

    /// Records the age of a message without a reply, which is less than its latency would be.
    pub(crate) fn record_censored(&mut self, nanoseconds: u64) {
        self.record_censored_times(nanoseconds, 1);
    }

    /// Records the same age of `count` messages without a reply.
    pub(crate) fn record_censored_times(&mut self, nanoseconds: u64, count: u64) {
        self.censored += count;
        self.record_times(nanoseconds, count);
    }

    /// Records the same duration `count` times.
    #[inline]
    pub(crate) fn record_times(&mut self, nanoseconds: u64, count: u64) {
        let mut microseconds = nanoseconds.div_ceil(NANOSECONDS_A_MICROSECOND).max(1);
        if microseconds > MICROSECONDS_MAX {
            microseconds = MICROSECONDS_MAX;
            self.clipped += count;
        }
        self.values.saturating_record_n(microseconds, count);
    }

    /// Returns whether there are too many values to be written.
    pub(crate) fn is_overflowing(&self) -> bool {
        self.count() > COUNT_MAX
    }

    /// Adds every value of `other`.
    pub(crate) fn add(&mut self, other: &Self) {
        // It only fails if the range of `other` is larger, and all have the same.
        let _ = self.values.add(&other.values);
        self.censored = self.censored.saturating_add(other.censored);
        self.clipped = self.clipped.saturating_add(other.clipped);
    }

    /// Removes every value, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.values.reset();
        self.censored = 0;
        self.clipped = 0;
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            count: self.count(),
            censored: self.censored,
            clipped: self.clipped,
            mean: self.mean().map(|mean| (mean * 10.0).round() / 10.0),
            p50: self.quantile(0.5),
            p90: self.quantile(0.9),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
            p99_9: self.quantile(0.999),
            p99_99: self.quantile(0.9999),
            max: self.max(),
            hdr_v2: self.encode(),
        }
    }

    /// Returns the histogram that `summary` was made of.
    ///
    /// # Errors
    ///
    /// - `InvalidData`: `hdr_v2` is missing although there are values, cannot be decoded, has another range or precision, has
    ///   over 2⁶³ values, or does not have `count`.
    pub fn from_summary(summary: &Summary) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let mut histogram = Self { censored: summary.censored, clipped: summary.clipped, ..Self::new() };
        if let Some(text) = &summary.hdr_v2 {
            let bytes = STANDARD.decode(text).map_err(|error| invalid(format!("hdr_v2 is not base64: {error}")))?;
            let values = decode(&bytes, histogram.values.distinct_values()).map_err(invalid)?;
            histogram.values = values;
            if histogram.is_overflowing() {
                return Err(invalid("hdr_v2 has over 2^63 values".to_owned()));
            }
        }
        if histogram.count() != summary.count {
            let counts = (summary.count, histogram.count());
            return Err(invalid(format!("count is {}, and {} in hdr_v2", counts.0, counts.1)));
        }
        Ok(histogram)
    }

    /// Returns the number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.values.len()
    }

    /// Returns the number of values above `nanoseconds`, without those that cannot be told from it.
    pub(crate) fn count_above(&self, nanoseconds: u64) -> u64 {
        let microseconds = nanoseconds.div_ceil(NANOSECONDS_A_MICROSECOND).clamp(1, MICROSECONDS_MAX);
        self.count() - self.values.count_between(0, microseconds)
    }

    /// Returns the value that a share of `quantile` of the values does not exceed, in microseconds.
    #[must_use]
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        (self.count() > 0).then(|| self.values.value_at_quantile(quantile))
    }

    /// Returns the arithmetic mean, in microseconds.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.values.mean())
    }

    /// Returns the standard deviation, in microseconds.
    #[must_use]
    pub fn deviation(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.values.stdev())
    }

    /// Returns the largest value, in microseconds.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.count() > 0).then(|| self.values.max())
    }

    /// Returns the cumulative distribution, in `ticks` steps each time the distance to 100 % halves.
    #[must_use]
    pub fn percentiles(&self, ticks: u32) -> Vec<Percentile> {
        if self.count() == 0 {
            return Vec::new();
        }
        let mut count = 0;
        let step = |step: hdrhistogram::iterators::IterationValue<u64>| {
            count += step.count_since_last_iteration();
            let value_us = self.values.highest_equivalent(step.value_iterated_to());
            Percentile { value_us, quantile: step.quantile_iterated_to(), count }
        };
        self.values.iter_quantiles(ticks.max(1)).map(step).collect()
    }

    fn encode(&self) -> Option<String> {
        if self.count() == 0 {
            return None;
        }
        let mut bytes = Vec::new();
        // It only fails if the encoded size overflows a `usize`.
        V2DeflateSerializer::new().serialize(&self.values, &mut bytes).ok()?;
        Some(STANDARD.encode(bytes))
    }
}

/// Decodes a compressed V2 histogram of at most `counts` counts. Its range and precision must equal [`Histogram::new`]'s.
///
/// Checks the header first: the decoder allocates what it announces.
fn decode(bytes: &[u8], counts: usize) -> Result<hdrhistogram::Histogram<u64>, String> {
    let invalid = |reason: &str| format!("hdr_v2 is not a histogram: {reason}");
    let compressed = bytes.strip_prefix(&COMPRESSED_COOKIE).and_then(|rest| rest.get(size_of::<u32>()..));
    let compressed = compressed.ok_or_else(|| invalid("it does not begin as a compressed V2 histogram"))?;
    let mut plain = Vec::new();
    let most = HEADER_BYTES + counts * COUNT_BYTES_MAX;
    let length = ZlibDecoder::new(compressed).take(most as u64 + 1).read_to_end(&mut plain);
    let length = length.map_err(|error| invalid(&error.to_string()))?;
    if length > most {
        return Err(invalid("it has more counts than its range"));
    }
    let header = plain.first_chunk::<HEADER_BYTES>().filter(|header| header.starts_with(&COOKIE));
    let header = header.ok_or_else(|| invalid("its header is not of V2"))?;
    let counts_length = u32::try_from(length - HEADER_BYTES).unwrap_or(u32::MAX);
    if header[4..8] != counts_length.to_be_bytes() {
        return Err(invalid("its length is not the one that it announces"));
    }
    // The digits, the lowest and the highest value: other ones may need gigabytes.
    let (digits, range) = (u32::from(SIGNIFICANT_DIGITS).to_be_bytes(), [1, MICROSECONDS_MAX].map(u64::to_be_bytes));
    if (&header[12..16], &header[16..32]) != (&digits[..], range.as_flattened()) {
        return Err("hdr_v2 has another range or precision".to_owned());
    }
    // As a number of zeros it is -2^63, whose negation overflows in the decoder.
    if plain[HEADER_BYTES..].windows(COUNT_BYTES_MAX).any(|bytes| bytes == [u8::MAX; COUNT_BYTES_MAX]) {
        return Err(invalid("a count is not possible"));
    }
    Deserializer::new().deserialize(&mut plain.as_slice()).map_err(|error| invalid(&error.to_string()))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use flate2::read::ZlibEncoder;
    use proptest::prelude::*;

    use super::*;

    fn of(nanoseconds: &[u64]) -> Histogram {
        let mut histogram = Histogram::new();
        for &value in nanoseconds {
            histogram.record(value);
        }
        histogram
    }

    #[test]
    fn a_duration_is_rounded_up_to_whole_microseconds() {
        for (nanoseconds, microseconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (999_001, 1000)] {
            assert_eq!(of(&[nanoseconds]).quantile(0.5), Some(microseconds), "{nanoseconds} ns");
        }
    }

    #[test]
    fn the_values_above_a_duration_are_counted_without_those_that_round_to_it() {
        let histogram = of(&[1000, 5000, 9000, 9001]);
        for (nanoseconds, count) in
            [(0, 3), (1000, 3), (4999, 2), (5000, 2), (5001, 2), (8001, 1), (9001, 0), (u64::MAX, 0)]
        {
            assert_eq!(histogram.count_above(nanoseconds), count, "{nanoseconds} ns");
        }
    }

    #[test]
    fn the_mean_and_the_deviation_are_in_microseconds() {
        let histogram = of(&[2000, 4000, 4000, 4000, 5000, 5000, 7000, 9000]);
        assert_eq!((histogram.mean(), histogram.deviation()), (Some(5.0), Some(2.0)));
        assert_eq!((Histogram::new().mean(), Histogram::new().deviation()), (None, None));
        // The summary has a tenth.
        assert_eq!(of(&[1000, 1000, 2000]).summary().mean, Some(1.3));
    }

    #[test]
    fn an_empty_histogram_has_no_data() {
        let summary = Histogram::new().summary();
        assert_eq!(summary, Summary::default());
        assert!(Histogram::from_summary(&summary).unwrap().percentiles(5).is_empty());
    }

    #[test]
    fn the_bucket_constants_are_those_of_the_histogram() {
        let values = Histogram::new().values;
        assert_eq!(u32::from(values.buckets()), Histogram::BUCKETS);
        let half = u64::from(Histogram::SUB_BUCKETS / 2);
        assert_eq!((values.equivalent_range(2 * half - 1), values.equivalent_range(2 * half)), (1, 2));
    }

    #[test]
    fn a_duration_over_an_hour_is_clipped_and_counted() {
        let hour = MICROSECONDS_MAX * NANOSECONDS_A_MICROSECOND;
        let summary = of(&[hour, hour + 1, u64::MAX]).summary();
        assert_eq!((summary.count, summary.clipped), (3, 2));
        let max = summary.max.unwrap();
        assert!((MICROSECONDS_MAX..MICROSECONDS_MAX + MICROSECONDS_MAX / 1000).contains(&max), "{max}");
    }

    #[test]
    fn a_censored_value_is_recorded_with_its_age() {
        let mut histogram = of(&[5000]);
        histogram.record_censored(10_000_000_000);
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.censored), (2, 1));
        assert!((10_000_000..10_010_000).contains(&summary.max.unwrap()), "{summary:?}");
        assert_eq!(Histogram::from_summary(&summary).unwrap().summary(), summary, "it is still known as censored");
        histogram.clear();
        assert_eq!(histogram.summary(), Summary::default());
    }

    #[test]
    fn a_summary_that_contradicts_its_histogram_is_rejected() {
        let good = of(&[5000, 7000]).summary();
        let error = |change: fn(&mut Summary)| {
            let mut summary = good.clone();
            change(&mut summary);
            Histogram::from_summary(&summary).unwrap_err().to_string()
        };
        assert_eq!(error(|summary| summary.count = 3), "count is 3, and 2 in hdr_v2");
        assert_eq!(error(|summary| summary.hdr_v2 = None), "count is 2, and 0 in hdr_v2");
        let message = error(|summary| summary.hdr_v2 = Some("!".to_owned()));
        assert!(message.starts_with("hdr_v2 is not base64: "), "{message}");
        let message = error(|summary| summary.hdr_v2 = Some("AAAA".to_owned()));
        assert!(message.starts_with("hdr_v2 is not a histogram: "), "{message}");
        let message = error(|summary| {
            let mut bytes = Vec::new();
            let other = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 1000, 2).unwrap();
            V2DeflateSerializer::new().serialize(&other, &mut bytes).unwrap();
            summary.hdr_v2 = Some(STANDARD.encode(bytes));
        });
        assert_eq!(message, "hdr_v2 has another range or precision");
    }

    /// Returns the summary of an encoded histogram with this header and these bytes of counts.
    fn forged(length: u32, digits: u32, high: u64, counts: &[u8]) -> Summary {
        let mut plain = [COOKIE, length.to_be_bytes(), [0; 4], digits.to_be_bytes()].concat();
        plain.extend([1_u64.to_be_bytes(), high.to_be_bytes(), 1_f64.to_be_bytes()].concat());
        plain.extend(counts);
        let mut compressed = Vec::new();
        ZlibEncoder::new(&plain[..], flate2::Compression::fast()).read_to_end(&mut compressed).unwrap();
        let encoded = [&COMPRESSED_COOKIE, &u32::MAX.to_be_bytes()[..], &compressed].concat();
        Summary { hdr_v2: Some(STANDARD.encode(encoded)), ..Summary::default() }
    }

    #[test]
    fn a_header_that_announces_more_than_follows_is_rejected() {
        let error = |length, digits, high, counts: &[u8]| {
            Histogram::from_summary(&forged(length, digits, high, counts)).unwrap_err().to_string()
        };
        let digits = SIGNIFICANT_DIGITS.into();
        let expected = "hdr_v2 is not a histogram: its length is not the one that it announces";
        assert_eq!(error(u32::MAX, digits, MICROSECONDS_MAX, &[2]), expected);
        let other = "hdr_v2 has another range or precision";
        assert_eq!(error(1, 5, MICROSECONDS_MAX, &[2]), other);
        assert_eq!(error(1, digits, u64::MAX / 2, &[2]), other);
        // Three times 2^63 - 1: their sum is no longer counted.
        let most = [&[0][..], &[[0xfe].as_slice(), &[u8::MAX; 8]].concat().repeat(3)].concat();
        let length = u32::try_from(most.len()).unwrap();
        let summary = Summary { count: u64::MAX, ..forged(length, digits, MICROSECONDS_MAX, &most) };
        assert_eq!(Histogram::from_summary(&summary).unwrap_err().to_string(), "hdr_v2 has over 2^63 values");
        let expected = "hdr_v2 is not a histogram: a count is not possible";
        assert_eq!(error(9, digits, MICROSECONDS_MAX, &[u8::MAX; 9]), expected);
    }

    #[test]
    fn every_bucket_may_have_a_count_of_nine_bytes_and_no_byte_may_follow() {
        // A count of 1 in nine bytes: 2, as zigzag, and seven groups of 0 bits.
        let count = [&[0x82][..], &[0x80; 7], &[0]].concat();
        let buckets = (Histogram::BUCKETS + 1) * Histogram::SUB_BUCKETS / 2;
        let mut counts = count.repeat(buckets as usize);
        let summary = |counts: &[u8]| {
            let length = u32::try_from(counts.len()).unwrap();
            let summary = forged(length, SIGNIFICANT_DIGITS.into(), MICROSECONDS_MAX, counts);
            Summary { count: buckets.into(), ..summary }
        };
        let histogram = Histogram::from_summary(&summary(&counts)).unwrap();
        assert!(histogram.max() >= Some(MICROSECONDS_MAX), "{:?}", histogram.max());
        counts.push(2);
        let error = Histogram::from_summary(&summary(&counts)).unwrap_err().to_string();
        assert_eq!(error, "hdr_v2 is not a histogram: it has more counts than its range");
    }

    #[test]
    fn the_largest_number_of_values_is_read_and_written() {
        let count = [&[0, 0xfe][..], &[u8::MAX; 8]].concat();
        let largest = forged(10, SIGNIFICANT_DIGITS.into(), MICROSECONDS_MAX, &count);
        let largest = Summary { count: (1 << 63) - 1, ..largest };
        let summary = Histogram::from_summary(&largest).unwrap().summary();
        assert_eq!((summary.count, summary.max), (largest.count, Some(1)));
        assert_eq!(Histogram::from_summary(&summary).unwrap().summary(), summary);
    }

    #[test]
    fn any_bytes_of_counts_are_decoded_or_rejected() {
        for length in 1..40_u32 {
            for byte in [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff] {
                let counts = vec![byte; length as usize];
                let _ = Histogram::from_summary(&forged(length, SIGNIFICANT_DIGITS.into(), MICROSECONDS_MAX, &counts));
            }
        }
    }

    proptest! {
        // Each case walks tens of thousands of buckets, which is slow without optimization.
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn quantiles_are_those_of_the_sorted_values(mut values in prop::collection::vec(1..4_000_000_000_000_u64, 1..200)) {
            let histogram = of(&values);
            values.sort_unstable();
            for (quantile, nth) in [(0.5, values.len().div_ceil(2)), (1.0, values.len())] {
                let exact = values[nth - 1].div_ceil(1000).min(MICROSECONDS_MAX);
                let found = histogram.quantile(quantile).unwrap();
                prop_assert!(found >= exact && found <= exact + exact / 1000 + 1, "{found} for {exact} at {quantile}");
            }
            let steps = histogram.percentiles(5);
            prop_assert!(steps.is_sorted_by(|a, b| a.value_us <= b.value_us && a.count <= b.count));
            let last = steps.last().unwrap();
            prop_assert_eq!((last.value_us, last.quantile, last.count), (histogram.max().unwrap(), 1.0, histogram.count()));
        }

        #[test]
        fn decoded_histograms_add_up_to_one_of_all_values(
            ours in prop::collection::vec(0..5_000_000_000_000_u64, 0..100),
            theirs in prop::collection::vec(0..5_000_000_000_000_u64, 0..100),
        ) {
            let mut sum = Histogram::from_summary(&of(&ours).summary()).unwrap();
            sum.add(&Histogram::from_summary(&of(&theirs).summary()).unwrap());
            prop_assert_eq!(sum.summary(), of(&[ours, theirs].concat()).summary());
        }
    }
}
