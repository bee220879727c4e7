//! Which clients are served: those over a limit wait, or are reset and counted.

use std::io::Write;
use std::time::{Duration, Instant};

use ecoloop::{Config, WhenFull};
use serde_json::json;

use crate::support::{
    Process, Scratch, assert_echoes, assert_ended, assert_receives, assert_reset, connect, connect_from, eventually,
    half_close, serve,
};

#[test]
fn when_full_clients_are_reset_until_a_connection_closes() {
    let mut config = Config::default();
    config.max_connections = 1;
    config.when_full = WhenFull::Reset;
    let server = serve(config);
    let stats = || server.handle().stats();
    let mut first = connect(server.local_addr());
    assert_echoes(&mut first, b"hola");
    for _ in 0..100 {
        assert_reset(connect(server.local_addr()));
    }
    assert_echoes(&mut first, b"hola");
    assert_eq!((stats().accepted, stats().refused.max_connections, stats().refused.total()), (1, 100, 100));
    half_close(&first);
    assert_ended(&mut first);
    eventually("the close", || stats().closed.total() == 1);
    assert_echoes(&mut connect(server.local_addr()), b"hola");
    assert_eq!((stats().accepted, stats().refused.total()), (2, 100));
}

#[test]
fn when_full_is_logged_once_and_each_reset_is_in_the_report() {
    let report = Scratch::new("full");
    let options = ["--max-connections", "1", "--when-full", "reset", "--report", report.path()];
    let (mut server, address) = Process::serve(&options);
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    server.line_with("WARN  [ecoloop] 1 connection is open, the maximum: more are reset until one closes");
    for _ in 0..3 {
        assert_reset(connect(address));
    }
    half_close(&first);
    assert_ended(&mut first);
    let ended = server.terminate();
    assert!(ended.summary().contains("1 connection accepted, 1 closed (1 end of stream), 3 refused, "), "{ended:?}");
    assert!(!ended.stdout.iter().any(|line| line.contains("WARN")), "{ended:?}");
    assert_eq!(report.json()["refused"], json!({"max_connections": 3, "per_source": 0, "not_allowed": 0}));
}

#[test]
fn only_clients_in_an_allowed_network_are_served() {
    let report = Scratch::new("allow");
    let allow = ["--allow", "127.0.0.4/30", "--allow", "127.0.0.99", "--allow", "2001:db8::/32"];
    let (mut server, address) = Process::serve(&[&allow[..], &["--report", report.path()]].concat());
    for stranger in [1, 3, 8, 98] {
        assert_reset(connect_from([127, 0, 0, stranger], address));
    }
    let line = server.line_with("WARN");
    assert!(line.contains("reset the connection from 127.0.0.1:"), "{line}");
    for friend in [4, 7, 99] {
        let mut client = connect_from([127, 0, 0, friend], address);
        assert_echoes(&mut client, b"hola");
        half_close(&client);
        assert_ended(&mut client);
    }
    let ended = server.terminate();
    assert!(ended.summary().contains("3 connections accepted, 3 closed (3 end of stream), 4 refused, "), "{ended:?}");
    assert!(!ended.stdout.iter().any(|line| line.contains("WARN")), "logged more than once: {ended:?}");
    assert_eq!(report.json()["refused"], json!({"max_connections": 0, "per_source": 0, "not_allowed": 4}));
}

#[test]
fn a_source_above_its_limit_is_reset_until_one_of_its_connections_closes() {
    let report = Scratch::new("source");
    let (mut server, address) = Process::serve(&["--max-per-source", "2/30", "--report", report.path()]);
    let mut clients = [[127, 0, 0, 5], [127, 0, 0, 6], [127, 0, 0, 8]].map(|source| connect_from(source, address));
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    for _ in 0..3 {
        assert_reset(connect_from([127, 0, 0, 7], address));
    }
    let line = server.line_with("WARN");
    assert!(line.ends_with(": 127.0.0.4/30 has 2 open, the maximum"), "{line}");
    half_close(&clients[0]);
    assert_ended(&mut clients[0]);
    let mut next = connect_from([127, 0, 0, 7], address);
    assert_echoes(&mut next, b"hola");
    for client in clients[1..].iter_mut().chain([&mut next]) {
        half_close(client);
        assert_ended(client);
    }
    let ended = server.terminate();
    assert!(ended.summary().contains("4 connections accepted, 4 closed (4 end of stream), 3 refused, "), "{ended:?}");
    assert!(!ended.stdout.iter().any(|line| line.contains("WARN")), "logged more than once: {ended:?}");
    assert_eq!(report.json()["refused"], json!({"max_connections": 0, "per_source": 3, "not_allowed": 0}));
}

#[test]
fn clients_above_the_accept_rate_wait_in_the_backlog() {
    let (server, address) = Process::serve(&["--accept-rate", "10/s"]);
    let start = Instant::now();
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let mut waiting: Vec<_> = (0..4).map(|_| connect(address)).collect();
    for client in &mut waiting {
        client.write_all(b"adios").unwrap();
        assert_echoes(&mut first, b"hola");
    }
    for client in &mut waiting {
        assert_receives(client, b"adios");
    }
    // One at once, and four at ten a second.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    drop((first, waiting));
    let ended = server.terminate();
    assert!(ended.summary().contains("5 connections accepted, 5 closed (5 end of stream), "), "{ended:?}");
}

#[test]
fn a_close_does_not_exceed_the_accept_rate() {
    let mut config = Config::default();
    config.accept_rate = Some(20.0);
    let server = serve(config);
    let start = Instant::now();
    // The first two may come at once.
    for _ in 0..6 {
        let mut client = connect(server.local_addr());
        assert_echoes(&mut client, b"hola");
        half_close(&client);
        assert_ended(&mut client);
    }
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    assert_eq!(server.handle().stats().accepted, 6);
}
