//! Rankings as pictures.

use std::path::Path;

use fisher_metrics::importance::{ImportanceReport, Ranked};
use plotters::prelude::*;

const SIZE: (u32, u32) = (1000, 620);
/// Dark and light, so that they differ in black and white too.
const FILLS: [RGBColor; 2] = [RGBColor(31, 58, 110), RGBColor(233, 150, 80)];

/// Draw heads and layers of up to two tasks side by side, with confidence intervals.
///
/// Each task's bars are shares of its own trace, so tasks of different loss compare.
///
/// # Errors
/// What kept the picture from being drawn.
pub fn importance(path: &Path, reports: &[ImportanceReport]) -> Result<(), String> {
    draw(path, reports).map_err(|e| format!("{}: {e}", path.display()))
}

fn draw(path: &Path, reports: &[ImportanceReport]) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (heads, layers) = root.split_vertically(SIZE.1 / 2);
    panel(&heads, "Attention heads", reports, |r| &r.heads)?;
    panel(&layers, "Layers", reports, |r| &r.layers)?;
    root.present()?;
    Ok(())
}

fn panel(
    area: &DrawingArea<SVGBackend, plotters::coord::Shift>,
    title: &str,
    reports: &[ImportanceReport],
    of: fn(&ImportanceReport) -> &Vec<Ranked>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut names: Vec<&str> = reports
        .iter()
        .flat_map(|r| of(r).iter().map(|ranked| &*ranked.name))
        .collect();
    names.sort_unstable();
    names.dedup();
    let share = |r: &Ranked| 100.0 * r.share.map_or(0.0, |share| share.value);
    let interval = |r: &Ranked| r.share.and_then(|share| share.interval);
    let highest = reports
        .iter()
        .flat_map(|report| of(report).iter())
        .map(|r| interval(r).map_or(share(r), |c| 100.0 * c.upper))
        .fold(1e-9, f64::max);

    let mut chart = ChartBuilder::on(area)
        .caption(
            format!(
                "{title}: share of the task's Fisher trace, % (whiskers: interval of the share)"
            ),
            ("sans-serif", 17),
        )
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(-0.5..names.len() as f64 - 0.5, 0.0..1.3 * highest)?;
    let label = |x: &f64| {
        let index = x.round();
        let near = (x - index).abs() < 0.01 && index >= 0.0;
        let name = names.get(index as usize).filter(|_| near);
        name.map_or(String::new(), |name| shorten(name))
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * names.len() + 1)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .label_style(("sans-serif", 13))
        .light_line_style(WHITE)
        .draw()?;
    let width = 0.8 / reports.len() as f64;
    for (task, report) in reports.iter().enumerate() {
        let fill = FILLS[task % FILLS.len()];
        let left = |index: usize| index as f64 - 0.4 + task as f64 * width;
        let placed: Vec<(f64, &Ranked)> = of(report)
            .iter()
            .filter_map(|r| Some((left(names.iter().position(|n| *n == r.name)?), r)))
            .collect();
        let bars = placed.iter().map(|(x, r)| {
            let corners = [(*x, 0.0), (x + 0.92 * width, share(r))];
            Rectangle::new(corners, fill.filled())
        });
        chart
            .draw_series(bars)?
            .label(&*report.task)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], fill.filled()));
        let whiskers = placed.iter().filter_map(|(x, r)| {
            let interval = interval(r)?;
            let x = x + 0.46 * width;
            let line = vec![(x, 100.0 * interval.lower), (x, 100.0 * interval.upper)];
            Some(PathElement::new(line, BLACK.stroke_width(2)))
        });
        chart.draw_series(whiskers)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .label_font(("sans-serif", 14))
        .draw()?;
    Ok(())
}

/// `transformer.layers.1.mha head 2` as `layer 1 head 2`.
fn shorten(name: &str) -> String {
    let Some((_, numbered)) = name.split_once("layers.") else {
        return name.to_owned();
    };
    let layer: String = numbered.chars().take_while(char::is_ascii_digit).collect();
    match name.split_once(" head ") {
        Some((_, head)) => format!("layer {layer} head {head}"),
        None => format!("layer {layer}"),
    }
}
