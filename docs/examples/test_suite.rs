//! In a test suite: a client that reconnects, tested against a server that refuses, resets and delays.
//!
//! Each function below `main` is a test: put `#[test]` before it. Each has a server of its own on a free port, which stops when the
//! test ends, also when it fails.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use ecoloop::fault::Kind;
use ecoloop::{Config, Running, Server};

/// The client under test: it asks again over a new connection if the one that it has fails.
struct Client {
    server: SocketAddr,
    stream: Option<TcpStream>,
    attempts: u32,
    attempts_max: u32,
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        Self { server, stream: None, attempts: 0, attempts_max: 1000 }
    }

    /// Sends a request, and returns its reply.
    fn ask(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            self.attempts += 1;
            match self.attempt(request) {
                Err(error) if is_temporary(&error) && self.attempts < self.attempts_max => {
                    self.stream = None;
                    thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    fn attempt(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(TcpStream::connect(self.server)?),
        };
        stream.write_all(request)?;
        let mut reply = vec![0; request.len()];
        stream.read_exact(&mut reply)?;
        Ok(reply)
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof
    )
}

/// Returns an echo server with a fault. Dropped, it stops.
fn server_with(fault: &str) -> Result<Running, Box<dyn Error>> {
    let mut config = Config::default();
    config.faults = vec![fault.parse()?];
    Ok(Server::bind("127.0.0.1:0", config)?.spawn()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    a_client_connects_once_the_server_is_there()?;
    a_client_gives_up()?;
    a_client_asks_again_after_a_reset()?;
    a_client_waits_for_a_late_reply()
}

fn a_client_connects_once_the_server_is_there() -> Result<(), Box<dyn Error>> {
    let server = server_with("connect=refuse,at=0s..200ms")?;
    let mut client = Client::new(server.local_addr());
    assert_eq!(client.ask(b"hola")?, b"hola");
    println!("refused: connected later");
    Ok(())
}

fn a_client_gives_up() -> Result<(), Box<dyn Error>> {
    let server = server_with("connect=refuse")?;
    let mut client = Client::new(server.local_addr());
    client.attempts_max = 3;
    assert_eq!(client.ask(b"hola").map_err(|error| error.kind()), Err(ErrorKind::ConnectionRefused));
    assert_eq!(client.attempts, 3);
    println!("refused: gave up");
    Ok(())
}

fn a_client_asks_again_after_a_reset() -> Result<(), Box<dyn Error>> {
    // The first connection, after two bytes of the reply.
    let server = server_with("reset=2,first=1")?;
    let mut client = Client::new(server.local_addr());
    assert_eq!(client.ask(b"hola")?, b"hola");
    assert_eq!(client.attempts, 2);
    assert_eq!(server.handle().stats().faults.get(Kind::Reset), 1);
    println!("reset: asked again");
    Ok(())
}

fn a_client_waits_for_a_late_reply() -> Result<(), Box<dyn Error>> {
    let server = server_with("delay=100ms")?;
    let mut client = Client::new(server.local_addr());
    assert_eq!(client.ask(b"hola")?, b"hola");
    assert_eq!(client.attempts, 1);
    println!("delay: waited");
    Ok(())
}
