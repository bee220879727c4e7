//! `serve --metrics`: what a server does, for Prometheus, on a thread of its own.

mod exporter;
mod families;
mod http;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use ecoloop::Handle;

use self::exporter::Exporter;
use self::families::{Families, Turns};
use super::hints::hint_of_address;
use super::log::{LostLines, TARGET};
use super::log_observer::{Language, log_metrics};

pub(super) use self::exporter::CLIENTS_MAX;
pub(super) use self::families::TurnTimer;

/// Binds the addresses of `--metrics`: all of them, or none.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, String> {
    let bind = |address: &SocketAddr| {
        TcpListener::bind(address).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; choose another port".to_owned(),
                io::ErrorKind::AddrNotAvailable => format!("; {}", hint_of_address(address.ip())),
                _ => String::new(),
            };
            format!("cannot serve --metrics on {address}: {error}{hint}")
        })
    };
    addresses.iter().map(bind).collect()
}

/// Serves the metrics of the server behind `handle` until the process ends. Returns what times its turns.
pub(super) fn start(
    listeners: Vec<TcpListener>,
    language: Language,
    handle: Handle,
    lost_lines: LostLines,
) -> io::Result<TurnTimer> {
    let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    let turns = Arc::<Turns>::default();
    let registry = Families::new(handle.clone(), lost_lines, Arc::clone(&turns)).into_registry();
    let mut exporter = Exporter::new(listeners, handle, registry)?;
    for address in addresses {
        log_metrics(language, address);
    }
    let run = move || log::warn!(target: TARGET, "--metrics is not served any more: {}", exporter.run());
    thread::Builder::new().name("metrics".to_owned()).spawn(run)?;
    Ok(TurnTimer::new(turns))
}
