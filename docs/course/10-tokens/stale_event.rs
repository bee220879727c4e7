//! One batch of events: A has B thrown out, C connects, and B closes. `broken` frees B's key in the batch. `fixed` frees it after.
//!
//!     cargo run --example stale_event -- broken

use std::io::{self, Read, Write};
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

const LISTENER: Token = Token(usize::MAX);

struct Client {
    name: &'static str,
    stream: TcpStream,
}

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let address = listener.local_addr()?;
    let mut clients = Slab::new();
    let mut events = Events::with_capacity(8);

    let mut a = std::net::TcpStream::connect(address)?;
    accept("A", &listener, &poll, &mut clients)?;
    let b = std::net::TcpStream::connect(address)?;
    accept("B", &listener, &poll, &mut clients)?;
    poll.poll(&mut events, Some(Duration::from_millis(100)))?; // takes the events of the two connects

    // All of this happens before the loop looks again: one batch has it, in this order.
    a.write_all(b"throw out B")?;
    let _c = std::net::TcpStream::connect(address)?;
    drop(b);

    let mut freed = Vec::new();
    poll.poll(&mut events, Some(Duration::from_secs(1)))?;
    for event in &events {
        let Token(key) = event.token();
        if event.token() == LISTENER {
            accept("C", &listener, &poll, &mut clients)?;
        } else if event.is_read_closed() {
            if let Some(client) = clients.try_remove(key) {
                println!("key {key}: the event says that the client has closed. {} is out.", client.name);
            }
        } else if let Some(client) = clients.get_mut(key)
            && client.stream.read(&mut [0; 64]).is_ok()
        {
            println!("key {key}: {} has B thrown out.", client.name);
            if case == "broken" {
                clients.remove(1); // its key is free now
            } else {
                clients[1].name = "(nobody)";
                freed.push(1);
            }
        }
    }
    for key in freed {
        clients.try_remove(key);
    }
    let left: Vec<_> = clients.iter().map(|(_, client)| client.name).collect();
    println!("The server has: {}.", left.join(", "));

    println!(r#"{{"case": "{case}", "c_stays": {}}}"#, left.contains(&"C"));
    Ok(())
}

fn accept(name: &'static str, listener: &TcpListener, poll: &Poll, clients: &mut Slab<Client>) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let key = clients.vacant_key();
    poll.registry().register(&mut stream, Token(key), Interest::READABLE)?;
    println!("key {key}: {name} has connected.");
    clients.insert(Client { name, stream });
    Ok(())
}
