//! `--metrics`: what a server or a load generator does, for Prometheus, on a thread of its own.

mod encoder;
mod exporter;
mod families;
mod http;
#[cfg(feature = "load")]
mod load_families;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use ecoloop::Handle;
#[cfg(feature = "load")]
use ecoloop::load::Progress;
#[cfg(feature = "load")]
use prometheus_client::registry::Registry;

use self::exporter::Exporter;
use self::families::{Families, Turns};
#[cfg(feature = "load")]
use self::load_families::LoadFamilies;
use super::hints::hint_of_address;
use super::log::{LostLines, TARGET};
use super::log_observer::{Language, log_metrics};
#[cfg(feature = "load")]
use super::print_error;

pub(super) use self::exporter::CLIENTS_MAX;
pub(super) use self::families::TurnTimer;

/// Binds the addresses of `--metrics`: all of them, or none.
pub(super) fn bind(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, String> {
    let bind = |(place, address): (usize, &SocketAddr)| {
        // A name may resolve to one address twice.
        if address.port() != 0 && addresses[..place].contains(address) {
            return None;
        }
        Some(TcpListener::bind(address).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::AddrInUse => "; choose another port".to_owned(),
                io::ErrorKind::AddrNotAvailable => format!("; {}", hint_of_address(address.ip())),
                _ => String::new(),
            };
            format!("cannot serve --metrics on {address}: {error}{hint}")
        }))
    };
    addresses.iter().enumerate().filter_map(bind).collect()
}

/// Serves the metrics of the server behind `handle` until the process ends. Returns what times its turns.
pub(super) fn start(
    listeners: Vec<TcpListener>,
    language: Language,
    handle: Handle,
    max_connections: usize,
    lost_lines: LostLines,
) -> io::Result<TurnTimer> {
    let addresses = local_addresses(&listeners)?;
    let turns = Arc::<Turns>::default();
    let registry = Families::new(handle.clone(), max_connections, lost_lines, Arc::clone(&turns)).into_registry();
    let exporter = Exporter::new(listeners, move || handle.is_ending(), registry)?;
    for address in addresses {
        log_metrics(language, address);
    }
    run(exporter, |reason| log::warn!(target: TARGET, "{reason}"))?;
    Ok(TurnTimer::new(turns))
}

/// Serves the metrics of a load, whose progress `latest` returns, until the process ends. Without a listener it does nothing.
#[cfg(feature = "load")]
pub(super) fn start_load(
    listeners: Vec<TcpListener>,
    is_quiet: bool,
    latest: impl Fn() -> Option<Progress> + Send + Sync + 'static,
) -> io::Result<()> {
    if listeners.is_empty() {
        return Ok(());
    }
    let addresses = local_addresses(&listeners)?;
    let mut registry = Registry::default();
    registry.register_collector(Box::new(LoadFamilies::new(latest)));
    let exporter = Exporter::new(listeners, || false, registry)?;
    for address in addresses.iter().filter(|_| !is_quiet) {
        print_error(&format!("metrics on http://{address}/metrics"));
    }
    run(exporter, |reason| print_error(&reason))
}

fn local_addresses(listeners: &[TcpListener]) -> io::Result<Vec<SocketAddr>> {
    listeners.iter().map(TcpListener::local_addr).collect()
}

fn run(mut exporter: Exporter, warn: impl FnOnce(String) + Send + 'static) -> io::Result<()> {
    let run = move || warn(format!("--metrics is not served any more: {}", exporter.run()));
    thread::Builder::new().name("metrics".to_owned()).spawn(run).map(drop)
}
