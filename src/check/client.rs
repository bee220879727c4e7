//! A client of one connection, whose every wait has a limit.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use socket2::SockRef;

use super::attempt::{Attempt, Outcome, Stop, own_failure};
use super::problem::Problem;

/// A client that could send nothing for this long is stalled: the server has stopped reading.
const STALL: Duration = Duration::from_millis(300);
/// Most bytes of one read.
const READ_MAX: usize = 64 * 1024;

pub(super) struct Client<'a> {
    attempt: &'a Attempt<'a>,
    stream: TcpStream,
}

impl<'a> Client<'a> {
    pub(super) fn new(attempt: &'a Attempt<'a>, stream: TcpStream) -> Self {
        Self { attempt, stream }
    }

    /// Sends `message`, and expects it back.
    pub(super) fn exchange(&mut self, message: &[u8]) -> Outcome {
        self.send(message)?;
        self.receive(message)
    }

    /// Sends all of `message`.
    pub(super) fn send(&mut self, message: &[u8]) -> Outcome {
        let mut sent = 0;
        while sent < message.len() {
            match self.try_send(&message[sent..], sent)? {
                0 => self.wait(PollFlags::OUT, || Problem::not_taken(sent, message.len()))?,
                length => sent += length,
            }
        }
        Ok(())
    }

    /// Sends without reading until everything is taken, or nothing for [`STALL`]. Returns the number of bytes taken.
    ///
    /// In both cases the server has had that long to do something with them.
    pub(super) fn send_until_stalled(&mut self, message: &[u8]) -> Result<usize, Stop> {
        let mut sent = 0;
        while sent < message.len() {
            match self.try_send(&message[sent..], sent)? {
                0 => {
                    let until = (Instant::now() + STALL).min(self.attempt.deadline());
                    if !self.attempt.wait(&self.stream, PollFlags::OUT, until)? {
                        return Ok(sent);
                    }
                }
                length => sent += length,
            }
        }
        self.attempt.sleep(STALL)?;
        Ok(sent)
    }

    /// Expects exactly these bytes next.
    pub(super) fn receive(&mut self, expected: &[u8]) -> Outcome {
        self.receive_after(0, expected)
    }

    /// Expects the bytes of `message` from `received` on.
    fn receive_after(&mut self, mut received: usize, message: &[u8]) -> Outcome {
        while received < message.len() {
            match self.try_receive(received, message)? {
                0 => self.wait(PollFlags::IN, || Problem::silent(received, message.len()))?,
                length => received += length,
            }
        }
        Ok(())
    }

    /// Reads all that is still to come of `message`, of which `sent` bytes are sent, and sends the rest meanwhile.
    pub(super) fn finish(&mut self, message: &[u8], mut sent: usize) -> Outcome {
        let mut received = 0;
        while sent < message.len() {
            let written = self.try_send(&message[sent..], received)?;
            sent += written;
            let read = self.try_receive(received, &message[..sent])?;
            received += read;
            if written == 0 && read == 0 {
                // With everything read, only room to send helps.
                let flags = if received < sent { PollFlags::IN | PollFlags::OUT } else { PollFlags::OUT };
                self.wait(flags, || Problem::silent(received, message.len()))?;
            }
        }
        self.receive_after(received, message)
    }

    /// Expects the server's FIN next, and no byte before it.
    pub(super) fn expect_end(&mut self) -> Outcome {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(Problem::surplus().into()),
                Err(error) if is_transient(&error) => self.wait(PollFlags::IN, Problem::not_closed)?,
                Err(error) if is_reset(&error) && self.attempt.is_unix() => {
                    return Err(Problem::closed_unread_at_the_end().into());
                }
                Err(error) if is_reset(&error) => return Err(Problem::reset_at_the_end().into()),
                Err(error) => return Err(Problem::failed(&error).into()),
            }
        }
    }

    /// Sends a few bytes, and leaves it to the reply whether they were taken.
    pub(super) fn offer(&self, message: &[u8]) {
        let _ = (&self.stream).write(message);
    }

    /// Returns whether the server has sent something or closed.
    pub(super) fn is_answered(&self) -> bool {
        self.stream.peek(&mut [0]).map_or_else(|error| !is_transient(&error), |_| true)
    }

    /// Waits until the server has sent something or closed. Returns whether it did.
    pub(super) fn await_answer(&self) -> Result<bool, Stop> {
        let start = Instant::now();
        let is_answered = self.attempt.wait(&self.stream, PollFlags::IN, self.attempt.deadline())?;
        if is_answered {
            self.attempt.record_wait(start.elapsed());
        }
        Ok(is_answered)
    }

    /// Sends what is taken at once, and discards what has come.
    pub(super) fn pump(&mut self, bytes: &[u8]) -> Outcome {
        self.try_send(bytes, 0)?;
        match self.stream.read(&mut vec![0; READ_MAX]) {
            Ok(0) => Err(Problem::closed(0, bytes.len()).into()),
            Ok(_) => Ok(()),
            Err(error) if is_transient(&error) => Ok(()),
            Err(error) => Err(Problem::failed(&error).into()),
        }
    }

    /// Sends FIN, and keeps reading possible.
    pub(super) fn half_close(&self) {
        // Fails if the server has reset the connection, which the next read reports.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends `message` and FIN as one segment, if `message` fits. A Unix socket has no segments.
    pub(super) fn send_with_fin(&mut self, message: &[u8]) -> Outcome {
        if !self.attempt.is_unix() {
            SockRef::from(&self.stream).set_tcp_cork(true).map_err(own_failure)?;
        }
        self.send(message)?;
        self.half_close();
        Ok(())
    }

    /// Sends FIN, and discards what comes until the server closes, nothing comes for [`STALL`], or the time is over: a close with
    /// unread input would send RST, which is another check.
    pub(super) fn leave(self) -> Outcome {
        self.take_the_rest(STALL)
    }

    /// Leaves, and ends when nothing comes for `silence`.
    fn take_the_rest(mut self, silence: Duration) -> Outcome {
        self.half_close();
        let mut buffer = vec![0; READ_MAX];
        // A server that never stops sending must not keep the check.
        while Instant::now() < self.attempt.deadline() {
            self.attempt.check_interrupt()?;
            match self.stream.read(&mut buffer) {
                Ok(1..) => {}
                Err(error) if is_transient(&error) => {
                    let until = (Instant::now() + silence).min(self.attempt.deadline());
                    if !self.attempt.wait(&self.stream, PollFlags::IN, until)? {
                        break;
                    }
                }
                Ok(0) | Err(_) => break,
            }
        }
        Ok(())
    }

    /// Closes with RST. On a Unix socket it is a close, after which the server's next read or write may fail in the same way.
    pub(super) fn reset(self) {
        // If it fails, the close sends FIN.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }

    /// Returns how many bytes were taken: 0 if the buffers are full. `received` is for the words of a failure.
    fn try_send(&mut self, bytes: &[u8], received: usize) -> Result<usize, Stop> {
        match self.stream.write(bytes) {
            Ok(length) => Ok(length),
            Err(error) if is_transient(&error) => Ok(0),
            Err(error) if is_reset(&error) => Err(self.reset_problem(&error, received, received + bytes.len()).into()),
            Err(error) => Err(Problem::failed(&error).into()),
        }
    }

    /// Returns how many bytes came of `message`, of which `received` were there: 0 if there is nothing to read now.
    fn try_receive(&mut self, received: usize, message: &[u8]) -> Result<usize, Stop> {
        let left = &message[received..];
        let mut buffer = vec![0; left.len().min(READ_MAX)];
        if buffer.is_empty() {
            return Ok(0);
        }
        let expected = message.len();
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(Problem::closed(received, expected).into()),
            Ok(length) => match (0..length).find(|&at| buffer[at] != left[at]) {
                Some(at) => Err(Problem::differs(received + at, left[at], buffer[at]).into()),
                None => Ok(length),
            },
            Err(error) if is_transient(&error) => Ok(0),
            Err(error) if is_reset(&error) => Err(self.reset_problem(&error, received, expected).into()),
            Err(error) => Err(Problem::failed(&error).into()),
        }
    }

    fn reset_problem(&self, error: &io::Error, received: usize, expected: usize) -> Problem {
        match error.kind() {
            _ if !self.attempt.is_unix() => Problem::reset(received, expected),
            // A Unix socket takes no byte once the server has closed, even if the server has read everything.
            io::ErrorKind::BrokenPipe => Problem::closed(received, expected),
            _ => Problem::closed_unread(received, expected),
        }
    }

    /// Waits until the socket is ready, at most until the attempt's deadline.
    fn wait(&self, flags: PollFlags, problem: impl FnOnce() -> Problem) -> Outcome {
        let start = Instant::now();
        if !self.attempt.wait(&self.stream, flags, self.attempt.deadline())? {
            return Err(self.attempt.expired(start, problem()));
        }
        self.attempt.record_wait(start.elapsed());
        Ok(())
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::Ipv4Addr;
    use std::thread;

    use socket2::{Domain, Socket, Type};

    use super::super::attempt::HELLO;
    use super::super::scene::{Scene, words};
    use super::*;

    /// Returns both ends of a connection after the server's has ended it abruptly.
    fn after_a_reset<'a>(scene: &Scene, attempt: &'a Attempt<'a>) -> Client<'a> {
        let (stream, mut server) = scene.pair();
        let mut client = Client::new(attempt, stream);
        client.send(HELLO).unwrap();
        // With an unread byte, a Unix socket reports a reset, and TCP sends RST.
        server.read_exact(&mut [0]).unwrap();
        drop(server);
        client
    }

    #[test]
    fn an_abrupt_end_is_reported_in_the_words_of_the_transport() {
        for (scene, middle, end) in [
            (
                Scene::tcp(),
                "the server reset the connection (RST) after 0 of 5 bytes had come back",
                "everything came back, but at the end the server sent RST instead of FIN",
            ),
            (
                Scene::unix(),
                "the server closed without reading all, after 0 of 5 bytes had come back",
                "everything came back, but at the end the server closed without reading all",
            ),
        ] {
            let attempt = scene.attempt();
            assert_eq!(words(after_a_reset(&scene, &attempt).receive(HELLO)), middle);
            assert_eq!(words(after_a_reset(&scene, &attempt).expect_end()), end);
        }
    }

    #[test]
    fn an_error_that_is_no_reset_is_reported_as_it_is() {
        let scene = Scene::tcp();
        let attempt = scene.attempt();
        let new = || Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // It does not listen.
        let closed = new();
        closed.bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let refused = || {
            let socket = new();
            socket.set_nonblocking(true).unwrap();
            socket.connect(&closed.local_addr().unwrap()).unwrap_err();
            assert!(attempt.wait(&socket, PollFlags::IN, attempt.deadline()).unwrap());
            Client::new(&attempt, socket.into())
        };
        let expected = format!("error of the connection: {}", io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(words(refused().send(HELLO)), expected);
        assert_eq!(words(refused().receive(HELLO)), expected);
        assert_eq!(words(refused().expect_end()), expected);
    }

    #[test]
    fn a_wrong_byte_is_reported_with_its_place() {
        let scene = Scene::tcp();
        let attempt = scene.attempt();
        let (stream, mut server) = scene.pair();
        server.write_all(b"hoja\n").unwrap();
        let outcome = Client::new(&attempt, stream).receive(b"hola\n");
        assert_eq!(words(outcome), "byte 2 differs: 0x6c was sent, 0x6a came back");
    }

    #[test]
    fn a_server_that_neither_reads_nor_sends_is_not_waited_for_past_the_end() {
        let scene = Scene::unix();
        let attempt = scene.attempt_at_its_end();
        let (stream, _server) = scene.pair();
        let mut client = Client::new(&attempt, stream);
        let message = vec![b'x'; 8 << 20];
        let sent = client.send_until_stalled(&message).unwrap();
        assert!((1..message.len()).contains(&sent), "{sent}");
        let outcome = client.finish(&message, sent);
        assert!(matches!(outcome, Err(Stop::Slow)), "{outcome:?}");
    }

    #[test]
    fn an_answer_is_awaited_and_stays_to_be_read() {
        let scene = Scene::tcp();
        let (attempt, at_its_end) = (scene.attempt(), scene.attempt_at_its_end());
        let (stream, mut server) = scene.pair();
        let mut client = Client::new(&attempt, stream);
        assert!(!client.is_answered());
        server.write_all(HELLO).unwrap();
        assert!(client.await_answer().unwrap());
        assert!(client.is_answered());
        client.receive(HELLO).unwrap();
        assert!(!client.is_answered());
        drop(server);
        assert!(client.await_answer().unwrap());
        assert!(client.is_answered(), "a close is an answer");
        let (stream, _silent) = scene.pair();
        assert!(!Client::new(&at_its_end, stream).await_answer().unwrap());
    }

    #[test]
    fn a_client_that_leaves_takes_what_the_server_still_sends() {
        let scene = Scene::unix();
        let attempt = scene.attempt();
        let (stream, mut server) = scene.pair();
        // It fails if the client closes before it has taken all that does not fit in the buffers.
        let sending = thread::spawn(move || {
            server.read_to_end(&mut Vec::new())?;
            server.write_all(&vec![b'x'; 1 << 20])
        });
        // Longer than the thread is silent on a busy machine.
        Client::new(&attempt, stream).take_the_rest(Duration::from_secs(60)).unwrap();
        sending.join().unwrap().unwrap();
    }

    #[test]
    fn a_client_that_resets_sends_no_fin() {
        let scene = Scene::tcp();
        let attempt = scene.attempt();
        let (stream, mut server) = scene.pair();
        Client::new(&attempt, stream).reset();
        assert_eq!(server.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
