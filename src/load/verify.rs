//! The verification of what comes back on one connection, and what a server did to it that is not an echo.

use std::ops::Range;

use super::pattern::{Pattern, WORD, Word};
use super::report::FindingKind;

/// So much evidence is certain, unless more is missing than this.
const EVIDENCE: usize = 4 << 10;
/// No more evidence is kept than this.
const EVIDENCE_MAX: usize = 64 << 10;
/// Without a whole word to decode, the stream is looked for so many bytes further on and back.
const SHIFT_MAX: u64 = 64;
/// A repetition without a whole word of the stream is looked for so far back.
const REPEATED_MAX: u64 = 64 << 10;

/// Compares what comes back on a connection with what it sent.
///
/// One stands in every connection held: what a mismatch needs is allocated when there is one.
#[derive(Debug)]
pub(crate) struct Verifier {
    connection: u64,
    /// Bytes that came back right.
    verified: u64,
    suspicion: Option<Box<Suspicion>>,
}

/// What came in from the first wrong byte on.
#[derive(Debug, Default)]
struct Suspicion {
    evidence: Vec<u8>,
    /// How much of it is enough to decide.
    enough: usize,
}

/// What was read is ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Checked {
    /// ... what was sent.
    Right,
    /// ... wrong, and what comes next will say in which way.
    Undecided,
    Wrong(Fault),
}

/// Why no more will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer ended its direction: what is missing now is lost.
    Fin,
    /// A timeout, a reset or an interruption: it may have been on its way.
    Cut,
}

/// What was done to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: FindingKind,
    /// Of the first wrong byte in the stream.
    pub(crate) offset: u64,
    pub(crate) wrong_bytes: u64,
    pub(crate) lost_bytes: u64,
    pub(crate) extra_bytes: u64,
}

impl Verifier {
    pub(crate) fn new(connection: u64) -> Self {
        Self { connection, verified: 0, suspicion: None }
    }

    pub(crate) fn connection(&self) -> u64 {
        self.connection
    }

    /// Whether wrong bytes came, and it is not decided yet what they are.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.suspicion.is_some()
    }

    /// How many bytes came back right; at a fault, its offset.
    pub(crate) fn verified(&self) -> u64 {
        self.verified
    }

    /// Takes what was read next, when `sent` bytes of the stream have been sent, and `opened` connections were opened in this run.
    pub(crate) fn receive(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.suspicion.is_some() {
            return self.suspect(pattern, data, sent, opened);
        }
        // What was not sent yet cannot come back, even if it is what the stream goes on with.
        let expected = usize::try_from(sent - self.verified).map_or(data.len(), |left| left.min(data.len()));
        let right = pattern.count_right(self.connection, self.verified, &data[..expected]);
        self.verified += right as u64;
        if right == data.len() {
            return Checked::Right;
        }
        self.suspect(pattern, &data[right..], sent, opened)
    }

    /// No more will come: what there is must do.
    pub(crate) fn conclude(&mut self, pattern: &Pattern, sent: u64, opened: u64, end: End) -> Option<Fault> {
        if let Some(suspicion) = self.suspicion.take() {
            return Some(self.case(pattern, &suspicion.evidence, sent, opened).classify());
        }
        let lost_bytes = sent - self.verified;
        (end == End::Fin && lost_bytes > 0)
            .then(|| Fault { lost_bytes, ..Fault::new(FindingKind::Truncated, self.verified) })
    }

    #[cold]
    fn suspect(&mut self, pattern: &Pattern, data: &[u8], sent: u64, opened: u64) -> Checked {
        if self.verified >= sent {
            return Checked::Wrong(self.case(pattern, data, sent, opened).classify_surplus());
        }
        let mut suspicion =
            self.suspicion.take().unwrap_or_else(|| Box::new(Suspicion { evidence: Vec::new(), enough: EVIDENCE }));
        let evidence = &mut suspicion.evidence;
        evidence.extend_from_slice(&data[..data.len().min(EVIDENCE_MAX - evidence.len())]);
        let accounted_for = self.verified + evidence.len() as u64 >= sent;
        if accounted_for || evidence.len() >= suspicion.enough {
            let fault = self.case(pattern, evidence, sent, opened).classify();
            let follows = usize::try_from(2 * fault.lost_bytes).unwrap_or(EVIDENCE_MAX).min(EVIDENCE_MAX);
            if accounted_for || evidence.len() >= follows {
                return Checked::Wrong(fault);
            }
            // What seems lost may follow the bytes that came in its place, which are often as many.
            suspicion.enough = follows;
        }
        self.suspicion = Some(suspicion);
        Checked::Undecided
    }

    fn case<'a>(&self, pattern: &'a Pattern, evidence: &'a [u8], sent: u64, opened: u64) -> Case<'a> {
        Case { pattern, connection: self.connection, offset: self.verified, evidence, sent, opened }
    }
}

impl Fault {
    fn new(kind: FindingKind, offset: u64) -> Self {
        Self { kind, offset, wrong_bytes: 0, lost_bytes: 0, extra_bytes: 0 }
    }
}

/// All that is known of a fault.
struct Case<'a> {
    pattern: &'a Pattern,
    connection: u64,
    /// Of the first wrong byte.
    offset: u64,
    /// What came from there on; never empty.
    evidence: &'a [u8],
    sent: u64,
    opened: u64,
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

impl Case<'_> {
    fn classify(&self) -> Fault {
        let runs = self.runs();
        let own = || runs.iter().filter(|run| !run.is_foreign);
        let Some(first) = runs.first() else { return self.guess() };
        if first.is_foreign {
            let next = own().next();
            return match next.map_or(0, Run::behind) {
                0 => {
                    let end = next.map_or(self.end(), |run| run.place.start);
                    Fault { wrong_bytes: self.count_wrong(end), ..self.fault(FindingKind::Foreign) }
                }
                extra_bytes => Fault { extra_bytes, ..self.fault(FindingKind::Foreign) },
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
            return Fault { wrong_bytes: self.count_wrong(end), ..self.fault(kind) };
        }
        if first.ahead() > 0 {
            let missing = self.offset..self.offset + first.ahead();
            if own().any(|run| run.source < missing.end && run.sources().end > missing.start) {
                return self.reordered();
            }
            let wrong_bytes = first.place.start - self.offset;
            return Fault { wrong_bytes, lost_bytes: first.ahead(), ..self.fault(FindingKind::Lost) };
        }
        self.classify_inserted(first, own().find(|run| run.sources().contains(&self.offset)))
    }

    /// `first` holds earlier bytes, or goes on later than it should; `next` goes on with the stream.
    fn classify_inserted(&self, first: &Run, next: Option<&Run>) -> Fault {
        let extra_bytes = next.map_or(first.place.end - self.offset, Run::behind);
        let repeated = first.place.end.min(self.offset + extra_bytes).saturating_sub(first.place.start);
        // One inserted byte in 256 equals the one that stands before those it was inserted before.
        let is_repetition = first.place.start == self.offset || repeated >= WORD;
        Fault { extra_bytes, ..self.fault(if is_repetition { FindingKind::Duplicated } else { FindingKind::Extra }) }
    }

    /// Everything that was sent has come before.
    fn classify_surplus(&self) -> Fault {
        let kind = match self.runs().first() {
            Some(run) if run.is_foreign => FindingKind::Foreign,
            Some(_) => FindingKind::Duplicated,
            None if self.repeats_a_word() => FindingKind::Duplicated,
            None => FindingKind::Extra,
        };
        Fault { extra_bytes: self.evidence.len() as u64, ..self.fault(kind) }
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

    /// There is no whole word: too few bytes, or too many of them wrong. Each fault is tried, the most telling one first.
    fn guess(&self) -> Fault {
        let length = self.evidence.len() as u64;
        let expected = self.sent - self.offset;
        // All of the end is there.
        if length < expected && self.is_stream(0, self.sent - length) {
            return Fault { lost_bytes: expected - length, ..self.fault(FindingKind::Lost) };
        }
        if length > expected && self.is_stream(length - expected, self.offset) {
            return self.inserted(length - expected);
        }
        let wrong_bytes = self.count_wrong(self.end());
        let flipped = Fault { wrong_bytes, ..self.fault(FindingKind::Flipped) };
        if wrong_bytes == 1 && length > 1 {
            return flipped;
        }
        // A single byte equals one of so many others too easily.
        for shift in 1..=if length == 1 { 1 } else { SHIFT_MAX } {
            if self.offset + shift + length <= self.sent && self.is_stream(0, self.offset + shift) {
                return Fault { lost_bytes: shift, ..self.fault(FindingKind::Lost) };
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
        Fault { wrong_bytes, ..self.fault(FindingKind::Unknown) }
    }

    /// Bytes were inserted, and as many of them came as there is evidence.
    fn inserted(&self, count: u64) -> Fault {
        let extra_bytes = count.min(self.evidence.len() as u64);
        let is_repetition = count <= self.offset && {
            let start = self.offset - count;
            self.evidence.starts_with(&self.stream(start..start + extra_bytes))
        };
        Fault { extra_bytes, ..self.fault(if is_repetition { FindingKind::Duplicated } else { FindingKind::Extra }) }
    }

    fn reordered(&self) -> Fault {
        Fault { wrong_bytes: self.count_wrong(self.end()), ..self.fault(FindingKind::Reordered) }
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

    fn fault(&self, kind: FindingKind) -> Fault {
        Fault::new(kind, self.offset)
    }
}

/// A length within what is in memory.
#[expect(clippy::cast_possible_truncation, reason = "no longer than a slice")]
fn index(length: u64) -> usize {
    length as usize
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    const OPENED: u64 = 1000;

    /// A connection, and the messages that it sent.
    #[derive(Clone, Debug)]
    struct Sent {
        pattern: Rc<Pattern>,
        connection: u64,
        size: usize,
        bytes: Vec<u8>,
    }

    /// What comes after the message that is wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Follows {
        /// The rest of the stream, and then this.
        Rest(End),
        /// Nothing, and there was no more to come.
        Silence,
        /// Nothing, though more was sent.
        Stall,
    }

    /// What the server sends back, and how it is read.
    #[derive(Debug)]
    struct Echo {
        sent: Sent,
        came: Vec<u8>,
        reads: Vec<usize>,
        end: End,
    }

    fn stream(pattern: &Pattern, connection: u64, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        pattern.fill(connection, offset, &mut bytes);
        bytes
    }

    impl Echo {
        /// What `change` makes of the stream, when the last message that it touches is that of byte `last`.
        fn new(sent: &Sent, last: usize, follows: Follows, reads: &[usize], change: impl FnOnce(&mut Vec<u8>)) -> Self {
            let mut sent = sent.clone();
            let message_end = (last / sent.size + 1) * sent.size;
            let mut came = sent.bytes.clone();
            let mut end = End::Cut;
            match follows {
                Follows::Rest(then) => end = then,
                Follows::Silence => {
                    sent.bytes.truncate(message_end);
                    came.truncate(message_end);
                }
                Follows::Stall => came.truncate(message_end),
            }
            change(&mut came);
            Self { sent, came, reads: reads.to_vec(), end }
        }

        /// Where the first byte is that differs, or that is missing or too much.
        fn first_wrong(&self) -> usize {
            self.sent.bytes.iter().zip(&self.came).take_while(|(left, right)| left == right).count()
        }

        /// How many bytes there are to decide by, at least: byte by byte, no more come than were sent.
        fn visible(&self) -> usize {
            self.came.len().min(self.sent.bytes.len()) - self.first_wrong()
        }

        /// How many bytes are in the read that goes beyond what was sent, from there on.
        fn surplus_read(&self) -> usize {
            let mut end = 0_usize;
            for &read in self.reads.iter().cycle() {
                end = self.came.len().min(end.saturating_add(read));
                if end > self.sent.bytes.len() || end == self.came.len() {
                    break;
                }
            }
            end - self.sent.bytes.len()
        }

        /// Reads it all, or until the fault, and checks what holds for each: up to its first wrong byte all is right, none behind
        /// it is, and that is its offset. Where nothing came that is wrong, this is all there is to say, and the answer is `None`.
        fn fault(&self) -> Option<Fault> {
            let (sent, first_wrong) = (self.sent.bytes.len() as u64, self.first_wrong());
            let pattern = &*self.sent.pattern;
            let mut verifier = Verifier::new(self.sent.connection);
            let mut lengths = self.reads.iter().cycle();
            let mut read = 0;
            let mut fault = None;
            while read < self.came.len() && fault.is_none() {
                let data = &self.came[read..];
                let data = &data[..data.len().min(*lengths.next().unwrap())];
                let checked = verifier.receive(pattern, data, sent, OPENED);
                read += data.len();
                assert_eq!(verifier.verified(), read.min(first_wrong) as u64);
                assert_eq!(checked == Checked::Right, read <= first_wrong);
                if let Checked::Wrong(wrong) = checked {
                    fault = Some(wrong);
                }
            }
            let fault = fault.or_else(|| verifier.conclude(pattern, sent, OPENED, self.end));
            if first_wrong == self.came.len() {
                let lost_bytes = sent - first_wrong as u64;
                let truncated = Fault { lost_bytes, ..Fault::new(FindingKind::Truncated, first_wrong as u64) };
                assert_eq!(fault, Some(truncated).filter(|_| self.end == End::Fin && lost_bytes > 0));
                return None;
            }
            assert_eq!(fault.unwrap().offset, first_wrong as u64);
            fault
        }

        /// The fault; checks its kind, where so many bytes tell it.
        fn fault_of_kind(&self, kind: FindingKind, telling: usize) -> Option<Fault> {
            let fault = self.fault().filter(|_| self.visible() >= telling)?;
            assert_eq!(fault.kind, kind, "{fault:?}");
            Some(fault)
        }
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let sizes = prop_oneof![(1..24_usize, 1..40_usize), (1..=2000_usize, 1..8_usize), (Just(64), 1..80_usize)];
        (any::<u64>(), 0..OPENED, sizes).prop_map(|(seed, connection, (size, messages))| {
            let pattern = Pattern::new(seed);
            Sent {
                bytes: stream(&pattern, connection, 0, size * messages),
                pattern: Rc::new(pattern),
                connection,
                size,
            }
        })
    }

    /// Lengths of reads, over and over: byte by byte, of any length, or all at once.
    fn reads() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![
            Just(vec![1]),
            prop::collection::vec(1..20_usize, 1..20),
            prop::collection::vec(1..5000_usize, 1..20),
            Just(vec![usize::MAX]),
        ]
    }

    fn follows() -> impl Strategy<Value = Follows> {
        prop_oneof![
            Just(Follows::Rest(End::Fin)),
            Just(Follows::Rest(End::Cut)),
            Just(Follows::Silence),
            Just(Follows::Stall),
        ]
    }

    fn place() -> impl Strategy<Value = prop::sample::Index> {
        any::<prop::sample::Index>()
    }

    /// So many bytes hold a whole word, whatever its alignment.
    const HOLDS_A_WORD: usize = 15;
    /// Less than a word, and yet too much to be equal by chance.
    const TELLING: usize = 6;

    proptest! {
        #[test]
        fn a_right_stream_is_right_in_any_pieces(sent in sent(), reads in reads(), fin: bool) {
            let end = if fin { End::Fin } else { End::Cut };
            let echo = Echo::new(&sent, 0, Follows::Rest(end), &reads, |_| {});
            prop_assert_eq!(echo.fault(), None);
        }

        #[test]
        fn a_flipped_byte_is_flipped(
            sent in sent(), at in place(), difference in 1..=u8::MAX, follows in follows(), reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let echo = Echo::new(&sent, at, follows, &reads, |came| came[at] ^= difference);
            // The last byte alone may as well be one of its neighbours again, if it equals it. What was sent and did not come may
            // as well be lost, if it ends with the same bytes.
            let looks_repeated = at > 0 && echo.came[at] == sent.bytes[at - 1];
            let telling = if follows == Follows::Stall { TELLING } else { 1 + usize::from(looks_repeated) };
            if let Some(fault) = echo.fault_of_kind(FindingKind::Flipped, telling) {
                prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes, fault.extra_bytes), (1, 0, 0));
            }
        }

        #[test]
        fn dropped_bytes_are_lost(
            sent in sent(), at in place(), count in 1..=40_usize, follows in follows(), reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let count = count.min(sent.bytes.len() - at);
            let last = at + count - 1;
            let echo = Echo::new(&sent, last, follows, &reads, |came| drop(came.drain(at..at + count)));
            // Unless more was sent, as much is missing as was dropped.
            let telling = if follows == Follows::Stall { TELLING } else { 1 };
            if let Some(fault) = echo.fault_of_kind(FindingKind::Lost, telling) {
                prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes, fault.extra_bytes), (0, count as u64, 0));
            }
        }

        #[test]
        fn repeated_bytes_are_duplicated(
            sent in sent(), at in place(), count in 1..=40_usize, message: bool, follows in follows(), reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let range = if message {
                let start = at / sent.size * sent.size;
                start..start + sent.size
            } else {
                at..sent.bytes.len().min(at + count)
            };
            let count = range.len() as u64;
            let echo = Echo::new(&sent, range.end - 1, follows, &reads, |came| {
                let again = came[range.clone()].to_vec();
                came.splice(range.end..range.end, again);
            });
            if echo.first_wrong() == echo.sent.bytes.len() {
                let kind = if echo.surplus_read() >= 8 { FindingKind::Duplicated } else { FindingKind::Extra };
                let fault = echo.fault_of_kind(kind, 0).unwrap();
                prop_assert_eq!(fault.extra_bytes, echo.surplus_read() as u64);
            } else {
                let telling = if count > SHIFT_MAX { HOLDS_A_WORD } else { TELLING };
                if let Some(fault) = echo.fault_of_kind(FindingKind::Duplicated, telling) {
                    // As much of it as came, when all that was sent is accounted for by count.
                    let seen = count.min(echo.visible() as u64);
                    prop_assert!((seen..=count).contains(&fault.extra_bytes), "{:?}", fault);
                    prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes), (0, 0));
                }
            }
        }

        #[test]
        fn swapped_words_are_reordered(
            sent in sent(), one in place(), other in place(), follows in follows(), reads in reads(),
        ) {
            let words = sent.bytes.len() / 8;
            prop_assume!(words >= 2);
            let (one, other) = (one.index(words), other.index(words));
            let (first, second) = (one.min(other), one.max(other));
            prop_assume!(first < second);
            let echo = Echo::new(&sent, second * 8 + 7, follows, &reads, |came| {
                let (left, right) = came.split_at_mut(second * 8);
                left[first * 8..][..8].swap_with_slice(&mut right[..8]);
            });
            prop_assert!(echo.fault_of_kind(FindingKind::Reordered, 0).is_some());
        }

        #[test]
        fn swapped_messages_are_reordered(
            sent in sent(), one in place(), other in place(), follows in follows(), reads in reads(),
        ) {
            let messages = sent.bytes.len() / sent.size;
            let (one, other) = (one.index(messages), other.index(messages));
            let (first, second) = (one.min(other) * sent.size, one.max(other) * sent.size);
            prop_assume!(first < second);
            let echo = Echo::new(&sent, second, follows, &reads, |came| {
                let (left, right) = came.split_at_mut(second);
                left[first..][..sent.size].swap_with_slice(&mut right[..sent.size]);
            });
            echo.fault_of_kind(FindingKind::Reordered, TELLING);
        }

        #[test]
        fn bytes_of_another_connection_between_are_foreign(
            sent in sent(),
            at in place(),
            other in 1..OPENED,
            offset in 0..1_u64 << 20,
            count in HOLDS_A_WORD..100,
            follows in follows(),
            reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let foreign = stream(&sent.pattern, (sent.connection + other) % OPENED, offset, count);
            let echo = Echo::new(&sent, at, follows, &reads, |came| drop(came.splice(at..at, foreign)));
            if let Some(fault) = echo.fault_of_kind(FindingKind::Foreign, HOLDS_A_WORD)
                && echo.visible() >= count + HOLDS_A_WORD
            {
                prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes, fault.extra_bytes), (0, 0, count as u64));
            }
        }

        #[test]
        fn a_message_of_another_connection_is_foreign(
            sent in sent(), at in place(), other in 1..OPENED, follows in follows(), reads in reads(),
        ) {
            let start = at.index(sent.bytes.len()) / sent.size * sent.size;
            prop_assume!(sent.size > HOLDS_A_WORD);
            let foreign = stream(&sent.pattern, (sent.connection + other) % OPENED, start as u64, sent.size);
            let differ = foreign.iter().zip(&sent.bytes[start..]).filter(|(left, right)| left != right).count();
            let echo = Echo::new(&sent, start, follows, &reads, |came| {
                came[start..start + sent.size].copy_from_slice(&foreign);
            });
            let fault = echo.fault_of_kind(FindingKind::Foreign, HOLDS_A_WORD).unwrap();
            prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes, fault.extra_bytes), (differ as u64, 0, 0));
        }

        #[test]
        fn a_byte_too_many_is_extra(sent in sent(), byte: u8, follows in follows(), reads in reads()) {
            prop_assume!(follows != Follows::Stall);
            let echo = Echo::new(&sent, 0, follows, &reads, |came| came.push(byte));
            let fault = echo.fault_of_kind(FindingKind::Extra, 0).unwrap();
            prop_assert_eq!((fault.wrong_bytes, fault.lost_bytes, fault.extra_bytes), (0, 0, 1));
        }

        #[test]
        fn what_nobody_sent_is_extra(
            sent in sent(),
            at in place(),
            bytes in prop::collection::vec(any::<u8>(), 1..40),
            follows in follows(),
            reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let count = bytes.len();
            let echo = Echo::new(&sent, at, follows, &reads, |came| drop(came.splice(at..at, bytes)));
            // By chance the first bytes are those that should be there: then the last may be one of the stream again.
            if echo.first_wrong() == at && (at == 0 || echo.came[at] != sent.bytes[at - 1]) {
                if let Some(fault) = echo.fault_of_kind(FindingKind::Extra, count + HOLDS_A_WORD) {
                    prop_assert_eq!((fault.lost_bytes, fault.extra_bytes), (0, count as u64));
                }
            } else {
                echo.fault();
            }
        }

        #[test]
        fn an_early_end_truncates_and_silence_does_not(sent in sent(), at in place(), fin: bool, reads in reads()) {
            let at = at.index(sent.bytes.len());
            let end = if fin { End::Fin } else { End::Cut };
            let echo = Echo::new(&sent, 0, Follows::Rest(end), &reads, |came| came.truncate(at));
            prop_assert_eq!(echo.fault(), None);
        }

        #[test]
        fn garbage_has_its_offset(
            sent in sent(),
            at in place(),
            bytes in prop::collection::vec(any::<u8>(), 1..3000),
            follows in follows(),
            reads in reads(),
        ) {
            let at = at.index(sent.bytes.len());
            let echo = Echo::new(&sent, at, follows, &reads, |came| {
                let end = came.len().min(at + bytes.len());
                came.splice(at..end, bytes);
            });
            echo.fault();
        }

        #[test]
        fn any_change_has_its_offset(
            sent in sent(),
            pieces in prop::collection::vec((place(), 0..300_usize), 0..20),
            follows in follows(),
            reads in reads(),
        ) {
            let echo = Echo::new(&sent, 0, follows, &reads, |came| {
                *came = pieces.iter().flat_map(|(at, count)| came[at.index(came.len())..].iter().take(*count)).copied().collect();
            });
            echo.fault();
        }
    }

    /// A connection that sent so much.
    fn one(length: usize) -> Sent {
        let pattern = Pattern::new(1);
        Sent { bytes: stream(&pattern, 7, 0, length), pattern: Rc::new(pattern), connection: 7, size: length }
    }

    fn kind_of(sent: &Sent, came: Vec<u8>, reads: &[usize]) -> FindingKind {
        let echo = Echo { sent: sent.clone(), came, reads: reads.to_vec(), end: End::Cut };
        echo.fault().unwrap().kind
    }

    #[test]
    fn a_connection_held_pays_for_three_words() {
        assert_eq!(size_of::<Verifier>(), 24);
    }

    #[test]
    fn what_comes_late_is_waited_for() {
        let sent = one(200_000);
        let mut swapped = sent.bytes.clone();
        swapped[1000..41_000].rotate_left(20_000);
        assert_eq!(kind_of(&sent, swapped, &[1000]), FindingKind::Reordered);
        let mut lost = sent.bytes.clone();
        lost.drain(1000..21_000);
        assert_eq!(kind_of(&sent, lost, &[1000]), FindingKind::Lost);
    }

    #[test]
    fn a_fault_is_decided_within_bounds() {
        let pattern = Pattern::new(1);
        let mut verifier = Verifier::new(0);
        let garbage = stream(&Pattern::new(2), 0, 0, EVIDENCE);
        let checked = verifier.receive(&pattern, &garbage, 1 << 30, OPENED);
        assert!(
            matches!(checked, Checked::Wrong(Fault { kind: FindingKind::Unknown, wrong_bytes: 4000.., .. })),
            "{checked:?}"
        );

        let mut verifier = Verifier::new(0);
        let far = stream(&pattern, 0, 1 << 29, EVIDENCE_MAX);
        assert_eq!(verifier.receive(&pattern, &far[..EVIDENCE_MAX - 1], 1 << 30, OPENED), Checked::Undecided);
        let lost = Fault { lost_bytes: 1 << 29, ..Fault::new(FindingKind::Lost, 0) };
        assert_eq!(verifier.receive(&pattern, &far[EVIDENCE_MAX - 1..], 1 << 30, OPENED), Checked::Wrong(lost));
    }

    #[test]
    fn a_fault_is_decided_when_all_that_was_sent_is_accounted_for() {
        let sent = one(64);
        let mut verifier = Verifier::new(sent.connection);
        let mut came = sent.bytes.clone();
        came[20] ^= 1;
        assert_eq!(verifier.receive(&sent.pattern, &came[..20], 64, OPENED), Checked::Right);
        assert_eq!(verifier.receive(&sent.pattern, &came[20..63], 64, OPENED), Checked::Undecided);
        let flipped = Fault { wrong_bytes: 1, ..Fault::new(FindingKind::Flipped, 20) };
        assert_eq!(verifier.receive(&sent.pattern, &came[63..], 64, OPENED), Checked::Wrong(flipped));
    }

    #[test]
    fn an_answer_again_in_place_of_the_next_is_duplicated() {
        let sent = one(128);
        let mut verifier = Verifier::new(sent.connection);
        assert_eq!(verifier.receive(&sent.pattern, &sent.bytes[..64], 64, OPENED), Checked::Right);
        let duplicated = Fault { extra_bytes: 64, ..Fault::new(FindingKind::Duplicated, 64) };
        assert_eq!(verifier.receive(&sent.pattern, &sent.bytes[..64], 128, OPENED), Checked::Wrong(duplicated));
    }

    #[test]
    fn a_foreign_word_may_begin_with_a_right_byte() {
        let (sent, mut came, foreign) = (0..10_000)
            .find_map(|seed| {
                let pattern = Pattern::new(seed);
                let bytes = stream(&pattern, 7, 0, 64);
                let foreign = stream(&pattern, 8, 8, 8);
                let sent = Sent { pattern: Rc::new(pattern), connection: 7, size: 64, bytes };
                (foreign[0] == sent.bytes[8]).then(|| (sent.clone(), sent.bytes, foreign))
            })
            .unwrap();
        came[8..16].copy_from_slice(&foreign);
        assert_eq!(kind_of(&sent, came, &[64]), FindingKind::Foreign);
    }

    #[test]
    fn one_byte_that_equals_the_one_that_has_not_come_is_no_other_order() {
        let sent = one(64);
        let mut came = sent.bytes.clone();
        came.insert(20, sent.bytes[63]);
        // Byte by byte, all that was sent is accounted for before the last one comes.
        assert_eq!(kind_of(&sent, came, &[1]), FindingKind::Extra);
    }

    #[test]
    fn what_is_more_than_was_sent_is_told_apart() {
        let sent = one(100);
        let and = |more: &[u8]| [&sent.bytes[..], more].concat();
        // The stream goes on like this, but has not been sent.
        let next = stream(&sent.pattern, sent.connection, 100, 64);
        assert_eq!(kind_of(&sent, and(&next), &[200]), FindingKind::Extra);
        assert_eq!(kind_of(&sent, and(&sent.bytes[..64]), &[200]), FindingKind::Duplicated);
        assert_eq!(kind_of(&sent, and(&sent.bytes[3..11]), &[200]), FindingKind::Duplicated);
        assert_eq!(kind_of(&sent, and(&sent.bytes[3..10]), &[200]), FindingKind::Extra);
        let foreign = stream(&sent.pattern, sent.connection + 1, 64, 64);
        assert_eq!(kind_of(&sent, and(&foreign), &[200]), FindingKind::Foreign);
    }

    #[test]
    fn a_word_of_a_connection_never_opened_is_not_foreign() {
        let sent = one(128);
        let mut came = sent.bytes.clone();
        came[32..64].copy_from_slice(&stream(&sent.pattern, OPENED, 32, 32));
        assert_eq!(kind_of(&sent, came.clone(), &[200]), FindingKind::Flipped);
        came[32..64].copy_from_slice(&stream(&sent.pattern, OPENED - 1, 32, 32));
        assert_eq!(kind_of(&sent, came, &[200]), FindingKind::Foreign);
    }
}
