//! The rows of the table, and how they are broken into lines.

use std::fmt::Write as _;

use super::super::format::{count, wrap};
use super::{LABEL_WIDTH, LINE_WIDTH};

/// Breaks a text into lines, between its phrases if they fit.
fn fold(text: &str) -> Vec<String> {
    let text = format!("{text} ");
    let mut pieces = Vec::new();
    for phrase in text.split_inclusive(", ").flat_map(|phrase| phrase.split_inclusive("; ")) {
        if phrase.chars().count() <= LINE_WIDTH {
            pieces.push(phrase.to_owned());
        } else {
            pieces.extend(phrase.split_inclusive(' ').map(str::to_owned));
        }
    }
    // Each piece ends with a space, which is trimmed at the end of a line.
    wrap(&pieces, "", LINE_WIDTH + 1)
}

/// A row of the table. One with an empty label belongs to the row before it.
pub(in crate::cli) enum Row {
    Blank,
    Text {
        label: String,
        text: String,
    },
    /// Cells of at most 7 characters.
    Cells {
        label: String,
        cells: Vec<String>,
    },
}

impl Row {
    pub(super) fn print(&self, out: &mut String) {
        let mut line = |text: &str| {
            out.push_str(text.trim_end());
            out.push('\n');
        };
        match self {
            Self::Blank => line(""),
            Self::Text { label, text } => {
                let mut label = &label[..];
                for part in fold(text) {
                    line(&format!("{label:<LABEL_WIDTH$}{part}"));
                    label = "";
                }
            }
            Self::Cells { label, cells } => {
                let mut row = format!("{label:<LABEL_WIDTH$}");
                for cell in cells {
                    // A space keeps apart a cell that is longer.
                    let _ = write!(row, " {cell:>7}");
                }
                line(&row);
            }
        }
    }
}

pub(super) struct Table(pub(super) Vec<Row>);

impl Table {
    /// Adds a row, which is printed on as many lines as its text needs.
    pub(super) fn row(&mut self, label: &str, text: &str) {
        self.0.push(Row::Text { label: label.to_owned(), text: text.to_owned() });
    }

    /// Adds a row of columns.
    pub(super) fn cells(&mut self, label: &str, cells: impl Iterator<Item = String>) {
        self.0.push(Row::Cells { label: label.to_owned(), cells: cells.collect() });
    }

    /// Adds a row for each item, up to `max`.
    pub(super) fn list(&mut self, label: &str, items: &[String], max: usize) {
        if items.is_empty() {
            self.row(label, "none");
        }
        for (index, item) in items.iter().take(max).enumerate() {
            self.row(if index == 0 { label } else { "" }, item);
        }
        if items.len() > max {
            self.row("", &format!("and {} more (see --json)", count((items.len() - max) as u64)));
        }
    }
}
