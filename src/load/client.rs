//! One connection of a run: its stream, what it has sent, and the messages that it awaits.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::ops::Range;

use mio::net::TcpStream;

use super::pattern::Pattern;
use super::proxy_protocol;
use super::schedule::SendSchedule;
use super::sizes::Sizes;
use super::stage::{Counts, Stage};
use super::verify::{Checked, Verifier};
use crate::ready::{Ready, SHORT_READ_DRAINS};
use crate::socket::Socket;

/// Bytes of each of the two buffers that all connections share.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts of one byte each")]
pub(super) struct Client {
    pub(super) stream: Socket,
    pub(super) stage: Stage,
    readable: bool,
    writable: bool,
    /// A short read does not drain the socket: the end of the stream or urgent data was reported, or it is a Unix socket.
    read_until_would_block: bool,
    /// A reply after the first took longer than a second.
    pub(super) is_late: bool,
    /// The local port, if the sources chose it.
    pub(super) port: Option<u16>,
    /// The pair of source and target.
    pub(super) pair: u32,
    /// The slot in the send schedule.
    pub(super) slot: u32,
    /// The first message that is on the schedule, and its place among those of the slot.
    slot_base: u64,
    slot_offset: u64,
    /// When the stage began, or in [`Stage::Steady`] after the window when bytes last arrived, in nanoseconds of the run.
    pub(super) since: u64,
    pub(super) verifier: Verifier,
    pub(super) messages: MessageCounts,
    /// Messages before this one were sent when they were due or found to wait. In a closed loop, only those found to wait count.
    timed: u64,
    sent_bytes: u64,
    /// What is left to send of the PROXY header, before the first message.
    pub(super) proxy_header: Vec<u8>,
    due_times: DueTimes,
}

/// The messages of one connection, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MessageCounts {
    /// Messages that became due.
    pub(super) enqueued: u64,
    /// Messages that became due and belong to the next report.
    pub(super) reported: u64,
    /// Messages that were verified or abandoned.
    pub(super) done: u64,
}

impl MessageCounts {
    /// Returns how many messages are due and neither verified nor abandoned.
    pub(super) fn outstanding(self) -> u64 {
        self.enqueued - self.done
    }
}

/// A message of a connection: its position in the stream, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) index: u64,
    pub(super) due: u64,
}

/// When each outstanding message was due. In an open loop the schedule computes it for all messages but the first, unless they follow
/// each other at random.
#[derive(Debug)]
enum DueTimes {
    One(u64),
    Ring(Box<[u64]>),
    Queue(Box<DueQueue>),
}

/// The due times of the messages from `first` on, as many as are outstanding.
#[derive(Debug, Default)]
struct DueQueue {
    first: u64,
    times: VecDeque<u64>,
}

impl DueQueue {
    fn place(&self, message: u64) -> usize {
        usize::try_from(message - self.first).unwrap_or(usize::MAX)
    }

    fn get(&self, message: u64) -> u64 {
        self.times.get(self.place(message)).copied().unwrap_or_default()
    }

    fn set(&mut self, message: u64, due: u64) {
        let place = self.place(message);
        match self.times.get_mut(place) {
            Some(time) => *time = due,
            None => self.times.push_back(due),
        }
    }

    fn discard(&mut self, message: u64) {
        self.times.pop_front();
        self.first = message + 1;
    }
}

impl DueTimes {
    fn new(ring_size: Option<usize>) -> Self {
        match ring_size {
            None => Self::Queue(Box::default()),
            Some(0 | 1) => Self::One(0),
            Some(size) => Self::Ring(vec![0; size].into()),
        }
    }

    fn get(&self, message: u64) -> u64 {
        match self {
            Self::One(due) => *due,
            Self::Ring(ring) => ring[place(message, ring.len())],
            Self::Queue(queue) => queue.get(message),
        }
    }

    fn set(&mut self, message: u64, due: u64) {
        match self {
            Self::One(one) => *one = due,
            Self::Ring(ring) => ring[place(message, ring.len())] = due,
            Self::Queue(queue) => queue.set(message, due),
        }
    }

    /// Forgets the due time of the oldest outstanding message, which is `message`.
    fn discard(&mut self, message: u64) {
        if let Self::Queue(queue) = self {
            queue.discard(message);
        }
    }

    /// Has `first` follow as the next message. None is outstanding.
    fn restart(&mut self, first: u64) {
        if let Self::Queue(queue) = self {
            **queue = DueQueue { first, times: VecDeque::new() };
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "less than ring_size")]
fn place(message: u64, ring_size: usize) -> usize {
    (message % ring_size as u64) as usize
}

/// The result of one read.
pub(super) enum Received {
    /// Bytes, all of them right.
    Right,
    /// Bytes that may be wrong; later ones decide.
    Undecided,
    Wrong(super::verify::Corruption),
    /// The peer's FIN.
    Ended,
    Blocked,
    Failed(io::Error),
}

impl Client {
    /// Creates a connection whose connect was due at `due` and began at `now`, with room for the due times of `ring_size` messages, or
    /// of as many as are in flight.
    pub(super) fn new(
        stream: TcpStream,
        number: u64,
        pair: u32,
        port: Option<u16>,
        ring_size: Option<usize>,
        due: u64,
        now: u64,
    ) -> Self {
        let mut due_times = DueTimes::new(ring_size);
        // The place of the first message, which is due once the handshake is complete.
        due_times.set(0, due);
        Self {
            stream: Socket(stream),
            stage: Stage::Connecting,
            readable: false,
            writable: false,
            read_until_would_block: false,
            is_late: false,
            port,
            pair,
            slot: 0,
            slot_base: u64::MAX,
            slot_offset: 0,
            since: now,
            verifier: Verifier::new(number),
            messages: MessageCounts::default(),
            timed: 0,
            sent_bytes: 0,
            proxy_header: Vec::new(),
            due_times,
        }
    }

    pub(super) fn notice(&mut self, ready: Ready) {
        self.readable |= ready.is_readable();
        self.writable |= ready.is_writable();
        self.read_until_would_block |= ready.outlasts_short_read();
    }

    /// Has each read followed by another until one blocks: a read of a Unix socket stops at a descriptor that the peer passes.
    pub(super) fn read_until_would_block(&mut self) {
        self.read_until_would_block = true;
    }

    /// Makes the next call read, without an event.
    pub(super) fn expect_input(&mut self) {
        self.readable = true;
    }

    /// Moves the connection to its next stage, and the counts with it.
    pub(super) fn enter(&mut self, stage: Stage, counts: &mut Counts, now: u64) {
        counts.change(Some(self.stage), Some(stage));
        (self.stage, self.since) = (stage, now);
    }

    /// Returns when the connect of a connecting client was due.
    pub(super) fn connect_due(&self) -> u64 {
        self.due_times.get(0)
    }

    /// Sets the connection's slot in a schedule, in which the next message is message `offset` of the slot.
    pub(super) fn assign_slot(&mut self, slot: u32, offset: u64) {
        (self.slot, self.slot_base, self.slot_offset) = (slot, self.messages.enqueued, offset);
        self.timed = self.messages.enqueued;
    }

    /// Leaves out the part of the pattern up to where a message of `sizes` begins. No message is outstanding.
    pub(super) fn move_to_next_boundary(&mut self, sizes: &Sizes) {
        let connection = self.verifier.connection();
        let index = sizes.begun(connection, self.sent_bytes);
        self.sent_bytes = sizes.start(connection, index);
        self.verifier.skip_to(self.sent_bytes);
        self.messages = MessageCounts { enqueued: index, reported: 0, done: index };
        self.due_times.restart(index);
        self.timed = index;
    }

    /// Leaves the messages until now, which are on no schedule, out of what is sent late.
    pub(super) fn exempt_from_schedule(&mut self) {
        self.timed = self.messages.enqueued;
    }

    /// Adds a message that is due at `due`.
    pub(super) fn enqueue(&mut self, due: u64) -> Message {
        let message = Message { index: self.messages.enqueued, due };
        self.due_times.set(message.index, due);
        self.messages.enqueued += 1;
        message
    }

    /// Returns the outstanding message that was due first.
    pub(super) fn oldest(&self, schedule: Option<&SendSchedule>) -> Option<Message> {
        (self.messages.outstanding() > 0).then(|| self.message(self.messages.done, schedule))
    }

    /// Takes the oldest outstanding message.
    #[inline]
    pub(super) fn take_oldest(&mut self, schedule: Option<&SendSchedule>) -> Option<Message> {
        let message = self.oldest(schedule)?;
        self.messages.done += 1;
        self.due_times.discard(message.index);
        Some(message)
    }

    /// Takes the oldest outstanding message if every byte of it was received.
    pub(super) fn take_reply(&mut self, sizes: &Sizes, schedule: Option<&SendSchedule>) -> Option<Message> {
        if self.verifier.verified() < sizes.start(self.verifier.connection(), self.messages.done + 1) {
            return None;
        }
        self.take_oldest(schedule)
    }

    /// Returns message `index`, which is outstanding.
    pub(super) fn message(&self, index: u64, schedule: Option<&SendSchedule>) -> Message {
        let due = match (&self.due_times, schedule) {
            (DueTimes::One(_), Some(schedule)) if index >= self.slot_base => {
                schedule.due(self.slot, index - self.slot_base + self.slot_offset)
            }
            (due_times, _) => due_times.get(index),
        };
        Message { index, due }
    }

    /// Returns whether any byte of message `index` was sent.
    pub(super) fn has_begun(&self, index: u64, sizes: &Sizes) -> bool {
        self.sent_bytes > sizes.start(self.verifier.connection(), index)
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Writes once what is due, as far as `pipeline` and the socket allow. Returns whether the socket took any of it.
    pub(super) fn send(
        &mut self,
        pattern: &Pattern,
        sizes: &Sizes,
        pipeline: u64,
        scratch: &mut [u8],
    ) -> io::Result<bool> {
        if self.writable && !self.proxy_header.is_empty() {
            self.writable = proxy_protocol::send(&mut self.proxy_header, &mut self.stream)?;
        }
        let MessageCounts { enqueued, done, .. } = self.messages;
        let end = sizes.start(self.verifier.connection(), enqueued.min(done.saturating_add(pipeline)));
        while self.writable && self.sent_bytes < end {
            let left = end - self.sent_bytes;
            let length = usize::try_from(left).map_or(scratch.len(), |left| left.min(scratch.len()));
            let chunk = &mut scratch[..length];
            pattern.fill(self.verifier.connection(), self.sent_bytes, chunk);
            match self.stream.write(chunk) {
                Ok(n) => {
                    self.sent_bytes += n as u64;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Takes the messages whose first byte was sent, and which had not been found to wait before.
    pub(super) fn take_begun(&mut self, sizes: &Sizes) -> Range<u64> {
        let begun = self.timed..sizes.begun(self.verifier.connection(), self.sent_bytes);
        self.timed = begun.end.max(self.timed);
        begun
    }

    /// Takes the messages that wait because the pipeline or the socket is full, and which had not been found to wait before.
    pub(super) fn take_deferred(&mut self, sizes: &Sizes) -> Range<u64> {
        let enqueued = self.messages.enqueued;
        if self.sent_bytes == sizes.start(self.verifier.connection(), enqueued) {
            return 0..0;
        }
        let deferred = sizes.begun(self.verifier.connection(), self.sent_bytes).max(self.timed)..enqueued;
        self.timed = enqueued;
        deferred
    }

    /// Reads once and verifies what was read.
    pub(super) fn receive(&mut self, pattern: &Pattern, opened: u64, buffer: &mut [u8]) -> Received {
        if !self.readable {
            return Received::Blocked;
        }
        match self.stream.read(buffer) {
            Ok(0) => Received::Ended,
            Ok(n) => {
                if SHORT_READ_DRAINS && n < buffer.len() && !self.read_until_would_block {
                    self.readable = false;
                }
                match self.verifier.receive(pattern, &buffer[..n], self.sent_bytes, opened) {
                    Checked::Right => Received::Right,
                    Checked::Undecided => Received::Undecided,
                    Checked::Wrong(corruption) => Received::Wrong(corruption),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Received::Blocked
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Received::Right,
            Err(error) => Received::Failed(error),
        }
    }
}
