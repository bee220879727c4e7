//! The whole server over a modelled kernel: accepting, limits, timeouts, faults, drains, with a clock that jumps.
//!
//! A script of bytes decides everything: the [`Config`], and then what clients, the kernel and the clock do before each turn. The bytes
//! come from a seed, or from a fuzzer. The server is the real one, all of it. The [reactor](crate::reactor)'s poll and the server's
//! clock are modelled, and so are its listening sockets and streams, which are a [transport](crate::transport).

#![expect(clippy::unwrap_used, clippy::panic, reason = "a simulation fails by panicking")]

mod accepts;
mod checks;
mod client;
mod kernel;
mod poll;
mod socket;
#[cfg(test)]
mod tests;
mod transport;

use std::cell::RefCell;
use std::fmt::Debug;
use std::rc::Rc;
use std::time::Duration;

use self::client::Header;
use self::kernel::{ALLOWED, Action, Kernel, SOURCES};
use self::transport::{Listener, Recorder, SharedKernel};
use crate::fuzzing::Input;
use crate::transport::Listen;
use crate::{Config, Fault, Server, SourceLimit, Turn, WhenFull};

#[cfg(test)]
pub(crate) use self::poll::set_now;
pub(crate) use self::poll::{Events, Modelled, Poll, now};
pub(crate) use self::socket::Socket;

/// Turns after the last action, while every client receives everything: far more than a client's bytes need.
const LAST_TURNS_MAX: usize = 20_000;

/// Turns of a rest: the hand takes four for each of its 32 rounds in a timeout.
const REST_TURNS: usize = 200;

/// Longest time of a call of the server. Longer ones would keep the hand from ever waiting.
const CALL_TIME_MAX: Duration = Duration::from_micros(100);
/// Shortest timeout. Below it the hand goes on at each millisecond.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// Rules of which a script chooses two at most.
const RULES: [&str; 28] = [
    "delay=5ms,every=2",
    "delay=1ms..9ms,hold=20",
    "rate=700,every=3",
    "rate=5KiB",
    "chunk=3,p=50%",
    "chunk=1,gap=2ms",
    "stall=10,for=7ms",
    "stall=0,for=1s,every=2",
    "stall=5,first=3",
    "mute=9,every=2",
    "mute,from=10.0.0.1",
    "reset=6,p=30%",
    "reset=4ms,every=2",
    "reset=0,first=2",
    "fin=11",
    "fin=3ms,p=50%",
    "flip=4",
    "lose=5,every=2",
    "duplicate=3",
    "swap=6,p=50%",
    "delay=3ms,at=10ms..60ms",
    "chunk=2,after=3",
    "connect=reset,at=20ms..90ms",
    "connect=reset",
    "connect=20ms",
    "connect=3ms,at=10ms..400ms",
    "stall=3",
    "fin=0",
];

/// Errors of accept(2).
const ACCEPT_ERRORS: [i32; 8] = [
    libc::EMFILE,
    libc::ENFILE,
    libc::ENOMEM,
    libc::ENOBUFS,
    libc::ECONNABORTED,
    libc::EPROTO,
    libc::EPERM,
    libc::EINVAL,
];

/// Errors of a socket.
const SOCKET_ERRORS: [i32; 4] = [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENOMEM, libc::ECONNRESET];

/// How a simulation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Drain,
    Stop,
    Drop,
}

/// The steps of a simulation in words, if a caller wants them.
type Trace = Option<Vec<String>>;

/// Plays a script to a server. Returns the number of turns.
///
/// # Errors
///
/// - What the server has promised, and does not hold.
pub(crate) fn simulate(script: &[u8], trace: &mut Trace) -> Result<usize, String> {
    let mut input = Input(script);
    if input.below(4) == 3 { play::<false>(input, trace) } else { play::<true>(input, trace) }
}

/// Plays a script to a server over TCP sockets, or over any other streams.
fn play<const TCP: bool>(mut input: Input<'_>, trace: &mut Trace) -> Result<usize, String> {
    let config = draw_config(&mut input);
    let listeners = 1 + input.below(2);
    let kernel: SharedKernel = Rc::new(RefCell::new(Kernel::new(config.clone(), listeners)));
    kernel.borrow_mut().splits_events = input.below(4) == 3;
    kernel.borrow_mut().call_time =
        if input.below(4) == 3 { draw_time(&mut input).min(CALL_TIME_MAX) } else { Duration::ZERO };
    let end = [End::Drain, End::Drain, End::Stop, End::Drop][input.below(4)];
    note(trace, || {
        let kernel = kernel.borrow();
        let (splits, call_time) = (kernel.splits_events, kernel.call_time);
        format!(
            "TCP {TCP}, {listeners} listeners, splits events {splits}, {call_time:?} a call, then {end:?}, {config:?}"
        )
    });
    let modelled = Rc::clone(&kernel);
    let _modelled =
        Modelled::new(move |timeout, capacity, reports| modelled.borrow_mut().poll(timeout, capacity, reports));
    let listeners: Vec<_> = (0..listeners).map(|index| Listener::<TCP>::new(&kernel, index)).collect();
    let server = Server::from_transport(listeners, config).map_err(|error| error.to_string())?;
    let mut simulation = Simulation { server: server.with_observer(Recorder(Rc::clone(&kernel))), kernel, turns: 0 };
    simulation.play(input, trace)?;
    simulation.end(end, trace)
}

struct Simulation<L: Listen> {
    server: Server<Recorder, L>,
    kernel: SharedKernel,
    turns: usize,
}

impl<L: Listen> Simulation<L> {
    fn play(&mut self, mut input: Input<'_>, trace: &mut Trace) -> Result<(), String> {
        while !input.is_empty() {
            for _ in 0..input.below(4) {
                let action = draw_action(&mut input);
                let calls = if input.below(3) == 2 { Some(input.below(6)) } else { None };
                note(trace, || format!("{action:?}, {calls:?} calls later"));
                match calls {
                    Some(calls) => self.kernel.borrow_mut().defer(calls, action),
                    None => self.kernel.borrow_mut().perform(action),
                }
            }
            match input.byte() {
                255 if input.below(4) == 0 => self.command(true, trace),
                254 if input.below(2) == 0 => self.command(false, trace),
                252 | 253 if self.rest(trace)? == Turn::Finished => break,
                _ => {}
            }
            self.kernel.borrow_mut().patience = draw_time(&mut input);
            let timeout = match input.below(6) {
                4 => Some(Duration::ZERO),
                5 => Some(draw_time(&mut input)),
                _ => None,
            };
            if self.turn(timeout, trace)? == Turn::Finished {
                break;
            }
        }
        Ok(())
    }

    /// Lets time pass without an action, so that timeouts expire.
    fn rest(&mut self, trace: &mut Trace) -> Result<Turn, String> {
        self.kernel.borrow_mut().patience = Duration::from_secs(3600);
        for _ in 0..REST_TURNS {
            if self.turn(None, trace)? == Turn::Finished {
                return Ok(Turn::Finished);
            }
            if self.server.next_deadline().is_none() {
                break;
            }
        }
        Ok(Turn::Running)
    }

    /// Drains or stops the server.
    fn command(&mut self, stops: bool, trace: &mut Trace) {
        note(trace, || format!("stop {stops}"));
        let mut kernel = self.kernel.borrow_mut();
        kernel.is_woken = true;
        if stops {
            kernel.is_stopping = true;
            self.server.handle().stop();
        } else {
            kernel.is_asked_to_drain = true;
            self.server.handle().drain();
        }
    }

    fn turn(&mut self, timeout: Option<Duration>, trace: &mut Trace) -> Result<Turn, String> {
        self.turns += 1;
        self.kernel.borrow_mut().begin_turn(timeout != Some(Duration::ZERO));
        let turn = self.server.turn(timeout).map_err(|error| error.to_string())?;
        let (next_deadline, stats) = (self.server.next_deadline(), self.server.handle().stats());
        let mut kernel = self.kernel.borrow_mut();
        kernel.end_turn(turn, next_deadline, &stats);
        note(trace, || {
            let next = next_deadline.map(|at| at.saturating_duration_since(kernel.now));
            format!(
                "turn({timeout:?}) at {:?}: {turn:?}, next in {next:?}, {:?}",
                kernel.now - kernel.started_at,
                kernel.books
            )
        });
        kernel.failure.take().map_or(Ok(turn), Err)
    }

    /// Lets every client receive its echo and end its stream, and then the server end.
    fn end(mut self, end: End, trace: &mut Trace) -> Result<usize, String> {
        self.kernel.borrow_mut().begin_calm();
        note(trace, || "calm".to_owned());
        let before = self.turns;
        let mut turn = Turn::Running;
        let mut is_over = false;
        while !is_over && turn == Turn::Running {
            turn = self.turn(None, trace)?;
            is_over = self.kernel.borrow_mut().is_over(end == End::Drain);
            if self.turns - before > LAST_TURNS_MAX {
                return Err(format!("it does not end: {:?}", self.kernel.borrow()));
            }
        }
        match end {
            End::Drain if turn == Turn::Running => self.command(false, trace),
            End::Stop if turn == Turn::Running => self.command(true, trace),
            _ => {}
        }
        let before = self.turns;
        while end != End::Drop && turn == Turn::Running {
            turn = self.turn(None, trace)?;
            if self.turns - before > LAST_TURNS_MAX {
                return Err(format!("it does not drain: {:?}", self.kernel.borrow()));
            }
        }
        let Self { server, kernel, turns } = self;
        kernel.borrow_mut().is_stopping = true;
        let handle = server.handle();
        drop(server);
        let mut kernel = kernel.borrow_mut();
        kernel.end_turn(Turn::Finished, None, &handle.stats());
        let books = &kernel.books;
        let is_right = books.opened == books.closed;
        kernel.check(is_right, |kernel| format!("not every connection was closed: {:?}", kernel.books));
        kernel.failure.take().map_or(Ok(turns), Err)
    }
}

fn note(trace: &mut Trace, line: impl FnOnce() -> String) {
    if let Some(lines) = trace {
        lines.push(line());
    }
}

fn draw_time(input: &mut Input<'_>) -> Duration {
    let number = u64::try_from(input.below(64)).unwrap_or(0);
    match input.below(12) {
        0..=3 => Duration::from_millis(number),
        4 | 5 => Duration::from_micros(50 * number),
        6..=8 => Duration::from_millis(20 * number),
        9 | 10 => Duration::from_secs(number / 4),
        // A machine that was suspended.
        _ => Duration::from_secs(3600 * number),
    }
}

fn draw_config(input: &mut Input<'_>) -> Config {
    let mut config = Config { buffer_size: 1 + input.below(16), ..Config::default() };
    config.reads_per_turn = 1 + input.below(4);
    config.accepts_per_turn = 1 + input.below(4);
    config.events_per_turn = 1 + input.below(6);
    config.backlog = 1 + u32::try_from(input.below(8)).unwrap_or(0);
    config.drain_timeout = 2 * draw_time(input);
    let is_set = |input: &mut Input<'_>| input.below(4) == 3;
    if is_set(input) {
        config.max_connections = 1 + input.below(6);
        config.when_full = [WhenFull::Wait, WhenFull::Reset][input.below(2)];
    }
    if is_set(input) {
        config.idle_timeout = Some(TIMEOUT_MIN + draw_time(input));
    }
    if is_set(input) {
        config.stall_timeout = Some(TIMEOUT_MIN + draw_time(input));
    }
    if is_set(input) {
        config.keepalive = Some(Duration::from_secs(60));
    }
    if is_set(input) {
        let (ipv4_prefix, ipv6_prefix) = [(32, 64), (24, 48)][input.below(2)];
        let connections = 1 + u32::try_from(input.below(3)).unwrap_or(0);
        config.max_per_source = Some(SourceLimit { connections, ipv4_prefix, ipv6_prefix });
    }
    if is_set(input) {
        config.allow = ALLOWED.map(|network| network.parse().unwrap()).to_vec();
    }
    if is_set(input) {
        config.accept_rate = Some(f64::from(5 + 4 * u32::from(input.byte())));
    }
    config.proxy_protocol = is_set(input);
    if is_set(input) {
        config.spin = draw_time(input).min(Duration::from_millis(1));
    }
    for _ in 0..input.below(6).saturating_sub(3) {
        config.faults.push(RULES[input.below(RULES.len())].parse().unwrap());
        if Fault::check_all(&config.faults).is_err() {
            config.faults.pop();
        }
    }
    config.fault_seed = u64::from(input.byte());
    config
}

fn draw_action(input: &mut Input<'_>) -> Action {
    let kind = input.below(32);
    let client = input.below(64);
    let mut number = || input.below(64);
    match kind {
        0..=7 => Action::Send { client, length: 1 + number() as u64 / 2 },
        8..=13 => Action::Connect { listener: client, source: number() % SOURCES.len(), header: draw_header(input) },
        14..=17 => Action::Receive { client, length: number() as u64 / 2 },
        18 => Action::HalfClose { client },
        19 => Action::Reset { client },
        20 => Action::SendUrgent { client },
        21 => Action::Interrupt { client, calls: number() % 4 },
        22 => Action::ShortWrites { client, most: number() % 8 },
        23 => Action::Report { client },
        24 => Action::Fail { client, errno: SOCKET_ERRORS[number() % SOCKET_ERRORS.len()] },
        25 => Action::FailAccepts { errno: ACCEPT_ERRORS[number() % ACCEPT_ERRORS.len()], calls: client % 8 },
        26 => Action::FailRegistrations { calls: client % 4 },
        27 => Action::InterruptPolls { calls: client % 4 },
        28 => Action::Send { client, length: 5 * number() as u64 },
        _ => Action::Pass(draw_time(input)),
    }
}

fn draw_header(input: &mut Input<'_>) -> Header {
    let number = input.below(64);
    let source = number % SOURCES.len();
    match number / SOURCES.len() {
        0..=2 => Header::V1(source),
        3 | 4 => Header::V2(source),
        5 | 6 => Header::Local,
        _ => Header::Bad,
    }
}
