//! Thousands of connections at once, from this process to the binary's: what they cost it, and that none is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use crate::support::{Process, Scratch, TIMEOUT, assert_echoes, connect, eventually};

/// Descriptors that are left to the tests beside these.
const DESCRIPTORS_KEPT: u64 = 200;

/// Runs the tests of this file one after the other: two together would need more descriptors than the process has.
fn serial() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many clients, or as many as the hard limit of descriptors allows.
#[track_caller]
fn connect_many(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let limit = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let most = usize::try_from(limit.checked_sub(DESCRIPTORS_KEPT).unwrap()).unwrap();
    (0..count.min(most)).map(|_| connect(address)).collect()
}

/// Sends to all of them, each a message of its own, before it reads from any.
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
    eventually("the descriptors as they were", || process.descriptors() == before);

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

/// How often each thread of a process has been switched away from, of its own will or not.
#[track_caller]
fn switches(process: &Process) -> BTreeMap<String, Vec<String>> {
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

/// Waits until every thread has been asleep for a little.
#[track_caller]
fn settle(process: &Process) {
    let mut last = switches(process);
    eventually("rest", || {
        thread::sleep(Duration::from_millis(200));
        let now = switches(process);
        std::mem::replace(&mut last, now.clone()) == now
    });
}

/// None of its threads may run: who uses the processor is switched to, and then away from.
#[track_caller]
fn assert_sleeps(process: &Process) {
    settle(process);
    let before = switches(process);
    // There is no event to wait for: that none comes is what is tested.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(process), before);
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
    eventually("the descriptors as they were", || process.descriptors() == descriptors);
    assert_sleeps(&process);
}

/// Bytes of memory that a process at rest holds.
#[track_caller]
fn resident(process: &Process) -> usize {
    settle(process);
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid())).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    1024 * line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap()
}

/// What an idle connection may cost, in bytes. In a debug build mio's streams are larger, and so is the slab's entry.
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
    eventually("the descriptors as they were", || process.descriptors() == descriptors);
    let before = resident(&process);
    let mut clients = connect_many(address, 15_000);
    assert_all_echo(&mut clients);
    let rise = resident(&process) - before;
    assert!(rise <= IDLE_BYTES * clients.len(), "{rise} bytes for {} connections", clients.len());

    drop(clients);
    eventually("the descriptors as they were", || process.descriptors() == descriptors);
    let left = resident(&process).saturating_sub(before);
    assert!(left <= HEAP_TOP_BYTES, "{left} bytes left of {rise}");
}

/// A client with which little is on its way, so that it soon stalls.
#[track_caller]
fn connect_tiny(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_send_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

/// Sends until the server sleeps and nobody can send more: then it reads from none, since each has output pending.
#[track_caller]
fn stall(process: &Process, clients: &[TcpStream]) {
    eventually("a stall of all", || {
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

#[test]
fn pending_output_costs_at_most_one_buffer_and_its_memory_is_reused() {
    let _serial = serial();
    let (process, address) = Process::serve(&["--send-buffer", "4KiB", "--recv-buffer", "4KiB"]);
    let before = resident(&process);
    // What was not given back in one round would add to the next.
    for _ in 0..4 {
        let clients: Vec<_> = (0..2000).map(|_| connect_tiny(address)).collect();
        stall(&process, &clients);
        let rise = resident(&process) - before;
        assert!(rise > 256 * clients.len(), "{rise} bytes: is there output pending?");
        // An idle connection, a buffer, and what an allocator keeps beside its blocks.
        assert!(rise <= (IDLE_BYTES + 1024 + 64) * clients.len(), "{rise} bytes for {} connections", clients.len());
        drop(clients);
        settle(&process);
    }
}

/// After so long a SYN that was not answered is sent again (RFC 6298, 2).
const RETRANSMISSION: Duration = Duration::from_secs(1);

#[test]
fn a_burst_of_connects_on_the_servers_core_causes_no_syn_retransmission() {
    let _serial = serial();
    // A thread of its own, since what it does to itself lasts; the server that it starts inherits it.
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
    let sockets: Vec<_> = (0..2000).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let mut late = Vec::new();
    for socket in &sockets {
        socket.set_nonblocking(true).unwrap();
        let start = Instant::now();
        // It answers that it is under way, though on the loopback it mostly has succeeded by then.
        let _ = socket.connect(&address.into());
        if socket.peer_addr().is_err() {
            late.push((socket, start));
        }
    }
    for (socket, start) in late {
        eventually("a connection", || socket.peer_addr().is_ok());
        assert!(start.elapsed() < RETRANSMISSION, "connected after {:?}", start.elapsed());
    }
    for socket in sockets {
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        assert_echoes(&mut socket.into(), b"hola");
    }
}
