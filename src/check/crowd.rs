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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::net::{self, Ipv4Addr, TcpListener};
    use std::sync::atomic::Ordering;

    use socket2::{Domain, Socket, Type};

    use super::super::attempt::Stop;
    use super::super::scene::Scene;
    use super::*;

    fn member(stream: net::TcpStream) -> Member {
        let (stream, message) = (TcpStream::from_std(stream), *b"000001f\n");
        Member { stream, message, since: Instant::now(), stage: Stage::Connecting }
    }

    /// Returns a member that has sent its message, and the server's end. What one end of a Unix socket sends is there at once.
    fn asked(crowd: &mut Crowd) -> (Member, net::TcpStream) {
        let (client, server) = Scene::unix().pair();
        let mut member = member(client);
        crowd.connected(&mut member);
        (member, server)
    }

    #[test]
    fn a_reply_in_parts_is_one_reply() {
        let mut crowd = Crowd::default();
        let (mut member, mut server) = asked(&mut crowd);
        let mut message = [0; MESSAGE];
        server.read_exact(&mut message).unwrap();
        for part in [&message[..3], &message[3..5], &message[5..]] {
            assert_eq!((crowd.served, crowd.failed), (0, 0));
            server.write_all(part).unwrap();
            crowd.read(&mut member);
        }
        assert_eq!((crowd.served, crowd.failed), (1, 0));
    }

    #[test]
    fn a_reply_of_another_client_is_a_failure() {
        let mut crowd = Crowd::default();
        let (mut member, mut server) = asked(&mut crowd);
        for part in [b"000001", &b"e\n"[..]] {
            assert_eq!((crowd.served, crowd.failed), (0, 0));
            server.write_all(part).unwrap();
            crowd.read(&mut member);
        }
        assert_eq!((crowd.served, crowd.failed), (0, 1));
        assert_eq!(crowd.example.unwrap().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_example_is_the_first_error_of_the_first_failure() {
        let mut crowd = Crowd::default();
        // The first server closes with the message unread, and the second one has read it.
        let (mut first, server) = asked(&mut crowd);
        drop(server);
        let (mut second, mut server) = asked(&mut crowd);
        server.read_exact(&mut [0; MESSAGE]).unwrap();
        drop(server);
        crowd.read(&mut first);
        crowd.read(&mut second);
        assert_eq!((crowd.served, crowd.failed), (0, 2));
        assert_eq!(crowd.example.unwrap().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_connect_in_progress_is_no_failure() {
        let unconnected = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        unconnected.set_nonblocking(true).unwrap();
        let mut crowd = Crowd::default();
        let mut member = member(unconnected.into());
        crowd.connected(&mut member);
        assert!(member.stage == Stage::Connecting);
        assert_eq!(crowd.failed, 0);
    }

    #[test]
    fn no_more_clients_wait_than_may() {
        let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let scene = Scene::of(silent.local_addr().unwrap().into());
        // It ends as soon as it has to wait.
        scene.interrupt.store(true, Ordering::Release);
        for waiting in [1, 3] {
            let mut reactor = Reactor::new(1).unwrap();
            let outcome = Crowd::default().gather(&scene.attempt(), &mut reactor, 5, waiting);
            assert!(matches!(outcome, Err(Stop::Interrupted)), "{outcome:?}");
            assert_eq!(reactor.iter_mut().count(), waiting);
        }
    }

    #[test]
    fn a_crowd_that_is_still_being_served_at_the_end_is_slow() {
        let scene = Scene::tcp();
        let outcome = |failed| {
            let mut crowd = Crowd { served: 1, failed, progress: Some(Instant::now()), ..Crowd::default() };
            crowd.serve_all(&scene.attempt_at_its_end(), &mut Reactor::new(1).unwrap(), 3)
        };
        assert!(matches!(outcome(0), Err(Stop::Slow)));
        assert!(matches!(outcome(1), Err(Stop::Fail(_))));
    }
}
