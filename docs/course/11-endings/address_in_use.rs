//! A server that closes first, and starts again on its port. `broken` has no `SO_REUSEADDR`. `fixed` has it.
//!
//!     cargo run --example address_in_use -- broken

use std::io::{self, Read};
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let reuse = case != "broken";
    let listener = listen(([127, 0, 0, 1], 0).into(), reuse)?;
    let address = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::Unsupported)?;

    let mut client = std::net::TcpStream::connect(address)?;
    let (connection, _) = listener.accept()?;
    drop(connection); // the server closes first: its end will be in TIME-WAIT
    assert_eq!(client.read(&mut [0; 1])?, 0);
    drop((client, listener));
    println!("The server has closed its connection, and has ended.");

    let result = match listen(address, reuse) {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.kind().to_string(),
    };
    println!("It starts again on the same port: {result}.");

    println!(r#"{{"case": "{case}", "second_bind": "{result}"}}"#);
    Ok(())
}

fn listen(address: SocketAddr, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(reuse)?;
    socket.bind(&address.into())?;
    socket.listen(5)?;
    Ok(socket)
}
