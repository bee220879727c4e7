//! Connecting and closing: source addresses, and how many at a time.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use ecoloop::Config as ServerConfig;
use ecoloop::address::ScopedIp;
use ecoloop::load::report::{Ended as RunEnded, ErrorName, Phase};
use ecoloop::load::{self, Interrupt, Mode, ProgressCell, Step};

use super::faulty_server::{echo, faulty_server};
use super::{SHORT_TIMEOUT, assert_clean, assert_sums, config, document, errors, run, run_command};
use crate::support::{TIMEOUT, eventually, serve};

#[test]
fn connections_rotate_over_the_source_addresses() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let of_server = Arc::clone(&seen);
    let address = faulty_server(move |_, stream| {
        of_server.lock().unwrap().push(stream.peer_addr()?);
        echo(stream)
    });
    let sources = ["--source", "127.0.0.2-127.0.0.3", "--source", "127.0.0.9"];
    let target = address.to_string();
    let ended = run_command(&[&["-c", "6", "-m", "3", "--json", "-", &target], &sources[..]].concat());
    let (_, report) = document(&ended);
    assert_clean(&report);
    let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.9"].map(|address| address.parse::<IpAddr>().unwrap());
    assert_eq!(report.config.sources, addresses.map(ScopedIp::from));
    let seen = seen.lock().unwrap();
    for source in addresses {
        let ports: BTreeSet<_> = seen.iter().filter(|peer| peer.ip() == source).map(SocketAddr::port).collect();
        assert_eq!(ports.len(), 2, "{seen:?}");
    }
}

#[test]
fn max_connecting_limits_closes_in_progress_too() {
    static CLOSING: AtomicUsize = AtomicUsize::new(0);
    static CLOSING_MOST: AtomicUsize = AtomicUsize::new(0);
    let address = faulty_server(|_, stream| {
        echo(stream)?;
        CLOSING_MOST.fetch_max(CLOSING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(600));
        CLOSING.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    });
    let mut config = config(address);
    config.connections = 8;
    config.max_connecting = 2;
    config.duration = Duration::from_millis(50);
    // Less than all closes take, and more than each takes: the timeout of a close begins with that close.
    config.timeout = Duration::from_secs(2);
    let report = run(config);
    assert_clean(&report);
    assert_eq!(CLOSING_MOST.load(Ordering::SeqCst), 2);
    assert!(report.phases_s.close >= 2.4, "{:?}", report.phases_s);
}

#[test]
fn a_server_that_never_closes_ends_the_close_phase_after_one_timeout() {
    let address = faulty_server(|_, stream| {
        echo(stream)?;
        // Longer than all closes would take one after the other.
        thread::sleep(TIMEOUT);
        Ok(())
    });
    let mut config = config(address);
    config.connections = 25;
    config.max_connecting = 1;
    config.messages_per_connection = Some(1);
    config.timeout = SHORT_TIMEOUT;
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Close, ErrorName::Timeout, None, 25)]);
    assert_eq!((report.connections.held, report.messages.verified), (25, 25));
    // Ten timeouts are the most of any close phase.
    assert!(report.phases_s.close < 9.0, "{:?}", report.phases_s);
}

#[test]
fn a_server_that_closes_one_connection_after_the_other_ends_the_close_phase_too() {
    const CONNECTIONS: u32 = 50;
    const DELAY: Duration = Duration::from_millis(200);
    let address = faulty_server(|_, stream| {
        echo(stream)?;
        thread::sleep(DELAY);
        Ok(())
    });
    let mut config = config(address);
    config.connections = CONNECTIONS;
    config.max_connecting = 1;
    config.messages_per_connection = Some(1);
    config.timeout = Duration::from_millis(500);
    let report = run(config);
    // No close reaches the timeout. All together do ten times: 5 s of the 10 s that they would take.
    let [(Phase::Close, ErrorName::Timeout, None, cut)] = errors(&report)[..] else {
        panic!("{:?}", report.errors);
    };
    assert!((1..u64::from(CONNECTIONS)).contains(&cut), "{cut}");
    assert_eq!((report.connections.held, report.messages.verified), (50, 50));
    assert!(report.phases_s.close < 9.0, "{:?}", report.phases_s);
}

#[test]
fn a_rate_that_cannot_be_reached_stops_neither_the_progress_nor_an_interrupt() {
    for mode in [Mode::Echo, Mode::Churn] {
        let server = serve(ServerConfig::default());
        let mut config = config(server.local_addr());
        config.mode = mode;
        config.rate = Some(1e9);
        config.duration = Duration::from_secs(3600);
        let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
        let run = {
            let (interrupt, progress) = (interrupt.clone(), progress.clone());
            thread::spawn(move || load::run(config, &interrupt, &progress).unwrap())
        };
        let mut seconds = 0;
        eventually("three seconds of progress", || {
            seconds += u32::from(progress.take().is_some_and(|progress| progress.rate.is_some()));
            seconds == 3
        });
        interrupt.set();
        eventually("the end of the run", || run.is_finished());
        let report = run.join().unwrap();
        assert_sums(&report);
        assert_eq!(report.ended, RunEnded::Interrupted);
        // Everything that was due counts, though most of it had no turn.
        assert!(report.messages.due >= 2_900_000_000, "{mode:?}: {:?}", report.messages);
    }
}

#[test]
fn a_rate_that_cannot_be_reached_ends_once_its_timeouts_have_expired() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.rate = Some(1e9);
    config.duration = Duration::from_secs(1);
    config.timeout = SHORT_TIMEOUT;
    let report = run(config);
    assert_eq!(errors(&report), [(Phase::Receive, ErrorName::Timeout, None, 1)]);
    // The bounds of the window are whole nanoseconds.
    assert_eq!(report.messages.due, 1_000_000_000);
    assert!(report.messages.verified > 0 && report.phases_s.drain < 20.0, "{:?}", report.phases_s);
}

#[test]
fn progress_is_published_while_connecting() {
    let server = serve(ServerConfig::default());
    let mut config = config(server.local_addr());
    config.connections = 1000;
    // Connecting takes ten seconds: there is time to observe it.
    config.connect_rate = Some(100.0);
    let (interrupt, progress) = (Interrupt::default(), ProgressCell::default());
    let run = {
        let (interrupt, progress) = (interrupt.clone(), progress.clone());
        thread::spawn(move || load::run(config, &interrupt, &progress).unwrap())
    };
    let mut seen = None;
    eventually("a few connections", || {
        seen = progress.take().or(seen);
        seen.is_some_and(|progress| progress.open > 1)
    });
    interrupt.set();
    assert_eq!((seen.unwrap().step, run.join().unwrap().ended), (Step::Connect, RunEnded::Interrupted));
}
