//! The faults of single bytes: flip, lose, duplicate, swap.

use super::stream::Hits;
use super::{Effect, Fault, Kind};

/// Most bytes that [`ByteFaults`] appends at once: two that were exchanged, each of them twice.
pub(super) const BYTES_MAX: usize = 4;

/// Changes single bytes of a stream. A place is a position in its input, from 1.
#[derive(Debug, Default)]
pub(super) struct ByteFaults {
    flip: Option<u64>,
    lose: Option<u64>,
    duplicate: Option<u64>,
    swap: Option<u64>,
    /// The place of the last byte.
    place: u64,
    /// The byte that waits for the next, with which it is exchanged; whether it comes twice.
    waiting: Option<(u8, bool)>,
}

impl ByteFaults {
    pub(super) fn new(faults: &[Fault]) -> Self {
        let mut bytes = Self::default();
        for fault in faults {
            match fault.effect {
                Effect::Flip { every } => bytes.flip = Some(every),
                Effect::Lose { every } => bytes.lose = Some(every),
                Effect::Duplicate { every } => bytes.duplicate = Some(every),
                Effect::Swap { every } => bytes.swap = Some(every),
                _ => {}
            }
        }
        bytes
    }

    pub(super) fn is_none(&self) -> bool {
        [self.flip, self.lose, self.duplicate, self.swap].iter().all(Option::is_none)
    }

    /// Returns whether a byte waits for the next.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes the next byte of the input, and appends the resulting bytes to `output`.
    pub(super) fn push(&mut self, mut byte: u8, output: &mut Vec<u8>, hits: &mut Hits) {
        self.place += 1;
        let place = self.place;
        let is_hit = |every: Option<u64>| every.is_some_and(|every| place.is_multiple_of(every));
        if is_hit(self.lose) {
            return hits.add(Kind::Lose);
        }
        if is_hit(self.flip) {
            byte ^= 1;
            hits.add(Kind::Flip);
        }
        let is_double = is_hit(self.duplicate);
        if is_double {
            hits.add(Kind::Duplicate);
        }
        match self.waiting.take() {
            Some(earlier) => {
                hits.add(Kind::Swap);
                append((byte, is_double), output);
                append(earlier, output);
            }
            None if is_hit(self.swap) => self.waiting = Some((byte, is_double)),
            None => append((byte, is_double), output),
        }
    }

    /// Appends a byte that waits for a next one, which will not come.
    pub(super) fn finish(&mut self, output: &mut Vec<u8>) {
        if let Some(last) = self.waiting.take() {
            append(last, output);
        }
    }
}

fn append((byte, is_double): (u8, bool), output: &mut Vec<u8>) {
    output.push(byte);
    if is_double {
        output.push(byte);
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_input() {
        for (rules, input, expected, counts) in [
            (&["flip=2"][..], "abcdef", "acceeg", &[(Kind::Flip, 3)][..]),
            (&["lose=3"], "abcdefg", "abdeg", &[(Kind::Lose, 2)]),
            (&["duplicate=3"], "abcdef", "abccdeff", &[(Kind::Duplicate, 2)]),
            (&["swap=3"], "abcdefgh", "abdcegfh", &[(Kind::Swap, 2)]),
            (&["swap=3"], "abcdef", "abdcef", &[(Kind::Swap, 1)]),
            (&["swap=1"], "abcde", "badce", &[(Kind::Swap, 2)]),
            (&["swap=2"], "abcde", "acbed", &[(Kind::Swap, 2)]),
            (&["swap=4"], "abcd", "abcd", &[]),
            (&["lose=2", "flip=2"], "abcd", "ac", &[(Kind::Lose, 2)]),
            (&["lose=3", "flip=2"], "abcdef", "acee", &[(Kind::Lose, 2), (Kind::Flip, 2)]),
            (&["swap=2", "lose=3"], "abcdef", "adbe", &[(Kind::Lose, 2), (Kind::Swap, 1)]),
            (&["swap=2", "duplicate=3"], "abcde", "accbed", &[(Kind::Duplicate, 1), (Kind::Swap, 2)]),
            (&["flip=1"], "bcd", "cbe", &[(Kind::Flip, 3)]),
            (&["lose=1"], "abc", "", &[(Kind::Lose, 3)]),
        ] {
            let faults: Vec<Fault> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            let (mut bytes, mut hits) = (ByteFaults::new(&faults), Hits::default());
            let mut output = Vec::new();
            for byte in input.bytes() {
                bytes.push(byte, &mut output, &mut hits);
            }
            bytes.finish(&mut output);
            assert_eq!(String::from_utf8(output).unwrap(), expected, "{rules:?} of {input}");
            let mut found: Vec<_> = hits.take().collect();
            found.sort_by_key(|&(kind, _)| kind as usize);
            let mut counts = counts.to_vec();
            counts.sort_by_key(|&(kind, _)| kind as usize);
            assert_eq!(found, counts, "{rules:?} of {input}");
        }
    }
}
