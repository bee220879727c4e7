//! Turn by turn beside other work: one thread, no waiting while there is work, and no spinning when there is none.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use ecoloop::{Config, Server, Turn};

/// Work that comes in pieces, each short enough that a client does not notice it.
struct Primes {
    next: u32,
    found: Vec<u32>,
    most: u32,
}

impl Primes {
    /// Does the next piece. Returns whether there is more.
    fn work(&mut self) -> bool {
        for _ in 0..100 {
            let number = self.next;
            if self
                .found
                .iter()
                .take_while(|&prime| prime * prime <= number)
                .all(|&prime| !number.is_multiple_of(prime))
            {
                self.found.push(number);
            }
            self.next += 1;
        }
        self.next <= self.most
    }
}

fn main() -> io::Result<()> {
    let mut server = Server::bind("127.0.0.1:0", Config::default())?;
    let (address, handle) = (server.local_addr(), server.handle());
    let client = thread::spawn(move || -> io::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        for _ in 0..100 {
            stream.write_all(b"hola")?;
            stream.read_exact(&mut [0; 4])?;
        }
        drop(stream);
        handle.drain();
        Ok(())
    });

    let mut primes = Primes { next: 2, found: Vec::new(), most: 50_000 };
    let mut has_work = true;
    // With work to do a turn takes what is ready and returns; without, it waits for a client. It never waits past its own deadline.
    while server.turn(has_work.then_some(Duration::ZERO))? == Turn::Running {
        has_work = has_work && primes.work();
    }
    while has_work {
        has_work = primes.work();
    }
    client.join().map_err(|_| io::Error::other("the client has panicked"))??;
    let stats = server.report().stats;
    println!("{} bytes echoed, {} primes found", stats.bytes_out, primes.found.len());
    Ok(())
}
