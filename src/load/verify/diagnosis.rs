//! What a server did to a stream that is not an echo, from the bytes that came back.

use std::ops::Range;

use super::super::pattern::{Pattern, WORD, Word};
use super::super::report::FindingKind;

/// Without a whole word to decode, the stream is looked for so many bytes further on and back.
pub(super) const SHIFT_MAX: u64 = 64;
/// A repetition without a whole word of the stream is looked for so far back.
const REPEATED_MAX: u64 = 64 << 10;

/// What was done to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corruption {
    pub(crate) kind: FindingKind,
    /// Of the first wrong byte in the stream.
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

/// All that is known of a corruption.
pub(super) struct Diagnosis<'a> {
    pub(super) pattern: &'a Pattern,
    pub(super) connection: u64,
    /// Of the first wrong byte.
    pub(super) offset: u64,
    /// What came from there on; never empty.
    pub(super) evidence: &'a [u8],
    pub(super) sent: u64,
    pub(super) opened: u64,
}

/// Bytes of a stream that came in one piece.
#[derive(Clone, Debug)]
struct Run {
    /// Where in this connection's stream they came.
    place: Range<u64>,
    /// The offset in their own stream of the first.
    source: u64,
    is_foreign: bool,
}

impl Run {
    fn is_in_place(&self) -> bool {
        !self.is_foreign && self.source == self.place.start
    }

    /// How much further on they belong.
    fn ahead(&self) -> u64 {
        self.source.saturating_sub(self.place.start)
    }

    /// How much further back they belong.
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
        // What has moved by one place as a whole is the same but for a byte, which equals the missing one once in 256.
        let unexplained = self.evidence.len() as u64 - runs.iter().map(Run::length).sum::<u64>();
        let ends =
            [Some(self.end()).filter(|_| in_place.is_some() || unexplained >= WORD), in_place.map(|run| run.place.end)];
        if ends.into_iter().flatten().any(|end| self.is_reordered(end)) {
            return self.reordered();
        }
        if let Some(last) = in_place {
            // The stream goes on where it should, so these came in place of others.
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
        self.classify_inserted(first, own().find(|run| run.sources().contains(&self.offset)))
    }

    /// `first` holds earlier bytes, or goes on later than it should; `next` goes on with the stream.
    fn classify_inserted(&self, first: &Run, next: Option<&Run>) -> Corruption {
        let extra_bytes = next.map_or(first.place.end - self.offset, Run::behind);
        let repeated = first.place.end.min(self.offset + extra_bytes).saturating_sub(first.place.start);
        // One inserted byte in 256 equals the one that stands before those it was inserted before.
        let is_repetition = first.place.start == self.offset || repeated >= WORD;
        Corruption {
            extra_bytes,
            ..self.corruption(if is_repetition { FindingKind::Duplicated } else { FindingKind::Extra })
        }
    }

    /// Everything that was sent has come before.
    pub(super) fn classify_surplus(&self) -> Corruption {
        let kind = match self.runs().first() {
            Some(run) if run.is_foreign => FindingKind::Foreign,
            Some(_) => FindingKind::Duplicated,
            None if self.repeats_a_word() => FindingKind::Duplicated,
            None => FindingKind::Extra,
        };
        Corruption { extra_bytes: self.evidence.len() as u64, ..self.corruption(kind) }
    }

    /// Whether the first bytes, as many as a word's, came before at any offset.
    fn repeats_a_word(&self) -> bool {
        let before = self.stream(self.offset.saturating_sub(REPEATED_MAX)..self.offset);
        let first = self.evidence.first_chunk::<{ size_of::<Word>() }>();
        first.is_some_and(|first| before.windows(first.len()).any(|bytes| bytes == first))
    }

    /// Every piece of the evidence that holds a whole word of a stream, at whatever place.
    fn runs(&self) -> Vec<Run> {
        // A word out of place may begin with bytes that happen to be right.
        let begin = self.offset - self.offset.min(WORD - 1);
        let mut bytes = self.stream(begin..self.offset);
        let mut end = bytes.len();
        bytes.extend_from_slice(self.evidence);

        let mut runs = Vec::new();
        let mut at = 0;
        while let Some(word) = bytes[at..].first_chunk() {
            let (connection, index) = self.pattern.locate(u64::from_le_bytes(*word));
            let is_foreign = connection != self.connection;
            if !self.is_plausible(connection, index) {
                at += 1;
                continue;
            }
            let mut source = index * WORD;
            let left = if is_foreign { u64::MAX } else { self.sent - source };
            let length = usize::try_from(left).map_or(bytes.len() - at, |left| left.min(bytes.len() - at));
            let mut start = at;
            while start > end
                && source > 0
                && self.pattern.count_right(connection, source - 1, &bytes[start - 1..start]) > 0
            {
                start -= 1;
                source -= 1;
            }
            // The run before may have gone on too far, over bytes that happen to be equal.
            source += end.saturating_sub(start) as u64;
            start = start.max(end);
            end = at + self.pattern.count_right(connection, index * WORD, &bytes[at..][..length]);
            runs.push(Run { place: begin + start as u64..begin + end as u64, source, is_foreign });
            at = end + 1 - word.len();
        }
        runs
    }

    /// Whether a word can be what it decodes to. Random bytes decode to any of 2^26 connections and 2^38 indices.
    fn is_plausible(&self, connection: u64, index: u64) -> bool {
        if connection == self.connection {
            (index + 1) * WORD <= self.sent
        } else {
            // How much the others have sent is not known here: sixteen times as much, and a mebibyte for the start.
            connection < self.opened && index * WORD < 16 * self.sent + (1 << 20)
        }
    }

    /// There is no whole word: too few bytes, or too many of them wrong. Each corruption is tried, the most telling one first.
    fn guess(&self) -> Corruption {
        let length = self.evidence.len() as u64;
        let expected = self.sent - self.offset;
        // All of the end is there.
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
        // A single byte equals one of so many others too easily.
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
        // One byte alone says something after one that was inserted, but not after more.
        let goes_on = |&extra: &u64| (extra == 1 || length - extra > 1) && self.is_stream(extra, self.offset);
        if let Some(extra) = (1..length).find(goes_on) {
            return self.inserted(extra);
        }
        if length == 1 || 2 * wrong_bytes <= length {
            return flipped;
        }
        Corruption { wrong_bytes, ..self.corruption(FindingKind::Unknown) }
    }

    /// Bytes were inserted, and as many of them came as there is evidence.
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

    /// Whether the evidence after its first `skipped` bytes is the stream from `source` on.
    fn is_stream(&self, skipped: u64, source: u64) -> bool {
        let rest = &self.evidence[index(skipped)..];
        self.pattern.count_right(self.connection, source, rest) == rest.len()
    }

    /// Where the evidence ends in the stream.
    fn end(&self) -> u64 {
        self.sent.min(self.offset + self.evidence.len() as u64)
    }

    /// How many bytes up to `end` differ from those that should be there.
    fn count_wrong(&self, end: u64) -> u64 {
        let right = self.stream(self.offset..end);
        self.evidence.iter().zip(&right).filter(|(left, right)| left != right).count() as u64
    }

    /// Whether the bytes up to `end` are those that should be there, in another order.
    fn is_reordered(&self, end: u64) -> bool {
        let mut counts = [0_i64; 256];
        for (&came, should) in self.evidence.iter().zip(self.stream(self.offset..end)) {
            counts[usize::from(came)] += 1;
            counts[usize::from(should)] -= 1;
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

/// A length within what is in memory.
#[expect(clippy::cast_possible_truncation, reason = "no longer than a slice")]
fn index(length: u64) -> usize {
    length as usize
}
