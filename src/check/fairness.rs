//! Level 6: a flood beside a ping.

use std::time::{Duration, Instant};

use super::Check;
use super::attempt::{Attempt, HELLO, Outcome, SECONDS};
use super::client::Client;
use super::echo::text;
use super::problem::Problem;
use super::words::{self, Words};

/// Pings beside the flood.
const PINGS: u32 = 50;

pub(super) const CHECKS: &[Check] = &[Check {
    name: "flood",
    level: 6,
    chapter: words::FAIRNESS,
    connections: 2,
    needs_pid: false,
    seconds: SECONDS,
    proves: Words::new(
        "a client that sends without pause does not starve the others",
        "un cliente que envía sin pausa no deja sin turno a los demás",
    ),
    sends: Words::new(
        "64 KiB again and again on one connection, and meanwhile `hola` 50 times on another",
        "64 KiB una y otra vez por una conexión, y mientras tanto 50 veces `hola` por otra",
    ),
    matters: Words::new(
        "a server that reads one client until it is empty never comes to the next while that one sends",
        "un servidor que lee a un cliente hasta vaciarlo no llega al siguiente mientras ese siga enviando",
    ),
    run: flood,
}];

fn flood(attempt: &Attempt<'_>) -> Outcome {
    let bytes = text(64 << 10);
    let mut flood = attempt.connect()?;
    let mut other = attempt.connect()?;
    // Until the buffers between are full.
    let full = Instant::now() + Duration::from_millis(50);
    while Instant::now() < full {
        flood.pump(&bytes)?;
    }
    let replies = (0..PINGS).try_for_each(|_| ping(attempt, &mut other, || flood.pump(&bytes)));
    flood.leave()?;
    replies
}

/// Sends a line and expects it back, and calls `pump` again and again until it is there.
fn ping(attempt: &Attempt<'_>, client: &mut Client<'_>, mut pump: impl FnMut() -> Outcome) -> Outcome {
    let start = Instant::now();
    client.send(HELLO)?;
    while !client.is_answered() {
        attempt.check_interrupt()?;
        if Instant::now() >= attempt.deadline() {
            return Err(attempt.expired(start, Problem::silent(0, HELLO.len())));
        }
        pump()?;
    }
    attempt.record_wait(start.elapsed());
    client.receive(HELLO)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{Read, Write};

    use super::super::attempt::Stop;
    use super::super::scene::Scene;
    use super::*;

    #[test]
    fn the_flood_goes_on_until_the_reply_is_there_or_the_time_is_over() {
        let scene = Scene::unix();
        let (stream, mut server) = scene.pair();
        let (attempt, at_its_end) = (scene.attempt(), scene.attempt_at_its_end());
        let mut pumped = 0;
        let replied = ping(&attempt, &mut Client::new(&attempt, stream), || {
            pumped += 1;
            if pumped == 3 {
                let mut line = [0; HELLO.len()];
                server.read_exact(&mut line).unwrap();
                server.write_all(&line).unwrap();
            }
            Ok(())
        });
        assert!(replied.is_ok(), "{replied:?}");
        assert_eq!(pumped, 3);

        let (stream, _silent) = scene.pair();
        let late = ping(&at_its_end, &mut Client::new(&at_its_end, stream), || {
            pumped += 1;
            Ok(())
        });
        assert!(matches!(late, Err(Stop::Slow)), "{late:?}");
        assert_eq!(pumped, 3);
    }
}
