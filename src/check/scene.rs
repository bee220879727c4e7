//! For tests: an attempt and its sockets, without a server.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::attempt::{Attempt, Outcome, Stop};
use super::target::Target;
use super::words::Language;
use crate::socket_address::{AnyAddress, UnixAddress};

/// What an attempt borrows.
pub(super) struct Scene {
    pub(super) target: Target,
    pub(super) interrupt: AtomicBool,
    /// The sockets of a full backlog.
    _backlog: Option<(TempDir, Vec<Socket>)>,
}

impl Scene {
    pub(super) fn tcp() -> Self {
        Self::of(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)).into())
    }

    pub(super) fn unix() -> Self {
        Self::of(UnixAddress::new("@ecoloop").unwrap().into())
    }

    pub(super) fn of(address: AnyAddress) -> Self {
        let target = Target { address, process: None };
        Self { target, interrupt: AtomicBool::default(), _backlog: None }
    }

    /// Returns the scene of a Unix socket whose backlog is full.
    pub(super) fn full_backlog() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = AnyAddress::from(UnixAddress::new(folder.path().join("full.sock")).unwrap());
        let new = || Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let listener = new();
        listener.bind(&address.socket_address().unwrap()).unwrap();
        listener.listen(0).unwrap();
        let mut sockets = vec![listener];
        loop {
            let waiting = new();
            waiting.set_nonblocking(true).unwrap();
            match waiting.connect(&address.socket_address().unwrap()) {
                Ok(()) => sockets.push(waiting),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return Self { _backlog: Some((folder, sockets)), ..Self::of(address) };
                }
            }
        }
    }

    /// Returns an attempt that has a minute.
    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt::new(&self.target, &self.interrupt, Instant::now() + Duration::from_secs(60))
    }

    /// Returns an attempt whose time is over.
    pub(super) fn attempt_at_its_end(&self) -> Attempt<'_> {
        Attempt::at_its_end(&self.target, &self.interrupt)
    }

    /// Returns the two ends of a connection: the client's does not block.
    pub(super) fn pair(&self) -> (TcpStream, TcpStream) {
        let (client, server) = if self.target.address.is_unix() {
            let (client, server) = UnixStream::pair().unwrap();
            (OwnedFd::from(client).into(), OwnedFd::from(server).into())
        } else {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        };
        client.set_nonblocking(true).unwrap();
        (client, server)
    }
}

/// Returns what failed, in English.
#[track_caller]
pub(super) fn words(outcome: Outcome) -> String {
    match outcome {
        Err(Stop::Fail(problem)) => problem.words(Language::English).to_owned(),
        other => panic!("no failure: {other:?}"),
    }
}
