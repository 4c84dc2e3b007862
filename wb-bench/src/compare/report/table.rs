//! Tables.

use super::figures::{self, DEVICE_WORK};
use crate::compare::dilation;
use crate::compare::result::{Comparison, WorkloadInfo};
use crate::compare::systems::{OURS, is_raw};
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table};
use std::io::Write;
use wb_cli::Out;

/// Prints everything that fits in tables.
pub fn print(result: &Comparison, markdown: bool, out: &mut Out) -> anyhow::Result<()> {
    let title = |out: &mut Out, text: &str| match markdown {
        true => writeln!(out, "\n**{text}**\n"),
        false => writeln!(out, "\n{text}"),
    };
    if !result.complete {
        title(out, "The run did not come to its end; this is what there is.")?;
    }
    title(out, "Results: median of the rounds, ± half the spread")?;
    writeln!(out, "{}", results(result, markdown))?;
    if result.setup.dilation != 1.0 {
        let note = "Modelled devices, slowed down because the processor is emulated. Figures are in the devices' own time: \
                    measured rates times the factor in the column 'slowed', measured seconds divided by it.";
        // A line directly below a Markdown table would be one of its rows.
        writeln!(out, "{}{note}", if markdown { "\n" } else { "" })?;
        if let Some(found) = result.setup.facts.get(dilation::FACT) {
            writeln!(out, "A ublk device with nothing behind it, in the same guest: {found}.")?;
        }
    }
    title(out, "What the devices had to do")?;
    writeln!(out, "{}", device_work(result, markdown))?;
    let further = further(result, markdown);
    if !further.is_empty() {
        title(out, "Further figures")?;
        writeln!(out, "{further}")?;
    }
    let latencies = latencies(result, markdown);
    title(out, "Latency in ms: median, 99 %, 99.9 %")?;
    writeln!(out, "{latencies}")?;
    for (system, workload, failed, why) in without_figure(result) {
        let word = if failed { "failed" } else { "not applicable" };
        writeln!(out, "{system}, {workload}: {word}: {why}")?;
    }
    Ok(())
}

/// A table with these heads.
pub fn new(heads: Vec<String>, markdown: bool) -> Table {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { UTF8_FULL_CONDENSED });
    table.set_content_arrangement(if markdown { ContentArrangement::Disabled } else { ContentArrangement::Dynamic });
    table.set_header(heads);
    table
}

/// A cell with a number.
pub fn right(text: impl ToString) -> Cell {
    Cell::new(text.to_string()).set_alignment(CellAlignment::Right)
}

/// Workloads by systems.
pub fn results(result: &Comparison, markdown: bool) -> Table {
    let systems = figures::systems(result);
    let mut heads = vec!["workload".to_string(), "unit".to_string()];
    heads.extend(systems.iter().map(|name| name.to_string()));
    heads.push("ours / best peer".into());
    let slowed = result.setup.dilation != 1.0;
    if slowed {
        heads.push("slowed".into());
    }
    let mut table = new(heads, markdown);
    for workload in &result.workloads {
        let mut row = vec![Cell::new(&workload.name), Cell::new(&workload.unit)];
        row.extend(systems.iter().map(|name| right(figure(result, name, workload))));
        let advantage = figures::advantage(result, workload);
        row.push(right(advantage.map_or("-".into(), |times| format!("{}x", figures::number(times)))));
        if slowed {
            row.push(right(format!("{}x", figures::number(figures::dilation(result, workload)))));
        }
        table.add_row(row);
    }
    table
}

fn figure(result: &Comparison, system: &str, workload: &WorkloadInfo) -> String {
    match (figures::shown(result, system, workload), result.why_not(system, &workload.name)) {
        (Some(spread), None) => figures::with_spread(&spread),
        // Some rounds failed: that must not look like a result.
        (Some(spread), Some(_)) => format!("{} (!)", figures::with_spread(&spread)),
        (None, Some((true, _))) => "failed".into(),
        (None, _) => "-".into(),
    }
}

/// Device work by workload and caching system.
fn device_work(result: &Comparison, markdown: bool) -> Table {
    let systems: Vec<&str> = figures::systems(result).into_iter().filter(|name| !is_raw(name)).collect();
    let mut heads = vec!["workload".to_string(), "figure".to_string()];
    heads.extend(systems.iter().map(|name| name.to_string()));
    let mut table = new(heads, markdown);
    for workload in &result.workloads {
        for (title, ratio) in DEVICE_WORK {
            let spreads: Vec<_> = systems.iter().map(|name| result.spread_by(name, &workload.name, ratio)).collect();
            if spreads.iter().flatten().all(|spread| spread.max == 0.0) {
                continue;
            }
            let mut row = vec![Cell::new(&workload.name), Cell::new(title)];
            let text = |spread: &Option<crate::compare::result::Spread>| {
                spread.map_or("-".to_string(), |spread| figures::number(spread.median))
            };
            row.extend(spreads.iter().map(|spread| right(text(spread))));
            table.add_row(row);
        }
    }
    table
}

/// What else a workload told.
fn further(result: &Comparison, markdown: bool) -> Table {
    let mut heads = vec!["workload".to_string(), "figure".to_string()];
    heads.extend(figures::systems(result).iter().map(|name| name.to_string()));
    let mut table = new(heads, markdown);
    for workload in &result.workloads {
        for (title, values) in figures::further(result, workload) {
            let mut row = vec![Cell::new(&workload.name), Cell::new(title)];
            row.extend(values.into_iter().map(|value| right(value.map_or("-".to_string(), figures::number))));
            table.add_row(row);
        }
    }
    table
}

fn latencies(result: &Comparison, markdown: bool) -> Table {
    let systems = figures::systems(result);
    let mut heads = vec!["workload".to_string(), "of".to_string()];
    heads.extend(systems.iter().map(|name| name.to_string()));
    let mut table = new(heads, markdown);
    for workload in &result.workloads {
        let to_ms = 1.0 / 1000.0 / figures::dilation(result, workload);
        let at = |name: &str, percent: f64| {
            let spread = result.spread_by(name, &workload.name, |m| m.latency.as_ref()?.at(percent));
            spread.map(|spread| figures::number(spread.median * to_ms))
        };
        let text = |name: &str| match (at(name, 50.0), at(name, 99.0), at(name, 99.9)) {
            (Some(half), Some(most), Some(nearly_all)) => format!("{half} / {most} / {nearly_all}"),
            _ => "-".into(),
        };
        let measured = result.measured(OURS, &workload.name);
        let Some(latency) = measured.iter().find_map(|m| m.latency.as_ref()) else { continue };
        let mut row = vec![Cell::new(&workload.name), Cell::new(&latency.of)];
        row.extend(systems.iter().map(|name| right(text(name))));
        table.add_row(row);
    }
    table
}

/// Every cell without a figure: system, workload, whether it failed, why.
fn without_figure(result: &Comparison) -> Vec<(&str, &str, bool, &str)> {
    let mut found = Vec::new();
    for workload in &result.workloads {
        for system in figures::systems(result) {
            if let Some((failed, why)) = result.why_not(system, &workload.name) {
                found.push((system, workload.name.as_str(), failed, why));
            }
        }
    }
    found
}
