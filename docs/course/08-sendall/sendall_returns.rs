//! The server sends 200,000 bytes. `broken` is done when `write_all` returns. `fixed` waits until the client says that it has them.
//!
//!     cargo run --example sendall_returns -- broken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use socket2::{Domain, Socket, Type};

const BYTES: usize = 200_000;
static READ_BY_CLIENT: AtomicUsize = AtomicUsize::new(0);

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let (mut connection, mut client) = connect_with_buffers(212_992)?;

    connection.write_all(&vec![b'a'; BYTES])?;
    println!("write_all has returned.");
    let at_return = READ_BY_CLIENT.load(Ordering::SeqCst);
    println!("The client has read {at_return} bytes.");

    let client = thread::spawn(move || read_and_confirm(&mut client));
    if case != "broken" {
        connection.read_exact(&mut [0; 2])?;
        println!("The client has sent: ok.");
    }
    let at_end = if case == "broken" { at_return } else { READ_BY_CLIENT.load(Ordering::SeqCst) };
    println!("The server goes on, and the client has read {at_end} bytes.");
    client.join().map_err(|_| io::ErrorKind::Other)??;

    println!(r#"{{"case": "{case}", "written": {BYTES}, "read_at_return": {at_return}, "read_at_end": {at_end}}}"#);
    Ok(())
}

fn read_and_confirm(client: &mut TcpStream) -> io::Result<()> {
    while READ_BY_CLIENT.load(Ordering::SeqCst) < BYTES {
        let count = client.read(&mut [0; 4096])?;
        READ_BY_CLIENT.fetch_add(count, Ordering::SeqCst);
    }
    client.write_all(b"ok")
}

/// Returns both ends of a connection. Buffers of a fixed size: else the kernel enlarges them as it likes (tcp(7)).
fn connect_with_buffers(bytes: usize) -> io::Result<(TcpStream, TcpStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.set_send_buffer_size(bytes)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.set_recv_buffer_size(bytes)?;
    client.connect(&listener.local_addr()?)?;
    Ok((listener.accept()?.0.into(), client.into()))
}
