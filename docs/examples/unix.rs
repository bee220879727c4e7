//! An echo server on a Unix socket.
//!
//! `cargo run --example unix -- /run/user/1000/echo.sock` serves until Ctrl-C ends it; `nc -U` is a client. Without a path the program
//! is its own client, and ends.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use ecoloop::{Config, Server};

fn main() -> io::Result<()> {
    let mut config = Config::default();
    // Its owner and its group may connect.
    config.unix_mode = Some(0o660);
    if let Some(path) = std::env::args_os().nth(1) {
        println!("{}", Server::bind_unix(path, config)?.run()?.stats.accepted);
        return Ok(());
    }

    let path: PathBuf = std::env::temp_dir().join(format!("ecoloop-example-{}.sock", std::process::id()));
    let server = Server::bind_unix(&path, config)?.spawn()?;
    let mut client = UnixStream::connect(&path)?;
    client.write_all(b"hola")?;
    client.shutdown(Shutdown::Write)?;
    let mut echo = String::new();
    client.read_to_string(&mut echo)?;
    println!("{echo} came back");

    // A drain removes the file, and so does the end of the server.
    server.handle().drain();
    let report = server.join()?;
    println!("{} connection, file left: {}", report.stats.accepted, path.exists());
    Ok(())
}
