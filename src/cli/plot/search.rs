//! The chart of a search: latency over rate.

use ecoloop::load::report::{Probe, SearchReport};
use plotters::prelude::*;

use super::{
    Area, Axis, BLUE, Curve, Drawn, GREEN, GREY, MARGIN, ORANGE, RED, draw_legend, latency_axis, latency_chart,
    logarithm, logarithms, round_logarithm,
};
use crate::cli::format::number;

/// Draws the latency of each window at its rate.
pub(super) fn draw_search(area: &Area<'_>, search: &SearchReport) -> Drawn {
    let mut probes: Vec<_> = search.probes.iter().collect();
    probes.sort_by(|one, other| one.rate.total_cmp(&other.rate));
    let curve = |name, color, width, of: fn(&Probe) -> Option<u64>| {
        let points = probes.iter().filter_map(|probe| Some((probe.rate.log10(), logarithm(of(probe)?)))).collect();
        Curve { name, color, width, points }
    };
    let curves = [
        curve("p50", GREY, 2, |probe| probe.p50_us),
        curve("p99, green where the goal held", BLUE, 2, |probe| probe.p99_us),
    ];
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low > high { (1.0, 2.0) } else { (round_logarithm(low, -1), round_logarithm(high, 1).max(low + 0.3)) }
    };
    let (left, right) = bounds(&mut points().map(|point| point.0));
    let (low, high) = bounds(&mut points().map(|point| point.1));
    let x = Axis {
        range: left..right,
        labels: logarithms(left..right, if right - left > 3.0 { &[1] } else { &[1, 2, 5] }),
        lines: logarithms(left..right, &[1, 2, 3, 4, 5, 6, 7, 8, 9]),
    };
    let y = latency_axis(low, high.max(low + 1.0));
    let name = "messages due per second, on a logarithmic axis";
    let label = |logarithm: &f64| format!("{}/s", number(10_f64.powf(*logarithm)));
    let mut chart = latency_chart(area, MARGIN * 2, x, y, name, label)?;
    for curve in &curves {
        let line = curve.color.stroke_width(curve.width);
        chart.draw_series(LineSeries::new(curve.points.iter().copied(), line))?;
    }
    chart.draw_series(probes.iter().filter_map(|probe| {
        let color = match probe {
            Probe { schedule_kept: false, .. } => ORANGE,
            Probe { passed: true, .. } => GREEN,
            _ => RED,
        };
        Some(Circle::new((probe.rate.log10(), logarithm(probe.p99_us?)), 4, color.filled()))
    }))?;
    if let Some(rate) = search.found_rate.map(f64::log10) {
        chart.draw_series(LineSeries::new([(rate, low), (rate, high)], GREEN.stroke_width(1)))?;
    }
    draw_legend(area, &curves)
}
