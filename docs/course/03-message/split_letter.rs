//! A text of 1025 bytes whose last letter is ñ, two bytes. `broken` decodes each buffer. `fixed` echoes bytes as bytes.
//!
//!     cargo run --example split_letter -- broken

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;

    let text = "a".repeat(1023) + "ñ";
    client.write_all(text.as_bytes())?;
    client.shutdown(Shutdown::Write)?;
    println!("The client has sent {} letters in {} bytes.", text.chars().count(), text.len());

    match if case == "broken" { echo_text(server) } else { echo_bytes(server) } {
        Ok(()) => println!("The server has read to the end."),
        Err(error) => println!("The server has ended with an error: {error}"),
    }
    let mut echo = Vec::new();
    match client.read_to_end(&mut echo) {
        Ok(_) => println!("The client has received {} bytes, and the end.", echo.len()),
        Err(error) => println!("The client has received {} bytes, and an error: {}", echo.len(), error.kind()),
    }

    println!(r#"{{"case": "{case}", "sent": {}, "received": {}}}"#, text.len(), echo.len());
    Ok(())
}

/// As the notes do: what is received is text.
fn echo_text(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let text = str::from_utf8(&buffer[..count]).map_err(io::Error::other)?;
        connection.write_all(text.as_bytes())?;
    }
}

fn echo_bytes(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..count])?;
    }
}
