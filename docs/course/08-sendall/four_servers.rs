//! A client sends 2 MiB, and reads when it can send no more. `broken` shows three servers that lose, hoard or hang. `fixed` pauses.
//!
//!     cargo run --example four_servers -- broken

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

const SENT: usize = 2 << 20;
const WRITES_MAX: usize = 10_000;

/// What a server does with bytes that the send buffer does not take.
#[derive(Clone, Copy, PartialEq)]
enum Server {
    Forget,
    Hoard,
    Insist,
    Pause,
}

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let servers: &[(&str, Server)] = match case.as_str() {
        "broken" => &[("forget", Server::Forget), ("hoard", Server::Hoard), ("insist", Server::Insist)],
        _ => &[("pause", Server::Pause)],
    };
    let mut facts = vec![format!(r#""case": "{case}""#)];
    for &(name, server) in servers {
        let (received, kept, useless) = serve(server)?;
        println!("{name}: {received} bytes have come back, {kept} were kept at most, {useless} writes were useless.");
        facts.push(format!(r#""{name}": {{"received": {received}, "kept": {kept}, "useless": {useless}}}"#));
    }
    println!("{{{}}}", facts.join(", "));
    Ok(())
}

/// Lets the client and the server take turns, on one thread. Returns what came back, the most that the server kept, and how many of
/// its writes took nothing.
fn serve(server: Server) -> io::Result<(usize, usize, usize)> {
    let (mut connection, mut client) = connect_with_buffers(64 << 10)?;
    let (mut sent, mut taken, mut received, mut kept_most, mut useless) = (0, 0, 0, 0, 0);
    let mut pending = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let mut moved = or_zero(client.write(&[b'a'; 1024][..1024.min(SENT - sent)]))?;
        sent += moved;
        if server != Server::Pause || pending.is_empty() {
            let count = or_zero(connection.read(&mut buffer))?;
            pending.extend_from_slice(&buffer[..count]);
            (moved, taken) = (moved + count, taken + count);
        }
        let mut written = if pending.is_empty() { 0 } else { or_zero(connection.write(&pending))? };
        while server == Server::Insist && written < pending.len() && useless < WRITES_MAX {
            let more = or_zero(connection.write(&pending[written..]))?; // the client cannot read: this thread is here
            useless += usize::from(more == 0);
            written += more;
        }
        pending.drain(..written);
        if server == Server::Forget {
            pending.clear();
        }
        kept_most = kept_most.max(pending.len());
        if useless == WRITES_MAX {
            return Ok((received, kept_most, useless));
        }
        if taken == SENT && pending.is_empty() {
            connection.shutdown(Shutdown::Write)?;
        }
        // The client reads when it has sent everything, or when nothing moves any more.
        if sent == SENT || moved + written == 0 {
            match client.read(&mut [0; 16384]) {
                Ok(0) => return Ok((received, kept_most, useless)),
                result => received += or_zero(result)?,
            }
        }
    }
}

/// Takes "would block" for nothing.
fn or_zero(result: io::Result<usize>) -> io::Result<usize> {
    result.or_else(|error| if error.kind() == ErrorKind::WouldBlock { Ok(0) } else { Err(error) })
}

/// Returns both ends of a connection, with buffers of a fixed size, and non-blocking.
fn connect_with_buffers(bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_send_buffer_size(bytes)?;
    listener.set_recv_buffer_size(bytes)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.set_recv_buffer_size(bytes)?;
    client.set_send_buffer_size(bytes)?;
    client.connect(&listener.local_addr()?)?;
    let connection = listener.accept()?.0;
    connection.set_nonblocking(true)?;
    client.set_nonblocking(true)?;
    Ok((connection.into(), client.into()))
}
