//! The chart of a search: latency over rate.

use ecoloop::load::report::{Probe, SearchReport};
use plotters::prelude::*;

use super::{
    Area, Axis, BLUE, Curve, Drawn, GREEN, GREY, LEGEND_MIDDLE, LEGEND_SAMPLE_WIDTH, MARGIN, ORANGE, RED, draw_legend,
    draw_legend_line, draw_legend_name, draw_no_answer, latency_axis, latency_chart, logarithm, logarithms,
    round_logarithm,
};
use crate::cli::format::number;

/// Radius of the mark of a window, and of the circle on its p50: the line of a single window has no length.
const MARK_RADIUS: i32 = 4;
const P50_RADIUS: i32 = 2;

/// Draws the latency of each window at its rate.
pub(super) fn draw_search(area: &Area<'_>, search: &SearchReport) -> Drawn {
    let mut probes: Vec<_> = search.probes.iter().collect();
    probes.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let curve = |name, color, width, of: fn(&Probe) -> Option<u64>| {
        let points = probes.iter().filter_map(|probe| Some((probe.rate.log10(), logarithm(of(probe)?)))).collect();
        Curve { name, color, width, points }
    };
    let curves = [curve("p50", GREY, 2, |probe| probe.p50_us), curve("p99", BLUE, 2, |probe| probe.p99_us)];
    if curves.iter().all(|curve| curve.points.is_empty()) {
        return draw_no_answer(area);
    }
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        (round_logarithm(low, -1), round_logarithm(high, 1).max(low + 0.3))
    };
    let (left, right) = bounds(&mut points().map(|point| point.0));
    let (low, high) = bounds(&mut points().map(|point| point.1));
    let x = Axis {
        range: left..right,
        labels: logarithms(left..right, if right - left > 3.0 { &[1] } else { &[1, 2, 5] }),
        lines: logarithms(left..right, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    };
    let top = high.max(low + 1.0);
    let y = latency_axis(low, top);
    let name = "messages due per second, on a logarithmic axis";
    let label = |logarithm: &f64| format!("{}/s", number(10_f64.powf(*logarithm)));
    let mut chart = latency_chart(area, MARGIN * 2, x, y, name, label)?;
    for curve in &curves {
        let line = curve.color.stroke_width(curve.width);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), line))?;
    }
    chart.draw_series(curves[0].points.iter().map(|&at| Circle::new(at, P50_RADIUS, GREY.filled())))?;
    let marks = |is_marked: fn(&Probe) -> bool| {
        let marked = probes.iter().filter(|probe| is_marked(probe));
        marked.filter_map(|probe| Some((probe.rate.log10(), logarithm(probe.p99_us?)))).collect::<Vec<_>>()
    };
    chart.draw_series(marks(|probe| probe.schedule_kept && probe.passed).into_iter().map(passed))?;
    chart.draw_series(marks(|probe| probe.schedule_kept && !probe.passed).into_iter().map(failed))?;
    chart.draw_series(marks(|probe| !probe.schedule_kept).into_iter().map(too_slow))?;
    let found_rate = search.found_rate.map(f64::log10);
    if let Some(rate) = found_rate {
        chart.draw_series(LineSeries::new([(rate, low), (rate, top)], found()))?;
    }
    let left = draw_legend(area, &curves)?;
    draw_legend_of_marks(area, left, found_rate.is_some())
}

/// Adds each mark to the legend, from `left` on.
fn draw_legend_of_marks(area: &Area<'_>, left: i32, has_found: bool) -> Drawn {
    let middle = |left: i32| (left + LEGEND_SAMPLE_WIDTH / 2, LEGEND_MIDDLE);
    area.draw(&passed(middle(left)))?;
    let left = draw_legend_name(area, left, "passed")?;
    area.draw(&failed(middle(left)))?;
    let left = draw_legend_name(area, left, "failed")?;
    area.draw(&too_slow(middle(left)))?;
    let left = draw_legend_name(area, left, "generator too slow")?;
    if has_found {
        draw_legend_line(area, left, found())?;
        draw_legend_name(area, left, "found rate")?;
    }
    Ok(())
}

/// The mark of a window whose goal held: its form tells it from the others without its color.
fn passed<Place>(at: Place) -> Circle<Place, i32> {
    Circle::new(at, MARK_RADIUS, GREEN.filled())
}

fn failed<Place>(at: Place) -> Circle<Place, i32> {
    Circle::new(at, MARK_RADIUS, RED.stroke_width(2))
}

/// The mark of a window that does not count.
fn too_slow<Place>(at: Place) -> Cross<Place, i32> {
    Cross::new(at, MARK_RADIUS, ORANGE.stroke_width(2))
}

/// The line at the rate that was found.
fn found() -> ShapeStyle {
    GREEN.stroke_width(1)
}
