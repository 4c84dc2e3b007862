//! The report as one HTML file that needs no other: no scripts, no fonts, nothing from the network.

use super::figures::{self, DEVICE_WORK};
use super::svg::{Line, Plot, plot};
use crate::compare::result::{Comparison, Measurement, WorkloadInfo};
use crate::compare::systems::{OURS, is_raw};
use std::fmt::Write as _;

const STYLE: &str = include_str!("style.css");

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The whole page.
pub fn page(result: &Comparison) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    page.push_str("<title>wb-bench: Writeboost and its peers</title>\n<style>\n");
    page.push_str(STYLE);
    page.push_str("</style>\n</head>\n<body>\n<h1>Writeboost and its peers</h1>\n");
    let mut add = |section: String| page.push_str(&section);
    add(introduction(result));
    add(summary(result));
    add(work_bars(result));
    for workload in &result.workloads {
        add(section(result, workload));
    }
    add(setup(result));
    add("</body>\n</html>\n".to_string());
    page
}

fn introduction(result: &Comparison) -> String {
    let mut text = format!(
        "<p>Made by <code>{}</code> in {:.0} minutes, wb-bench {}.</p>\n",
        escape(&result.command),
        result.elapsed_s / 60.0,
        escape(&result.version)
    );
    if !result.complete {
        text.push_str("<p class=\"warn\">The run did not come to its end; this is what there is.</p>\n");
    }
    if result.setup.dilation != 1.0 {
        text.push_str(
            "<p>The devices are modelled and slowed down, because the guest's processor is emulated. Figures are in the \
             devices' own time: measured rates times the factor in the column “slowed”, measured times divided by it. \
             Compare systems with each other, not with figures from elsewhere.</p>\n",
        );
    }
    let _ = writeln!(text, "<p class=\"legend\">{}</p>", legend(result));
    text
}

fn legend(result: &Comparison) -> String {
    let entry = |(color, name): (usize, &str)| {
        format!(
            "<span><svg viewBox=\"0 0 24 8\"><line class=\"line c{color}\" x1=\"0\" x2=\"24\" y1=\"4\" y2=\"4\"/></svg> {}</span>",
            escape(name)
        )
    };
    figures::systems(result).into_iter().enumerate().map(entry).collect::<Vec<_>>().join(" ")
}

fn summary(result: &Comparison) -> String {
    let systems = figures::systems(result);
    let mut html = String::from("<h2>Results</h2>\n<div class=\"wide\"><table>\n<tr><th>workload</th><th>unit</th>");
    for name in &systems {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("<th>ours / best peer</th><th>slowed</th></tr>\n");
    for workload in &result.workloads {
        let _ = write!(
            html,
            "<tr><td><a href=\"#{0}\">{0}</a></td><td>{1}</td>",
            escape(&workload.name),
            escape(&workload.unit)
        );
        for name in &systems {
            let why_not = result.why_not(name, &workload.name);
            let text = match (figures::shown(result, name, workload), why_not) {
                (Some(spread), _) => figures::with_spread(&spread),
                (None, Some((true, why))) => format!("<span title=\"{}\">failed</span>", escape(why)),
                (None, _) => "–".into(),
            };
            let class = if *name == OURS { " class=\"ours\"" } else { "" };
            let _ = write!(html, "<td{class}>{text}</td>");
        }
        let advantage = figures::advantage(result, workload);
        let text = advantage.map_or("–".into(), |times| format!("{}×", figures::number(times)));
        let dilation = figures::number(figures::dilation(result, workload));
        let _ = writeln!(html, "<td>{text}</td><td>{dilation}×</td></tr>");
    }
    html.push_str("</table></div>\n<p>Median of the rounds, ± half the spread.</p>\n");
    html
}

/// Work of the devices per operation of the user, as bars, for the workloads that write.
fn work_bars(result: &Comparison) -> String {
    let systems = figures::systems(result);
    let mut html = String::from("<h2>What the devices had to do per operation of the user</h2>\n");
    for (title, ratio) in DEVICE_WORK {
        let mut rows = String::new();
        for workload in &result.workloads {
            let of = |(color, name): (usize, &&str)| {
                let spread = result.spread_by(name, &workload.name, ratio)?;
                (!is_raw(name)).then_some((color, name.to_string(), spread.median))
            };
            let values: Vec<(usize, String, f64)> = systems.iter().enumerate().filter_map(of).collect();
            let most = values.iter().map(|value| value.2).fold(0.0, f64::max);
            if most == 0.0 {
                continue;
            }
            let _ = writeln!(rows, "<tr><td rowspan=\"{}\">{}</td>", values.len(), escape(&workload.name));
            for (at, (color, name, value)) in values.iter().enumerate() {
                let start = if at > 0 { "<tr>" } else { "" };
                let width = value / most * 320.0;
                let _ = writeln!(
                    rows,
                    "{start}<td>{}</td><td class=\"bar\"><svg viewBox=\"0 0 330 12\"><rect class=\"f{color}\" width=\"{width:.1}\" height=\"12\"/></svg></td><td>{}</td></tr>",
                    escape(name),
                    figures::number(*value)
                );
            }
        }
        if !rows.is_empty() {
            let _ = writeln!(
                html,
                "<details open><summary>{}</summary>\n<table class=\"bars\">\n{rows}</table></details>",
                escape(title)
            );
        }
    }
    html
}

/// The lines of a plot, one per system: of the round with the median figure.
fn lines(result: &Comparison, workload: &WorkloadInfo, points: impl Fn(&Measurement) -> Vec<(f64, f64)>) -> Vec<Line> {
    let line = |(color, name): (usize, &str)| {
        let mut measured = result.measured(name, &workload.name);
        measured.sort_by(|a, b| a.value.total_cmp(&b.value));
        let points = points(measured.get(measured.len().checked_sub(1)? / 2)?);
        (!points.is_empty()).then(|| Line { name: name.to_string(), color, points })
    };
    figures::systems(result).into_iter().enumerate().filter_map(line).collect()
}

fn section(result: &Comparison, workload: &WorkloadInfo) -> String {
    let dilation = figures::dilation(result, workload);
    let rate = if workload.unit == "MiB/s" { "MiB/s" } else { "per second" };
    let mut html = format!("<h2 id=\"{0}\">{0}</h2>\n<p>{1}</p>\n", escape(&workload.name), escape(&workload.question));
    let series = |m: &Measurement| m.series.iter().map(|(s, v)| (s / dilation, v * dilation)).collect();
    html.push_str(&figure(Plot {
        title: "throughput over time",
        x_label: "seconds",
        y_label: rate,
        log_x: false,
        lines: lines(result, workload, series),
    }));
    let cdf = |m: &Measurement| {
        let points = m.latency.iter().flat_map(|latency| latency.percentiles.iter());
        points.map(|(percent, us)| (us / 1000.0 / dilation, *percent)).collect()
    };
    html.push_str(&figure(Plot {
        title: "latency: share of the operations that took no longer",
        x_label: "ms",
        y_label: "% of operations",
        log_x: true,
        lines: lines(result, workload, cdf),
    }));
    let drain = |m: &Measurement| m.drain.iter().map(|(s, mib)| (s / dilation, *mib)).collect();
    html.push_str(&figure(Plot {
        title: "dirty data while draining",
        x_label: "seconds",
        y_label: "MiB dirty",
        log_x: false,
        lines: lines(result, workload, drain),
    }));
    html.push_str(&further(result, workload));
    let _ = writeln!(
        html,
        "<details><summary>how it was run</summary>\n<p>{}</p>\n<pre>{}</pre></details>",
        escape(&workload.preparation).replace('\n', "<br>"),
        escape(&workload.job)
    );
    html
}

/// What else it told, as a table.
fn further(result: &Comparison, workload: &WorkloadInfo) -> String {
    let rows = figures::further(result, workload);
    if rows.is_empty() {
        return String::new();
    }
    let mut html = String::from("<div class=\"wide\"><table>\n<tr><th></th>");
    for name in figures::systems(result) {
        let _ = write!(html, "<th>{}</th>", escape(name));
    }
    html.push_str("</tr>\n");
    for (title, values) in rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(&title));
        for value in values {
            let _ = write!(html, "<td>{}</td>", value.map_or("–".into(), figures::number));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table></div>\n");
    html
}

fn figure(what: Plot) -> String {
    let svg = plot(&what);
    if svg.is_empty() {
        return svg;
    }
    let mut names = String::new();
    for line in &what.lines {
        let _ = write!(
            names,
            "<span><svg viewBox=\"0 0 24 8\"><line class=\"line c{}\" x1=\"0\" x2=\"24\" y1=\"4\" y2=\"4\"/></svg> {}</span> ",
            line.color,
            escape(&line.name)
        );
    }
    format!(
        "<figure>\n<figcaption>{}<br><span class=\"legend\">{names}</span></figcaption>\n{svg}</figure>\n",
        escape(what.title)
    )
}

fn setup(result: &Comparison) -> String {
    let mut html = String::from("<h2>Set-up</h2>\n<table>\n");
    for (name, value) in &result.setup.facts {
        let _ = writeln!(html, "<tr><td>{}</td><td class=\"text\">{}</td></tr>", escape(name), escape(value));
    }
    html.push_str("</table>\n");
    for (name, model) in [("SSD", &result.setup.ssd_model), ("disk", &result.setup.disk_model)] {
        if let Some(parameters) = model["parameters"].as_str() {
            let _ = writeln!(
                html,
                "<details><summary>model of the {name}</summary><pre>{}</pre></details>",
                escape(parameters)
            );
        }
    }
    for system in &result.systems {
        let _ = writeln!(html, "<h3>{}</h3>\n<ul>", escape(&system.name));
        for reason in &system.reasons {
            let _ = writeln!(html, "<li>{}</li>", escape(reason));
        }
        html.push_str("</ul>\n");
        let lines: Vec<String> = system.commands.iter().chain(&system.checks).map(|line| escape(line)).collect();
        let _ = writeln!(html, "<pre>{}</pre>", lines.join("\n"));
    }
    html
}

#[cfg(test)]
mod tests {
    #[test]
    fn markup_in_texts_is_no_markup() {
        assert_eq!(super::escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
