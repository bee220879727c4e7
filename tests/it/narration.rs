//! The log: the notes' words in the notes' order, and nothing that a peer could use against a terminal.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::{
    Process, assert_echoes, assert_ended, await_not_listening, connect, connect_eventually, ecoloop, eventually,
    half_close, pattern, reserve_port, reset,
};

/// The parts of a line of the log.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    level: String,
    peer: Option<SocketAddr>,
    words: String,
}

/// Splits `TIME LEVEL [ecoloop] [PEER] WORDS`.
#[track_caller]
fn parse(line: &str) -> Line {
    let (time, rest) = line.split_once(' ').unwrap();
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z", "{line}");
    let (level, rest) = rest.split_once(" [ecoloop] ").unwrap();
    let level = level.trim_end().to_owned();
    let Some((peer, words)) = rest.split_once(' ').filter(|_| rest.starts_with('[')) else {
        return Line { level, peer: None, words: rest.to_owned() };
    };
    // An IPv6 address has its own brackets.
    let peer = peer.parse().or_else(|_| peer.trim_matches(['[', ']']).parse()).unwrap();
    Line { level, peer: Some(peer), words: words.to_owned() }
}

fn line(level: &str, peer: Option<SocketAddr>, words: impl Into<String>) -> Line {
    Line { level: level.to_owned(), peer, words: words.into() }
}

#[track_caller]
fn parse_all(lines: &[String]) -> Vec<Line> {
    lines.iter().map(|line| parse(line)).collect()
}

/// The words of the log in one language.
struct Words {
    language: &'static str,
    starting: fn(SocketAddr) -> String,
    waiting: &'static str,
    connection: &'static str,
    received: &'static str,
    no_more: &'static str,
    reset: &'static str,
    closed_by_client: &'static str,
    closed_by_server: &'static str,
    /// Why the server closed: drained, cut, stopped.
    reasons: [&'static str; 3],
}

const ENGLISH: Words = Words {
    language: "en",
    starting: |address| format!("Starting server on IP {}, port {}", address.ip(), address.port()),
    waiting: "Waiting for connections...",
    connection: "Connection from:",
    received: "Received",
    no_more: "No more data",
    reset: "The client closed the connection abruptly",
    closed_by_client: "The client closed the connection",
    closed_by_server: "Connection closed:",
    reasons: ["the server is shutting down", "the drain timeout has expired", "the server was stopped"],
};

const SPANISH: Words = Words {
    language: "es",
    starting: |address| format!("Iniciando servidor en IP {}, con puerto {}", address.ip(), address.port()),
    waiting: "Esperando conexiones...",
    connection: "Conexion desde:",
    received: "Recibido",
    no_more: "No hay mas datos",
    reset: "El cliente ha cerrado la conexion de forma abrupta",
    closed_by_client: "El cliente ha cerrado la conexion",
    closed_by_server: "La conexion se ha cerrado:",
    reasons: ["el servidor se apaga", "ha vencido el plazo de apagado", "se ha detenido el servidor"],
};

/// Starts a server with this language, and returns it, its address and the lines of its start.
#[track_caller]
fn serve_in(words: &Words, arguments: &[&str]) -> (Process, SocketAddr, Vec<Line>) {
    let arguments = [&["127.0.0.1:0", "--lang", words.language], arguments].concat();
    let mut process = Process::start(ecoloop(&arguments));
    let lines = parse_all(&process.lines_through(words.waiting));
    let port = lines[0].words.rsplit(' ').next().unwrap().parse().unwrap();
    (process, SocketAddr::from(([127, 0, 0, 1], port)), lines)
}

/// Connects a client that sends `hola`, receives it, sends FIN and receives FIN. Returns its address.
#[track_caller]
fn visit(address: SocketAddr) -> SocketAddr {
    let mut client = connect(address);
    let local = client.local_addr().unwrap();
    assert_echoes(&mut client, b"hola");
    half_close(&client);
    assert_ended(&mut client);
    local
}

/// Connects a client that is echoed and then resets. Returns its address.
#[track_caller]
fn visit_and_reset(address: SocketAddr) -> SocketAddr {
    let mut client = connect(address);
    let local = client.local_addr().unwrap();
    assert_echoes(&mut client, b"hola");
    reset(client);
    local
}

fn each_row_has_its_words_and_level(words: &Words) {
    let (mut process, address, start) = serve_in(words, &["-v"]);
    assert_eq!(start, [line("INFO", None, (words.starting)(address)), line("INFO", None, words.waiting)]);

    let peer = visit(address);
    let lines = parse_all(&process.lines_through(words.waiting));
    let expected = [
        line("INFO", None, format!("{} {peer}", words.connection)),
        line("DEBUG", Some(peer), format!("{} hola", words.received)),
        line("DEBUG", Some(peer), words.no_more),
        line("INFO", Some(peer), words.closed_by_client),
        line("INFO", None, words.waiting),
    ];
    assert_eq!(lines, expected);

    let peer = visit_and_reset(address);
    let lines = parse_all(&process.lines_through(words.waiting));
    let expected = [
        line("INFO", None, format!("{} {peer}", words.connection)),
        line("DEBUG", Some(peer), format!("{} hola", words.received)),
        line("INFO", Some(peer), words.reset),
        line("INFO", Some(peer), words.closed_by_client),
        line("INFO", None, words.waiting),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn each_row_has_its_words_and_level_in_english() {
    each_row_has_its_words_and_level(&ENGLISH);
}

#[test]
fn each_row_has_its_words_and_level_in_spanish() {
    each_row_has_its_words_and_level(&SPANISH);
}

#[test]
fn messages_are_logged_only_with_v() {
    let (mut process, address, _) = serve_in(&ENGLISH, &[]);
    let peer = visit(address);
    let lines = parse_all(&process.lines_through(ENGLISH.waiting));
    let expected = [
        line("INFO", None, format!("{} {peer}", ENGLISH.connection)),
        line("INFO", Some(peer), ENGLISH.closed_by_client),
        line("INFO", None, ENGLISH.waiting),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn without_lines_for_connections_probes_cost_none() {
    for (arguments, lines_per_probe, end) in [
        (
            &["--log-connections", "none"][..],
            0,
            &["Shutting down: 0 connections are open", "Done: 3 connections accepted"][..],
        ),
        (&["--log-connections", "all"], 3, &["Done: 3 connections accepted"]),
        (&[], 3, &["Done: 3 connections accepted"]),
    ] {
        let (server, address, start) = serve_in(&ENGLISH, arguments);
        assert_eq!(start.len(), 2, "{start:?}");
        for _ in 0..3 {
            visit(address);
        }
        let lines = parse_all(&server.terminate().stdout);
        assert_eq!(lines.len(), 3 * lines_per_probe + end.len(), "{lines:?}");
        for (line, words) in lines.iter().rev().zip(end.iter().rev()) {
            assert!(line.words.starts_with(words), "{lines:?}");
        }
    }
}

#[test]
fn without_lines_for_connections_limits_and_the_shutdown_are_logged() {
    for (words, shutdown) in
        [(&ENGLISH, "Shutting down: 1 connection is open"), (&SPANISH, "Apagando: 1 conexion abierta")]
    {
        let options = ["--log-connections", "none", "--max-connections", "1", "--when-full", "reset"];
        let (mut server, address, _) = serve_in(words, &options);
        let mut held = connect(address);
        assert_echoes(&mut held, b"hola");
        assert_eq!(parse(&server.line_with("ecoloop")).level, "WARN");
        server.signal(Signal::TERM);
        assert_eq!(parse(&server.line_with("ecoloop")), line("INFO", None, shutdown));
        assert_ended(&mut held);
        drop(held);
        let ended = server.wait();
        assert!(matches!(&ended.stdout[..], [summary] if summary.contains("1 ")), "{ended:?}");
    }
}

#[test]
fn vv_logs_why_each_connection_closed() {
    let (mut process, address, _) = serve_in(&ENGLISH, &["-vv"]);
    for (visit, why) in [(visit as fn(SocketAddr) -> SocketAddr, "EndOfStream"), (visit_and_reset, "Reset")] {
        let peer = visit(address);
        let lines = parse_all(&process.lines_through(ENGLISH.waiting));
        let traced: Vec<_> = lines.iter().filter(|line| line.level == "TRACE").collect();
        assert!(matches!(traced[..], [line] if line.peer == Some(peer) && line.words.ends_with(why)), "{lines:?}");
        assert!(lines.iter().any(|line| line.level == "DEBUG" && line.words == "Received hola"), "{lines:?}");
    }
}

#[test]
fn quiet_logs_only_warnings() {
    let (_reserved, address) = reserve_port();
    // The kernel cuts this backlog, unless somaxconn is at its maximum.
    let arguments = [&address.to_string(), "--reuse-port", "-q", "--backlog", "2147483647"];
    let process = Process::start(ecoloop(&arguments));
    drop(connect_eventually(address));
    visit(address);
    let ended = process.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let levels: Vec<_> = parse_all(&ended.stdout).into_iter().map(|line| line.level).collect();
    assert_eq!(levels, ["WARN"], "{ended:?}");
}

#[test]
fn waiting_is_logged_when_the_last_open_connection_has_closed() {
    let (mut process, address, _) = serve_in(&ENGLISH, &[]);
    let mut first = connect(address);
    assert_echoes(&mut first, b"x");
    let second = visit(address);
    let third = visit(address);
    let first_peer = first.local_addr().unwrap();
    drop(first);
    let lines = parse_all(&process.lines_through(ENGLISH.waiting));
    let closed: Vec<_> =
        lines.iter().filter(|line| line.words == ENGLISH.closed_by_client).map(|line| line.peer).collect();
    assert_eq!(closed, [Some(second), Some(third), Some(first_peer)]);
}

#[test]
fn a_line_names_its_peer_once() {
    for ip in ["127.0.0.1", "[::1]"] {
        let mut process = Process::start(ecoloop(&[&format!("{ip}:0"), "-vv"]));
        let address = process.listening();
        process.lines_through(ENGLISH.waiting);
        for visit in [visit, visit_and_reset] {
            let peer = visit(address);
            let lines = process.lines_through(ENGLISH.waiting);
            let of_peer: Vec<_> = lines.iter().filter(|line| line.contains(&peer.to_string())).collect();
            assert!(of_peer.len() >= 4, "{lines:?}");
            for line in of_peer {
                assert_eq!(line.matches(&peer.to_string()).count(), 1, "{line}");
                assert!(!line.contains("[["), "{line}");
            }
        }
    }
}

/// Ends the server while a client is connected, and returns that client's address and the lines that follow the signal.
#[track_caller]
fn lines_after_signal(
    words: &Words,
    arguments: &[&str],
    end: impl FnOnce(&Process, TcpStream),
) -> (SocketAddr, Vec<Line>) {
    let (mut process, address, _) = serve_in(words, &[&["-vv"], arguments].concat());
    let mut client = connect(address);
    let peer = client.local_addr().unwrap();
    assert_echoes(&mut client, b"hola");
    process.lines_through("hola");
    process.signal(Signal::TERM);
    await_not_listening(address);
    end(&process, client);
    (peer, parse_all(&process.wait().stdout))
}

#[track_caller]
fn assert_closed_last((peer, lines): &(SocketAddr, Vec<Line>), words: &Words, traced_reason: &str, reason: &str) {
    let of_peer: Vec<_> = lines.iter().filter(|line| line.peer == Some(*peer)).collect();
    let [.., traced, closed] = of_peer[..] else { panic!("{lines:?}") };
    assert!(traced.words.ends_with(traced_reason), "{lines:?}");
    assert_eq!(*closed, line("INFO", Some(*peer), format!("{} {reason}", words.closed_by_server)));
    assert!(!lines.iter().any(|line| line.words == words.waiting), "it waits for no connection: {lines:?}");
    let summary = &lines.last().unwrap().words;
    assert!(summary.starts_with("Done: ") || summary.starts_with("Fin: "), "{lines:?}");
}

#[test]
fn what_the_server_closes_says_why_and_not_that_the_client_closed_it() {
    for words in [&ENGLISH, &SPANISH] {
        let drained = lines_after_signal(words, &["--drain-timeout", "1h"], |_, mut client| assert_ended(&mut client));
        assert_closed_last(&drained, words, "Drained", words.reasons[0]);
        // An idle client gets FIN, and does not answer it.
        let cut = lines_after_signal(words, &["--drain-timeout", "1s"], |_, mut client| {
            assert_ended(&mut client);
            eventually("the cut", || client.write_all(b"x").is_err());
        });
        assert_closed_last(&cut, words, "Cut", words.reasons[1]);
        let stopped = lines_after_signal(words, &["--drain-timeout", "1h"], |process, mut client| {
            assert_ended(&mut client);
            eventually("the stop", || {
                // A repeat within 0.3 s is ignored.
                process.signal(Signal::TERM);
                client.write_all(b"x").is_err()
            });
        });
        assert_closed_last(&stopped, words, "Stopped", words.reasons[2]);
    }
}

#[test]
fn a_message_cannot_write_to_the_operators_terminal() {
    let (mut process, address, _) = serve_in(&ENGLISH, &["-v"]);
    let mut client = connect(address);
    let cases: &[(&[u8], &str)] = &[
        (b"plain", "plain"),
        (b"\"quotes\" 'and' \\ backslashes \\n", "\"quotes\" 'and' \\ backslashes \\n"),
        ("¿Qué tal, señor Núñez?".as_bytes(), "¿Qué tal, señor Núñez?"),
        ("e\u{301} combines, 中文, 🦀".as_bytes(), "e\u{301} combines, 中文, 🦀"),
        ("\u{301} has nothing to combine with".as_bytes(), "\\u{301} has nothing to combine with"),
        (b"\x1b[2J\x1b]0;title\x07", "\\u{1b}[2J\\u{1b}]0;title\\u{7}"),
        (b"one\r\ntwo\tthree\0\x7f", "one\\r\\ntwo\\tthree\\0\\u{7f}"),
        // Characters that show nothing, and take a place or none: fillers, joiners, selectors of a variant.
        ("a\u{34f}\u{fe0f}b\u{115f}\u{3164}\u{ffa0}".as_bytes(), "a\\u{34f}\\u{fe0f}b\\u{115f}\\u{3164}\\u{ffa0}"),
        ("a\u{17b4}\u{180b}\u{2800}\u{1d159}\u{e0100}".as_bytes(), "a\\u{17b4}\\u{180b}\\u{2800}\\u{1d159}\\u{e0100}"),
        ("\u{9b}31m \u{200b} \u{2028} \u{feff}".as_bytes(), "\\u{9b}31m \\u{200b} \\u{2028} \\u{feff}"),
        (b"ab\xffcd\xc3", "ab\\xffcd\\xc3"),
        (b"\xc0\x80 \xed\xa0\x80 \xf5", "\\xc0\\x80 \\xed\\xa0\\x80 \\xf5"),
        ("evil\u{202e}txt.exe".as_bytes(), "evil\\u{202e}txt.exe"),
    ];
    for &(message, expected) in cases {
        assert_echoes(&mut client, message);
        assert_eq!(parse(&process.line_with("Received")).words, format!("Received {expected}"));
    }
    for character in ('\u{202a}'..='\u{202e}').chain('\u{2066}'..='\u{2069}') {
        assert_echoes(&mut client, format!("a{character}b").as_bytes());
        let words = parse(&process.line_with("Received")).words;
        assert_eq!(words, format!("Received a\\u{{{:x}}}b", u32::from(character)));
    }
}

#[test]
fn no_byte_reaches_the_terminal_as_a_control_character() {
    let (mut process, address, _) = serve_in(&ENGLISH, &["-v"]);
    let mut client = connect(address);
    for byte in 0..=u8::MAX {
        assert_echoes(&mut client, &[b'<', byte, b'>']);
        let line = process.line_with("Received <");
        assert!(!line.contains(char::is_control), "{byte:#x}: {line:?}");
        let expected = match byte {
            b' '..=b'~' => char::from(byte).to_string(),
            0..=0x7f => char::from(byte).escape_debug().to_string(),
            0x80.. => format!("\\x{byte:02x}"),
        };
        assert_eq!(parse(&line).words, format!("Received <{expected}>"));
    }
}

#[track_caller]
fn assert_language(words: &Words, environment: &[(&str, &str)], arguments: &[&str]) {
    let mut command = ecoloop(&[&["127.0.0.1:0"], arguments].concat());
    command.envs(environment.iter().copied());
    let mut process = Process::start(command);
    let first = parse(&process.line_with(" IP "));
    let port = first.words.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(first.words, (words.starting)(SocketAddr::from(([127, 0, 0, 1], port))));
}

#[test]
fn the_default_language_is_the_locales() {
    assert_language(&ENGLISH, &[], &[]);
    assert_language(&SPANISH, &[("LANG", "es_PE.UTF-8")], &[]);
    assert_language(&ENGLISH, &[("LANG", "en_US.UTF-8")], &[]);
    assert_language(&ENGLISH, &[("LANG", "de_DE.UTF-8")], &[]);
    assert_language(&SPANISH, &[("LC_MESSAGES", "es"), ("LANG", "en_US.UTF-8")], &[]);
    assert_language(&ENGLISH, &[("LC_MESSAGES", "C"), ("LANG", "es_PE.UTF-8")], &[]);
    assert_language(&ENGLISH, &[("LC_ALL", "C"), ("LC_MESSAGES", "es"), ("LANG", "es")], &[]);
    assert_language(&SPANISH, &[("LC_ALL", "es_ES"), ("LC_MESSAGES", "en"), ("LANG", "en")], &[]);
    // An empty variable counts as unset.
    assert_language(&SPANISH, &[("LC_ALL", ""), ("LC_MESSAGES", ""), ("LANG", "es_ES")], &[]);
}

#[test]
fn lang_overrides_the_locale() {
    assert_language(&ENGLISH, &[("LC_ALL", "es_ES")], &["--lang", "en"]);
    assert_language(&SPANISH, &[("LC_ALL", "en_US")], &["--lang", "es"]);
}

/// What one client does, alone with the server, before it closes. Each asserts its echo.
type Script = fn(TcpStream);

const SCRIPTS: [(&str, Script); 6] = [
    ("a message and a close", |mut client| assert_echoes(&mut client, b"hola")),
    ("several messages", |mut client| {
        for message in ["uno", "dos", "tres"] {
            assert_echoes(&mut client, message.as_bytes());
        }
    }),
    ("nothing and a close", |_| {}),
    ("a reset after the echo", |mut client| {
        assert_echoes(&mut client, b"hola y adios");
        reset(client);
    }),
    ("a message of 3000 bytes", |mut client| assert_echoes(&mut client, "0123456789".repeat(300).as_bytes())),
    ("accents", |mut client| assert_echoes(&mut client, "¿Qué tal, señor Núñez? ¡Adiós!".as_bytes())),
];

/// Runs the scripts one after the other, and returns the lines of the log without what `strip` removes, with ports by name.
#[track_caller]
fn transcript(process: &mut Process, strip: fn(&str) -> String) -> String {
    let start = process.lines_through(SPANISH.waiting);
    let port = strip(&start[0]).rsplit(' ').next().unwrap().parse::<u16>().unwrap();
    let mut transcript = Vec::new();
    let mut add = |title: &str, lines: &[String], of: &str, name: &str| {
        transcript.push(format!("# {title}"));
        transcript.extend(lines.iter().map(|line| strip(line).replace(of, name)));
    };
    add("the start", &start, &format!("con puerto {port}"), "con puerto PORT");
    for (title, script) in SCRIPTS {
        let client = connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let local = client.local_addr().unwrap();
        script(client);
        add(title, &process.lines_through(SPANISH.waiting), &local.to_string(), "CLIENT");
    }
    transcript.join("\n") + "\n"
}

/// Starts the notes' server, if Python is installed.
fn blocking_server() -> Option<Process> {
    let python = || {
        let mut command = Command::new("python3");
        command.stdin(Stdio::null()).env("PYTHONUTF8", "1");
        command
    };
    let version = python().arg("--version").output();
    version.is_ok_and(|output| output.status.success()).then(|| {
        let mut command = python();
        command.args(["-u", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/blocking_server.py"), "0"]);
        Process::start(command)
    })
}

#[test]
fn one_client_at_a_time_the_log_reads_as_the_notes_servers() {
    // Recorded from the blocking server, for machines without Python.
    let recorded = include_str!("notes_transcript.txt");
    if let Some(mut oracle) = blocking_server() {
        assert_eq!(transcript(&mut oracle, str::to_owned), recorded, "the recorded transcript is not Python's");
    }
    let mut ours = Process::start(ecoloop(&[":0", "--lang", "es", "-v"]));
    assert_eq!(transcript(&mut ours, |line| parse(line).words), recorded);
}

#[test]
#[ignore = "needs python3"]
fn the_notes_server_blocks_a_second_client_and_dies_of_bytes_that_are_not_utf8() {
    let mut process = blocking_server().expect("python3");
    let start = process.lines_through(SPANISH.waiting);
    let port = start[0].rsplit(' ').next().unwrap().parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let mut second = connect(address);
    second.write_all(b"\xff").unwrap();
    let peer = second.local_addr().unwrap().to_string();
    assert_echoes(&mut first, b"adios");
    drop(first);
    let lines = process.lines_through(&peer);
    assert!(lines.iter().any(|line| line == SPANISH.closed_by_client), "{lines:?}");
    let ended = process.wait();
    assert!(!ended.status.success());
    assert!(ended.stderr.iter().any(|line| line.starts_with("UnicodeDecodeError")), "{ended:?}");
}

#[test]
fn what_kills_or_blocks_the_notes_server_is_served() {
    let (mut process, address, _) = serve_in(&SPANISH, &["-v"]);
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let mut second = connect(address);
    assert_echoes(&mut second, b"\xff\xfe");
    assert!(parse(process.lines_through(r"\xff").last().unwrap()).words.ends_with(r"Recibido \xff\xfe"));
    assert_echoes(&mut first, &pattern(5000));
    visit(address);
    half_close(&second);
    assert_ended(&mut second);
    half_close(&first);
    assert_ended(&mut first);
    let ended = process.terminate();
    assert!(ended.status.success(), "{ended:?}");
}
