//! One connection of a run: what it has sent, what has come back, and what is still owed to it.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

use super::pattern::Pattern;
use super::verify::{Checked, Verifier};
use crate::ready::{Ready, SHORT_READ_DRAINS};
use crate::socket::Socket;

/// Bytes of the two buffers that all connections share.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and a byte of the 256")]
pub(super) struct Client {
    pub(super) stream: Socket,
    pub(super) stage: Stage,
    readable: bool,
    writable: bool,
    /// The end of the stream or urgent data was reported: only a read that finds nothing is the last.
    reads_to_the_end: bool,
    /// An answer came late, as `hold` has it.
    pub(super) is_late: bool,
    /// The local port, where it was chosen here.
    pub(super) port: Option<u16>,
    /// Which source goes to which target.
    pub(super) pair: u32,
    /// Its place in the open loop's order, and the first of its messages there.
    pub(super) lane: u32,
    pub(super) first_in_lane: u64,
    /// When the stage began, in nanoseconds of the run.
    pub(super) since: u64,
    pub(super) verifier: Verifier,
    /// Bytes sent.
    sent: u64,
    /// Messages due so far, those of them that the next report has, answered so far, and found to have to wait.
    pub(super) released: u64,
    pub(super) reported: u64,
    pub(super) done: u64,
    deferred: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The handshake is under way.
    Connecting,
    /// The first message is.
    Opening,
    /// At least one message came back right.
    Steady,
    /// Nothing more is sent; its turn to be closed has yet to come.
    Finished,
    /// FIN is sent; the other's is awaited.
    Closing,
}

impl Stage {
    /// Whether what it was measured for is behind it.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Closing)
    }
}

/// What a read has brought.
pub(super) enum Received {
    /// So many bytes, all right.
    Right,
    /// Bytes that may be wrong, once more is known.
    Undecided,
    Wrong(super::verify::Fault),
    /// The other end's FIN.
    Ended,
    Blocked,
    Failed(io::Error),
}

impl Client {
    pub(super) fn new(stream: TcpStream, number: u64, pair: u32, port: Option<u16>, now: u64) -> Self {
        Self {
            stream: Socket(stream),
            stage: Stage::Connecting,
            readable: false,
            writable: false,
            reads_to_the_end: false,
            is_late: false,
            port,
            pair,
            lane: 0,
            first_in_lane: 1,
            since: now,
            verifier: Verifier::new(number),
            sent: 0,
            released: 0,
            reported: 0,
            done: 0,
            deferred: 0,
        }
    }

    pub(super) fn notice(&mut self, ready: Ready) {
        self.readable |= ready.is_readable();
        self.writable |= ready.is_writable();
        self.reads_to_the_end |= ready.outlasts_short_read();
    }

    /// Messages that are due and not answered.
    pub(super) fn outstanding(&self) -> u64 {
        self.released - self.done
    }

    /// Whether any byte of message `index` is on its way.
    pub(super) fn has_begun(&self, index: u64, size: u64) -> bool {
        self.sent > index * size
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends what is due, as far as `pipeline` and the socket allow; answers how many messages have to wait that had not before.
    pub(super) fn send(&mut self, pattern: &Pattern, size: u64, pipeline: u64, scratch: &mut [u8]) -> io::Result<u64> {
        let want = self.released.min(self.done.saturating_add(pipeline)) * size;
        while self.writable && self.sent < want {
            let length = usize::try_from(want - self.sent).map_or(scratch.len(), |left| left.min(scratch.len()));
            let chunk = &mut scratch[..length];
            pattern.fill(self.verifier.connection(), self.sent, chunk);
            match self.stream.write(chunk) {
                Ok(n) => self.sent += n as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.sent == self.released * size {
            return Ok(0);
        }
        let first_waiting = self.sent.div_ceil(size).max(self.deferred);
        self.deferred = self.released;
        Ok(self.released - first_waiting)
    }

    /// Reads once, and verifies what came.
    pub(super) fn receive(&mut self, pattern: &Pattern, opened: u64, buffer: &mut [u8]) -> Received {
        if !self.readable {
            return Received::Blocked;
        }
        match self.stream.read(buffer) {
            Ok(0) => Received::Ended,
            Ok(n) => {
                if SHORT_READ_DRAINS && n < buffer.len() && !self.reads_to_the_end {
                    self.readable = false;
                }
                match self.verifier.receive(pattern, &buffer[..n], self.sent, opened) {
                    Checked::Right => Received::Right,
                    Checked::Undecided => Received::Undecided,
                    Checked::Wrong(fault) => Received::Wrong(fault),
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
