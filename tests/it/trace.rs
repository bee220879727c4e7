//! The strip: the steps that the page draws of a trace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use ecoloop::{CloseReason, Config, Observer, Peer, Server, Turn};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Ended, Process, TIMEOUT, assert_echoes, assert_ended, assert_receives, await_reset, await_unread, chromium,
    connect, connect_narrow, ecoloop, eventually, half_close, limited, reset,
};
use crate::unix::new_path;

/// Runs `ecoloop strip` on a file with this content, and returns its exit and the page.
#[track_caller]
fn strip(name: &str, content: &[u8]) -> (Ended, Option<String>) {
    let directory = TempDir::new().unwrap();
    let [file, page] = [name, "page.html"].map(|name| directory.path().join(name));
    fs::write(&file, content).unwrap();
    let output = ecoloop(&["strip", file.to_str().unwrap(), "-o", page.to_str().unwrap()]).output().unwrap();
    let lines = |bytes: &[u8]| str::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect();
    let ended = Ended { status: output.status, stdout: lines(&output.stdout), stderr: lines(&output.stderr) };
    (ended, fs::read_to_string(page).ok())
}

/// Returns the trace that a page draws.
#[track_caller]
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// Draws a trace that must be drawn, and returns what the page has of it.
#[track_caller]
pub(crate) fn drawn(content: &str) -> Value {
    let (ended, page) = strip("server.strace", content.as_bytes());
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    data(&page.unwrap())
}

fn at<'a>(list: &'a Value, place: &Value) -> &'a Value {
    &list[usize::try_from(place.as_u64().unwrap()).unwrap()]
}

/// Returns each step as `THREAD KIND CONNECTION RESULT`: the thread's and the connection's serial number, bytes or an error.
pub(crate) fn steps(trace: &Value) -> Vec<String> {
    let columns: Vec<_> = trace["columns"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(columns, ["call", "thread", "connection", "start_us", "end_us", "result", "pending", "error"]);
    let text = |value: &Value| if value.is_null() { "-".to_owned() } else { value.to_string() };
    let step = |step: &Value| {
        let kind = at(&trace["calls"], &step[0])[1].as_str().unwrap();
        let result = match kind {
            _ if !step[7].is_null() => at(&trace["errors"], &step[7]).as_str().unwrap().to_owned(),
            "read" | "write" => text(&step[5]),
            _ if step[4].is_null() => "unfinished".to_owned(),
            _ => String::new(),
        };
        format!("{} {kind} {} {result}", step[1], text(&step[2])).trim_end().to_owned()
    };
    trace["steps"].as_array().unwrap().iter().map(step).collect()
}

fn ends(trace: &Value) -> Vec<&str> {
    trace["connections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|connection| connection["end"].as_str().unwrap_or("open"))
        .collect()
}

/// The steps of the notes' server while it serves one client, and then the one that had connected meanwhile.
const BLOCKING: [&str; 11] = [
    "0 accept 0",
    "0 read 0 4",
    "0 write 0 4",
    "0 read 0 0",
    "0 close 0",
    "0 accept 1",
    "0 read 1 5",
    "0 write 1 5",
    "0 read 1 0",
    "0 close 1",
    "0 accept - unfinished",
];

#[test]
fn a_blocking_server_stays_in_one_row() {
    let trace = drawn(include_str!("strip/blocking.strace"));
    assert_eq!(steps(&trace), BLOCKING);
    assert_eq!(ends(&trace), ["end_of_stream"; 2]);
    assert_eq!(trace["connections"][1]["peer"], "127.0.0.1:42748");
    // The second step: it waits 92,831 µs for the first message. The time of the first line is 0.
    assert_eq!((&trace["steps"][1][3], &trace["steps"][1][4]), (&2_817_896.into(), &2_910_727.into()));
}

#[test]
fn a_loop_goes_from_row_to_row() {
    let trace = drawn(include_str!("strip/loop.strace"));
    let expected = [
        "0 wait -",
        "0 accept 0",
        "0 accept - EAGAIN",
        "0 wait -",
        "0 wait -",
        "0 accept 1",
        "0 accept - EAGAIN",
        "0 wait -",
        "0 read 1 5",
        "0 write 1 5",
        "0 wait -",
        "0 read 0 4",
        "0 write 0 4",
        "0 wait -",
        "0 read 0 0",
        "0 close 0",
        "0 wait -",
        "0 read 1 0",
        "0 close 1",
        "0 wait - unfinished",
    ];
    assert_eq!(steps(&trace), expected);
    assert_eq!(ends(&trace), ["end_of_stream"; 2]);
    assert!(trace["connections"].as_array().unwrap().iter().all(|connection| connection["nonblocking"] == true));
    assert_eq!(trace["threads"], serde_json::json!([29620]));
}

#[test]
fn a_ping_is_served_between_two_reads_of_a_flood() {
    let steps = steps(&drawn(include_str!("strip/flood.strace")));
    let expected = ["0 wait -", "0 read 0 1024", "0 write 0 1024", "0 read 1 4", "0 write 1 4", "0 read 0 1024"];
    assert!(steps.windows(expected.len()).any(|window| window == expected), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| *step == "0 write 0 1024").count(), 12);
}

#[test]
fn each_thread_and_each_process_has_its_own_line() {
    // The accepting thread or process is 0. A fork closes its parent's copy of the socket, which is not the end.
    for (content, copies) in [(include_str!("strip/threads.strace"), 0), (include_str!("strip/forks.strace"), 2)] {
        let trace = drawn(content);
        let steps = steps(&trace);
        let of = |prefix: &str| steps.iter().filter(|step| step.starts_with(prefix)).count();
        assert_eq!((of("0 accept"), of("0 close"), of("0 read")), (3, copies, 0), "{steps:?}");
        assert_eq!((of("1 read 1 5"), of("1 write 1 5"), of("1 close 1")), (1, 1, 1), "{steps:?}");
        assert_eq!((of("2 read 0 4"), of("2 write 0 4"), of("2 close 0")), (2, 2, 1), "{steps:?}");
        assert_eq!(ends(&trace), ["end_of_stream"; 2]);
    }
}

#[test]
fn output_that_the_socket_did_not_take_is_pending() {
    let trace = drawn(
        r#"7 1.000000 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = 4<TCP:[127.0.0.1:5000->127.0.0.1:4000]> <0.000005>
7 1.000010 sendto(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, ", 9, 0, NULL, 0) = 9 <0.1>"..., 1024, MSG_NOSIGNAL, NULL, 0) = 1000 <0.000005>
7 1.000020 sendto(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, "x"..., 24, MSG_NOSIGNAL, NULL, 0) = -1 EAGAIN (Resource temporarily unavailable) <0.000005>
7 1.000030 write(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, "x"..., 24) = 24 <0.000005>
7 1.000040 recvfrom(4<TCP:[46871595]>, 0x7ffc742e0000, 1024, 0, NULL, NULL) = -1 ECONNRESET (Connection reset by peer) <0.000005>
7 1.000050 close(4<TCP:[46871595]>) = 0 <0.000005>
"#,
    );
    let pending: Vec<_> = trace["steps"].as_array().unwrap().iter().map(|step| step[6].as_u64()).collect();
    assert_eq!(pending, [None, Some(24), Some(24), Some(0), None, None]);
    assert_eq!(ends(&trace), ["reset"]);
}

#[test]
fn a_write_that_failed_leaves_nothing_pending() {
    let trace = drawn(
        r#"7 1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = 4<TCP:[127.0.0.1:5000->127.0.0.1:4000]> <0.000005>
7 1.1 sendto(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, "x", 1, MSG_NOSIGNAL, NULL, 0) = -1 EPIPE (Broken pipe) <0.000005>
"#,
    );
    assert_eq!(
        (steps(&trace), &trace["steps"][1][6]),
        (vec!["0 accept 0".to_owned(), "0 write 0 EPIPE".to_owned()], &Value::Null)
    );
}

#[test]
fn a_connect_on_a_reused_descriptor_is_a_connection_of_its_own() {
    let trace = drawn(
        r#"7 1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = 4<TCP:[127.0.0.1:5000->127.0.0.1:4000]> <0.000005>
7 1.1 close(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>) = 0 <0.000005>
7 1.2 socket(AF_INET, SOCK_STREAM|SOCK_NONBLOCK, IPPROTO_TCP) = 4<TCP:[7]> <0.000005>
7 1.3 connect(4<TCP:[7]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("10.0.0.1")}, 16) = -1 EINPROGRESS (Operation now in progress) <0.000005>
7 1.4 sendto(4<TCP:[10.0.0.2:4001->10.0.0.1:80]>, "a", 1, 0, NULL, 0) = 1 <0.000005>
"#,
    );
    assert_eq!(steps(&trace), ["0 accept 0", "0 close 0", "0 connect 1 EINPROGRESS", "0 write 1 1"]);
    assert_eq!((ends(&trace), &trace["connections"][1]["peer"]), (vec!["closed", "open"], &"10.0.0.1:80".into()));
}

#[test]
fn a_trace_without_its_beginning_and_its_end_is_drawn() {
    // As of `strace -p`, ended by Ctrl-C: a resumed call without its first half, a connection whose accept is not in it, a call
    // that does not return, a line that is cut; and on a terminal, where the thread is in brackets.
    let trace = drawn(
        "[pid 7] 1.5 <... recvfrom resumed>\"a\", 1, 0, NULL, NULL) = 1 <0.5>\n\
         [pid  7] 2.25 write(4<TCPv6:[[::1]:5000->[::1]:4000]>, \"a\", 1) = 1 <0.000001>\n\
         [pid 8] 2.5 close(5<TCP:[127.0.0.1:5000->127.0.0.1:1]>) = 0 <0.000001>\n\
         [pid 7] 3.0 recvfrom(4<TCPv6:[[::1]:5000->[::1]:4000]>,  <unfinished ...>\n\
         [pid 8] 3.5 accept4(3<TCPv6:[[::]:50",
    );
    assert_eq!(steps(&trace), ["0 write 0 1", "1 close 1", "0 read 0 -", "1 accept - unfinished"]);
    assert_eq!((&trace["steps"][2][4], ends(&trace)), (&Value::Null, vec!["open", "closed"]));
    assert_eq!(trace["connections"][0]["peer"], "[::1]:4000");
}

#[test]
fn a_call_that_has_not_returned_lasts_until_the_last_line() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let trace = drawn(&format!(
        "1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = {socket} <0.000010>\n\
         2.0 recvfrom({socket},  <unfinished ...>\n\
         12.0 +++ killed by SIGKILL +++\n"
    ));
    assert_eq!((&trace["steps"][1][4], &trace["end_us"]), (&Value::Null, &11_000_000.into()));
}

#[test]
fn the_calls_of_32_bit_systems_are_drawn() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let trace = drawn(&format!(
        "1.0 sendfile64({socket}, 3</x>, NULL, 5) = 5 <0.000010>\n\
         2.0 ppoll_time64([{{fd={socket}, events=POLLIN}}], 1, NULL, NULL, 8) = 1 <0.000010>\n\
         3.0 pselect6_time64(5, [4], NULL, NULL, NULL, NULL) = 1 <0.000010>\n"
    ));
    assert_eq!(steps(&trace), ["0 write 0 5", "0 wait -", "0 wait -"]);
}

#[test]
fn a_thread_without_a_socket_is_not_counted() {
    let accept =
        "7 1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = 4<TCP:[127.0.0.1:5000->127.0.0.1:4000]> <0.000010>\n";
    let wait = "8 1.0 epoll_wait(5<anon_inode:[eventpoll]>, [], 1024, 100) = 0 <0.100000>\n";
    for lines in [[accept, wait], [wait, accept]] {
        let trace = drawn(&lines.concat());
        assert_eq!((steps(&trace), &trace["threads"]), (vec!["0 accept 0".to_owned()], &serde_json::json!([7])));
    }
}

#[test]
fn a_call_that_keeps_its_thread_is_drawn_once_the_thread_serves() {
    let trace = drawn(
        "1.0 openat(AT_FDCWD, \"x\", O_RDONLY) = 3</x> <0.5>\n\
         2.0 listen(3<TCP:[127.0.0.1:5000]>, 5) = 0 <0.000010>\n\
         3.0 write(1<pipe:[9]>, \"log\", 3) = 3 <0.250000>\n\
         4.0 write(1<pipe:[9]>, \"log\", 3) = 3 <0.000100>\n",
    );
    assert_eq!((steps(&trace), &trace["threads"]), (vec!["0 other -".to_owned()], &serde_json::json!([0])));
}

#[test]
fn a_slow_call_on_a_file_leaves_a_call_of_that_name_on_a_socket_what_it_is() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let trace = drawn(&format!(
        "1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = {socket} <0.000010>\n\
         2.0 write(1<pipe:[9]>, \"log\", 3) = 3 <0.250000>\n\
         3.0 write({socket}, \"a\", 1) = 1 <0.000010>\n"
    ));
    assert_eq!(steps(&trace), ["0 accept 0", "0 other -", "0 write 0 1"]);
}

#[test]
fn a_file_that_cannot_be_drawn_says_which_options_strace_needs() {
    let way_out = "strace -f -ttt -T -yy -o FILE COMMAND makes such a file";
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    for (content, reason) in [
        ("", "it is no output of strace with times"),
        ("hola\n\x1b[2J\x07(1.0 = <\n", "it is no output of strace with times"),
        ("12:00:00 read(4, \"\", 1) = 0\n", "it is no output of strace with times"),
        (&format!("1.0 read({socket}, \"\", 1) = 0\n"), "its calls have no durations (option -T)"),
        (
            "1.0 read(4, \"\", 1) = 0 <0.000001>\n",
            "it has no call on a TCP socket, or does not say which sockets are (option -yy)",
        ),
    ] {
        let (ended, page) = strip("\x1b[31mred.strace", content.as_bytes());
        assert_eq!((ended.status.code(), page), (Some(1), None), "{content:?}");
        let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
        assert!(
            line.starts_with("ecoloop: cannot draw ") && line.ends_with(&format!("red.strace: {reason}; {way_out}")),
            "{line}"
        );
        assert!(!line.contains(char::is_control), "{line:?}");
    }
}

#[test]
fn no_text_of_a_trace_ends_the_script_of_the_page() {
    let (_, page) = strip(
        "<!--<script>&.strace",
        b"7 1.0 read(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, \"</script><script>\", 20) = 20 <0.000001>\n\
          \xff 7 1.1 read(4<TCP:[</script>->]]>) = 1 <0.1>\n\
          7 1.2 <script>(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>) = -1 E</script> (x) <0.1>\n\
          7 1.3 read(4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>, 1) = -1 E<b> (x) <0.1>\n",
    );
    let page = page.unwrap();
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let json = rest.split_once("</script>").unwrap().0;
    assert!(!json.contains(['<', '>', '&']), "{json}");
    let trace = data(&page);
    assert_eq!(
        (trace["title"].as_str(), steps(&trace)),
        (Some("<!--<script>&.strace"), vec!["0 read 0 20".to_owned(), "0 read 0 -".to_owned()])
    );
}

#[test]
fn extreme_times_and_lines_are_drawn() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let mut content =
        format!("7 100.5 read({socket}) = 4294967296 <18446744073.0>\n7 1.0 read({socket}) = 1 <18446744073.5>\n");
    let _ = write!(
        content,
        "7 9.0 read({socket}, \"{}\") = 1 <0.1>\n7 99999999999999999999.0 read({socket}) = 1 <0.1>\n",
        "x".repeat(3 << 20)
    );
    let trace = drawn(&content);
    assert_eq!(steps(&trace), ["0 read 0 -", "0 read 0 1"]);
    // Before the first line is no time.
    assert_eq!(trace["steps"][1][3], 0);
}

#[test]
#[ignore = "reads a hundred megabytes"]
fn the_first_steps_are_kept_and_the_rest_counted() {
    let line = "7 1.0 read(4<TCP:[[::1]:5000->[::1]:4000]>, \"x\", 1) = 1 <0.000001>\n";
    let (ended, page) = strip("long.strace", line.repeat((1 << 20) + 1234).as_bytes());
    assert!(ended.status.success(), "{ended:?}");
    let [warning] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
    assert!(
        warning.ends_with("long.strace: the page has the first 1,048,576 steps; 1,234 more are left out"),
        "{warning}"
    );
    let trace = data(&page.unwrap());
    assert_eq!((trace["steps"].as_array().unwrap().len(), trace["dropped"].as_u64()), (1 << 20, Some(1234)));
}

/// Takes the session of the fixtures: the second client connects and sends while the first one is open.
fn converse(address: SocketAddr) {
    let mut first = connect(address);
    assert_echoes(&mut first, b"hola");
    let mut second = connect(address);
    second.write_all(b"mundo").unwrap();
    half_close(&first);
    assert_ended(&mut first);
    assert_receives(&mut second, b"mundo");
    half_close(&second);
    assert_ended(&mut second);
}

#[test]
#[ignore = "needs strace and python3"]
fn the_notes_server_is_drawn_as_in_the_stored_trace() {
    let directory = TempDir::new().unwrap();
    let trace = directory.path().join("notes.strace");
    let mut command = Command::new("strace");
    command.args(["-D", "-f", "-ttt", "-T", "-yy", "-o"]).arg(&trace);
    command.args(["python3", "-u", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/blocking_server.py"), "0"]);
    let mut server = Process::start(command);
    let port = server.line_with("puerto ").rsplit_once(' ').unwrap().1.parse().unwrap();
    server.line_with("Esperando");
    converse(SocketAddr::from(([127, 0, 0, 1], port)));
    server.line_with("Esperando");
    server.signal_until_ended(Signal::INT);
    // strace may write the last line after the server's end.
    eventually("the end of the trace", || fs::read_to_string(&trace).unwrap().contains("+++ killed by SIGINT +++"));
    let content = fs::read_to_string(&trace).unwrap();
    let shown = steps(&drawn(&content));
    // The log of Python to a pipe can take a millisecond, too.
    let shown: Vec<_> = shown.iter().filter(|step| !step.contains("other")).collect();
    assert_eq!(shown[..10], BLOCKING[..10]);
}

#[test]
#[ignore = "needs chromium"]
fn the_page_draws_each_step_in_the_row_of_its_connection() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes());
    for (language, label) in [("en", "thread 19266"), ("es", "hilo 19266")] {
        for scale in ["steps", "time"] {
            let dom = page.rendered(&format!("lang={language}&scale={scale}"));
            let svg = svg(&dom);
            assert!(svg.contains(label), "{svg}");
            // The middle of a step's box: thread, first connection, second connection.
            let groups: Vec<_> = svg.split("<g data-step=").skip(1).collect();
            let y =
                |group: &str| group.split_once(" y=\"").unwrap().1.split_once('"').unwrap().0.parse::<f64>().unwrap();
            let rows: Vec<_> = groups.iter().map(|group| y(group)).collect();
            let (thread, first, second) = (rows[0], rows[1], rows[6]);
            assert!(thread < first && first < second, "{rows:?}");
            let expected = [thread, first, first, first, first, thread, second, second, second, second, thread];
            assert_eq!(rows, expected);
        }
    }
}

#[test]
#[ignore = "needs chromium"]
fn the_page_has_the_steps_as_text() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes());
    let dom = page.rendered("lang=en");
    let text = dom.split_once("<pre id=\"text\">").unwrap().1.split_once("</pre>").unwrap().0;
    assert!(text.contains("7. recvfrom = 5 bytes\n127.0.0.1:42748, thread 19266\ntook "), "{text}");
    assert!(dom.contains("aria-label=\"Next steps\""), "{dom}");
}

#[test]
#[ignore = "needs chromium"]
fn the_legend_has_the_kinds_of_the_steps_and_the_colors_of_the_threads() {
    let mut trace = "1 1.0 connect(4<TCP:[7]>, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"10.0.0.1\")}, 16) = 0 <0.000010>\n\
        1 1.1 shutdown(4<TCP:[10.0.0.2:4001->10.0.0.1:80]>, SHUT_WR) = 0 <0.000010>\n"
        .to_owned();
    for thread in 1..=7 {
        let _ = writeln!(trace, "{thread} 1.2 read(4<TCP:[10.0.0.2:4001->10.0.0.1:80]>, \"a\", 1) = 1 <0.000010>");
    }
    let page = Page::of(trace.as_bytes());
    for (language, expected) in [
        ("en", "thread 1, …|thread 2, …|thread 3|thread 4|thread 5|connect|read|FIN sent (shutdown)"),
        ("es", "hilo 1, …|hilo 2, …|hilo 3|hilo 4|hilo 5|conecta|lee|FIN enviado (shutdown)"),
    ] {
        let dom = page.rendered(&format!("lang={language}"));
        let legend = dom.split_once("<ul id=\"legend\">").unwrap().1.split_once("</ul>").unwrap().0;
        let texts = legend.split("</svg>").skip(1).map(|rest| rest.split_once('<').unwrap().0);
        assert_eq!(texts.collect::<Vec<_>>(), expected.split('|').collect::<Vec<_>>());
        for color in 0..5 {
            assert_eq!(legend.matches(&format!("class=\"path t{color}\"")).count(), 1, "{legend}");
        }
    }
}

#[test]
#[ignore = "needs chromium"]
fn why_the_server_ended_a_connection_is_the_same_in_both_languages() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let trace = format!(
        "1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = {socket} <0.000010>\n\
         1.1 recvfrom({socket}, \"\", 1024, 0, NULL, NULL) = 0 <0.000010>\n\
         1.2 close({socket}) = 0 <0.000010>\n"
    );
    for (end, english, spanish) in [
        ("stalled", "reset: the client did not read", "RST: el cliente no leía"),
        ("cut", "cut: drain timeout", "cortada: venció el plazo de apagado"),
    ] {
        let page = Page::of(trace.as_bytes()).edited("\"end\":\"end_of_stream\"", &format!("\"end\":\"{end}\""));
        for (language, words) in [("en", english), ("es", spanish)] {
            let dom = page.rendered(&format!("lang={language}"));
            assert!(svg(&dom).contains(&format!(">{words}</text>")), "{words}: {dom}");
        }
    }
}

#[test]
#[ignore = "needs chromium"]
fn a_timeout_of_a_blocking_socket_is_drawn_as_a_wait() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let trace = format!(
        "1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = {socket} <0.000010>\n\
         2.0 recvfrom({socket}, 0x7ffc742e0000, 1024, 0, NULL, NULL) = -1 EAGAIN (Resource temporarily unavailable) <5.0>\n"
    );
    let dom = Page::of(trace.as_bytes()).rendered("lang=en");
    assert!(dom.contains("<rect class=\"box wait\""), "{dom}");
}

#[test]
#[ignore = "needs chromium"]
fn each_label_of_the_time_axis_differs_from_the_others() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes());
    for zoom in [0, 7, 12] {
        let dom = page.rendered(&format!("scale=time&zoom={zoom}"));
        let labels = axis_labels(&dom);
        let different: BTreeSet<_> = labels.iter().collect();
        assert!(labels.len() > 1 && different.len() == labels.len(), "{labels:?}");
    }
}

#[test]
#[ignore = "needs chromium"]
fn the_time_axis_of_a_later_page_counts_from_the_start_of_the_trace() {
    let socket = "4<TCP:[127.0.0.1:5000->127.0.0.1:4000]>";
    let mut trace = format!("1.0 accept4(3<TCP:[127.0.0.1:5000]>, NULL, NULL, 0) = {socket} <0.000010>\n");
    // A read each millisecond: step 1001 begins after 1 s, and step 1500 after 1.499 s.
    for ms in 1001..2500 {
        let time = format!("{}.{:03}", ms / 1000, ms % 1000);
        let _ = writeln!(trace, "{time} recvfrom({socket}, \"a\", 1, 0, NULL, NULL) = 1 <0.000010>");
    }
    let dom = Page::of(trace.as_bytes()).rendered("lang=en&scale=time&step=1001");
    assert!(dom.contains("1,001. recvfrom = 1 byte\n127.0.0.1:4000, thread\ntook 10 µs, at 1.000000 s"), "{dom}");
    let labels = axis_labels(&dom);
    assert!(labels.len() > 1 && labels[0].starts_with("1.0"), "{labels:?}");
    assert!(labels.iter().all(|label| label.starts_with("1.") && label.ends_with(" s")), "{labels:?}");
}

#[test]
#[ignore = "needs chromium"]
fn true_times_go_from_left_to_right_where_there_is_no_room_for_them() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes())
        .edited("</head>", "<style>#strip { width: 100px; }</style></head>");
    let dom = page.rendered("scale=time");
    let groups = svg(&dom).split("<g data-step=").skip(1);
    let left = |group: &str| group.split_once(" x=\"").unwrap().1.split_once('"').unwrap().0.parse::<f64>().unwrap();
    let lefts: Vec<_> = groups.map(left).collect();
    assert!(lefts.len() > 1 && lefts.is_sorted(), "{lefts:?}");
}

#[test]
#[ignore = "needs chromium"]
fn true_times_are_as_wide_as_the_paper_whatever_the_zoom() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes()).edited(SHOW, "\nshow();\nshowLines();\n");
    let width = |zoom: u32| -> u32 {
        let dom = page.rendered(&format!("scale=time&zoom={zoom}"));
        svg(&dom).split_once(" width=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap()
    };
    assert_eq!(width(0), width(4));
}

#[test]
#[ignore = "needs chromium"]
fn the_address_of_a_page_keeps_what_it_shows() {
    let page = Page::of(include_str!("strip/blocking.strace").as_bytes())
        .edited(SHOW, "\nshow();\nchange({});\ndocument.body.dataset.address = location.hash;\n");
    for address in
        ["lang=es&scale=steps&step=1", "lang=en&scale=steps&step=1&zoom=2", "lang=en&scale=time&step=1&zoom=5"]
    {
        let dom = page.rendered(address);
        assert!(dom.contains(&format!("data-address=\"#{}\"", address.replace('&', "&amp;"))), "{address}: {dom}");
    }
}

/// The last line of the page's script.
const SHOW: &str = "\nshow();\n";

/// Returns the labels of the time axis in a document.
fn axis_labels(document: &str) -> Vec<&str> {
    let ticks = svg(document).split("<path class=\"axis\"").skip(1);
    let texts = ticks.map(|tick| tick.split_once("y=\"12\">").unwrap().1);
    texts.map(|text| text.split_once('<').unwrap().0).collect()
}

/// The page of a trace, in a folder that a browser uses too.
struct Page(TempDir);

impl Page {
    #[track_caller]
    fn of(trace: &[u8]) -> Self {
        let (_, page) = strip("page.strace", trace);
        Self::with(&page.unwrap())
    }

    fn with(content: &str) -> Self {
        let this = Self(TempDir::new().unwrap());
        fs::write(this.path(), content).unwrap();
        this
    }

    /// Returns the page with `new` in place of `old`, which it has once.
    #[track_caller]
    fn edited(self, old: &str, new: &str) -> Self {
        let content = fs::read_to_string(self.path()).unwrap();
        assert_eq!(content.matches(old).count(), 1, "{old}");
        fs::write(self.path(), content.replace(old, new)).unwrap();
        self
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("page.html")
    }

    /// Returns the document that a browser makes of it.
    fn rendered(&self, fragment: &str) -> String {
        let url = format!("file://{}#{fragment}", self.path().display());
        let output = chromium(self.0.path(), &["--dump-dom", &url]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Returns the picture of the strip in a document.
fn svg(document: &str) -> &str {
    document.split_once("<svg class=\"strip\"").unwrap().1.split_once("</svg>").unwrap().0
}

/// Records every call as text.
#[derive(Debug, Default)]
struct Calls(Mutex<Vec<String>>);

impl Calls {
    fn push(&mut self, call: String) {
        self.0.get_mut().unwrap().push(call);
    }
}

impl Observer for Calls {
    fn waiting(&mut self) {
        self.push("waiting".to_owned());
    }

    fn woken(&mut self, events: usize) {
        self.push(format!("woken {events}"));
    }

    fn serving(&mut self, key: usize) {
        self.push(format!("serving {key}"));
    }

    fn served(&mut self, key: usize) {
        self.push(format!("served {key}"));
    }

    fn opened(&mut self, peer: Peer) {
        self.push(format!("opened {}", peer.key));
    }

    fn received(&mut self, peer: Peer, data: &[u8]) {
        self.push(format!("received {} {}", peer.key, data.len()));
    }

    fn sent(&mut self, peer: Peer, length: usize) {
        self.push(format!("sent {} {length}", peer.key));
    }

    fn ended(&mut self, peer: Peer) {
        self.push(format!("ended {}", peer.key));
    }

    fn closed(&mut self, peer: Peer, reason: CloseReason) {
        self.push(format!("closed {} {reason:?}", peer.key));
    }
}

#[test]
fn an_observer_sees_each_wait_and_each_visit_of_a_connection() {
    let mut server = Server::bind("127.0.0.1:0", Config::default()).unwrap().with_observer(Calls::default());
    let address = server.local_addr();
    // Takes one turn, and returns what the observer was told.
    let mut turn = || {
        assert_eq!(server.turn(Some(TIMEOUT)).unwrap(), Turn::Running);
        std::mem::take(&mut *server.observer().0.lock().unwrap())
    };
    let mut first = connect(address);
    // The slab has the listener under 0.
    assert_eq!(turn(), ["waiting", "woken 1", "opened 1"]);
    // A new connection is writable.
    assert_eq!(turn(), ["waiting", "woken 1", "serving 1", "served 1"]);
    let mut second = connect(address);
    assert_eq!(turn(), ["waiting", "woken 1", "opened 2"]);
    assert_eq!(turn(), ["waiting", "woken 1", "serving 2", "served 2"]);
    second.write_all(b"mundo").unwrap();
    await_unread(&second, 5);
    first.write_all(b"hola").unwrap();
    await_unread(&first, 4);
    assert_eq!(
        turn(),
        [
            "waiting",
            "woken 2", // in the order in which the bytes came
            "serving 2",
            "received 2 5",
            "sent 2 5",
            "served 2", //
            "serving 1",
            "received 1 4",
            "sent 1 4",
            "served 1",
        ]
    );
    half_close(&first);
    assert_eq!(turn(), ["waiting", "woken 1", "serving 1", "served 1", "ended 1", "closed 1 EndOfStream"]);
    reset(second);
    assert_eq!(turn(), ["waiting", "woken 1", "serving 2", "served 2", "closed 2 Reset"]);
}

/// Serves with a trace while `converse` talks to the server, and returns the document.
#[track_caller]
fn traced(extension: &str, arguments: &[&str], converse: impl FnOnce(SocketAddr)) -> String {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join(format!("trace.{extension}"));
    let (server, address) = Process::serve(&[&["--trace", file.to_str().unwrap()], arguments].concat());
    converse(address);
    let ended = server.terminate();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    fs::read_to_string(file).unwrap()
}

#[test]
fn a_session_of_two_clients_has_exactly_its_steps() {
    let page = traced("html", &[], |address| {
        let mut first = connect(address);
        assert_echoes(&mut first, b"hola");
        let mut second = connect(address);
        assert_echoes(&mut second, b"mundo");
        assert_echoes(&mut first, b"adios!");
        half_close(&first);
        assert_ended(&mut first);
        await_reset(second);
    });
    let trace = data(&page);
    let steps = steps(&trace);
    // How many waits and visits without a byte are between them depends on how fast the clients are.
    let moved: Vec<_> = steps.iter().filter(|step| !step.contains("wait") && !step.contains("visit")).collect();
    let expected = [
        "0 accept 0",
        "0 read 0 4",
        "0 write 0 4",
        "0 accept 1",
        "0 read 1 5",
        "0 write 1 5",
        "0 read 0 6",
        "0 write 0 6",
        "0 read 0 0",
        "0 close 0",
        "0 read 1 reset",
        "0 close 1",
    ];
    assert_eq!(moved, expected);
    assert_eq!(ends(&trace), ["end_of_stream", "reset"]);
    assert_eq!(
        (&trace["source"], &trace["complete"], &trace["dropped"]),
        (&"observer".into(), &true.into(), &0.into())
    );
    // A step of the loop is over before the next one begins.
    let times: Vec<_> = trace["steps"].as_array().unwrap().iter().flat_map(|step| [&step[3], &step[4]]).collect();
    let times: Vec<_> = times.iter().map(|time| time.as_f64().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // Each message is read after a wait.
    let reads = steps.iter().zip(steps.iter().skip(1)).filter(|(_, step)| step.contains("read"));
    assert!(reads.clone().count() == 5 && reads.clone().all(|(before, _)| before.contains("wait")), "{steps:?}");
}

/// Sends without reading until the server has pending output, and then reads everything.
fn stall_and_read(address: SocketAddr) {
    let (mut client, mut other) = (connect_narrow(address), connect(address));
    let (mut sent, mut full_rounds) = (0, 0);
    client.set_nonblocking(true).unwrap();
    // During a round trip of the other client the server would read what has arrived, and make room for more, if it could send it.
    eventually("pending output", || {
        let taken = client.write(&[b'x'; 1 << 14]).unwrap_or_default();
        sent += taken;
        full_rounds = if taken == 0 { full_rounds + 1 } else { 0 };
        assert_echoes(&mut other, b"ping");
        full_rounds == 20
    });
    client.set_nonblocking(false).unwrap();
    assert_receives(&mut client, &vec![b'x'; sent]);
    half_close(&client);
    assert_ended(&mut client);
}

#[test]
fn pending_output_is_traced_until_the_client_reads() {
    let page = traced("html", &["--send-buffer", "64KiB", "--recv-buffer", "64KiB"], stall_and_read);
    let trace = data(&page);
    let pending: Vec<_> = trace["steps"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|step| step[2] == 0)
        .filter_map(|step| step[6].as_u64())
        .collect();
    let first = pending.iter().position(|&pending| pending > 0).expect("no pending output");
    assert!(pending.iter().all(|&pending| pending <= 1024) && pending[first..].contains(&0), "{pending:?}");
    assert_eq!(ends(&trace)[0], "end_of_stream");
}

#[test]
fn the_slices_for_perfetto_nest() {
    let json = traced("json", &["--send-buffer", "64KiB", "--recv-buffer", "64KiB"], stall_and_read);
    let document: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(document["otherData"], serde_json::json!({ "complete": true, "dropped": 0 }));
    let events = document["traceEvents"].as_array().unwrap();
    let process = events[0]["pid"].as_u64().unwrap();
    let mut tracks: BTreeMap<u64, Vec<(f64, f64, &str)>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let (start, duration) = (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        assert!(start >= 0.0 && duration >= 0.0, "{event}");
        let slice = (start, start + duration, event["name"].as_str().unwrap());
        tracks.entry(event["tid"].as_u64().unwrap()).or_default().push(slice);
    }
    // The loop has the process's own number: for Perfetto it is the main thread. No connection has it, and none has 0.
    assert_eq!(tracks.keys().copied().collect::<Vec<_>>(), [process, process + 1, process + 2]);
    let names = |track: u64| tracks[&track].iter().map(|slice| slice.2).collect::<BTreeSet<_>>();
    assert_eq!(names(process), BTreeSet::from(["accept", "wait"]));
    for name in ["connection", "pending output: not read", "read", "write", "close"] {
        assert!(names(process + 1).contains(name), "{name}");
    }
    for slices in tracks.values_mut() {
        // As a viewer does: by their begin, the longest first.
        slices.sort_by(|one, other| one.0.total_cmp(&other.0).then(other.1.total_cmp(&one.1)));
        let mut around: Vec<(f64, f64, &str)> = Vec::new();
        for slice in slices {
            // Sums of binary fractions are off by less than the nanosecond of the format.
            around.retain(|outer| outer.1 > slice.0 + 0.0005);
            assert!(around.iter().all(|outer| slice.1 <= outer.1 + 0.0005), "{slice:?} is not inside {around:?}");
            around.push(*slice);
        }
    }
}

/// Serves two clients of a Unix socket with a trace, and returns their names in the log, and the document.
#[track_caller]
fn traced_on_unix(extension: &str) -> ([String; 2], String) {
    let (directory, path) = new_path();
    let (target, file) = (format!("unix:{}", path.display()), directory.path().join(format!("trace.{extension}")));
    let mut server = Process::start(ecoloop(&[&target, "--trace", file.to_str().unwrap()]));
    server.line_with("Waiting for connections...");
    let clients = [(); 2].map(|()| {
        let client = UnixStream::connect(&path).unwrap();
        let opened = server.line_with("Connection from: ");
        (client, opened.rsplit(' ').next().unwrap().to_owned())
    });
    // A client that stays would hold up the end of the server.
    let names = clients.map(|(_, name)| name);
    let ended = server.terminate();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    (names, fs::read_to_string(file).unwrap())
}

#[test]
fn clients_of_a_unix_socket_have_the_names_of_the_log() {
    let (names, json) = traced_on_unix("json");
    assert!(names.iter().all(|name| name.starts_with("unix#")) && names[0] != names[1], "{names:?}");
    let document: Value = serde_json::from_str(&json).unwrap();
    let tracks = document["traceEvents"].as_array().unwrap().iter().filter(|event| event["name"] == "thread_name");
    let tracks: Vec<_> = tracks.map(|event| event["args"]["name"].as_str().unwrap()).collect();
    assert_eq!(tracks, ["loop", &names[0], &names[1]]);

    let (names, page) = traced_on_unix("html");
    let trace = data(&page);
    let connections = trace["connections"].as_array().unwrap();
    let peers: Vec<_> = connections.iter().map(|connection| connection["peer"].as_str().unwrap()).collect();
    assert_eq!(peers, names);
}

#[test]
#[ignore = "needs chromium"]
fn the_box_of_an_accept_has_the_name_of_a_client_of_a_unix_socket() {
    let (names, page) = traced_on_unix("html");
    let dom = Page::with(&page).rendered("lang=en");
    for name in names {
        assert!(svg(&dom).contains(&format!("text-anchor=\"middle\">{name}</text>")), "{name}: {dom}");
    }
}

#[test]
fn a_killed_server_leaves_a_trace_that_opens() {
    let directory = TempDir::new().unwrap();
    let [page, json] = ["trace.html", "trace.json"].map(|name| directory.path().join(name));
    for file in [&page, &json] {
        fs::write(file, "the trace of an earlier run").unwrap();
        let (mut server, address) = Process::serve(&["--trace", file.to_str().unwrap()]);
        assert_echoes(&mut connect(address), b"hola");
        server.signal_until_ended(Signal::KILL);
    }
    let trace = data(&fs::read_to_string(page).unwrap());
    assert_eq!((&trace["complete"], trace["steps"].as_array().unwrap().len()), (&false.into(), 0));
    let document: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(document["otherData"]["complete"], false);
    let name = document["traceEvents"][0]["args"]["name"].as_str().unwrap();
    assert!(name.starts_with("ecoloop serve 127.0.0.1:") && name.contains("killed, or still running"), "{name}");
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_the_server_listens() {
    let refused = Process::start(ecoloop(&["127.0.0.1:0", "--trace", "/nonexistent/trace.html"])).wait();
    assert_eq!((refused.status.code(), &refused.stdout[..]), (Some(1), &[][..]), "{refused:?}");
    assert!(refused.stderr[0].starts_with("ecoloop: cannot create /nonexistent/trace.html: "), "{refused:?}");
    for name in ["trace", "trace.svg", "-"] {
        let refused = Process::start(ecoloop(&["127.0.0.1:0", "--trace", name])).wait();
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(refused.stderr[0].contains("must end in .html"), "{refused:?}");
    }
}

#[test]
fn a_trace_without_memory_for_its_steps_is_refused_before_the_server_listens() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("trace.html");
    fs::write(&file, "an earlier one").unwrap();
    let command = ecoloop(&["127.0.0.1:0", "--trace", file.to_str().unwrap()]);
    let refused = Process::start(limited(60_000, &command)).wait();
    assert_eq!((refused.status.code(), &refused.stdout[..]), (Some(1), &[][..]), "{refused:?}");
    assert!(refused.stderr[0].starts_with("ecoloop: cannot allocate the steps of the trace: "), "{refused:?}");
    assert_eq!(fs::read_to_string(file).unwrap(), "an earlier one");
}

#[test]
fn a_trace_that_fails_at_the_end_does_not_cost_the_report() {
    let directory = TempDir::new().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(path("gone")).unwrap();
    let (trace, report) = (path("gone/trace.html"), path("report.json"));
    let mut command = ecoloop(&["127.0.0.1:0", "--trace", &trace, "--report", &report]);
    // The trace is kept in a temporary file.
    command.env("TMPDIR", directory.path());
    let mut server = Process::start(command);
    server.listening();
    eventually("the document of a running server", || Path::new(&trace).exists());
    fs::remove_dir_all(path("gone")).unwrap();
    let ended = server.terminate();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr[0].starts_with(&format!("ecoloop: cannot write {trace}: ")), "{ended:?}");
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["accepted"], 0);
}

#[test]
fn the_trace_and_the_report_are_two_files() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("both.json");
    let name = file.to_str().unwrap();
    let refused = Process::start(ecoloop(&["127.0.0.1:0", "--trace", name, "--report", name])).wait();
    let reason = format!("error: --report and --trace cannot both write to {name}");
    assert_eq!((refused.status.code(), &refused.stderr[0]), (Some(2), &reason), "{refused:?}");
    assert!(!file.exists());
}

#[test]
#[ignore = "records a million steps"]
fn a_trace_keeps_the_first_steps_and_counts_the_rest() {
    const BYTES: u32 = 600_000;
    // Two steps a byte, and some waits.
    let page = traced("html", &["--buffer-size", "1"], |address| {
        let mut client = connect(address);
        let mut writer = client.try_clone().unwrap();
        let thread = std::thread::spawn(move || writer.write_all(&vec![b'x'; BYTES as usize]).unwrap());
        assert_receives(&mut client, &vec![b'x'; BYTES as usize]);
        thread.join().unwrap();
    });
    let trace = data(&page);
    assert_eq!(trace["steps"].as_array().unwrap().len(), 1 << 20);
    assert!(trace["dropped"].as_u64().unwrap() >= u64::from(2 * BYTES) - (1 << 20), "{}", trace["dropped"]);
}

#[test]
fn what_a_fault_holds_back_is_not_pending_output() {
    let page = traced("html", &["--fault", "delay=20ms"], |address| {
        let mut client = connect(address);
        assert_echoes(&mut client, b"hola");
        half_close(&client);
        assert_ended(&mut client);
    });
    let trace = data(&page);
    let moved: Vec<_> =
        steps(&trace).into_iter().filter(|step| step.starts_with("0 read") || step.starts_with("0 write")).collect();
    assert_eq!(moved, ["0 read 0 4", "0 write 0 4", "0 read 0 0"]);
    assert!(trace["steps"].as_array().unwrap().iter().all(|step| step[6].is_null()), "{trace}");
}

#[test]
#[ignore = "needs chromium"]
fn the_pictures_of_the_docs_are_drawn_from_the_stored_traces() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let strips = [
        ("blocking", 4),
        ("loop", 4),
        ("flood", 2),
        ("small-loop", 4),
        ("busy", 4),
        ("pending", 2),
        ("threads", 2),
        ("descriptors", 4),
        ("drain", 4),
    ];
    for (name, zoom) in strips {
        let page = Page::of(&fs::read(root.join(format!("tests/it/strip/{name}.strace"))).unwrap());
        for (language, suffix) in [("en", ""), ("es", ".es")] {
            let dom = page.rendered(&format!("lang={language}&zoom={zoom}"));
            let picture = fs::read_to_string(root.join(format!("docs/images/strip-{name}{suffix}.svg"))).unwrap();
            assert_eq!(places(&picture), places(&dom), "docs/images/strips draws {name}{suffix} again");
        }
    }
}

/// Returns the steps of a picture in their order, each with its boxes and words.
fn places(document: &str) -> Vec<(&str, Vec<&str>)> {
    let groups = svg(document).split("<g data-step=\"").skip(1).map(|group| group.split_once("</g>").unwrap().0);
    groups
        .map(|group| {
            let (number, rest) = group.split_once('"').unwrap();
            (number, rest.split(['<', '>']).filter(|piece| !piece.is_empty()).collect())
        })
        .collect()
}
