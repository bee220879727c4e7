//! A client and a server in one program. `broken` connects to a port that is closed. `fixed` says hola.
//!
//!     cargo run --example hello -- broken

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?; // port 0: the kernel chooses a free one
    let address = listener.local_addr()?;

    let received = if case == "broken" {
        drop(listener);
        match TcpStream::connect(address) {
            Ok(_) => println!("The client is connected."),
            Err(error) => println!("The client got an error: {error}"),
        }
        0
    } else {
        let mut client = TcpStream::connect(address)?;
        client.write_all("hola".as_bytes())?;
        let (mut connection, _) = listener.accept()?;
        let mut buffer = [0; 1024];
        let count = connection.read(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..count]);
        println!("The server has received {count} bytes: {text}");
        count
    };

    println!(r#"{{"case": "{case}", "received": {received}}}"#);
    Ok(())
}
