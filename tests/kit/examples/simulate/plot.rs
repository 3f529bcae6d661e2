//! Lines in an SVG image, legible on a light and on a dark page.

use std::{fmt::Write as _, fs, path::Path};

pub(crate) struct Line<'a> {
    pub(crate) name: &'a str,
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
/// Room for the labels.
const LEFT: f64 = 52.0;
const BOTTOM: f64 = 34.0;
const TOP: f64 = 22.0;
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
const TICKS: u32 = 4;

pub(crate) fn write(path: &Path, x: &str, y: &str, lines: &[Line<'_>]) -> std::io::Result<()> {
    let points = || lines.iter().flat_map(|line| &line.points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(f64::NEG_INFINITY, f64::max);
    let top = points().map(|point| point.1).fold(1e-9, f64::max) * 1.05;
    let across = |value: f64| LEFT + (value - least) / (most - least).max(1e-9) * (WIDTH - LEFT - 8.0);
    let up = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#808080\">\n"
    );
    for tick in 0..=TICKS {
        let share = f64::from(tick) / f64::from(TICKS);
        let (at_y, at_x) = (share * top, least + share * (most - least));
        let (height, place) = (up(at_y), across(at_x));
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {height:.1}H{WIDTH}\" stroke=\"#808080\" stroke-opacity=\"0.3\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{at_y:.3}</text>\
             <text x=\"{place:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at_x:.1}</text>",
            LEFT - 6.0,
            height + 4.0,
            HEIGHT - BOTTOM + 15.0,
        );
    }
    let _ = writeln!(svg, "<text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{x}</text>", HEIGHT - 4.0);
    let _ = writeln!(svg, "<text x=\"4\" y=\"12\">{y}</text>");
    for (index, (line, colour)) in lines.iter().zip(COLOURS).enumerate() {
        let path: Vec<String> =
            line.points.iter().map(|(x, y)| format!("{:.1} {:.1}", across(*x), up(*y))).collect();
        let _ = writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"/>\
             <text x=\"{:.1}\" y=\"12\" fill=\"{colour}\">{}</text>",
            path.join("L"),
            LEFT + 60.0 + 120.0 * index as f64,
            line.name,
        );
    }
    svg.push_str("</svg>\n");
    fs::write(path, svg)
}
