//! The level of "writable". `broken` asks for it all the time. `fixed` asks for it while bytes are pending.
//!
//!     cargo run --example left_on -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut connection, _) = listener.accept()?;
    connection.set_nonblocking(true)?;
    let client = thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        client.write_all(b"hola")?;
        client.read_exact(&mut [0; 4])
    });

    let (mut wakes, mut pending) = (0, Vec::new());
    loop {
        let asks_to_write = case == "broken" || !pending.is_empty();
        let flags = if asks_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut sockets = [PollFd::new(&connection, flags)];
        poll(&mut sockets, None)?;
        wakes += 1;
        let ready = sockets[0].revents();
        if ready.contains(PollFlags::OUT) && !pending.is_empty() {
            let written = connection.write(&pending)?;
            pending.drain(..written);
        }
        if ready.contains(PollFlags::IN) {
            let mut buffer = [0; 1024];
            let count = connection.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            pending.extend_from_slice(&buffer[..count]);
        }
    }
    client.join().map_err(|_| io::ErrorKind::Other)??;
    println!("The loop was woken {wakes} times for one message.");

    println!(r#"{{"case": "{case}", "wakes": {wakes}}}"#);
    Ok(())
}
