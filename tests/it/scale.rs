//! Thousands of connections to the binary: their memory, their descriptors, and that each is echoed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};

#[cfg(feature = "load")]
use crate::support::ecoloop;
use crate::support::{
    Process, Scratch, TIMEOUT, assert_echoes, connect, connect_with_buffers, eventually, raise_descriptors, serial,
};
#[cfg(target_os = "linux")]
use crate::{limits::limit_memory, support::assert_ended};

/// Descriptors reserved for the tests that run in parallel.
const DESCRIPTORS_KEPT: u64 = 200;

/// Connects `count` clients, or as many as the hard limit of descriptors allows.
#[track_caller]
fn connect_many(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let most = usize::try_from(raise_descriptors() - DESCRIPTORS_KEPT).unwrap();
    (0..count.min(most)).map(|_| connect(address)).collect()
}

/// Sends a different message to each client, and then reads all echoes.
#[track_caller]
fn assert_all_echo(clients: &mut [TcpStream]) {
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(&number.to_be_bytes()).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut echo = [0; size_of::<usize>()];
        client.read_exact(&mut echo).unwrap();
        assert_eq!(usize::from_be_bytes(echo), number);
    }
}

#[test]
fn ten_thousand_connections_are_echoed_and_leak_no_descriptor() {
    let _serial = serial();
    let report = Scratch::new("ten-thousand");
    let (process, address) = Process::serve(&["--report", report.path()]);
    let before = process.descriptors();
    let mut clients = connect_many(address, 10_000);
    let count = clients.len();
    for _ in 0..2 {
        assert_all_echo(&mut clients);
    }
    assert_eq!(process.descriptors().len(), before.len() + count);
    drop(clients);
    eventually("only the descriptors of before", || process.descriptors() == before);

    assert!(process.terminate().status.success());
    let json = report.json();
    for (figure, expected) in [
        (&json["accepted"], count),
        (&json["closed"]["end_of_stream"], count),
        (&json["bytes_in"], count * 2 * size_of::<usize>()),
        (&json["bytes_out"], count * 2 * size_of::<usize>()),
    ] {
        assert_eq!(*figure, expected, "{json}");
    }
}

/// Returns the context switches of each thread, voluntary and involuntary.
#[track_caller]
fn context_switches(process: &Process) -> BTreeMap<String, Vec<String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    tasks
        .map(|task| {
            let path = task.unwrap().path();
            let status = fs::read_to_string(path.join("status")).unwrap();
            let counts = status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned);
            (path.display().to_string(), counts.collect())
        })
        .collect()
}

/// Waits until no thread has run for 200 ms.
#[track_caller]
fn settle(process: &Process) {
    let mut last = context_switches(process);
    eventually("200 ms without a context switch", || {
        thread::sleep(Duration::from_millis(200));
        let now = context_switches(process);
        std::mem::replace(&mut last, now.clone()) == now
    });
}

/// No thread of the process may run for a second: a thread that runs is switched to, and away from.
#[track_caller]
fn assert_sleeps(process: &Process) {
    settle(process);
    let before = context_switches(process);
    // There is no event to wait for: its absence is the property.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(context_switches(process), before);
}

#[test]
fn an_idle_server_never_wakes_up_with_ten_thousand_connections_or_none() {
    let _serial = serial();
    let (process, address) = Process::serve(&[]);
    let descriptors = process.descriptors();
    assert_sleeps(&process);
    let mut clients = connect_many(address, 10_000);
    assert_all_echo(&mut clients);
    assert_sleeps(&process);
    drop(clients);
    eventually("only the descriptors of before", || process.descriptors() == descriptors);
    assert_sleeps(&process);
}

/// Returns the resident memory of an idle process, in bytes.
#[track_caller]
fn resident(process: &Process) -> usize {
    settle(process);
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    1024 * line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap()
}

/// Maximum memory of an idle connection, in bytes. In a debug build mio's streams are larger, and so is the slab's entry.
const IDLE_BYTES: usize = if cfg!(debug_assertions) { 96 } else { 64 };

/// glibc keeps up to 128 KiB at the top of its heap (mallopt(3), `M_TRIM_THRESHOLD`), and as much again for what lies below.
const HEAP_TOP_BYTES: usize = 256 * 1024;

#[test]
fn an_idle_connection_costs_at_most_64_bytes() {
    let _serial = serial();
    let (process, address) = Process::serve(&[]);
    let descriptors = process.descriptors();
    // The first peak fills the log's queue, which keeps its memory: up to 1 MiB, as documented.
    assert_all_echo(&mut connect_many(address, 15_000));
    eventually("only the descriptors of before", || process.descriptors() == descriptors);
    let before = resident(&process);
    let mut clients = connect_many(address, 15_000);
    assert_all_echo(&mut clients);
    let rise = resident(&process).saturating_sub(before);
    assert!(rise <= IDLE_BYTES * clients.len(), "{rise} bytes for {} connections", clients.len());

    drop(clients);
    eventually("only the descriptors of before", || process.descriptors() == descriptors);
    let left = resident(&process).saturating_sub(before);
    assert!(left <= HEAP_TOP_BYTES, "{left} bytes left of {rise}");
}

#[test]
#[cfg(feature = "load")]
#[expect(clippy::cast_precision_loss, reason = "some megabytes")]
fn a_load_reports_the_memory_that_a_connection_takes_of_the_server() {
    const CONNECTIONS: usize = 15_000;

    let _serial = serial();
    let (process, address) = Process::serve(&["--log-connections", "none"]);
    let (before, descriptors) = (resident(&process), process.descriptors().len());
    let [count, pid, address] = [CONNECTIONS.to_string(), process.pid().to_string(), address.to_string()];
    let hold = ["load", "--mode", "hold", "-d", "5s", "--json", "-", "-c", &count, "--server-pid", &pid, &address];
    let load = Process::start(ecoloop(&hold));
    eventually("all connections", || process.descriptors().len() == descriptors + CONNECTIONS);
    let rise = resident(&process).saturating_sub(before) as f64;
    let report: serde_json::Value = serde_json::from_str(&load.wait().stdout[0]).unwrap();
    let reported = report["server"]["rss_bytes_per_connection"].as_f64().unwrap() * CONNECTIONS as f64;
    assert!((reported - rise).abs() <= HEAP_TOP_BYTES as f64, "{reported} and {rise} bytes");
}

#[test]
#[cfg(target_os = "linux")]
fn a_connection_for_which_there_is_no_memory_is_dropped_and_the_others_are_served() {
    /// Connections, and the listener, for which a server reserves room at its start.
    const RESERVED: usize = 4096;

    let _serial = serial();
    let (mut server, address) = Process::serve(&["--log-connections", "none"]);
    let mut clients = connect_many(address, RESERVED - 50);
    assert_eq!(clients.len(), RESERVED - 50, "the hard limit of descriptors is too low for this test");
    assert_all_echo(&mut clients);
    // Less than the room grows by, and enough for everything else.
    limit_memory(&server, 160 << 10);
    clients.extend(connect_many(address, 100));
    server.line_with(": out of memory; the connection is dropped");
    for mut dropped in clients.split_off(RESERVED - 1) {
        assert_ended(&mut dropped);
    }
    assert_all_echo(&mut clients);

    // One that closes makes room for another.
    let open = server.descriptors().len();
    drop(clients.pop());
    eventually("the descriptor closed", || server.descriptors().len() < open);
    assert_echoes(&mut connect(address), b"hola");
    drop(clients);
    assert!(server.terminate().status.success());
}

/// Connects a client with the smallest socket buffers, which are full soon.
#[track_caller]
fn connect_tiny(address: SocketAddr) -> TcpStream {
    let stream = connect_with_buffers(address, 4096);
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Sends until no client can send more and the server is idle: then every connection has pending output.
#[track_caller]
fn stall(process: &Process, clients: &[TcpStream]) {
    eventually("pending output on every connection", || {
        let mut sent = 0;
        for mut client in clients {
            while let Ok(n) = client.write(&[b'x'; 4096]) {
                sent += n;
            }
        }
        settle(process);
        sent == 0
    });
}

/// A share of the log's queue, which holds 1 MiB at most.
const LOG_BYTES: usize = 256 * 1024;

#[test]
fn pending_output_costs_at_most_one_buffer_and_its_memory_is_reused() {
    let _serial = serial();
    let (process, address) = Process::serve(&["--send-buffer", "4KiB", "--recv-buffer", "4KiB"]);
    let descriptors = process.descriptors();
    // The first peak fills the log's queue, as above.
    assert_all_echo(&mut connect_many(address, 2000));
    eventually("the descriptors as they were", || process.descriptors() == descriptors);
    let before = resident(&process);
    // Memory that is not reused would add up from one round to the next.
    for _ in 0..4 {
        let clients: Vec<_> = (0..2000).map(|_| connect_tiny(address)).collect();
        stall(&process, &clients);
        let rise = resident(&process).saturating_sub(before);
        assert!(rise > 256 * clients.len(), "{rise} bytes: no output is pending");
        // An idle connection, its buffer of 1,024 bytes, and the allocator's overhead; and what the log's queue may have grown by.
        let expected = (IDLE_BYTES + 1024 + 64) * clients.len() + LOG_BYTES;
        assert!(rise <= expected, "{rise} bytes for {} connections", clients.len());
        drop(clients);
        settle(&process);
    }
}

/// A socket that is not connected after this time has lost its SYN, which is sent again after a second (RFC 6298, section 2).
const LOST: Duration = Duration::from_millis(900);

#[test]
fn a_burst_of_connects_on_the_servers_core_causes_no_syn_retransmission() {
    let _serial = serial();
    // In a new thread, because the affinity outlasts the test. The server inherits it.
    thread::spawn(|| {
        let allowed = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| allowed.is_set(core)).unwrap();
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).unwrap();
        let (process, address) = Process::serve(&[]);
        assert_eq!(sched_getaffinity(Some(process.pid())).unwrap().count(), 1);
        assert_burst_is_served(address);
    })
    .join()
    .unwrap();
}

#[track_caller]
fn assert_burst_is_served(address: SocketAddr) {
    eventually("a burst that takes less time than a SYN that is lost", || {
        let sockets: Vec<_> = (0..2000).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
        let (begin, mut late) = (Instant::now(), Vec::new());
        for socket in &sockets {
            socket.set_nonblocking(true).unwrap();
            let start = Instant::now();
            // `connect` returns EINPROGRESS, though on the loopback the handshake is mostly done by then.
            let _ = socket.connect(&address.into());
            if socket.peer_addr().is_err() {
                late.push((socket, start));
            }
        }
        if !late.is_empty() && begin.elapsed() >= LOST {
            return false;
        }
        for (socket, start) in late {
            eventually("a connection", || {
                let waited = start.elapsed();
                let is_connected = socket.peer_addr().is_ok();
                assert!(is_connected || waited < LOST, "not connected after {waited:?}");
                is_connected
            });
        }
        for socket in sockets {
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            assert_echoes(&mut socket.into(), b"hola");
        }
        true
    });
}
