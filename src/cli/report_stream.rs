//! Finds the reports in a stream, such as the logs of several generators.
//!
//! A report is on one line or on several, each after the same prefix (`kubectl logs --prefix`, `mpirun --tag-output`). Other lines may be
//! between reports, and reports of other prefixes between the lines of one.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use ecoloop::load::Report;
use serde::de::IgnoredAny;

use super::format::plural;
use super::input::Input;
use super::print_error;

/// Maximum size of a report, with the other lines before it. One of a week has about 40 MiB: 70 bytes for each second.
const REPORT_MIB_MAX: u64 = 64;
/// Objects that are open at the same time: more than processes that log into one stream.
const OPEN_MAX: usize = 1024;
/// Bytes of a prefix that a report does not contain by chance.
const TAG_MIN: usize = 8;
/// How this program writes the beginning of a report.
const BEGIN: &[u8] = b"{\"schema\"";
/// How the schema of a report begins.
const SCHEMA: &[u8] = b"\"ecoloop.load/";

/// The reports of a stream.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each with the number of the line on which it begins.
    pub(super) reports: Vec<(u64, Report)>,
    /// Number of lines that are neither empty nor of a report.
    pub(super) other_lines: u64,
}

/// Why the reports of a stream cannot be used.
#[derive(Debug)]
enum Failure {
    /// The stream cannot be read.
    Read(String),
    /// A report in it is not valid.
    Report(String),
}

/// Reads every report of a file, of which `-` is standard input, in order to `use_them`. It is an error if there is none.
pub(super) fn read_reports(path: &Path, use_them: &str) -> Result<Found, String> {
    let found = if path == Path::new("-") {
        find_reports(BufReader::new(Input))
    } else {
        let file = File::open(path).map_err(|error| Failure::Read(error.to_string()));
        file.and_then(|file| find_reports(BufReader::new(file)))
    };
    let found = found.and_then(|found| match &found.reports[..] {
        [] => Err(Failure::Report("it has no report".to_owned())),
        _ => Ok(found),
    });
    let name = path.display();
    found.map_err(|failure| match failure {
        Failure::Read(reason) => format!("cannot read {name}: {reason}"),
        Failure::Report(reason) => format!("cannot {use_them} {name}: {reason}"),
    })
}

/// Prints how many lines of a file were skipped, if there are any.
pub(super) fn print_other_lines(name: &str, found: &Found) {
    if found.other_lines > 0 {
        print_error(&format!("{name}: {} of no report", plural(found.other_lines, "line is", "lines are")));
    }
}

/// Reads a stream to its end, and returns the reports in it.
fn find_reports(mut input: impl BufRead) -> Result<Found, Failure> {
    let mut finder = Finder::default();
    let mut line = Vec::new();
    let mut left = REPORT_MIB_MAX << 20;
    loop {
        line.clear();
        let length = input
            .by_ref()
            .take(left + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::Read(error.to_string()))? as u64;
        if length == 0 {
            return finder.finish().map_err(Failure::Report);
        }
        if length > left {
            return Err(Failure::Read(format!("it is larger than {REPORT_MIB_MAX} MiB")));
        }
        let found = finder.found.reports.len();
        finder.read_line(&line).map_err(Failure::Report)?;
        left = if finder.found.reports.len() > found { REPORT_MIB_MAX << 20 } else { left - length };
    }
}

#[derive(Debug, Default)]
struct Finder {
    found: Found,
    /// Objects that have begun and not ended, each with another prefix.
    open: Vec<Object>,
    line: u64,
}

/// A JSON object of a stream, up to the last line read.
#[derive(Debug)]
struct Object {
    /// What precedes it on each of its lines.
    prefix: Vec<u8>,
    text: Vec<u8>,
    nesting: Nesting,
    /// The first line, and the number of lines: one that another object shares is not counted again.
    line: u64,
    lines: u64,
}

impl Finder {
    fn read_line(&mut self, line: &[u8]) -> Result<(), String> {
        self.line += 1;
        // The longest prefix is the most certain one: that of an object without a prefix fits every line.
        let fitting = (0..self.open.len()).filter(|&at| line.starts_with(&self.open[at].prefix));
        let Some(at) = fitting.max_by_key(|&at| self.open[at].prefix.len()) else { return self.read_objects(line, 0) };
        let mut object = self.open.swap_remove(at);
        let start = object.prefix.len();
        if is_beginning(&line[start..]) {
            self.drop_broken(&object)?;
            return self.read_objects(line, 0);
        }
        object.lines += 1;
        match self.extend(object, &line[start..])? {
            Some(length) => self.read_objects(line, start + length),
            None => Ok(()),
        }
    }

    /// Reads the objects that begin in a line, from `start` on.
    fn read_objects(&mut self, line: &[u8], start: usize) -> Result<(), String> {
        let mut end = start;
        let mut may_have_report = true;
        loop {
            let rest = &line[end..];
            let report = if may_have_report { find_report(rest) } else { None };
            may_have_report = report.is_some();
            let Some(begin) = report.or_else(|| find_object(rest)).map(|begin| end + begin) else { break };
            let prefix = if end == 0 { line[..begin].to_vec() } else { Vec::new() };
            let object = Object {
                prefix,
                text: Vec::new(),
                nesting: Nesting::default(),
                line: self.line,
                lines: u64::from(end == 0),
            };
            let Some(length) = self.extend(object, &line[begin..])? else { return Ok(()) };
            end = begin + length;
        }
        // What follows an object on its line does not make it another line.
        self.found.other_lines += u64::from(end == 0 && !line.trim_ascii().is_empty());
        Ok(())
    }

    /// Adds the next text to an object, and returns how many bytes of it there are to the object's end.
    fn extend(&mut self, mut object: Object, text: &[u8]) -> Result<Option<usize>, String> {
        let Some(length) = object.nesting.find_end(text) else {
            object.text.extend_from_slice(text);
            // A string does not continue on another line.
            if object.nesting.is_in_string {
                self.drop_broken(&object)?;
            } else {
                self.make_room()?;
                self.open.push(object);
            }
            return Ok(None);
        };
        object.text.extend_from_slice(&text[..length]);
        if !object.is_report() {
            self.found.other_lines += object.lines;
        } else if object.is_mixed() || serde_json::from_slice::<IgnoredAny>(&object.text).is_err() {
            self.drop_broken(&object)?;
        } else {
            let text = str::from_utf8(&object.text).map_err(|_| at(object.line, "it is not UTF-8"))?;
            let report = Report::from_json(text).map_err(|error| at(object.line, &error.to_string()))?;
            self.found.reports.push((object.line, report));
        }
        Ok(Some(length))
    }

    /// Drops the object that began first, if as many are open as there may be.
    fn make_room(&mut self) -> Result<(), String> {
        if self.open.len() < OPEN_MAX {
            return Ok(());
        }
        let oldest = (0..self.open.len()).min_by_key(|&at| self.open[at].line);
        oldest.map_or(Ok(()), |at| {
            let object = self.open.swap_remove(at);
            self.drop_broken(&object)
        })
    }

    /// Drops an object that has not ended, or not as it began: an error if it is a report.
    fn drop_broken(&mut self, object: &Object) -> Result<(), String> {
        if object.is_report() {
            let reason = "a report begins here and does not end: mixed output of several processes, or output that was cut; have each \
                          process write a file of its own, such as --json 'report-{rank}.json'";
            return Err(at(object.line, reason));
        }
        self.found.other_lines += object.lines;
        Ok(())
    }

    fn finish(mut self) -> Result<Found, String> {
        for object in std::mem::take(&mut self.open) {
            self.drop_broken(&object)?;
        }
        Ok(self.found)
    }
}

impl Object {
    /// Returns whether the prefix is in the middle too: Open MPI puts it there when it joins parts, and the rest may still be JSON.
    fn is_mixed(&self) -> bool {
        let prefix = &self.prefix[..];
        prefix.len() >= TAG_MIN && self.text.windows(prefix.len()).any(|bytes| bytes == prefix)
    }

    fn is_report(&self) -> bool {
        self.text.starts_with(BEGIN) || self.text.windows(SCHEMA.len()).any(|bytes| bytes == SCHEMA)
    }
}

/// Names the line of an error.
fn at(line: u64, reason: &str) -> String {
    format!("line {line}: {reason}")
}

/// Returns whether an object begins in a line after its prefix that cannot be in the middle of another one.
fn is_beginning(line: &[u8]) -> bool {
    find_report(line).is_some() || line.trim_ascii_end() == b"{"
}

/// Returns where in a text a report of this program begins. It has no such bytes further on.
fn find_report(text: &[u8]) -> Option<usize> {
    text.windows(BEGIN.len()).position(|bytes| bytes == BEGIN)
}

/// Returns where in a text any object begins.
fn find_object(text: &[u8]) -> Option<usize> {
    let is_begun = |at: usize| matches!(text[at + 1..].trim_ascii_start().first(), None | Some(b'"'));
    (0..text.len()).find(|&at| text[at] == b'{' && is_begun(at))
}

/// How deep in the brackets of JSON a text is.
#[derive(Debug, Default)]
struct Nesting {
    depth: u32,
    is_in_string: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Reads `text`, which continues the one before, and returns how many bytes of it there are to the end of the object.
    fn find_end(&mut self, text: &[u8]) -> Option<usize> {
        for (at, byte) in text.iter().enumerate() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.is_in_string => self.is_escaped = true,
                b'"' => self.is_in_string = !self.is_in_string,
                _ if self.is_in_string => {}
                b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}
