//! Faults of the listening sockets: connects that time out, are refused, or are accepted slowly.

use std::io;
use std::time::Instant;

use mio::Interest;
use mio::net::TcpListener;
use socket2::{SockRef, Socket};

use super::accept::Listener;
use super::config::{ACCEPT_RETRY, Config};
use super::echo::{Echo, EchoReactor, Entry, remove_listener};
use super::listen;
use crate::fault::Connect;
use crate::log_target::{LOG_TARGET, warn_rate_limited};
use crate::transport::Listen;

/// What holds for the listening sockets.
#[derive(Debug)]
pub(super) struct ConnectFaults<L: Listen> {
    /// How to open a listening socket again, where that is known.
    open: Option<Open<L>>,
    current: Option<Connect>,
    /// When to look at the rules again.
    pub(super) next_at: Option<Instant>,
    /// The sockets of `refuse`: closed, and bound again, unless that failed. That keeps the port from processes that do not set
    /// `SO_REUSEADDR`; with it, another can listen there (socket(7)).
    refusing: Vec<(L::Address, Option<Socket>)>,
    failure_logged_at: Option<Instant>,
}

/// Opens a listening socket: binds it, and wraps it once it listens.
#[derive(Debug)]
pub(super) struct Open<L: Listen> {
    bind: fn(&L::Address, &Config) -> io::Result<Socket>,
    wrap: fn(Socket) -> L,
}

impl Open<TcpListener> {
    pub(super) const TCP: Self = Self {
        bind: |&address, config| listen::bind(address, config),
        wrap: |socket| TcpListener::from_std(socket.into()),
    };
}

impl<O, L: Listen> Echo<O, L> {
    /// Does to the listening sockets what the rules say for `now`.
    pub(super) fn apply_connect_faults(&mut self, reactor: &mut EchoReactor<L>, now: Instant) {
        let wanted = self.core.rules.listening(now);
        self.core.connect_faults.next_at = self.core.rules.next_change(now);
        if wanted == self.core.connect_faults.current && self.core.connect_faults.refusing.is_empty() {
            return;
        }
        let before = std::mem::replace(&mut self.core.connect_faults.current, wanted);
        if wanted != Some(Connect::Refuse) {
            self.listen_again(reactor, now);
        }
        if wanted == before {
            return;
        }
        let is_hanging = wanted == Some(Connect::Hang);
        for listener in self.core.acceptor.listeners() {
            if let Err(error) = drop_packets(&SockRef::from(&listener.socket), is_hanging) {
                log::warn!(target: LOG_TARGET, "cannot filter packets to {}: {error}", listener.address);
            }
        }
        self.core.acceptor.set_fault(wanted);
        if wanted == Some(Connect::Refuse) {
            self.stop_listening(reactor);
        }
    }

    /// Closes the listening sockets, so that the system refuses connects. Their ports stay bound.
    fn stop_listening(&mut self, reactor: &mut EchoReactor<L>) {
        let Some(Open { bind, .. }) = self.core.connect_faults.open else { return };
        for mut listener in self.core.acceptor.take_listeners() {
            remove_listener(reactor, &mut listener);
            let address = listener.address;
            drop(listener.socket);
            let socket = bind(&address, &self.core.config).ok();
            self.core.connect_faults.refusing.push((address, socket));
        }
    }

    /// Listens again after [`stop_listening`](Self::stop_listening). What fails is tried again in 100 ms.
    fn listen_again(&mut self, reactor: &mut EchoReactor<L>, now: Instant) {
        let refusing = std::mem::take(&mut self.core.connect_faults.refusing);
        let Some(Open { bind, wrap }) = self.core.connect_faults.open else { return };
        for (address, socket) in refusing {
            let socket = socket.map_or_else(|| bind(&address, &self.core.config), Ok);
            let listening = socket.and_then(|socket| self.listen(reactor, address.clone(), socket, wrap));
            if let Err(error) = listening {
                let faults = &mut self.core.connect_faults;
                warn_rate_limited(
                    &mut faults.failure_logged_at,
                    now,
                    format_args!("cannot listen on {address}: {error}; trying again in 100 ms"),
                );
                faults.refusing.push((address, None));
                faults.next_at = [faults.next_at, Some(now + ACCEPT_RETRY)].into_iter().flatten().min();
            }
        }
    }

    fn listen(
        &mut self,
        reactor: &mut EchoReactor<L>,
        address: L::Address,
        socket: Socket,
        wrap: fn(Socket) -> L,
    ) -> io::Result<()> {
        if self.core.connect_faults.current == Some(Connect::Hang) {
            // Before it listens: no client gets through in between.
            drop_packets(&SockRef::from(&socket), true)?;
        }
        listen::listen(&socket, &self.core.config)?;
        let index = u32::try_from(self.core.acceptor.listeners().len()).unwrap_or(u32::MAX);
        let mut registered = None;
        let key = reactor.insert(wrap(socket), Interest::READABLE, |socket| {
            registered = Some(socket);
            Entry::Listener(index)
        })?;
        self.core.acceptor.add_listener(registered.map(|socket| Listener { socket, address, key, has_older: false }));
        Ok(())
    }
}

impl<L: Listen> ConnectFaults<L> {
    pub(super) fn new(open: Option<Open<L>>) -> Self {
        Self { open, current: None, next_at: None, refusing: Vec::new(), failure_logged_at: None }
    }

    /// Ends all of it: the server listens no more.
    pub(super) fn close(&mut self) {
        *self = Self::new(None);
    }
}

/// Makes a listening socket drop every packet that arrives for it, so that connects time out, or ends that.
///
/// `listen` with a backlog of 0 would not do: Linux completes one more handshake than the backlog allows. Connections that the socket
/// has accepted are not concerned.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn drop_packets(socket: &SockRef<'_>, drops: bool) -> io::Result<()> {
    use socket2::SockFilter;

    /// The one instruction of a filter of bpf(4) that keeps 0 bytes of each packet: `BPF_RET | BPF_K`.
    const KEEP_NOTHING: SockFilter = SockFilter::new(0x06, 0, 0, 0);
    if drops {
        return socket.attach_filter(&[KEEP_NOTHING]);
    }
    match socket.detach_filter() {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Does nothing: [`Config`](super::Config) refuses the rule.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
#[expect(clippy::unnecessary_wraps, reason = "on Linux it can fail")]
pub(super) fn drop_packets(_: &SockRef<'_>, _: bool) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::fs::File;
    use std::net::{SocketAddr, TcpStream};
    use std::time::Duration;

    use super::*;
    use crate::server::{EventLoop, Server};

    /// Returns a server whose listening socket a rule closes for its first second.
    fn refusing(open: Open<TcpListener>, config: Config) -> Server {
        let config = Config { faults: vec!["connect=refuse,at=0s..1s".parse().unwrap()], ..config };
        let sockets = listen::open(&["127.0.0.1:0".parse().unwrap()], &config).unwrap();
        Server::new(sockets, config, Some(open)).unwrap()
    }

    #[test]
    fn a_socket_that_cannot_be_opened_again_is_opened_100_ms_later() {
        // An option decides whether it can.
        let bind = |&address: &SocketAddr, config: &Config| {
            if config.nodelay { listen::bind(address, config) } else { Err(io::ErrorKind::AddrInUse.into()) }
        };
        let mut server = refusing(Open { bind, ..Open::TCP }, Config { nodelay: false, ..Config::default() });
        let address = server.local_addr();
        let _keeps_the_port = listen::bind(address, &Config::default()).unwrap();
        let EventLoop { reactor, echo } = server.event_loop_mut();
        let end = Instant::now() + Duration::from_secs(1);
        echo.apply_connect_faults(reactor, end);
        assert_eq!(echo.core.acceptor.listeners().len(), 0);
        let again = end + Duration::from_millis(100);
        assert_eq!(echo.core.earliest_deadline(), Some(again));

        echo.core.config.nodelay = true;
        echo.apply_connect_faults(reactor, again);
        assert_eq!(echo.core.earliest_deadline(), None);
        // No filter is left on it.
        TcpStream::connect_timeout(&address, Duration::from_secs(20)).unwrap();
    }

    #[test]
    fn a_drain_opens_no_socket_again() {
        let mut server = refusing(Open::TCP, Config::default());
        let EventLoop { reactor, echo } = server.event_loop_mut();
        assert!(echo.core.connect_faults.next_at.is_some());
        echo.begin_drain(reactor);
        assert_eq!(echo.core.connect_faults.next_at, None);
        echo.apply_connect_faults(reactor, Instant::now() + Duration::from_secs(1));
        assert_eq!(echo.core.acceptor.listeners().len(), 0);
    }

    #[test]
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn a_socket_without_a_filter_needs_no_removal_and_other_failures_are_returned() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        for drops in [false, true, false, false] {
            drop_packets(&SockRef::from(&socket), drops).unwrap();
        }
        let no_socket = File::open("/dev/null").unwrap();
        for drops in [false, true] {
            let error = drop_packets(&SockRef::from(&no_socket), drops).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        }
    }
}
