//! System calls that fail, which strace injects.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use crate::support::limit_descriptors;
use crate::support::{
    Ended, Process, Scratch, assert_echoes, assert_ended, await_injected, connect, ecoloop, eventually, half_close,
    pattern, strace, wrapped,
};

/// Every other call fails, from the first on.
const EVERY_OTHER: &str = "when=1+2";

/// For a test that sees the effect of its fault anyway.
const NO_TRACE: &str = "/dev/null";

#[test]
#[ignore = "needs strace"]
fn accept_errors_of_a_single_connection_are_ignored() {
    for error in [
        "ECONNABORTED",
        "EPROTO",
        "EPERM",
        "EINTR",
        "ENETDOWN",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
    ] {
        let ended = serve_five_clients_with(&format!("accept4:error={error}:{EVERY_OTHER}"), &[]);
        assert_eq!(warnings(&ended), [""; 0], "{error}");
    }
    // One connection may be accepted at a time, and an error is none.
    let ended = serve_five_clients_with(&format!("accept4:error=EPERM:{EVERY_OTHER}"), &["--accept-rate", "10"]);
    assert_eq!(warnings(&ended), [""; 0]);
}

#[test]
#[ignore = "needs strace"]
fn an_accept_error_that_lasts_is_logged_and_backed_off() {
    for error in ["EPERM", "EOPNOTSUPP", "EINTR"] {
        let trace = Scratch::new("strace");
        let (mut server, address) = serve(&format!("accept4:error={error}"), &[], trace.path());
        let waiting = connect(address);
        server.line_with("cannot accept on 127.0.0.1:");
        let calls = || fs::read_to_string(trace.path()).unwrap().matches("accept4(").count();
        let (start, calls_before) = (Instant::now(), calls());
        // Two bursts of 64, 100 ms apart.
        eventually("two bursts", || calls() >= calls_before + 128);
        assert!(start.elapsed() >= Duration::from_millis(100), "{error}: {:?}", start.elapsed());
        drop(waiting);
    }
}

#[test]
#[ignore = "needs strace"]
fn other_accept_errors_are_logged_once_and_retried() {
    for error in ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "EINVAL", "EIO"] {
        let ended = serve_five_clients_with(&format!("accept4:error={error}:{EVERY_OTHER}"), &[]);
        let warnings = warnings(&ended);
        assert!(matches!(warnings[..], [one] if one.contains("cannot accept on 127.0.0.1:")), "{error}: {warnings:?}");
    }
}

#[test]
#[ignore = "needs strace"]
#[cfg(target_os = "linux")]
fn running_out_of_descriptors_is_logged_right_after_another_accept_error() {
    let (mut server, address) = serve("accept4:error=EINVAL:when=1", &[], NO_TRACE);
    let mut client = connect(address);
    assert_echoes(&mut client, b"hola");
    server.line_with("Invalid argument");
    limit_descriptors(&server, Some(3));
    let waiting = connect(address);
    server.line_with("Too many open files");
    drop((client, waiting));
}

#[test]
#[ignore = "needs strace"]
fn a_call_that_fails_at_the_start_is_named_with_its_address() {
    for (fault, line) in [
        ("epoll_create1:error=EPERM", "cannot open a poll: Operation not permitted (os error 1)"),
        ("eventfd2:error=EPERM", "cannot open the waker of a poll: Operation not permitted (os error 1)"),
        ("listen:error=EPERM", "cannot listen on 127.0.0.1:0: Operation not permitted (os error 1)"),
        // The first registration is the waker's.
        ("epoll_ctl:error=EPERM:when=2+", "cannot wait for connections on 127.0.0.1:"),
    ] {
        let ended = Process::start(wrapped(strace(fault, NO_TRACE), &ecoloop(&["127.0.0.1:0"]))).wait();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let [last] = &ended.stderr[..] else { panic!("{ended:?}") };
        assert!(last.starts_with(&format!("ecoloop: {line}")), "{last}");
        assert!(!last.contains("choose a port"), "{last}");
    }
}

#[test]
#[ignore = "needs strace"]
fn interrupted_system_calls_are_retried() {
    let calls = "accept4,recvfrom,sendto,?epoll_wait,?epoll_pwait";
    // The last calls do not fail: the handler of SIGTERM may send from the same thread, and does not retry.
    let ended = serve_five_clients_with(&format!("{calls}:error=EINTR:when=1..19+2"), &[]);
    assert_eq!(warnings(&ended), [""; 0]);
}

/// Serves five clients while `fault` is injected, and terminates the server.
#[track_caller]
fn serve_five_clients_with(fault: &str, options: &[&str]) -> Ended {
    let trace = Scratch::new("strace");
    let (server, address) = serve(fault, options, trace.path());
    let mut clients: [_; 5] = std::array::from_fn(|_| connect(address));
    for client in &mut clients {
        assert_echoes(client, &pattern(3000));
    }
    for client in &mut clients {
        half_close(client);
        assert_ended(client);
    }
    let ended = server.terminate();
    let counts = "5 connections accepted, 5 closed (5 end of stream), 15000 bytes in, 15000 bytes out";
    assert!(ended.summary().contains(counts), "{fault}: {}", ended.summary());
    await_injected(&trace);
    ended
}

#[test]
#[ignore = "needs strace"]
fn a_failed_read_or_write_closes_only_that_connection() {
    for (fault, log_line) in [
        ("recvfrom:error=ETIMEDOUT:when=3", "Connection closed: error: timed out"),
        ("sendto:error=ETIMEDOUT:when=3", "Connection closed: error: timed out"),
        ("sendto:retval=0:when=3", "Connection closed: error: write zero"),
        ("recvfrom:error=ECONNRESET:when=3", "The client closed the connection abruptly"),
        ("sendto:error=EPIPE:when=3", "The client closed the connection abruptly"),
    ] {
        let (mut server, address) = serve(fault, &[], NO_TRACE);
        let mut clients: [_; 2] = std::array::from_fn(|_| connect(address));
        for client in &mut clients {
            assert_echoes(client, b"hola");
        }
        let [mut failed, mut other] = clients;
        failed.write_all(b"adios").unwrap();
        assert!(matches!(failed.read(&mut [0; 64]), Ok(0) | Err(_)), "{fault}");
        server.line_with(log_line);
        assert_echoes(&mut other, b"hola");
        half_close(&other);
        assert_ended(&mut other);
        let ended = server.terminate();
        assert!(
            ended.summary().contains("2 connections accepted, 2 closed (1 end of stream, 1 "),
            "{}",
            ended.summary()
        );
    }
}

#[test]
#[ignore = "needs strace"]
fn a_connection_that_cannot_be_registered_leaks_neither_descriptor_nor_key() {
    // The earlier calls register the waker, the listener and the first connection.
    let (mut server, address) = serve("epoll_ctl:error=ENOSPC:when=4", &["--max-connections", "2"], NO_TRACE);
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let descriptors = server.descriptors();

    let mut dropped = connect(address);
    assert_ended(&mut dropped);
    let line = server.line_with(" WARN ");
    assert!(line.contains(&format!("cannot serve {}", dropped.local_addr().unwrap())), "{line}");
    eventually("the descriptor closed", || server.descriptors() == descriptors);

    // The next connection is accepted within the limit of two, and gets the key of the dropped one.
    let mut next = connect(address);
    assert_echoes(&mut next, b"hola");
    half_close(&first);
    let key_of_first = key(&server.line_with("key "));
    half_close(&next);
    let key_of_next = key(&server.line_with("key "));
    assert_eq!(key_of_next, key_of_first + 1);
    let ended = server.terminate();
    assert!(ended.summary().contains("2 connections accepted, 2 closed (2 end of stream)"), "{}", ended.summary());
}

#[test]
#[ignore = "needs strace"]
#[cfg(feature = "load")]
fn churn_pauses_after_a_failed_registration() {
    use ecoloop::load::Report;
    use ecoloop::load::report::{Phase, Verdict};

    let server = crate::support::serve(ecoloop::Config::default());
    let address = server.local_addr().to_string();
    // The earlier calls register the timer and the waker.
    let churn = ecoloop(&["load", "--mode", "churn", "-c", "5", "-d", "500ms", "--json", "-", &address]);
    let ended = Process::start(wrapped(strace("epoll_ctl:error=ENOSPC:when=3+", NO_TRACE), &churn)).wait();
    let report = Report::from_json(&ended.stdout[0]).unwrap();
    let [error] = &report.errors[..] else { panic!("not one error: {:?}", report.errors) };
    assert_eq!((report.verdict, error.phase), (Verdict::Fail, Phase::Connect));
    // The pause is 10 ms (docs/reference.md).
    assert!((2..=51).contains(&error.count), "{error:?}");
}

#[test]
#[ignore = "needs strace"]
fn a_failed_read_of_the_signals_pipe_does_not_keep_the_server_from_ending() {
    let trace = Scratch::new("strace");
    let mut strace = strace("recvfrom:error=ENOMEM:when=1", trace.path());
    // The thread that waits for signals is traced too: its first call fails.
    strace.arg("-f");
    let mut server = Process::start(wrapped(strace, &ecoloop(&["127.0.0.1:0"])));
    server.listening();
    assert_eq!(server.terminate().status.code(), Some(0));
    await_injected(&trace);
}

/// Runs one in twenty cases, or as many as 40 seconds allow. `tests/errors/run` runs them all.
#[test]
#[ignore = "needs strace and Python, and the right to trace a process"]
#[cfg(all(target_os = "linux", feature = "load"))]
fn each_failed_system_call_costs_at_most_its_own_connection() {
    use std::process::Command;

    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/errors/run");
    let mut command = Command::new("python3");
    command.args([script, "--binary", env!("CARGO_BIN_EXE_ecoloop"), "--every", "20", "--seconds", "40"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains(" 0 failures"), "{output:?}");
}

/// Returns the key that a line of `-vv` names.
#[track_caller]
fn key(line: &str) -> usize {
    let (key, _) = line.split_once("key ").unwrap().1.split_once(':').unwrap();
    key.parse().unwrap()
}

/// Starts a server with `fault` injected into the system calls of its loop.
#[track_caller]
fn serve(fault: &str, arguments: &[&str], trace: &str) -> (Process, SocketAddr) {
    let server = ecoloop(&[&["127.0.0.1:0", "-vv"], arguments].concat());
    let mut process = Process::start(wrapped(strace(fault, trace), &server));
    let address = process.listening();
    (process, address)
}

/// Returns the warnings that the test has not waited for.
fn warnings(ended: &Ended) -> Vec<&str> {
    ended.stdout.iter().map(String::as_str).filter(|line| line.contains(" WARN ")).collect()
}
