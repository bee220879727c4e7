//! compio on one thread and `io_uring`: one task and one buffer per connection.

use std::io::Result;

use compio::buf::BufResult;
use compio::io::{AsyncRead, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};

async fn echo(mut stream: TcpStream, buffer_size: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(buffer_size);
    loop {
        let BufResult(result, filled) = stream.read(buffer).await;
        if result? == 0 {
            return Ok(());
        }
        let BufResult(result, written) = stream.write_all(filled).await;
        result?;
        buffer = written;
        buffer.clear();
    }
}

#[compio::main]
async fn main() -> Result<()> {
    let (address, buffer_size) = ecoloop_peers::arguments()?;
    let listener = TcpListener::from_std(ecoloop_peers::listen(address)?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        compio::runtime::spawn(echo(stream, buffer_size)).detach();
    }
}
