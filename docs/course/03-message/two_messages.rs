//! A client sends "hola" and then "mundo". `broken` takes each read for a message. `fixed` ends each message with a line feed.
//!
//!     cargo run --example two_messages -- broken

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    let (mut server, _) = listener.accept()?;

    let end = if case == "broken" { "" } else { "\n" };
    for message in ["hola", "mundo"] {
        client.write_all(format!("{message}{end}").as_bytes())?;
        println!("The client has sent: {message}");
    }
    drop(client);

    let sent = "holamundo".len() + 2 * end.len();
    while server.peek(&mut [0; 64])? < sent {} // wait until the kernel has all of it
    let messages = match case.as_str() {
        "broken" => by_reads(&mut server)?,
        _ => by_lines(&server)?,
    };
    for message in &messages {
        println!("The server has received: {message}");
    }

    println!(r#"{{"case": "{case}", "sent": 2, "received": {}}}"#, messages.len());
    Ok(())
}

fn by_reads(server: &mut TcpStream) -> io::Result<Vec<String>> {
    let mut messages = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let count = server.read(&mut buffer)?;
        if count == 0 {
            return Ok(messages);
        }
        messages.push(String::from_utf8_lossy(&buffer[..count]).into_owned());
    }
}

fn by_lines(server: &TcpStream) -> io::Result<Vec<String>> {
    BufReader::new(server).lines().collect()
}
