//! monoio on one thread and `io_uring`: one task and one buffer per connection.

use std::io::Result;

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{ListenerOpts, TcpListener, TcpStream};

async fn echo(mut stream: TcpStream, buffer_size: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(buffer_size);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        (result, buffer) = stream.write_all(buffer).await;
        result?;
        buffer.clear();
    }
}

#[monoio::main(driver = "io_uring")]
async fn main() -> Result<()> {
    let (address, buffer_size) = ecoloop_peers::arguments()?;
    let options = ListenerOpts::new().backlog(ecoloop_peers::BACKLOG).reuse_port(false);
    let listener = TcpListener::bind_with_config(address, &options)?;
    loop {
        let (stream, _) = listener.accept().await?;
        monoio::spawn(echo(stream, buffer_size));
    }
}
