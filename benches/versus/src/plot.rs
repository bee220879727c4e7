//! The pictures: CPU beside the floor's, memory of idle connections, what a burst does.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::peers::{CONTROL, FLOOR, Kind, OURS};
use crate::report::markdown::with_cpu;
use crate::report::{Document, Measured};
use crate::statistics::Estimate;
use crate::workloads::Figure;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const WIDTH: i32 = 920;
const MARGIN: i32 = 24;
const TITLE_HEIGHT: i32 = 72;
const PRINT_HEIGHT: i32 = 32;
const ROW_HEIGHT: i32 = 19;
/// Of a panel, for its name and for the numbers of its axis.
const HEAD_HEIGHT: i32 = 26;
const FOOT_HEIGHT: i32 = 34;
const NAMES_WIDTH: i32 = 150;
const PANEL_GAP: i32 = 32;
/// Panels beside each other.
const COLUMNS: usize = 4;
/// Ratios beyond these are written at the edge: who costs ten times as much, or a tenth, would leave no room for the others.
const RATIO_MIN: f64 = 0.5;
const RATIO_MAX: f64 = 4.0;
const RATIO_MARKS: [f64; 6] = [0.5, 0.7, 1.0, 1.5, 2.0, 3.0];

/// A letter is 1.24 times smaller than plotters says.
const TITLE_SIZE: f64 = 23.0;
const TEXT_SIZE: f64 = 15.0;
const PRINT_SIZE: f64 = 13.5;

const INK: RGBColor = RGBColor(38, 43, 51);
const PALE: RGBColor = RGBColor(106, 114, 125);
const GRID: RGBColor = RGBColor(221, 225, 230);
const BLUE: RGBColor = RGBColor(28, 98, 190);
const GREY: RGBColor = RGBColor(150, 157, 167);
const GREEN: RGBColor = RGBColor(35, 134, 84);
const ORANGE: RGBColor = RGBColor(196, 98, 16);
const RED: RGBColor = RGBColor(203, 45, 45);

/// A logarithmic axis over pixels.
struct Axis {
    low: f64,
    high: f64,
    left: i32,
    right: i32,
}

impl Axis {
    /// Wide enough for all values above zero.
    fn new(values: impl Iterator<Item = f64>, left: i32, right: i32) -> Self {
        let values = values.filter(|value| *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), at| (low.min(at), high.max(at)));
        let (low, high) = if low < high { (low, high) } else { (1.0, 2.0) };
        Self { low, high, left, right }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a pixel of the picture")]
    fn at(&self, value: f64) -> i32 {
        let share = (value.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }

    /// As many as there is room for.
    fn marks(&self) -> Vec<f64> {
        let inside: Vec<_> = steps().filter(|step| (self.low..=self.high).contains(step)).collect();
        let decades: Vec<_> = inside.iter().copied().filter(|step| step.log10().fract().abs() < 1e-9).collect();
        if inside.len() > 5 && decades.len() > 1 { decades } else { inside }
    }
}

/// 1, 2 and 5 of each decade.
fn steps() -> impl Iterator<Item = f64> {
    (-3..10).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)))
}

/// A row of a picture.
struct Row<'a> {
    name: &'a str,
    color: RGBColor,
}

/// By name and as SVG; only those whose workloads were measured.
pub(crate) fn pictures(document: &Document) -> Result<Vec<(&'static str, String)>, String> {
    let mut pictures = Vec::new();
    let cpu: Vec<_> = with_cpu(document).collect();
    if !cpu.is_empty() {
        pictures.push(("cpu", draw_cpu(document, &cpu)));
    }
    let idle: Vec<_> = named(document, "idle-").collect();
    if !idle.is_empty() {
        pictures.push(("memory", draw_memory(document, &idle)));
    }
    if let Some(burst) = named(document, "burst").next() {
        pictures.push(("burst", draw_burst(document, burst)));
    }
    let drawn = pictures.into_iter().map(|(name, drawn)| Ok((name, drawn?)));
    drawn.collect::<Result<_, Box<dyn Error>>>().map_err(|error| format!("cannot draw: {error}"))
}

fn named<'a>(document: &'a Document, start: &'a str) -> impl Iterator<Item = &'a Measured> {
    document.workloads.iter().filter(move |workload| workload.name.starts_with(start))
}

/// A title, what is drawn below it, and the small print.
fn picture(
    document: &Document,
    title: &str,
    line: &str,
    height: i32,
    draw: impl FnOnce(&Area) -> Drawn,
) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let size = (WIDTH.cast_unsigned(), (TITLE_HEIGHT + height + PRINT_HEIGHT).cast_unsigned());
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let bold = FontDesc::new(FontFamily::SansSerif, TITLE_SIZE, FontStyle::Bold).color(&INK);
        head.draw(&Text::new(title.to_owned(), (MARGIN, 16), bold))?;
        head.draw(&Text::new(line.to_owned(), (MARGIN, 42), style(TEXT_SIZE, PALE)))?;
        let (middle, bottom) = rest.split_vertically(height);
        draw(&middle)?;
        let rounds = document.workloads.iter().map(|workload| workload.rounds).max().unwrap_or(0);
        let print = format!(
            "{}, {} cores · Linux {} · loopback, server and load on a core each · up to {rounds} rounds · {}",
            document.machine.cpu, document.machine.cores, document.machine.kernel, document.start
        );
        bottom.draw(&Text::new(print, (MARGIN, 8), style(PRINT_SIZE, PALE)))?;
        root.present()?;
    }
    Ok(svg)
}

fn style(size: f64, color: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::SansSerif, size, FontStyle::Normal).color(&color)
}

fn text(area: &Area, words: &str, at: (i32, i32), side: HPos, color: RGBColor) -> Drawn {
    let style = style(TEXT_SIZE, color).pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}

fn line(area: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> Drawn {
    Ok(area.draw(&PathElement::new([from, to], color.stroke_width(width)))?)
}

/// The peers in the order of the list; the floor's copy is drawn apart.
fn rows(document: &Document) -> Vec<Row<'_>> {
    let peers = document.peers.iter().filter(|peer| peer.name != CONTROL);
    let color = |name: &str, kind| match (name, kind) {
        (OURS, _) => BLUE,
        (FLOOR, _) => GREY,
        (_, Kind::Completion) => ORANGE,
        _ => INK,
    };
    peers.map(|peer| Row { name: &peer.name, color: color(&peer.name, peer.kind) }).collect()
}

fn row_at(row: usize) -> i32 {
    HEAD_HEIGHT + i32::try_from(row).unwrap_or(0) * ROW_HEIGHT + ROW_HEIGHT / 2
}

fn panel_height(rows: &[Row]) -> i32 {
    row_at(rows.len()) - ROW_HEIGHT / 2 + FOOT_HEIGHT
}

fn draw_names(area: &Area, rows: &[Row]) -> Drawn {
    for (at, row) in rows.iter().enumerate() {
        text(area, row.name, (MARGIN + NAMES_WIDTH - 12, row_at(at)), HPos::Right, row.color)?;
    }
    Ok(())
}

fn draw_axis(area: &Area, axis: &Axis, marks: &[f64], rows: &[Row], label: impl Fn(f64) -> String) -> Drawn {
    let bottom = panel_height(rows) - FOOT_HEIGHT;
    for &mark in marks.iter().filter(|mark| (axis.low..=axis.high).contains(*mark)) {
        let x = axis.at(mark);
        line(area, (x, HEAD_HEIGHT), (x, bottom), GRID, 1)?;
        text(area, &label(mark), (x, bottom + 12), HPos::Center, PALE)?;
    }
    Ok(())
}

/// A median as a dot, its interval as a line.
fn draw_estimate(area: &Area, axis: &Axis, y: i32, estimate: Estimate, color: RGBColor) -> Drawn {
    if let Some([low, high]) = estimate.interval {
        line(area, (axis.at(low), y), (axis.at(high), y), color, 2)?;
    }
    Ok(area.draw(&Circle::new((axis.at(estimate.median), y), 4, color.filled()))?)
}

fn draw_cpu(document: &Document, workloads: &[(&Measured, &Figure)]) -> Result<String, Box<dyn Error>> {
    let rows = rows(document);
    let estimate = |workload: &Measured, figure: &Figure, name: &str| {
        let contestant = workload.contestants.iter().find(|contestant| contestant.name == name)?;
        workload.to_baseline(figure, contestant)
    };
    let all = || workloads.iter().flat_map(|(workload, figure)| rows.iter().map(|row| (*workload, *figure, row.name)));
    let medians = || all().filter_map(|(workload, figure, name)| Some(estimate(workload, figure, name)?.median));
    let bands = i32::try_from(workloads.len().div_ceil(COLUMNS))?;
    let height = panel_height(&rows);
    let columns = i32::try_from(COLUMNS)?;
    let width = (WIDTH - 2 * MARGIN - NAMES_WIDTH - (columns - 1) * PANEL_GAP) / columns;
    let title = "CPU of the server, beside the epoll floor's in the same round";
    let below = "floor = 1, logarithmic · median, 95 % interval · band: the floor's copy, red if over 2 % wide · 50x64: connections x bytes";
    picture(document, title, below, bands * height, |area| {
        for (band, panels) in area.split_evenly((usize::try_from(bands)?, 1)).iter().zip(workloads.chunks(COLUMNS)) {
            draw_names(band, &rows)?;
            for (column, &(workload, figure)) in (0..).zip(panels) {
                let left = MARGIN + NAMES_WIDTH + column * (width + PANEL_GAP);
                let axis = Axis::new(
                    medians()
                        .filter(|ratio| (RATIO_MIN..=RATIO_MAX).contains(ratio))
                        .flat_map(|ratio| [ratio * 0.95, ratio * 1.05])
                        .chain([0.9, 2.1]),
                    left,
                    left + width,
                );
                text(band, &workload.name, (left + width / 2, HEAD_HEIGHT / 2), HPos::Center, INK)?;
                let control = workload.control_interval(figure);
                if let Some([low, high]) = control {
                    let color = if workload.is_resolved(figure) { GREEN } else { RED };
                    let corners = [(axis.at(low), HEAD_HEIGHT), (axis.at(high) + 1, height - FOOT_HEIGHT)];
                    band.draw(&Rectangle::new(corners, color.mix(0.25).filled()))?;
                }
                draw_axis(band, &axis, &RATIO_MARKS, &rows, |mark| mark.to_string())?;
                for (at, row) in rows.iter().enumerate() {
                    match estimate(workload, figure, row.name) {
                        Some(Estimate { median, .. }) if median > RATIO_MAX => {
                            let words = format!("{median:.1} →");
                            text(band, &words, (left + width + 4, row_at(at)), HPos::Right, row.color)?;
                        }
                        Some(Estimate { median, .. }) if median < RATIO_MIN => {
                            text(band, &format!("← {median:.2}"), (left - 4, row_at(at)), HPos::Left, row.color)?;
                        }
                        Some(estimate) => draw_estimate(band, &axis, row_at(at), estimate, row.color)?,
                        None => {}
                    }
                }
            }
        }
        Ok(())
    })
}

/// The value of a peer in a workload.
fn value(workload: &Measured, figure: usize, name: &str) -> Option<Estimate> {
    let figure = workload.figures.get(figure)?;
    let contestant = workload.contestants.iter().find(|contestant| contestant.name == name)?;
    Estimate::of(&contestant.values(figure))
}

fn draw_memory(document: &Document, workloads: &[&Measured]) -> Result<String, Box<dyn Error>> {
    let rows = rows(document);
    let width = WIDTH - 2 * MARGIN - NAMES_WIDTH;
    let panel = width / i32::try_from(workloads.len())?;
    let height = panel_height(&rows);
    let title = "Memory of an idle connection in the server's process";
    let below = "resident bytes beyond those before the first connect, a connection · logarithmic, from 1 byte";
    let values = || workloads.iter().flat_map(|workload| rows.iter().filter_map(|row| value(workload, 0, row.name)));
    picture(document, title, below, height, |area| {
        draw_names(area, &rows)?;
        for (column, workload) in (0..).zip(workloads) {
            let left = MARGIN + NAMES_WIDTH + column * panel;
            // Room for the number behind the bar.
            let axis = Axis::new(values().map(|value| value.median).chain([1.0, 100.0]), left, left + panel - 80);
            text(area, &workload.title, (left, HEAD_HEIGHT / 2), HPos::Left, INK)?;
            draw_axis(area, &axis, &axis.marks(), &rows, bytes)?;
            for (at, row) in rows.iter().enumerate() {
                let Some(Estimate { median, .. }) = value(workload, 0, row.name) else { continue };
                let y = row_at(at);
                let end = axis.at(median).max(left + 1);
                area.draw(&Rectangle::new([(left, y - 6), (end, y + 6)], row.color.filled()))?;
                text(area, &bytes(median), (end + 6, y), HPos::Left, INK)?;
            }
        }
        Ok(())
    })
}

fn bytes(count: f64) -> String {
    let (number, unit) = match count {
        1e6.. => (count / 1e6, "MB"),
        1e3.. => (count / 1e3, "kB"),
        _ => (count.round(), "B"),
    };
    format!("{} {unit}", (number * 10.0).round() / 10.0)
}

fn draw_burst(document: &Document, workload: &Measured) -> Result<String, Box<dyn Error>> {
    const BURST: usize = 0;
    const QUIET: usize = 1;
    let rows = rows(document);
    let left = MARGIN + NAMES_WIDTH;
    let values = rows.iter().flat_map(|row| [BURST, QUIET].map(|figure| value(workload, figure, row.name)));
    let values: Vec<_> = values.flatten().map(|value| value.median).collect();
    let axis = Axis::new(values.iter().flat_map(|value| [value * 0.9, value * 1.1]), left, WIDTH - MARGIN - 20);
    let title = "What a burst of 2000 connects does to those already there";
    let below = "99th percentile of the latency, logarithmic · hollow: without the burst, filled: with it, and its 95 % interval";
    picture(document, title, below, panel_height(&rows), |area| {
        draw_names(area, &rows)?;
        draw_axis(area, &axis, &axis.marks(), &rows, time)?;
        for (at, row) in rows.iter().enumerate() {
            let y = row_at(at);
            if let Some(quiet) = value(workload, QUIET, row.name) {
                area.draw(&Circle::new((axis.at(quiet.median), y), 4, row.color.stroke_width(2)))?;
            }
            if let Some(burst) = value(workload, BURST, row.name) {
                draw_estimate(area, &axis, y, burst, row.color)?;
            }
        }
        Ok(())
    })
}

fn time(us: f64) -> String {
    match us {
        1e6.. => format!("{} s", us / 1e6),
        1e3.. => format!("{} ms", us / 1e3),
        _ => format!("{us} µs"),
    }
}
