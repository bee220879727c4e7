//! A stream with faults: it changes, delays and withholds what is written to it. No socket, no mio, no clock of its own and no log.

#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use super::bytes::{BYTES_MAX, ByteFaults};
use super::held::Held;
use super::pace::Pace;
use super::{Effect, Fault, Kind, Moment};
use crate::interrupted::retry_interrupted;
use crate::splitmix::splitmix64;

/// Most writes after one call of [`FaultyStream::advance`]: others wait while a large piece leaves in small chunks.
const WRITES_MAX: usize = 8;

/// A non-blocking stream on which faults act.
///
/// A write puts bytes into a queue, from which [`advance`](Self::advance) and later writes send them when their time has come. A
/// read returns `WouldBlock` while the stream must not be read, and the end of the stream only once the queue is empty.
///
/// The owner calls `advance` before each use, at [`next_deadline`](Self::next_deadline), and again while
/// [`can_send`](Self::can_send). It reads when [`can_resume`](Self::can_resume) though no event was reported, and carries out
/// [`take_end`](Self::take_end).
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct FaultyStream<S, C> {
    stream: S,
    clock: C,
    opened_at: Instant,
    hits: Hits,
    bytes: ByteFaults,
    held: Held,
    delay: Option<Delay>,
    /// What is random on this connection.
    random: u64,
    pace: Pace,
    stall: Stall,
    /// Bytes of output after which nothing more is put into the queue.
    mute: Option<u64>,
    reset: Option<Moment>,
    fin: Option<Moment>,
    /// Bytes that were put into the queue, and bytes sent; those sent since the last `take_sent`.
    queued: u64,
    sent: u64,
    newly_sent: usize,
    end: Option<End>,
    /// What is written is thrown away.
    is_discarding: bool,
    /// The stream took no more output.
    is_blocked: bool,
    /// The stream has bytes of its own that a flush did not send.
    is_unflushed: bool,
    /// How many more writes may follow the last call of `advance`, and whether there is output for more.
    writes_left: usize,
    can_send: bool,
    /// A read found the end of the stream.
    has_ended: bool,
    /// A read was cut short or returned `WouldBlock` though the stream may have input: no event will announce it.
    is_suspended: bool,
}

/// What the owner of a stream must do to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Reset it; first let the system send what was written, if bytes were counted.
    Reset { after_bytes: bool },
    /// Close the direction of the output, and read to the end.
    Fin,
}

#[derive(Clone, Copy, Debug)]
struct Delay {
    least: Duration,
    most: Duration,
    hold: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    /// None is to come.
    Never,
    After {
        bytes: u64,
        length: Option<Duration>,
    },
    Until(Option<Instant>),
}

/// What the faults have done since it was last taken: connections that a kind has touched, or bytes.
#[derive(Debug, Default)]
pub(crate) struct Hits {
    counts: [u32; Kind::ALL.len()],
    has_new: bool,
    /// The kinds that have touched this connection.
    touched: u16,
}

impl Hits {
    /// Counts a byte, or what happens once.
    pub(super) fn add(&mut self, kind: Kind) {
        self.counts[kind as usize] += 1;
        self.has_new = true;
    }

    /// Counts the connection, at the first call.
    pub(super) fn add_once(&mut self, kind: Kind) {
        let bit = 1 << kind as u16;
        if self.touched & bit == 0 {
            self.touched |= bit;
            self.add(kind);
        }
    }

    /// Returns the counts that are not zero, and begins anew.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = (Kind, u32)> + use<> {
        let counts =
            if std::mem::take(&mut self.has_new) { std::mem::take(&mut self.counts) } else { [0; Kind::ALL.len()] };
        Kind::ALL.iter().copied().zip(counts).filter(|&(_, count)| count > 0)
    }
}

impl<S: Read + Write, C: Fn() -> Instant> FaultyStream<S, C> {
    /// Returns a stream on which `faults` act from now on. `seed` determines what is random.
    pub(crate) fn new(stream: S, faults: &[Fault], seed: u64, clock: C) -> Self {
        let opened_at = clock();
        let mut this = Self {
            stream,
            clock,
            opened_at,
            hits: Hits::default(),
            bytes: ByteFaults::new(faults),
            held: Held::new(opened_at),
            delay: None,
            random: seed,
            pace: Pace::new(faults),
            stall: Stall::Never,
            mute: None,
            reset: None,
            fin: None,
            queued: 0,
            sent: 0,
            newly_sent: 0,
            end: None,
            is_discarding: false,
            is_blocked: false,
            is_unflushed: false,
            writes_left: WRITES_MAX,
            can_send: false,
            has_ended: false,
            is_suspended: false,
        };
        for fault in faults {
            match fault.effect {
                Effect::Delay { least, most, hold } => this.delay = Some(Delay { least, most, hold }),
                Effect::Stall { after, length } => this.stall = Stall::After { bytes: after, length },
                Effect::Mute { after } => this.mute = Some(after),
                Effect::Reset(moment) => this.reset = Some(moment),
                Effect::Fin(moment) => this.fin = Some(moment),
                _ => {}
            }
        }
        this.update(opened_at);
        this
    }

    /// Sends what is due. Call it before each use, and when the deadline has passed.
    ///
    /// # Errors
    ///
    /// - A write fails.
    pub(crate) fn advance(&mut self, is_writable: bool) -> io::Result<()> {
        self.is_blocked &= !is_writable;
        self.writes_left = WRITES_MAX;
        let now = (self.clock)();
        self.update(now);
        self.send_due(now)
    }

    /// Ends the faults of time, in an orderly end of the connection: what is delayed leaves now, and what a stall withholds is
    /// thrown away.
    pub(crate) fn lift(&mut self) {
        if self.is_stalled() {
            return self.discard();
        }
        (self.delay, self.pace) = (None, Pace::default());
        // Without memory the byte waits on, and is withheld still: the next call tries again.
        let _ = self.finish_input((self.clock)());
        self.held.release();
    }

    /// Does what has become due.
    fn update(&mut self, now: Instant) {
        if self.reset.is_some_and(|moment| self.has_come(moment, now)) {
            let after_bytes = matches!(self.reset, Some(Moment::Bytes(1..)));
            self.hits.add_once(Kind::Reset);
            (self.reset, self.fin) = (None, None);
            self.end = Some(End::Reset { after_bytes });
            self.discard();
        } else if self.fin.is_some_and(|moment| self.has_come(moment, now)) {
            self.hits.add_once(Kind::Fin);
            self.fin = None;
            self.end = Some(End::Fin);
            self.discard();
        }
        match self.stall {
            Stall::After { bytes, length } if self.sent >= bytes => {
                self.hits.add_once(Kind::Stall);
                let start = if bytes == 0 { self.opened_at } else { (self.clock)() };
                self.stall = Stall::Until(length.map(|length| start + length));
                self.is_suspended = true;
            }
            Stall::Until(Some(end)) if end <= now => self.stall = Stall::Never,
            _ => {}
        }
    }

    fn has_come(&self, moment: Moment, now: Instant) -> bool {
        match moment {
            Moment::Bytes(bytes) => self.sent >= bytes,
            Moment::Time(time) => self.opened_at + time <= now,
        }
    }

    /// Sends what is due, until the stream blocks, something becomes due, or there were many writes.
    fn send_due(&mut self, now: Instant) -> io::Result<()> {
        self.held.advance(now);
        self.can_send = false;
        while !self.is_stalled() && !self.is_blocked {
            let due = self.held.due();
            let most = due.len().min(usize::try_from(self.sendable()).unwrap_or(usize::MAX));
            if most == 0 {
                break;
            }
            let allowed = self.pace.allow(most, now, &mut self.hits);
            if allowed == 0 {
                break;
            }
            if self.writes_left == 0 {
                self.can_send = true;
                break;
            }
            self.writes_left -= 1;
            match self.stream.write(&due[..allowed]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.held.consume(written);
                    self.sent += written as u64;
                    self.newly_sent += written;
                    self.pace.wrote(written, !self.held.due().is_empty(), &self.clock);
                    self.update(now);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.is_blocked = true,
                Err(error) => return Err(error),
            }
        }
        if self.is_stalled() || self.is_blocked {
            return Ok(());
        }
        match retry_interrupted(|| self.stream.flush()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                (self.is_blocked, self.is_unflushed) = (true, true);
                Ok(())
            }
            result => {
                self.is_unflushed = false;
                result
            }
        }
    }

    /// Returns how many bytes may be sent before something else is due.
    fn sendable(&self) -> u64 {
        let bytes = |moment| if let Some(Moment::Bytes(bytes)) = moment { bytes } else { u64::MAX };
        let stall = if let Stall::After { bytes, .. } = self.stall { bytes } else { u64::MAX };
        bytes(self.reset).min(bytes(self.fin)).min(stall) - self.sent
    }

    /// Puts bytes into the queue. Returns how many of `data` it took. Fails if there is no memory for them.
    fn enqueue(&mut self, data: &[u8], now: Instant) -> io::Result<usize> {
        let unmuted = usize::try_from(self.mute.map_or(u64::MAX, |mute| mute - self.queued)).unwrap_or(usize::MAX);
        if unmuted == 0 {
            self.hits.add_once(Kind::Mute);
            return Ok(data.len());
        }
        let (room, delay) = (self.room().min(unmuted), self.draw_delay());
        let Self { held, bytes, hits, .. } = self;
        let (mut taken, before) = (data.len().min(room), held.len());
        held.push(now, delay, |output| {
            if bytes.is_none() {
                output.try_reserve(taken)?;
                output.extend_from_slice(&data[..taken]);
                return Ok(());
            }
            taken = 0;
            let most = output.len().saturating_add(room);
            while taken < data.len() && output.len() < most {
                output.try_reserve(BYTES_MAX)?;
                bytes.push(data[taken], output, hits);
                taken += 1;
            }
            Ok(())
        })?;
        let queued = self.held.len() - before;
        self.queued += queued as u64;
        if queued > 0 && !delay.is_zero() {
            self.hits.add_once(Kind::Delay);
        }
        Ok(taken)
    }

    /// Puts a byte that waits for a next one into the queue: there is none. Fails if there is no memory for it.
    fn finish_input(&mut self, now: Instant) -> io::Result<()> {
        if !self.bytes.is_waiting() || self.is_discarding {
            return Ok(());
        }
        let delay = self.draw_delay();
        self.held.push(now, delay, |output| {
            output.try_reserve(BYTES_MAX)?;
            self.bytes.finish(output);
            Ok(())
        })
    }

    fn draw_delay(&mut self) -> Duration {
        let Some(Delay { least, most, .. }) = self.delay else { return Duration::ZERO };
        self.random = splitmix64(self.random);
        let range = most.saturating_sub(least).as_nanos() + 1;
        let nanos = (u128::from(self.random) * range) >> 64;
        least + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    /// Returns how many bytes the queue takes.
    fn room(&self) -> usize {
        match self.delay {
            _ if self.mute.is_some_and(|mute| self.queued >= mute) => usize::MAX,
            Some(delay) => delay.hold.saturating_sub(self.held.len()),
            None if self.held.is_empty() => usize::MAX,
            None => 0,
        }
    }

    /// Throws away what is written from now on, and what is in the queue.
    pub(crate) fn discard(&mut self) {
        (self.is_discarding, self.is_unflushed) = (true, false);
        self.stall = Stall::Never;
        self.held.clear();
    }
}

impl<S, C> FaultyStream<S, C> {
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    pub(crate) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns when to call [`advance`](Self::advance) though no event was reported.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let end = |moment| if let Some(Moment::Time(time)) = moment { Some(self.opened_at + time) } else { None };
        let stall = if let Stall::Until(end) = self.stall { end } else { None };
        let output = match self.held.due() {
            _ if self.is_stalled() || self.is_blocked => None,
            [] => self.held.next_at(),
            due => self.pace.next_at(due.len()),
        };
        [end(self.reset), end(self.fin), stall, output].into_iter().flatten().min()
    }

    /// Returns whether there is more to send now.
    pub(crate) fn can_send(&self) -> bool {
        self.can_send
    }

    /// Returns whether a read that was refused can be made now.
    pub(crate) fn can_resume(&self) -> bool {
        let has_room = match self.delay {
            Some(delay) if !self.has_ended => self.held.len() < delay.hold,
            _ => !self.has_output(),
        };
        self.is_suspended && !self.is_stalled() && has_room
    }

    /// Returns what the owner must do to the connection, once.
    pub(crate) fn take_end(&mut self) -> Option<End> {
        self.end.take()
    }

    /// Returns how many bytes were sent since the last call.
    pub(crate) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.newly_sent)
    }

    /// Returns what the faults have done since the last call.
    pub(crate) fn take_hits(&mut self) -> impl Iterator<Item = (Kind, u32)> + use<S, C> {
        self.hits.take()
    }

    /// Returns whether it neither reads nor writes.
    pub(crate) fn is_stalled(&self) -> bool {
        matches!(self.stall, Stall::Until(_))
    }

    /// Returns whether there is output that the stream does not take.
    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked && self.has_output()
    }

    /// Returns whether there is output that was not sent.
    fn has_output(&self) -> bool {
        self.is_unflushed || !self.held.is_empty()
    }

    /// Returns whether a fault keeps back output, or the end of the stream.
    pub(crate) fn is_withholding(&self) -> bool {
        self.is_stalled() || !self.held.is_empty() && !self.is_blocked || self.bytes.is_waiting()
    }
}

impl<S: Read + Write, C: Fn() -> Instant> Read for FaultyStream<S, C> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = self.room().min(buffer.len());
        if self.is_stalled() || room == 0 || self.has_ended && self.has_output() {
            self.is_suspended = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        self.is_suspended = false;
        let received = if self.has_ended { 0 } else { self.stream.read(&mut buffer[..room])? };
        if received > 0 {
            // The caller must not take it for a short read.
            self.is_suspended = received == room && room < buffer.len();
            return Ok(received);
        }
        self.has_ended = true;
        let now = (self.clock)();
        self.finish_input(now)?;
        self.send_due(now)?;
        self.is_suspended = self.has_output();
        if self.is_suspended { Err(ErrorKind::WouldBlock.into()) } else { Ok(0) }
    }
}

impl<S: Read + Write, C: Fn() -> Instant> Write for FaultyStream<S, C> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let now = (self.clock)();
        self.update(now);
        self.send_due(now)?;
        if self.is_discarding {
            return Ok(data.len());
        }
        let taken = if self.is_stalled() { 0 } else { self.enqueue(data, now)? };
        self.send_due(now)?;
        if taken == 0 && !data.is_empty() { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Does nothing: the queue is sent when its time has come.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
