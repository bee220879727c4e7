#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::rc::Rc;

use proptest::prelude::*;

use super::diagnosis::SHIFT_MAX;
use super::*;

const OPENED: u64 = 1000;

/// A connection and the messages that it sent.
#[derive(Clone, Debug)]
struct Sent {
    pattern: Rc<Pattern>,
    connection: u64,
    size: usize,
    bytes: Vec<u8>,
}

/// What follows the corrupted message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    /// The rest of the stream, then this end.
    Rest(End),
    /// Nothing: no more was sent.
    Silence,
    /// Nothing, although more was sent.
    Stall,
}

/// The bytes that the server sends back, and how they are read.
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
    /// Applies `change` to the stream; byte `last` is in the last message that it touches.
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

    /// Returns the offset of the first byte that differs, is missing or is extra.
    fn first_wrong(&self) -> usize {
        self.sent.bytes.iter().zip(&self.came).take_while(|(left, right)| left == right).count()
    }

    /// Returns the minimum number of bytes to decide by: if read byte by byte, no more come than were sent.
    fn visible(&self) -> usize {
        self.came.len().min(self.sent.bytes.len()) - self.first_wrong()
    }

    /// Returns how many bytes of the read that exceeds what was sent are beyond it.
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

    /// Reads up to the corruption, and asserts that every byte before the first wrong one is verified, none after it, and that the
    /// corruption has its offset. Returns `None` if no byte is wrong: the stream is intact or truncated.
    fn corruption(&self) -> Option<Corruption> {
        let (sent, first_wrong) = (self.sent.bytes.len() as u64, self.first_wrong());
        let pattern = &*self.sent.pattern;
        let mut verifier = Verifier::new(self.sent.connection);
        let mut lengths = self.reads.iter().cycle();
        let mut read = 0;
        let mut corruption = None;
        while read < self.came.len() && corruption.is_none() {
            let data = &self.came[read..];
            let data = &data[..data.len().min(*lengths.next().unwrap())];
            let checked = verifier.receive(pattern, data, sent, OPENED);
            read += data.len();
            assert_eq!(verifier.verified(), read.min(first_wrong) as u64);
            assert_eq!(checked == Checked::Right, read <= first_wrong);
            if let Checked::Wrong(wrong) = checked {
                corruption = Some(wrong);
            }
        }
        let corruption = corruption.or_else(|| verifier.conclude(pattern, sent, OPENED, self.end));
        if first_wrong == self.came.len() {
            let lost_bytes = sent - first_wrong as u64;
            let truncated = Corruption { lost_bytes, ..Corruption::new(FindingKind::Truncated, first_wrong as u64) };
            assert_eq!(corruption, Some(truncated).filter(|_| self.end == End::Fin && lost_bytes > 0));
            return None;
        }
        assert_eq!(corruption.unwrap().offset, first_wrong as u64);
        corruption
    }

    /// Returns the corruption, which must be of `kind`. Rejects the case if fewer than `telling` bytes are left to decide by.
    fn corruption_of_kind(&self, kind: FindingKind, telling: usize) -> Result<Corruption, TestCaseError> {
        let corruption = self.corruption();
        if self.visible() < telling {
            return Err(TestCaseError::reject("too few bytes to decide by"));
        }
        let corruption = corruption.ok_or_else(|| TestCaseError::fail("no corruption"))?;
        prop_assert_eq!(corruption.kind, kind, "{:?}", corruption);
        Ok(corruption)
    }
}

fn sent() -> impl Strategy<Value = Sent> {
    let sizes = prop_oneof![(1..24_usize, 1..40_usize), (1..=2000_usize, 1..8_usize), (Just(64), 1..80_usize)];
    (any::<u64>(), 0..OPENED, sizes).prop_map(|(seed, connection, (size, messages))| {
        let pattern = Pattern::new(seed);
        Sent { bytes: stream(&pattern, connection, 0, size * messages), pattern: Rc::new(pattern), connection, size }
    })
}

/// Lengths of reads, repeated: single bytes, any length, or the whole stream.
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

/// Bytes that have a whole word at any alignment.
const HOLDS_A_WORD: usize = 15;
/// Bytes that are too many to be equal by chance, though less than a word.
const TELLING: usize = 6;

proptest! {
    #[test]
    fn an_intact_stream_is_right_in_any_pieces(sent in sent(), reads in reads(), fin: bool) {
        let end = if fin { End::Fin } else { End::Cut };
        let echo = Echo::new(&sent, 0, Follows::Rest(end), &reads, |_| {});
        prop_assert_eq!(echo.corruption(), None);
    }

    #[test]
    fn a_flipped_byte_is_flipped(
        sent in sent(), at in place(), difference in 1..=u8::MAX, follows in follows(), reads in reads(),
    ) {
        let at = at.index(sent.bytes.len());
        let echo = Echo::new(&sent, at, follows, &reads, |came| came[at] ^= difference);
        // A last byte that equals its neighbor may be a repetition. Bytes that did not come may be lost, if they end with the
        // same bytes.
        let looks_repeated = at > 0 && echo.came[at] == sent.bytes[at - 1];
        let telling = if follows == Follows::Stall { TELLING } else { 1 + usize::from(looks_repeated) };
        let corruption = echo.corruption_of_kind(FindingKind::Flipped, telling)?;
        prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes, corruption.extra_bytes), (1, 0, 0));
    }

    #[test]
    fn dropped_bytes_are_lost(
        sent in sent(), at in place(), count in 1..=40_usize, follows in follows(), reads in reads(),
    ) {
        let at = at.index(sent.bytes.len());
        let count = count.min(sent.bytes.len() - at);
        let last = at + count - 1;
        let echo = Echo::new(&sent, last, follows, &reads, |came| drop(came.drain(at..at + count)));
        // Unless more was sent, the number of missing bytes is known.
        let telling = if follows == Follows::Stall { TELLING } else { 1 };
        let corruption = echo.corruption_of_kind(FindingKind::Lost, telling)?;
        prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes, corruption.extra_bytes), (0, count as u64, 0));
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
            let corruption = echo.corruption_of_kind(kind, 0)?;
            prop_assert_eq!(corruption.extra_bytes, echo.surplus_read() as u64);
        } else {
            let telling = if count > SHIFT_MAX { HOLDS_A_WORD } else { TELLING };
            let corruption = echo.corruption_of_kind(FindingKind::Duplicated, telling)?;
            // Fewer if it is decided before all of them came: when as many bytes came as were sent.
            let seen = count.min(echo.visible() as u64);
            prop_assert!((seen..=count).contains(&corruption.extra_bytes), "{:?}", corruption);
            prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes), (0, 0));
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
        echo.corruption_of_kind(FindingKind::Reordered, 0)?;
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
        echo.corruption_of_kind(FindingKind::Reordered, TELLING)?;
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
        let corruption = echo.corruption_of_kind(FindingKind::Foreign, HOLDS_A_WORD)?;
        // The count is known once the stream goes on.
        if echo.visible() >= count + HOLDS_A_WORD {
            prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes, corruption.extra_bytes), (0, 0, count as u64));
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
        let corruption = echo.corruption_of_kind(FindingKind::Foreign, HOLDS_A_WORD)?;
        prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes, corruption.extra_bytes), (differ as u64, 0, 0));
    }

    #[test]
    fn one_byte_more_is_extra(sent in sent(), byte: u8, follows in follows(), reads in reads()) {
        prop_assume!(follows != Follows::Stall);
        let echo = Echo::new(&sent, 0, follows, &reads, |came| came.push(byte));
        let corruption = echo.corruption_of_kind(FindingKind::Extra, 0)?;
        prop_assert_eq!((corruption.wrong_bytes, corruption.lost_bytes, corruption.extra_bytes), (0, 0, 1));
    }

    #[test]
    fn inserted_random_bytes_are_extra(
        sent in sent(),
        at in place(),
        bytes in prop::collection::vec(any::<u8>(), 1..40),
        follows in follows(),
        reads in reads(),
    ) {
        let at = at.index(sent.bytes.len());
        let count = bytes.len();
        let echo = Echo::new(&sent, at, follows, &reads, |came| drop(came.splice(at..at, bytes)));
        // If the first bytes are the expected ones by chance, the last may be a repetition.
        if echo.first_wrong() == at && (at == 0 || echo.came[at] != sent.bytes[at - 1]) {
            let corruption = echo.corruption_of_kind(FindingKind::Extra, count + HOLDS_A_WORD)?;
            prop_assert_eq!((corruption.lost_bytes, corruption.extra_bytes), (0, count as u64));
        } else {
            echo.corruption();
        }
    }

    #[test]
    fn fin_truncates_and_silence_does_not(sent in sent(), at in place(), fin: bool, reads in reads()) {
        let at = at.index(sent.bytes.len());
        let end = if fin { End::Fin } else { End::Cut };
        let echo = Echo::new(&sent, 0, Follows::Rest(end), &reads, |came| came.truncate(at));
        prop_assert_eq!(echo.corruption(), None);
    }

    #[test]
    fn random_bytes_have_their_offset(
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
        echo.corruption();
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
        echo.corruption();
    }
}

/// Returns a connection that sent one message of `length` bytes.
fn one(length: usize) -> Sent {
    one_where(length, |_| true)
}

/// Returns a connection that sent one message of `length` bytes, with the first seed for which `holds`.
fn one_where(length: usize, holds: impl Fn(&Sent) -> bool) -> Sent {
    let sent = |seed| {
        let pattern = Pattern::new(seed);
        Sent { bytes: stream(&pattern, 7, 0, length), pattern: Rc::new(pattern), connection: 7, size: length }
    };
    (1..10_000).map(sent).find(holds).unwrap()
}

/// Returns the kind of the corruption, and its wrong, lost and extra bytes, if `came` comes in one read and nothing follows.
fn found(sent: &Sent, came: &[u8]) -> (FindingKind, u64, u64, u64) {
    let echo = Echo { sent: sent.clone(), came: came.to_vec(), reads: vec![usize::MAX], end: End::Cut };
    let Corruption { kind, wrong_bytes, lost_bytes, extra_bytes, .. } = echo.corruption().unwrap();
    (kind, wrong_bytes, lost_bytes, extra_bytes)
}

/// Returns how many bytes differ from those sent in their place.
fn count_wrong(sent: &Sent, came: &[u8]) -> u64 {
    sent.bytes.iter().zip(came).filter(|(sent, came)| sent != came).count() as u64
}

fn kind_of(sent: &Sent, came: Vec<u8>, reads: &[usize]) -> FindingKind {
    let echo = Echo { sent: sent.clone(), came, reads: reads.to_vec(), end: End::Cut };
    echo.corruption().unwrap().kind
}

#[test]
fn a_verifier_is_three_words() {
    assert_eq!(size_of::<Verifier>(), 24);
}

#[test]
fn bytes_that_come_later_are_waited_for() {
    let sent = one(200_000);
    let mut swapped = sent.bytes.clone();
    swapped[1000..41_000].rotate_left(20_000);
    for read in [1, 1000] {
        assert_eq!(kind_of(&sent, swapped.clone(), &[read]), FindingKind::Reordered);
    }
    let mut lost = sent.bytes.clone();
    lost.drain(1000..21_000);
    assert_eq!(kind_of(&sent, lost, &[1000]), FindingKind::Lost);
}

#[test]
fn a_corruption_is_decided_within_a_limit() {
    let pattern = Pattern::new(1);
    let mut verifier = Verifier::new(0);
    let garbage = stream(&Pattern::new(2), 0, 0, EVIDENCE);
    let checked = verifier.receive(&pattern, &garbage, 1 << 30, OPENED);
    assert!(
        matches!(checked, Checked::Wrong(Corruption { kind: FindingKind::Unknown, wrong_bytes: 4000.., .. })),
        "{checked:?}"
    );

    let mut verifier = Verifier::new(0);
    let garbage = stream(&Pattern::new(2), 0, 0, 2 * EVIDENCE_MAX);
    let expected = stream(&pattern, 0, 0, EVIDENCE_MAX);
    let wrong_bytes = garbage.iter().zip(&expected).filter(|(came, sent)| came != sent).count() as u64;
    assert_eq!(verifier.receive(&pattern, &garbage[..1000], 1 << 30, OPENED), Checked::Undecided);
    let unknown = Corruption { wrong_bytes, ..Corruption::new(FindingKind::Unknown, 0) };
    assert_eq!(verifier.receive(&pattern, &garbage[1000..], 1 << 30, OPENED), Checked::Wrong(unknown));

    let mut verifier = Verifier::new(0);
    let far = stream(&pattern, 0, 1 << 29, EVIDENCE_MAX);
    assert_eq!(verifier.receive(&pattern, &far[..EVIDENCE_MAX - 1], 1 << 30, OPENED), Checked::Undecided);
    let lost = Corruption { lost_bytes: 1 << 29, ..Corruption::new(FindingKind::Lost, 0) };
    assert_eq!(verifier.receive(&pattern, &far[EVIDENCE_MAX - 1..], 1 << 30, OPENED), Checked::Wrong(lost));
}

#[test]
fn a_corruption_is_decided_when_as_many_bytes_came_as_were_sent() {
    let sent = one(64);
    let mut verifier = Verifier::new(sent.connection);
    let mut came = sent.bytes.clone();
    came[20] ^= 1;
    assert_eq!(verifier.receive(&sent.pattern, &came[..20], 64, OPENED), Checked::Right);
    assert_eq!(verifier.receive(&sent.pattern, &came[20..63], 64, OPENED), Checked::Undecided);
    let flipped = Corruption { wrong_bytes: 1, ..Corruption::new(FindingKind::Flipped, 20) };
    assert_eq!(verifier.receive(&sent.pattern, &came[63..], 64, OPENED), Checked::Wrong(flipped));
}

#[test]
fn a_repeated_reply_in_place_of_the_next_is_duplicated() {
    let sent = one(128);
    let mut verifier = Verifier::new(sent.connection);
    assert_eq!(verifier.receive(&sent.pattern, &sent.bytes[..64], 64, OPENED), Checked::Right);
    let duplicated = Corruption { extra_bytes: 64, ..Corruption::new(FindingKind::Duplicated, 64) };
    assert_eq!(verifier.receive(&sent.pattern, &sent.bytes[..64], 128, OPENED), Checked::Wrong(duplicated));
}

#[test]
fn a_foreign_word_may_begin_with_a_right_byte() {
    let foreign = |sent: &Sent| stream(&sent.pattern, 8, 8, 8);
    let sent = one_where(64, |sent| foreign(sent)[0] == sent.bytes[8]);
    let mut came = sent.bytes.clone();
    came[8..16].copy_from_slice(&foreign(&sent));
    assert_eq!(kind_of(&sent, came, &[64]), FindingKind::Foreign);
}

#[test]
fn an_inserted_byte_that_equals_the_missing_one_is_not_reordered() {
    let sent = one(64);
    let mut came = sent.bytes.clone();
    came.insert(20, sent.bytes[63]);
    // Byte by byte, as many bytes came as were sent before the last one comes.
    assert_eq!(kind_of(&sent, came, &[1]), FindingKind::Extra);
}

#[test]
fn bytes_after_the_stream_are_classified() {
    let sent = one(100);
    let and = |more: &[u8]| [&sent.bytes[..], more].concat();
    // The continuation of the stream, which is not sent.
    let next = stream(&sent.pattern, sent.connection, 100, 64);
    for read in [60, 200] {
        assert_eq!(kind_of(&sent, and(&next), &[read]), FindingKind::Extra);
    }
    assert_eq!(kind_of(&sent, and(&sent.bytes[..64]), &[200]), FindingKind::Duplicated);
    assert_eq!(kind_of(&sent, and(&sent.bytes[3..11]), &[200]), FindingKind::Duplicated);
    assert_eq!(kind_of(&sent, and(&sent.bytes[3..10]), &[200]), FindingKind::Extra);
    let foreign = stream(&sent.pattern, sent.connection + 1, 64, 64);
    assert_eq!(kind_of(&sent, and(&foreign), &[200]), FindingKind::Foreign);
}

#[test]
fn bytes_that_exceed_what_was_sent_are_extra_whatever_the_others_are() {
    let sent = one(64);
    let random = stream(&Pattern::new(2), 7, 0, 128);
    let corruption = |came: Vec<u8>| {
        let echo = Echo { sent: sent.clone(), came, reads: vec![200], end: End::Cut };
        let Corruption { kind, wrong_bytes, extra_bytes, .. } = echo.corruption().unwrap();
        (kind, wrong_bytes, extra_bytes)
    };
    let wrong = random.iter().zip(&sent.bytes).filter(|(came, sent)| came != sent).count() as u64;
    assert_eq!(corruption(random.clone()), (FindingKind::Unknown, wrong, 64));
    // A single wrong byte, and more bytes than were sent.
    let mut flipped = [&sent.bytes[..], &random[..64]].concat();
    flipped[20] ^= 1;
    assert_eq!(corruption(flipped), (FindingKind::Flipped, 1, 64));
    let mut short = one(12).bytes;
    short[0] ^= 1;
    let sent = one(12);
    let echo = Echo { sent, came: [&short[..], &[1, 2, 3]].concat(), reads: vec![200], end: End::Cut };
    let Corruption { kind, wrong_bytes, extra_bytes, .. } = echo.corruption().unwrap();
    assert_eq!((kind, wrong_bytes, extra_bytes), (FindingKind::Flipped, 1, 3));
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

#[test]
fn a_word_of_a_connection_that_cannot_have_sent_as_much_is_not_foreign() {
    let sent = one(128);
    let kind = |offset| {
        let mut came = sent.bytes.clone();
        came[32..64].copy_from_slice(&stream(&sent.pattern, 8, offset, 32));
        kind_of(&sent, came, &[200])
    };
    let bytes_max = 16 * 128 + (1 << 20);
    assert_eq!(kind(bytes_max - 8), FindingKind::Foreign);
    assert_eq!(kind(bytes_max), FindingKind::Flipped);
    assert_eq!(kind(4 * bytes_max), FindingKind::Flipped);
}

#[test]
fn a_lost_word_may_begin_as_the_next_does() {
    let sent = one_where(64, |sent| sent.bytes[8] == sent.bytes[16] && sent.bytes[9] != sent.bytes[17]);
    assert_eq!(found(&sent, &[&sent.bytes[..8], &sent.bytes[16..]].concat()), (FindingKind::Lost, 0, 8, 0));
}

#[test]
fn an_own_word_after_foreign_bytes_may_begin_as_they_continue() {
    let foreign = |sent: &Sent| stream(&sent.pattern, 8, 16, 9);
    let sent = one_where(24, |sent| foreign(sent)[8] == sent.bytes[16] && foreign(sent)[0] != sent.bytes[16]);
    let came = [&sent.bytes[..16], &foreign(&sent)[..8], &sent.bytes[16..]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Foreign, 0, 0, 8));
}

#[test]
fn every_byte_of_a_swap_is_wrong() {
    let sent = one(64);
    let mut came = sent.bytes.clone();
    let (left, right) = came.split_at_mut(56);
    left[..8].swap_with_slice(right);
    let wrong = count_wrong(&sent, &came);
    assert!(wrong > 8);
    assert_eq!(found(&sent, &came), (FindingKind::Reordered, wrong, 0, 0));
}

#[test]
fn an_end_without_a_whole_word_that_comes_too_early_is_reordered() {
    let sent = one(60);
    let mut came = sent.bytes.clone();
    came[24..].rotate_right(11);
    assert_eq!(found(&sent, &came), (FindingKind::Reordered, count_wrong(&sent, &came), 0, 0));
}

#[test]
fn earlier_bytes_in_place_of_others_are_duplicated() {
    let sent = one(64);
    let mut came = sent.bytes.clone();
    came.copy_within(8..24, 32);
    assert_eq!(found(&sent, &came), (FindingKind::Duplicated, count_wrong(&sent, &came), 0, 0));
}

#[test]
fn a_loss_is_no_reordering_if_what_came_before_it_comes_again() {
    let sent = one(64);
    let came = [&sent.bytes[..16], &sent.bytes[24..48], &sent.bytes[8..16]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Lost, 0, 8, 0));
}

#[test]
fn wrong_bytes_before_a_loss_are_not_lost() {
    let sent = one(64);
    let wrong = [16, 17, 18, 19].map(|at| !sent.bytes[at]);
    let came = [&sent.bytes[..16], &wrong, &sent.bytes[32..]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Lost, 4, 12, 0));
}

#[test]
fn wrong_bytes_before_an_insertion_are_not_extra() {
    let sent = one(64);
    let garbage = stream(&Pattern::new(2), 7, 0, 16);
    // 16 bytes came in place of 8.
    let came = [&sent.bytes[..16], &garbage, &sent.bytes[24..]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Extra, 8, 0, 8));
    // A flipped byte came before three inserted ones, and no whole word between them.
    let mut came = [&sent.bytes[..30], &garbage[..3], &sent.bytes[30..]].concat();
    came[16] ^= 1;
    assert_eq!(found(&sent, &came), (FindingKind::Extra, 1, 0, 3));
}

#[test]
fn inserted_bytes_end_where_the_stream_continues() {
    let sent = one(64);
    let again = [&sent.bytes[..16], &sent.bytes[8..16]].concat();
    let garbage = stream(&Pattern::new(2), 7, 0, 3);
    let came = [&again, &garbage, &sent.bytes[16..]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Duplicated, 0, 0, 11));
    // A loss follows.
    let came = [&again, &sent.bytes[40..]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Duplicated, 0, 0, 8));
}

#[test]
fn bytes_inserted_before_the_end_are_extra_even_if_they_are_the_end_reversed() {
    let sent = one(12);
    let [.., left, right] = sent.bytes[..] else { unreachable!() };
    let came = [&sent.bytes[..10], &[right, left, !left, left, right]].concat();
    assert_eq!(found(&sent, &came), (FindingKind::Extra, 0, 0, 3));
}

#[test]
fn a_flipped_byte_before_an_equal_one_is_flipped() {
    let sent = one_where(12, |sent| sent.bytes[10] == sent.bytes[11]);
    let mut came = sent.bytes.clone();
    came[10] ^= 1;
    assert_eq!(found(&sent, &came), (FindingKind::Flipped, 1, 0, 0));
}

#[test]
fn a_single_byte_is_that_of_a_neighbor_or_flipped() {
    let sent = one(64);
    let found = |byte| found(&sent, &[&sent.bytes[..10], &[byte]].concat());
    assert_eq!(found(sent.bytes[11]), (FindingKind::Lost, 0, 1, 0));
    assert_eq!(found(sent.bytes[9]), (FindingKind::Duplicated, 0, 0, 1));
    assert_eq!(found(sent.bytes[12]), (FindingKind::Flipped, 1, 0, 0));
    assert_eq!(found(sent.bytes[8]), (FindingKind::Flipped, 1, 0, 0));
}

#[test]
fn two_bytes_swapped_are_reordered_and_three_rotated_are_shifted() {
    let sent = one(12);
    let mut came = sent.bytes.clone();
    came[10..].rotate_right(1);
    assert_eq!(found(&sent, &came), (FindingKind::Reordered, 2, 0, 0));
    came.clone_from(&sent.bytes);
    came[9..].rotate_right(1);
    assert_eq!(found(&sent, &came), (FindingKind::Extra, 0, 0, 1));
}

#[test]
fn one_right_byte_is_evidence_after_one_inserted_but_not_after_more() {
    let sent = one(64);
    let inserted = |count: usize, right: usize| {
        let extra: Vec<u8> = sent.bytes[10..10 + count].iter().map(|byte| !byte).collect();
        found(&sent, &[&sent.bytes[..10], &extra, &sent.bytes[10..10 + right]].concat())
    };
    assert_eq!(inserted(1, 1), (FindingKind::Extra, 0, 0, 1));
    assert_eq!(inserted(2, 1), (FindingKind::Unknown, 3, 0, 0));
    assert_eq!(inserted(3, 2), (FindingKind::Extra, 0, 0, 3));
}

#[test]
fn excerpts_begin_with_the_first_wrong_byte() {
    let sent = one(64);
    let excerpts = |came: &[u8], sent_bytes: u64| {
        let mut verifier = Verifier::new(sent.connection);
        let _undecided = verifier.receive(&sent.pattern, came, sent_bytes, OPENED);
        verifier.excerpts(&sent.pattern, sent_bytes)
    };
    let mut came = sent.bytes.clone();
    came[20] ^= 1;
    came[60] ^= 1;
    assert_eq!(excerpts(&came, 64), (sent.bytes[20..36].to_vec(), came[20..36].to_vec()));
    // Fewer came.
    assert_eq!(excerpts(&came[..25], 64), (sent.bytes[20..36].to_vec(), came[20..25].to_vec()));
    // Fewer were sent.
    assert_eq!(excerpts(&came[..40], 25), (sent.bytes[20..25].to_vec(), came[20..36].to_vec()));
    assert_eq!(excerpts(&came[..20], 20), (vec![], vec![]));
}

#[test]
fn a_repeated_reply_on_a_connection_beyond_2_to_the_26_is_its_own() {
    let (pattern, connection, opened) = (Pattern::new(1), (1 << 26) + 7, (1 << 26) + 100);
    let sent = stream(&pattern, connection, 0, 128);
    let checked = |second: &[u8]| {
        let mut verifier = Verifier::new(connection);
        assert_eq!(verifier.receive(&pattern, &sent[..64], 64, opened), Checked::Right);
        match verifier.receive(&pattern, second, 128, opened) {
            Checked::Wrong(corruption) => corruption.kind,
            checked => panic!("{checked:?}"),
        }
    };
    assert_eq!(checked(&sent[..64]), FindingKind::Duplicated);
    assert_eq!(checked(&stream(&pattern, connection - 1, 0, 64)), FindingKind::Foreign);
    // Of the connection that had this number's low bits before.
    assert_eq!(checked(&stream(&pattern, 7, 64, 64)), FindingKind::Foreign);
}
