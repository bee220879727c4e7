//! Fairness of a turn: reads and accepts per turn, and what the next turn continues.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use ecoloop::{CloseReason, Config, Observer, Peer, Server, Turn};

use crate::support::{
    Event, Recorder, TIMEOUT, TcpState, assert_echoes, assert_receives, await_state, await_unread, connect, eventually,
    half_close, pattern, serve,
};

#[test]
fn a_turn_reads_reads_per_turn_times_and_the_next_continues_without_an_event() {
    let recorder = Recorder::default();
    let mut config = Config::default();
    config.buffer_size = 100;
    config.reads_per_turn = 4;
    let mut server = Server::bind("127.0.0.1:0", config).unwrap().with_observer(recorder.clone());
    let message = pattern(2000);
    let mut clients = [connect(server.local_addr()), connect(server.local_addr())];
    for client in &mut clients {
        client.write_all(&message).unwrap();
        await_unread(client, message.len());
    }
    turn(&mut server);
    let keys: Vec<_> = recorder.take().into_iter().map(|(peer, _)| peer.key).collect();
    assert_eq!(keys.len(), 2);

    for turns_left in (0..5).rev() {
        turn(&mut server);
        let events = recorder.take();
        assert_eq!(events.len(), 8);
        for &key in &keys {
            let reads = events.iter().filter(|(peer, event)| peer.key == key && *event == Event::Received(100));
            assert_eq!(reads.count(), 4);
        }
        if turns_left > 0 {
            assert!(server.next_deadline().is_some_and(|at| at <= Instant::now()));
        }
    }
    for client in &mut clients {
        assert_receives(client, &message);
    }
    // Every connection has read `WouldBlock`: no work is left.
    turn(&mut server);
    assert_eq!(recorder.take(), []);
    assert_eq!(server.next_deadline(), None);
}

/// Sends a message at the first read of a turn, and counts the reads until that message is received.
struct Ping {
    client: TcpStream,
    address: SocketAddr,
    is_sent: bool,
    reads_before: usize,
    is_received: bool,
}

impl Observer for Ping {
    fn received(&mut self, peer: Peer, _: &[u8]) {
        if !self.is_sent {
            self.is_sent = true;
            self.client.write_all(b"hola").unwrap();
        }
        self.is_received |= peer.address == self.address;
        self.reads_before += usize::from(!self.is_received);
    }
}

#[test]
fn a_connection_that_becomes_ready_waits_for_at_most_two_reads_of_every_other() {
    const FLOODS: usize = 200;
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap();
    let message = pattern(64 * 1024);
    let mut client = connect(server.local_addr());
    let floods: Vec<_> = (0..FLOODS).map(|_| connect(server.local_addr())).collect();
    for mut flood in &floods {
        flood.write_all(&message).unwrap();
        await_unread(flood, message.len());
    }
    let (address, sender) = (client.local_addr().unwrap(), client.try_clone().unwrap());
    let ping = Ping { client: sender, address, is_sent: false, reads_before: 0, is_received: false };
    let mut server = server.with_observer(ping);
    while !server.observer().is_received {
        turn(&mut server);
    }
    let reads = server.observer().reads_before;
    assert!((1..=2 * FLOODS).contains(&reads), "{reads} reads of {FLOODS} other connections");
    assert_receives(&mut client, b"hola");
}

#[test]
fn a_turn_accepts_accepts_per_turn_connections_and_the_next_continues_without_an_event() {
    let recorder = Recorder::default();
    let mut config = Config::default();
    config.accepts_per_turn = 3;
    let mut server = Server::bind("127.0.0.1:0", config).unwrap().with_observer(recorder.clone());
    let clients: Vec<_> = (0..10).map(|_| connect(server.local_addr())).collect();
    for client in &clients {
        await_unread(client, 0);
    }
    for burst in [3, 3, 3, 1] {
        turn(&mut server);
        assert_eq!(recorder.take().iter().filter(|(_, event)| *event == Event::Opened).count(), burst);
    }
}

#[test]
fn a_connect_storm_does_not_starve_open_connections() {
    let recorder = Recorder::default();
    let mut config = Config::default();
    config.accepts_per_turn = 1;
    let mut server = Server::bind("127.0.0.1:0", config).unwrap().with_observer(recorder.clone());
    let mut client = connect(server.local_addr());
    turn(&mut server);
    let (peer, _) = recorder.take()[0];

    let storm: Vec<_> = (0..30).map(|_| connect(server.local_addr())).collect();
    for connection in &storm {
        await_unread(connection, 0);
    }
    for _ in &storm {
        client.write_all(b"hola").unwrap();
        await_unread(&client, 4);
        turn(&mut server);
        let events = recorder.take();
        assert!(events.contains(&(peer, Event::Received(4))), "{events:?}");
        assert_eq!(events.iter().filter(|(_, event)| *event == Event::Opened).count(), 1);
        assert_receives(&mut client, b"hola");
    }
}

#[test]
fn a_key_is_not_reused_in_the_turn_that_freed_it() {
    let recorder = Recorder::default();
    let mut server = Server::bind("127.0.0.1:0", Config::default()).unwrap().with_observer(recorder.clone());
    let old = connect(server.local_addr());
    turn(&mut server);
    let (old_peer, _) = recorder.take()[0];

    // One turn sees the old connection's FIN and a new connection.
    half_close(&old);
    await_state(&old, TcpState::CloseWait);
    let mut new = connect(server.local_addr());
    new.write_all(b"hola").unwrap();
    await_unread(&new, 4);
    turn(&mut server);
    let events = recorder.take();
    let (new_peer, _) = *events.last().unwrap();
    assert_eq!(
        events,
        [(old_peer, Event::Ended), (old_peer, Event::Closed(CloseReason::EndOfStream)), (new_peer, Event::Opened)],
        "not closed and accepted in one turn"
    );
    assert_ne!(new_peer.key, old_peer.key);

    turn(&mut server);
    assert_eq!(recorder.take(), [(new_peer, Event::Received(4))]);
    assert_receives(&mut new, b"hola");
    // The next turn reuses the key, so that the slab does not grow with every connection.
    let mut newest = connect(server.local_addr());
    newest.write_all(b"hola de nuevo").unwrap();
    await_unread(&newest, 13);
    turn(&mut server);
    turn(&mut server);
    let events = recorder.take();
    let (newest_peer, _) = events[0];
    assert_eq!(newest_peer.key, old_peer.key);
    assert_eq!(events, [(newest_peer, Event::Opened), (newest_peer, Event::Received(13))]);
    assert_receives(&mut newest, b"hola de nuevo");
}

#[test]
fn a_flooding_client_does_not_starve_a_hundred_others() {
    let server = serve(Config::default());
    let flooder = connect(server.local_addr());
    let mut pingers: Vec<_> = (0..100).map(|_| connect(server.local_addr())).collect();
    let echoed = AtomicU64::new(0);
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| flood(&flooder, &enough));
        scope.spawn(|| count(&flooder, &echoed));
        // A failure below must end the threads too, because the scope joins them.
        let _enough = SetOnDrop(&enough);
        let another_megabyte = || {
            let before = echoed.load(Ordering::Relaxed);
            eventually("another megabyte", || echoed.load(Ordering::Relaxed) > before + (1 << 20));
        };

        another_megabyte();
        for message in 0..30_u8 {
            for pinger in &mut pingers {
                pinger.write_all(&[message; 64]).unwrap();
            }
            for pinger in &mut pingers {
                assert_receives(pinger, &[message; 64]);
            }
        }
        another_megabyte();
    });
    assert_echoes(&mut pingers[0], b"adios");
}

fn flood(mut flooder: &TcpStream, enough: &AtomicBool) {
    let message = pattern(64 * 1024);
    while !enough.load(Ordering::Relaxed) {
        flooder.write_all(&message).unwrap();
    }
    half_close(flooder);
}

fn count(mut flooder: &TcpStream, echoed: &AtomicU64) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match flooder.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => drop(echoed.fetch_add(n as u64, Ordering::Relaxed)),
            // Suspending the machine interrupts a read that has a timeout (signal(7)).
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("{error}"),
        }
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs one turn, which must not block: without an event or work left over it would wait until [`TIMEOUT`].
#[track_caller]
fn turn<O: Observer>(server: &mut Server<O>) {
    let start = Instant::now();
    assert_eq!(server.turn(Some(TIMEOUT)).unwrap(), Turn::Running);
    assert!(start.elapsed() < TIMEOUT / 2, "the turn has waited for its timeout");
}
