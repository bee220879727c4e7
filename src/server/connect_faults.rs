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
    /// The sockets of `refuse`: closed, and bound again so that no other process takes the port, unless that failed.
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
        let index = u32::try_from(self.core.acceptor.listener_count()).unwrap_or(u32::MAX);
        let mut registered = None;
        let key = reactor.insert(wrap(socket), Interest::READABLE, |socket| {
            registered = Some(socket);
            Entry::Listener(index)
        })?;
        self.core.acceptor.add_listener(registered.map(|socket| Listener { socket, address, key }));
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
