//! Two clients. `broken` serves one after the other, as the notes do. `fixed` gives each a thread.
//!
//!     cargo run --example second_client -- broken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

fn main() -> io::Result<()> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let listener = TcpListener::bind("127.0.0.1:0")?; // port 0: the kernel chooses a free one
    let address = listener.local_addr()?;
    if case == "broken" {
        thread::spawn(move || serve_one_after_the_other(&listener));
    } else {
        thread::spawn(move || serve_each_on_a_thread(&listener));
    }

    let mut first = connect(address)?;
    first.write_all(b"one")?;
    first.read_exact(&mut [0; 3])?;
    println!("The first client has its echo, and stays connected.");

    let mut second = connect(address)?;
    println!("The second client is connected.");
    second.write_all(b"two")?;
    let early = receive(&mut second)?;
    println!("The second client sent 3 bytes, and has received {early}.");

    drop(first);
    println!("The first client has closed.");
    let late = if early == 0 { receive_patiently(&mut second)? } else { 0 };
    println!("The second client has received {} of its 3 bytes.", early + late);

    println!(r#"{{"case": "{case}", "while_first_is_connected": {early}, "in_the_end": {}}}"#, early + late);
    Ok(())
}

/// The loop of the notes: the next `accept` comes when the client has gone.
fn serve_one_after_the_other(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (connection, _) = listener.accept()?;
        echo(connection)?;
    }
}

fn serve_each_on_a_thread(listener: &TcpListener) -> io::Result<()> {
    loop {
        let (connection, _) = listener.accept()?;
        thread::spawn(move || echo(connection));
    }
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = [0; 1024];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        connection.write_all(&buffer[..count])?;
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns how many bytes come within a second.
fn receive(stream: &mut TcpStream) -> io::Result<usize> {
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    match stream.read(&mut [0; 1024]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0), // the time is over
        result => result,
    }
}

fn receive_patiently(stream: &mut TcpStream) -> io::Result<usize> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.read(&mut [0; 1024])
}
