//! 3000 bytes wait in a socket, and the loop reads once for each event. `broken` is told of edges, and `fixed` of the level.
//!
//!     cargo run --example level_and_edge -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut connection, _) = listener.accept()?;
    client.write_all(&[b'a'; 3000])?;
    while connection.peek(&mut [0; 3000])? < 3000 {} // wait until the kernel has all of it

    let flags = if case == "broken" { EventFlags::IN | EventFlags::ET } else { EventFlags::IN };
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &connection, EventData::new_u64(1), flags)?;

    let mut reads = Vec::new();
    let mut events = Vec::with_capacity(8);
    loop {
        events.clear();
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&second))?;
        if events.is_empty() {
            println!("No event for a second.");
            break;
        }
        let count = connection.read(&mut [0; 1024])?;
        println!("An event, and a read of {count} bytes.");
        reads.push(count);
    }

    println!(r#"{{"case": "{case}", "sent": 3000, "reads": {reads:?}}}"#);
    Ok(())
}
