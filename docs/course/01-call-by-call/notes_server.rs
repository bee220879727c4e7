//! The server of the notes, call by call. In `broken` the client resets the connection. In `fixed` it closes it.
//!
//!     cargo run --example notes_server -- fixed

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

const SOCK_BUFFER: usize = 1024;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?; // socket, bind and listen
    let address = listener.local_addr()?;
    println!("Iniciando servidor en IP {}, con puerto {}", address.ip(), address.port());

    let is_abrupt = case == "broken";
    let client = thread::spawn(move || act_as_client(address, is_abrupt));
    let received = serve_one(&listener)?;
    println!("Esperando conexiones...");
    client.join().map_err(|_| io::ErrorKind::Other)??;

    println!(r#"{{"case": "{case}", "received": {received}}}"#);
    Ok(())
}

/// Serves one client. The notes do this in `while True`.
fn serve_one(listener: &TcpListener) -> io::Result<usize> {
    println!("Esperando conexiones...");
    let (mut connection, client_address) = listener.accept()?;
    println!("Conexion desde: {client_address}");
    let mut received = 0;
    if let Err(error) = echo(&mut connection, &mut received) {
        if error.kind() != io::ErrorKind::ConnectionReset {
            return Err(error); // the notes do not catch it
        }
        println!("El cliente ha cerrado la conexion de forma abrupta");
    }
    println!("El cliente ha cerrado la conexion");
    Ok(received) // `connection` goes out of scope here: close
}

fn echo(connection: &mut TcpStream, received: &mut usize) -> io::Result<()> {
    let mut buffer = [0; SOCK_BUFFER];
    loop {
        let count = connection.read(&mut buffer)?; // recv
        if count == 0 {
            println!("No hay mas datos");
            return Ok(());
        }
        let data = &buffer[..count];
        println!("Recibido {}", String::from_utf8_lossy(data));
        connection.write_all(data)?; // sendall
        *received += count;
    }
}

/// Waits half a second, sends hola, receives the echo, and closes the connection or breaks it off.
fn act_as_client(server: SocketAddr, is_abrupt: bool) -> io::Result<()> {
    thread::sleep(Duration::from_millis(500));
    let mut stream = TcpStream::connect(server)?;
    thread::sleep(Duration::from_millis(500));
    stream.write_all(b"hola")?;
    stream.read_exact(&mut [0; 4])?;
    if is_abrupt {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)) // `drop` sends RST, not FIN
    } else {
        stream.shutdown(Shutdown::Write)
    }
}
