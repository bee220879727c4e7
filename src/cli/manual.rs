//! `ecoloop man` and `ecoloop completions`: what is made of the command line's own description.

use std::error::Error;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::output;

const MAN_HELP: &str = "\
man(1) finds the pages beside each directory of PATH: those of a program in ~/.cargo/bin are in ~/.cargo/share/man/man1.

Exit status:
  0  the pages are written
  1  runtime error, such as a directory that cannot be written
  2  usage error

Examples:
  ecoloop man ~/.cargo/share/man/man1     after cargo install
  man ecoloop-load                        read one";

const COMPLETIONS_HELP: &str = "\
Exit status:
  0  the script is printed
  1  runtime error, such as a standard output that is full
  2  usage error

Examples:
  ecoloop completions bash > ~/.local/share/bash-completion/completions/ecoloop
  ecoloop completions zsh > ~/.zfunc/_ecoloop     with fpath+=~/.zfunc before compinit in ~/.zshrc
  ecoloop completions fish > ~/.config/fish/completions/ecoloop.fish";

#[derive(Args)]
#[command(after_help = MAN_HELP)]
pub(super) struct ManArguments {
    /// Directory for the pages; it is created if it is missing
    #[arg(value_name = "DIRECTORY")]
    directory: PathBuf,
}

#[derive(Args)]
#[command(after_help = COMPLETIONS_HELP)]
pub(super) struct CompletionsArguments {
    /// Shell that reads the script
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes a page for the program, and one for each subcommand.
pub(super) fn write_pages(arguments: &ManArguments, command: Command) -> Result<ExitCode, Box<dyn Error>> {
    let directory = &arguments.directory;
    fs::create_dir_all(directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for command in command.get_subcommands().chain([&command]) {
        let man = Man::new(command.clone()).date(" ").source(concat!("ecoloop ", env!("CARGO_PKG_VERSION")));
        let path = directory.join(man.get_filename());
        let page = page(&man, command)?;
        fs::write(&path, page).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the script that completes subcommands, options and values.
pub(super) fn print_completions(
    arguments: &CompletionsArguments,
    mut command: Command,
) -> Result<ExitCode, Box<dyn Error>> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "ecoloop", &mut script);
    output::print(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if let Some(help) = command.get_after_help() {
        notes(&help.to_string()).to_writer(&mut page)?;
    }
    if !command.has_subcommands() {
        let mut roff = Roff::new();
        roff.control("SH", ["SEE ALSO"]).text([roman("ecoloop(1)")]);
        roff.to_writer(&mut page)?;
    }
    Ok(page)
}

/// Returns the usage as `--help` prints it: the one of `clap_mangen` lists every option, without its value.
fn synopsis(command: &Command) -> Roff {
    let usage = command.clone().render_usage().to_string();
    let mut roff = Roff::new();
    roff.control("SH", ["SYNOPSIS"]).control("nf", []);
    for line in usage.trim_start_matches("Usage:").lines() {
        roff.text([roman(line.trim_start())]);
    }
    roff.control("fi", []);
    roff
}

/// Returns sections of what `--help` prints after the options. Tables and examples keep their lines.
fn notes(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut section = "";
    for block in help.split("\n\n") {
        let (title, text) = match block.split_once(":\n") {
            Some((heading, text)) if text.starts_with("  ") => (heading, text),
            _ => ("Notes", block),
        };
        if title == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [title.to_uppercase().as_str()]);
            section = title;
        }
        let keeps_lines = text.contains("  ");
        if keeps_lines {
            roff.control("nf", []);
        }
        for line in text.lines() {
            roff.text([roman(line)]);
        }
        if keeps_lines {
            roff.control("fi", []);
        }
    }
    roff
}
