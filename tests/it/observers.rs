//! Observers: which types are one, what they are told of a peer, and how a program gets its own back.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecoloop::{CloseReason, Config, Fault, Observer, Peer, Running, Server};

use crate::support::{
    TIMEOUT, assert_echoes, assert_ended, assert_receives, await_not_listening, connect, eventually, half_close,
    turn_until,
};

/// An address of these tests alone: once a server has released a port, no other test takes it.
const ADDRESS: &str = "127.0.7.4:0";

/// The calls for connections and visits, in order, and the number of waits.
#[derive(Debug, Default, PartialEq, Eq)]
struct Calls {
    lines: Vec<String>,
    waits: usize,
    wakes: usize,
}

impl Observer for Calls {
    fn waiting(&mut self) {
        self.waits += 1;
    }

    fn woken(&mut self, _: usize) {
        self.wakes += 1;
    }

    fn serving(&mut self, key: usize) {
        self.lines.push(format!("serving {key}"));
    }

    fn served(&mut self, key: usize) {
        self.lines.push(format!("served {key}"));
    }

    fn opened(&mut self, peer: Peer) {
        self.lines.push(format!("opened {}", peer.key));
    }

    fn faulted(&mut self, _: Peer, fault: &Fault) {
        self.lines.push(format!("faulted {fault}"));
    }

    fn received(&mut self, _: Peer, data: &[u8]) {
        self.lines.push(format!("received {data:?}"));
    }

    fn sent(&mut self, _: Peer, length: usize) {
        self.lines.push(format!("sent {length}"));
    }

    fn ended(&mut self, _: Peer) {
        self.lines.push("ended".to_owned());
    }

    fn closed(&mut self, _: Peer, reason: CloseReason) {
        self.lines.push(format!("closed {reason:?}"));
    }
}

/// Serves one client to its end, turn by turn on this thread.
#[track_caller]
fn serve_one(config: Config, observer: impl Observer) {
    let mut server = Server::bind(ADDRESS, config).unwrap().with_observer(observer);
    let mut client = connect(server.local_addr());
    client.write_all(b"hola").unwrap();
    half_close(&client);
    turn_until(&mut server, |server| server.report().stats.closed.total() == 1);
    assert_receives(&mut client, b"hola");
    assert_ended(&mut client);
}

/// Asserts that `calls` are those of one client with a fault, every kind among them.
#[track_caller]
fn assert_complete(calls: &Calls) {
    let kinds = ["opened", "faulted", "serving", "received [104, 111, 108, 97]", "sent 4", "served", "ended"];
    for kind in kinds {
        assert!(calls.lines.iter().any(|call| call.starts_with(kind)), "{kind}: {calls:?}");
    }
    assert_eq!(calls.lines.last().unwrap(), "closed EndOfStream");
    assert!(calls.waits > 0 && calls.waits == calls.wakes, "{calls:?}");
}

#[test]
fn a_reference_a_box_and_a_mutex_pass_every_call_on() {
    let mut config = Config::default();
    // Every connection draws it, and no byte of this test meets it.
    config.faults = vec!["fin=1MiB".parse().unwrap()];

    let mut by_reference = Calls::default();
    serve_one(config.clone(), &mut by_reference);
    assert_complete(&by_reference);

    let mut boxed = Calls::default();
    let observer: Box<dyn Observer + '_> = Box::new(&mut boxed);
    serve_one(config.clone(), observer);
    assert_complete(&boxed);

    let shared = Arc::new(Mutex::new(Calls::default()));
    serve_one(config.clone(), Arc::clone(&shared));
    assert_complete(&shared.lock().unwrap());

    let shared = Arc::new(Mutex::new(Calls::default()));
    let dynamic: Arc<Mutex<dyn Observer>> = shared.clone();
    serve_one(config, dynamic);
    assert_complete(&shared.lock().unwrap());
}

#[test]
fn a_tuple_passes_every_call_on_to_each_of_its_observers() {
    let mut config = Config::default();
    config.faults = vec!["fin=1MiB".parse().unwrap()];
    let [mut first, mut second, mut third, mut fourth] = [(); 4].map(|()| Calls::default());
    serve_one(config.clone(), (&mut first, &mut second));
    assert_complete(&first);
    assert_eq!(first, second);

    let [mut first, mut second] = [(); 2].map(|()| Calls::default());
    serve_one(config.clone(), (&mut first, &mut second, &mut third));
    assert_complete(&third);
    assert!(first == second && second == third);

    let [mut first, mut second, mut third] = [(); 3].map(|()| Calls::default());
    serve_one(config, (&mut first, &mut second, &mut third, &mut fourth));
    assert_complete(&fourth);
    assert!(first == second && second == third && third == fourth);
}

#[test]
fn a_mutex_that_a_panic_has_poisoned_still_observes() {
    let shared = Arc::new(Mutex::new(Calls::default()));
    let other = Arc::clone(&shared);
    let poison = move || {
        let _guard = other.lock().unwrap();
        std::panic::resume_unwind(Box::new("poisoned"));
    };
    assert!(std::thread::spawn(poison).join().is_err() && shared.is_poisoned());
    serve_one(Config::default(), Arc::clone(&shared));
    assert!(shared.lock().unwrap_err().into_inner().lines.len() > 3);
}

/// Records the peer of each call.
#[derive(Default)]
struct Peers {
    needs_local_address: bool,
    peers: Vec<Peer>,
}

impl Observer for Peers {
    fn needs_local_address(&self) -> bool {
        self.needs_local_address
    }

    fn opened(&mut self, peer: Peer) {
        self.peers.push(peer);
    }

    fn received(&mut self, peer: Peer, _: &[u8]) {
        self.peers.push(peer);
    }

    fn sent(&mut self, peer: Peer, _: usize) {
        self.peers.push(peer);
    }

    fn ended(&mut self, peer: Peer) {
        self.peers.push(peer);
    }

    fn closed(&mut self, peer: Peer, _: CloseReason) {
        self.peers.push(peer);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_peer_has_the_address_that_it_has_connected_to_if_the_observer_needs_it() {
    for (needs_local_address, faults, proxy_protocol) in
        [(true, "", false), (true, "fin=1MiB", false), (true, "", true), (false, "", false)]
    {
        let mut config = Config::default();
        config.faults = faults.split_terminator(' ').map(|fault| fault.parse().unwrap()).collect();
        config.proxy_protocol = proxy_protocol;
        let observer = (Peers { needs_local_address, ..Peers::default() }, Peers::default());
        let mut server = Server::bind((Ipv4Addr::UNSPECIFIED, 0), config).unwrap().with_observer(observer);
        let port = server.local_addr().port();
        for last in [2, 3] {
            let address = SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), port);
            let mut client = connect(address);
            client.write_all(if proxy_protocol { b"PROXY UNKNOWN\r\nhola" } else { b"hola" }).unwrap();
            half_close(&client);
            turn_until(&mut server, |server| server.report().stats.closed.end_of_stream == u64::from(last) - 1);
            let local_address = needs_local_address.then_some(address);
            let peers = std::mem::take(&mut server.observer_mut().0.peers);
            assert_eq!(peers.len(), 5, "{peers:?}");
            for peer in peers {
                assert_eq!((peer.address, peer.local_address), (client.local_addr().unwrap(), local_address));
            }
            assert_receives(&mut client, b"hola");
        }
    }
}

#[test]
fn a_peer_for_a_test_has_the_addresses_that_it_is_given() {
    let [address, local]: [SocketAddr; 2] = ["192.0.2.1:7", "198.51.100.1:5000"].map(|text| text.parse().unwrap());
    let peer = Peer::new(3, address);
    assert_eq!((peer.key, peer.address, peer.local_address), (3, address, None));
    let with_local = peer.with_local_address(local);
    assert_eq!((with_local.key, with_local.address, with_local.local_address), (3, address, Some(local)));
    assert_ne!(peer, with_local);
}

// ---- the observer back, and `Running` ----

#[test]
fn into_observer_closes_each_connection_and_returns_the_observer() {
    let mut server = Server::bind(ADDRESS, Config::default()).unwrap().with_observer(Calls::default());
    let handle = server.handle();
    let mut client = connect(server.local_addr());
    turn_until(&mut server, |_| handle.stats().accepted == 1);
    server.observer_mut().lines.clear();
    let observer = server.into_observer();
    assert_eq!(observer.lines, ["closed Stopped"]);
    assert_eq!((handle.stats().closed.stopped, handle.stats().open()), (1, 0));
    assert_ended(&mut client);
}

#[track_caller]
fn spawn(config: Config) -> Running<Calls> {
    Server::bind(ADDRESS, config).unwrap().with_observer(Calls::default()).spawn().unwrap()
}

#[test]
fn shutdown_drains_and_returns_the_report_and_the_observer() {
    let mut config = Config::default();
    config.drain_timeout = TIMEOUT;
    let server = spawn(config);
    let mut client = connect(server.local_addr());
    assert_echoes(&mut client, b"hola");
    eventually("the count of what was sent", || server.stats().bytes_out == 4);
    assert_eq!((server.stats().accepted, server.stats().open(), server.is_finished()), (1, 1, false));

    let client = std::thread::spawn(move || assert_ended(&mut client));
    let (report, observer) = server.shutdown().unwrap();
    client.join().unwrap();
    assert_eq!((report.stats.closed.drained, report.stats.open()), (1, 0));
    assert!(report.elapsed > Duration::ZERO);
    assert_eq!(observer.lines.last().unwrap(), "closed Drained");
}

#[test]
fn a_running_server_drains_and_stops_and_has_finished_then() {
    let ends: [fn(&Running<Calls>); 2] = [Running::drain, Running::stop];
    for end in ends {
        let server = spawn(Config::default());
        assert!(!server.is_finished());
        end(&server);
        eventually("the end of the thread", || server.is_finished());
        await_not_listening(server.local_addr());
        let report = server.join().unwrap();
        assert_eq!(report.stats.accepted, 0);
    }
}

#[test]
fn without_an_observer_the_types_need_none() {
    let server: Server = Server::bind(ADDRESS, Config::default()).unwrap();
    let running: Running = server.spawn().unwrap();
    let (report, ()) = running.shutdown().unwrap();
    assert_eq!(report.stats.closed.total(), 0);
}
