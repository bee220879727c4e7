//! Commands and watches a server and a load from several threads while their loops run.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ecoloop::load::{self, Run};
use ecoloop::{CloseReason, Config, Observer, Peer, Server};

const WATCHERS: usize = 3;
const CONNECTIONS: u32 = 20;
/// A busy machine is no error of the server.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Count {
    opened: u64,
    closed: u64,
}

impl Observer for Count {
    fn opened(&mut self, _: Peer) {
        self.opened += 1;
    }

    fn closed(&mut self, _: Peer, _: CloseReason) {
        self.closed += 1;
    }
}

fn main() -> io::Result<()> {
    let rounds: u32 = std::env::args().nth(1).and_then(|rounds| rounds.parse().ok()).unwrap_or(20);
    let mut messages = 0;
    for round in 0..rounds {
        messages += serve_and_load(round)?;
    }
    assert!(messages > 0, "no message came back in {rounds} rounds");
    println!("{rounds} rounds, {messages} messages verified");
    Ok(())
}

/// Returns how many messages came back.
fn serve_and_load(round: u32) -> io::Result<u64> {
    let count = Arc::new(Mutex::new(Count::default()));
    let server = Server::bind("127.0.0.1:0", Config::default())?.with_observer(Arc::clone(&count)).spawn()?;
    let mut config = load::Config::new([server.local_addr()]);
    config.connections = CONNECTIONS;
    config.duration = Duration::from_millis(200);
    (config.connect_timeout, config.timeout) = (TIMEOUT, TIMEOUT);
    let run = Run::from(config).spawn()?;
    let watched = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..WATCHERS {
            scope.spawn(|| {
                while !run.is_finished() {
                    let stats = server.stats();
                    assert!(stats.bytes_out <= server.stats().bytes_in);
                    assert!(run.progress().is_none_or(|progress| progress.open <= u64::from(CONNECTIONS)));
                    watched.fetch_add(count.lock().unwrap().opened, Ordering::Relaxed);
                    thread::yield_now();
                }
            });
        }
        // Each way to end a load, and below each to end a server.
        if round % 2 == 0 {
            thread::sleep(Duration::from_millis(100));
            run.interrupt();
        }
    });
    let report = run.join()?;
    assert!(report.errors.is_empty() && report.verify.findings.is_empty(), "{report}");
    let handle = server.handle();
    let ending = thread::spawn(move || if round % 3 == 0 { handle.stop() } else { handle.drain() });
    let served = server.join()?;
    ending.join().unwrap();
    let count = count.lock().unwrap();
    assert_eq!((count.opened, count.closed), (served.stats.accepted, served.stats.accepted));
    Ok(report.messages.verified)
}
