//! 500 clients that say nothing. `broken` gives each a thread. `fixed` gives all of them to the loop of ecoloop.
//!
//!     cargo run --example thread_each -- broken

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::{fs, thread};

const CLIENTS: u64 = 500;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let case = std::env::args().nth(1).unwrap_or("broken".into());
    let mut running = None; // keeps the loop alive until the end of main
    let address = if case == "broken" {
        serve_each_on_a_thread()?
    } else {
        let server = ecoloop::Server::bind("127.0.0.1:0", ecoloop::Config::default())?.spawn()?;
        running.insert(server).local_addr()
    };
    let _first = connect(address)?; // what the first client costs is not counted

    let (resident, addresses, threads) = (status("VmRSS")?, status("VmSize")?, status("Threads")?);
    let clients: Vec<TcpStream> = (0..CLIENTS).map(|_| connect(address)).collect::<io::Result<_>>()?;
    let threads_more = status("Threads")? - threads;
    let bytes = (status("VmRSS")? - resident) * 1024 / CLIENTS;
    let address_bytes = (status("VmSize")? - addresses) * 1024 / CLIENTS;
    println!("{CLIENTS} clients are connected.");
    println!("The process has {threads_more} more threads.");
    println!("Each client costs {} of memory.", in_kib(bytes));
    println!("Each client costs {} of addresses.", in_kib(address_bytes));

    drop(clients);
    while status("Threads")? > threads {
        thread::yield_now();
    }
    println!("The clients have closed, and the process has as many threads as before.");

    println!(r#"{{"case": "{case}", "threads": {threads_more}, "bytes": {bytes}, "address_bytes": {address_bytes}}}"#);
    Ok(())
}

fn serve_each_on_a_thread() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            thread::spawn(move || echo(connection));
        }
    });
    Ok(address)
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

/// Connects a client, and makes sure that it is served.
fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

fn in_kib(bytes: u64) -> String {
    format!("{}.{} KiB", bytes / 1024, bytes % 1024 * 10 / 1024)
}

/// Returns a line of `/proc/self/status` as a number, of KiB or of threads.
fn status(name: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = line.and_then(|line| line.split_whitespace().next()).ok_or("no such line")?;
    Ok(number.parse()?)
}
