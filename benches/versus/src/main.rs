//! Compares ecoloop with other echo servers; see docs/benchmarks.md.

mod counters;
mod generators;
mod measure;
mod peers;
mod plot;
mod processes;
mod report;
mod workloads;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use measure::Settings;
use report::{Document, Machine, PeerInfo, markdown};
use workloads::Workload;

/// The working directory of the commands in `peers.toml`.
const PACKAGE_DIR: &str = env!("CARGO_MANIFEST_DIR");

/// Compares ecoloop with other echo servers, one server at a time on core 0 and ecoloop load on core 1
///
/// Prints the tables, and writes the results as JSON. The pictures go to images/ beside the JSON file, and the tables into
/// the Markdown pages beside it whose names begin with that of the JSON file.
#[derive(Parser)]
struct Options {
    /// Include the optional peers
    #[arg(long)]
    all: bool,
    /// Install the Debian packages that the peers need
    #[arg(long)]
    install: bool,
    /// Sessions per workload, each with new servers and new connections
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = clap::value_parser!(u16).range(1..))]
    sessions: u16,
    /// Rounds per session, each with one window per server; a confidence interval needs 6 rounds in total
    #[arg(long, value_name = "COUNT", default_value = "25", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Peers to measure, in addition to the floor and its A/A control
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Workloads to run [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    workloads: Vec<String>,
    /// Length of a measurement window; some workloads multiply it
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = humantime::parse_duration)]
    window: Duration,
    /// JSON file, rewritten after each workload [default: docs/benchmarks.json in the repository]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Keep the other workloads of the JSON file
    #[arg(long)]
    update: bool,
    /// Render tables and pictures from this JSON file, without measuring
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "install", "sessions", "rounds", "only", "workloads", "window", "json", "update"])]
    render: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("versus: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), String> {
    if let Some(file) = &options.render {
        // Before the change of directory: the path is relative to the user's.
        return render(&Document::read(file)?, file);
    }
    let workloads = select(&options.workloads)?;
    let json = options.json.clone().unwrap_or_else(|| Path::new(PACKAGE_DIR).join("../../docs/benchmarks.json"));
    let json = std::path::absolute(json).map_err(|error| format!("--json: {error}"))?;
    // Checked now, not after an hour of measuring.
    if !json.parent().is_some_and(Path::is_dir) {
        return Err(format!("cannot write {}: the directory does not exist", json.display()));
    }
    prepare()?;
    let list = fs::read_to_string("peers.toml").map_err(|error| format!("cannot read peers.toml: {error}"))?;
    let peers = peers::select(&list, options.all, &options.only)?;
    if options.install {
        peers::install(&peers)?;
    }
    peers::build_clients(Path::new("../.."))?;
    let (peers, skipped) = peers::build(peers)?;

    let start = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let window_ms = options.window.as_millis().try_into().map_err(|_| "--window is too long")?;
    let mut document = Document::new(start, window_ms, machine()?);
    if options.update {
        document.keep(Document::read(&json)?)?;
    }
    document.skipped = skipped;
    for peer in &peers {
        let (name, run) = (peer.name.clone(), peer.run.clone());
        document.add_peer(PeerInfo { name, kind: peer.kind, version: peer.version(), run });
    }
    let settings = Settings {
        sessions: options.sessions.into(),
        rounds_per_session: options.rounds.into(),
        window: options.window,
    };
    let mut failed = Vec::new();
    for workload in &workloads {
        match measure::measure(workload, &peers, &settings) {
            Ok(result) => document.add_workload(result),
            Err(error) => failed.push(format!("{}: {error}", workload.name)),
        }
        processes::check_interrupt()?;
        document.write(&json)?;
    }
    render(&document, &json)?;
    if failed.is_empty() { Ok(()) } else { Err(format!("not measured: {}", failed.join("; "))) }
}

fn select(names: &[String]) -> Result<Vec<Workload>, String> {
    let all = workloads::all();
    if let Some(unknown) = names.iter().find(|&name| all.iter().all(|workload| workload.name != name)) {
        let names: Vec<_> = all.iter().map(|workload| workload.name).collect();
        return Err(format!("unknown workload {unknown:?}; expected one of {}", names.join(", ")));
    }
    let is_wanted = |workload: &Workload| names.is_empty() || names.iter().any(|name| name == workload.name);
    Ok(all.into_iter().filter(is_wanted).collect())
}

/// Changes to the package directory and raises the descriptor limit, which servers and load generators inherit.
fn prepare() -> Result<(), String> {
    processes::watch_signals()?;
    std::env::set_current_dir(PACKAGE_DIR)
        .map_err(|error| format!("cannot change the directory to {PACKAGE_DIR}: {error}"))?;
    fs::create_dir_all("target").map_err(|error| format!("cannot create target: {error}"))?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 2 {
        return Err(format!("found {cores} core, but two are needed: one for the server and one for the load"));
    }
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .map_err(|error| format!("cannot raise the descriptor limit: {error}"))
}

fn machine() -> Result<Machine, String> {
    const FILE: &str = "/proc/cpuinfo";
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let name =
        text.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned()));
    Ok(Machine {
        cpu: name.unwrap_or_else(|| "unknown CPU".to_owned()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
    })
}

/// Prints the tables, writes the pictures, and fills the pages beside the JSON file that begin with its name:
/// `benchmarks.md` and `benchmarks-tables.md`, for example.
fn render(document: &Document, json: &Path) -> Result<(), String> {
    let sections = markdown::sections(document);
    for (_, content) in &sections {
        println!("{content}");
    }
    let images = json.with_file_name("images");
    fs::create_dir_all(&images).map_err(|error| format!("cannot create {}: {error}", images.display()))?;
    for (name, svg) in plot::pictures(document)? {
        report::replace_file(&images.join(format!("benchmarks-{name}.svg")), &svg)?;
    }
    for page in pages(json)? {
        let text = fs::read_to_string(&page).map_err(|error| format!("cannot read {}: {error}", page.display()))?;
        let text = markdown::fill(&text, &sections).map_err(|error| format!("{}: {error}", page.display()))?;
        report::replace_file(&page, &text)?;
    }
    Ok(())
}

fn pages(json: &Path) -> Result<Vec<PathBuf>, String> {
    let directory = json.with_file_name(".");
    let stem = json.file_stem().unwrap_or_default().as_encoded_bytes();
    let entries = fs::read_dir(&directory).map_err(|error| format!("cannot read {}: {error}", directory.display()))?;
    let names = entries.flatten().map(|entry| PathBuf::from(entry.file_name()));
    let is_page = |name: &PathBuf| {
        name.extension().is_some_and(|extension| extension == "md")
            && name.as_os_str().as_encoded_bytes().starts_with(stem)
    };
    Ok(names.filter(is_page).map(|name| json.with_file_name(name)).collect())
}
