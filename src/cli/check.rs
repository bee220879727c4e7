//! `ecoloop check`: grades any echo server.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use clap::Args;
use clap::builder::PossibleValuesParser;
use ecoloop::check::{self, Grade, Graded, Grader, Report};
use signal_hook::consts::SIGQUIT;

use super::format::{plural, strip_control, wrap};
use super::log_observer::Language;
use super::output::{self, Output, exit_interrupted};
use super::signals::Requests;
use super::values::Endpoint;
use super::{descriptors, junit, print_error, usage_error};

/// Width of the words under a result.
const TEXT_WIDTH: usize = 100;
/// Width of a check's name, and of a label under it.
const NAME_WIDTH: usize = 20;
const LABEL_WIDTH: usize = 12;

const HELP: &str = "\
ADDR  IP:PORT, [IPv6]:PORT, NAME:PORT, or :PORT for 127.0.0.1; unix:PATH, unix:@NAME

Levels: 1 echo, 2 several clients, 3 streams, 4 pressure, 5 endings, 6 fairness, 7 many, 8 shortage. It takes at most 60 s,
and opens at most 10,000 connections at a time.

With --pid, the checks of level 8 stop and continue the server (SIGSTOP, SIGCONT), lower its descriptor limit for a
second, and at last end it with SIGTERM.

On a Unix socket, which has no RST and no SYN, connections are closed instead of reset, and burst is skipped.

Exit status:
  0    no check failed
  1    a check failed; or runtime error, such as a server that is not there
  2    usage error
  130  interrupted

Examples:
  ecoloop check :5000
      grade the server on port 5000 of this machine
  ecoloop check --pid $(pgrep -n myserver) --junit results.xml :5000
      all eight levels, with a result for CI
  ecoloop check --only half-close --only reset :5000
      two checks alone";

#[derive(Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Echo server to grade
    #[arg(value_name = "ADDR")]
    address: Endpoint,

    /// Process ID of the server on this machine: grade its memory, and level 8, which ends it
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,

    /// Language of the results [default: from the locale]
    #[arg(long)]
    lang: Option<Language>,

    /// Run only the checks of levels 1 to N
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u8).range(1..=8))]
    level: u8,

    /// Run only this check (repeatable)
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = names())]
    only: Vec<String>,

    /// Write the results to FILE as JSON; here and below, - is standard output, without the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    #[arg(long, value_name = "FILE", help = "Write the results to FILE as JUnit XML")]
    junit: Option<PathBuf>,
}

fn names() -> PossibleValuesParser {
    check::all().map(check::Check::name).into()
}

/// Grades the server, prints each result as it comes, and writes the documents.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let stage = Arc::new(Stage::default());
    handle_signals(Arc::clone(&stage))?;
    let outputs = Outputs::open(arguments)?;
    let mut grader = Grader::new(arguments.address.resolve()?);
    grader.pid = arguments.pid;
    grader = grader.up_to_level(arguments.level);
    if !arguments.only.is_empty() {
        grader = grader.only(arguments.only.iter().map(String::as_str))?;
    }
    if grader.checks.is_empty() {
        usage_error("check", "no check of --only is of a level that --level allows");
    }
    descriptors::raise_limit(print_error);
    let language = arguments.lang.unwrap_or_else(Language::from_environment);
    grader.language = language.into();
    let mut table = Table { language: outputs.table.then_some(language), has_header: false, printed: Ok(()) };
    stage.has_begun.store(true, Ordering::Release);
    let report = grader.run(&stage.interrupt, |graded| {
        table.add(graded);
        if table.printed.is_err() {
            stage.interrupt.store(true, Ordering::Release);
        }
    });
    stage.has_ended.store(true, Ordering::Release);
    let mut report = report.map_err(|error| with_hint(error, &arguments.address))?;
    report.target = arguments.address.to_string();
    table.end(&report);
    outputs.write(&report)?;
    table.printed?;
    Ok(match report.failed() {
        _ if report.interrupted => ExitCode::from(130),
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn with_hint(error: io::Error, address: &Endpoint) -> io::Error {
    let is_absent = match error.kind() {
        io::ErrorKind::ConnectionRefused => true,
        // Of the socket's file, not of the process.
        io::ErrorKind::NotFound => error.to_string().contains(&address.to_string()),
        _ => false,
    };
    if !is_absent {
        return error;
    }
    io::Error::new(error.kind(), format!("{error}; start the server first, or give its address"))
}

/// The open outputs of a run.
struct Outputs {
    json: Option<Output>,
    junit: Option<Output>,
    table: bool,
}

impl Outputs {
    fn open(arguments: &Arguments) -> Result<Self, String> {
        let open = |path: &Option<PathBuf>| path.as_deref().map(Output::open).transpose();
        let (json, junit) = (open(&arguments.json)?, open(&arguments.junit)?);
        if let Some(conflict) = output::conflict(&[("--json", json.as_ref()), ("--junit", junit.as_ref())]) {
            usage_error("check", conflict);
        }
        let table = ![&json, &junit].into_iter().flatten().any(|output| matches!(output, Output::Stdout));
        Ok(Self { json, junit, table })
    }

    /// Writes both documents, even if the first fails.
    fn write(&self, report: &Report) -> Result<(), String> {
        let results = [
            self.json.as_ref().map(|output| output.write(&document(report)?)),
            self.junit
                .as_ref()
                .map(|output| output.write(&junit::document(&report.results, &report.target, report.language)?)),
        ];
        let failures: Vec<_> = results.into_iter().flatten().filter_map(Result::err).collect();
        if failures.is_empty() { Ok(()) } else { Err(failures.join("; ")) }
    }
}

fn document(report: &Report) -> Result<String, String> {
    // As a value first: its fields are sorted.
    let json = serde_json::to_value(report).map_err(|error| format!("cannot write the results as JSON: {error}"))?;
    Ok(format!("{json:#}\n"))
}

/// The table, printed row by row.
struct Table {
    /// Without one, nothing is printed.
    language: Option<Language>,
    has_header: bool,
    printed: Result<(), String>,
}

impl Table {
    fn add(&mut self, graded: &Graded) {
        let Some(language) = self.language else { return };
        if !self.has_header {
            self.has_header = true;
            let columns = ("CHECK", "LEVEL", "RESULT");
            let (check, level, result) = language.pick(columns, ("PRUEBA", "NIVEL", "RESULTADO"));
            self.print(&format!("{check:NAME_WIDTH$}{level}  {result}\n"));
        }
        self.print(&row(graded, language));
    }

    fn end(&mut self, report: &Report) {
        if let Some(language) = self.language {
            self.print(&summary(report, language));
        }
    }

    fn print(&mut self, text: &str) {
        if self.printed.is_ok() {
            self.printed = output::print(text.as_bytes());
        }
    }
}

/// Returns a row of the table, and below it the words of a result that is not ok.
fn row(graded: &Graded, language: Language) -> String {
    let (check, words) = (graded.check, language.into());
    let came = strip_control(&graded.came(words).unwrap_or_default());
    let row = format!("{:NAME_WIDTH$}{:>5}  ", check.name(), check.level());
    let result = match graded.grade {
        Grade::Ok => return row + "ok\n",
        Grade::Skipped => return row + language.pick("skipped", "omitida") + " (" + &came + ")\n",
        Grade::Fails => language.pick("FAILS\n", "FALLA\n"),
        Grade::Late => language.pick("late\n", "con retraso\n"),
    };
    let labels = language.pick(["sent", "happened", "why", "read"], ["se envió", "pasó", "por qué", "leer"]);
    let texts = [graded.sent(words), &came, check.matters().get(words), &check.read(words)];
    let paragraphs = labels.into_iter().zip(texts).map(|(label, text)| paragraph(label, text));
    [row, result.to_owned()].into_iter().chain(paragraphs).collect()
}

fn paragraph(label: &str, text: &str) -> String {
    let words: Vec<_> = text.split(' ').map(str::to_owned).collect();
    let lines = wrap(&words, " ", TEXT_WIDTH).into_iter().enumerate();
    let lines = lines.map(|(at, line)| format!("    {:LABEL_WIDTH$}{line}\n", if at == 0 { label } else { "" }));
    lines.collect()
}

fn summary(report: &Report, language: Language) -> String {
    let checks = report.results.len();
    let [ok, fails, late, skipped] =
        [Grade::Ok, Grade::Fails, Grade::Late, Grade::Skipped].map(|grade| report.count(grade));
    match language {
        Language::En => {
            format!("{}: {ok} ok, {fails} failed, {late} late, {skipped} skipped\n", plural(checks, "check", "checks"))
        }
        Language::Es => format!(
            "{}: {ok} ok, {}, {late} con retraso, {}\n",
            plural(checks, "prueba", "pruebas"),
            plural(fails, "falla", "fallan"),
            plural(skipped, "omitida", "omitidas"),
        ),
    }
}

/// How far the run has come, for the thread that handles signals.
#[derive(Default)]
struct Stage {
    has_begun: AtomicBool,
    has_ended: AtomicBool,
    interrupt: AtomicBool,
}

/// Starts a thread for SIGINT, SIGTERM, SIGHUP and SIGQUIT: the first interrupts the run, which then prints what was graded. Before the
/// run and after it a signal ends the process; never during it, when the server may be stopped.
fn handle_signals(stage: Arc<Stage>) -> Result<(), Box<dyn Error>> {
    let signals = Requests::to_end_a_run(&[SIGQUIT])?;
    let handle_each = move || {
        for _ in signals {
            if stage.has_ended.load(Ordering::Acquire) || !stage.has_begun.load(Ordering::Acquire) {
                exit_interrupted();
            }
            stage.interrupt.store(true, Ordering::Release);
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(handle_each)?;
    Ok(())
}
