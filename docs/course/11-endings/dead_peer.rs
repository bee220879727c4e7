//! The client has closed, and the server writes twice. `broken` takes the first success for an arrival. `fixed` reads first.
//!
//!     cargo run --example dead_peer -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (mut connection, _) = listener.accept()?;
    drop(client);
    poll(&mut [PollFd::new(&connection, PollFlags::RDHUP)], None)?; // wait until the FIN is here

    let mut results = Vec::new();
    if case == "broken" {
        results.push(name(connection.write(b"one")));
        poll(&mut [PollFd::new(&connection, PollFlags::empty())], None)?; // wait until the RST is here
        results.push(name(connection.write(b"two")));
        println!("The first write: {}. The second: {}.", results[0], results[1]);
    } else {
        results.push(name(connection.read(&mut [0; 64])));
        println!("The read: {}.", results[0]);
    }

    println!(r#"{{"case": "{case}", "results": {results:?}}}"#);
    Ok(())
}

fn name(result: io::Result<usize>) -> String {
    match result {
        Ok(count) => format!("{count} bytes"),
        Err(error) => error.kind().to_string(),
    }
}
