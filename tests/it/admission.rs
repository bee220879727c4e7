//! Which clients are served: those over a limit wait, or are reset and counted.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use ecoloop::{Config, WhenFull};
use serde_json::json;

use crate::support::{Process, Scratch, assert_echoes, assert_ended, connect, eventually, half_close, serve};

/// Asserts that the server resets the connection, and sends nothing before.
#[track_caller]
fn assert_reset(mut client: TcpStream) {
    assert_eq!(client.read(&mut [0; 64]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

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
    assert_eq!(report.json()["refused"], json!({"max_connections": 3}));
}
