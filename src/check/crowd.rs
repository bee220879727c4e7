//! Thousands of clients on one reactor.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::SockRef;

use super::attempt::{Attempt, Outcome, own_failure};
use super::problem::Problem;
use crate::{Handler, INTEREST, Next, Reactor, Ready};

/// Events that a wait takes at once.
const EVENTS: usize = 1024;
/// Length of each client's message.
const MESSAGE: usize = 8;

/// Opens `clients` connections, of which at most `waiting` wait to be served for the first time, and expects each one's own bytes back
/// on it, twice: once it is connected, and once all are. Then resets them all.
pub(super) fn gather(attempt: &Attempt<'_>, clients: usize, waiting: usize) -> Outcome {
    let mut reactor = Reactor::new(EVENTS).map_err(own_failure)?;
    let mut crowd = Crowd::default();
    let outcome = crowd.gather(attempt, &mut reactor, clients, waiting);
    // No port is left in TIME_WAIT for a minute.
    for (_, member) in reactor.iter_mut() {
        let _ = SockRef::from(&member.stream).set_linger(Some(Duration::ZERO));
    }
    attempt.record_wait(crowd.longest_wait);
    outcome
}

struct Member {
    stream: TcpStream,
    message: [u8; MESSAGE],
    /// When its connect, or its message, began.
    since: Instant,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Asked { received: usize },
    Served,
    Failed,
}

#[derive(Default)]
struct Crowd {
    served: usize,
    failed: usize,
    /// What happened to the first of those that failed.
    example: Option<io::Error>,
    longest_wait: Duration,
    /// When a member was last served.
    progress: Option<Instant>,
}

impl Crowd {
    fn gather(
        &mut self,
        attempt: &Attempt<'_>,
        reactor: &mut Reactor<Member>,
        clients: usize,
        waiting: usize,
    ) -> Outcome {
        for number in 0..clients {
            while number - self.served - self.failed >= waiting && Instant::now() < attempt.deadline() {
                self.turn(attempt, reactor)?;
            }
            // More connects would be ahead of the next client in the accept queue.
            if Instant::now() >= attempt.deadline() {
                break;
            }
            let stream = attempt.begin_connect()?;
            let mut message = [0; MESSAGE];
            let _ = writeln!(&mut message[..], "{number:07x}");
            let member = |stream| Member { stream, message, since: Instant::now(), stage: Stage::Connecting };
            reactor.insert(stream, INTEREST, member).map_err(own_failure)?;
        }
        self.serve_all(attempt, reactor, clients)?;
        self.served = 0;
        for (_, member) in reactor.iter_mut() {
            self.ask(member);
        }
        self.serve_all(attempt, reactor, clients)
    }

    /// Waits until all are served.
    fn serve_all(&mut self, attempt: &Attempt<'_>, reactor: &mut Reactor<Member>, clients: usize) -> Outcome {
        while self.served + self.failed < clients && Instant::now() < attempt.deadline() {
            self.turn(attempt, reactor)?;
        }
        if self.served == clients {
            return Ok(());
        }
        let limit = attempt.process().ok().and_then(|process| process.descriptor_limit()?.current);
        let problem = Problem::unserved(self.served, clients, self.example.as_ref(), limit);
        match self.progress {
            Some(since) if self.failed == 0 => Err(attempt.expired(since, problem)),
            _ => Err(problem.into()),
        }
    }

    fn turn(&mut self, attempt: &Attempt<'_>, reactor: &mut Reactor<Member>) -> Outcome {
        attempt.check_interrupt()?;
        reactor.wait(Some(attempt.slice())).map_err(own_failure)?;
        reactor.serve(1, self);
        Ok(())
    }

    /// Sends a member's message: 8 bytes always fit.
    fn ask(&mut self, member: &mut Member) {
        member.since = Instant::now();
        member.stage = Stage::Asked { received: 0 };
        if let Err(error) = (&member.stream).write_all(&member.message) {
            self.fail(member, error);
        }
    }

    fn fail(&mut self, member: &mut Member, error: io::Error) {
        member.stage = Stage::Failed;
        self.failed += 1;
        self.example.get_or_insert(error);
    }

    fn connected(&mut self, member: &mut Member) {
        match member.stream.take_error() {
            Ok(None) if SockRef::from(&member.stream).peer_addr().is_ok() => {
                self.longest_wait = self.longest_wait.max(member.since.elapsed());
                self.ask(member);
            }
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => self.fail(member, error),
        }
    }

    /// Reads until the member is served, or nothing is there.
    fn read(&mut self, member: &mut Member) {
        while let Stage::Asked { received } = member.stage {
            let mut buffer = [0; MESSAGE];
            let expected = &member.message[received..];
            match (&member.stream).read(&mut buffer[received..]) {
                Ok(0) => self.fail(member, io::ErrorKind::UnexpectedEof.into()),
                Ok(length) if buffer[received..received + length] != expected[..length] => {
                    self.fail(member, io::ErrorKind::InvalidData.into());
                }
                Ok(length) if received + length < MESSAGE => {
                    member.stage = Stage::Asked { received: received + length };
                }
                Ok(_) => {
                    member.stage = Stage::Served;
                    self.served += 1;
                    self.progress = Some(Instant::now());
                    self.longest_wait = self.longest_wait.max(member.since.elapsed());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.fail(member, error),
            }
        }
    }
}

impl Handler<Member> for Crowd {
    type Act = Infallible;

    fn ready(&mut self, _: usize, member: &mut Member, _: Ready) -> Next<Infallible> {
        if member.stage == Stage::Connecting {
            self.connected(member);
        }
        self.read(member);
        Next::Wait
    }

    fn act(&mut self, _: &mut Reactor<Member>, _: usize, never: Infallible) -> Next<Infallible> {
        match never {}
    }
}
