//! Two clients connect while the loop is busy. `broken` accepts one for each event. `fixed` accepts until it would block.
//!
//!     cargo run --example accept_once -- broken

use std::io;
use std::time::Duration;

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    let address = listener.local_addr()?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, Token(0), Interest::READABLE)?;

    let _clients = [std::net::TcpStream::connect(address)?, std::net::TcpStream::connect(address)?];
    println!("Two clients have connected.");

    let mut events = Events::with_capacity(8);
    let mut accepted = Vec::new();
    loop {
        poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        if events.is_empty() {
            break;
        }
        if case == "broken" {
            accepted.push(listener.accept()?);
        } else {
            loop {
                match listener.accept() {
                    Ok(client) => accepted.push(client),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        println!("An event. The loop has accepted {} in total.", accepted.len());
    }
    println!("No event for a second.");

    println!(r#"{{"case": "{case}", "connected": 2, "accepted": {}}}"#, accepted.len());
    Ok(())
}
