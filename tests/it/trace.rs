//! The strip: the steps that the page draws of a trace.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use ecoloop::{CloseReason, Config, Observer, Peer, Server, Turn};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Ended, Process, TIMEOUT, assert_echoes, assert_ended, assert_receives, await_unread, connect, ecoloop, eventually,
    half_close, reset,
};

/// Runs `ecoloop strip` on a file with this content, and returns its exit and the page.
#[track_caller]
fn strip(name: &str, content: &[u8]) -> (Ended, Option<String>) {
    let directory = TempDir::new().unwrap();
    let [file, page] = [name, "page.html"].map(|name| directory.path().join(name));
    fs::write(&file, content).unwrap();
    let ended = Process::start(ecoloop(&["strip", file.to_str().unwrap(), "-o", page.to_str().unwrap()])).wait();
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
fn drawn(content: &str) -> Value {
    let (ended, page) = strip("server.strace", content.as_bytes());
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    data(&page.unwrap())
}

fn at<'a>(list: &'a Value, place: &Value) -> &'a Value {
    &list[usize::try_from(place.as_u64().unwrap()).unwrap()]
}

/// Returns each step as `THREAD KIND CONNECTION RESULT`: the thread's and the connection's serial number, bytes or an error.
fn steps(trace: &Value) -> Vec<String> {
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
const BLOCKING: [&str; 13] = [
    "0 accept 0",
    "0 read 0 4",
    "0 write 0 4",
    "0 read 0 4",
    "0 write 0 4",
    "0 read 0 0",
    "0 close 0",
    "0 accept 1",
    "0 read 1 5",
    "0 write 1 5",
    "0 read 1 0",
    "0 close 1",
    "0 accept - ERESTARTSYS",
];

#[test]
fn a_blocking_server_stays_in_one_row() {
    let trace = drawn(include_str!("strip/blocking.strace"));
    assert_eq!(steps(&trace), BLOCKING);
    assert_eq!(ends(&trace), ["end_of_stream"; 2]);
    assert_eq!(trace["connections"][1]["peer"], "127.0.0.1:46366");
    // The second step: it waits 149,889 µs for the first message. The time of the first line is 0.
    assert_eq!((&trace["steps"][1][3], &trace["steps"][1][4]), (&580_561.into(), &730_450.into()));
}

#[test]
fn a_loop_goes_from_row_to_row() {
    let trace = drawn(include_str!("strip/loop.strace"));
    // From the second wait on: the first client connects, the second one too, and each is served when its message is there.
    let expected = [
        "0 wait -",
        "0 accept 0",
        "0 accept - EAGAIN",
        "0 wait -",
        "0 wait -",
        "0 accept 1",
        "0 accept - EAGAIN",
        "0 wait -",
        "0 wait -",
        "0 read 1 5",
        "0 write 1 5",
        "0 wait -",
        "0 read 0 4",
        "0 write 0 4",
        "0 wait -",
        "0 read 0 4",
        "0 write 0 4",
        "0 wait -",
        "0 read 0 0",
        "0 close 0",
        "0 wait -",
        "0 read 1 0",
        "0 close 1",
        "0 wait - EINTR",
        "0 wait -",
        "0 accept - EAGAIN",
    ];
    assert_eq!(steps(&trace), expected);
    assert_eq!(ends(&trace), ["end_of_stream"; 2]);
    assert!(trace["connections"].as_array().unwrap().iter().all(|connection| connection["nonblocking"] == true));
    assert_eq!(trace["threads"], serde_json::json!([24468]));
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
    assert_echoes(&mut first, b"hola");
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
    assert_eq!(shown[..12], BLOCKING[..12]);
}

#[test]
#[ignore = "needs chromium"]
fn the_page_draws_each_step_in_the_row_of_its_connection() {
    let directory = TempDir::new().unwrap();
    let (_, page) = strip("blocking.strace", include_str!("strip/blocking.strace").as_bytes());
    let file = directory.path().join("page.html");
    fs::write(&file, page.unwrap()).unwrap();
    for (language, label) in [("en", "thread 24331"), ("es", "hilo 24331")] {
        for scale in ["steps", "time"] {
            let dom = rendered(&file, &format!("lang={language}&scale={scale}"), directory.path());
            let svg = dom.split_once("<svg class=\"strip\"").unwrap().1.split_once("</svg>").unwrap().0;
            assert!(svg.contains(label), "{svg}");
            // The middle of a step's box: thread, first connection, second connection.
            let groups: Vec<_> = svg.split("<g data-step=").skip(1).collect();
            let y =
                |group: &str| group.split_once(" y=\"").unwrap().1.split_once('"').unwrap().0.parse::<f64>().unwrap();
            let rows: Vec<_> = groups.iter().map(|group| y(group)).collect();
            let (thread, first, second) = (rows[0], rows[1], rows[8]);
            assert!(thread < first && first < second, "{rows:?}");
            let expected =
                vec![thread, first, first, first, first, first, first, thread, second, second, second, second, thread];
            assert_eq!(rows, expected);
        }
    }
}

/// Returns the document that a browser makes of a page.
fn rendered(page: &Path, fragment: &str, profile: &Path) -> String {
    let output = Command::new("timeout")
        .arg(TIMEOUT.as_secs().to_string())
        .args([
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
        ])
        .args(["--disable-component-update", "--disable-sync", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.join("profile").display()))
        .arg(format!("file://{}#{fragment}", page.display()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
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

    fn serving(&mut self, peer: Peer) {
        self.push(format!("serving {}", peer.key));
    }

    fn served(&mut self, peer: Peer) {
        self.push(format!("served {}", peer.key));
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
