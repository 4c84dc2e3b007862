//! One small picture of a comparison, for a page that has no room for more: bars of the caches, workload by workload. An
//! SVG that needs nothing else and follows the reader's light or dark scheme.

use super::figures;
use super::html::escape;
use crate::compare::result::{Comparison, WorkloadInfo};
use crate::compare::systems::{OURS, OURS_OLD, is_raw};
use std::fmt::Write as _;

/// Workloads that tell most, if they were measured.
const WORKLOADS: [&str; 7] =
    ["burst", "fsync-1", "fsync-16", "zipf-overwrite", "mixed-warm", "sustained", "seq-write-full"];
const WIDTH: f64 = 760.0;
const LEFT: f64 = 130.0;
const BARS: f64 = 470.0;
const BAR: f64 = 10.0;
const GAP: f64 = 10.0;
const TOP: f64 = 30.0;
const LEGEND: f64 = 128.0;

const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#1c1e21}text.small{font-size:10px}\
.f0{fill:#0b63ce}.f1{fill:#c2410c}.f2{fill:#15803d}.f3{fill:#a21caf}.f4{fill:#0e7490}\
@media(prefers-color-scheme:dark){text{fill:#e6e8eb}.f0{fill:#6ab0ff}.f1{fill:#ff9d66}.f2{fill:#5fd68b}.f3{fill:#e58af0}\
.f4{fill:#5fcfe3}}";

/// The picture.
pub fn picture(result: &Comparison) -> String {
    let caches = figures::systems(result).into_iter().filter(|name| !is_raw(name) && *name != OURS_OLD);
    let caches: Vec<&str> = caches.collect();
    let shown = |w: &&WorkloadInfo| {
        WORKLOADS.contains(&w.name.as_str()) && figures::shown(result, OURS, w).is_some_and(|s| s.median > 0.0)
    };
    let workloads: Vec<&WorkloadInfo> = result.workloads.iter().filter(shown).collect();
    let row = caches.len() as f64 * (BAR + 1.0) + GAP;
    let height = TOP + workloads.len() as f64 * row;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"throughput of caches by workload\">\n<style>{STYLE}</style>\n"
    );
    for (color, name) in caches.iter().enumerate() {
        let x = LEFT + color as f64 * LEGEND;
        let _ = writeln!(svg, "<rect class=\"f{color}\" x=\"{x}\" y=\"8\" width=\"10\" height=\"10\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"17\">{}</text>", x + 14.0, escape(name));
    }
    for (number, workload) in workloads.iter().enumerate() {
        bars(&mut svg, result, workload, &caches, TOP + number as f64 * row);
    }
    svg.push_str("</svg>\n");
    svg
}

/// A workload's bars; the longest is the best cache's.
fn bars(svg: &mut String, result: &Comparison, workload: &WorkloadInfo, caches: &[&str], top: f64) {
    let value = |name: &&str| figures::shown(result, name, workload).map(|spread| spread.median);
    let most = caches.iter().filter_map(value).fold(f64::MIN_POSITIVE, f64::max);
    let middle = top + caches.len() as f64 * (BAR + 1.0) / 2.0;
    let x = LEFT - 10.0;
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>", escape(&workload.name));
    for (number, name) in caches.iter().enumerate() {
        let y = top + number as f64 * (BAR + 1.0);
        let (width, text) = match value(name) {
            Some(value) => (value / most * BARS, format!("{} {}", figures::number(value), workload.unit)),
            None => (0.0, "-".into()),
        };
        let title = escape(name);
        let _ = writeln!(
            svg,
            "<rect class=\"f{number}\" x=\"{LEFT}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\"><title>{title}</title></rect>\
             <text class=\"small\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            LEFT + width + 5.0,
            y + 9.0,
            escape(&text)
        );
    }
}
