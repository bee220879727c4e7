//! Benchmarks an echo through real sockets: the server runs on another thread, and the clients connect over loopback.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::io::{Read, Write};
use std::net::TcpStream;

use divan::Bencher;
use divan::counter::ItemsCount;
use ecoloop::{Config, Running, Server};

const MESSAGE_BYTES: usize = 64;

fn main() {
    divan::main();
}

fn connect(connections: usize) -> (Running, Vec<TcpStream>) {
    let server = Server::bind("127.0.0.1:0", Config::default()).unwrap().spawn().unwrap();
    let mut clients = Vec::new();
    for _ in 0..connections {
        let client = TcpStream::connect(server.local_addr()).unwrap();
        client.set_nodelay(true).unwrap();
        clients.push(client);
    }
    (server, clients)
}

/// Sends on every client, then receives on every client.
fn round_trips(clients: &mut [TcpStream]) {
    for client in &mut *clients {
        client.write_all(&[b'x'; MESSAGE_BYTES]).unwrap();
    }
    for client in clients {
        let mut echo = [0; MESSAGE_BYTES];
        client.read_exact(&mut echo).unwrap();
    }
}

/// One message on each of `connections` connections.
#[divan::bench(args = [1, 50, 500])]
fn one_message_each(bencher: Bencher<'_, '_>, connections: usize) {
    let (_server, mut clients) = connect(connections);
    bencher.counter(ItemsCount::new(connections)).bench_local(|| {
        round_trips(&mut clients);
    });
}

/// One connection: connect, one message, close.
#[divan::bench]
fn one_connection(bencher: Bencher<'_, '_>) {
    let (server, _) = connect(0);
    bencher.bench_local(|| {
        let client = TcpStream::connect(server.local_addr()).unwrap();
        round_trips(&mut [client]);
    });
}
