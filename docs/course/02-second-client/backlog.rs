//! Clients that nobody accepts. `broken` calls listen(5), as the notes do. `fixed` calls listen(128).
//!
//!     cargo run --example backlog -- broken

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

const CLIENTS: usize = 20;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let backlog = if case == "broken" { 5 } else { 128 };
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(backlog)?;
    let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;

    // The server is busy: it does not call accept.
    let mut clients = Vec::new();
    while clients.len() < CLIENTS {
        match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            Ok(client) => clients.push(client),
            Err(error) => {
                println!("Client {}: {error}", clients.len() + 1);
                break;
            }
        }
    }
    let connected = clients.len();
    println!("listen({backlog}): {connected} clients are connected, and none is accepted.");

    // The next client waits as long as it takes. Meanwhile the server accepts one of those in the queue.
    let waiting = thread::spawn(move || {
        let start = Instant::now();
        TcpStream::connect(address).map(|_| start.elapsed())
    });
    thread::sleep(Duration::from_millis(200));
    listener.accept()?;
    println!("The server has accepted one client.");
    let seconds = waiting.join().map_err(|_| io::ErrorKind::Other)??.as_secs_f64();
    println!("The next client was connected after {seconds:.2} s.");

    println!(r#"{{"case": "{case}", "connected": {connected}, "next_connected_after_s": {seconds:.2}}}"#);
    Ok(())
}
