//! The end of a connection's handshake, from which on it is measured.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use socket2::SockRef;

use super::{Driver, Removal};
use crate::load::backlogs::Waiting;
use crate::load::client::Client;
use crate::load::error::{ErrorName, Phase, classify, is_port_taken};
use crate::load::sources::connect_unix;
use crate::load::stage::Stage;
use crate::socket_address::AnyAddress;

impl Driver {
    /// Connects a connection to a Unix socket, unless it has ended meanwhile. It waits again if the backlog is full. Returns whether it is
    /// connected.
    pub(in crate::load) fn connect_unix(
        &mut self,
        client: &mut Client,
        waiting: Waiting,
    ) -> ControlFlow<Removal, bool> {
        let is_waiting = client.stage == Stage::Connecting && client.verifier.connection() == waiting.connection;
        let (_, AnyAddress::Unix(address)) = self.connector.sources.pair(waiting.pair) else {
            return ControlFlow::Continue(false);
        };
        if !is_waiting {
            return ControlFlow::Continue(false);
        }
        match connect_unix(&client.stream.0, address) {
            Ok(true) => {
                client.read_until_would_block();
                ControlFlow::Continue(true)
            }
            Ok(false) => {
                self.backlogs.put_back(waiting, self.clock.now());
                ControlFlow::Continue(false)
            }
            Err(error) => ControlFlow::Break(self.fail(client, Phase::Connect, classify(&error), error.raw_os_error())),
        }
    }

    /// Returns whether the handshake is complete, which it is once the socket knows its peer (connect(2), `EINPROGRESS`).
    pub(super) fn establish(&mut self, client: &mut Client) -> ControlFlow<Removal, bool> {
        self.clock.read();
        match self.ends(client) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return ControlFlow::Continue(false),
            Err(error) if is_port_taken(&error) => return ControlFlow::Break(Removal::PortTaken),
            Err(error) => {
                let removal = self.fail(client, Phase::Connect, classify(&error), error.raw_os_error());
                return ControlFlow::Break(removal);
            }
            // A connect to a free port of this machine can be given that port as its own, and then echoes everything.
            Ok(Some((local, peer))) if peer == local => {
                return ControlFlow::Break(self.fail(client, Phase::Connect, ErrorName::SelfConnect, None));
            }
            Ok(ends) => {
                if let Some(version) = self.proxy_protocol {
                    client.proxy_header = version.header(ends);
                }
            }
        }
        self.connector.sources.settle(client.pair);
        ControlFlow::Continue(true)
    }

    /// Begins to measure a connection whose handshake is complete, with its first message.
    pub(super) fn begin_messages(&mut self, client: &mut Client) {
        let now = self.clock.now();
        // Churn opens connections in the warm-up too. Before the first window, its start is 0.
        if client.connect_due() >= self.window.start {
            self.totals.connect.record(now.saturating_sub(client.connect_due()));
        }
        client.enter(Stage::Opening, &mut self.connector.counts, now);
        // In an open loop of connections, the first message was due with its connection.
        let due = if self.connector.arrivals.is_some() { client.connect_due() } else { now };
        self.enqueue(client, due);
        if self.schedule.is_some() {
            client.exempt_from_schedule();
        }
    }

    /// Returns the local address and the peer's of a connected client; `None` for a Unix socket, which has none.
    fn ends(&self, client: &Client) -> io::Result<Option<(SocketAddr, SocketAddr)>> {
        let stream = &client.stream.0;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        if self.connector.sources.is_unix(client.pair) {
            return SockRef::from(stream).peer_addr().map(|_| None);
        }
        let peer = stream.peer_addr()?;
        Ok(Some((stream.local_addr()?, peer)))
    }
}
