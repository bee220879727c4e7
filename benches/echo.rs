//! What an echo costs through real sockets: a server on a thread of its own, and clients on loopback.

#![expect(clippy::unwrap_used, reason = "in a benchmark a panic is the answer")]

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

/// All send, and then all receive.
fn round_trips(clients: &mut [TcpStream]) {
    for client in &mut *clients {
        client.write_all(&[b'x'; MESSAGE_BYTES]).unwrap();
    }
    for client in clients {
        let mut echo = [0; MESSAGE_BYTES];
        client.read_exact(&mut echo).unwrap();
    }
}

/// A message on each of so many connections.
#[divan::bench(args = [1, 50, 500])]
fn one_message_each(bencher: Bencher<'_, '_>, connections: usize) {
    let (_server, mut clients) = connect(connections);
    bencher.counter(ItemsCount::new(connections)).bench_local(|| {
        round_trips(&mut clients);
    });
}

/// Connect, one message, close.
#[divan::bench]
fn one_connection(bencher: Bencher<'_, '_>) {
    let (server, _) = connect(0);
    bencher.bench_local(|| {
        let client = TcpStream::connect(server.local_addr()).unwrap();
        round_trips(&mut [client]);
    });
}
