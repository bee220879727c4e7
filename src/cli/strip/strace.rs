//! One line of strace's output.

use std::net::{IpAddr, SocketAddr};

use super::super::trace::Kind;

/// The longest name of a call or an error.
const NAME_BYTES_MAX: usize = 32;
/// The name under which the kernel restarts some calls after SIGCONT. strace shows their own as the argument.
pub(super) const RESTART: &str = "restart_syscall";
const NANOSECONDS_A_SECOND: u64 = 1_000_000_000;

/// A line, with the thread and the time that it begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub(super) thread: u32,
    pub(super) time_ns: u64,
    pub(super) event: Event<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A call that has returned.
    Call(Head, Outcome<'a>),
    /// A call that has not returned yet: another thread's line follows.
    Unfinished(Head),
    /// The rest of an unfinished call of this name.
    Resumed(&'a str, Outcome<'a>),
    /// A signal, or the end of a thread.
    Other,
}

/// A call and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    pub(super) start_ns: u64,
    /// The first argument, if it is a TCP socket.
    pub(super) socket: Option<Socket>,
    /// The address that connect(2) was given.
    pub(super) peer: Option<SocketAddr>,
    /// Bytes that a write was to send.
    pub(super) requested: Option<u32>,
    /// A new thread shares the descriptors of its creator.
    pub(super) shares_files: bool,
    /// The call makes its socket, or the one that it accepts, non-blocking.
    pub(super) sets_nonblocking: bool,
}

/// A TCP socket, as -yy shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) descriptor: u32,
    /// `None` if it only listens, or has no connection any more.
    pub(super) addresses: Option<(SocketAddr, SocketAddr)>,
    pub(super) is_listener: bool,
}

/// What a call has returned.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome<'a> {
    pub(super) value: Option<u32>,
    pub(super) error: Option<&'a str>,
    /// What accept(2) returned.
    pub(super) socket: Option<Socket>,
    /// The address that accept(2) stored.
    pub(super) peer: Option<SocketAddr>,
    /// `None` if the call did not return: its thread has ended.
    pub(super) duration_ns: Option<u64>,
}

/// Returns what a call does.
pub(super) fn kind(name: &str) -> Kind {
    match name {
        "epoll_wait" | "epoll_pwait" | "epoll_pwait2" | "poll" | "ppoll" | "ppoll_time64" | "select" | "pselect6"
        | "pselect6_time64" | "_newselect" | "io_uring_enter" => Kind::Wait,
        "accept" | "accept4" => Kind::Accept,
        "connect" => Kind::Connect,
        "read" | "readv" | "recv" | "recvfrom" | "recvmsg" => Kind::Read,
        "write" | "writev" | "send" | "sendto" | "sendmsg" | "sendfile" | "sendfile64" => Kind::Write,
        "shutdown" => Kind::Shutdown,
        "close" => Kind::Close,
        _ => Kind::Other,
    }
}

/// Parses a line that begins with a time, as -ttt writes it; before it with -f the thread: `7 `, or `[pid 7] ` on a terminal.
pub(super) fn parse(line: &str) -> Option<Line<'_>> {
    let (thread, rest) = match line.strip_prefix("[pid") {
        Some(rest) => rest.split_once("] ").map(|(id, rest)| (id.trim(), rest))?,
        None => line
            .split_once(' ')
            .filter(|(id, _)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
            .unwrap_or(("0", line)),
    };
    let (time, rest) = rest.trim_start().split_once(' ')?;
    let time_ns = parse_seconds(time)?;
    Some(Line { thread: thread.parse().ok()?, time_ns, event: parse_event(rest.trim_end(), time_ns)? })
}

fn parse_event(text: &str, time_ns: u64) -> Option<Event<'_>> {
    if text.starts_with("---") || text.starts_with("+++") {
        return Some(Event::Other);
    }
    if let Some(rest) = text.strip_prefix("<... ") {
        let (name, rest) = rest.split_once(" resumed>")?;
        let (arguments, result) = split_result(rest)?;
        return Some(Event::Resumed(name, parse_outcome(arguments, result)));
    }
    let (name, rest) = text.split_once('(')?;
    if !is_name(name) {
        return None;
    }
    let split = split_result(rest);
    let arguments = split.map_or_else(|| rest.trim_end_matches(" <unfinished ...>"), |(arguments, _)| arguments);
    let restarted = arguments.strip_prefix("<... resuming interrupted ").and_then(|rest| rest.split(' ').next());
    let name = restarted.filter(|own| name == RESTART && is_name(own)).unwrap_or(name);
    let head = Head {
        name: name.to_owned(),
        start_ns: time_ns,
        socket: parse_socket(arguments),
        peer: if name == "connect" { parse_sockaddr(arguments) } else { None },
        requested: parse_requested(name, arguments),
        // Only of calls whose arguments show no text of a peer.
        shares_files: matches!(name, "clone" | "clone3") && arguments.contains("CLONE_FILES"),
        sets_nonblocking: match name {
            "accept4" => arguments.contains("SOCK_NONBLOCK"),
            "fcntl" => arguments.contains("O_NONBLOCK"),
            "ioctl" => arguments.contains("FIONBIO, [1]"),
            _ => false,
        },
    };
    Some(match split {
        Some((arguments, result)) => Event::Call(head, parse_outcome(arguments, result)),
        None => Event::Unfinished(head),
    })
}

/// Splits a call at `) = `. The last one is the call's own: text of a peer can only come before it.
fn split_result(text: &str) -> Option<(&str, &str)> {
    let (call, result) = text.rsplit_once(" = ")?;
    Some((call.trim_end().strip_suffix(')')?, result))
}

/// Parses a result: `5 <0.000006>`, `-1 EAGAIN (Resource temporarily unavailable) <0.000006>`, `? ERESTARTSYS (...) <0.1>`, `?`.
fn parse_outcome<'a>(arguments: &str, result: &'a str) -> Outcome<'a> {
    let (result, duration) = match result.strip_suffix('>').and_then(|result| result.rsplit_once(" <")) {
        Some((result, duration)) => (result, parse_seconds(duration)),
        None => (result, None),
    };
    let word = result.split(' ').next().unwrap_or_default();
    let digits = word.split(|character: char| !character.is_ascii_digit()).next().unwrap_or_default();
    let error = result.split(' ').nth(1).filter(|name| name.starts_with('E') && is_name(name));
    Outcome {
        value: digits.parse().ok(),
        error: error.filter(|_| matches!(word, "-1" | "?")),
        socket: parse_socket(result),
        peer: parse_sockaddr(arguments),
        duration_ns: duration,
    }
}

/// Parses a descriptor as -yy shows it: `9<TCP:[127.0.0.1:5000->127.0.0.1:40312]>`, `3<TCPv6:[[::]:5000]>`, `5<TCP:[46871595]>`.
fn parse_socket(text: &str) -> Option<Socket> {
    let (descriptor, rest) = text.split_once('<')?;
    let rest = rest.strip_prefix("TCP:[").or_else(|| rest.strip_prefix("TCPv6:["))?;
    // Without its end, the line is cut.
    let name = rest.split_once("]>").map_or("", |(name, _)| name);
    let addresses = name.split_once("->").and_then(|(local, peer)| Some((local.parse().ok()?, peer.parse().ok()?)));
    let is_listener = name.parse::<SocketAddr>().is_ok();
    Some(Socket { descriptor: descriptor.parse().ok()?, addresses, is_listener })
}

/// Parses the port and the address of a `sockaddr` structure.
fn parse_sockaddr(arguments: &str) -> Option<SocketAddr> {
    let (_, rest) = arguments.split_once("port=htons(")?;
    let (port, rest) = rest.split_once(')')?;
    let (_, rest) = rest.split_once("inet_addr(\"").or_else(|| rest.split_once("inet_pton(AF_INET6, \""))?;
    let ip: IpAddr = rest.split_once('"')?.0.parse().ok()?;
    Some(SocketAddr::new(ip, port.parse().ok()?))
}

/// Parses the length of a write, which comes after the text of the peer: it is found from the end.
fn parse_requested(name: &str, arguments: &str) -> Option<u32> {
    let from_the_end = match name {
        "write" => 0,
        "send" => 1,
        "sendto" => 3,
        _ => return None,
    };
    arguments.rsplit(", ").nth(from_the_end)?.parse().ok()
}

/// Parses seconds with a fraction: `1795642875.997284`, `0.000007`.
fn parse_seconds(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(seconds) || !is_number(fraction) || fraction.len() > 9 {
        return None;
    }
    let seconds: u64 = seconds.parse().ok()?;
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(NANOSECONDS_A_SECOND)?.checked_add(nanoseconds)
}

fn is_name(text: &str) -> bool {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_valid)
}
