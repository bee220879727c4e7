//! One connection that misbehaves on purpose.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use mio::net::TcpStream;
use socket2::SockRef;

use super::Outcome;
use crate::fault::{Effect, Fault, Moment};
use crate::load::client::Client;
use crate::load::pattern::Pattern;
use crate::load::proxy_protocol;
use crate::load::sizes::Sizes;
use crate::load::timer::{SECOND, nanoseconds};
use crate::ready::Ready;
use crate::socket::Socket;

/// Maximum number of reads and writes of one connection in a turn, so that the measured ones do not wait for it.
const STEPS_PER_TURN: usize = 4;
/// A slow reader reads so often in a second.
const READS_PER_SECOND: u64 = 10;

/// What all connections share.
pub(in crate::load) struct Shared<'a> {
    pub(in crate::load) now: u64,
    pub(in crate::load) pattern: &'a Pattern,
    pub(in crate::load) sizes: &'a Sizes,
    pub(in crate::load) buffer: &'a mut [u8],
    pub(in crate::load) scratch: &'a mut [u8],
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::load) enum Progress {
    /// Its socket, or a time.
    Wait(Option<u64>),
    Again,
    /// Nothing: it has ended.
    Ended,
}

/// A connection that sends messages, does not verify what comes back, and misbehaves by its rules.
///
/// A slow reader, and one that stalls or is to stall, sends as fast as the socket takes it. Others have one message in flight.
#[derive(Debug)]
pub(in crate::load) struct FaultedClient {
    stream: Socket,
    pub(in crate::load) pair: u32,
    pub(in crate::load) port: Option<u16>,
    number: u64,
    /// The places of its rules.
    pub(in crate::load) places: Vec<usize>,
    pub(in crate::load) timer: Option<u64>,
    /// How it ended: known before the connection is removed if it waits for the server's FIN.
    pub(in crate::load) outcome: Option<Outcome>,
    proxy_header: Vec<u8>,
    established: u64,
    sent: u64,
    received: u64,
    /// Messages that came back.
    messages: u64,
    bytes_per_second: Option<u64>,
    /// When a slow reader reads next.
    next_read: u64,
    /// A stall that is to come: after how many bytes, and how long.
    stall: Option<(u64, Option<Duration>)>,
    stalled_until: u64,
    reset: Option<Moment>,
    fin: Option<Moment>,
}

impl FaultedClient {
    /// Makes one of a connection that was established at `now`.
    pub(in crate::load) fn new(client: Client, faults: &[Fault], places: Vec<usize>, now: u64) -> Self {
        let mut faulted = Self {
            number: client.verifier.connection(),
            stream: client.stream,
            pair: client.pair,
            port: client.port,
            places,
            timer: None,
            outcome: None,
            proxy_header: client.proxy_header,
            established: now,
            sent: 0,
            received: 0,
            messages: 0,
            bytes_per_second: None,
            next_read: now,
            stall: None,
            stalled_until: 0,
            reset: None,
            fin: None,
        };
        for fault in faults {
            match fault.effect {
                Effect::Rate { bytes_per_second } => faulted.bytes_per_second = Some(bytes_per_second),
                Effect::Stall { after, length } => faulted.stall = Some((after, length)),
                Effect::Reset(moment) => faulted.reset = Some(moment),
                Effect::Fin(moment) => faulted.fin = Some(moment),
                _ => {}
            }
        }
        faulted
    }

    pub(in crate::load) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream.0
    }

    /// Sends and reads as its rules allow.
    pub(in crate::load) fn drive(&mut self, ready: Ready, shared: &mut Shared<'_>) -> Progress {
        // A stalled connection reads neither the reset nor what precedes the FIN.
        if !matches!(self.stream.0.take_error(), Ok(None)) {
            return self.end(Outcome::Reset);
        }
        if ready.is_read_closed() {
            return self.end(Outcome::Closed);
        }
        for _ in 0..STEPS_PER_TURN {
            if self.reset.is_some_and(|moment| self.has_come(moment, shared.now)) {
                // If it fails, FIN is sent instead.
                let _ = SockRef::from(&self.stream.0).set_linger(Some(Duration::ZERO));
                return self.end(Outcome::Own);
            }
            if self.fin.is_some_and(|moment| self.has_come(moment, shared.now)) && self.outcome.is_none() {
                // It fails only if the server has reset the connection; the next read returns that.
                let _ = self.stream.0.shutdown(Shutdown::Write);
                self.outcome = Some(Outcome::Own);
            }
            if let Some((after, length)) = self.stall
                && self.received >= after
            {
                self.stall = None;
                self.stalled_until = length.map_or(u64::MAX, |length| shared.now + nanoseconds(length));
            }
            let is_stalled = self.outcome.is_none() && shared.now < self.stalled_until;
            let step = match self.received {
                _ if !is_stalled => self.step(shared),
                // From the first byte on, it neither sends nor reads.
                0 => Ok(false),
                // The server has bytes to send that are not read.
                _ => self.send(shared),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return Progress::Wait(self.next_time(shared.now)),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return self.end(Outcome::Closed),
                Err(_) => return self.end(Outcome::Reset),
            }
        }
        Progress::Again
    }

    fn end(&mut self, outcome: Outcome) -> Progress {
        self.outcome.get_or_insert(outcome);
        Progress::Ended
    }

    fn has_come(&self, moment: Moment, now: u64) -> bool {
        match moment {
            Moment::Bytes(bytes) => self.received >= bytes,
            Moment::Time(time) => now >= self.time(time),
        }
    }

    /// Returns when `time` has passed since the handshake.
    fn time(&self, time: Duration) -> u64 {
        self.established + nanoseconds(time)
    }

    /// Writes and reads once each. Returns whether the socket took or gave any byte.
    fn step(&mut self, shared: &mut Shared<'_>) -> io::Result<bool> {
        let is_sent = self.outcome.is_none() && self.send(shared)?;
        Ok(self.receive(shared)? || is_sent)
    }

    fn send(&mut self, shared: &mut Shared<'_>) -> io::Result<bool> {
        if !self.proxy_header.is_empty() && !proxy_protocol::send(&mut self.proxy_header, &mut self.stream)? {
            return Ok(false);
        }
        let is_stalled = shared.now < self.stalled_until;
        let is_ahead = self.bytes_per_second.is_some() || self.stall.is_some() || is_stalled;
        let end = if is_ahead { u64::MAX } else { shared.sizes.start(self.number, self.messages + 1) };
        let left = usize::try_from(end.saturating_sub(self.sent)).unwrap_or(usize::MAX);
        let chunk_length = left.min(shared.scratch.len());
        if chunk_length == 0 {
            return Ok(false);
        }
        let chunk = &mut shared.scratch[..chunk_length];
        shared.pattern.fill(self.number, self.sent, chunk);
        let n = unless_blocked(|| self.stream.write(chunk))?.unwrap_or(0);
        self.sent += n as u64;
        Ok(n > 0)
    }

    fn receive(&mut self, shared: &mut Shared<'_>) -> io::Result<bool> {
        let is_discarding = self.outcome.is_some();
        if !is_discarding && shared.now < self.next_read {
            return Ok(false);
        }
        let most = if is_discarding { u64::MAX } else { self.read_size() };
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(shared.buffer.len());
        match unless_blocked(|| self.stream.read(&mut shared.buffer[..length]))? {
            None => Ok(false),
            Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(n) => {
                self.received += n as u64;
                while self.received >= shared.sizes.start(self.number, self.messages + 1) {
                    self.messages += 1;
                }
                if let Some(rate) = self.bytes_per_second {
                    let nanoseconds = (n as u128 * u128::from(SECOND)).div_ceil(rate.into());
                    self.next_read = shared.now + u64::try_from(nanoseconds).unwrap_or(u64::MAX / 4);
                }
                Ok(true)
            }
        }
    }

    /// Returns how many bytes it may read at once: not beyond the next byte count of a rule.
    fn read_size(&self) -> u64 {
        let moments = [self.reset, self.fin].into_iter().flatten().filter_map(|moment| match moment {
            Moment::Bytes(bytes) => Some(bytes),
            Moment::Time(_) => None,
        });
        let counts = moments.chain(self.stall.map(|(after, _)| after));
        let left = counts.map(|count| count.saturating_sub(self.received)).filter(|&left| left > 0).min();
        let slow = self.bytes_per_second.map(|rate| (rate / READS_PER_SECOND).max(1));
        left.into_iter().chain(slow).min().unwrap_or(u64::MAX)
    }

    /// Returns the next time after `now` at which it continues without an event.
    fn next_time(&self, now: u64) -> Option<u64> {
        let moments = [self.reset, self.fin].into_iter().flatten().filter_map(|moment| match moment {
            Moment::Bytes(_) => None,
            Moment::Time(time) => Some(self.time(time)),
        });
        moments.chain([self.next_read, self.stalled_until]).filter(|&at| at > now && at < u64::MAX).min()
    }
}

/// Repeats a call that is interrupted. Returns `None` if it would have blocked.
fn unless_blocked(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(n) => return Ok(Some(n)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::load::client::tests::{client, read_all};

    const NUMBER: u64 = 7;
    const SIZE: usize = 64;
    /// The length of a write of a connection that sends ahead.
    const WRITE: usize = 1024;
    const MILLISECOND: u64 = SECOND / 1000;
    /// When the connection was established.
    const START: u64 = SECOND;

    /// A connection and its server.
    struct Scene {
        client: FaultedClient,
        server: UnixStream,
        pattern: Pattern,
        sizes: Sizes,
    }

    impl Scene {
        fn new(header: &[u8], rules: &[&str]) -> Self {
            let (mut client, server) = client(NUMBER, Some(1));
            client.proxy_header = header.to_vec();
            let faults: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            let client = FaultedClient::new(client, &faults, Vec::new(), START);
            Self { client, server, pattern: Pattern::new(1), sizes: Sizes::new(SIZE as u64, SIZE as u64, 1) }
        }

        /// Returns the progress of one turn.
        fn drive(&mut self, now: u64) -> Progress {
            let (buffer, scratch) = (&mut [0; 4096][..], &mut [0; WRITE][..]);
            let mut shared = Shared { now, pattern: &self.pattern, sizes: &self.sizes, buffer, scratch };
            self.client.drive(Ready::READABLE | Ready::WRITABLE, &mut shared)
        }

        /// Drives it until it waits or has ended.
        fn settle(&mut self, now: u64) -> Progress {
            let mut turns = std::iter::repeat_with(|| self.drive(now)).take(10_000);
            turns.find(|&progress| progress != Progress::Again).unwrap()
        }

        fn pattern(&self, offset: u64, length: usize) -> Vec<u8> {
            let mut bytes = vec![0; length];
            self.pattern.fill(NUMBER, offset, &mut bytes);
            bytes
        }

        /// Returns how many bytes of the server are unread.
        fn count_unread(&mut self) -> usize {
            self.client.stream().peek(&mut [0; 4096]).unwrap_or(0)
        }
    }

    #[test]
    fn a_reset_and_a_fin_come_at_their_time_and_not_before() {
        let due = START + 20 * MILLISECOND;
        for rule in ["reset=20ms", "fin=20ms"] {
            let mut scene = Scene::new(b"", &[rule]);
            for now in [START, START + 1, due - 1] {
                assert_eq!(scene.settle(now), Progress::Wait(Some(due)), "{rule}");
                assert_eq!(scene.client.outcome, None, "{rule}");
            }
            assert_eq!(read_all(&mut scene.server), scene.pattern(0, SIZE));
            let progress = scene.settle(due);
            assert_eq!(scene.client.outcome, Some(Outcome::Own), "{rule}");
            if rule == "reset=20ms" {
                assert_eq!(progress, Progress::Ended);
            } else {
                // It waits for the FIN of the server.
                assert_eq!(progress, Progress::Wait(None));
                assert_eq!(scene.server.read(&mut [0]).unwrap(), 0);
                scene.server.shutdown(Shutdown::Write).unwrap();
                assert_eq!((scene.settle(due + 1), scene.client.outcome), (Progress::Ended, Some(Outcome::Own)));
            }
        }
    }

    #[test]
    fn one_message_at_a_time_follows_the_header_and_no_byte_beyond_a_rule_is_read() {
        let mut scene = Scene::new(b"HEADER", &["reset=100"]);
        assert_eq!(scene.settle(START), Progress::Wait(None));
        assert_eq!(read_all(&mut scene.server), [b"HEADER", &scene.pattern(0, SIZE)[..]].concat());
        scene.server.write_all(&[0; SIZE]).unwrap();
        assert_eq!(scene.settle(START), Progress::Wait(None));
        assert_eq!(read_all(&mut scene.server), scene.pattern(SIZE as u64, SIZE));
        scene.server.write_all(&[0; SIZE]).unwrap();
        assert_eq!((scene.settle(START), scene.client.outcome), (Progress::Ended, Some(Outcome::Own)));
        assert_eq!(scene.count_unread(), 2 * SIZE - 100);
    }

    #[test]
    fn a_stalled_connection_sends_and_does_not_read_until_its_stall_ends() {
        let mut scene = Scene::new(b"", &["stall=64,for=50ms"]);
        assert_eq!(scene.drive(START), Progress::Again);
        assert_eq!(read_all(&mut scene.server), scene.pattern(0, STEPS_PER_TURN * WRITE));
        scene.server.write_all(&[0; 2 * SIZE]).unwrap();
        let end = START + 50 * MILLISECOND;
        // Until the socket is full.
        for now in [START, end - 1] {
            assert_eq!(scene.settle(now), Progress::Wait(Some(end)));
            assert_eq!(scene.count_unread(), SIZE);
        }
        assert!(read_all(&mut scene.server).len() > STEPS_PER_TURN * WRITE);
        // It is ahead of the messages that have come back.
        assert_eq!(scene.settle(end), Progress::Wait(None));
        assert_eq!((scene.count_unread(), read_all(&mut scene.server)), (0, Vec::new()));
    }

    #[test]
    fn a_stall_for_good_waits_for_no_time() {
        let mut scene = Scene::new(b"", &["stall"]);
        scene.server.write_all(&[0; SIZE]).unwrap();
        assert_eq!(scene.settle(START), Progress::Wait(None));
        assert_eq!((scene.count_unread(), read_all(&mut scene.server)), (SIZE, Vec::new()));
    }

    #[test]
    fn a_slow_reader_reads_a_tenth_of_its_rate_and_waits_for_the_time_that_it_takes() {
        let mut scene = Scene::new(b"", &["rate=1KiB"]);
        scene.server.write_all(&[0; 1000]).unwrap();
        // A tenth of 1,024 bytes, rounded down: 102/1024 s.
        let step = 99_609_375;
        for (now, reads) in [(0, 1), (1, 1), (step - 1, 1), (step, 2), (2 * step - 1, 2), (2 * step, 3)] {
            assert_eq!(scene.settle(START + now), Progress::Wait(Some(START + step * reads)));
            assert_eq!(scene.count_unread(), 1000 - 102 * usize::try_from(reads).unwrap());
        }
    }

    #[test]
    fn without_a_rate_or_a_byte_count_a_read_takes_all_there_is() {
        let mut scene = Scene::new(b"", &["fin=1h"]);
        scene.server.write_all(&[0; 4000]).unwrap();
        assert_eq!(scene.drive(START), Progress::Again);
        assert_eq!(scene.count_unread(), 0);
    }

    #[test]
    fn a_fin_and_a_reset_of_the_server_are_told_apart() {
        let mut scene = Scene::new(b"", &["rate=1KiB"]);
        scene.server.shutdown(Shutdown::Write).unwrap();
        assert_eq!((scene.settle(START), scene.client.outcome), (Progress::Ended, Some(Outcome::Closed)));

        let mut scene = Scene::new(b"", &["rate=1KiB"]);
        assert_eq!(scene.drive(START), Progress::Again);
        // With bytes that are not read, a close is a reset.
        scene.server = UnixStream::pair().unwrap().0;
        assert_eq!((scene.settle(START), scene.client.outcome), (Progress::Ended, Some(Outcome::Reset)));
    }

    #[test]
    fn an_interrupted_call_is_repeated() {
        use io::ErrorKind::{ConnectionReset, Interrupted, WouldBlock};
        for (result, expected) in
            [(Ok(7), Ok(Some(7))), (Err(WouldBlock), Ok(None)), (Err(ConnectionReset), Err(ConnectionReset))]
        {
            let mut results = [Err(Interrupted), Err(Interrupted), result].into_iter();
            let call = || results.next().unwrap_or(Err(WouldBlock)).map_err(io::Error::from);
            assert_eq!(unless_blocked(call).map_err(|error| error.kind()), expected);
        }
    }
}
