//! A client floods the server, and another one sends a ping. `broken` reads from each until it would block. `fixed` reads once from
//! each in turn.
//!
//!     cargo run --example flood -- broken

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, Socket, Type};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let reads_in_a_row = match case.as_str() {
        "broken" => usize::MAX,
        "sixteen" => 16,
        _ => 1,
    };
    let ((flood, mut flooding), (ping, mut pinging)) = (connect()?, connect()?);
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    for (token, connection) in [(0, &flood), (1, &ping)] {
        epoll::add(&epoll, connection, EventData::new_u64(token), EventFlags::IN | EventFlags::ET)?;
    }
    // Before the loop looks: as much of the flood as the buffers take, and one ping behind it.
    flooding.set_nonblocking(true)?;
    while flooding.write(&[b'f'; 1024]).is_ok() {}
    pinging.write_all(b"ping")?;

    let mut events = Vec::with_capacity(8);
    epoll::wait(&epoll, spare_capacity(&mut events), None)?;
    let mut run_queue: VecDeque<u64> = events.iter().map(|event| event.data.u64()).collect();
    let mut connections = [flood, ping];
    let mut reads = 0;
    while let Some(key) = run_queue.pop_front() {
        let is_flood = key == 0;
        for _ in 0..reads_in_a_row {
            match connections[usize::from(!is_flood)].read(&mut [0; 1024]) {
                Ok(_) => reads += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if !is_flood {
                println!("The ping was read by read number {reads}.");
                println!(r#"{{"case": "{case}", "ping_is_read": {reads}}}"#);
                return Ok(());
            }
        }
        if reads_in_a_row < usize::MAX {
            run_queue.push_back(key); // not drained: no edge will bring it back
        }
    }
    Ok(())
}

/// Returns both ends of a connection, with buffers of a fixed size. The server's end is non-blocking.
fn connect() -> io::Result<(TcpStream, TcpStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_recv_buffer_size(212_992)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.set_send_buffer_size(212_992)?;
    client.connect(&listener.local_addr()?)?;
    let connection = listener.accept()?.0;
    connection.set_nonblocking(true)?;
    Ok((connection.into(), client.into()))
}
