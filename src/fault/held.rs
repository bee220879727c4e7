//! Bytes that leave later.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

/// Memory that an empty queue keeps for the next bytes.
const CAPACITY_KEPT: usize = 4096;

/// A queue of bytes, each of which may leave from a time on: never before those ahead of it.
///
/// A byte costs at most 32 bytes of memory, even if each has a time of its own: a piece costs 8, and the two buffers hold up to three
/// times what is in them, while they grow.
#[derive(Debug)]
pub(super) struct Held {
    /// The bytes from `start` on are held.
    bytes: Vec<u8>,
    start: usize,
    /// How many of them may leave now.
    due: usize,
    /// The pieces of the others.
    pieces: VecDeque<Piece>,
    /// The time of the last piece that became due, and of the last piece.
    first: Instant,
    last: Instant,
}

/// Bytes that may leave at the same time.
#[derive(Debug)]
struct Piece {
    /// Microseconds after the piece before it.
    after_us: u32,
    length: u32,
}

impl Held {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: Vec::new(), start: 0, due: 0, pieces: VecDeque::new(), first: now, last: now }
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends what `fill` appends to its buffer: it may leave `delay` after `now`, at most an hour.
    ///
    /// # Errors
    ///
    /// - That of `fill`.
    /// - `OutOfMemory`: the bytes have no piece, and never leave.
    pub(super) fn push(
        &mut self,
        now: Instant,
        delay: Duration,
        fill: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.advance(now);
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        let before = self.bytes.len();
        fill(&mut self.bytes)?;
        let length = self.bytes.len() - before;
        if length == 0 {
            return Ok(());
        }
        if self.pieces.is_empty() {
            if delay.is_zero() {
                self.due += length;
                return Ok(());
            }
            (self.first, self.last) = (now, now);
        }
        // Every piece that is left is due after `now`, so that the difference is at most the delay.
        let after = (now + delay).saturating_duration_since(self.last);
        let after_us = u32::try_from(after.as_nanos().div_ceil(1000)).unwrap_or(u32::MAX);
        self.last += Duration::from_micros(after_us.into());
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        match self.pieces.back_mut() {
            Some(back) if after_us == 0 => back.length += length,
            _ => {
                self.pieces.try_reserve(1)?;
                self.pieces.push_back(Piece { after_us, length });
            }
        }
        Ok(())
    }

    /// Finds what may leave at `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(at) = self.next_at().filter(|&at| at <= now) {
            let Some(piece) = self.pieces.pop_front() else { return };
            self.due += piece.length as usize;
            self.first = at;
        }
    }

    /// Lets everything leave now.
    pub(super) fn release(&mut self) {
        self.pieces = VecDeque::new();
        self.due = self.len();
    }

    /// Returns when more may leave.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.pieces.front().map(|piece| self.first + Duration::from_micros(piece.after_us.into()))
    }

    /// Returns the bytes that may leave.
    pub(super) fn due(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.due]
    }

    /// Removes the first bytes, which have left.
    pub(super) fn consume(&mut self, length: usize) {
        self.start += length;
        self.due -= length;
        if self.is_empty() {
            self.bytes.clear();
            self.start = 0;
            if self.memory() > CAPACITY_KEPT {
                (self.bytes, self.pieces) = (Vec::new(), VecDeque::new());
            }
        }
    }

    /// Forgets everything, and returns the memory.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.last);
    }

    /// Returns the bytes of memory that the queue has allocated.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn push(held: &mut Held, now: Instant, delay: Duration, data: &[u8]) {
        let fill = |bytes: &mut Vec<u8>| {
            bytes.extend(data);
            Ok(())
        };
        held.push(now, delay, fill).unwrap();
    }

    #[test]
    fn a_byte_costs_at_most_32_bytes_of_memory_whatever_its_piece() {
        const HOLD: usize = 64 << 10;
        for size in [1, 2, 7, 1024] {
            let start = Instant::now();
            let mut held = Held::new(start);
            let mut now = start;
            // Growing, and then with as much leaving as coming.
            for step in 0..4 * HOLD / size {
                now += Duration::from_micros(1);
                let before = held.memory();
                push(&mut held, now, Duration::from_secs(60), &[b'x'; 1024][..size]);
                let memory = held.memory();
                let peak = if memory == before { memory } else { memory + before };
                if step < HOLD / size {
                    let least = held.len() + (step + 1) * size_of::<Piece>();
                    assert!(memory >= least, "{memory} bytes of memory, with {least} in use in step {step}");
                }
                if held.len() > 64 {
                    assert!(peak <= 32 * held.len(), "{peak} bytes of memory for {} in step {step}", held.len());
                }
                while held.len() > HOLD {
                    now = now.max(held.next_at().unwrap_or(now));
                    held.advance(now);
                    held.consume(held.due().len().min(held.len() - HOLD / 2));
                }
            }
            now += Duration::from_secs(120);
            held.advance(now);
            held.consume(held.len());
            assert!(held.memory() <= CAPACITY_KEPT, "an empty queue keeps {}", held.memory());
        }
    }

    #[test]
    fn a_queue_that_never_empties_reuses_the_memory_of_what_has_left() {
        let now = Instant::now();
        let mut held = Held::new(now);
        push(&mut held, now, Duration::ZERO, &[b'x'; 100]);
        for _ in 0..10_000 {
            push(&mut held, now, Duration::ZERO, b"x");
            held.consume(1);
        }
        assert!(held.memory() <= 32 * held.len(), "{} bytes of memory for {}", held.memory(), held.len());
    }

    #[test]
    fn bytes_leave_in_order_and_not_before_their_time() {
        let start = Instant::now();
        let millis = |millis| start + Duration::from_millis(millis);
        let mut held = Held::new(start);
        // The second piece has the shorter delay, and waits for the first.
        push(&mut held, millis(0), Duration::from_millis(20), b"ab");
        push(&mut held, millis(5), Duration::from_millis(1), b"cd");
        push(&mut held, millis(30), Duration::from_millis(1), b"e");
        assert_eq!((held.due(), held.next_at()), (&b"abcd"[..], Some(millis(31))));
        held.consume(3);
        held.advance(millis(31));
        assert_eq!((held.due(), held.next_at()), (&b"de"[..], None));
        held.consume(2);
        assert!(held.is_empty());
        push(&mut held, millis(3_600_000), Duration::from_secs(3600), b"f");
        held.advance(millis(7_199_999));
        assert_eq!((held.due(), held.next_at()), (&b""[..], Some(millis(7_200_000))));
        held.release();
        assert_eq!((held.due(), held.next_at()), (&b"f"[..], None));
    }
}
