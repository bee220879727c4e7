//! Connections that leave the measured ones at their handshake, to misbehave on purpose.

use super::{Action, Driver, Registered, Removal};
use crate::load::faulted::{FaultedClient, Progress, Shared};
use crate::load::stage::Stage;
use crate::reactor::{INTEREST, Next, Reactor};
use crate::ready::Ready;

impl Driver {
    /// Takes a connection whose handshake is complete out of the measured ones. It stays registered.
    pub(super) fn begin_fault(&mut self, reactor: &mut Reactor<Registered>, key: usize) {
        reactor.replace(key, |registered| match registered {
            Registered::Client(client) => {
                self.connector.counts.change(Some(Stage::Connecting), None);
                let (faults, places) = self.faults.begin(client.verifier.connection());
                Registered::Faulted(Box::new(FaultedClient::new(client, &faults, places, self.clock.now())))
            }
            other => other,
        });
        // The server's FIN may have been reported with the handshake: it is reported again. Without memory for it, the next event tells.
        let _ = reactor.reregister(key, INTEREST, |registered| match registered {
            Registered::Faulted(client) => Some(client.stream()),
            _ => None,
        });
        reactor.resume(key);
    }

    /// Serves a connection that misbehaves.
    #[cold]
    pub(super) fn drive_faulted(&mut self, key: usize, client: &mut FaultedClient, ready: Ready) -> Next<Action> {
        let (had_ended, now) = (client.outcome.is_some(), self.clock.read());
        let (buffer, scratch) = (&mut self.buffer[..], &mut self.scratch[..]);
        let mut shared = Shared { now, pattern: &self.pattern, sizes: &self.sizes, buffer, scratch };
        let progress = client.drive(ready, &mut shared);
        if let Some(outcome) = client.outcome.filter(|_| !had_ended) {
            self.faults.record_end(&client.places, outcome);
        }
        let (deadline, next) = match progress {
            Progress::Wait(deadline) => (deadline, Next::Wait),
            Progress::Again => (None, Next::Again),
            Progress::Ended => (None, Next::Act(Action::Remove(Removal::Ended))),
        };
        self.faults.timers.set(key, &mut client.timer, deadline);
        next
    }
}
