//! The report as an SVG picture: latency by percentile, and the timeline; of a search, latency over rate.

mod search;
mod stages;

use std::error::Error;
use std::iter::once;
use std::ops::Range;

use ecoloop::load::report::{Loop, Sample, Verdict};
use ecoloop::load::{Histogram, Mode, Report};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use quick_xml::escape::escape;

use super::format::{count, number, plural, round_time, shorten, strip_control, time, wrap};
use super::table::{deferred, pace_of_last_messages, settings, stages_in_words, verdict};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// What a strip draws of a second.
type Quantity = fn(&Sample) -> Option<u64>;
type Drawn = Result<(), Box<dyn Error>>;

const WIDTH: i32 = 920;
const TITLE_HEIGHT: i32 = 64;
const LATENCY_HEIGHT: i32 = 376;
const STRIP_HEIGHT: i32 = 112;
/// Extra height of the bottom strip, for the labels and the name of its time axis.
const TIME_AXIS_HEIGHT: i32 = 44;
/// Height of the name of a strip, above it, and of the ticks below it.
const STRIP_NAME_HEIGHT: i32 = 28;
const TICKS_HEIGHT: i32 = 10;
const PRINT_LINE_HEIGHT: i32 = 17;
const PRINT_LINE_LETTERS: usize = 140;
const LEFT: i32 = 84;
const MARGIN: i32 = 24;
/// Width of a chart without its labels.
const PLOT_WIDTH: i32 = WIDTH - LEFT - MARGIN;
/// Space between an axis's name and the edge.
const AXIS_NAME_MARGIN: i32 = 12;
const LABELS_MAX: usize = 32;
/// Width of a letter of a label, at most.
const LABEL_LETTER_WIDTH: f64 = 8.0;
/// The middle of the legend, and the parts of an entry: its sample, the name, and the space around that.
const LEGEND_MIDDLE: i32 = 14;
const LEGEND_SAMPLE_WIDTH: i32 = 26;
const LEGEND_LETTER_WIDTH: i32 = 7;
const LEGEND_NAME_MARGIN: i32 = 8;
const LEGEND_GAP: i32 = 37;

/// Width of a bold letter, as a share of the size.
const LETTER_WIDTH: f64 = 0.57;
/// A longer remark would be too small to read; the table has all of it.
const REMARK_LETTERS_MAX: usize = 130;
const REMARK_HEIGHT: i32 = 22;

/// plotters draws letters 1.24 times smaller than these sizes.
const TITLE_SIZE: f64 = 23.0;
const TEXT_SIZE: f64 = 16.0;
const PRINT_SIZE: f64 = 13.5;

const INK: RGBColor = RGBColor(38, 43, 51);
const PALE: RGBColor = RGBColor(106, 114, 125);
const GRID: RGBColor = RGBColor(221, 225, 230);
const GRID_LIGHT: RGBColor = RGBColor(242, 244, 246);
const BLUE: RGBColor = RGBColor(28, 98, 190);
const GREY: RGBColor = RGBColor(150, 157, 167);
const GREEN: RGBColor = RGBColor(35, 134, 84);
const RED: RGBColor = RGBColor(203, 45, 45);
const ORANGE: RGBColor = RGBColor(176, 96, 0);

/// Steps of the curve in each halving of the distance to 100 %.
const TICKS: u32 = 20;

/// Draws a report as SVG on a white background.
pub(super) fn plot(report: &Report) -> Result<String, String> {
    draw(report).map_err(|error| format!("cannot draw the plot: {error}"))
}

fn draw(report: &Report) -> Result<String, Box<dyn Error>> {
    let print = small_print(report);
    let has_timeline = !report.timeline.is_empty() && report.search.is_none();
    let strips = if has_timeline { 4 * STRIP_HEIGHT + TIME_AXIS_HEIGHT } else { 0 };
    let print_height = print.iter().map(|_| PRINT_LINE_HEIGHT).sum::<i32>() + MARGIN + 4;
    let title_height = TITLE_HEIGHT + if remark(report).is_some() { REMARK_HEIGHT } else { 0 };
    let height = title_height + LATENCY_HEIGHT + strips + print_height;
    let mut svg = String::new();
    {
        let root =
            SVGBackend::with_string(&mut svg, (WIDTH.cast_unsigned(), height.cast_unsigned())).into_drawing_area();
        root.fill(&WHITE)?;
        let (title, rest) = root.split_vertically(title_height);
        draw_title(&title, report)?;
        let (latency, rest) = rest.split_vertically(LATENCY_HEIGHT);
        match &report.search {
            Some(search) => search::draw_search(&latency, search)?,
            None => draw_latency(&latency, report)?,
        }
        let (time, bottom) = rest.split_vertically(strips);
        if has_timeline {
            draw_time(&time, report)?;
        }
        for (line, text) in (0..).zip(&print) {
            let at = (MARGIN, line * PRINT_LINE_HEIGHT + 16);
            bottom.draw(&Text::new(text.clone(), at, style(PRINT_SIZE, PALE)))?;
        }
        root.present()?;
    }
    Ok(describe(&svg, report))
}

/// Adds a title and a description to a picture, for those who cannot see it.
fn describe(svg: &str, report: &Report) -> String {
    let latency = &report.latency_us;
    let figures = [("p50", latency.p50), ("p99", latency.p99), ("max", latency.max)];
    let figures = figures.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", time(value?))));
    let description: Vec<_> = once(verdict(report)).chain(figures).collect();
    let (title, description) = (escape(title(report)), escape(description.join(", ")));
    let (head, drawing) = svg.split_once('>').unwrap_or_default();
    format!("{head} role=\"img\">\n<title>{title}</title>\n<desc>{description}</desc>{drawing}")
}

/// Returns what a report is of: `ecoloop load: echo, 50 connections, 2,000 messages/s`.
pub(super) fn title(report: &Report) -> String {
    let pace = match report.config.rate.filter(|_| report.r#loop == Loop::Open) {
        Some(_) if !report.stages.is_empty() => stages_in_words(report),
        Some(rate) if report.mode == Mode::Churn => format!("{}/s", plural(number(rate), "connect", "connects")),
        Some(rate) => format!("{}/s", plural(number(rate), "message", "messages")),
        None if report.mode == Mode::Hold => pace_of_last_messages(report),
        None => "closed loop".to_owned(),
    };
    let connections = plural(count(report.connections.requested), "connection", "connections");
    let pace = match &report.search {
        Some(search) => {
            search.found_rate.map_or("no rate found".to_owned(), |rate| format!("{}/s found", number(rate)))
        }
        None => pace,
    };
    format!("ecoloop load: {}, {connections}, {pace}", report.mode.name())
}

fn draw_title(area: &Area<'_>, report: &Report) -> Drawn {
    let title = title(report);
    let size = fitting_size(TITLE_SIZE, &title);
    let bold = FontDesc::new(FontFamily::SansSerif, size, FontStyle::Bold).color(&INK);
    area.draw(&Text::new(title, (MARGIN, 16), bold))?;
    let latency = &report.latency_us;
    let percentiles = latency.percentiles().into_iter().chain([(1.0, "max", latency.max)]);
    let percentiles = percentiles.filter_map(|(_, name, value)| Some(format!("{name} {}", time(value?))));
    let line = percentiles.collect::<Vec<_>>().join("  ·  ");
    area.draw(&Text::new(line, (MARGIN, 42), style(TEXT_SIZE, PALE)))?;
    if let Some(remark) = remark(report) {
        let color = if report.verdict == Verdict::Fail { RED } else { ORANGE };
        let size = fitting_size(TEXT_SIZE, &remark);
        area.draw(&Text::new(remark, (MARGIN, 66), style(size, color)))?;
    }
    Ok(())
}

/// Returns what a reader must know of a run that did not simply pass.
fn remark(report: &Report) -> Option<String> {
    let verdict = (report.verdict != Verdict::Pass).then(|| verdict(report));
    let remarks: Vec<_> = verdict.into_iter().chain(deferred(report)).collect();
    (!remarks.is_empty()).then(|| shorten(&remarks.join("; "), REMARK_LETTERS_MAX))
}

/// Returns the size of letters up to `size` in which a text fits the width.
fn fitting_size(size: f64, text: &str) -> f64 {
    let letters = u32::try_from(text.chars().count()).unwrap_or(u32::MAX).max(1);
    size.min(f64::from(WIDTH - 2 * MARGIN) / (LETTER_WIDTH * f64::from(letters)))
}

/// An axis with its own labels and lines. The logarithmic axes of plotters omit labels when space is short.
struct Axis {
    range: Range<f64>,
    labels: Vec<f64>,
    lines: Vec<f64>,
}

impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }

    #[expect(clippy::cast_possible_truncation, reason = "a pixel of the picture")]
    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        start + (share * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { self.lines.clone() } else { self.labels.clone() }
    }
}

/// A curve of the upper chart.
struct Curve {
    name: &'static str,
    color: RGBColor,
    width: u32,
    /// -log10(1 - quantile), and log10 of the microseconds.
    points: Vec<(f64, f64)>,
}

impl Curve {
    fn of(histogram: &Histogram, name: &'static str, color: RGBColor, width: u32) -> Option<Self> {
        // The largest of n values is drawn at 1 - 1/n, because the axis has no end at 100 %.
        let last = logarithm(histogram.count());
        let point = |step: &ecoloop::load::Percentile| {
            (-(1.0 - step.quantile).max(f64::MIN_POSITIVE).log10(), logarithm(step.value_us))
        };
        let points: Vec<_> = histogram.percentiles(TICKS).iter().map(point).map(|(x, y)| (x.min(last), y)).collect();
        (!points.is_empty()).then_some(Self { name, color, width, points })
    }
}

#[expect(clippy::cast_precision_loss, reason = "the picture has a thousand points")]
fn logarithm(value: u64) -> f64 {
    (value.max(1) as f64).log10()
}

fn draw_latency(area: &Area<'_>, report: &Report) -> Drawn {
    let latency = Histogram::from_summary(&report.latency_us)?;
    let lateness = Histogram::from_summary(&report.lateness_us)?;
    let latency_name = match report.r#loop {
        _ if report.mode == Mode::Hold => "latency of the last messages, from the scheduled send time",
        Loop::Open => "latency, from the scheduled send time",
        Loop::Closed => "latency, in a closed loop",
    };
    let curves: Vec<_> =
        [Curve::of(&lateness, "lateness of the generator", GREY, 2), Curve::of(&latency, latency_name, BLUE, 3)]
            .into_iter()
            .flatten()
            .collect();
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let right = points().map(|point| point.0).fold(2.0, f64::max);
    let (low, high) = points().fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(point.1), high.max(point.1)));
    // Limits are 1, 2 or 5 times a power of ten, and at least a decade apart.
    let (low, high) = if curves.is_empty() { (1.0, 3.0) } else { (round_logarithm(low, -1), round_logarithm(high, 1)) };
    let high = high.max(low + 1.0);

    let (x, y) = (percentile_axis(right), latency_axis(low, high));
    let name = "percentile, on a logarithmic axis";
    let mut chart = latency_chart(area, MARGIN, x, y, name, |tenths| percentile(*tenths))?;
    for curve in &curves {
        let line = curve.color.stroke_width(curve.width);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), line))?;
        chart.draw_series(curve.points.last().map(|&end| Circle::new(end, curve.width + 1, curve.color.filled())))?;
    }
    draw_legend(area, &curves)?;
    if curves.is_empty() {
        draw_no_answer(area)?;
    }
    Ok(())
}

/// Says in the middle of the upper chart why it has no curve.
fn draw_no_answer(area: &Area<'_>) -> Drawn {
    let middle = style(TEXT_SIZE, PALE).pos(Pos::new(HPos::Center, VPos::Center));
    area.draw(&Text::new("no message was answered", (WIDTH / 2, LATENCY_HEIGHT / 2), middle))?;
    Ok(())
}

/// Draws the axes of a chart of latencies, with room for the legend, and returns the chart.
fn latency_chart<'area, 'text>(
    area: &'area Area<'text>,
    margin_right: i32,
    x: Axis,
    y: Axis,
    x_name: &str,
    x_label: impl Fn(&f64) -> String,
) -> Result<ChartContext<'area, SVGBackend<'text>, Cartesian2d<Axis, Axis>>, Box<dyn Error>> {
    let mut chart = ChartBuilder::on(area)
        .margin_right(margin_right)
        .margin_top(30)
        .margin_left(AXIS_NAME_MARGIN)
        .x_label_area_size(52)
        .y_label_area_size(LEFT - AXIS_NAME_MARGIN)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(GRID_LIGHT)
        .axis_style(GREY)
        .label_style(style(TEXT_SIZE, INK))
        .axis_desc_style(style(TEXT_SIZE, PALE))
        .x_label_formatter(&x_label)
        .y_label_formatter(&|logarithm| round_time(10_f64.powf(*logarithm).round()))
        .x_desc(x_name)
        .y_desc("latency")
        .draw()?;
    Ok(chart)
}

/// Draws the legend above the chart, where no curve can cross it, and returns where its next entry would begin.
fn draw_legend(area: &Area<'_>, curves: &[Curve]) -> Result<i32, Box<dyn Error>> {
    let mut left = LEFT;
    for curve in curves.iter().rev() {
        draw_legend_line(area, left, curve.color.stroke_width(curve.width))?;
        left = draw_legend_name(area, left, curve.name)?;
    }
    Ok(left)
}

/// Draws a line as the sample of the entry of the legend that begins at `left`.
fn draw_legend_line(area: &Area<'_>, left: i32, line: ShapeStyle) -> Drawn {
    let ends = [(left, LEGEND_MIDDLE), (left + LEGEND_SAMPLE_WIDTH, LEGEND_MIDDLE)];
    area.draw(&PathElement::new(ends, line))?;
    Ok(())
}

/// Draws the name of the entry of the legend that begins at `left`, and returns where the next one begins.
fn draw_legend_name(area: &Area<'_>, left: i32, name: &str) -> Result<i32, Box<dyn Error>> {
    let start = left + LEGEND_SAMPLE_WIDTH + LEGEND_NAME_MARGIN;
    let middle = style(TEXT_SIZE, INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(name, (start, LEGEND_MIDDLE), middle))?;
    let letters = i32::try_from(name.chars().count())?;
    Ok(start + letters * LEGEND_LETTER_WIDTH + LEGEND_GAP)
}

fn percentile_axis(right: f64) -> Axis {
    let range = 0.0..right + 0.08;
    // With many decades its label would touch the next one.
    let half = Some(2_f64.log10()).filter(|_| right < 6.0);
    // `99.9 %` is the label of three decades, and each further one adds a 9: from nine on, a label is wider than a decade.
    let label_width = (right.floor() + 3.0) * LABEL_LETTER_WIDTH;
    let decade_width = f64::from(PLOT_WIDTH) / range.end;
    let step = (label_width / decade_width).ceil();
    Axis {
        range,
        labels: [0.0].into_iter().chain(half).chain(multiples(step, right, step)).collect(),
        lines: logarithms(0.0..right, &[2, 3, 4, 5, 6, 7, 8, 9]),
    }
}

/// Formats -log10(1 - quantile) as a percentile: 3 is `99.9 %`.
fn percentile(decades: f64) -> String {
    match decades {
        ..=0.0 => "0 %".to_owned(),
        ..1.0 => "50 %".to_owned(),
        ..2.0 => "90 %".to_owned(),
        ..3.0 => "99 %".to_owned(),
        _ => format!("99.{} %", multiples(3.0, decades, 1.0).iter().map(|_| '9').collect::<String>()),
    }
}

fn latency_axis(low: f64, high: f64) -> Axis {
    // With many decades more labels would touch each other.
    let digits: &[u32] = if high - low > 3.5 { &[1] } else { &[1, 2, 5] };
    Axis {
        range: low..high,
        labels: logarithms(low..high, digits),
        lines: logarithms(low..high, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    }
}

/// Returns the logarithms of the digits times powers of ten that are in the range.
fn logarithms(range: Range<f64>, digits: &[u32]) -> Vec<f64> {
    let decades = multiples(range.start.floor(), range.end, 1.0).into_iter();
    let points = decades.flat_map(|decade| digits.iter().map(move |&digit| decade + f64::from(digit).log10()));
    points.filter(|point| (range.start - 1e-9..range.end + 1e-9).contains(point)).collect()
}

/// Rounds a logarithm up or down to that of 1, 2 or 5 times a power of ten.
fn round_logarithm(logarithm: f64, direction: i32) -> f64 {
    let decade = logarithm.floor();
    let steps = [0.0, 2_f64.log10(), 5_f64.log10(), 1.0].map(|step| decade + step);
    let found = if direction < 0 {
        steps.into_iter().rfind(|&step| step <= logarithm)
    } else {
        steps.into_iter().find(|&step| step >= logarithm)
    };
    found.unwrap_or(logarithm)
}

/// Draws four strips over one time axis: latency, throughput, open connections, errors.
fn draw_time(area: &Area<'_>, report: &Report) -> Drawn {
    let (latency, rest) = area.split_vertically(STRIP_HEIGHT);
    let (throughput, rest) = rest.split_vertically(STRIP_HEIGHT);
    let (open, errors) = rest.split_vertically(STRIP_HEIGHT);
    let asked = stages::asked(report);
    let boundaries = stages::boundaries(report);
    let strip = |name: String, of: Quantity, color| Strip {
        name,
        series: vec![(of, color)],
        asked: Vec::new(),
        boundaries: boundaries.clone(),
        format: number,
        is_last: false,
    };
    // Percentiles of several generators cannot be merged.
    let has_latency = report.timeline.iter().any(|point| point.p50.is_some() || point.p99.is_some());
    let figures = if has_latency { "p99, and p50 in green" } else { "no data" };
    let latency_strip = Strip {
        series: vec![(|point| point.p99, BLUE), (|point| point.p50, GREEN)],
        format: |microseconds| round_time(microseconds),
        ..strip(format!("latency of each second: {figures}"), |point| point.p99, BLUE)
    };
    let asked_name = match &asked[..] {
        [] => String::new(),
        [(_, rate), ..] if report.stages.is_empty() => format!(", asked {}/s in gray", number(*rate)),
        _ => ", asked in gray; the lines are between stages".to_owned(),
    };
    let throughput_strip = Strip { asked, ..strip(format!("messages/s{asked_name}"), |point| Some(point.rate), BLUE) };
    draw_strip(&latency, &report.timeline, &latency_strip)?;
    draw_strip(&throughput, &report.timeline, &throughput_strip)?;
    draw_strip(&open, &report.timeline, &strip("open connections".to_owned(), |point| Some(point.open), GREEN))?;
    let errors_strip = strip("errors in each second".to_owned(), |point| Some(point.errors), RED);
    draw_strip(&errors, &report.timeline, &Strip { is_last: true, ..errors_strip })
}

struct Strip {
    name: String,
    series: Vec<(Quantity, RGBColor)>,
    /// Seconds and values to compare with.
    asked: Vec<(f64, f64)>,
    /// Seconds at which a stage ends.
    boundaries: Vec<f64>,
    format: fn(f64) -> String,
    /// Has the time axis below it.
    is_last: bool,
}

#[expect(clippy::cast_precision_loss, reason = "the picture has a thousand points")]
fn draw_strip(area: &Area<'_>, timeline: &[Sample], strip: &Strip) -> Drawn {
    let first = timeline.iter().map(|point| point.t).min().unwrap_or(0);
    let last = timeline.iter().map(|point| point.t).max().unwrap_or(0);
    let (start, end) = (first as f64 - 1.0, last as f64);
    let step = round_step((end - start) / 8.0);
    let values = strip.series.iter().flat_map(|(of, _)| timeline.iter().filter_map(of));
    let most = values.map(|value| value as f64).chain(strip.asked.iter().map(|point| point.1)).fold(1.0, f64::max);
    let level = round_step(most / 2.0);
    let top = (most / level).ceil() * level;
    // A column is at least a pixel wide, so that the picture of a week is no larger than that of a quarter of an hour.
    let seconds = (last - first) / u64::from(PLOT_WIDTH.cast_unsigned()) + 1;
    let x = Axis { range: start..end, labels: multiples(start, end, step), lines: Vec::new() };
    let y = Axis { range: 0.0..top, labels: multiples(0.0, top, level), lines: Vec::new() };

    let color = strip.series.first().map_or(INK, |series| series.1);
    area.draw(&Text::new(strip.name.clone(), (LEFT, 8), style(TEXT_SIZE, color)))?;
    let mut chart = ChartBuilder::on(area)
        .margin_right(MARGIN)
        .margin_top(STRIP_NAME_HEIGHT)
        .x_label_area_size(if strip.is_last { 4 + TIME_AXIS_HEIGHT } else { TICKS_HEIGHT })
        .y_label_area_size(LEFT)
        .build_cartesian_2d(x, y)?;
    let second = |second: &f64| if strip.is_last { number(*second) } else { String::new() };
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(GRID)
        .axis_style(GREY)
        .label_style(style(TEXT_SIZE, INK))
        .axis_desc_style(style(TEXT_SIZE, PALE))
        .y_label_formatter(&|level| (strip.format)(*level))
        .x_label_formatter(&second)
        .x_desc(if strip.is_last { "seconds" } else { "" })
        .draw()?;
    for &boundary in strip.boundaries.iter().filter(|boundary| (start..end).contains(boundary)) {
        chart.draw_series(LineSeries::new([(boundary, 0.0), (boundary, top)], GREY.stroke_width(1)))?;
    }
    chart.draw_series(LineSeries::new(stages::clip(&strip.asked, start..end), GREY.stroke_width(2)))?;
    for (of, color) in &strip.series {
        for run in unbroken(&columns(timeline, *of, first, seconds)) {
            // A value applies to all of its seconds.
            let points = run.iter().flat_map(|column| {
                let left = start + (column.number * seconds) as f64;
                let right = (left + seconds as f64).min(end);
                let (lowest, highest) = (column.lowest as f64, column.highest as f64);
                [(left, lowest), (left, highest), (right, highest)]
            });
            let mut line: Vec<_> = points.collect();
            line.dedup();
            let ground = [(line[line.len() - 1].0, 0.0), (line[0].0, 0.0)];
            let surface: Vec<_> = line.iter().copied().chain(ground).collect();
            chart.draw_series([Polygon::new(surface, color.mix(0.14).filled())])?;
            chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        }
    }
    Ok(())
}

/// Seconds that are drawn as one, with the lowest and the highest of their values.
#[derive(Debug, PartialEq)]
struct Column {
    number: u64,
    lowest: u64,
    highest: u64,
}

/// Returns the values of a strip in columns of `seconds` each, of which the second `first` begins the first.
fn columns(timeline: &[Sample], of: Quantity, first: u64, seconds: u64) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (number, value) in timeline.iter().filter_map(|point| Some(((point.t - first) / seconds, of(point)?))) {
        match columns.last_mut() {
            Some(column) if column.number == number => {
                (column.lowest, column.highest) = (column.lowest.min(value), column.highest.max(value));
            }
            _ => columns.push(Column { number, lowest: value, highest: value }),
        }
    }
    columns
}

/// Splits columns where one is missing.
fn unbroken(columns: &[Column]) -> impl Iterator<Item = &[Column]> {
    columns.chunk_by(|column, next| Some(next.number) == column.number.checked_add(1))
}

/// Returns 1, 2 or 5 times a power of ten that is whole and at least `least`.
fn round_step(least: f64) -> f64 {
    10_f64.powf(round_logarithm(least.max(1.0).log10(), 1)).round()
}

/// Returns the multiples of `step` in a range, at most `LABELS_MAX`.
fn multiples(start: f64, end: f64, step: f64) -> Vec<f64> {
    let numbers = std::iter::successors(Some((start / step).ceil()), |number| Some(number + 1.0));
    numbers.map(|number| number * step).take_while(|&multiple| multiple <= end).take(LABELS_MAX).collect()
}

/// Returns the time of the first connect, in UTC.
pub(super) fn start(report: &Report) -> String {
    // humantime panics before 1970.
    let start = report.start.max(std::time::SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_seconds(start).to_string()
}

/// Returns the settings of the run in lines that fit the width.
fn small_print(report: &Report) -> Vec<String> {
    let mut words = vec![format!("ecoloop {}", strip_control(&report.version)), start(report)];
    words.extend(settings(report));
    let words: Vec<_> = words.iter().map(|word| shorten(word, PRINT_LINE_LETTERS - 1)).collect();
    wrap(&words, " · ", PRINT_LINE_LETTERS)
}

fn style(size: f64, color: RGBColor) -> TextStyle<'static> {
    FontDesc::new(FontFamily::SansSerif, size, FontStyle::Normal).color(&color)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::table::tests::{example, example_with};
    use super::*;

    /// Returns each text of the picture.
    fn texts(svg: &str) -> Vec<&str> {
        let texts = svg.split("<text ").skip(1);
        texts.map(|text| text.split_once('>').unwrap().1.split_once("</text>").unwrap().0.trim()).collect()
    }

    #[track_caller]
    fn assert_has(svg: &str, expected: &[&str]) {
        let texts = texts(svg);
        let missing: Vec<_> = expected.iter().filter(|text| !texts.contains(text)).collect();
        assert!(missing.is_empty(), "{missing:?} not in {texts:?}");
    }

    #[test]
    fn axes_have_names_units_and_round_numbers() {
        let svg = plot(&example()).unwrap();
        assert_has(&svg, &["ecoloop load: echo, 50 connections, 100 messages/s"]);
        assert_has(&svg, &["0 %", "50 %", "90 %", "99 %", "99.9 %", "percentile, on a logarithmic axis"]);
        assert_has(&svg, &["50 µs", "100 µs", "1 ms", "10 ms", "latency"]);
        assert_has(&svg, &["latency of each second: p99, and p50 in green", "messages/s, asked 100/s in gray"]);
        assert_has(&svg, &["open connections", "errors in each second", "seconds"]);
        assert!(texts(&svg).iter().any(|text| text.contains("64 B a message")), "the settings");
    }

    /// A window of a search, without latencies if it has no p99.
    fn probe(rate: f64, passed: bool, schedule_kept: bool, p99: Option<u64>) -> serde_json::Value {
        serde_json::json!({"rate": rate, "passed": passed, "confirming": false, "schedule_kept": schedule_kept, "seconds": 5,
            "rate_per_s": rate, "p50_us": p99.map(|_| 100), "p99_us": p99, "errors": 0, "failed": []})
    }

    fn plot_of_search(found_rate: Option<f64>, probes: &[serde_json::Value]) -> String {
        let report = example_with(|json| {
            json["search"] = serde_json::json!({"goal": ["p99<5ms"], "found_rate": found_rate, "limited_by": "server", "reopened": 0,
                "probes": probes});
        });
        plot(&report).unwrap()
    }

    #[test]
    fn a_search_is_drawn_as_latency_over_rate() {
        let probes = [
            probe(500.0, true, true, Some(200)),
            probe(1000.0, true, true, Some(900)),
            probe(1500.0, true, false, Some(7000)),
            probe(2000.0, false, true, Some(50_000)),
        ];
        let svg = plot_of_search(Some(1000.0), &probes);
        assert_has(&svg, &["ecoloop load: echo, 50 connections, 1,000/s found"]);
        assert_has(&svg, &["p99", "p50", "passed", "failed", "generator too slow", "found rate"]);
        assert_has(
            &svg,
            &["500/s", "1,000/s", "2,000/s", "100 µs", "1 ms", "messages due per second, on a logarithmic axis"],
        );
        // Each mark is in the legend too, and each p50 is a small circle.
        let count = |mark: &str| svg.matches(mark).count();
        assert_eq!(count(r##"r="4" opacity="1" fill="#238654" stroke="none""##), 3);
        assert_eq!(count(r##"r="4" opacity="1" fill="none" stroke="#CB2D2D""##), 2);
        assert_eq!(count(r##"<line opacity="1" stroke="#B06000""##), 2 * 2);
        assert_eq!(count(r##"r="2" opacity="1" fill="#969DA7""##), 4);
        assert!(!texts(&svg).contains(&"seconds"));
    }

    #[test]
    fn a_search_below_one_message_a_second_has_its_rates() {
        let probes = [0.2, 3.36, 20.0].map(|rate| probe(rate, true, true, Some(200)));
        let title = "ecoloop load: echo, 50 connections, 3.36/s found";
        assert_has(&plot_of_search(Some(3.36), &probes), &[title, "0.2/s", "0.5/s", "1/s", "10/s"]);
    }

    #[test]
    fn the_line_at_the_rate_that_was_found_is_as_high_as_the_chart() {
        let svg = plot_of_search(Some(1000.0), &[probe(1000.0, true, true, Some(200))]);
        let line = svg.lines().find(|line| line.contains(r##"stroke="#238654" stroke-width="1" points="##)).unwrap();
        let heights: Vec<_> = line.split(['"', ' ']).filter_map(|point| Some(point.split_once(',')?.1)).collect();
        assert_eq!(heights, ["387", "94"], "{line}");
        assert!(svg.contains(r#"y1="387" x2="84" y2="94""#), "the axis is higher or lower");
    }

    #[test]
    fn a_search_without_an_answer_has_no_axes() {
        for probes in [&[probe(1000.0, false, true, None), probe(2000.0, false, true, None)][..], &[]] {
            let svg = plot_of_search(None, probes);
            assert_has(&svg, &["no message was answered"]);
            assert_eq!((svg.matches("<line ").count(), svg.matches("<polyline ").count()), (0, 0));
        }
    }

    #[test]
    fn a_report_without_answers_has_no_curve() {
        let svg = plot(&example_with(|json| {
            json["latency_us"] = json["lateness_us"].clone();
            json["timeline"] = serde_json::json!([]);
        }));
        let svg = svg.unwrap();
        assert_has(&svg, &["no message was answered"]);
        assert!(!texts(&svg).contains(&"seconds"));
    }

    #[test]
    fn only_an_open_loop_has_a_scheduled_send_time() {
        assert_has(&plot(&example()).unwrap(), &["latency, from the scheduled send time"]);
        let closed = plot(&example_with(|json| json["loop"] = "closed".into())).unwrap();
        assert_has(&closed, &["latency, in a closed loop"]);
    }

    #[test]
    fn the_last_messages_of_hold_have_a_scheduled_send_time() {
        let hold = plot(&example_with(|json| {
            (json["mode"], json["loop"], json["config"]["rate"]) = ("hold".into(), "closed".into(), 10_000.into());
            json["lateness_us"] = json["latency_us"].clone();
        }));
        let hold = hold.unwrap();
        assert_has(&hold, &["ecoloop load: hold, 50 connections, last messages at 10,000/s"]);
        assert_has(&hold, &["latency of the last messages, from the scheduled send time", "lateness of the generator"]);
        assert!(!hold.contains("closed loop"), "{hold}");
    }

    #[test]
    fn a_timeline_without_latency_says_so() {
        let svg = plot(&example_with(|json| {
            (json["timeline"][0]["p50"], json["timeline"][0]["p99"]) =
                (serde_json::Value::Null, serde_json::Value::Null);
        }));
        assert_has(&svg.unwrap(), &["latency of each second: no data"]);
    }

    /// A day of quiet seconds, except one with a high latency, and one without any reply.
    fn day() -> Report {
        let mut report = example();
        let sample = report.timeline[0];
        let second = |t: u64| {
            let mut second = sample;
            (second.t, second.rate) = (t, 1900 + t % 200);
            (second.p50, second.p99) = (Some(60 + t % 7), Some(100 + t % 40));
            match t {
                40_000 => second.p99 = Some(1_000_000),
                50_000 => (second.rate, second.open, second.errors) = (0, 0, 50),
                _ => {}
            }
            second
        };
        report.timeline = (1..=86_400).map(second).collect();
        report
    }

    #[test]
    fn the_picture_of_a_day_is_small_and_has_its_worst_seconds() {
        let svg = plot(&day()).unwrap();
        assert!(svg.len() < 200_000, "{} bytes", svg.len());
        // The highest p99 is at the top of its axis, and no open connection at the bottom of its own, two strips below.
        let top = TITLE_HEIGHT + LATENCY_HEIGHT + STRIP_NAME_HEIGHT;
        let bottom = TITLE_HEIGHT + LATENCY_HEIGHT + 3 * STRIP_HEIGHT - TICKS_HEIGHT - 1;
        let lines: Vec<_> = svg.lines().filter(|line| line.starts_with("<polyline ")).collect();
        let reaches = |y: i32, color: &str| {
            let y = format!(",{y} ");
            lines.iter().any(|line| line.contains(color) && line.contains(&y))
        };
        assert!(reaches(top, "#1C62BE") && reaches(bottom, "#238654"), "{lines:#?}");
    }

    #[test]
    fn a_column_has_the_lowest_and_the_highest_value_of_its_seconds() {
        let mut timeline = Vec::new();
        for (t, p99) in [(3, Some(10)), (4, Some(7)), (5, None), (6, None), (7, Some(1)), (8, None), (9, Some(5))] {
            let mut sample = example().timeline[0];
            (sample.t, sample.p99) = (t, p99);
            timeline.push(sample);
        }
        let column = |number, lowest, highest| Column { number, lowest, highest };
        let p99: Quantity = |sample| sample.p99;
        assert_eq!(
            columns(&timeline, p99, 3, 1),
            [column(0, 10, 10), column(1, 7, 7), column(4, 1, 1), column(6, 5, 5)]
        );
        let in_pairs = columns(&timeline, p99, 3, 2);
        assert_eq!(in_pairs, [column(0, 7, 10), column(2, 1, 1), column(3, 5, 5)]);
        let runs: Vec<_> = unbroken(&in_pairs).map(<[Column]>::len).collect();
        assert_eq!(runs, [1, 2]);
    }

    #[test]
    fn a_clock_before_1970_is_drawn_as_1970() {
        let mut report = example();
        report.start = std::time::SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(1);
        assert!(plot(&report).unwrap().contains("1970-01-01T00:00:00Z"));
    }

    #[test]
    fn a_run_that_did_not_pass_is_marked() {
        let words = |change: fn(&mut serde_json::Value)| {
            let svg = plot(&example_with(change)).unwrap();
            texts(&svg)[2].to_owned()
        };
        let failed = serde_json::json!([{"expr": "errors>0", "default": true, "value": 3, "failed": true}]);
        let svg = plot(&example_with(|json| (json["verdict"], json["thresholds"]) = ("fail".into(), failed))).unwrap();
        assert_has(&svg, &["FAIL: errors&gt;0 (3)"]);
        assert_eq!(words(|json| json["verdict"] = "interrupted".into()), "INTERRUPTED");
        let many: Vec<_> = (1..=20)
            .map(|seconds| serde_json::json!({"expr": format!("p99>{seconds}s"), "default": false, "value": 3e7, "failed": true}))
            .collect();
        let svg = plot(&example_with(|json| (json["verdict"], json["thresholds"]) = ("fail".into(), many.into())));
        let svg = svg.unwrap();
        let remark = texts(&svg)[2];
        assert!(remark.starts_with("FAIL: p99&gt;1s (30.0 s), ") && remark.ends_with('…'), "{remark}");
        let late = words(|json| (json["verdict"], json["schedule"]["kept"]) = ("inconclusive".into(), false.into()));
        assert_eq!(late, "INCONCLUSIVE: the schedule was not kept, so the figures are not the server&apos;s alone");
        let deferred = words(|json| json["messages"]["deferred"] = 500.into());
        assert_eq!(deferred, "50 % of the messages were deferred: the pipeline or the socket was full");
    }

    #[test]
    fn a_long_title_has_smaller_letters() {
        for length in [10, 60, 100, 200] {
            let size = fitting_size(TITLE_SIZE, &"x".repeat(length));
            let letters = u32::try_from(length).unwrap();
            assert!(
                size <= TITLE_SIZE && size * LETTER_WIDTH * f64::from(letters) <= f64::from(WIDTH - 2 * MARGIN) + 1e-9
            );
        }
        assert!((fitting_size(TITLE_SIZE, "ecoloop load") - TITLE_SIZE).abs() < 1e-9);
    }

    #[test]
    fn a_picture_has_a_title_and_a_description() {
        let title = "<title>ecoloop load: echo, 50 connections, 100 messages/s</title>";
        let head = |figures: &str| format!("role=\"img\">\n{title}\n<desc>{figures}</desc>\n<rect ");
        let svg = plot(&example()).unwrap();
        assert!(svg.starts_with("<svg width="), "{svg}");
        assert!(svg.contains(&head("PASS (1 threshold), p50 80 µs, p99 100 µs, max 20.0 ms")), "{svg}");
        let svg = plot(&example_with(|json| {
            json["verdict"] = "fail".into();
            json["thresholds"] = serde_json::json!([{"expr": "errors>0", "default": true, "value": 3, "failed": true}]);
            json["latency_us"] = json["lateness_us"].clone();
        }));
        let svg = svg.unwrap();
        assert!(svg.contains(&head("FAIL: errors&gt;0 (3)")), "{svg}");
    }

    #[test]
    fn a_long_label_is_cut_at_the_edge() {
        let svg = plot(&example_with(|json| json["config"]["labels"]["k"] = "x".repeat(300).into())).unwrap();
        let label = texts(&svg).into_iter().find(|text| text.starts_with("k=")).unwrap();
        assert!(label.chars().count() == PRINT_LINE_LETTERS && label.ends_with("x…"), "{label}");
    }

    #[test]
    fn labels_are_escaped_in_the_svg() {
        let svg =
            plot(&example_with(|json| json["config"]["labels"] = serde_json::json!({"a": "</text>\u{1b}&\u{fffe}"})));
        let svg = svg.unwrap();
        assert!(svg.contains("a=&lt;/text&gt;\u{fffd}&amp;\u{fffd}"), "{svg}");
    }

    #[test]
    fn a_broken_histogram_is_an_error() {
        let refused = plot(&example_with(|json| json["latency_us"]["count"] = 7.into())).unwrap_err();
        assert_eq!(refused, "cannot draw the plot: count is 7, and 1000 in hdr_v2");
    }

    #[test]
    fn labels_of_many_percentiles_do_not_touch() {
        assert_eq!(percentile_axis(8.9).labels, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(percentile_axis(9.0).labels, [0.0, 2.0, 4.0, 6.0, 8.0]);
        // 10^19.3 is the most that a histogram can count.
        for right in (20..=193).map(|tenths| f64::from(tenths) / 10.0) {
            let axis = percentile_axis(right);
            let labels: Vec<_> =
                axis.labels.iter().map(|&label| (axis.map(&label, (0, PLOT_WIDTH)), percentile(label))).collect();
            for pair in labels.windows(2) {
                let letters = pair.iter().map(|(_, label)| label.chars().count()).sum::<usize>();
                let width = i32::try_from(letters).unwrap() * 8 / 2;
                assert!(pair[1].0 - pair[0].0 > width, "{right}: {labels:?}");
            }
        }
    }

    #[test]
    fn axes_have_few_round_steps() {
        for (least, step) in [(0.1, 1.0), (1.0, 1.0), (1.2, 2.0), (3.0, 5.0), (5.1, 10.0), (37.5, 50.0), (6e8, 1e9)] {
            assert!((round_step(least) - step).abs() < 1e-6, "{least}: {}", round_step(least));
        }
        assert_eq!(multiples(3.0, 12.0, 5.0), [5.0, 10.0]);
        for (decades, label) in [(0.0, "0 %"), (2_f64.log10(), "50 %"), (1.0, "90 %"), (2.0, "99 %"), (5.0, "99.999 %")]
        {
            assert_eq!(percentile(decades), label);
        }
    }
}
