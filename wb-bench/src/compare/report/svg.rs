//! Plots as inline SVG. Lines and texts take the page's colours, so that they are legible in light and dark.

use std::fmt::Write as _;

/// A line of a plot.
pub struct Line {
    /// Its name.
    pub name: String,
    /// Which of the page's colours.
    pub color: usize,
    /// Points by rising x.
    pub points: Vec<(f64, f64)>,
}

/// What a plot shows.
pub struct Plot<'a> {
    /// For those who cannot see it.
    pub title: &'a str,
    /// What x is, with its unit.
    pub x_label: &'a str,
    /// What y is, with its unit.
    pub y_label: &'a str,
    /// x grows by factors, not by steps.
    pub log_x: bool,
    /// The lines.
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 680.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 46.0;

/// A scale from values to pixels.
struct Scale {
    min: f64,
    max: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Scale {
    fn at(&self, value: f64) -> f64 {
        let map = |v: f64| if self.log { v.max(self.min).log10() } else { v };
        let (low, high) = (map(self.min), map(self.max));
        self.from + (map(value) - low) / (high - low) * (self.to - self.from)
    }

    /// Round values within the scale.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (first, last) = (self.min.log10().ceil() as i32, self.max.log10().floor() as i32);
            return (first..=last).map(|power| 10f64.powi(power)).collect();
        }
        let rough = (self.max - self.min) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        (0..=12).map(|n| self.min + f64::from(n) * step).filter(|v| *v <= self.max * 1.0001).collect()
    }
}

/// The plot, or nothing if there is nothing to show.
pub fn plot(plot: &Plot) -> String {
    let usable = |point: &&(f64, f64)| point.0.is_finite() && point.1.is_finite() && (!plot.log_x || point.0 > 0.0);
    let points: Vec<(f64, f64)> =
        plot.lines.iter().flat_map(|line| line.points.iter().filter(usable)).copied().collect();
    if points.len() < 2 {
        return String::new();
    }
    let edge = |f: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64| points.iter().map(of).reduce(f).unwrap_or(0.0);
    let x_min = if plot.log_x { edge(f64::min, |p| p.0) } else { 0.0 };
    let x_max = edge(f64::max, |p| p.0).max(x_min * 1.01 + f64::MIN_POSITIVE);
    let y_max = edge(f64::max, |p| p.1).max(f64::MIN_POSITIVE) * 1.04;
    let x = Scale { min: x_min, max: x_max, log: plot.log_x, from: LEFT, to: WIDTH - RIGHT };
    let y = Scale { min: 0.0, max: y_max, log: false, from: HEIGHT - BOTTOM, to: TOP };
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n",
        super::html::escape(plot.title)
    );
    axes(&mut svg, plot, &x, &y);
    for line in &plot.lines {
        let path: Vec<String> =
            line.points.iter().filter(usable).map(|p| format!("{:.1},{:.1}", x.at(p.0), y.at(p.1))).collect();
        let (name, color) = (super::html::escape(&line.name), line.color);
        let _ = writeln!(
            svg,
            "<polyline class=\"line c{color}\" points=\"{}\"><title>{name}</title></polyline>",
            path.join(" ")
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A round number without the zeroes that say nothing.
fn tick(value: f64) -> String {
    if value >= 1000.0 {
        return super::figures::number(value);
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn axes(svg: &mut String, plot: &Plot, x: &Scale, y: &Scale) {
    let bottom = HEIGHT - BOTTOM;
    for value in y.ticks() {
        let at = y.at(value);
        let text = tick(value);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", x.to);
        let _ = writeln!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{text}</text>", LEFT - 6.0, at + 4.0);
    }
    for value in x.ticks() {
        let at = x.at(value);
        let text = tick(value);
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
        let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>", bottom + 16.0);
    }
    let (middle_x, middle_y) = ((LEFT + x.to) / 2.0, (TOP + bottom) / 2.0);
    let (x_label, y_label) = (super::html::escape(plot.x_label), super::html::escape(plot.y_label));
    let _ =
        writeln!(svg, "<text x=\"{middle_x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_label}</text>", HEIGHT - 8.0);
    let _ = writeln!(
        svg,
        "<text x=\"14\" y=\"{middle_y:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle_y:.1})\">{y_label}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_no_zeroes_that_say_nothing() {
        let ticks = [0.0, 0.025, 0.5, 75.0, 100.0, 25_000.0].map(tick);
        assert_eq!(ticks, ["0", "0.025", "0.5", "75", "100", "25 000"]);
    }

    #[test]
    fn a_plot_holds_its_lines_within_its_frame() {
        let lines = vec![Line { name: "a<b".into(), color: 1, points: vec![(1.0, 5.0), (1000.0, 50.0)] }];
        let svg = plot(&Plot { title: "t", x_label: "x", y_label: "y", log_x: true, lines });
        assert!(svg.contains("a&lt;b") && svg.contains("class=\"line c1\""), "{svg}");
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("points");
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').expect("x,y");
            let (x, y): (f64, f64) = (x.parse().expect("x"), y.parse().expect("y"));
            assert!((LEFT..=WIDTH).contains(&x) && (0.0..=HEIGHT).contains(&y), "{point}");
        }
        assert_eq!(plot(&Plot { title: "t", x_label: "x", y_label: "y", log_x: false, lines: Vec::new() }), "");
    }
}
