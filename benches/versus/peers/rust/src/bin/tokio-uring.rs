//! tokio-uring on one thread and `io_uring`: one task and one buffer per connection.

use std::io::Result;

use tokio_uring::buf::BoundedBuf;
use tokio_uring::net::{TcpListener, TcpStream};

async fn echo(stream: TcpStream, buffer_size: usize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; buffer_size];
    loop {
        let (result, filled) = stream.read(buffer).await;
        let n = result?;
        if n == 0 {
            return Ok(());
        }
        let (result, written) = stream.write_all(filled.slice(..n)).await;
        result?;
        buffer = written.into_inner();
    }
}

fn main() -> Result<()> {
    let (address, buffer_size) = ecoloop_peers::arguments()?;
    tokio_uring::start(async {
        let listener = TcpListener::from_std(ecoloop_peers::listen(address)?);
        loop {
            let (stream, _) = listener.accept().await?;
            tokio_uring::spawn(echo(stream, buffer_size));
        }
    })
}
