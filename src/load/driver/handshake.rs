//! The end of a connection's handshake, from which on it is measured.

use std::io;
use std::ops::ControlFlow;

use super::{Driver, Removal};
use crate::load::client::Client;
use crate::load::error::{ErrorName, Phase, classify, is_port_taken};
use crate::load::stage::Stage;

impl Driver {
    /// Returns whether the handshake is complete, which it is once the socket knows its peer (connect(2), `EINPROGRESS`).
    pub(super) fn establish(&mut self, client: &mut Client) -> ControlFlow<Removal, bool> {
        let now = self.clock.read();
        let (peer, local) = match client.stream.0.take_error() {
            Ok(None) => (client.stream.0.peer_addr(), client.stream.0.local_addr()),
            Ok(Some(error)) | Err(error) => (Err(error), client.stream.0.local_addr()),
        };
        match (peer, local) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotConnected => return ControlFlow::Continue(false),
            (Err(error), _) if is_port_taken(&error) => return ControlFlow::Break(Removal::PortTaken),
            (Err(error), _) | (_, Err(error)) => {
                let removal = self.fail(client, Phase::Connect, classify(&error), error.raw_os_error());
                return ControlFlow::Break(removal);
            }
            // A connect to a free port of this machine can be given that port as its own, and then echoes everything.
            (Ok(peer), Ok(local)) if peer == local => {
                return ControlFlow::Break(self.fail(client, Phase::Connect, ErrorName::SelfConnect, None));
            }
            (Ok(peer), Ok(local)) => {
                if let Some(version) = self.proxy_protocol {
                    client.proxy_header = version.header(local, peer);
                }
            }
        }
        self.connector.sources.settle(client.pair);
        if self.faults.chooses(client.verifier.connection()) {
            return ControlFlow::Break(Removal::Faulted);
        }
        self.totals.connect.record(now.saturating_sub(client.connect_due()));
        client.enter(Stage::Opening, &mut self.connector.counts, now);
        // In an open loop of connections, the first message was due with its connection.
        let due = if self.connector.arrivals.is_some() { client.connect_due() } else { now };
        self.enqueue(client, due);
        if self.schedule.is_some() {
            client.exempt_from_schedule();
        }
        ControlFlow::Continue(true)
    }
}
