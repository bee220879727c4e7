//! Two programs send 1 MiB to each other. In `broken` both finish sending before they read. In `fixed` one of them reads first.
//!
//!     cargo run --example two_polite_programs -- broken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

const BYTES: usize = 1 << 20;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let (ana, luis) = connect_with_buffers(64 << 10)?;
    let luis_reads_first = case != "broken";
    let (sender, done) = channel();
    for (name, stream, reads_first) in [("Ana", ana, false), ("Luis", luis, luis_reads_first)] {
        let sender = sender.clone();
        thread::spawn(move || {
            if exchange(stream, reads_first).is_ok() {
                let _ = sender.send(name); // main may have gone
            }
        });
    }

    let mut finished = 0;
    while finished < 2 && done.recv_timeout(Duration::from_secs(1)).is_ok() {
        finished += 1;
    }
    println!("{finished} of 2 programs have sent and received everything.");

    println!(r#"{{"case": "{case}", "finished": {finished}}}"#);
    Ok(())
}

fn exchange(mut stream: TcpStream, reads_first: bool) -> io::Result<()> {
    if reads_first {
        stream.read_exact(&mut vec![0; BYTES])?;
        stream.write_all(&vec![b'a'; BYTES])
    } else {
        stream.write_all(&vec![b'a'; BYTES])?;
        stream.read_exact(&mut vec![0; BYTES])
    }
}

/// Returns both ends of a connection, with buffers of a fixed size.
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
    Ok((listener.accept()?.0.into(), client.into()))
}
