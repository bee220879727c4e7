//! The server sends 100,000 bytes and closes. `broken` closes with 14 unread bytes. `fixed` sends FIN, and reads to the end first.
//!
//!     cargo run --example close_unread -- broken

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;

use socket2::{Domain, Socket, Type};

const BYTES: usize = 100_000;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let (mut connection, mut client) = connect()?;
    client.write_all(b"and one more\r\n")?; // 14 bytes, which the server does not want any more
    while connection.peek(&mut [0; 14])? < 14 {} // wait until the kernel has them

    connection.write_all(&vec![b'a'; BYTES])?;
    let server = if case == "broken" {
        drop(connection);
        None
    } else {
        Some(thread::spawn(move || end_in_order(connection)))
    };

    let mut received = Vec::new();
    let result = client.read_to_end(&mut received);
    let end = match result {
        Ok(_) => "end of stream".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    println!("The server has sent {BYTES} bytes. The client has received {} and then: {end}.", received.len());
    drop(client);
    if let Some(server) = server {
        server.join().map_err(|_| io::ErrorKind::Other)??;
    }

    println!(r#"{{"case": "{case}", "sent": {BYTES}, "received": {}, "end": "{end}"}}"#, received.len());
    Ok(())
}

/// Sends FIN, and reads what the client still sends, until its FIN.
fn end_in_order(mut connection: TcpStream) -> io::Result<()> {
    connection.shutdown(Shutdown::Write)?;
    while connection.read(&mut [0; 1024])? > 0 {}
    Ok(())
}

/// Returns both ends of a connection. The client's buffer is small, so most of the bytes are on their way when the server closes.
fn connect() -> io::Result<(TcpStream, TcpStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_send_buffer_size(212_992)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.set_recv_buffer_size(4096)?;
    client.connect(&listener.local_addr()?)?;
    Ok((listener.accept()?.0.into(), client.into()))
}
