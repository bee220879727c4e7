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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
pub(super) mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::super::rank::Rank;
    use super::super::schedule::{Events, Pace, Window};
    use super::super::timer::SECOND;
    use super::*;

    const SIZE: usize = 64;

    /// Returns connection `number` and its peer, the ends of a pair of Unix sockets: what one writes the other can read at once.
    pub(in crate::load) fn client(number: u64, ring_size: Option<usize>) -> (Client, UnixStream) {
        let (ours, peer) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(OwnedFd::from(ours).into());
        (Client::new(stream, number, 0, None, ring_size, 0, 0), peer)
    }

    /// Reads what the peer finds.
    pub(in crate::load) fn read_all(peer: &mut UnixStream) -> Vec<u8> {
        let mut all = Vec::new();
        assert_eq!(peer.read_to_end(&mut all).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        all
    }

    fn sizes() -> Sizes {
        Sizes::new(SIZE as u64, SIZE as u64, 1)
    }

    #[test]
    fn each_message_in_flight_keeps_its_due_time_and_a_finished_one_takes_no_memory() {
        for ring_size in [Some(3), None] {
            let (mut client, _peer) = client(7, ring_size);
            for round in 0..10 {
                let times = [3, 1, 2].map(|time| 10 * round + time);
                for due in times {
                    client.enqueue(due);
                }
                assert_eq!(times.map(|_| client.take_oldest(None).unwrap().due), times);
            }
            assert_eq!(client.oldest(None), None);
            assert!(!matches!(&client.due_times, DueTimes::Queue(queue) if !queue.times.is_empty()));
        }
    }

    #[test]
    fn messages_from_the_slot_on_are_due_by_their_place_in_it() {
        let window = Window { start: 0, end: SECOND };
        let events = Events::even(Pace::new(0, 1000.0, Rank::ALONE));
        let schedule = SendSchedule::new(events, vec![Some(0), Some(1)], None, window);
        let (mut client, _peer) = client(7, Some(1));
        client.enqueue(5);
        assert_eq!(client.take_oldest(Some(&schedule)), Some(Message { index: 0, due: 5 }));
        client.assign_slot(1, 3);
        // The schedule knows better.
        client.enqueue(0);
        client.enqueue(0);
        // Messages 3 and 4 of slot 1 are events 7 and 9 of the two slots.
        assert_eq!(client.oldest(Some(&schedule)), Some(Message { index: 1, due: 7 * SECOND / 1000 }));
        assert_eq!(client.message(2, Some(&schedule)), Message { index: 2, due: 9 * SECOND / 1000 });
    }

    #[test]
    fn the_header_and_the_messages_of_the_pipeline_are_sent_once_the_socket_is_writable() {
        let (pattern, sizes) = (Pattern::new(1), sizes());
        let (mut client, mut peer) = client(7, Some(4));
        client.proxy_header = b"HEADER".to_vec();
        for due in 0..3 {
            client.enqueue(due);
        }
        let send = |client: &mut Client| client.send(&pattern, &sizes, 2, &mut [0; 1024]).unwrap();
        assert!(!send(&mut client));
        assert!(read_all(&mut peer).is_empty());
        client.notice(Ready::WRITABLE);
        assert!(send(&mut client));
        let mut expected = [0; 2 * SIZE];
        pattern.fill(7, 0, &mut expected);
        assert_eq!(read_all(&mut peer), [&b"HEADER"[..], &expected].concat());
        assert!(!send(&mut client));
        // Each is counted once, as begun or as found to wait.
        assert_eq!((client.take_begun(&sizes), client.take_deferred(&sizes)), (0..2, 2..3));
        assert!(client.take_deferred(&sizes).is_empty());
    }

    #[test]
    fn messages_before_the_schedule_are_not_late() {
        let sizes = sizes();
        let (mut client, _peer) = client(7, Some(1));
        client.enqueue(0);
        client.notice(Ready::WRITABLE);
        assert!(client.send(&Pattern::new(1), &sizes, 1, &mut [0; SIZE]).unwrap());
        client.exempt_from_schedule();
        assert!(client.take_begun(&sizes).is_empty());
        client.enqueue(0);
        assert_eq!(client.take_deferred(&sizes), 1..2);
    }

    #[test]
    fn a_full_socket_is_written_to_again_once_it_is_writable() {
        let (pattern, sizes) = (Pattern::new(1), Sizes::new(1 << 30, 1 << 30, 1));
        let (mut client, mut peer) = client(7, Some(1));
        client.enqueue(0);
        let mut scratch = vec![0; BUFFER_BYTES];
        let mut send = |client: &mut Client| client.send(&pattern, &sizes, 1, &mut scratch).unwrap();
        client.notice(Ready::WRITABLE);
        while send(&mut client) {}
        assert_eq!(read_all(&mut peer).len() as u64, client.sent_bytes());
        assert!(!send(&mut client));
        client.notice(Ready::WRITABLE);
        assert!(send(&mut client));
    }

    #[test]
    fn a_short_read_drains_the_socket_unless_more_may_be_left() {
        let (pattern, sizes) = (Pattern::new(1), sizes());
        // What is set before, the length of a read, and whether another one follows without an event.
        let cases: [(fn(&mut Client), _, _); 5] = [
            (|_| (), 2 * SIZE, !SHORT_READ_DRAINS),
            (|_| (), SIZE, true),
            (Client::read_until_would_block, 2 * SIZE, true),
            (|client| client.notice(Ready::READ_CLOSED), 2 * SIZE, true),
            (|client| client.notice(Ready::PRIORITY), 2 * SIZE, true),
        ];
        for (case, (set, length, is_read_again)) in cases.into_iter().enumerate() {
            let (mut client, mut peer) = client(7, Some(2));
            client.enqueue(0);
            client.enqueue(0);
            client.notice(Ready::WRITABLE);
            assert!(client.send(&pattern, &sizes, 2, &mut [0; 2 * SIZE]).unwrap());
            let messages = read_all(&mut peer);
            let mut buffer = vec![0; length];
            let mut receive = |client: &mut Client| client.receive(&pattern, 1, &mut buffer);
            set(&mut client);
            peer.write_all(&messages[..SIZE]).unwrap();
            assert!(matches!(receive(&mut client), Received::Blocked), "case {case}: without an event");
            client.expect_input();
            assert!(matches!(receive(&mut client), Received::Right), "case {case}");
            peer.write_all(&messages[SIZE..]).unwrap();
            assert_eq!(matches!(receive(&mut client), Received::Right), is_read_again, "case {case}");
        }
    }
}
