//! Options for fault injection, and the page of `--help-faults`.

use std::fmt::Write;

use clap::Args;
use ecoloop::fault::Fault;

#[derive(Args)]
#[command(next_help_heading = "Fault injection")]
pub(super) struct FaultArguments {
    /// Misbehave as in delay=5ms..20ms or reset=4KiB,p=5% (repeatable; --help-faults lists the rules) [default: none]
    #[arg(long = "fault", value_name = "RULE")]
    pub(super) rules: Vec<Fault>,

    /// Seed that determines which connections p= chooses, and the delays of a range
    #[arg(long = "fault-seed", value_name = "U64", default_value = "1", requires = "rules")]
    pub(super) seed: u64,

    /// Print the rules of --fault, and what ecoloop load reports of each
    #[arg(long)]
    pub(super) help_faults: bool,
}

impl FaultArguments {
    /// Checks that the rules add up.
    pub(super) fn check(&self) -> Result<(), String> {
        Fault::check_all(&self.rules).map_err(|error| format!("--fault: {error}"))
    }

    /// Returns whether a rule closes the listening sockets, or has them drop packets.
    pub(super) fn change_listeners(&self) -> bool {
        self.rules.iter().any(Fault::changes_listeners)
    }
}

/// A rule as an example of its kind.
struct Row {
    rule: &'static str,
    client: &'static str,
    load: &'static str,
}

const fn row(rule: &'static str, client: &'static str, load: &'static str) -> Row {
    Row { rule, client, load }
}

/// What each rule does. `docs/faults.md` has the same table, and a test runs every line of it.
const ROWS: [Row; 19] = [
    row("delay=20ms", "each piece of the echo comes 20 ms later, in order", "latency of at least 20 ms"),
    row("delay=5ms..20ms", "each piece comes 5 ms to 20 ms later, uniformly", "latency of at least 5 ms"),
    row("rate=64KiB", "at most 64 KiB a second come back, smoothly", "latency of at least 7 ms"),
    row("chunk=7,gap=1ms", "the echo comes in writes of at most 7 bytes, 1 ms apart", "latency of at least 9 ms"),
    row(
        "stall=4KiB,for=500ms",
        "after 4 KiB, neither reads nor writes for 500 ms",
        "maximum latency of at least 500 ms",
    ),
    row("stall=4KiB", "after 4 KiB, neither reads nor writes: the receive window closes", "error receive timeout"),
    row("mute=4KiB", "after 4 KiB, reads everything and returns nothing", "error receive timeout"),
    row("reset=4KiB", "RST, once exactly 4 KiB came back", "error reset"),
    row("reset=200ms", "RST, 200 ms after the accept", "error reset"),
    row("fin=4KiB", "FIN, once exactly 4 KiB came back", "error receive closed_early"),
    row("fin=4000", "FIN in the middle of a message", "finding truncated"),
    row("flip=1000", "every 1,000th byte has a bit turned", "finding flipped"),
    row("lose=1000", "every 1,000th byte is left out", "finding lost"),
    row("duplicate=1000", "every 1,000th byte comes twice", "finding duplicated"),
    row("swap=1000", "every 1,000th byte is exchanged with the next", "finding reordered"),
    row("connect=hang", "connects time out", "error connect timeout"),
    row("connect=refuse", "connects are refused", "error connect refused"),
    row("connect=reset", "RST right after the handshake", "error reset"),
    row("connect=100ms", "connections are accepted one every 100 ms", "connect phase of at least 300 ms"),
];

const INTRODUCTION: &str = "\
RULE = KIND[=VALUE][,KEY=VALUE]...

A connection draws its rules once, at its accept. Of each kind, the first rule that chooses it holds for its life. Rules
of different kinds add up.
";

const KEYS: [(&str, &str); 10] = [
    ("hold=SIZE", "delay: maximum bytes delayed at a time (64KiB); then nothing is read"),
    ("gap=DURATION", "chunk: time between two writes (0s)"),
    ("for=DURATION", "stall: how long; without it, for good"),
    ("p=PERCENT", "this percentage of the connections: p=5%; a run with the same --fault-seed repeats"),
    ("first=COUNT", "the first connections, up to this number"),
    ("after=COUNT", "the connections after this number"),
    ("every=COUNT", "the connections whose number is a multiple of this"),
    ("from=NETWORK", "connections from this network"),
    ("at=TIME..TIME", "connections accepted in this time since the start: at=10s..20s"),
    ("", "connect has only at=, and connect=reset also p="),
];

/// Returns the page of `--help-faults`.
pub(super) fn help() -> String {
    let mut text = format!("{INTRODUCTION}\n");
    let width = |column: fn(&Row) -> &'static str| ROWS.iter().map(|row| column(row).len()).max().unwrap_or_default();
    let (rule, client) = (width(|row| row.rule), width(|row| row.client));
    let _ = writeln!(text, "{:rule$}  {:client$}  ecoloop load reports", "RULE", "A client sees");
    for row in &ROWS {
        let _ = writeln!(text, "{:rule$}  {:client$}  {}", row.rule, row.client, row.load);
    }
    let _ = writeln!(text, "\n{:rule$}  Meaning", "KEY");
    for (key, meaning) in KEYS {
        let _ = writeln!(text, "{key:rule$}  {meaning}");
    }
    text
}
