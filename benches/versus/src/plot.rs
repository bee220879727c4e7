//! The pictures: CPU time relative to the floor, memory of idle connections, latency during a burst.

use std::error::Error;

use ecoloop::load::statistics::Estimate;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::peers::{CONTROL, ECOLOOP, FLOOR, IoModel};
use crate::report::markdown::with_cpu;
use crate::report::{Document, WorkloadResult};
use crate::workloads::Metric;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawResult = Result<(), Box<dyn Error>>;

const WIDTH: i32 = 920;
const MARGIN: i32 = 24;
const TITLE_HEIGHT: i32 = 72;
const CAPTION_HEIGHT: i32 = 32;
const ROW_HEIGHT: i32 = 19;
/// Height above the rows of a panel, for its name, and below them, for the labels of its axis.
const HEAD_HEIGHT: i32 = 26;
const FOOT_HEIGHT: i32 = 34;
const NAMES_WIDTH: i32 = 150;
const PANEL_GAP: i32 = 32;
/// Panels per row.
const COLUMNS: usize = 4;
/// Range of the axis. A ratio beyond it is written as a number at the edge, so that it does not compress the others.
const RATIO_MIN: f64 = 0.5;
const RATIO_MAX: f64 = 4.0;
const RATIO_TICKS: [f64; 6] = [0.5, 0.7, 1.0, 1.5, 2.0, 3.0];

/// Font sizes; plotters draws each 1.24 times smaller.
const TITLE_SIZE: f64 = 23.0;
const TEXT_SIZE: f64 = 15.0;
const CAPTION_SIZE: f64 = 13.5;

const INK: RGBColor = RGBColor(38, 43, 51);
const PALE: RGBColor = RGBColor(106, 114, 125);
const GRID: RGBColor = RGBColor(221, 225, 230);
const BLUE: RGBColor = RGBColor(28, 98, 190);
const GRAY: RGBColor = RGBColor(150, 157, 167);
const GREEN: RGBColor = RGBColor(35, 134, 84);
const ORANGE: RGBColor = RGBColor(196, 98, 16);
const RED: RGBColor = RGBColor(203, 45, 45);

/// A logarithmic axis that maps values to x coordinates.
struct Axis {
    low: f64,
    high: f64,
    left: i32,
    right: i32,
}

impl Axis {
    /// Returns an axis from the least value above zero to the greatest.
    fn new(values: impl Iterator<Item = f64>, left: i32, right: i32) -> Self {
        let values = values.filter(|value| *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low < high { (low, high) } else { (1.0, 2.0) };
        Self { low, high, left, right }
    }

    #[expect(clippy::cast_possible_truncation, reason = "a pixel of the picture")]
    fn x(&self, value: f64) -> i32 {
        let share = (value.clamp(self.low, self.high) / self.low).ln() / (self.high / self.low).ln();
        self.left + (share * f64::from(self.right - self.left)).round() as i32
    }

    /// Returns 1, 2 and 5 of each decade, or only the decades if those would be more than five ticks.
    fn ticks(&self) -> Vec<f64> {
        let all = (-3..10).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        let ticks: Vec<_> = all.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        let decades: Vec<_> = ticks.iter().copied().filter(|tick| tick.log10().fract().abs() < 1e-9).collect();
        if ticks.len() > 5 && decades.len() > 1 { decades } else { ticks }
    }
}

/// A row of a panel: one server.
struct Row<'a> {
    name: &'a str,
    color: RGBColor,
}

/// Returns the name and the SVG text of each picture whose workloads were measured.
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

fn named<'a>(document: &'a Document, start: &'a str) -> impl Iterator<Item = &'a WorkloadResult> {
    document.workloads.iter().filter(move |workload| workload.name.starts_with(start))
}

/// Draws a title, a subtitle, the panels and a caption.
fn picture(
    document: &Document,
    title: &str,
    subtitle: &str,
    height: i32,
    draw: impl FnOnce(&Area) -> DrawResult,
) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let size = (WIDTH.cast_unsigned(), (TITLE_HEIGHT + height + CAPTION_HEIGHT).cast_unsigned());
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, rest) = root.split_vertically(TITLE_HEIGHT);
        let bold = FontDesc::new(FontFamily::SansSerif, TITLE_SIZE, FontStyle::Bold).color(&INK);
        head.draw(&Text::new(title.to_owned(), (MARGIN, 16), bold))?;
        head.draw(&Text::new(subtitle.to_owned(), (MARGIN, 42), style(TEXT_SIZE, PALE)))?;
        let (middle, bottom) = rest.split_vertically(height);
        draw(&middle)?;
        let rounds = document.workloads.iter().map(|workload| workload.rounds).max().unwrap_or(0);
        let caption = format!(
            "{}, {} cores · Linux {} · loopback, server and load on one core each · up to {rounds} rounds · {}",
            document.machine.cpu, document.machine.cores, document.machine.kernel, document.start
        );
        bottom.draw(&Text::new(caption, (MARGIN, 8), style(CAPTION_SIZE, PALE)))?;
        root.present()?;
    }
    Ok(svg)
}

fn style(size: f64, color: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::SansSerif, size, FontStyle::Normal).color(&color)
}

fn text(area: &Area, words: &str, at: (i32, i32), side: HPos, color: RGBColor) -> DrawResult {
    let style = style(TEXT_SIZE, color).pos(Pos::new(side, VPos::Center));
    Ok(area.draw(&Text::new(words.to_owned(), at, style))?)
}

fn line(area: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor, width: u32) -> DrawResult {
    Ok(area.draw(&PathElement::new([from, to], color.stroke_width(width)))?)
}

/// Returns a row per peer, in the order of the list. The A/A control has none: it is drawn as a band.
fn rows(document: &Document) -> Vec<Row<'_>> {
    let peers = document.peers.iter().filter(|peer| peer.name != CONTROL);
    let color = |name: &str, kind| match (name, kind) {
        (ECOLOOP, _) => BLUE,
        (FLOOR, _) => GRAY,
        (_, IoModel::Completion) => ORANGE,
        _ => INK,
    };
    peers.map(|peer| Row { name: &peer.name, color: color(&peer.name, peer.kind) }).collect()
}

fn row_y(row: usize) -> i32 {
    HEAD_HEIGHT + i32::try_from(row).unwrap_or(0) * ROW_HEIGHT + ROW_HEIGHT / 2
}

fn panel_height(rows: &[Row]) -> i32 {
    row_y(rows.len()) - ROW_HEIGHT / 2 + FOOT_HEIGHT
}

fn draw_names(area: &Area, rows: &[Row]) -> DrawResult {
    for (at, row) in rows.iter().enumerate() {
        text(area, row.name, (MARGIN + NAMES_WIDTH - 12, row_y(at)), HPos::Right, row.color)?;
    }
    Ok(())
}

fn draw_axis(area: &Area, axis: &Axis, ticks: &[f64], rows: &[Row], label: impl Fn(f64) -> String) -> DrawResult {
    let bottom = panel_height(rows) - FOOT_HEIGHT;
    for &tick in ticks.iter().filter(|tick| (axis.low..=axis.high).contains(*tick)) {
        let x = axis.x(tick);
        line(area, (x, HEAD_HEIGHT), (x, bottom), GRID, 1)?;
        text(area, &label(tick), (x, bottom + 12), HPos::Center, PALE)?;
    }
    Ok(())
}

/// Draws the median as a dot and the interval as a line.
fn draw_estimate(area: &Area, axis: &Axis, y: i32, estimate: Estimate, color: RGBColor) -> DrawResult {
    if let Some([low, high]) = estimate.interval {
        line(area, (axis.x(low), y), (axis.x(high), y), color, 2)?;
    }
    Ok(area.draw(&Circle::new((axis.x(estimate.median), y), 4, color.filled()))?)
}

fn draw_cpu(document: &Document, workloads: &[(&WorkloadResult, &Metric)]) -> Result<String, Box<dyn Error>> {
    let rows = rows(document);
    let estimate = |workload: &WorkloadResult, metric: &Metric, name: &str| {
        let candidate = workload.candidates.iter().find(|candidate| candidate.name == name)?;
        workload.ratio_to_baseline(metric, candidate)
    };
    let all = || workloads.iter().flat_map(|(workload, metric)| rows.iter().map(|row| (*workload, *metric, row.name)));
    let medians = || all().filter_map(|(workload, metric, name)| Some(estimate(workload, metric, name)?.median));
    let bands = i32::try_from(workloads.len().div_ceil(COLUMNS))?;
    let height = panel_height(&rows);
    let columns = i32::try_from(COLUMNS)?;
    let width = (WIDTH - 2 * MARGIN - NAMES_WIDTH - (columns - 1) * PANEL_GAP) / columns;
    let title = "Server CPU time, relative to the epoll floor in the same round";
    let subtitle = "floor = 1, logarithmic · median and 95% interval · band: A/A control, red if wider than 2% · 50x64: connections x bytes";
    picture(document, title, subtitle, bands * height, |area| {
        for (band, panels) in area.split_evenly((usize::try_from(bands)?, 1)).iter().zip(workloads.chunks(COLUMNS)) {
            draw_names(band, &rows)?;
            for (column, &(workload, metric)) in (0..).zip(panels) {
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
                let control = workload.control_interval(metric);
                if let Some([low, high]) = control {
                    let color = if workload.is_resolved(metric) { GREEN } else { RED };
                    let corners = [(axis.x(low), HEAD_HEIGHT), (axis.x(high) + 1, height - FOOT_HEIGHT)];
                    band.draw(&Rectangle::new(corners, color.mix(0.25).filled()))?;
                }
                draw_axis(band, &axis, &RATIO_TICKS, &rows, |tick| tick.to_string())?;
                for (at, row) in rows.iter().enumerate() {
                    match estimate(workload, metric, row.name) {
                        Some(Estimate { median, .. }) if median > RATIO_MAX => {
                            let words = format!("{median:.1} →");
                            text(band, &words, (left + width + 4, row_y(at)), HPos::Right, row.color)?;
                        }
                        Some(Estimate { median, .. }) if median < RATIO_MIN => {
                            text(band, &format!("← {median:.2}"), (left - 4, row_y(at)), HPos::Left, row.color)?;
                        }
                        Some(estimate) => draw_estimate(band, &axis, row_y(at), estimate, row.color)?,
                        None => {}
                    }
                }
            }
        }
        Ok(())
    })
}

/// Returns the estimate of a peer's metric in a workload.
fn value(workload: &WorkloadResult, metric: usize, name: &str) -> Option<Estimate> {
    let metric = workload.metrics.get(metric)?;
    let candidate = workload.candidates.iter().find(|candidate| candidate.name == name)?;
    Estimate::of(&candidate.values(metric))
}

fn draw_memory(document: &Document, workloads: &[&WorkloadResult]) -> Result<String, Box<dyn Error>> {
    let rows = rows(document);
    let width = WIDTH - 2 * MARGIN - NAMES_WIDTH;
    let panel = width / i32::try_from(workloads.len())?;
    let height = panel_height(&rows);
    let title = "Server memory per idle connection";
    let subtitle =
        "growth of resident memory since before the first connect, per connection · logarithmic, from 1 byte";
    let values = || workloads.iter().flat_map(|workload| rows.iter().filter_map(|row| value(workload, 0, row.name)));
    picture(document, title, subtitle, height, |area| {
        draw_names(area, &rows)?;
        for (column, workload) in (0..).zip(workloads) {
            let left = MARGIN + NAMES_WIDTH + column * panel;
            // 80 pixels for the number after the bar.
            let axis = Axis::new(values().map(|value| value.median).chain([1.0, 100.0]), left, left + panel - 80);
            text(area, &workload.title, (left, HEAD_HEIGHT / 2), HPos::Left, INK)?;
            draw_axis(area, &axis, &axis.ticks(), &rows, bytes)?;
            for (at, row) in rows.iter().enumerate() {
                let Some(Estimate { median, .. }) = value(workload, 0, row.name) else { continue };
                let y = row_y(at);
                let end = axis.x(median).max(left + 1);
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

fn draw_burst(document: &Document, workload: &WorkloadResult) -> Result<String, Box<dyn Error>> {
    const BURST: usize = 0;
    const QUIET: usize = 1;
    let rows = rows(document);
    let left = MARGIN + NAMES_WIDTH;
    let values = rows.iter().flat_map(|row| [BURST, QUIET].map(|metric| value(workload, metric, row.name)));
    let values: Vec<_> = values.flatten().map(|value| value.median).collect();
    let axis = Axis::new(values.iter().flat_map(|value| [value * 0.9, value * 1.1]), left, WIDTH - MARGIN - 20);
    let title = "Latency of open connections during a burst of 2000 connects";
    let subtitle = "99th percentile, logarithmic · hollow: without the burst, filled: with it, with 95% interval";
    picture(document, title, subtitle, panel_height(&rows), |area| {
        draw_names(area, &rows)?;
        draw_axis(area, &axis, &axis.ticks(), &rows, time)?;
        for (at, row) in rows.iter().enumerate() {
            let y = row_y(at);
            if let Some(quiet) = value(workload, QUIET, row.name) {
                area.draw(&Circle::new((axis.x(quiet.median), y), 4, row.color.stroke_width(2)))?;
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
