//! A server over a transport that is not the library's: the TLS of `docs/examples/tls.rs`.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ecoloop::{Config, Running, Server};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use self::example::{TlsListener, new_certificate};
use crate::support::{TIMEOUT, connect, connect_narrow, connect_with_buffers, eventually, pattern};

#[path = "../../docs/examples/tls.rs"]
mod example;

type Client = StreamOwned<ClientConnection, TcpStream>;

#[track_caller]
fn serve_tls(config: Config) -> (Running<(), TlsListener>, Arc<ClientConfig>) {
    let (server, client) = new_certificate().unwrap();
    let listeners = TlsListener::bind("127.0.0.1:0".parse().unwrap(), &config, &server).unwrap();
    (Server::from_transport(listeners, config).unwrap().spawn().unwrap(), client)
}

#[track_caller]
fn handshake(stream: TcpStream, config: &Arc<ClientConfig>) -> Client {
    let session = ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    let mut client = StreamOwned::new(session, stream);
    client.conn.complete_io(&mut client.sock).unwrap();
    client
}

/// Asserts that 1000 messages of 100 bytes, each in a record of its own, come back whole.
#[track_caller]
fn assert_burst_echoes(client: &mut Client) {
    let message = pattern(100_000);
    for record in message.chunks(100) {
        client.write_all(record).unwrap();
    }
    let mut echo = vec![0; message.len()];
    client.read_exact(&mut echo).unwrap();
    assert!(echo == message, "the echo differs");
}

/// Says goodbye, and asserts that the server does.
#[track_caller]
fn assert_ends(mut client: Client) {
    client.conn.send_close_notify();
    client.flush().unwrap();
    assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
}

/// Bytes of each socket buffer of a client that sends a burst before it reads.
const BURST_BUFFER: usize = 1 << 20;

#[test]
fn bursts_over_tls_come_back_whole_across_a_key_update() {
    let (server, config) = serve_tls(Config::default());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = handshake(connect_with_buffers(server.local_addr(), BURST_BUFFER), &config);
                assert_burst_echoes(&mut client);
                client.conn.refresh_traffic_keys().unwrap();
                assert_burst_echoes(&mut client);
                assert_ends(client);
            });
        }
    });
    server.handle().drain();
    let report = server.join().unwrap();
    assert_eq!((report.stats.closed.end_of_stream, report.stats.bytes_out), (3, 600_000));
}

#[test]
fn tls_clients_that_stall_or_send_garbage_harm_nobody() {
    let mut config = Config::default();
    config.stall_timeout = Some(Duration::from_millis(300));
    let (server, tls) = serve_tls(config);
    let address = server.local_addr();
    let _silent = connect(address);
    let mut halfway = connect(address);
    // The beginning of a record of 512 bytes with a ClientHello.
    halfway.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).unwrap();
    let mut garbage = connect(address);
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    eventually("the end of the client that does not speak TLS", || server.handle().stats().closed.failed == 1);

    let mut greedy = handshake(connect_narrow(address), &tls);
    greedy.sock.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    // Without reading, until the server reads no more, finds that its own output is stuck, and resets the connection.
    while server.handle().stats().closed.stalled == 0 {
        assert!(Instant::now() < deadline, "not stalled: {:?}", server.handle().stats());
        match greedy.write(&[7; 16384]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(Duration::from_millis(1)),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
            }
            Ok(_) => {}
        }
    }
    let mut client = handshake(connect_with_buffers(address, BURST_BUFFER), &tls);
    assert_burst_echoes(&mut client);
    assert_ends(client);
}

#[test]
fn a_handshake_that_never_ends_is_idle() {
    let mut config = Config::default();
    config.idle_timeout = Some(Duration::from_millis(200));
    let (server, _) = serve_tls(config);
    let mut client = connect(server.local_addr());
    client.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).unwrap();
    // The TLS session says goodbye without keys, as an alert.
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(server.handle().stats().closed.idle, 1);
}

#[test]
fn a_drain_says_goodbye_to_a_tls_client() {
    let (server, tls) = serve_tls(Config::default());
    let mut client = handshake(connect(server.local_addr()), &tls);
    client.write_all(b"hola").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    server.handle().drain();
    assert_eq!(client.read(&mut [0; 64]).unwrap(), 0);
    assert_ends(client);
    assert_eq!(server.join().unwrap().stats.closed.drained, 1);
}

#[test]
fn faults_act_on_what_tls_carries() {
    let mut config = Config::default();
    config.faults = vec!["delay=5ms".parse().unwrap(), "flip=10".parse().unwrap()];
    let (server, tls) = serve_tls(config);
    let mut client = handshake(connect(server.local_addr()), &tls);
    client.write_all(b"0123456789").unwrap();
    let mut echo = [0; 10];
    client.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"0123456788", "the tenth byte has its lowest bit turned, and the record is whole");
    assert_ends(client);
}
