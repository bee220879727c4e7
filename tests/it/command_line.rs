//! The command line: addresses, errors, help, and the final figures.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::process::Command;

use rustix::process::{Signal, geteuid};
use socket2::{Domain, Socket, Type};

use crate::support::{
    Ended, Process, Scratch, assert_echoes, assert_ended, connect, ecoloop, eventually, half_close, is_listening,
    pattern, reset, wrapped,
};

#[track_caller]
fn run(arguments: &[&str]) -> Ended {
    Process::start(ecoloop(arguments)).wait()
}

/// Runs a command that must fail with a runtime error before it serves, and returns its one line of standard error.
#[track_caller]
fn refusal(command: Command) -> String {
    let ended = Process::start(command).wait();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.is_empty(), "{ended:?}");
    let [line] = &ended.stderr[..] else { panic!("not one line: {ended:?}") };
    line.strip_prefix("ecoloop: ").unwrap().to_owned()
}

#[track_caller]
fn serves_on(address: SocketAddr) {
    assert_echoes(&mut connect(address), b"hola");
}

#[test]
fn an_address_in_use_is_refused() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let line = refusal(ecoloop(&[&address]));
    assert!(line.starts_with(&format!("cannot listen on {address}: Address already in use")), "{line}");
}

#[test]
fn two_addresses_of_one_server_that_overlap_are_named() {
    // Bound, with SO_REUSEADDR as the server sets it, and not listening: the server can bind the port, and no other test gets it.
    let reserved = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    reserved.set_reuse_address(true).unwrap();
    reserved.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = reserved.local_addr().unwrap().as_socket().unwrap().port();
    let (one, all) = (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}"));
    for (first, second) in [(&one, &all), (&all, &one)] {
        let line = refusal(ecoloop(&[first, second]));
        assert!(line.starts_with(&format!("cannot listen on {second}: Address already in use")), "{line}");
        assert!(line.contains(&format!("it overlaps with {first}")) && !line.contains("--reuse-port"), "{line}");
    }
}

#[test]
fn an_address_of_no_interface_is_refused() {
    // TEST-NET-1 of RFC 5737: no machine has it.
    let line = refusal(ecoloop(&["192.0.2.1:0"]));
    assert!(line.starts_with("cannot listen on 192.0.2.1:0: Cannot assign requested address"), "{line}");
}

#[test]
fn a_privileged_port_is_refused_without_the_right() {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    let ecoloop = ecoloop(&["127.0.0.1:1"]);
    let command = if geteuid().is_root() {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--bounding-set", "-net_bind_service"]);
        wrapped(setpriv, &ecoloop)
    } else {
        ecoloop
    };
    if first_free.trim().parse::<u16>().unwrap() > 1 {
        let line = refusal(command);
        assert!(line.starts_with("cannot listen on 127.0.0.1:1: Permission denied"), "{line}");
    } else {
        // No port is privileged here, as in many containers.
        serves_on(Process::start(command).listening());
    }
}

#[test]
fn a_name_that_does_not_resolve_is_refused() {
    // A label has at most 63 characters (RFC 1035, 2.3.4), so this fails without a resolver.
    let name = format!("{}.invalid:5000", "a".repeat(64));
    let line = refusal(ecoloop(&[&name]));
    assert!(line.starts_with(&format!("cannot resolve {name}: ")), "{line}");
}

#[test]
fn if_the_second_address_fails_the_first_does_not_serve() {
    let in_use = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = in_use.local_addr().unwrap().to_string();
    for second in [&in_use, "192.0.2.1:0"] {
        let line = refusal(ecoloop(&["127.0.0.1:0", second]));
        assert!(line.starts_with(&format!("cannot listen on {second}: ")), "{line}");
    }
}

#[test]
fn a_report_that_cannot_be_created_is_refused_before_anything_is_served() {
    let line = refusal(ecoloop(&["127.0.0.1:0", "--report", "/proc/none/report.json"]));
    assert!(line.starts_with("cannot create /proc/none/report.json: No such file or directory"), "{line}");
}

#[test]
fn a_report_is_emptied_once_the_server_listens_and_not_before() {
    let file = Scratch::new("old-report");
    fs::write(file.path(), "old, and longer than what follows".repeat(100)).unwrap();
    let old = fs::read(file.path()).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    refusal(ecoloop(&[&taken.local_addr().unwrap().to_string(), "--report", file.path()]));
    assert_eq!(fs::read(file.path()).unwrap(), old);

    let (process, _) = Process::serve(&["--report", file.path()]);
    assert_eq!(fs::read(file.path()).unwrap(), b"");
    process.terminate();
    assert_eq!(file.json()["accepted"], 0);
}

#[test]
fn a_report_that_cannot_be_written_is_an_error_at_the_end() {
    let (process, _) = Process::serve(&["--report", "/dev/full"]);
    let ended = process.terminate();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let [line] = &ended.stderr[..] else { panic!("{ended:?}") };
    assert!(line.starts_with("ecoloop: cannot write /dev/full: No space left on device"), "{line}");
}

/// Asserts that the parser refuses the arguments with an error that contains `named`.
#[track_caller]
fn assert_usage_error(arguments: &[&str], named: &str) {
    let ended = run(arguments);
    assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
    assert!(ended.stdout.is_empty(), "{arguments:?}: {ended:?}");
    let first = ended.stderr.first().unwrap();
    assert!(first.starts_with("error: ") && first.contains(named), "{arguments:?}: {first}");
}

#[test]
fn a_malformed_address_is_a_usage_error() {
    let malformed = [
        "",
        ":",
        ":x",
        ":65536",
        ":-1",
        "5000",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.256:5000",
        "127.0.0:5000",
        "127.0.0.1:http",
        "127.0.0.1:0x10",
        "127.0.0.1: 80",
        " 127.0.0.1:0",
        "::1:5000",
        "[::1]",
        "[::1]5000",
        "[::1:5000",
        "[127.0.0.1]:1",
        "[::g]:1",
        "a host:1",
        "a/host:1",
        "-",
        ".host:1",
        "http://127.0.0.1:5000",
        "nope",
    ];
    for address in malformed {
        for arguments in [&[address][..], &["serve", address], &["127.0.0.1:0", address]] {
            assert_usage_error(arguments, &format!("'{address}'"));
        }
    }
}

#[test]
fn a_zero_and_a_malformed_number_are_usage_errors() {
    for option in ["--buffer-size", "--recv-buffer", "--send-buffer"] {
        for value in ["0", "0KiB", "2GiB", "x", "", "1e3x"] {
            assert_usage_error(&["127.0.0.1:0", option, value], option);
        }
        assert_usage_error(&["127.0.0.1:0", option, "-1"], "-1");
    }
    for option in ["--backlog", "--max-connections"] {
        for value in ["0", "0k", "3000M", "1.5", "x", "", "k", "1K"] {
            assert_usage_error(&["127.0.0.1:0", option, value], option);
        }
        assert_usage_error(&["127.0.0.1:0", option, "-1"], "-1");
    }
    for value in ["5", "x", "", "5 parsecs"] {
        for option in ["--drain-timeout", "--spin", "--idle-timeout", "--stall-timeout"] {
            assert_usage_error(&["127.0.0.1:0", option, value], option);
        }
    }
    for value in ["", "x", "10.0.0.0/33", "10.0.0/8", "::/129", "10.0.0.0/-1", "localhost"] {
        assert_usage_error(&["127.0.0.1:0", "--allow", value], "--allow");
    }
    for (value, network, address) in [
        ("10.0.0.1/8", "10.0.0.0/8", "10.0.0.1"),
        ("192.0.2.255/31", "192.0.2.254/31", "192.0.2.255"),
        ("2001:db8::1/32", "2001:db8::/32", "2001:db8::1"),
    ] {
        let hint = format!("{address} is one address of the network {network}: write {network} or {address}");
        assert_usage_error(&["127.0.0.1:0", "--allow", value], &format!("'{value}' for '--allow <NETWORK>': {hint}"));
        let from = format!("mute,from={value}");
        assert_usage_error(&["127.0.0.1:0", "--fault", &from], &format!("from={value}: expected a value such as"));
    }
    for value in ["", "0", "x", "1/", "1/33", "1/24:", "1/24:129", "1/:64", "1/+8", "1:64"] {
        assert_usage_error(&["127.0.0.1:0", "--max-per-source", value], "--max-per-source");
    }
    for value in ["", "0", "0/s", "x", "10/m", "inf"] {
        assert_usage_error(&["127.0.0.1:0", "--accept-rate", value], "--accept-rate");
    }
    for value in ["5", "x", "0s", "999ms", "32768s"] {
        assert_usage_error(&["127.0.0.1:0", "--keepalive", value], "--keepalive");
    }
    for option in ["--idle-timeout", "--stall-timeout"] {
        assert_usage_error(&["127.0.0.1:0", option, "0s"], option);
    }
}

#[test]
fn a_negative_number_is_answered_with_what_is_expected() {
    assert_usage_error(&[":0", "--max-per-source", "-1"], "'-1' for '--max-per-source <COUNT[/V4LEN[:V6LEN]]>': ");
    #[cfg(target_os = "linux")]
    assert_usage_error(&["check", "--level", "-1", ":9"], "'-1' for '--level <N>': -1 is not in 1..=8");
    #[cfg(feature = "load")]
    for (option, expected) in [
        ("--jobs", "'-1' for '--jobs <COUNT|auto>': expected a number of at least 1, or auto"),
        ("--tolerance", "'-1' for '--tolerance <PERCENT>': expected a percentage from 0.1% to 100%"),
        ("--rank", "'-1' for '--rank <R/N|auto>': "),
    ] {
        assert_usage_error(&["load", option, "-1", ":9"], expected);
    }
}

#[test]
fn an_unknown_flag_subcommand_or_language_is_a_usage_error() {
    for (arguments, named) in [
        (&["--nope"][..], "--nope"),
        (&["-x"], "-x"),
        (&["serve", "--nope"], "--nope"),
        (&["nope"], "nope"),
        (&["127.0.0.1:0", "serve"], "serve"),
        (&["--lang", "fr"], "fr"),
        (&["--lang"], "--lang"),
        (&["--report"], "--report"),
        (&["--when-full", "drop"], "drop"),
        (&["--reuse-port=yes"], "yes"),
        (&["-q", "-v"], "-q"),
        (&["-v", "--log-connections", "none"], "-v logs what connections do"),
        (&["--log-connections", "some"], "--log-connections"),
        (&["--spin", "forever"], "expected a number and us, ms, s, m or h, such as 500ms"),
        (&["--idle-timeout", "5"], "the unit is missing: 5s, or 5ms"),
    ] {
        assert_usage_error(arguments, named);
    }
}

/// Asserts that the address is refused with `hint`, and that what the hint says to write is an address.
#[track_caller]
fn assert_hint(address: &str, hint: &str, written: &str) {
    assert!(hint.contains(written), "{hint}");
    assert_usage_error(&["serve", address], &format!("'{address}' for '[ADDR]...': {hint}"));
    let line = refusal(ecoloop(&["serve", &written.replace("PORT", "1"), "--report", "/proc/none/report"]));
    assert!(line.starts_with("cannot create /proc/none/report"), "{line}");
}

#[test]
fn the_hint_for_a_malformed_address_is_itself_an_address() {
    let in_brackets = "an IPv6 address is written in brackets, with a port:";
    for (address, hint, written) in [
        ("http://127.0.0.1:5911/", "write 127.0.0.1:5911 without http://", "127.0.0.1:5911"),
        ("tcp://127.0.0.1:5911", "write 127.0.0.1:5911 without tcp://", "127.0.0.1:5911"),
        ("https://a.invalid/path?x=1", "write a.invalid:PORT without https://", "a.invalid:PORT"),
        ("http://[::1]/#x", "write [::1]:PORT without http://", "[::1]:PORT"),
        ("http://a.invalid:5911?x", "write a.invalid:5911 without http://", "a.invalid:5911"),
        ("::1:5000", &format!("{in_brackets} [::1]:5000"), "[::1]:5000"),
        ("::1", &format!("{in_brackets} [::1]:PORT"), "[::1]:PORT"),
        ("2001:db8:0:0:0:0:0:5", &format!("{in_brackets} [2001:db8:0:0:0:0:0:5]:PORT"), "[2001:db8:0:0:0:0:0:5]:PORT"),
    ] {
        assert_hint(address, hint, written);
    }
    assert_usage_error(&["serve", "http://"], "expected IP:PORT");
    assert_usage_error(&["serve", "fe80::1:70000"], "the port must be a number from 0 to 65535");
}

#[test]
fn a_size_in_thousands_is_a_usage_error_that_offers_both_meanings() {
    for (size, meant) in [
        ("4k", "write 4KiB (4096 bytes) or 4000"),
        ("4KB", "write 4KiB (4096 bytes) or 4000"),
        ("64kB", "write 64KiB (65536 bytes) or 64000"),
        ("64 KiB", "write 64KiB (65536 bytes) or 64000"),
        ("2M", "write 2MiB (2097152 bytes) or 2000000"),
        ("1GB", "write 1GiB (1073741824 bytes) or 1000000000"),
        ("1.5k", "expected a size such as 1024 or 64KiB"),
        ("64B", "expected a size such as 1024 or 64KiB"),
    ] {
        for option in ["--buffer-size", "--recv-buffer", "--send-buffer"] {
            assert_usage_error(&["127.0.0.1:0", option, size], &format!("'{size}' for '{option} <SIZE>': {meant}"));
        }
        #[cfg(feature = "load")]
        for sizes in [size.to_owned(), format!("1..{size}")] {
            assert_usage_error(&["load", "-s", &sizes, ":9"], &format!("'{sizes}' for '--size <SIZE>': {meant}"));
        }
    }
    for rule in ["rate=64k", "chunk=4kB", "stall=1MB", "mute=4K", "reset=4k", "delay=5ms,hold=64k"] {
        assert_usage_error(&["127.0.0.1:0", "--fault", rule], "such as");
    }
}

#[test]
fn a_malformed_duration_is_answered_with_the_units() {
    let expected = "expected a number and us, ms, s, m or h, such as 500ms";
    for duration in ["5S", "5M", "1y", "1d", "1m 30s", "1m30s", "5 s", "s", "1e3s", "-5s"] {
        assert_usage_error(&["127.0.0.1:0", "--idle-timeout", duration], expected);
        #[cfg(feature = "load")]
        for option in ["--duration", "--timeout", "--warmup", "--interval", "--window"] {
            assert_usage_error(&["load", option, duration, ":9"], expected);
        }
    }
    #[cfg(feature = "load")]
    for option in ["--duration", "--connect-timeout", "--timeout", "--interval", "--window"] {
        assert_usage_error(
            &["load", option, "0s", ":9"],
            &format!("'0s' for '{option} <DURATION>': it must be above zero"),
        );
    }
}

#[test]
fn help_names_every_option_and_version_the_version() {
    for arguments in [&["--help"][..], &["serve", "--help"]] {
        let ended = run(arguments);
        assert!(ended.status.success(), "{ended:?}");
        let help = ended.stdout.join("\n");
        for option in [
            "[ADDR]...",
            "0.0.0.0:5000",
            "--buffer-size <SIZE>",
            "--backlog <COUNT>",
            "--max-connections <COUNT>",
            "[default: descriptor limit - 64, with --metrics - 128]",
            "--when-full <wait|reset>",
            "--allow <NETWORK>",
            "--max-per-source <COUNT[/V4LEN[:V6LEN]]>",
            "--accept-rate <RATE>",
            "--spin <DURATION>",
            "--drain-timeout <DURATION>",
            "--idle-timeout <DURATION>",
            "--stall-timeout <DURATION>",
            "--keepalive <DURATION>",
            "--recv-buffer <SIZE>",
            "--send-buffer <SIZE>",
            "--nagle",
            "--reuse-port",
            "--proxy-protocol",
            "--report <FILE>",
            "--metrics <ADDR>",
            "--lang <en|es>",
            "--log-connections <none|all>",
            "-v, --verbose...",
            "-q, --quiet",
            "--help",
        ] {
            assert!(help.contains(option), "{option} is missing of {arguments:?}: {help}");
        }
    }
    let ended = run(&["--version"]);
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stdout, [concat!("ecoloop ", env!("CARGO_PKG_VERSION"))]);
}

#[test]
fn help_is_grouped_and_has_a_legend_exit_statuses_and_examples() {
    for (subcommand, headings, legend) in [
        (
            "serve",
            &["Limits and timing:", "Sockets:", "Output:"][..],
            &["ADDR ", "SIZE ", "COUNT ", "RATE ", "DURATION ", "NETWORK "][..],
        ),
        (
            "load",
            &["Connections:", "Messages:", "Time:", "Sockets:", "Report:"],
            &["ADDR ", "SIZE ", "COUNT ", "RATE ", "DURATION ", "EXPR "],
        ),
        ("doctor", &["Names:", "Connections:"], &["ADDR ", "COUNT "]),
        ("merge", &["Several generators:", "Report:"], &["EXPR "]),
        ("compare", &["Live:", "Report:"], &["EXPR "]),
        ("check", &[], &["ADDR "]),
    ] {
        let ended = run(&[subcommand, "--help"]);
        assert!(ended.status.success(), "{ended:?}");
        let lines = &ended.stdout;
        for heading in [headings, &["Exit status:", "Examples:"]].concat() {
            assert!(lines.iter().any(|line| line == heading), "{heading} is missing in {lines:#?}");
        }
        for unit in legend {
            assert!(lines.iter().any(|line| line.starts_with(unit)), "{unit} is missing in {lines:#?}");
        }
        let examples = lines.iter().filter(|line| line.starts_with(&format!("  ecoloop {subcommand} "))).count();
        assert!(examples >= 2, "{lines:#?}");
        assert!(!lines.iter().any(|line| line.contains('`')), "{lines:#?}");
    }
    assert!(!run(&["--help"]).stdout.iter().any(|line| line.contains('`')));
}

#[test]
fn help_for_load_testers_fits_on_a_screen() {
    let is_wide = |lines: &[String]| lines.iter().any(|line| line.chars().count() > 100);
    for arguments in [["load", "-h"], ["doctor", "--help"], ["merge", "--help"], ["compare", "--help"]] {
        let lines = run(&arguments).stdout;
        assert!(!lines.is_empty() && lines.len() <= 50 && !is_wide(&lines), "{} lines: {lines:#?}", lines.len());
    }
    let [short, full] = ["-h", "--help"].map(|help| run(&["load", help]).stdout);
    assert!(!is_wide(&full), "{full:#?}");
    let options = |lines: &[String]| -> BTreeSet<String> {
        let words = lines.iter().filter(|line| line.starts_with("  ")).flat_map(|line| line.split_whitespace().take(2));
        words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
    };
    let (short, full) = (options(&short), options(&full));
    assert!(short.is_subset(&full) && short.contains("--find-rate") && short.contains("--help"), "{short:?}");
    let rare = ["--ipv4", "--connect-timeout", "--seed", "--start-at", "--nagle", "--tolerance", "--ranks", "--hgrm"];
    assert!(rare.iter().all(|&option| full.contains(option) && !short.contains(option)), "{full:?}");
}

#[test]
fn the_short_help_of_the_server_has_the_common_options() {
    let options = |lines: &[String]| -> BTreeSet<String> {
        let words = lines.iter().filter(|line| line.starts_with("  ")).flat_map(|line| line.split_whitespace().take(2));
        words.filter(|word| word.starts_with("--")).map(|word| word.trim_end_matches('.').to_owned()).collect()
    };
    for subcommand in [&[][..], &["serve"]] {
        let [short, full] = ["-h", "--help"].map(|help| run(&[subcommand, &[help]].concat()).stdout);
        assert!(short.len() <= 50 && full.len() > short.len(), "{} lines: {short:#?}", short.len());
        let (short, full) = (options(&short), options(&full));
        assert!(short.is_subset(&full) && short.len() < full.len() / 2 + 1, "{short:?}");
        assert!(["--max-connections", "--metrics", "--quiet", "--help"].iter().all(|&option| short.contains(option)));
        assert!(!short.contains("--unix-mode") && full.contains("--unix-mode"), "{short:?}");
    }
    let short = run(&["-h"]).stdout;
    for subcommand in ["serve", "strip", "completions"] {
        assert!(short.iter().any(|line| line.starts_with(&format!("  {subcommand} "))), "{short:#?}");
    }
    assert_eq!(short.iter().skip_while(|line| *line != "Examples:").skip(1).count(), 2, "{short:#?}");
}

#[test]
fn a_misspelled_subcommand_suggests_the_right_one() {
    for (arguments, subcommand) in [
        (&["lode"][..], "load"),
        (&["laod", "-c", "10", "127.0.0.1:5000"], "load"),
        (&["serv", "127.0.0.1:0"], "serve"),
        (&["docter", "-c", "1"], "doctor"),
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        let tip = format!("did you mean the subcommand '{subcommand}'?");
        assert!(ended.stderr.iter().any(|line| line.contains(&tip)), "{arguments:?}: {ended:?}");
    }
    for arguments in [
        &["300.1.2.3:5000"][..],
        &["load:5000", "--nope"],
        &["load", "lode"],
        &["serve", "lode"],
        &["--max-connections", "0"],
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.iter().any(|line| line.contains("did you mean")), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn a_usage_error_prints_no_control_character() {
    for arguments in [
        &["--\u{1b}[31mred"][..],
        &["a\u{7}:5000"],
        &["--max-connections", "1\u{9b}2"],
        &["serve", "--lang", "e\rn"],
        &["--report", "a\u{1b}b", "--trace", "a\u{1b}b"],
        &["--quiet", "--report", "a\u{1b}b", "serve"],
    ] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr[0].contains('\u{fffd}'), "{ended:?}");
        assert!(!ended.stderr.iter().any(|line| line.contains(char::is_control)), "{ended:?}");
    }
}

#[test]
fn options_before_the_subcommand_are_answered_with_the_subcommand_first() {
    for (arguments, line) in [
        (&["-vv", "serve", "127.0.0.1:6001"][..], "ecoloop serve -vv 127.0.0.1:6001"),
        (&["--quiet", "serve"], "ecoloop serve --quiet"),
        (&["127.0.0.1:0", "serve"], "ecoloop serve 127.0.0.1:0"),
        (&["--lang", "en", "serve", "[::1]:0", "--report", "a b"], "ecoloop serve --lang en [::1]:0 --report 'a b'"),
        (&["-o", "notes.html", "strip", "notes.strace"], "ecoloop strip -o notes.html notes.strace"),
        #[cfg(feature = "load")]
        (&["-c", "10", "load", ":9", "--fail-if", "p99>5ms"], "ecoloop load -c 10 :9 --fail-if 'p99>5ms'"),
    ] {
        let ended = run(arguments);
        let expected = format!("error: the subcommand comes first: {line}");
        assert_eq!((ended.status.code(), &ended.stderr[0]), (Some(2), &expected), "{ended:?}");
    }
    // In the first place too, these are errors, or the word is the value of an option.
    for arguments in [&["-vv", "serve", "nope"][..], &["--report", "check", "nope"], &["-x", "serve"]] {
        let ended = run(arguments);
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(!ended.stderr[0].contains("comes first"), "{ended:?}");
    }
}

#[test]
fn every_form_of_address_serves_and_logs_the_real_port() {
    for (arguments, ip) in [
        (&["127.0.0.1:0"][..], "127.0.0.1"),
        (&["serve", "127.0.0.1:0"], "127.0.0.1"),
        (&["[::1]:0"], "::1"),
        (&[":0"], "0.0.0.0"),
        (&["[::]:0"], "::"),
    ] {
        let mut process = Process::start(ecoloop(arguments));
        let address = process.listening();
        assert_eq!(address.ip().to_string(), ip);
        assert_ne!(address.port(), 0);
        // To connect to the unspecified address is to connect to this machine (ip(7)).
        serves_on(address);
    }
}

#[test]
fn a_name_serves_every_address_that_it_resolves_to() {
    let expected: BTreeSet<_> = ("localhost", 0).to_socket_addrs().unwrap().map(|address| address.ip()).collect();
    let mut process = Process::start(ecoloop(&["localhost:0"]));
    let mut actual = BTreeSet::new();
    while actual.len() < expected.len() {
        let address = process.listening();
        serves_on(address);
        actual.insert(address.ip());
    }
    assert_eq!(actual, expected);
}

#[test]
fn several_addresses_are_all_served() {
    let mut process = Process::start(ecoloop(&["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"]));
    for ip in ["127.0.0.1", "127.0.0.2", "::1"] {
        let address = process.listening();
        assert_eq!(address.ip().to_string(), ip);
        serves_on(address);
    }
}

#[test]
fn ipv4_and_ipv6_share_one_port() {
    // Another test may take the free port before the server does: then again with another port.
    for _ in 0..20 {
        let port = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let addresses = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
        let mut process = Process::start(ecoloop(&[&addresses[0], &addresses[1]]));
        eventually("a start or an end", || process.has_ended() || is_listening(addresses[0].parse().unwrap()));
        if process.has_ended() {
            continue;
        }
        assert_eq!([process.listening(), process.listening()].map(|address| address.to_string()), addresses);
        serves_on(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        serves_on(format!("[::1]:{port}").parse().unwrap());
        return;
    }
    panic!("twenty ports, and none for both");
}

#[test]
fn two_processes_share_a_port_that_both_ask_to_share() {
    let (mut one, address) = Process::serve(&["--reuse-port"]);
    let mut two = Process::start(ecoloop(&[&address.to_string(), "--reuse-port"]));
    assert_eq!(two.listening(), address);
    // The kernel distributes connections by a hash of their addresses: with 64, each process gets some.
    let mut clients: Vec<_> = (0..64).map(|_| connect(address)).collect();
    for client in &mut clients {
        assert_echoes(client, b"hola");
    }
    one.line_with("Connection from:");
    two.line_with("Connection from:");
    drop(clients);

    let line = refusal(ecoloop(&[&address.to_string()]));
    assert!(line.contains("Address already in use"), "{line}");
}

#[test]
fn the_final_figures_are_what_the_clients_did() {
    let report = Scratch::new("figures");
    fs::write(report.path(), "of an earlier run").unwrap();
    let (mut process, address) = Process::serve(&["--report", report.path()]);
    assert_eq!(fs::read(report.path()).unwrap(), b"", "opened at the start");
    // Three send FIN, two reset, and one is still open at the end, when what it sends is discarded.
    for length in [1, 1000, 5000] {
        let mut client = connect(address);
        assert_echoes(&mut client, &pattern(length));
        half_close(&client);
        assert_ended(&mut client);
    }
    for _ in 0..2 {
        let mut client = connect(address);
        assert_echoes(&mut client, &pattern(10));
        reset(client);
        process.line_with("abruptly");
    }
    let mut last = connect(address);
    assert_echoes(&mut last, &pattern(100));
    process.signal(Signal::TERM);
    assert_ended(&mut last);
    last.write_all(b"too late").unwrap();
    drop(last);

    let ended = process.wait();
    let figures =
        "6 connections accepted, 6 closed (3 end of stream, 2 reset, 1 drained), 6129 bytes in, 6121 bytes out, ";
    let (_, seconds) = ended.summary().split_once(figures).unwrap_or_else(|| panic!("{ended:?}"));
    let mut json = report.json();
    let exact = json.as_object_mut().unwrap().remove("seconds").unwrap().as_f64().unwrap();
    assert_eq!(seconds, format!("{exact:.3} s"));
    assert!(exact > 0.0, "{exact}");
    let expected = serde_json::json!({
        "accepted": 6,
        "closed": {
            "end_of_stream": 3, "reset": 2, "failed": 0, "idle": 0, "stalled": 0, "drained": 1, "cut": 0, "stopped": 0, "fault": 0,
        },
        "faults": {
            "delay": 0, "rate": 0, "chunk": 0, "stall": 0, "mute": 0, "reset": 0, "fin": 0,
            "flip": 0, "lose": 0, "duplicate": 0, "swap": 0, "connect": 0,
        },
        "refused": {"max_connections": 0, "per_source": 0, "not_allowed": 0},
        "bytes_in": 6129,
        "bytes_out": 6121,
        "discarded": 8,
        "log_lines_lost": 0,
    });
    assert_eq!(json, expected);
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn the_summary_is_in_the_language_of_the_log() {
    let mut process = Process::start(ecoloop(&["127.0.0.1:0", "--lang", "es"]));
    let start = process.line_with("con puerto ");
    let port = start.rsplit(' ').next().unwrap().parse().unwrap();
    serves_on(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    process.line_with("ha cerrado");
    let ended = process.terminate();
    assert!(ended.status.success(), "{ended:?}");
    let summary = ended.stdout.last().unwrap();
    let figures = "Fin: 1 conexion aceptada, 1 cerrada (1 fin de datos), 4 bytes recibidos, 4 bytes enviados, ";
    assert!(summary.contains(figures), "{summary}");
}
