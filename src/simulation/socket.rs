//! A modelled socket, as an edge-triggered epoll(7) sees it, and the peer at its other end.

use std::io::{self, ErrorKind, Read, Write};

use crate::ready::Ready;

/// Bytes that the kernel takes before a write blocks: not a multiple of the usual buffers, so that writes are short.
const SEND_BUFFER: u64 = 14;

/// Bytes are known by their places: nothing is stored.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Socket {
    /// Tells this stream's bytes from another's.
    id: usize,
    /// What the peer sends first, and does not come back.
    pub(crate) header: Vec<u8>,
    /// Bytes that the peer has sent, urgent ones apart, and how many of them were read.
    pub(crate) sent: u64,
    pub(crate) read: u64,
    /// Where a read stops, because an urgent byte is there.
    urgent: Option<u64>,
    pub(crate) has_ended: bool,
    pub(crate) is_reset: bool,
    /// What the next call returns.
    pub(crate) error: Option<i32>,
    /// Bytes that were written, and how many of them the peer has received.
    pub(crate) written: u64,
    pub(crate) received: u64,
    /// Each byte that was written was the next one that the peer had sent.
    pub(crate) is_faithful: bool,
    /// A write has blocked: only then is room an event.
    is_blocked: bool,
    /// It is writable only when the peer has received everything (`TCP_NOTSENT_LOWAT`).
    is_writable_when_empty: bool,
    /// Something happened that was not reported.
    pub(crate) has_edge: bool,
    /// Most bytes of one read and of one write, and calls that fail with `EINTR` before the next one succeeds.
    pub(crate) read_max: usize,
    pub(crate) write_max: usize,
    pub(crate) interrupts: usize,
}

impl Socket {
    pub(crate) fn new(id: usize) -> Self {
        Self {
            id,
            header: Vec::new(),
            sent: 0,
            read: 0,
            urgent: None,
            has_ended: false,
            is_reset: false,
            error: None,
            written: 0,
            received: 0,
            is_faithful: true,
            is_blocked: false,
            is_writable_when_empty: false,
            // Registering reports the present state.
            has_edge: true,
            read_max: usize::MAX,
            write_max: usize::MAX,
            interrupts: 0,
        }
    }

    /// Returns the byte at a place of the stream, its header included.
    pub(crate) fn byte_at(&self, place: u64) -> u8 {
        let header = self.header.len() as u64;
        match self.header.get(usize::try_from(place).unwrap_or(usize::MAX)) {
            Some(&byte) => byte,
            None => ((place - header + 101 * self.id as u64) % 251) as u8,
        }
    }

    pub(crate) fn send(&mut self, length: u64) {
        if length > 0 && !self.is_gone() {
            self.sent += length;
            self.has_edge = true;
        }
    }

    /// Sends a byte out of band: a read stops there. A second one would make the first an ordinary byte.
    pub(crate) fn send_urgent(&mut self) {
        if self.urgent.is_none() && !self.is_gone() {
            self.urgent = Some(self.sent);
            self.has_edge = true;
        }
    }

    /// Receives some bytes of the echo.
    pub(crate) fn receive(&mut self, length: u64) {
        self.received += length.min(self.in_flight());
        if self.is_blocked && self.is_writable() {
            self.is_blocked = false;
            self.has_edge = true;
        }
    }

    pub(crate) fn half_close(&mut self) {
        self.has_edge |= !self.has_ended;
        self.has_ended = true;
    }

    pub(crate) fn reset(&mut self) {
        self.has_edge |= !self.is_reset;
        self.is_reset = true;
    }

    pub(crate) fn fail(&mut self, errno: i32) {
        self.error = Some(errno);
        self.has_edge = true;
    }

    /// Is writable only when the peer has received everything, and reports that.
    pub(crate) fn await_empty(&mut self) {
        (self.is_writable_when_empty, self.is_blocked, self.has_edge) = (true, true, true);
    }

    /// Returns the next bytes, and leaves them.
    pub(crate) fn peek(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (read, urgent) = (self.read, self.urgent);
        let peeked = self.read(buffer);
        (self.read, self.urgent) = (read, urgent);
        peeked
    }

    /// Returns whether the peer sends nothing more.
    fn is_gone(&self) -> bool {
        self.has_ended || self.is_reset
    }

    /// Returns how many bytes of the echo the peer has not received.
    pub(crate) fn in_flight(&self) -> u64 {
        self.written - self.received
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.is_gone() || self.error.is_some() || self.sent > self.read
    }

    /// Linux calls a socket writable when a third of its buffer is free.
    pub(crate) fn is_writable(&self) -> bool {
        let most = if self.is_writable_when_empty { 0 } else { SEND_BUFFER * 2 / 3 };
        self.is_reset || self.error.is_some() || self.in_flight() <= most
    }

    /// Returns the readiness, once after something has happened.
    pub(crate) fn report(&mut self) -> Ready {
        if std::mem::take(&mut self.has_edge) { self.readiness() } else { Ready::NONE }
    }

    pub(crate) fn readiness(&self) -> Ready {
        let flags = [
            (Ready::READABLE, self.is_readable()),
            (Ready::WRITABLE, self.is_writable()),
            (Ready::READ_CLOSED, self.is_gone()),
            (Ready::PRIORITY, self.urgent.is_some()),
        ];
        flags.into_iter().filter(|&(_, set)| set).fold(Ready::NONE, |ready, (flag, _)| ready | flag)
    }

    fn begin_call(&mut self) -> io::Result<()> {
        if self.interrupts > 0 {
            self.interrupts -= 1;
            return Err(ErrorKind::Interrupted.into());
        }
        self.error.take().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.begin_call()?;
        if self.urgent == Some(self.read) {
            self.urgent = None;
        }
        let end = self.urgent.unwrap_or(self.sent);
        let length = usize::try_from(end - self.read).unwrap_or(usize::MAX).min(buffer.len()).min(self.read_max);
        for (place, byte) in (self.read..).zip(&mut buffer[..length]) {
            *byte = self.byte_at(place);
        }
        self.read += length as u64;
        match length {
            0 if self.is_reset => Err(ErrorKind::ConnectionReset.into()),
            0 if !self.has_ended => Err(ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.begin_call()?;
        if self.is_reset {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let room = usize::try_from(SEND_BUFFER - self.in_flight()).unwrap_or(0);
        let length = data.len().min(room).min(self.write_max);
        if length == 0 {
            self.is_blocked = true;
            return Err(ErrorKind::WouldBlock.into());
        }
        let place = self.header.len() as u64 + self.written;
        self.is_faithful &= (place..).zip(&data[..length]).all(|(place, &byte)| byte == self.byte_at(place));
        self.written += length as u64;
        self.is_faithful &= place + length as u64 <= self.read;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
