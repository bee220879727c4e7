#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream as StdStream};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use super::ranges::distinct;
use super::*;
use crate::load::error::Phase;
use crate::process_start;

const OPTIONS: SocketOptions = SocketOptions { nodelay: true, recv_buffer: None, send_buffer: None };

fn run(command: &mut Command) -> Output {
    process_start::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped())).wait_with_output().unwrap()
}

/// Returns loopback addresses that no other test uses.
fn loopback<const N: u8>() -> Vec<ScopedIp> {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let first = NEXT.fetch_add(N, Ordering::Relaxed);
    (first..first + N).map(|last| IpAddr::from(Ipv4Addr::new(127, 81, 44, last)).into()).collect()
}

/// Returns `count` consecutive ports that are free on `sources`, outside the range of the system. A process that starts meanwhile keeps
/// them bound for a moment.
fn free_ports(sources: &[ScopedIp], count: u16) -> Vec<u16> {
    let is_free = |port| sources.iter().all(|&source| TcpListener::bind(source.with_port(port)).is_ok());
    let block = (0..100).map(|block| (20_000 + block * count..).take(count.into()).collect::<Vec<_>>());
    block.into_iter().find(|block| block.iter().copied().all(is_free)).unwrap()
}

/// Starts `count` servers on ports of `address`.
fn servers(address: ScopedIp, count: usize) -> (Vec<TcpListener>, Vec<Vec<AnyAddress>>) {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind(address.with_port(0)).unwrap()).collect();
    let targets = listeners.iter().map(|listener| vec![listener.local_addr().unwrap().into()]).collect();
    (listeners, targets)
}

/// Both ends of a connection.
struct Held {
    client: Connecting,
    server: StdStream,
}

/// Connects and accepts until `count` connections are open or one fails.
fn hold(sources: &mut Sources, servers: &[TcpListener], count: usize) -> (Vec<Held>, Option<ConnectFailure>) {
    let mut held = Vec::new();
    while held.len() < count {
        let client = match sources.connect(&OPTIONS) {
            Ok(client) => client,
            Err(failure) => return (held, Some(failure)),
        };
        let (source, target) = sources.pair(client.pair);
        let is_target = |server: &&TcpListener| Some(server.local_addr().unwrap()) == target.tcp();
        let (server, address) = servers.iter().find(is_target).unwrap().accept().unwrap();
        assert_eq!(client.stream.local_addr().unwrap(), address);
        assert_eq!(client.port, Some(address.port()));
        assert_eq!(source.map(ScopedIp::ip), Some(address.ip()));
        held.push(Held { client, server });
    }
    (held, None)
}

#[test]
fn a_source_without_a_target_is_rejected() {
    let sources = ["::1", "::2"].map(|text| text.parse().unwrap());
    assert!(Sources::new(&sources, &[vec!["10.0.1.1:5".parse().unwrap()]], 1, Rank::ALONE).is_err());
}

#[test]
fn every_pair_is_used_evenly() {
    let _no_process_starts = process_start::prevent();
    let (servers, targets) = servers(loopback::<1>()[0], 2);
    let addresses = loopback::<3>();
    let ports = free_ports(&addresses, 10);
    let mut sources = Sources::with_ports(&addresses, &targets, 7, ports).unwrap();
    let (held, failure) = hold(&mut sources, &servers, 15);
    assert_eq!(failure, None);
    let uses = |from: usize, to: usize| {
        let ends = held[from..to]
            .iter()
            .map(|held| (held.server.peer_addr().unwrap().ip(), held.server.local_addr().unwrap()));
        distinct(ends).len()
    };
    assert_eq!((uses(0, 6), uses(6, 12), uses(12, 15)), (6, 6, 3));
    let first = held[..3].iter().map(|held| held.server.local_addr().unwrap());
    assert_eq!(distinct(first).len(), 2, "the first three go to both targets");
}

#[test]
fn each_pair_holds_as_many_connections_as_there_are_ports() {
    let _no_process_starts = process_start::prevent();
    for (sources_count, targets_count) in [(3, 1), (1, 2), (2, 2)] {
        let (servers, targets) = servers(loopback::<1>()[0], targets_count);
        let addresses = &loopback::<3>()[..sources_count];
        let ports = free_ports(addresses, 20);
        let all = 20 * sources_count * targets_count;
        let mut sources = Sources::with_ports(addresses, &targets, 3, ports).unwrap();
        let (mut held, failure) = hold(&mut sources, &servers, all + 1);
        assert_eq!((held.len(), failure), (all, Some(NO_PORTS)));

        let closed = held.swap_remove(11).client;
        drop(closed.stream);
        sources.release(closed.pair, closed.port);
        let (again, failure) = hold(&mut sources, &servers, 2);
        assert_eq!((again.len(), failure), (1, Some(NO_PORTS)), "the released port is found");
        assert_eq!((again[0].client.pair, again[0].client.port), (closed.pair, closed.port));
    }
}

#[test]
fn released_ports_are_used_in_the_order_of_their_release() {
    let _no_process_starts = process_start::prevent();
    let (servers, targets) = servers(loopback::<1>()[0], 1);
    let addresses = loopback::<1>();
    let ports = free_ports(&addresses, 5);
    let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
    let (mut held, _) = hold(&mut sources, &servers, 5);
    let mut freed = Vec::new();
    for index in [3, 0, 1] {
        let Held { client, server } = held.remove(index);
        // The end that closes first is in TIME_WAIT: the server's.
        drop(server);
        drop(client.stream);
        sources.release(client.pair, client.port);
        freed.push(client.port);
    }
    let (again, failure) = hold(&mut sources, &servers, 4);
    assert_eq!(again.iter().map(|held| held.client.port).collect::<Vec<_>>(), freed);
    assert_eq!(failure, Some(NO_PORTS));
}

#[test]
fn a_taken_port_is_skipped_and_found_when_it_is_free() {
    let _no_process_starts = process_start::prevent();
    let (servers, targets) = servers(loopback::<1>()[0], 1);
    let addresses = loopback::<1>();
    let ports = free_ports(&addresses, 10);
    let others: Vec<_> = [2, 3, 7].map(|n| TcpListener::bind(addresses[0].with_port(ports[n])).unwrap()).into();
    let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
    let (held, failure) = hold(&mut sources, &servers, 10);
    let in_use = ConnectFailure { phase: Phase::Bind, error: ErrorName::NoPorts, errno: Some(libc::EADDRINUSE) };
    assert_eq!((held.len(), failure), (7, Some(in_use)));
    drop(others);
    let (held, failure) = hold(&mut sources, &servers, 4);
    assert_eq!((held.len(), failure), (3, Some(NO_PORTS)));
}

#[test]
fn a_connection_never_comes_from_its_own_target() {
    let _no_process_starts = process_start::prevent();
    let addresses = loopback::<1>();
    let ports = free_ports(&addresses, 3);
    // Nothing listens: a connect from the target's own address would succeed, connected to itself.
    let target = vec![addresses[0].with_port(ports[1]).into()];
    let mut sources = Sources::with_ports(&addresses, &[target], 3, ports.clone()).unwrap();
    let begun: Vec<_> = (0..9).map_while(|_| sources.connect(&OPTIONS).ok()).collect();
    let mut from: Vec<_> = begun.iter().filter_map(|begun| begun.port).collect();
    from.sort_unstable();
    assert_eq!(from, [ports[0], ports[2]]);
}

#[test]
fn a_source_that_is_not_local_is_reported() {
    let _no_process_starts = process_start::prevent();
    // RFC 5737: reserved for documentation.
    let addresses = ["192.0.2.1".parse().unwrap()];
    let target = vec!["127.0.0.1:9".parse().unwrap()];
    let mut sources = Sources::with_ports(&addresses, &[target], 3, vec![20_000, 20_001]).unwrap();
    let not_local = ConnectFailure { phase: Phase::Bind, error: ErrorName::NotLocal, errno: Some(libc::EADDRNOTAVAIL) };
    for _ in 0..3 {
        assert_eq!(sources.connect(&OPTIONS).unwrap_err(), not_local);
    }
    // Nor is its failure hidden by a source that is, or by the next address of the target.
    let (_servers, targets) = servers(loopback::<1>()[0], 2);
    let local = loopback::<1>()[0];
    let ports = free_ports(&[local], 4);
    let mut sources = Sources::with_ports(&[local, addresses[0]], &[targets.concat()], 3, ports).unwrap();
    assert_eq!(sources.connect(&OPTIONS).map(|client| client.pair), Ok(0));
    assert_eq!(sources.connect(&OPTIONS).unwrap_err(), not_local);
}

#[test]
fn the_next_address_is_used_if_a_connect_fails_at_once() {
    let (_servers, mut targets) = servers(loopback::<1>()[0], 1);
    // TCP has no multicast.
    let multicast: AnyAddress = "224.0.0.1:9".parse().unwrap();
    let mut sources = Sources::new(&[], &[vec![multicast.clone()]], 3, Rank::ALONE).unwrap();
    let failure = sources.connect(&OPTIONS).unwrap_err();
    assert_eq!((failure.phase, failure.error), (Phase::Connect, ErrorName::Unreachable));

    targets[0].insert(0, multicast);
    let mut sources = Sources::new(&[], &targets, 3, Rank::ALONE).unwrap();
    let pair = sources.connect(&OPTIONS).unwrap().pair;
    assert_eq!(sources.pair(pair), (None, &targets[0][1]));
}

#[test]
fn the_pairs_of_a_source_begin_with_different_ports_whatever_the_seed() {
    let _no_process_starts = process_start::prevent();
    for seed in [0, u64::MAX] {
        let (_servers, targets) = servers(loopback::<1>()[0], 8);
        let addresses = loopback::<1>();
        let ports = free_ports(&addresses, 100);
        let mut sources = Sources::with_ports(&addresses, &targets, seed, ports).unwrap();
        let first = (0..8).map(|_| sources.connect(&OPTIONS).unwrap().port);
        // Two of them may meet by chance.
        assert!(distinct(first).len() >= 6, "seed {seed}");
    }
}

#[test]
fn every_port_is_tried_once_if_connects_fail_later() {
    let _no_process_starts = process_start::prevent();
    let (_servers, targets) = servers(loopback::<1>()[0], 1);
    let addresses = loopback::<1>();
    let ports = free_ports(&addresses, 5);
    let mut sources = Sources::with_ports(&addresses, &targets, 3, ports).unwrap();
    let mut connecting = sources.connect(&OPTIONS).unwrap();
    let mut tried = vec![connecting.port];
    let failure = loop {
        match sources.retry(connecting.pair, connecting.port, &OPTIONS) {
            Ok(next) => connecting = next,
            Err(failure) => break failure,
        }
        tried.push(connecting.port);
    };
    assert_eq!(failure, NO_PORTS);
    assert_eq!((tried.len(), distinct(tried).len()), (5, 5));
}

#[test]
fn without_sources_the_system_chooses() {
    let (servers, targets) = servers(loopback::<1>()[0], 2);
    let mut sources = Sources::new(&[], &targets, 3, Rank::ALONE).unwrap();
    for server in [0, 1, 0, 1] {
        let client = sources.connect(&OPTIONS).unwrap();
        assert_eq!((client.pair, client.port), (server, None));
        let (_, address) = servers[server as usize].accept().unwrap();
        assert_eq!(client.stream.local_addr().unwrap(), address);
        sources.release(client.pair, client.port);
    }
}

#[test]
fn a_socket_has_the_options_before_it_connects() {
    let (_servers, targets) = servers(loopback::<1>()[0], 1);
    let mut sources = Sources::new(&[], &targets, 3, Rank::ALONE).unwrap();
    let options = SocketOptions { nodelay: true, recv_buffer: Some(8192), send_buffer: Some(16384) };
    let stream = sources.connect(&options).unwrap().stream;
    let socket = socket2::SockRef::from(&stream);
    // socket(7): the kernel doubles them.
    assert_eq!((socket.recv_buffer_size().unwrap(), socket.send_buffer_size().unwrap()), (16384, 32768));
    assert!(stream.nodelay().unwrap() && socket.reuse_address().unwrap());
    let stream = sources.connect(&SocketOptions::default()).unwrap().stream;
    assert!(!stream.nodelay().unwrap());
}

/// Runs `test` of this file in its own network namespace, with a range of 2,000 ports. Returns whether this is that run.
fn is_in_namespace(test: &str) -> bool {
    const MARK: &str = "ECOLOOP_TEST_NAMESPACE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let namespace = format!("ecoloop-{}-{test}", std::process::id());
    let ip = |arguments: &[&str]| run(Command::new("ip").args(arguments)).status.success();
    assert!(ip(&["netns", "add", &namespace]));
    let script = "ip link set lo up && echo 20000 21999 >/proc/sys/net/ipv4/ip_local_port_range && exec \"$@\"";
    let mut inner = Command::new("ip");
    inner.args(["netns", "exec", &namespace, "sh", "-c", script, "sh"]).arg(std::env::current_exe().unwrap());
    inner.args(["--exact", "--ignored", "--nocapture", &format!("load::sources::tests::{test}")]).env(MARK, "1");
    let inner = run(&mut inner);
    assert!(ip(&["netns", "delete", &namespace]));
    let stdout = String::from_utf8_lossy(&inner.stdout);
    assert!(
        inner.status.success() && stdout.contains("1 passed"),
        "{stdout}{}",
        String::from_utf8_lossy(&inner.stderr)
    );
    false
}

#[test]
#[ignore = "needs root, for a network namespace with a port range of 2000, and 14,100 descriptors"]
fn each_pair_holds_2000_connections_with_2000_ports() {
    if !is_in_namespace("each_pair_holds_2000_connections_with_2000_ports") {
        return;
    }
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    for (sources_count, targets_count, asked, held_most) in
        [(3, 1, 5500, 5500), (1, 2, 3500, 3500), (2, 2, 7000, 7000), (1, 1, 2500, 2000)]
    {
        let (servers, targets) = servers(loopback::<1>()[0], targets_count);
        // The servers have another address, so no port of these is taken.
        let addresses = loopback::<3>()[..sources_count].to_vec();
        let mut sources = Sources::new(&addresses, &targets, 5, Rank::ALONE).unwrap();
        let (held, failure) = hold(&mut sources, &servers, asked);
        assert_eq!(held.len(), held_most, "{sources_count} sources, {targets_count} targets");
        assert_eq!(failure, (held_most < asked).then_some(NO_PORTS));
    }
}

#[test]
#[ignore = "needs root, for a network namespace with a port range of 2000"]
fn ports_in_time_wait_are_used_again() {
    if !is_in_namespace("ports_in_time_wait_are_used_again") {
        return;
    }
    let (servers, targets) = servers(loopback::<1>()[0], 1);
    let mut sources = Sources::new(&loopback::<1>(), &targets, 5, Rank::ALONE).unwrap();
    for round in 0..20_000 {
        let (held, failure) = hold(&mut sources, &servers, 1);
        assert_eq!(failure, None, "connection {round}");
        for Held { client, server } in held {
            // The end that closes first is in TIME_WAIT: the client's.
            drop(client.stream);
            sources.release(client.pair, client.port);
            drop(server);
        }
    }
    let sockets = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let waiting = sockets.split_once(" tw ").unwrap().1.split_once(' ').unwrap().0.parse::<u32>().unwrap();
    assert!(waiting > 1000, "only {waiting} in TIME_WAIT: nothing was tested");
}

#[test]
#[ignore = "needs root, for a network namespace with a port range of 2000, and 4,100 descriptors"]
fn the_system_runs_out_of_the_ports_it_chooses() {
    if !is_in_namespace("the_system_runs_out_of_the_ports_it_chooses") {
        return;
    }
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = TcpListener::bind("127.0.0.1:5000").unwrap();
    let mut sources = Sources::new(&[], &[vec![server.local_addr().unwrap().into()]], 5, Rank::ALONE).unwrap();
    let mut held = Vec::new();
    let failure = loop {
        match sources.connect(&OPTIONS) {
            Ok(client) => held.push((client, server.accept().unwrap())),
            Err(failure) => break failure,
        }
    };
    assert_eq!((failure.phase, failure.error), (Phase::Connect, ErrorName::NoPorts));
    assert_eq!(held.len(), 2000);

    std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let mut sources = Sources::new(&[], &[vec!["[::1]:5000".parse().unwrap()]], 5, Rank::ALONE).unwrap();
    let failure = sources.connect(&OPTIONS).unwrap_err();
    let unreachable =
        ConnectFailure { phase: Phase::Connect, error: ErrorName::Unreachable, errno: Some(libc::EADDRNOTAVAIL) };
    assert_eq!(failure, unreachable, "no address is not no ports");
}
