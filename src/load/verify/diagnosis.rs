//! Finds out from the bytes that came back how a stream was corrupted.

use std::ops::Range;

use crate::load::pattern::{Pattern, WORD, Word};
use crate::load::report::FindingKind;

/// Without a whole word to decode, the bytes are searched up to this far ahead and back in the stream.
pub(super) const SHIFT_MAX: u64 = 64;
/// A repetition without a whole word is searched up to this far back in the stream.
const REPEATED_MAX: u64 = 64 << 10;

/// How a stream was corrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corruption {
    pub(crate) kind: FindingKind,
    /// Offset of the first wrong byte in the stream.
    pub(crate) offset: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) lost_bytes: u64,
    pub(crate) extra_bytes: u64,
}

impl Corruption {
    pub(super) fn new(kind: FindingKind, offset: u64) -> Self {
        Self { kind, offset, wrong_bytes: 0, lost_bytes: 0, extra_bytes: 0 }
    }
}

/// The evidence of a corruption, to be classified.
pub(super) struct Diagnosis<'a> {
    pub(super) pattern: &'a Pattern,
    pub(super) connection: u64,
    /// Offset of the first wrong byte.
    pub(super) offset: u64,
    /// The bytes received from there on; never empty.
    pub(super) evidence: &'a [u8],
    pub(super) sent: u64,
    pub(super) opened: u64,
}

/// Consecutive bytes of a stream, of this connection or another.
#[derive(Clone, Debug)]
struct Run {
    /// Where in the stream of this connection they came.
    place: Range<u64>,
    /// Offset of the first in the stream that they belong to.
    source: u64,
    is_foreign: bool,
}

impl Run {
    fn is_in_place(&self) -> bool {
        !self.is_foreign && self.source == self.place.start
    }

    /// Returns how many bytes further ahead they belong.
    fn ahead(&self) -> u64 {
        self.source.saturating_sub(self.place.start)
    }

    /// Returns how many bytes further back they belong.
    fn behind(&self) -> u64 {
        self.place.start.saturating_sub(self.source)
    }

    fn sources(&self) -> Range<u64> {
        self.source..self.source + self.length()
    }

    fn length(&self) -> u64 {
        self.place.end - self.place.start
    }
}

impl Diagnosis<'_> {
    pub(super) fn classify(&self) -> Corruption {
        let corruption = self.classify_within();
        // Bytes in place of others, and more after them.
        let surplus = (self.evidence.len() as u64).saturating_sub(self.sent - self.offset);
        if (corruption.lost_bytes, corruption.extra_bytes) == (0, 0) {
            return Corruption { extra_bytes: surplus, ..corruption };
        }
        corruption
    }

    /// Classifies the bytes up to the end of what was sent.
    fn classify_within(&self) -> Corruption {
        let runs = self.runs();
        let own = || runs.iter().filter(|run| !run.is_foreign);
        let Some(first) = runs.first() else { return self.guess() };
        if first.is_foreign {
            let next = own().next();
            return match next.map_or(0, Run::behind) {
                0 => {
                    let end = next.map_or(self.end(), |run| run.place.start);
                    Corruption { wrong_bytes: self.count_wrong(end), ..self.corruption(FindingKind::Foreign) }
                }
                extra_bytes => Corruption { extra_bytes, ..self.corruption(FindingKind::Foreign) },
            };
        }
        let in_place = runs.iter().rfind(|run| run.is_in_place());
        // A shift by one has the bytes of a reordering if the new one equals the missing one, which is so once in 256.
        let unexplained = self.evidence.len() as u64 - runs.iter().map(Run::length).sum::<u64>();
        let ends =
            [Some(self.end()).filter(|_| in_place.is_some() || unexplained >= WORD), in_place.map(|run| run.place.end)];
        if ends.into_iter().flatten().any(|end| self.is_reordered(end)) {
            return self.reordered();
        }
        if let Some(last) = in_place {
            // The stream continues in place, so these bytes replaced others.
            let kind = match first {
                run if run.ahead() > 0 => FindingKind::Reordered,
                run if run.behind() > 0 => FindingKind::Duplicated,
                _ => FindingKind::Flipped,
            };
            let is_last = runs.last().is_some_and(Run::is_in_place);
            let end = if is_last { self.end() } else { last.place.end };
            return Corruption { wrong_bytes: self.count_wrong(end), ..self.corruption(kind) };
        }
        if first.ahead() > 0 {
            let missing = self.offset..self.offset + first.ahead();
            if own().any(|run| run.source < missing.end && run.sources().end > missing.start) {
                return self.reordered();
            }
            let wrong_bytes = first.place.start - self.offset;
            return Corruption { wrong_bytes, lost_bytes: first.ahead(), ..self.corruption(FindingKind::Lost) };
        }
        self.classify_inserted(first, own().find(|run| run.behind() > 0 && run.sources().end > self.offset))
    }

    /// Classifies inserted bytes: `first` has earlier bytes, or continues the stream too late; `next` continues it,
    /// perhaps after wrong bytes.
    fn classify_inserted(&self, first: &Run, next: Option<&Run>) -> Corruption {
        let extra_bytes = next.map_or(first.place.end - self.offset, Run::behind);
        let wrong_bytes = next.map_or(0, |run| self.count_wrong(run.source.max(self.offset)));
        let repeated = first.place.end.min(self.offset + extra_bytes).saturating_sub(first.place.start);
        // An inserted byte equals the one before it once in 256.
        let is_repetition = first.place.start == self.offset || repeated >= WORD;
        Corruption {
            wrong_bytes,
            extra_bytes,
            ..self.corruption(if is_repetition { FindingKind::Duplicated } else { FindingKind::Extra })
        }
    }

    /// Classifies bytes that came after everything that was sent.
    pub(super) fn classify_surplus(&self) -> Corruption {
        let kind = match self.runs().first() {
            Some(run) if run.is_foreign => FindingKind::Foreign,
            Some(_) => FindingKind::Duplicated,
            None if self.repeats_a_word() => FindingKind::Duplicated,
            None => FindingKind::Extra,
        };
        Corruption { extra_bytes: self.evidence.len() as u64, ..self.corruption(kind) }
    }

    /// Returns whether the first bytes, as many as a word has, came before, at any offset.
    fn repeats_a_word(&self) -> bool {
        let before = self.stream(self.offset.saturating_sub(REPEATED_MAX)..self.offset);
        let first = self.evidence.first_chunk::<{ size_of::<Word>() }>();
        first.is_some_and(|first| before.windows(first.len()).any(|bytes| bytes == first))
    }

    /// Returns every part of the evidence that has a whole word of a stream, in place or not.
    fn runs(&self) -> Vec<Run> {
        // A word out of place may begin with bytes that are right by chance.
        let begin = self.offset - self.offset.min(WORD - 1);
        let mut bytes = self.stream(begin..self.offset);
        let mut end = bytes.len();
        bytes.extend_from_slice(self.evidence);

        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(word) = bytes[at..].first_chunk() {
            let mut places = self.pattern.locate(u64::from_le_bytes(*word), self.opened, self.bytes_max());
            let Some((connection, index)) = places.find(|&(connection, index)| self.is_plausible(connection, index))
            else {
                at += 1;
                continue;
            };
            let is_foreign = connection != self.connection;
            let mut source = index * WORD;
            let mut start = at;
            while start > end
                && source > 0
                && self.pattern.count_right(connection, source - 1, &bytes[start - 1..start]) > 0
            {
                start -= 1;
                source -= 1;
            }
            // The run before may extend too far, over bytes that are equal by chance.
            source += end.saturating_sub(start) as u64;
            start = start.max(end);
            end = at + self.pattern.count_right(connection, index * WORD, &bytes[at..]);
            runs.push(Run { place: begin + start as u64..begin + end as u64, source, is_foreign });
            at = end + 1 - word.len();
        }
        runs
    }

    /// Returns whether a word can be what it decodes to: random bytes decode to any of 2^26 connections and 2^38 indices.
    fn is_plausible(&self, connection: u64, index: u64) -> bool {
        if connection == self.connection {
            (index + 1) * WORD <= self.sent
        } else {
            connection < self.opened && index * WORD < self.bytes_max()
        }
    }

    /// Returns the bytes that a connection may have sent. How much others have sent is unknown here: assume at most 16 times as much,
    /// plus 1 MiB.
    fn bytes_max(&self) -> u64 {
        self.sent.saturating_mul(16).saturating_add(1 << 20)
    }

    /// Classifies evidence without a whole word: too few bytes, or too many wrong ones. Tries the most certain kind first.
    fn guess(&self) -> Corruption {
        let length = self.evidence.len() as u64;
        let expected = self.sent - self.offset;
        // The end of the stream is complete.
        if length < expected && self.is_stream(0, self.sent - length) {
            return Corruption { lost_bytes: expected - length, ..self.corruption(FindingKind::Lost) };
        }
        if length > expected && self.is_stream(length - expected, self.offset) {
            return self.inserted(length - expected);
        }
        let wrong_bytes = self.count_wrong(self.end());
        let flipped = Corruption { wrong_bytes, ..self.corruption(FindingKind::Flipped) };
        if wrong_bytes == 1 && length > 1 {
            return flipped;
        }
        // A single byte is likely to equal one of many others.
        for shift in 1..=if length == 1 { 1 } else { SHIFT_MAX } {
            if self.offset + shift + length <= self.sent && self.is_stream(0, self.offset + shift) {
                return Corruption { lost_bytes: shift, ..self.corruption(FindingKind::Lost) };
            }
            if shift <= self.offset && self.is_stream(0, self.offset - shift) {
                return self.inserted(shift);
            }
        }
        if length > 2 && self.is_stream(1, self.offset) {
            return self.inserted(1);
        }
        if self.is_reordered(self.end()) {
            return self.reordered();
        }
        // One byte is enough evidence after one inserted byte, but not after more.
        let continues = |&extra: &u64| (extra == 1 || length - extra > 1) && self.is_stream(extra, self.offset);
        if let Some(extra) = (1..length).find(continues) {
            return self.inserted(extra);
        }
        if length == 1 || 2 * wrong_bytes <= length.min(expected) {
            return flipped;
        }
        Corruption { wrong_bytes, ..self.corruption(FindingKind::Unknown) }
    }

    /// Returns the corruption of `count` inserted bytes, of which the evidence may have fewer.
    fn inserted(&self, count: u64) -> Corruption {
        let extra_bytes = count.min(self.evidence.len() as u64);
        let is_repetition = count <= self.offset && {
            let start = self.offset - count;
            self.evidence.starts_with(&self.stream(start..start + extra_bytes))
        };
        Corruption {
            extra_bytes,
            ..self.corruption(if is_repetition { FindingKind::Duplicated } else { FindingKind::Extra })
        }
    }

    fn reordered(&self) -> Corruption {
        Corruption { wrong_bytes: self.count_wrong(self.end()), ..self.corruption(FindingKind::Reordered) }
    }

    /// Returns whether the evidence after its first `skipped` bytes equals the stream from `source` on.
    fn is_stream(&self, skipped: u64, source: u64) -> bool {
        let rest = &self.evidence[index(skipped)..];
        self.pattern.count_right(self.connection, source, rest) == rest.len()
    }

    /// Returns the end of the evidence in the stream.
    fn end(&self) -> u64 {
        self.sent.min(self.offset + self.evidence.len() as u64)
    }

    /// Returns how many bytes up to `end` differ from the expected ones.
    fn count_wrong(&self, end: u64) -> u64 {
        let expected = self.stream(self.offset..end);
        self.evidence.iter().zip(&expected).filter(|(came, expected)| came != expected).count() as u64
    }

    /// Returns whether the bytes up to `end` are the expected ones in another order.
    fn is_reordered(&self, end: u64) -> bool {
        let mut counts = [0_i64; 256];
        for (&came, expected) in self.evidence.iter().zip(self.stream(self.offset..end)) {
            counts[usize::from(came)] += 1;
            counts[usize::from(expected)] -= 1;
        }
        counts.iter().all(|&count| count == 0)
    }

    fn stream(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = vec![0; index(range.end - range.start)];
        self.pattern.fill(self.connection, range.start, &mut bytes);
        bytes
    }

    fn corruption(&self, kind: FindingKind) -> Corruption {
        Corruption::new(kind, self.offset)
    }
}

/// Converts a length of bytes in memory.
#[expect(clippy::cast_possible_truncation, reason = "no longer than a slice")]
fn index(length: u64) -> usize {
    length as usize
}
